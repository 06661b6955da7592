"""The specification of one run: what a TOML file, the options and ``--set`` may say, and what that means.

    spec = load_spec(Path("demo.toml"), {"rounds": 20}, ["train.lr=0.05"])

A section that has a ``name`` (topology, task, rule, attack, codec, partition) may be written as that name
alone: ``rule = "mean"`` equals ``[rule]`` with ``name = "mean"``. Its other keys are options of the named
thing, checked by the registry that builds it. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gossipfl.settings import Settings, choose
from gossipfl.tasks.base import Partition, TrainOptions

if TYPE_CHECKING:
    from gossipfl.gossip.settings import GossipSettings

TRANSPORTS = ("memory", "mqtt")
EVALUATIONS = 20
"""How often a run evaluates where ``evaluate_every`` is left out."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Delay = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
FilePath = Annotated[Path, Field(strict=False)]


class Spec(BaseModel):
    """Base of all sections: immutable, typed strictly, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NamedSpec(Spec):
    """A section that picks something by ``name``; every other key is one of its ``options``."""

    default_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options that a name has where none are given."""

    name: str = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, Mapping):
            return given
        rest = {key: value for key, value in given.items() if key not in {"name", "options"}}
        name = given.get("name", cls.model_fields["name"].default)
        defaults = cls.default_options.get(name, {}) if isinstance(name, str) else {}
        tables = given.get("options", {})
        options = {**defaults, **(tables if isinstance(tables, Mapping) else {"options": tables}), **rest}
        return {**({"name": given["name"]} if "name" in given else {}), "options": options}

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        for key, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise PydanticCustomError("option", "must be a finite number", {"key": key})
            if not isinstance(value, str | int | float | list):
                raise PydanticCustomError("option", "must be one value or a list", {"key": key})
        return options

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


class TopologySpec(NamedSpec):
    """The graph: a family with its options (``degree = 4``), or a file."""

    default_options = {"random-regular": {"degree": 4}}
    name: str = Field(default="random-regular", min_length=1)


class TaskSpec(NamedSpec):
    """What is learnt: a built-in task or ``module:factory``, with options such as ``path`` and ``model``."""

    name: str = Field(default="digits", min_length=1)


class RuleSpec(NamedSpec):
    """The aggregation rule and its options (``gamma``, ``kappa``, ``alpha`` for balance)."""

    name: str = Field(default="balance", min_length=1)


class CodecSpec(NamedSpec):
    """How deltas become bytes."""

    name: str = Field(default="float32", min_length=1)


class AttackSpec(NamedSpec):
    """What Byzantine nodes publish; ``none`` is no attack."""

    name: str | None = None  # type: ignore[assignment]

    @field_validator("name")
    @classmethod
    def _none(cls, name: str | None) -> str | None:
        return None if name in {None, "none", ""} else name


class PartitionSpec(Spec):
    """How training data is split over nodes; see ``gossipfl.tasks.base.Partition``."""

    name: Literal["auto", "iid", "dirichlet", "label-groups", "shards", "files"] = "auto"
    alpha: float = Field(default=0.5, gt=0)
    h: Share = 0.8
    samples: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    def partition(self) -> Partition:
        """Return the task seam's form of this section."""
        return Partition(name=self.name, alpha=self.alpha, h=self.h, samples=self.samples)


class TrainSpec(Spec):
    """Local training: ``local_steps`` optimiser steps of ``batch`` samples in each round."""

    local_steps: Positive = 10
    batch: Positive = 32
    lr: float = Field(default=0.1, gt=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    device: str = Field(default="cpu", min_length=1)

    def options(self) -> TrainOptions:
        """Return the task seam's form of this section."""
        return TrainOptions(**self.model_dump(exclude={"local_steps"}))


class GossipSpec(Spec):
    """Limits of the protocol core and the agent, times in seconds of the run's own clock.

    The core's are documented at ``gossipfl.gossip.GossipSettings``. ``join_timeout_s``: how long a node waits at the
    start for all its neighbours; ``drain_s``: how long it serves them at the end; ``step_s``: in virtual time, how
    long a local step takes, and ``spread``: by which factor nodes differ in speed (1: not at all).
    """

    deadline_s: Seconds = 60.0
    deadline_min_s: Seconds = 5.0
    heartbeat_s: Seconds = 1.0
    liveness_s: Seconds = 10.0
    outage_s: Seconds = 60.0
    ack_delay_s: Seconds = 0.5
    nudge_s: Seconds = 2.0
    nudge_min_s: Seconds = 0.2
    resync_s: Seconds = 0.25
    resync_max_s: Seconds = 5.0
    window_bytes: Positive = 4 << 20
    patience_s: Seconds = 5.0
    staleness_exponent: float = Field(default=0.5, ge=0)
    max_staleness: Positive = 50
    join_timeout_s: Seconds = 30.0
    drain_s: Seconds = 10.0
    step_s: Seconds = 0.01
    spread: float = Field(default=1.0, ge=1)

    def settings(self, mode: Literal["sync", "async"]) -> GossipSettings:
        """Return the core's form of this section."""
        from gossipfl.gossip.settings import GossipSettings

        known = {limit.name for limit in fields(GossipSettings)} - {"mode"}
        return GossipSettings(mode=mode, **self.model_dump(include=known))


class TlsSpec(Spec):
    """Certificates for the broker: the authority that signed it, and optionally this side's own pair."""

    ca: FilePath | None = None
    cert: FilePath | None = None
    key: FilePath | None = None


class BrokerSpec(Spec):
    """The MQTT broker; with no ``host`` the testbed starts one of ``kind`` on loopback, on a free port."""

    host: str | None = Field(default=None, min_length=1)
    port: int | None = Field(default=None, ge=1, le=65535)
    username: str | None = None
    password: str | None = Field(default=None, repr=False)
    tls: TlsSpec | None = None
    kind: Literal["embedded", "mosquitto"] = "embedded"


class NetworkPartition(Spec):
    """From ``start_s`` to ``end_s`` no frame passes between ``groups``; nodes left out form one more."""

    start_s: float = Field(ge=0)
    end_s: float = Field(gt=0)
    groups: tuple[tuple[Count, ...], ...] = Field(strict=False, min_length=1)

    @field_validator("groups", mode="before")
    @classmethod
    def _tuples(cls, groups: Any) -> Any:
        if isinstance(groups, list) and all(isinstance(group, list) for group in groups):
            return tuple(tuple(group) for group in groups)
        return groups


class CrashSpec(Spec):
    """From ``start_s`` until ``end_s`` (None: for ever) nothing leaves or reaches ``node``."""

    node: Count
    start_s: float = Field(ge=0)
    end_s: Seconds | None = None


class FaultSpec(Spec):
    """Seeded faults of the memory transport; see ``gossipfl.transports.faults.FaultPlan``.

    Each of the shares is the probability that a frame is hit on a link. ``delay_s`` is a range [shortest,
    longest], or the longest alone.
    """

    drop: Share = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    corrupt: Share = 0.0
    delay_s: Annotated[tuple[Delay, Delay], Field(strict=False)] = (0.0, 0.0)
    partitions: Annotated[tuple[NetworkPartition, ...], Field(strict=False)] = ()
    crashes: Annotated[tuple[CrashSpec, ...], Field(strict=False)] = ()

    @field_validator("delay_s", mode="before")
    @classmethod
    def _range(cls, delay_s: Any) -> Any:
        return (0.0, delay_s) if isinstance(delay_s, int | float) else delay_s


class RunSpec(Spec):
    """One run, complete: with the same spec and code, a deterministic transport gives the same run."""

    nodes: Positive = 8
    topology: TopologySpec = Field(default_factory=lambda: TopologySpec.model_validate("random-regular"))
    transport: str = "mqtt"
    task: TaskSpec = Field(default_factory=TaskSpec)
    partition: PartitionSpec = Field(default_factory=PartitionSpec)
    rule: RuleSpec = Field(default_factory=RuleSpec)
    attack: AttackSpec = Field(default_factory=AttackSpec)
    byzantine: Count = 0
    rounds: Positive = 40
    mode: Literal["sync", "async"] = "sync"
    codec: CodecSpec = Field(default_factory=CodecSpec)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    train: TrainSpec = Field(default_factory=TrainSpec)
    evaluate_every: Positive | None = None
    personalise_steps: Count = 0
    gossip: GossipSpec = Field(default_factory=GossipSpec)
    broker: BrokerSpec = Field(default_factory=BrokerSpec)
    faults: FaultSpec | None = None
    keep_vectors: bool = False

    @model_validator(mode="before")
    @classmethod
    def _few_nodes(cls, given: Any) -> Any:
        """Give so few nodes that none can have four neighbours all the others as neighbours."""
        nodes = given.get("nodes") if isinstance(given, Mapping) else None
        topology = given.get("topology", "random-regular") if isinstance(given, Mapping) else None
        section = {"name": topology} if isinstance(topology, str) else topology
        if not (isinstance(nodes, int) and 2 <= nodes <= 4 and isinstance(section, Mapping)):
            return given
        if section.get("name", "random-regular") != "random-regular" or "degree" in {
            *section,
            *section.get("options", {}),
        }:
            return given
        return {**given, "topology": {**section, "degree": nodes - 1}}

    @field_validator("transport")
    @classmethod
    def _known_transport(cls, name: str) -> str:
        if name not in TRANSPORTS:
            problem = f'"{name}" is unknown{choose(name, TRANSPORTS)}'
            raise PydanticCustomError("transport", "{problem}", {"problem": problem})
        return name

    @model_validator(mode="after")
    def _together(self) -> RunSpec:
        for key, problem in self._conflicts():
            raise PydanticCustomError("conflict", "{problem}", {"key": key, "problem": problem})
        return self

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        attack, count = self.attack.name, self.byzantine
        if count >= self.nodes:
            yield "byzantine", f"must be less than nodes ({self.nodes}), or no honest node is left"
        if count and attack is None:
            yield "byzantine", f"is {count} without an attack; add --attack NAME, or --byzantine 0"
        if attack is not None and not count:
            yield "attack", f'"{attack}" has no node to act; add --byzantine K, or --attack none'
        if attack is None and self.attack.options:
            yield "attack", "has options but no name; add --attack NAME"
        if self.gossip.deadline_min_s > self.gossip.deadline_s:
            yield "gossip.deadline_min_s", f"must be at most gossip.deadline_s ({self.gossip.deadline_s})"
        yield from self._broker_conflicts(self.broker)
        if self.faults is not None:
            yield from self._fault_conflicts(self.faults)

    def _broker_conflicts(self, broker: BrokerSpec) -> Iterator[tuple[str, str]]:
        if broker.password is not None and broker.username is None:
            yield "broker.password", "needs a user; add broker.username"
        if broker.host is None and broker.tls is not None:
            yield "broker.tls", "needs a broker that speaks it; add broker.host"
        if broker.host is None and broker.kind == "mosquitto" and broker.username is not None:
            yield "broker.username", "is for a broker with users; add broker.host, or leave broker.kind out"
        if broker.tls is not None and broker.tls.key is not None and broker.tls.cert is None:
            yield "broker.tls.key", "needs its certificate; add broker.tls.cert"

    def _fault_conflicts(self, faults: FaultSpec) -> Iterator[tuple[str, str]]:
        last = self.nodes - 1
        if self.transport != "memory":
            yield "faults", f"need the memory transport, not {self.transport}; add --transport memory"
        if faults.delay_s[0] > faults.delay_s[1]:
            yield "faults.delay_s", f"must be [shortest, longest], not {list(faults.delay_s)}"
        for cut in faults.partitions:
            members = [node for group in cut.groups for node in group]
            if len(members) != len(set(members)):
                yield "faults.partitions", "names a node in two groups; a node belongs to one"
            if max(members, default=0) > last:
                yield "faults.partitions", f"names node {max(members)}, but nodes are 0 to {last}"
        for crash in faults.crashes:
            if crash.node > last:
                yield "faults.crashes", f"names node {crash.node}, but nodes are 0 to {last}"
        spans = [(cut.start_s, cut.end_s) for cut in faults.partitions]
        spans += [(crash.start_s, crash.end_s or math.inf) for crash in faults.crashes]
        for start_s, end_s in spans:
            if end_s <= start_s:
                yield "faults", f"must end after they start, not run from {start_s} s to {end_s} s"

    def evaluates(self, round_: int) -> bool:
        """Say whether models are measured after round ``round_`` (from 0); always after the last."""
        every = self.evaluate_every or math.ceil(self.rounds / EVALUATIONS)
        return (round_ + 1) % every == 0 or round_ == self.rounds - 1

    def as_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values, in the form that a file may have, without the broker's password."""
        return self.model_dump(mode="json", exclude={"broker": {"password"}})

    @property
    def short_name(self) -> str:
        """A name for people and folders, e.g. ``digits-balance-sign-flip-8``."""
        words = [self.task.name, self.rule.name, self.attack.name, str(self.nodes)]
        return re.sub(r"[^A-Za-z0-9.-]+", "-", "-".join(word for word in words if word))


SECTIONS: Mapping[str, str | None] = {
    "topology": "random-regular",
    "task": "digits",
    "rule": "balance",
    "codec": "float32",
    "attack": None,
    "partition": "auto",
}
"""Sections that may be written as a bare name, and the name that they have by default."""


def load_spec(path: Path | None, flags: Mapping[str, Any], sets: Sequence[str] = ()) -> RunSpec:
    """Return the run that a file, the options and ``--set`` pairs describe; the later of these three wins.

    ``flags`` maps a key to the value of the option of that name (None: not given). A topology from a file brings its
    number of nodes along. Raises ConfigError, and TopologyError for a graph file that cannot be used.
    """
    settings = Settings(SECTIONS)
    if path is not None:
        settings.add_file(path)
    for key, value in flags.items():
        if value is not None:
            settings.add_option(key, value, f"--{key.replace('_', '-')}")
    # A section's name comes before its options, whatever their order: a new name drops the old one's options.
    for pair in sorted(sets, key=lambda pair: not _names_a_section(pair)):
        settings.add_pair(pair)
    _count_nodes(settings)
    return settings.validate(RunSpec)


def _names_a_section(pair: str) -> bool:
    return pair.partition("=")[0].strip().removesuffix(".name") in SECTIONS


def _count_nodes(settings: Settings) -> None:
    """Where nodes were not given and the topology is a file, which knows its own number, take it from there."""
    topology = settings.get("topology")
    if topology is None or settings.get("nodes") is not None:
        return
    from gossipfl.topology import TOPOLOGIES, make_topology

    try:
        wanted = TopologySpec.model_validate(topology)
    except ValidationError:
        return  # told, with its place, when everything is validated
    if wanted.name not in TOPOLOGIES:
        settings.add_option("nodes", make_topology(wanted.name, None, wanted.options).nodes, "topology")
