"""The daemon of one site: start up, gossip until asked to end, shut down."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from gossipfl import __version__
from gossipfl.errors import ConfigError, GossipflError, TransportUnavailable
from gossipfl_node.audit import AuditLog
from gossipfl_node.direct import find_mistakes
from gossipfl_node.journal import Journal
from gossipfl_node.memberships import InstalledFile, Keeper, known_proofs
from gossipfl_node.resumption import Resumption
from gossipfl_node.signals import StopSignals, capture_signals
from gossipfl_node.site import Site
from gossipfl_node.state import EVENTS_FILE, StateFolder
from gossipfl_node.status import Ledger, Standing
from gossipfl_node.status_socket import status_server
from gossipfl_node.watch import Watch

if TYPE_CHECKING:
    from gossipfl_node.config import SiteSpec

EXIT_REMOVED = 3
"""The federation has gone on without this site: to start it again is of no use."""
FLUSH_S = 1.0
"""How long an event may wait in memory."""
SAVE_S = 10.0
"""How often replay marks and address records reach the disk: what was heard since a crash could be replayed, once."""
BROKER_PAUSE_S = 3.0
"""Pause between two attempts to reach a broker that is waited for."""

log = logging.getLogger(__name__)


def run_site(spec: SiteSpec) -> int:
    """Be the daemon of a site until it is asked to end, or its rounds are over; raises a UsageError for mistakes.

    Returns the exit code: 0, or ``EXIT_REMOVED`` where the site is no member any more.
    """
    site = Site(spec)
    name = site.federation.me.name
    log.info("site %s (%s) of federation %s", name, site.identity.peer_id, spec.federation.name)
    for mistake in find_mistakes(spec):
        raise ConfigError(mistake)
    with (
        StateFolder(spec.site.state) as state,
        capture_signals() as signals,
        Journal(state.path / EVENTS_FILE, name, spec.site.events_bytes) as journal,
        AuditLog(state.path, site.identity) as audit,
    ):
        ledger = Ledger(site.federation, journal)
        daemon = Daemon(site, state, ledger, audit)
        asyncio.run(daemon.serve(signals))
    return EXIT_REMOVED if ledger.events["removed"] else 0


class Daemon:
    """One start of a site's daemon: loads the data, takes a new incarnation, and remembers what it had heard before."""

    def __init__(self, site: Site, state: StateFolder, ledger: Ledger, audit: AuditLog) -> None:
        # torch reads this when it is imported, which happens below.
        os.environ.setdefault("OMP_NUM_THREADS", str(site.spec.site.threads))
        from gossipfl.agent import Agent
        from gossipfl.compute import ThreadCompute

        _set_threads(site.spec.site.threads)
        self._site = site
        self._state = state
        self._ledger = ledger
        incarnation = state.next_incarnation(time.time())
        learner = site.learner(incarnation)
        core = site.core(learner, incarnation)
        core.restore_replay_marks(state.replay_marks())
        core.restore_proofs(known_proofs(state.path))
        self._records: tuple[bytes, ...] = tuple(state.address_records())
        self._direct = site.direct_transport(incarnation, self._records) if site.spec.libp2p is not None else None
        transport = self._direct or site.broker_transport(patient=site.spec.waits_for_broker)
        compute = ThreadCompute(site.federation.me.name)
        section = site.spec.site
        resumption = Resumption(
            state.path, section.checkpoints, section.checkpoint_every_s, learner.layout.digest, ledger
        )
        restored = resumption.restore(core, learner)
        self._keeper = Keeper(state.path, site.identity, incarnation, ledger, resumption)
        self._installed = _installed(site, self._keeper)
        self._phase = "starting"
        self._running: asyncio.Task[Any] | None = None
        self._standing = Standing(site, ledger, core, transport, self._direct, incarnation, learner.layout.size)
        self._watch = Watch(site, self._standing, audit, resumption, lambda: self._phase, lambda: self._running)
        self._restored = restored
        self._agent = Agent(
            core,
            learner,
            transport,
            compute,
            site.agent_options(),
            self._watch,
            veil=site.veil(),
            steward=self._keeper,
        )
        self._stopping = asyncio.Event()

    async def serve(self, signals: StopSignals) -> None:
        """Live from the first answer to ``gossipfl-node status`` to the last."""
        signals.attach(asyncio.get_running_loop(), self.stop)
        async with status_server(self._state.path, self._document), self._watch.served():
            try:
                await self._startup()
                if not self._stopping.is_set():
                    await self._main()
            except GossipflError as error:
                self._ledger.note("failed", error=str(error))
                raise
            finally:
                self._shutdown()

    def stop(self, reason: str) -> None:
        """Finish the round in hand, drain, say good-bye."""
        log.info("%s: ending after this round; a second signal ends at once", reason)
        self._ledger.note("stopping", reason=reason)
        self._phase = "stopping"
        self._stopping.set()
        self._agent.stop()

    # ------------------------------------------------------------------------------------------ three acts

    async def _startup(self) -> None:
        standing, neighbours = self._standing, self._site.federation.neighbours
        facts = {"incarnation": standing.incarnation, "pid": os.getpid()}
        self._ledger.note("started", **facts)
        self._watch.begin({**facts, "version": __version__, "membership": standing.core.exchange.affairs.version})
        if self._restored is not None:
            self._ledger.note("restored", **self._restored)
            self._watch.restored(self._restored)
            log.info("going on from checkpoint %(checkpoint)d, round %(round)d", self._restored)
        log.info(
            "incarnation %d: %d parameters, %s rounds with %s",
            standing.incarnation,
            standing.parameters,
            self._site.spec.mode,
            ", ".join(member.name for member in neighbours),
        )
        if self._site.spec.waits_for_broker:
            self._phase = "waiting for the broker"
            await self._await_broker()

    async def _main(self) -> None:
        self._phase = "running"
        agent = asyncio.create_task(self._agent.run(), name="daemon.agent")
        self._running = agent
        self._watch.vitals.progress()
        keeper = asyncio.create_task(self._keep_state(), name="daemon.keep_state")
        try:
            if not await self._unless_stopped(agent):
                await self._end(agent)
        finally:
            keeper.cancel()
            await asyncio.wait([keeper])

    def _shutdown(self) -> None:
        self._save(self._heard_records())
        self._ledger.note("ended", round=self._standing.core.round)
        self._watch.end({"round": self._standing.core.round})
        log.info("ended after %d rounds", self._standing.core.round)

    # ------------------------------------------------------------------------------------------ how they are played

    async def _await_broker(self) -> None:
        """Return when the broker has let this site in once; raises NoUseRetrying where it never will."""
        from gossipfl.transports.mqtt_options import NoUseRetrying

        told = ""
        while not self._stopping.is_set():
            self._watch.vitals.progress()
            probe = self._site.broker_transport()
            try:
                await self._unless_stopped(asyncio.create_task(probe.start(), name="daemon.probe"), cancel=True)
            except NoUseRetrying:
                raise
            except TransportUnavailable as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("waiting for the broker: %s", told)
            else:
                return
            finally:
                await probe.close()
            await self._unless_stopped(asyncio.create_task(asyncio.sleep(BROKER_PAUSE_S)), cancel=True)

    async def _unless_stopped(self, task: asyncio.Task[Any], *, cancel: bool = False) -> bool:
        """Wait for a task and raise what it raised; False if this daemon was asked to stop before it ended."""
        stopped = asyncio.create_task(self._stopping.wait(), name="daemon.stopping")
        try:
            await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if not task.done():
            if cancel:
                await _cancelled(task)
            return False
        await task
        return True

    async def _end(self, agent: asyncio.Task[Any]) -> None:
        """Let the agent finish and drain, for a bounded time."""
        if self._direct is None and self._ledger.link.state == "connecting":  # no broker yet: nothing to drain
            await _cancelled(agent)
            return
        await asyncio.wait([agent], timeout=self._site.spec.site.stop_timeout_s)
        if agent.done():
            await agent
            return
        log.warning("not done after %g s (site.stop_timeout_s): ending now", self._site.spec.site.stop_timeout_s)
        self._shutdown()
        self._ledger.journal.close()
        logging.shutdown()
        os._exit(0)  # a training step in its thread could not be ended otherwise

    async def _keep_state(self) -> None:
        loop = asyncio.get_running_loop()
        save_at = loop.time() + SAVE_S
        while True:
            await asyncio.sleep(FLUSH_S)
            self._ledger.journal.flush()
            self._look_for_membership()
            await asyncio.to_thread(self._watch.flush)
            if loop.time() >= save_at:
                await asyncio.to_thread(self._save, self._heard_records())
                save_at = loop.time() + SAVE_S

    def _look_for_membership(self) -> None:
        """Take a newer version that an operator has put in the place of the installed one."""
        if self._installed is None:
            return
        try:
            document = self._installed.replaced()
            if document is None:
                return
            self._standing.core.check_successor(document)
        except ConfigError as error:
            log.error("the membership file is not taken: %s", error)  # noqa: TRY400 - the line says it all
            self._ledger.events["membership_refused"] += 1
            self._ledger.note("membership_refused", detail=str(error))
        else:
            self._agent.adopt(document)

    def _heard_records(self) -> tuple[bytes, ...]:
        return self._direct.address_records() if self._direct is not None else ()

    def _save(self, records: tuple[bytes, ...]) -> None:
        """Keep replay marks, and address records if there are others than before."""
        try:
            self._state.save_replay_marks(self._standing.core.replay_marks())
        except ConfigError as error:
            log.error("replay marks are not kept: %s", error)  # noqa: TRY400 - the line says it all
        if not records or records == self._records:
            return
        try:
            self._state.save_address_records(records)
            self._records = records
        except ConfigError as error:
            log.error("address records are not kept: %s", error)  # noqa: TRY400 - as above

    def _document(self) -> dict[str, Any]:
        return self._standing.document(self._phase, asyncio.get_running_loop().time())


def _installed(site: Site, keeper: Keeper) -> InstalledFile | None:
    """Keep the version in force, as those will be that come later; None where memberships have no versions."""
    path = site.spec.federation.membership
    if path is None:
        return None
    keeper.save(site.documents[-1])
    return InstalledFile(path)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _set_threads(threads: int) -> None:
    import torch

    from gossipfl.heap import keep_freed_pages

    torch.set_num_threads(threads)
    keep_freed_pages()
