"""What a site's TOML file may say.

Sections that a run of the testbed has too (task, partition, train, rule, codec, gossip) mean the same here. Paths are
relative to the folder of the file, so that a site's folder can be moved as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gossipfl.errors import ConfigError
from gossipfl.sections import (
    CodecSpec,
    Count,
    Delay,
    FilePath,
    GossipSpec,
    PartitionSpec,
    Positive,
    RuleSpec,
    Seconds,
    Spec,
    TaskSpec,
    TlsSpec,
    TrainSpec,
)
from gossipfl.settings import Settings

SECTIONS = {"task": "digits", "rule": "pace", "codec": "float32", "partition": "auto"}
"""Sections that may be written as a bare name, and the name that they have by default."""
TRANSPORTS = ("broker", "libp2p")
"""The sections that choose a transport: a file has one of them."""

Name = Annotated[str, Field(min_length=1)]
Edge = Annotated[list[str], Field(min_length=2, max_length=2)]


class FederationSpec(Spec):
    """What all sites must agree on: who is a member, who gossips with whom, and the common initial model.

    Either ``membership`` names a signed file that says it all, whose later versions come by gossip; or it is said here,
    and stays as it is.

    ``members`` maps each site's name to its peer id, ``edges`` are pairs of names. Everyone derives neighbours and
    mixing weights from the same edges; the order of members and edges does not matter. ``addresses`` maps names to the
    multiaddresses that the sites are dialled at over libp2p; a site that is not named there is waited for, or found.
    """

    membership: FilePath | None = None
    name: Name
    members: dict[str, str] = Field(min_length=2)
    edges: list[Edge] = Field(min_length=1)
    addresses: dict[str, list[str]] = Field(default_factory=dict)
    model_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class SiteSection(Spec):
    """This site: its ``name`` among the members, its ``key`` file, and the folder that keeps its ``state``.

    ``round_every_s``: least time from one round to the next. ``stop_timeout_s``: how long a stopping daemon may take
    to finish its round and drain. ``threads``: how many cores training may use. ``events_bytes``: size at which
    events.jsonl is put aside; four older ones are kept. ``checkpoint_every_s``: how much work a crash may cost at
    most; ``checkpoints``: how many are kept.
    """

    name: Name
    key: FilePath
    state: FilePath
    round_every_s: Delay = 0.0
    stop_timeout_s: Seconds = 60.0
    threads: Positive = 1
    events_bytes: Annotated[int, Field(ge=4096)] = 16 << 20
    checkpoint_every_s: Seconds = 60.0
    checkpoints: Positive = 3


class BrokerSection(Spec):
    """The MQTT broker: its address, and the login by password, by client certificate (``tls``) or both.

    ``wait``: keep trying when the broker does not answer at the start, instead of giving up.
    """

    host: Name
    port: int | None = Field(default=None, ge=1, le=65535)
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    password_file: FilePath | None = None
    tls: TlsSpec | None = None
    wait: bool = False

    @property
    def port_number(self) -> int:
        """The port: 1883, or 8883 with TLS, where none is given."""
        return self.port or (8883 if self.tls else 1883)

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port_number}"


class Libp2pSection(Spec):
    """The links that this site makes to its neighbours itself, without a broker.

    ``listen``: multiaddresses to listen on. ``announce``: those that others shall dial instead, where they differ (a
    forwarded port). ``mdns``: also look for sites on the local network, and be found there. A link on which nothing
    came for ``ping_s`` is probed; one that was silent for ``dead_s`` is closed and made anew.
    """

    listen: list[str] = Field(default=["/ip4/0.0.0.0/tcp/4001"])
    announce: list[str] = Field(default_factory=list)
    mdns: bool = False
    ping_s: Seconds = 2.0
    dead_s: Seconds = 6.0

    @property
    def where(self) -> str:
        """What it listens on, for people."""
        return ", ".join(self.listen)


class GuardSection(Spec):
    """Refuse mixing steps that make the loss on this site's own data more than ``1 + worse`` times what it was."""

    worse: Annotated[float, Field(ge=0)] = 0.5


class HealthSection(Spec):
    """Where ``/metrics``, ``/healthz`` and ``/readyz`` are served; without it at 127.0.0.1:9464, if that is free.

    ``port`` 0 is any that is free.
    """

    enabled: bool = True
    host: Name = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9464


class CatchUpSection(Spec):
    """What a site does that starts late, or again after a long time: it takes over a neighbour's model.

    ``rounds``: how far behind most neighbours it must be for that; 0: never. ``wait_s``: how long it waits for their
    models. ``slack``: a model is passed over whose loss on the site's data is more than so many times that of its own.
    """

    rounds: Count = 20
    wait_s: Seconds = 60.0
    slack: Annotated[float, Field(gt=0)] = 1.0


class ShareSpec(Spec):
    """Which part of a data set is this site's, where several sites load the same one: part ``index`` ``of`` so many."""

    index: Count = 0
    of: Positive = 1


class SiteSpec(Spec):
    """One site, complete; of the two transports, ``broker`` and ``libp2p``, it has one (see ``load_site``)."""

    federation: FederationSpec
    site: SiteSection
    broker: BrokerSection | None = None
    libp2p: Libp2pSection | None = None
    task: TaskSpec = Field(default_factory=TaskSpec)
    partition: PartitionSpec = Field(default_factory=PartitionSpec)
    share: ShareSpec = Field(default_factory=ShareSpec)
    train: TrainSpec = Field(default_factory=TrainSpec)
    rule: RuleSpec = Field(default_factory=RuleSpec)
    codec: CodecSpec = Field(default_factory=CodecSpec)
    gossip: GossipSpec = Field(default_factory=GossipSpec)
    catch_up: CatchUpSection = Field(default_factory=CatchUpSection)
    health: HealthSection | None = None
    guard: GuardSection | None = None
    mode: Literal["async", "sync"] = "async"
    rounds: Positive | None = None
    evaluate_every: Positive = 10

    @property
    def waits_for_broker(self) -> bool:
        """Whether the broker may come up after this site."""
        return self.broker is not None and self.broker.wait

    def evaluates(self, round_: int) -> bool:
        """Say whether the model is measured after round ``round_`` (from 0)."""
        return (round_ + 1) % self.evaluate_every == 0 or (self.rounds is not None and round_ == self.rounds - 1)


@dataclass(frozen=True, slots=True)
class SiteFile:
    """A site's file as far as it can be understood.

    ``spec`` is None where too much is missing. ``lines`` are the mistakes, one line each; ``mistaken`` the sections
    that they are in, and ``doubtful`` those of them where a default stands in for what the person wrote.
    """

    path: Path
    spec: SiteSpec | None
    lines: tuple[str, ...]
    mistaken: frozenset[str]
    doubtful: frozenset[str]


def read_site(path: Path) -> SiteFile:
    """Read the file and look past its mistakes; raises ConfigError where it is missing or no TOML."""
    settings = _settings(path)
    choice = list(_choice_mistakes(settings, path))
    mistakes = settings.mistakes(SiteSpec)
    mistaken = frozenset(str(mistake.key[0]) for mistake in mistakes if mistake.key)
    doubtful = frozenset(str(mistake.key[0]) for mistake in mistakes if mistake.key and not mistake.surplus)
    for mistake in mistakes:
        if not settings.drop(mistake.key) and mistake.key:
            settings.drop(mistake.key[:1])
    spec = None
    if not settings.mistakes(SiteSpec):
        spec = _resolved(settings.validate(SiteSpec), path.parent)
    lines = [*(mistake.line for mistake in mistakes), *choice]
    if choice:
        mistaken |= set(TRANSPORTS)
    return SiteFile(path, spec, tuple(lines), mistaken, doubtful)


def load_site(path: Path) -> SiteSpec:
    """Return the site that the file describes; raises ConfigError with the first mistake."""
    settings = _settings(path)
    spec = settings.validate(SiteSpec)
    for mistake in _choice_mistakes(settings, path):
        raise ConfigError(mistake)
    return _resolved(spec, path.parent)


def load_state_folder(path: Path) -> Path:
    """Return the state folder that the file names, whatever else may be wrong in it; raises ConfigError."""
    from gossipfl.settings import read_toml

    section = read_toml(path).get("site")
    state = section.get("state") if isinstance(section, dict) else None
    if not isinstance(state, str):
        raise ConfigError(f"{path}: site.state is missing; name the folder that keeps the daemon's state")
    return path.parent / state


def _settings(path: Path) -> Settings:
    settings = Settings(SECTIONS)
    settings.add_file(path)
    section = settings.get("federation")
    if isinstance(section, dict) and "membership" in section:
        _add_membership(settings, section, path)
    return settings


def _add_membership(settings: Settings, section: dict[str, Any], path: Path) -> None:
    """Fill the federation's section from the membership in force."""
    from gossipfl_node.memberships import federation_section, known_versions

    for key in ("name", "members", "edges", "addresses", "model_seed"):
        if key in section:
            raise ConfigError(f"{path}: federation.{key} is in the membership file already; remove it here")
    site = settings.get("site")
    installed, state = section["membership"], site.get("state") if isinstance(site, dict) else None
    if not isinstance(installed, str) or not isinstance(state, str):
        raise ConfigError(f"{path}: federation.membership and site.state must be paths in quotes")
    folder = path.parent.absolute()
    document = known_versions(folder / installed, folder / state)[-1]
    for key, value in federation_section(document).items():
        settings.add_option(f"federation.{key}", value, f"{installed}:")


def _choice_mistakes(settings: Settings, path: Path) -> Iterator[str]:
    """Yield what is wrong with the choice of a transport, whatever is wrong inside of the sections."""
    given = [name for name in TRANSPORTS if settings.get(name) is not None]
    if not given:
        yield f"{path}: no transport is given; add [broker] to gossip over MQTT, or [libp2p] to do without a broker"
    elif len(given) > 1:
        yield f"{path}: [broker] and [libp2p] are both given; keep the one that all sites of this federation use"


def _resolved(spec: SiteSpec, folder: Path) -> SiteSpec:
    """Return the spec with all its paths relative to ``folder`` made absolute."""
    root = folder.absolute()

    def under(part: Spec, *names: str) -> Any:
        found = {name: getattr(part, name) for name in names}
        return part.model_copy(update={name: root / path for name, path in found.items() if path is not None})

    update: dict[str, Any] = {
        "site": under(spec.site, "key", "state"),
        "federation": under(spec.federation, "membership"),
    }
    if spec.broker is not None:
        broker = under(spec.broker, "password_file")
        tls = None if broker.tls is None else under(broker.tls, "ca", "cert", "key")
        update["broker"] = broker.model_copy(update={"tls": tls})
    data = spec.task.options.get("path")
    # What the options of a person's own task mean is the task's business.
    if isinstance(data, str) and ":" not in spec.task.name:
        options = {**spec.task.options, "path": str(root / data)}
        update["task"] = spec.task.model_copy(update={"options": options})
    return spec.model_copy(update=update)
