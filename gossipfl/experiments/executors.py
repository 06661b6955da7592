"""The seam between an experiment and what carries its cells out, here or on a cluster."""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Protocol, Self, TypeAlias

from gossipfl.experiments.cell import Job
from gossipfl.experiments.grid import Cell

RETRIES = 2
"""How often a cell is tried again after the death of the process that carried it out."""

TICK_S = 0.2
"""Longest time without a batch, so that whoever waits can redraw, sync, or stop."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell: its ``result``, or an ``error`` in one line (with the traceback, where there is one)."""

    cell: Cell
    attempts: int
    result: Mapping[str, Any]

    @property
    def error(self) -> str | None:
        """Why there are no results."""
        return self.result.get("error")


Batches: TypeAlias = Generator[Sequence[Outcome], None, None]


class Executor(Protocol):
    """Carries out cells, in any order, each of them to one outcome.

    A process that dies does not end the experiment: its cell is tried again, ``RETRIES`` times at most.
    """

    @property
    def workers(self) -> int:
        """How many cells it carries out at once; it may change as machines come and go."""
        ...

    def batches(self, cells: Iterable[Cell], interrupt: Interrupt) -> Batches:
        """Yield outcomes as they come; an empty batch says that ``TICK_S`` has passed.

        After ``interrupt`` it starts nothing more, yields what has been finished by then, and ends. Closing the
        iterator ends all that it has started. Raises GossipflError where no worker can be started at all.
        """
        ...


class Queue:
    """Cells that wait, those that are tried again first, with a count of attempts."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._cells = iter(cells)
        self._again: deque[Cell] = deque()
        self._deaths: Counter[str] = Counter()

    def take(self) -> Cell | None:
        """Return the next cell, or None where there is none."""
        return self._again.popleft() if self._again else next(self._cells, None)

    def put_back(self, cells: Sequence[Cell]) -> None:
        """Give back cells that were handed out but not begun."""
        self._again.extendleft(reversed(cells))

    def died(self, cell: Cell, how: str) -> Outcome | None:
        """Note that the process with ``cell`` died; return the outcome once it has been tried often enough."""
        self._deaths[cell.hash] += 1
        if self._deaths[cell.hash] <= RETRIES:
            self._again.appendleft(cell)
            return None
        deaths = self._deaths[cell.hash]
        return Outcome(cell, deaths, {"error": f"its process died {deaths} times, at last {how}"})

    def done(self, cell: Cell, result: Mapping[str, Any]) -> Outcome:
        """Return the outcome of a cell that has come to its end."""
        return Outcome(cell, self._deaths[cell.hash] + 1, result)


class Interrupt:
    """Notes Ctrl-C instead of raising it, so that nothing is cut in the middle; a second one is raised.

    A context manager for the main thread; elsewhere it notes nothing.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True


def job_of(cell: Cell, runs: str | None) -> Job:
    """Return what a worker needs to know of ``cell``; ``runs`` is the folder of full records, where they are kept."""
    # Unlike ``as_dict`` this holds a broker's password, which a worker needs and no record may have.
    tree = cell.spec().model_dump(mode="json")
    return Job(cell.engine, tree, None if runs is None else f"{runs}/{cell.hash}")


def default_workers(cells: Iterable[Cell], cores: int) -> int:
    """Return one worker a core, but one in all where a run brings processes of its own."""
    own = any(cell.engine == "testbed" and cell.spec().transport != "memory" for cell in cells)
    return 1 if own else max(1, cores)
