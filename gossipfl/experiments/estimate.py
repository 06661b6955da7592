"""How long an experiment will take, told by short runs of a few of its cells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from gossipfl.config import EVALUATIONS, RunSpec
from gossipfl.experiments.cell import measure
from gossipfl.experiments.grid import Cell

PROBES = 4
PROBE_S = 20.0
"""No further cell is probed after so long."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one cell, mean over the ``probed`` ones, and of them all on ``workers`` processes."""

    cell_s: float
    total_s: float
    probed: int
    workers: int


def estimate(cells: Sequence[Cell], workers: int, *, now: Callable[[], float] = time.perf_counter) -> Estimate:
    """Probe cells that are spread over the grid; raises what a run raises that cannot be carried out."""
    began_s = now()
    found: list[float] = []
    for cell in _spread(cells, PROBES):
        if found and now() - began_s > PROBE_S:
            break
        found.append(_probe(cell, now, warm=bool(found)))
    return Estimate(fmean(found), fmean(found) * len(cells) / workers, len(found), workers)


def _spread(cells: Sequence[Cell], count: int) -> list[Cell]:
    return [cells[int((at + 0.5) * len(cells) / count)] for at in range(count)] if len(cells) > count else list(cells)


def _probe(cell: Cell, now: Callable[[], float], *, warm: bool) -> float:
    """Time the run to its first evaluation, and to its second; the rest goes on like the second part."""
    spec = cell.spec()
    every = spec.evaluate_every or math.ceil(spec.rounds / EVALUATIONS)
    if not warm:
        _timed(cell, spec, 1, every, now)  # what is loaded at the first run of all, no later one pays for
    first_s = _timed(cell, spec, every, every, now)
    blocks = spec.rounds / every
    if blocks <= 1:
        return first_s * blocks
    second_s = _timed(cell, spec, 2 * every, every, now)
    return first_s + max(second_s - first_s, 0.0) * (blocks - 1)


def _timed(cell: Cell, spec: RunSpec, rounds: int, every: int, now: Callable[[], float]) -> float:
    shorter = spec.model_copy(update={"rounds": rounds, "evaluate_every": every, "keep_vectors": False})
    began_s = now()
    measure(cell.engine, shorter)
    return now() - began_s
