"""Two sites of a federation in one process, which gossip for a few rounds: something to look at for who watches."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from site_daemons import Deployment, address

from gossipfl.agent import Agent, Observer, RoundReport
from gossipfl.compute import ThreadCompute
from gossipfl.gossip import GossipCore, Report
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport
from gossipfl_node.config import load_site
from gossipfl_node.journal import Journal
from gossipfl_node.metrics import Metrics
from gossipfl_node.site import Site
from gossipfl_node.status import Ledger, Standing

ROUNDS = 6
CHANGES = {"round_every_s = 0.1": "", "evaluate_every = 2": f"evaluate_every = 2\nrounds = {ROUNDS}"}
"""Sites in a hurry that end by themselves."""


class Observers:
    """Tells several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_round(self, report: RoundReport) -> None:
        for observer in self._observers:
            observer.on_round(report)

    def on_event(self, t_s: float, report: Report) -> None:
        for observer in self._observers:
            observer.on_event(t_s, report)


@dataclass
class Watched:
    """One site: what a daemon would hold."""

    site: Site
    ledger: Ledger
    core: GossipCore
    standing: Standing
    metrics: Metrics
    agent: Agent
    phase: str = "starting"

    def link(self, state: str) -> None:
        """Let the link to the broker go up or down."""
        self.ledger.on_event(0.0, Report(f"link-{state}", None, {"detail": "127.0.0.1:1883"}))


@contextlib.contextmanager
def watched_sites(root: Path) -> Iterator[list[Watched]]:
    """Make two sites, alpha and beta, that have not begun yet."""
    deployment = Deployment(root, "watched")
    for name in ("alpha", "beta"):
        deployment.add(name)
    network = MemoryNetwork()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_watched(deployment, name, network)) for name in deployment.members]


def gossip(sites: Sequence[Watched]) -> None:
    """Let the sites live to the end of their rounds."""

    async def live() -> None:
        async with asyncio.TaskGroup() as tasks:
            for watched in sites:
                watched.phase = "running"
                tasks.create_task(watched.agent.run())

    asyncio.run(live())


@contextlib.contextmanager
def _watched(deployment: Deployment, name: str, network: MemoryNetwork) -> Iterator[Watched]:
    daemon = deployment.site(name, [("alpha", "beta")], address(1883), CHANGES)
    site = Site(load_site(daemon.file))
    daemon.state.mkdir()
    journal = Journal(daemon.state / "events.jsonl", name, 1 << 20)
    ledger = Ledger(site.federation, journal)
    learner = site.learner(1)
    core = site.core(learner, 1)
    transport = MemoryTransport(network, site.identity.peer_id, list(site.federation.weights))
    standing = Standing(site, ledger, core, transport, None, 1, learner.layout.size)
    metrics = Metrics(standing, lambda: watched.phase, time.monotonic, fresh_s=0.0)
    observers = Observers([ledger, metrics])
    compute = ThreadCompute(name)
    agent = Agent(core, learner, transport, compute, site.agent_options(), observers)
    watched = Watched(site, ledger, core, standing, metrics, agent)
    try:
        yield watched
    finally:
        compute.close()
        journal.close()
