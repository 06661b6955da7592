"""Virtual time: an event loop that jumps to its next timer when nothing else is ready.

Whatever takes its time from the running loop (``loop.time()``, ``asyncio.sleep``, ``asyncio.timeout``) runs
as fast as its own arithmetic under ``run_virtual``, and the order of events depends on nothing but the
program and its seeds. (The idea is trio's ``MockClock`` with ``autojump_threshold=0``.)

Work outside the loop has no virtual duration: while a call made by ``loop.run_in_executor`` or
``asyncio.to_thread`` is running, the clock stands still and the loop waits for it. Two things can still
differ between runs: several such calls at once finish in whatever order the machine likes, and
``asyncio.wait`` gives sets, whose order is that of addresses in memory; a reproducible program awaits in an
order of its own.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple, Unpack

from gossipfl.errors import GossipflError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_NAMED_TASKS = 5
_SELF_PIPE = 1  # every asyncio loop watches one socket pair of its own


class DeadStopError(GossipflError):
    """Every task waits and nothing is left that could wake one: no timer, no thread, no socket."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose ``time()`` starts at 0 s and moves only by jumping to the next timer.

    Sockets work, and are polled before each jump, but the peer at the far end does not live in virtual time.
    Raises DeadStopError out of ``run_until_complete`` when no event can ever happen again.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._outside_calls = 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was made."""
        return self._now_s

    def jump(self, duration_s: float) -> None:
        """Move the clock forward."""
        self._now_s += duration_s

    @property
    def waits_outside(self) -> bool:
        """Whether a call in another thread has yet to report back."""
        return self._outside_calls > 0

    def dead_stop(self) -> DeadStopError:
        """Describe the tasks that wait for ever."""
        names = sorted(task.get_name() for task in asyncio.all_tasks(self))
        shown = ", ".join(names[:_NAMED_TASKS]) + (", ..." if len(names) > _NAMED_TASKS else "")
        return DeadStopError(
            f"virtual time stopped at {self._now_s:g} s: {len(names)} tasks wait for ever ({shown}); "
            "no timer, thread or socket is left that could wake one"
        )

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run ``func`` in a thread; the virtual clock stands still until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self._outside_calls += 1
        future.add_done_callback(self._outside_call_done)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Join the executor's threads; the clock stands still meanwhile."""
        self._outside_calls += 1
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            self._outside_calls -= 1

    def _outside_call_done(self, _: asyncio.Future[Any]) -> None:
        self._outside_calls -= 1


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that never sleeps for a timer: it moves the loop's clock instead."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.waits_outside and timeout != 0:
            return super().select(None)  # a thread's result comes through the loop's own socket pair
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None:
            self._loop.jump(timeout)
            return []
        if len(self.get_map()) > _SELF_PIPE:
            return super().select(None)
        raise self._loop.dead_stop()


def run_virtual(main: Coroutine[Any, Any, T], *, debug: bool | None = None) -> T:
    """Run ``main`` to its end in virtual time and return its result.

    Tasks left over are cancelled and the loop is closed, as by ``asyncio.run``. Raises DeadStopError when
    ``main`` waits for something that cannot happen.
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=debug) as runner:
        return runner.run(main)
