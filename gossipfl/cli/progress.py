"""What a person sees while a run goes on: a live table on a terminal, plain lines elsewhere.

Everything here writes to stderr, redraws only when something came in, and starts no thread: the testbed
forks.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gossipfl.summary import FAULT_EVENTS

if TYPE_CHECKING:
    from gossipfl.config import RunSpec
    from gossipfl.records import Event, NodeRound, Progress

SHOWN_NODES = 20
"""More nodes than this are shown together, not one by one."""

SHOWN_FAULTS = 3
REDRAW_S = 0.25
LINE_S = 5.0
"""Shortest time between two plain lines."""


class Silence:
    """Progress that nobody watches."""

    def on_event(self, event: Event) -> None:
        """See an event."""

    def on_round(self, row: NodeRound) -> None:
        """See a node's finished round."""


class Standing:
    """Where every node stands: its latest round, latest evaluation, and verdicts so far."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.latest: dict[int, NodeRound] = {}
        self.evaluated: dict[int, NodeRound] = {}
        self.accepted: dict[int, int] = {}
        self.rejected: dict[int, int] = {}
        self.faults: deque[str] = deque(maxlen=SHOWN_FAULTS)
        self._lost: set[str] = set()
        self._at: Counter[int] = Counter()  # how many living nodes have done so many rounds
        self._heard = 0
        self._least = 1

    def on_event(self, event: Event) -> None:
        """Keep an event that a person should see; a node that died is not waited for."""
        if event.event in FAULT_EVENTS:
            self.faults.append(fault_line(event))
        if event.event == "died" and event.node is not None and event.node not in self._lost:
            self._lost.add(event.node)
            for row in self.latest.values():
                if row.name == event.node:
                    self._at[row.round + 1] -= 1
                    self._heard -= 1

    def on_round(self, row: NodeRound) -> None:
        """Move a node to its latest round."""
        before = self.latest.get(row.node)
        if row.name not in self._lost:
            self._at[row.round + 1] += 1
            if before is None:
                self._heard += 1
            else:
                self._at[before.round + 1] -= 1
        self.latest[row.node] = row
        if row.test_loss is not None or row.test_accuracy is not None:
            self.evaluated[row.node] = row
        accepted = row.accepted_honest + row.accepted_byzantine
        rejected = row.rejected_honest + row.rejected_byzantine
        self.accepted[row.node] = self.accepted.get(row.node, 0) + accepted
        self.rejected[row.node] = self.rejected.get(row.node, 0) + rejected

    @property
    def rounds_done(self) -> int:
        """Rounds that every living node has done; 0 until all have been heard of."""
        living = self.spec.nodes - len(self._lost)
        if not living or self._heard < living:
            return 0
        while not self._at[self._least]:
            self._least += 1
        return self._least

    def line(self) -> str:
        """Return the whole network's standing in one line, of honest nodes."""
        honest = [row for row in self.latest.values() if not row.byzantine]
        tested = [row for row in self.evaluated.values() if not row.byzantine]
        losses = [row.loss for row in honest if row.loss is not None]
        scores = [row.test_accuracy for row in tested if row.test_accuracy is not None]
        errors = [row.test_loss for row in tested if row.test_loss is not None]
        parts = [f"round {self.rounds_done}/{self.spec.rounds}"]
        if losses:
            parts.append(f"loss {fmean(losses):.4f}")
        if scores:
            parts.append(f"test accuracy {fmean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})")
        elif errors:
            parts.append(f"test loss {fmean(errors):.4f} ({min(errors):.4f} to {max(errors):.4f})")
        nodes = [row.node for row in honest]
        accepted, rejected = (sum(of[node] for node in nodes) for of in (self.accepted, self.rejected))
        return "  ".join([*parts, f"accepted {accepted}, rejected {rejected}"])


class PlainLines:
    """A line when a run moved on, at most every ``LINE_S`` seconds, and one for each fault."""

    def __init__(self, spec: RunSpec, file: TextIO, now: Callable[[], float]) -> None:
        self._standing = Standing(spec)
        self._file = file
        self._now = now
        self._next_s = now() + LINE_S
        self._told = 0

    def on_event(self, event: Event) -> None:
        """Tell a fault at once."""
        self._standing.on_event(event)
        if event.event in FAULT_EVENTS:
            self._write(fault_line(event))

    def on_round(self, row: NodeRound) -> None:
        """Tell the standing if it is time, and always the first and the last round."""
        self._standing.on_round(row)
        done = self._standing.rounds_done
        due = self._now() >= self._next_s or done == self._standing.spec.rounds or self._told == 0
        if done > self._told and due:
            self._told = done
            self._next_s = self._now() + LINE_S
            self._write(self._standing.line())

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()


class LiveTable:
    """A table on a terminal, redrawn at most every ``REDRAW_S`` seconds; a context manager."""

    def __init__(self, spec: RunSpec, console: Console, now: Callable[[], float]) -> None:
        self._standing = Standing(spec)
        self._now = now
        self._started_s = now()
        self._next_s = 0.0
        # Live's own refreshing would start a thread, and the testbed forks after this.
        self._live = Live(self._draw(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_event(self, event: Event) -> None:
        """See an event."""
        self._standing.on_event(event)
        self._redraw(at_once=event.event in FAULT_EVENTS)

    def on_round(self, row: NodeRound) -> None:
        """See a node's finished round."""
        self._standing.on_round(row)
        self._redraw()

    def _redraw(self, *, at_once: bool = False) -> None:
        if at_once or self._now() >= self._next_s:
            self._next_s = self._now() + REDRAW_S
            self._live.update(self._draw(), refresh=True)

    def _draw(self) -> RenderableType:
        standing = self._standing
        shown: list[RenderableType] = []
        if not standing.latest:
            shown.append(Text(f"{standing.spec.short_name}: starting {standing.spec.nodes} nodes ...", style="dim"))
        elif standing.spec.nodes <= SHOWN_NODES:
            shown.append(node_table(standing))
        if standing.latest:
            shown.append(Text(f"{standing.line()}  {self._now() - self._started_s:.0f} s", style="bold"))
        shown += [Text(line, style="red") for line in standing.faults]
        return Group(*shown)


@contextmanager
def watch(spec: RunSpec, *, quiet: bool, console: Console | None = None) -> Iterator[Progress]:
    """Yield the progress display that suits ``quiet`` and stderr."""
    console = console or Console(file=sys.stderr, highlight=False)
    if quiet:
        yield Silence()
    elif console.is_terminal:
        with LiveTable(spec, console, time.monotonic) as table:
            yield table
    else:
        yield PlainLines(spec, console.file, time.monotonic)  # type: ignore[arg-type]


def node_table(standing: Standing) -> Table:
    """Return a row per node: its round, losses, accuracy, and verdicts about its neighbours so far."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("node")
    for title in ("round", "loss", "test loss", "test accuracy", "accepted", "rejected"):
        table.add_column(title, justify="right")
    for node, row in sorted(standing.latest.items()):
        tested = standing.evaluated.get(node)
        table.add_row(
            f"{row.name} Byzantine" if row.byzantine else row.name,
            f"{row.round + 1}/{standing.spec.rounds}",
            number(row.loss, 4),
            number(tested.test_loss if tested else None, 4),
            number(tested.test_accuracy if tested else None, 3),
            str(standing.accepted[node]),
            str(standing.rejected[node]),
            style="yellow" if row.byzantine else None,
        )
    return table


def number(value: float | None, digits: int) -> str:
    """Return a number for a table; a dash where it is unknown."""
    return "–" if value is None else f"{value:.{digits}f}"


def fault_line(event: Event) -> str:
    """Return a fault as one line for a person."""
    details = ", ".join(f"{key} {value}" for key, value in event.fields.items())
    return f"{event.t_s:.1f} s: {event.node or 'run'}: {event.event}{': ' if details else ''}{details}"
