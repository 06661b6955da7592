"""Every mistake in a site's file that can be found before the start, not only the first one."""

from __future__ import annotations

import asyncio
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gossipfl.errors import GossipflError, TransportUnavailable
from gossipfl_node import direct, federation, state
from gossipfl_node.config import TRANSPORTS, read_site
from gossipfl_node.site import Site, load_key, load_password
from gossipfl_node.status_socket import NotRunningError, ask

if TYPE_CHECKING:
    from gossipfl.transports.base import Transport
    from gossipfl_node.config import SiteSpec


@dataclass(frozen=True, slots=True)
class Findings:
    """The ``mistakes``, one line each, and with none a ``summary`` of the site."""

    mistakes: tuple[str, ...]
    summary: str = ""


def check_site(path: Path, *, broker: bool = True) -> Findings:
    """Check the file, and whatever it names; with ``broker``, log in there too, or try to listen without one.

    Nothing is changed anywhere.
    """
    try:
        file = read_site(path)
    except GossipflError as error:
        return Findings((str(error),))
    mistakes = list(file.lines)
    if file.spec is None:
        return Findings(tuple(mistakes))
    spec = file.spec
    for sections, check in CHECKS.items():
        # A default in the place of a mistake would only make a second complaint of one cause.
        if not file.doubtful.intersection(sections):
            mistakes += check(spec)
    if not file.mistaken.intersection(("federation", "site", *TRANSPORTS)):
        mistakes += _readable_password(path, spec)
        mistakes += _transport_mistakes(spec) if broker else ()
    prefixed = [line if line.startswith(f"{path}:") else f"{path}: {line}" for line in dict.fromkeys(mistakes)]
    return Findings(tuple(prefixed), "" if prefixed else _summary(spec))


def _federation_mistakes(spec: SiteSpec) -> Iterator[str]:
    yield from federation.find_mistakes(spec.federation, spec.site.name)


def _site_mistakes(spec: SiteSpec) -> Iterator[str]:
    yield from _raised(lambda: load_key(spec))
    yield from state.find_mistakes(spec.site.state)


def _file_mistakes(spec: SiteSpec) -> Iterator[str]:
    broker = spec.broker
    if broker is None:
        return
    yield from _raised(lambda: load_password(broker))
    tls = broker.tls
    for key, path in ((name, getattr(tls, name)) for name in ("ca", "cert", "key")) if tls else ():
        if path is not None and not path.is_file():
            yield f"broker.tls.{key}: no such file: {path}"


def _rule_mistakes(spec: SiteSpec) -> Iterator[str]:
    from gossipfl.robust.registry import make_rule

    yield from _raised(lambda: make_rule(spec.rule.name, spec.rule.options))


def _codec_mistakes(spec: SiteSpec) -> Iterator[str]:
    from gossipfl.codec import make_codec

    yield from _raised(lambda: make_codec(spec.codec.name, spec.codec.options))


def _gossip_mistakes(spec: SiteSpec) -> Iterator[str]:
    limits = spec.gossip
    if limits.deadline_min_s > limits.deadline_s:
        yield f"gossip.deadline_min_s must be at most gossip.deadline_s ({limits.deadline_s})"
    if limits.heartbeat_s >= limits.liveness_s:
        yield f"gossip.heartbeat_s must be less than gossip.liveness_s ({limits.liveness_s}), or all seem lost"


def _task_mistakes(spec: SiteSpec) -> Iterator[str]:
    """Load the data, then measure the initial model and take one step with it."""
    try:
        learner = Site(spec).learner(incarnation=0)
        loss = learner.train(1).loss
        measured = learner.evaluate().loss
    except GossipflError as error:
        yield str(error)
    except Exception as error:  # noqa: BLE001 - a person's own task may raise anything
        yield f'task "{spec.task.name}" fails: {type(error).__name__}: {" ".join(str(error).split())}'
    else:
        if not (math.isfinite(loss) and math.isfinite(measured)):
            yield f'task "{spec.task.name}": the first step gives a loss of {loss}; lower train.lr, or look at the data'


CHECKS: Mapping[tuple[str, ...], Callable[[SiteSpec], Iterator[str]]] = {
    ("federation", "site"): _federation_mistakes,
    ("site",): _site_mistakes,
    ("broker",): _file_mistakes,
    ("libp2p", "federation"): direct.find_mistakes,
    ("rule",): _rule_mistakes,
    ("codec",): _codec_mistakes,
    ("gossip",): _gossip_mistakes,
    ("task", "partition", "share", "train"): _task_mistakes,
}
"""What is looked at, and the sections that it needs in order."""


def _transport_mistakes(spec: SiteSpec) -> Iterator[str]:
    """Log in, subscribe, publish to oneself: the broker refuses what its ACL forbids only then. Or listen, and stop."""
    site = Site(spec)
    try:
        _ = site.federation
        transport = site.broker_transport() if spec.broker is not None else site.listener()
    except GossipflError:
        return  # told already, where it is looked for
    if state.running_pid(spec.site.state) is not None:
        yield from _running_mistakes(spec)
        return
    try:
        asyncio.run(_visit(transport))
    except TransportUnavailable as error:
        yield f"{'broker' if spec.broker is not None else 'libp2p'}: {error}"


async def _visit(transport: Transport) -> None:
    try:
        await transport.start()
    finally:
        await transport.close()


def _running_mistakes(spec: SiteSpec) -> Iterator[str]:
    """Ask the running daemon: a second login under its name would throw it out, and it holds the ports."""
    try:
        broker = ask(spec.site.state)["broker"]
    except (NotRunningError, KeyError):
        return
    if broker is not None and broker["link"] == "down":
        yield f"broker: the running daemon has no link to {broker['address']}: {broker['detail']}"


def _summary(spec: SiteSpec) -> str:
    site = Site(spec)
    neighbours = ", ".join(member.name for member in site.federation.neighbours)
    running = state.running_pid(spec.site.state) is not None
    where = _where(spec, site) + (", left to the daemon that is running" if running else "")
    return f"ok: {spec.site.name} ({site.identity.peer_id}) gossips with {neighbours}; task {spec.task.name}; {where}"


def _where(spec: SiteSpec, site: Site) -> str:
    if spec.broker is not None:
        return f"broker {spec.broker.address}"
    assert spec.libp2p is not None
    known = spec.federation.addresses
    awaited = [member.name for member in site.federation.neighbours if not known.get(member.name)]
    return f"libp2p on {spec.libp2p.where}" + (f" (no address of {', '.join(awaited)})" if awaited else "")


def _raised(build: Callable[[], object]) -> Iterator[str]:
    try:
        build()
    except GossipflError as error:
        yield str(error)


def _readable_password(path: Path, spec: SiteSpec) -> Iterator[str]:
    if spec.broker is not None and spec.broker.password is not None and path.stat().st_mode & stat.S_IROTH:
        yield f"broker.password can be read by every user of this machine; run: chmod o= {path}"
