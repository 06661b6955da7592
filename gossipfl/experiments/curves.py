"""How an experiment's runs went on the way: a panel for each column of its tables, a line for each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from gossipfl.experiments.canvas import WIDTH, panel, sheet, text_width
from gossipfl.experiments.pivot import View
from gossipfl.experiments.results import Results, Setting, higher_is_better
from gossipfl.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

ACROSS = 4
PANELS = 8
LINES = 8
"""Most panels of a figure and most lines in a panel; more could not be told apart."""

LEFT, GAP, TITLE, HEIGHT, BELOW, LEGEND = 0.72, 0.14, 0.34, 1.85, 0.5, 0.42
LOG_FROM = 20.0
"""Consensus distances that differ by more than this factor are drawn on a logarithmic scale."""

# Okabe and Ito's palette, with an ochre for its yellow, which is too light for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, slots=True)
class Measure:
    """What a figure has along one side: a column of the series, and what to call it."""

    column: str
    text: str


BY_ROUND = Measure("round", "round")
BY_BYTES = Measure("bytes", "bytes sent by a node")
CONSENSUS = Measure("consensus_distance", "consensus distance")


@dataclass(frozen=True, slots=True)
class Curves:
    """The lines of a figure: (x, y), means over seeds, by column and row of the tables."""

    x: Measure
    y: Measure
    columns: Sequence[str]
    rows: Sequence[str]
    lines: Mapping[tuple[str, str], tuple[Numbers, Numbers]]


def read_curves(results: Results, view: View, setting: Setting, x: Measure, y: Measure) -> Curves | None:
    """Return ``y`` against ``x`` in a setting; None where no cell has such a series.

    Of more than ``LINES`` rows those are kept that ended best, mean over the columns; of the columns the first
    ``PANELS``.
    """
    down = results.labels[view.rows]
    across = results.labels[view.columns] if view.columns else [""] * len(down)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for at in results.rows_of(setting).tolist():
        series = (results.records[at] or {}).get("series") or {}
        if series.get(x.column) and any(value is not None for value in series.get(y.column, ())):
            groups.setdefault((across[at], down[at]), []).append(series)
    if not groups:
        return None
    labels = results.axes[view.columns] if view.columns else ("",)
    columns = [label for label in labels if any(column == label for column, _ in groups)][:PANELS]
    lines = {key: _mean_line(group, x, y) for key, group in groups.items() if key[0] in columns}
    best = _best_rows(lines, y)
    return Curves(x, y, columns, [row for row in results.axes[view.rows] if row in best], lines)


def curves_figure(curves: Curves, column_axis: str | None) -> Figure:
    """Draw the panels, all on the same scales; ``column_axis`` is the axis that tells them apart."""
    across = min(len(curves.columns), ACROSS)
    down = math.ceil(len(curves.columns) / across)
    width = (WIDTH - LEFT) / across - GAP if across > 1 else WIDTH / 2
    pitch = TITLE + HEIGHT + BELOW
    with style():
        figure = sheet(WIDTH if across > 1 else LEFT + width + GAP, down * pitch + LEGEND)
        first: Axes | None = None
        for at, column in enumerate(curves.columns):
            row, place = divmod(at, across)
            left, top = LEFT + place * (width + GAP), row * pitch + TITLE
            axes = panel(figure, left, top, width, HEIGHT, sharex=first, sharey=first)
            first = first or axes
            _draw(axes, curves, column)
            axes.set_title(f"{column_axis} {column}" if column_axis else "", size=9)
            axes.tick_params("y", labelleft=place == 0)
            axes.set_ylabel(curves.y.text if place == 0 else "")
            axes.set_xlabel(curves.x.text if at + across >= len(curves.columns) else "")
        assert first is not None
        _scale(first, curves)
        _legend(figure, curves.rows)
    return figure


def _mean_line(group: Sequence[Mapping[str, Any]], x: Measure, y: Measure) -> tuple[Numbers, Numbers]:
    length = len(group[0][x.column])
    alike = [series for series in group if len(series[x.column]) == length]
    xs = np.array([series[x.column] for series in alike], dtype=np.float64).mean(axis=0)
    ys = np.array([series[y.column] for series in alike], dtype=np.float64).mean(axis=0)
    known = np.isfinite(ys)
    return xs[known], ys[known]


def _best_rows(lines: Mapping[tuple[str, str], tuple[Numbers, Numbers]], y: Measure) -> set[str]:
    ends: dict[str, list[float]] = {}
    for (_, row), (_, values) in lines.items():
        if values.size:
            ends.setdefault(row, []).append(float(values[-1]))
    sign = -1 if higher_is_better(y.column) else 1
    return set(sorted(ends, key=lambda row: sign * float(np.mean(ends[row])))[:LINES])


def _draw(axes: Axes, curves: Curves, column: str) -> None:
    for at, row in enumerate(curves.rows):
        if (column, row) not in curves.lines:
            continue
        xs, ys = curves.lines[column, row]
        every = max(1, len(xs) // 6)
        axes.plot(xs, ys, **_look(at), markevery=(at * every // LINES, every), lw=1.4)


def _look(at: int) -> dict[str, Any]:
    return {
        "color": COLOURS[at % len(COLOURS)],
        "ls": DASHES[at % len(DASHES)],
        "marker": MARKERS[at % len(MARKERS)],
        "markersize": 4,
    }


def _scale(axes: Axes, curves: Curves) -> None:
    """Set the scales, which all panels share."""
    if curves.x is BY_ROUND:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if curves.x is BY_BYTES:
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    values = np.concatenate([ys for _, ys in curves.lines.values()])
    if curves.y is CONSENSUS and (values > 0).all() and values.max() > LOG_FROM * values.min():
        axes.set_yscale("log")


def _legend(figure: Figure, rows: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=row, **_look(at)) for at, row in enumerate(rows)]
    fitting = int(figure.get_figwidth() / (text_width(rows) + 0.65))
    figure.legend(handles=handles, loc="lower center", ncols=max(1, min(len(rows), fitting)), borderaxespad=0.2)
