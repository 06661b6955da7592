"""The bridge between asyncio and trio: calls, errors and cancellations cross; nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gossipfl.errors import TransportClosed
from gossipfl.transports.libp2p.bridge import Crossing, TrioThread

DEADLINE_S = 20.0
THREAD_NAME = "bridge under test"


class Broken(Exception):
    """What the functions under test raise."""


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run(main: Callable[[TrioThread], Coroutine[Any, Any, None]]) -> None:
    """Run ``main`` with a bridge, close it, and check that no task, thread or descriptor is left."""
    gc.collect()
    threads, descriptors = set(threading.enumerate()), open_descriptors()

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            bridge = TrioThread(THREAD_NAME)
            await bridge.start()
            try:
                await main(bridge)
            finally:
                await bridge.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


class Sleeper:
    """A function of trio that sleeps until it is cancelled, and tells asyncio how it fares.

    Its ``finally`` block waits for ``release`` where that is wanted.
    """

    def __init__(self, bridge: TrioThread, *, held: bool = False) -> None:
        self._bridge = bridge
        self._release = trio.Event()
        self.began = asyncio.Event()
        self.ending = asyncio.Event()
        self.finished = False
        if not held:
            self._release.set()

    async def sleep(self) -> None:
        try:
            self._bridge.tell_asyncio(self.began.set)
            await trio.sleep_forever()
        finally:
            self._bridge.tell_asyncio(self.ending.set)
            with trio.CancelScope(shield=True):
                await self._release.wait()
                await trio.lowlevel.checkpoint()
            self.finished = True

    def let_go(self) -> None:
        self._bridge.tell_trio(self._release.set)


def test_a_result_crosses() -> None:
    async def main(bridge: TrioThread) -> None:
        async def divide(a: int, b: int) -> tuple[int, int, str]:
            await trio.lowlevel.checkpoint()
            return *divmod(a, b), threading.current_thread().name

        assert await bridge.run(divide, 17, 5) == (3, 2, THREAD_NAME)

    run(main)


def test_many_calls_at_once_each_get_their_own_result() -> None:
    async def main(bridge: TrioThread) -> None:
        async def same(number: int) -> int:
            await trio.lowlevel.checkpoint()
            return number

        assert await asyncio.gather(*(bridge.run(same, n) for n in range(200))) == list(range(200))

    run(main)


def test_an_exception_crosses_with_its_traceback_and_the_loop_goes_on() -> None:
    raised: list[Exception] = []

    async def main(bridge: TrioThread) -> None:
        async def stumble() -> None:
            await trio.lowlevel.checkpoint()
            error = Broken("over there")
            raised.append(error)
            raise error

        with pytest.raises(Broken, match="over there") as caught:
            await bridge.run(stumble)
        assert caught.value is raised[0]
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "stumble" in names
        assert "main" in names
        await bridge.run(trio.lowlevel.checkpoint)

    run(main)


def test_a_cancellation_waits_until_the_function_has_ended() -> None:
    async def main(bridge: TrioThread) -> None:
        sleeper = Sleeper(bridge, held=True)
        call = asyncio.create_task(bridge.run(sleeper.sleep))
        await sleeper.began.wait()
        call.cancel()
        await sleeper.ending.wait()
        assert not call.done()
        assert not sleeper.finished
        sleeper.let_go()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert sleeper.finished
        await bridge.run(trio.lowlevel.checkpoint)

    run(main)


def test_a_timeout_cancels_over_there() -> None:
    async def main(bridge: TrioThread) -> None:
        sleeper = Sleeper(bridge)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await bridge.run(sleeper.sleep)
        assert sleeper.finished or not sleeper.began.is_set()

    run(main)


def test_an_error_during_a_cancellation_disturbs_nobody() -> None:
    async def main(bridge: TrioThread) -> None:
        began = asyncio.Event()

        async def stumble() -> None:
            try:
                bridge.tell_asyncio(began.set)
                await trio.sleep_forever()
            finally:
                raise Broken("on the way out")

        call = asyncio.create_task(bridge.run(stumble))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await bridge.run(trio.lowlevel.checkpoint)

    run(main)


def test_an_error_of_the_loop_itself_fails_calls_under_way_and_later_ones_and_is_told() -> None:
    async def main(bridge: TrioThread) -> None:
        go = trio.Event()

        async def stumble_later(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await go.wait()
            raise Broken("the loop is gone")

        await bridge.start_task(stumble_later)
        sleeper = Sleeper(bridge)
        call = asyncio.create_task(bridge.run(sleeper.sleep))
        watch = asyncio.create_task(bridge.ended())
        await sleeper.began.wait()
        assert not watch.done()
        bridge.tell_trio(go.set)
        why = await watch
        assert holds(why, Broken)
        with pytest.raises(BaseExceptionGroup) as under_way:
            await call
        assert holds(under_way.value, Broken)
        assert sleeper.finished
        with pytest.raises(BaseExceptionGroup) as later:
            await bridge.run(trio.lowlevel.checkpoint)
        assert holds(later.value, Broken)
        with pytest.raises(BaseExceptionGroup):
            await bridge.start_task(stumble_later)
        assert await bridge.ended() is why
        bridge.tell_trio(go.set)  # nothing happens

    run(main)


def holds(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(holds(one, kind) for one in error.exceptions)
    return isinstance(error, kind)


def test_start_task_returns_what_was_started_with_and_close_ends_the_task() -> None:
    ended: list[str] = []

    async def main(bridge: TrioThread) -> None:
        async def serve(*, task_status: trio.TaskStatus[str]) -> None:
            try:
                await trio.lowlevel.checkpoint()
                task_status.started("port 4001")
                await trio.sleep_forever()
            finally:
                ended.append(threading.current_thread().name)

        assert await bridge.start_task(serve) == "port 4001"
        await bridge.run(trio.lowlevel.checkpoint)
        assert not ended

    run(main)
    assert ended == [THREAD_NAME]


def test_start_task_raises_what_is_raised_before_the_start() -> None:
    async def main(bridge: TrioThread) -> None:
        async def stumble(*, task_status: trio.TaskStatus[None]) -> None:
            await trio.lowlevel.checkpoint()
            raise Broken("no port")

        async def forgetful(*, task_status: trio.TaskStatus[None]) -> None:
            await trio.lowlevel.checkpoint()

        with pytest.raises(Broken, match="no port") as caught:
            await bridge.start_task(stumble)
        assert "stumble" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        with pytest.raises(RuntimeError):
            await bridge.start_task(forgetful)
        await bridge.run(trio.lowlevel.checkpoint)

    run(main)


def test_a_start_that_is_cancelled_cancels_the_task() -> None:
    async def main(bridge: TrioThread) -> None:
        sleeper = Sleeper(bridge)

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            await sleeper.sleep()

        call = asyncio.create_task(bridge.start_task(serve))
        await sleeper.began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert sleeper.finished

    run(main)


def test_close_may_be_called_again_and_every_later_call_says_so() -> None:
    async def main(bridge: TrioThread) -> None:
        await bridge.close()
        await bridge.close()
        for _ in range(2):
            with pytest.raises(TransportClosed):
                await bridge.run(trio.lowlevel.checkpoint)
        assert isinstance(await bridge.ended(), TransportClosed)
        bridge.tell_trio(print)

    run(main)


def test_close_ends_calls_that_are_under_way() -> None:
    async def main(bridge: TrioThread) -> None:
        sleepers = [Sleeper(bridge) for _ in range(5)]
        calls = [asyncio.create_task(bridge.run(sleeper.sleep)) for sleeper in sleepers]
        for sleeper in sleepers:
            await sleeper.began.wait()
        await bridge.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [TransportClosed] * 5
        assert all(sleeper.finished for sleeper in sleepers)

    run(main)


def test_two_closes_at_once() -> None:
    async def main(bridge: TrioThread) -> None:
        sleeper = Sleeper(bridge)
        call = asyncio.create_task(bridge.run(sleeper.sleep))
        await sleeper.began.wait()
        await asyncio.gather(bridge.close(), bridge.close())
        with pytest.raises(TransportClosed):
            await call

    run(main)


def test_a_bridge_that_was_never_started_can_be_closed() -> None:
    asyncio.run(TrioThread(THREAD_NAME).close())


def test_a_bridge_whose_start_was_cancelled_can_be_closed() -> None:
    threads, descriptors = set(threading.enumerate()), open_descriptors()

    async def main() -> None:
        bridge = TrioThread(THREAD_NAME)
        starting = asyncio.create_task(bridge.start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        async with asyncio.timeout(DEADLINE_S):
            await bridge.close()

    for _ in range(20):  # the thread is not always equally far
        asyncio.run(main())
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


# ---------------------------------------------------------------------------------------------------- queues


class CrossingMachine(RuleBasedStateMachine):
    """Compares a queue with a list, and its calls for help with what was promised."""

    max_items, max_bytes = 4, 100

    def __init__(self) -> None:
        super().__init__()
        self.woken: list[str] = []
        self.queue = Crossing[int](
            self.max_items, self.max_bytes, lambda: self.woken.append("taker"), lambda: self.woken.append("giver")
        )
        self.model: list[tuple[int, int]] = []
        self.expected: list[str] = []
        self.taker_waits = self.giver_waits = False
        self.given = 0

    @rule(size_bytes=st.one_of(st.integers(0, 40), st.integers(0, 300)))
    def offer(self, size_bytes: int) -> None:
        room = len(self.model) < self.max_items and sum(b for _, b in self.model) + size_bytes <= self.max_bytes
        fits = room or not self.model
        assert self.queue.offer(self.given, size_bytes) == fits
        if not fits:
            self.giver_waits = True
            return
        self.model.append((self.given, size_bytes))
        self.given += 1
        if self.taker_waits:
            self.expected.append("taker")
            self.taker_waits = False

    @rule()
    def take(self) -> None:
        taken = self.queue.take()
        if not self.model:
            assert taken is None
            self.taker_waits = True
            return
        assert taken == self.model.pop(0)[0]
        self.note_room()

    @precondition(lambda self: self.model)
    @rule()
    def clear(self) -> None:
        assert self.queue.clear() == [item for item, _ in self.model]
        self.model.clear()
        self.note_room()

    def note_room(self) -> None:
        if self.giver_waits:
            self.expected.append("giver")
            self.giver_waits = False

    @invariant()
    def holds_what_it_says(self) -> None:
        assert len(self.queue) == len(self.model) <= self.max_items
        assert self.queue.held_bytes == sum(size_bytes for _, size_bytes in self.model)
        assert self.queue.held_bytes <= self.max_bytes or len(self.queue) == 1
        assert self.woken == self.expected


TestCrossing = CrossingMachine.TestCase
TestCrossing.settings = settings(max_examples=200, stateful_step_count=40)


def test_clearing_an_empty_queue_gives_nothing() -> None:
    assert Crossing[int](1, 1, lambda: None, lambda: None).clear() == []


@pytest.mark.parametrize(("max_items", "max_bytes"), [(16, 1 << 30), (1 << 30, 4096), (1, 1)])
def test_two_threads_lose_nothing_and_keep_the_order(max_items: int, max_bytes: int) -> None:
    count = 20_000
    room, filled, gave_up = threading.Event(), threading.Event(), threading.Event()
    queue = Crossing[int](max_items, max_bytes, filled.set, room.set)
    most_items = most_bytes = 0

    def give() -> None:
        for number in range(count):
            while not queue.offer(number, number % 700):
                if not room.wait(DEADLINE_S):
                    gave_up.set()
                    return
                room.clear()

    giver = threading.Thread(target=give)
    giver.start()
    taken = []
    while len(taken) < count and not gave_up.is_set():
        most_items, most_bytes = max(most_items, len(queue)), max(most_bytes, queue.held_bytes)
        item = queue.take()
        if item is not None:
            taken.append(item)
        elif filled.wait(DEADLINE_S):
            filled.clear()
        else:
            break
    giver.join(DEADLINE_S)
    assert taken == list(range(count))
    assert most_items <= max_items
    assert most_bytes <= max(max_bytes, 699)
