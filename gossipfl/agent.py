"""The asyncio agent: a thin shell that drives one node's learner, protocol core and transport.

All time comes from the running loop, all randomness from generators that were given, so the same agent runs in a
daemon, in a testbed of processes, and by the hundred in virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from gossipfl.compute import Compute, Timed
from gossipfl.digest import vector_digest
from gossipfl.errors import TransportClosed
from gossipfl.gossip import Effect, GossipCore, Mixing, Report, Send
from gossipfl.outgoing import Outgoing
from gossipfl.robust.base import Attack, AttackView
from gossipfl.tasks.base import Evaluation, Learner, TrainReport
from gossipfl.transports.base import LinkEvent, Received, Transport

T = TypeVar("T")

OFFLOAD_PARAMETERS = 1_000_000
"""From this size on, arithmetic leaves the event loop: below it, the hand-over costs more than it saves."""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One finished round of one node; ``mixing`` is None when an asynchronous node deferred its gossip step."""

    round: int
    t_s: float
    training: TrainReport
    train_s: float
    train_cpu_s: float | None
    round_s: float
    mixing: Mixing | None
    evaluation: Evaluation | None
    bytes_sent: int
    bytes_received: int


class Observer(Protocol):
    """Whoever keeps the records."""

    def on_round(self, report: RoundReport) -> None:
        """Take note of a finished round."""

    def on_event(self, t_s: float, report: Report) -> None:
        """Take note of something that happened."""


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How one agent works: ``rounds`` None is for ever; ``evaluates(round)`` says when to measure the model.

    At the end an agent serves its neighbours until they hold its last update (with ``leave_together``, until they
    have ended their rounds too), for ``drain_s`` after the last sign of progress at most. A round
    begins no sooner than ``round_every_s`` after the one before: it keeps a node that never ends from taking its
    whole machine.
    """

    local_steps: int
    rounds: int | None
    evaluates: Callable[[int], bool]
    mode: str = "sync"
    join_timeout_s: float = 30.0
    drain_s: float = 10.0
    leave_together: bool = False
    personalise_steps: int = 0
    round_every_s: float = 0.0


@dataclass(slots=True)
class Liar:
    """What makes an agent Byzantine: it speaks the protocol correctly and lies in its numbers."""

    attack: Attack
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class AgentResult:
    """How an agent ended; ``personalised`` is its model after a few more local steps, measured but not kept."""

    rounds: int
    digest: bytes
    evaluation: Evaluation | None
    personalised: Evaluation | None
    dropped: dict[str, int]


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
    ) -> None:
        self.core = core
        self.learner = learner
        self.transport = transport
        self._compute = compute
        self._options = options
        self._observer = observer
        self._liar = liar if liar is not None and not liar.attack.publishes_own else None
        self._initial = learner.vector.cpu().clone() if self._liar is not None else None
        self._outgoing = Outgoing.for_transport(transport)
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
                    *(
                        tasks.create_task(lane.forward(self.transport, self._notify), name="agent.send")
                        for lane in self._outgoing.lanes
                    ),
                ]
                await self._join()
                await self._rounds()
                personalised = await self._personalise()
                await self._drain()
                for task in background:
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
            self.core.exchange.post.dropped + Counter({"outgoing-full": self._outgoing.dropped}) + Counter(wire)
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

    async def _gossip(self) -> Mixing | None:
        core, vector = self.core, self.learner.vector
        if self._options.mode == "async" and not core.may_publish(self._loop.time()):
            core.skip()
            return None
        lie = await self._on_core(self._lie)
        target = vector if lie is None else lie
        self._perform(await self._on_core(lambda: core.publish(target, self._loop.time())))
        await self._until(lambda: core.ready(self._loop.time()))
        if not core.ready(self._loop.time()):  # asked to stop while waiting
            core.skip()
            return None
        mixing, effects = await self._on_core(lambda: core.mix(vector, self._loop.time(), lied=lie is not None))
        self._perform(effects)
        return mixing

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
            if isinstance(effect, Send):
                self._outgoing.put(effect)
            else:
                self._report(effect)
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
        return self.core.receive(received.frame, self._loop.time())

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
