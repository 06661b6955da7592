"""Curves over rounds and over time, from the rows of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

TIME_POINTS = 400
"""Points of a curve over time."""


@dataclass(frozen=True, slots=True)
class Band:
    """Mean, least and greatest value over a group of nodes, at each ``x``."""

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers

    def __bool__(self) -> bool:
        return self.x.size > 0


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of ``metrics.parquet`` as arrays, of one group of nodes."""

    table: pa.Table

    def column(self, name: str) -> Numbers:
        """Return a column as floats; NaN where it is null, or not there at all."""
        if name not in self.table.column_names:
            return np.full(self.table.num_rows, np.nan)
        values = self.table.column(name).to_numpy(zero_copy_only=False)
        return np.asarray(values, dtype=np.float64)

    def group(self, *, byzantine: bool) -> Rows:
        """Return the rows of the Byzantine nodes, or of the honest ones."""
        is_byzantine = np.asarray(self.table.column("byzantine").to_numpy(zero_copy_only=False), dtype=bool)
        return Rows(self.table.filter(is_byzantine == byzantine))

    def nodes(self) -> NDArray[np.int64]:
        """Return the distinct node numbers, ascending."""
        return np.unique(self.column("node")).astype(np.int64)

    def known(self, name: str) -> bool:
        """Say whether the column has any value."""
        return bool(np.isfinite(self.column(name)).any())


def by_round(rows: Rows, name: str) -> Band:
    """Return a column's spread over nodes after each round, counted from 1."""
    values, rounds = rows.column(name), rows.column("round")
    finite = np.isfinite(values)
    values, rounds = values[finite], rounds[finite]
    order = np.argsort(rounds, kind="stable")
    values, rounds = values[order], rounds[order]
    distinct, starts, counts = np.unique(rounds, return_index=True, return_counts=True)
    if not distinct.size:
        return Band(distinct, distinct, distinct, distinct)
    return Band(
        distinct + 1,
        np.add.reduceat(values, starts) / counts,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def by_time(rows: Rows, name: str, points: int = TIME_POINTS) -> Band:
    """Return a column's spread over nodes at evenly spaced times, each node holding its latest value.

    The curve begins when every node has a value, so that it never jumps because a slow node joins it.
    """
    values, times, nodes = rows.column(name), rows.column("t_s"), rows.column("node")
    finite = np.isfinite(values) & np.isfinite(times)
    values, times, nodes = values[finite], times[finite], nodes[finite]
    order = np.lexsort((times, nodes))
    values, times, nodes = values[order], times[order], nodes[order]
    _, starts = np.unique(nodes, return_index=True)
    if not starts.size:
        return Band(times, times, times, times)
    first, last = times[starts].max(), times.max()
    grid = np.linspace(first, last, points if last > first else 1)
    held = np.empty((starts.size, grid.size))
    for row, (start, stop) in enumerate(zip(starts, [*starts[1:], values.size], strict=True)):
        held[row] = values[start + np.searchsorted(times[start:stop], grid, side="right") - 1]
    return Band(grid, held.mean(axis=0), held.min(axis=0), held.max(axis=0))


def totals_by_round(rows: Rows, name: str, rounds: Numbers) -> Numbers:
    """Return a column's sum over nodes in each of ``rounds`` (from 0)."""
    position = np.searchsorted(rounds, rows.column("round"))
    totals = np.bincount(position, weights=np.nan_to_num(rows.column(name)), minlength=rounds.size)
    return totals.astype(np.float64)
