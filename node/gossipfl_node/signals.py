"""How a daemon is asked to end: the first SIGTERM or SIGINT asks, the second one ends it at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


class StopSignals:
    """Before ``attach`` a signal ends the process with 0, since nothing has begun; afterwards it calls back, once.

    The second signal is left to the kernel, and so works whatever this process is busy with: the exit status is then
    that of a process ended by the signal, in a shell 143 (SIGTERM) or 130 (SIGINT).
    """

    def attach(self, loop: asyncio.AbstractEventLoop, stop: Callable[[str], None]) -> None:
        """From now on the first signal calls ``stop`` with its name, in ``loop``."""

        def first(number: signal.Signals) -> None:
            for each in STOP_SIGNALS:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
            stop(number.name)

        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, first, number)


@contextlib.contextmanager
def capture_signals() -> Iterator[StopSignals]:
    """Take over SIGTERM and SIGINT, and give them back at the end."""
    before = {number: signal.signal(number, _end_before_start) for number in STOP_SIGNALS}
    try:
        yield StopSignals()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_before_start(number: int, _: FrameType | None) -> None:
    log.info("stopped by %s before the start", signal.Signals(number).name)
    os._exit(0)  # imports in progress would turn an exception into another one
