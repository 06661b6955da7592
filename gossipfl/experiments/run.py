"""An experiment carried out: what is not yet done, one outcome after the other, into its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Protocol

from gossipfl.experiments.executors import Executor, Interrupt, Outcome
from gossipfl.experiments.folder import LOG_FILE, RESULTS_FILE, write_index
from gossipfl.experiments.grid import Cell, Experiment
from gossipfl.experiments.ledger import DONE, Ledger, read_records, record_of


@dataclass
class Tally:
    """Where an experiment stands. ``cells``: all of them; ``before``: done by earlier runs; ``planned``: for this one;
    ``done`` and ``failed``: in this one."""

    cells: int
    before: int
    planned: int
    done: int = 0
    failed: int = 0

    @property
    def left(self) -> int:
        """Cells without results."""
        return self.cells - self.before - self.done


class Watcher(Protocol):
    """Someone who watches an experiment."""

    def on_batch(self, outcomes: Sequence[Outcome], tally: Tally, workers: int) -> None:
        """See what has come in, possibly nothing, and where that leaves the experiment."""


def run_experiment(
    experiment: Experiment,
    out: Path,
    executor: Executor,
    watcher: Watcher,
    *,
    limit: int | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Tally:
    """Carry out the cells that ``out`` has no results of, at most ``limit``; the folder must be claimed.

    Cells that failed before are tried again. Raises KeyboardInterrupt after Ctrl-C, once everything that was finished
    is written.
    """
    write_index(out, experiment)
    with Interrupt() as interrupt, Ledger(out / RESULTS_FILE, now) as ledger:
        records = read_records(out / RESULTS_FILE)
        done = {hash_ for hash_, record in records.items() if record.get("status") == DONE}
        cells = experiment.grid.cells
        waiting: list[Cell] = list(islice((cell for cell in cells if cell.hash not in done), limit))
        tally = Tally(len(cells), sum(cell.hash in done for cell in cells), len(waiting))
        with closing(executor.batches(waiting, interrupt)) as batches:
            for outcomes in batches:
                ledger.append([record_of(outcome, experiment.grid) for outcome in outcomes])
                _log_failures(outcomes, experiment, out / LOG_FILE)
                failed = sum(outcome.error is not None for outcome in outcomes)
                tally.failed += failed
                tally.done += len(outcomes) - failed
                watcher.on_batch(outcomes, tally, executor.workers)
    if interrupt.seen:
        raise KeyboardInterrupt
    return tally


def _log_failures(outcomes: Sequence[Outcome], experiment: Experiment, path: Path) -> None:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return
    with path.open("a", encoding="utf-8") as log:
        for outcome in failed:
            title = experiment.grid.title(outcome.cell, seed=True)
            log.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z cell {outcome.cell.hash} ({title}): {outcome.error}\n")
            log.write(str(outcome.result.get("trace", "")))
