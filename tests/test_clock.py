"""Virtual time: it jumps, it never goes back, it repeats itself, and it tells when it would stand still for ever."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.clock import DeadStopError, VirtualTimeLoop, run_virtual


def test_time_starts_at_zero_and_jumps_to_the_next_timer() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        for pause_s in (3600.0, 0.25, 0.0):
            await asyncio.sleep(pause_s)
            times.append(loop.time())
        return times

    assert run_virtual(main()) == [0.0, 3600.0, 3600.25, 3600.25]


def test_a_sleep_longer_than_the_loops_longest_wait_ends_on_time() -> None:
    async def main() -> float:
        await asyncio.sleep(10 * 24 * 3600.0)  # asyncio asks its selector for at most one day at a time
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 10 * 24 * 3600.0


@given(st.lists(st.floats(0.0, 1e6), max_size=30))
def test_sleepers_wake_in_the_order_of_their_times(pauses_s: list[float]) -> None:
    async def main() -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        woken: list[tuple[float, float]] = []

        async def sleeper(pause_s: float) -> None:
            await asyncio.sleep(pause_s)
            woken.append((loop.time(), pause_s))

        async with asyncio.TaskGroup() as group:
            for pause_s in pauses_s:
                group.create_task(sleeper(pause_s))
        return woken

    woken = run_virtual(main())
    times = [now_s for now_s, _ in woken]
    assert times == sorted(times)
    assert all(now_s == pytest.approx(pause_s, abs=1e-6) for now_s, pause_s in woken)


def test_a_timeout_fires_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(500):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 500


def test_the_same_program_gives_the_same_events() -> None:
    def history() -> list[tuple[float, int]]:
        async def main() -> list[tuple[float, int]]:
            log: list[tuple[float, int]] = []
            queue: asyncio.Queue[int] = asyncio.Queue(3)

            async def producer(number: int) -> None:
                for turn in range(20):
                    await asyncio.sleep(0.1 * number + 0.05 * (turn % 3))
                    await queue.put(number)

            async def consumer() -> None:
                while len(log) < 5 * 20:
                    number = await queue.get()
                    log.append((asyncio.get_running_loop().time(), number))

            async with asyncio.TaskGroup() as group:
                for number in range(5):
                    group.create_task(producer(number))
                group.create_task(consumer())
            return log

        return run_virtual(main())

    assert history() == history()


def test_a_dead_stop_is_told_with_the_names_of_those_who_wait() -> None:
    async def main() -> None:
        await asyncio.sleep(7)
        await asyncio.create_task(asyncio.Event().wait(), name="ann waits for bob")

    with pytest.raises(DeadStopError, match=r"stopped at 7 s.*ann waits for bob"):
        run_virtual(main())


def test_a_dead_stop_still_unwinds_the_tasks() -> None:
    unwound = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            unwound.append(True)

    with pytest.raises(DeadStopError):
        run_virtual(main())
    assert unwound == [True]


def test_the_clock_stands_still_while_a_thread_works() -> None:
    release = threading.Event()

    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        ticking = asyncio.create_task(asyncio.sleep(1000))
        working = asyncio.create_task(asyncio.to_thread(lambda: release.wait(20) and "done"))
        loop.call_soon(release.set)
        result = await working
        now_s = loop.time()
        assert not ticking.done()
        await ticking
        return str(result), now_s

    assert run_virtual(main()) == ("done", 0.0)


def test_sockets_are_served_before_time_jumps() -> None:
    async def main() -> tuple[bytes, float]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            late = asyncio.create_task(asyncio.sleep(100))
            theirs.send(b"now")
            loop = asyncio.get_running_loop()
            data = await loop.sock_recv(ours, 10)
            now_s = loop.time()
            await late
            return data, now_s

    assert run_virtual(main()) == (b"now", 0.0)


def test_a_result_or_an_error_comes_out_as_it_is() -> None:
    async def fails() -> None:
        raise LookupError("as it is")

    with pytest.raises(LookupError, match="as it is"):
        run_virtual(fails())


def test_a_closed_loop_leaves_nothing_open() -> None:
    loop = VirtualTimeLoop()
    loop.run_until_complete(asyncio.sleep(1))
    loop.close()
    assert loop.is_closed()
    assert loop.time() == 1


def test_thousands_of_tasks_share_one_clock() -> None:
    async def ticker(number: int) -> None:
        for _ in range(5):
            await asyncio.sleep(1 + number / 1000)

    async def main() -> float:
        async with asyncio.TaskGroup() as group:
            for number in range(2000):
                group.create_task(ticker(number))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(5 * (1 + 1999 / 1000))
