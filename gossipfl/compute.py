"""Where an agent's arithmetic runs: beside the event loop in threads, or inline in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A result with the wall and CPU seconds it took; None where that has no meaning (virtual time)."""

    value: T
    wall_s: float
    cpu_s: float | None


class Compute(Protocol):
    """Runs an agent's training (long) and protocol arithmetic (short) without stopping the event loop."""

    async def train(self, work: Callable[[], T]) -> Timed[T]:
        """Run training or evaluation; only one at a time."""
        ...

    async def arithmetic(self, work: Callable[[], T]) -> T:
        """Run protocol arithmetic on large vectors; never waits behind training."""
        ...

    def close(self) -> None:
        """Free what the compute holds."""
        ...


INLINE_CPU_S = 0.01
"""Training that took less CPU time than this the last time is not worth a thread: handing it over and fighting for
the interpreter lock costs half a millisecond, and a loop that answers 10 ms late harms nobody."""


class ThreadCompute:
    """Two threads: one that trains, one for the protocol's arithmetic on large models.

    With ``inline_short``, training that is known to be very short (``INLINE_CPU_S``) runs on the event loop instead.
    That suits synchronous rounds, which give the loop time while they wait; an asynchronous node never waits, and
    would keep the loop from what arrives.
    """

    def __init__(self, name: str, *, inline_short: bool = False) -> None:
        self._inline_short = inline_short
        self._last_cpu_s = float("inf")
        self._trainer = ThreadPoolExecutor(1, thread_name_prefix=f"{name}.train")
        self._arithmetic = ThreadPoolExecutor(1, thread_name_prefix=f"{name}.mix")

    async def train(self, work: Callable[[], T]) -> Timed[T]:
        """Run ``work`` in the training thread and measure its wall and CPU time there."""

        def timed() -> Timed[T]:
            wall, cpu = time.perf_counter(), time.thread_time()
            value = work()
            return Timed(value, time.perf_counter() - wall, time.thread_time() - cpu)

        if self._inline_short and self._last_cpu_s < INLINE_CPU_S:
            await asyncio.sleep(0)  # lets what has arrived meanwhile be handled first
            done = timed()
        else:
            done = await asyncio.get_running_loop().run_in_executor(self._trainer, timed)
        self._last_cpu_s = done.cpu_s or 0.0
        return done

    async def arithmetic(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the other thread."""
        return await asyncio.get_running_loop().run_in_executor(self._arithmetic, work)

    def close(self) -> None:
        """Stop both threads; work that has begun is finished first."""
        self._trainer.shutdown(cancel_futures=True)
        self._arithmetic.shutdown(cancel_futures=True)


class VirtualCompute:
    """Inline work that is said to take ``duration_s()`` seconds of the loop's time: one node's speed."""

    def __init__(self, duration_s: Callable[[], float]) -> None:
        self._duration_s = duration_s

    async def train(self, work: Callable[[], T]) -> Timed[T]:
        """Run ``work`` at once, then let its pretended duration pass."""
        duration_s = self._duration_s()
        value = work()
        await asyncio.sleep(duration_s)
        return Timed(value, duration_s, None)

    async def arithmetic(self, work: Callable[[], T]) -> T:
        """Run ``work`` at once, in no time."""
        return work()

    def close(self) -> None:
        """Nothing is held."""
