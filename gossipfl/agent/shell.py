"""The asyncio agent: a thin shell that drives one node's learner, protocol core and transport.

All time comes from the running loop, all randomness from generators that were given, so the same agent runs in a
daemon, in a testbed of processes, and by the hundred in virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from gossipfl.agent.lateness import Latecomer
from gossipfl.agent.options import AgentOptions, Liar
from gossipfl.agent.reports import AgentResult, Observer, RoundReport
from gossipfl.agent.succession import Steward
from gossipfl.compute import Compute, Timed
from gossipfl.digest import vector_digest
from gossipfl.errors import ConfigError, MessageError, TransportClosed, UsageError
from gossipfl.gossip import Adopt, Convict, Effect, GossipCore, Mixing, Report, Send
from gossipfl.messages import Veil
from gossipfl.outgoing import Lane, Outgoing
from gossipfl.robust.base import AttackView
from gossipfl.tasks.base import Evaluation, Judge, Learner, TrainReport, learner_state
from gossipfl.transports.base import LinkEvent, Received, Transport

if TYPE_CHECKING:
    from gossipfl.membership.document import Document

T = TypeVar("T")

FAREWELL_POLL_S, FAREWELL_POLLS = 0.02, 100
"""How often, and how many times at most, it is asked whether those who leave have been told."""

OFFLOAD_PARAMETERS = 1_000_000
"""From this size on, arithmetic leaves the event loop: below it, the hand-over costs more than it saves."""


class Agent:
    """One node at work.

    Args:
        core: The node's protocol core.
        learner: Its model and data.
        transport: Its way to the neighbours; the agent starts and closes it.
        compute: Where its arithmetic runs; the agent closes it.
        options: How it works.
        observer: Who keeps its records.
        liar: Makes it Byzantine.
        veil: Seals what it sends, and opens what it gets.
        steward: Keeps the versions of the membership, where it has versions.
    """

    def __init__(
        self,
        core: GossipCore,
        learner: Learner,
        transport: Transport,
        compute: Compute,
        options: AgentOptions,
        observer: Observer,
        liar: Liar | None = None,
        veil: Veil | None = None,
        steward: Steward | None = None,
    ) -> None:
        if options.guard is not None and not isinstance(learner, Judge):
            raise ConfigError("the guard judges models by their loss, which this task's learner cannot tell")
        self.core = core
        self.learner = learner
        self.transport = transport
        self._compute = compute
        self._options = options
        self._observer = observer
        self._liar = liar if liar is not None and not liar.attack.publishes_own else None
        self._veil, self._steward = veil, steward
        self._adoptions: asyncio.Queue[Document] = asyncio.Queue(1)
        self._initial = learner.vector.cpu().clone() if self._liar is not None else None
        self._outgoing = Outgoing.for_transport(transport)
        self._senders: dict[Lane, asyncio.Task[None]] = {}
        self._awaited: tuple[Callable[[], bool], asyncio.Future[None]] | None = None
        self._stopping = asyncio.Event()
        self._core_lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._offload = learner.layout.size >= OFFLOAD_PARAMETERS
        self._began_at = 0.0
        self._evaluation: Evaluation | None = None

    # ------------------------------------------------------------------------------------------ life

    async def run(self) -> AgentResult:
        """Join, train and gossip for the given rounds (or until ``stop``), drain, say good-bye."""
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        try:
            await self.transport.start()
            async with asyncio.TaskGroup() as tasks:
                background = [
                    tasks.create_task(self._receive(), name="agent.receive"),
                    tasks.create_task(self._watch_link(), name="agent.link"),
                    tasks.create_task(self._follow_membership(tasks), name="agent.membership"),
                ]
                self._forward(tasks, self._outgoing.lanes)
                await self._join()
                await self._catch_up()
                await self._rounds()
                await self._checkpoint(last=True)
                personalised = await self._personalise()
                await self._drain()
                for task in [*background, *self._senders.values()]:
                    task.cancel()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self.transport.close()
            self._compute.close()
        return AgentResult(
            rounds=self.core.round,
            digest=vector_digest(self.learner.vector.cpu()),
            evaluation=self._evaluation,
            personalised=personalised,
            dropped=self._dropped(),
        )

    def _dropped(self) -> dict[str, int]:
        """Return what was dropped and why: by the core, on the way out, and by the transport."""
        wire = {
            f"transport-{'-'.join(reason.replace(':', '').split())}": n
            for reason, n in self.transport.counters.by_reason.items()
        }
        return dict(
            self.core.exchange.post.dropped
            + Counter({"outgoing-full": self._outgoing.dropped, "outgoing-former": self._outgoing.orphaned})
            + Counter(wire)
        )

    def stop(self) -> None:
        """End after the current round: drain, say good-bye, return from ``run``."""
        self._stopping.set()
        self._notify()

    async def _join(self) -> None:
        self._perform(await self._on_core(lambda: self.core.start(self._loop.time())))
        joined = await self._until(lambda: self.core.all_joined, self._options.join_timeout_s)
        if not joined and not self._stopping.is_set():
            silent = [peer for peer, other in self.core.followed.items() if not other.joined]
            self._report(Report("join_timeout", None, {"silent": silent}))

    async def _catch_up(self) -> None:
        limits = self._options.catch_up
        if limits is None:
            return
        late = Latecomer(self.core, self.learner, self._compute, self._on_core, self._until)
        for report in await late.catch_up(limits):
            self._report(report)

    async def _drain(self) -> None:
        """Serve those who are not done yet, for a bounded time, then leave.

        Once told to stop, for ``drain_s`` in all: no neighbour's progress, real or claimed, holds this node up then.
        """

        def settled() -> bool:
            together = self._options.leave_together and not self._stopping.is_set()
            return self.core.settled(self._loop.time(), together=together)

        self._perform(await self._on_core(lambda: self.core.drain(self._loop.time())))
        while True:
            progress = self.core.progress(self._options.rounds)
            if await self._until(settled, self._options.drain_s, even_when_stopping=True):
                break
            if self._stopping.is_set() or self.core.progress(self._options.rounds) == progress:
                break
        self._perform(await self._on_core(lambda: self.core.stop(self._loop.time(), "done")))
        await self._until(lambda: self._outgoing.idle, self._options.drain_s, even_when_stopping=True)

    # ------------------------------------------------------------------------------------------ rounds

    async def _rounds(self) -> None:
        limit = self._options.rounds
        while not self._stopping.is_set() and (limit is None or self.core.round < limit):
            next_at = self._loop.time() + self._options.round_every_s
            await self._round()
            pause_s = next_at - self._loop.time()
            if pause_s > 0:
                await self._until(lambda: False, pause_s)

    async def _round(self) -> None:
        began, round_ = self._loop.time(), self.core.round
        counters = self.transport.counters
        sent, received = counters.bytes_sent, counters.bytes_received
        trained = await self._train(self._options.local_steps)
        self._check_finite()
        mixing = await self._gossip()
        evaluation = await self._evaluate() if self._options.evaluates(round_) else None
        now = self._loop.time()
        self._observer.on_round(
            RoundReport(
                round=round_,
                t_s=now - self._began_at,
                training=trained.value,
                train_s=trained.wall_s,
                train_cpu_s=trained.cpu_s,
                round_s=now - began,
                mixing=mixing,
                evaluation=evaluation,
                bytes_sent=counters.bytes_sent - sent,
                bytes_received=counters.bytes_received - received,
            )
        )
        await self._checkpoint()

    async def _checkpoint(self, *, last: bool = False) -> None:
        """Have the state between two rounds kept, where it is time for that, or at the end."""
        steward = self._steward
        if steward is None or not (last or steward.wants_checkpoint()):
            return
        core = await self._on_core(self.core.state)
        await steward.keep_checkpoint(core, learner_state(self.learner), last=last)

    async def _gossip(self) -> Mixing | None:
        core, vector = self.core, self.learner.vector
        if self._options.mode == "async" and not core.may_publish(self._loop.time()):
            core.skip()
            return None
        lie = await self._on_core(self._prepare)
        target = vector if lie is None else lie
        self._perform(await self._on_core(lambda: core.publish(target, self._loop.time())))
        await self._until(lambda: core.ready(self._loop.time()))
        if not core.ready(self._loop.time()):  # asked to stop while waiting
            core.skip()
            return None
        before = vector.clone() if self._options.guard is not None else None
        mixing, effects = await self._on_core(lambda: core.mix(vector, self._loop.time(), lied=lie is not None))
        self._perform(effects)
        if before is not None:
            await self._keep_better(before, mixing.round)
        return mixing

    async def _keep_better(self, before: Tensor, round_: int) -> None:
        """Go back to the model ``before`` the mixing step where that is clearly worse on own data."""
        guard, learner, vector = self._options.guard, self.learner, self.learner.vector
        assert guard is not None
        assert isinstance(learner, Judge)
        own, mixed = (await self._compute.train(lambda: learner.losses([before, vector]))).value
        if mixed <= (1 + guard.worse) * own:
            return
        vector.copy_(before)
        await self._on_core(lambda: self.core.undo(vector))
        self._report(Report("mixing_refused", None, {"round": round_, "loss": mixed, "own_loss": own}))

    def _prepare(self) -> Tensor | None:
        """Hold a newcomer's model back; return what a Byzantine node says in place of its own."""
        self.core.hold_back(self.learner.vector)
        return self._lie()

    def _lie(self) -> Tensor | None:
        if self._liar is None:
            return None
        view = AttackView(
            own=self.learner.vector.cpu(),
            replicas=[other.vector for other in self.core.followed.values() if other.vector is not None],
            round=self.core.round,
            generator=self._liar.generator,
            initial=self._initial,
        )
        return self._liar.attack.lie(view)

    async def _train(self, steps: int) -> Timed[TrainReport]:
        return await self._compute.train(lambda: self.learner.train(steps))

    async def _evaluate(self) -> Evaluation:
        self._evaluation = (await self._compute.train(self.learner.evaluate)).value
        return self._evaluation

    def _check_finite(self) -> None:
        """A model that training made NaN or infinite goes back to what was last published, and is reported."""
        if not bool(torch.isfinite(torch.linalg.vector_norm(self.learner.vector))):
            self.learner.vector.copy_(self.core.exchange.own.vector)
            self._report(Report("divergence", None, {"round": self.core.round}))

    async def _personalise(self) -> Evaluation | None:
        if not self._options.personalise_steps:
            return None
        kept = self.learner.vector.clone()
        shared = self._evaluation
        await self._train(self._options.personalise_steps)
        personalised = await self._evaluate()
        self.learner.vector.copy_(kept)
        self._evaluation = shared
        return personalised

    # ------------------------------------------------------------------------------------------ the core's shell

    async def _on_core(self, work: Callable[[], T]) -> T:
        """Run work on the core: at once for small models, in the other thread for large ones."""
        if not self._offload:
            return work()
        async with self._core_lock:
            return await self._compute.arithmetic(work)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._outgoing.put(self._sealed(effect))
                case Report():
                    self._report(effect)
                case Adopt():
                    self.adopt(effect.document)
                case Convict():
                    self._convict(effect)
        self._arm()
        self._notify()

    def _report(self, report: Report) -> None:
        self._observer.on_event(self._loop.time() - self._began_at, report)

    def _arm(self) -> None:
        """Make sure that the timer rings no later than the core's next wake-up; it may ring too early."""
        if self._core_lock.locked():  # another thread is changing the core; whoever waits for it arms afterwards
            return
        at = max(self.core.next_wakeup(), self._loop.time() + 1e-3)
        if self._timer is not None:
            if self._timer.when() <= at and not self._timer.cancelled():
                return
            self._timer.cancel()
        if at < float("inf"):
            self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._core_lock.locked():
            self._timer = self._loop.call_later(0.01, self._tick)
            return
        self._perform(self.core.tick(self._loop.time()))

    async def _until(
        self, condition: Callable[[], bool], limit_s: float | None = None, *, even_when_stopping: bool = False
    ) -> bool:
        """Wait until the condition holds; False when the time is over or the agent was told to stop first."""
        try:
            async with asyncio.timeout(limit_s):
                while not condition():
                    if self._stopping.is_set() and not even_when_stopping:
                        return False
                    self._awaited = condition, self._loop.create_future()
                    await self._awaited[1]
        except TimeoutError:
            return condition()
        finally:
            self._awaited = None
        return True

    def _notify(self) -> None:
        """Wake whoever waits if that is over: asking costs less than waking a task to ask itself."""
        if self._awaited is None:
            return
        condition, waiting = self._awaited
        if not waiting.done() and (self._stopping.is_set() or condition()):
            waiting.set_result(None)

    # ------------------------------------------------------------------------------------------ background tasks

    async def _receive(self) -> None:
        while True:
            try:
                received = await self.transport.receive()
            except TransportClosed:
                return
            self._perform(await self._on_core(lambda: self._take(received)))  # noqa: B023 - awaited before the next

    def _take(self, received: Received) -> list[Effect]:
        frame = received.frame
        if self._veil is not None:
            try:
                frame = self._veil.open(frame)
            except MessageError as error:
                self.core.exchange.post.dropped[error.reason] += 1
                return []
        return self.core.receive(frame, self._loop.time())

    def _sealed(self, send: Send) -> Send:
        """Return what goes on the wire: also what is sent often is sealed once only."""
        if self._veil is None:
            return send
        return replace(send, frame=self._veil.seal(send.frame, send.epoch))

    async def _watch_link(self) -> None:
        while True:
            try:
                event: LinkEvent = await self.transport.events()
            except TransportClosed:
                return
            self._report(Report(f"link-{event.state}", event.peer, {"detail": event.detail}))
            if event.state == "refused":
                continue
            if event.peer is None:
                up = event.state == "up"
                self._perform(await self._on_core(lambda: self.core.link(up, self._loop.time())))  # noqa: B023 - as above
            elif event.state == "up":
                peer = event.peer
                self._perform(await self._on_core(lambda: self.core.meet(peer, self._loop.time())))  # noqa: B023 - same

    # ------------------------------------------------------------------------------------------ membership

    def adopt(self, document: Document) -> None:
        """Let a later version of the membership come into force, as soon as it is kept; of several the first."""
        if not self._adoptions.full():
            self._adoptions.put_nowait(document)

    def _convict(self, convict: Convict) -> None:
        self._report(Report("equivocation", convict.peer, {"detail": convict.proof.contradiction}))
        if self._steward is not None:
            self._steward.keep_proof(convict.peer, convict.proof)

    async def _follow_membership(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            document = await self._adoptions.get()
            try:
                await self._change_to(document, tasks)
            except UsageError as error:
                fields = {"version": document.content.version, "detail": str(error)}
                self._report(Report("membership_refused", None, fields))
                self.core.decline()

    async def _change_to(self, document: Document, tasks: asyncio.TaskGroup) -> None:
        if self._steward is None:
            return
        succession = await self._steward.keep(document)
        party = succession.party
        self._perform(await self._on_core(lambda: self.core.farewell(document, party)))
        await self._sent_or_late()
        if party is None:
            self._report(Report("removed", None, {"version": document.content.version}))
            self.stop()
            return
        if self._veil is not None:
            self._veil.keys[document.content.version] = succession.key
        effects = await self._on_core(lambda: self.core.adopt(document, party, self._loop.time()))
        await self.transport.change_peers(list(party.weights), succession.members)
        added, gone = self._outgoing.change_peers(party.weights)
        self._forward(tasks, added)
        for lane in gone:
            self._senders.pop(lane).cancel()
        self._perform(effects)

    async def _sent_or_late(self) -> None:
        """Return when all is on the wire; soon anyway, for a neighbour may be out of reach."""
        for _ in range(FAREWELL_POLLS):
            if self._outgoing.idle:
                return
            await asyncio.sleep(FAREWELL_POLL_S)

    def _forward(self, tasks: asyncio.TaskGroup, lanes: Iterable[Lane]) -> None:
        for lane in lanes:
            self._senders[lane] = tasks.create_task(lane.forward(self.transport, self._notify), name="agent.send")
