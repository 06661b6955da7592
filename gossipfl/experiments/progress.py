"""What a person sees while an experiment goes on: a bar on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gossipfl.experiments.executors import Outcome
from gossipfl.experiments.run import Tally, Watcher

LINE_S = 5.0
"""Shortest time between two plain lines."""

BAR_WIDTH = 16


class Silence:
    """An experiment that nobody watches."""

    def on_batch(self, outcomes: Sequence[Outcome], tally: Tally, workers: int) -> None:
        """See nothing."""


class Pace:
    """Cells a second since the first ones came, without the workers' start, and the time that is left at this pace."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._first: tuple[float, int] | None = None

    def line(self, tally: Tally, workers: int) -> str:
        """Return where the experiment stands."""
        ended = tally.done + tally.failed
        parts = [f"{ended} of {tally.planned} cells"]
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        if self._first is None and ended:
            self._first = self._now(), ended
        if self._first is not None and ended > self._first[1]:
            rate = (ended - self._first[1]) / max(self._now() - self._first[0], 1e-9)
            parts += [f"{rate:.3g} a second", f"{duration((tally.planned - ended) / rate)} left"]
        return ", ".join([*parts, f"{workers} worker{'s' * (workers != 1)}"])


class PlainLines:
    """A line at most every ``LINE_S`` seconds, one for the end, and one for each cell that failed."""

    def __init__(self, file: TextIO, now: Callable[[], float]) -> None:
        self._file, self._now = file, now
        self._pace = Pace(now)
        self._next_s = now()

    def on_batch(self, outcomes: Sequence[Outcome], tally: Tally, workers: int) -> None:
        """Tell failures at once, and the standing if it is time."""
        for outcome in outcomes:
            if outcome.error is not None:
                self._file.write(failure_line(outcome) + "\n")
        over = bool(outcomes) and tally.done + tally.failed == tally.planned
        if over or (self._now() >= self._next_s and tally.done + tally.failed):
            self._next_s = self._now() + LINE_S
            self._file.write(self._pace.line(tally, workers) + "\n")
        self._file.flush()


class LiveBar:
    """A bar on a terminal, with the latest failure under it; a context manager."""

    def __init__(self, console: Console, now: Callable[[], float]) -> None:
        self._pace = Pace(now)
        self._failure = ""
        self._live = Live(Text("starting workers ..."), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveBar:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_batch(self, outcomes: Sequence[Outcome], tally: Tally, workers: int) -> None:
        """Redraw."""
        for outcome in outcomes:
            self._failure = failure_line(outcome) if outcome.error is not None else self._failure
        if not tally.done + tally.failed:
            return
        bar = ProgressBar(total=max(tally.planned, 1), completed=tally.done + tally.failed, width=BAR_WIDTH)
        shown = Table.grid(padding=(0, 1))
        shown.add_row(bar, Text(self._pace.line(tally, workers), no_wrap=True, overflow="ellipsis"))
        self._live.update(Group(shown, Text(self._failure, style="red", no_wrap=True)), refresh=True)


@contextmanager
def watch(*, quiet: bool, console: Console | None = None) -> Iterator[Watcher]:
    """Yield the display that suits ``quiet`` and stderr."""
    console = console or Console(file=sys.stderr, highlight=False)
    if quiet:
        yield Silence()
    elif console.is_terminal:
        with LiveBar(console, time.monotonic) as bar:
            yield bar
    else:
        yield PlainLines(console.file, time.monotonic)  # type: ignore[arg-type]  # a console's file is a TextIO


def failure_line(outcome: Outcome) -> str:
    """Return a failed cell as one line."""
    return f"failed: {', '.join(outcome.cell.labels)}, seed {outcome.cell.seed}: {outcome.error}"


def duration(seconds: float) -> str:
    """Return a time for people: ``95`` is ``1 min 35 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
