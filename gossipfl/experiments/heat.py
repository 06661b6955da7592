"""Heat maps of an experiment's tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from gossipfl.experiments.canvas import WIDTH, panel, sheet, text_width
from gossipfl.experiments.pivot import Pivot
from gossipfl.experiments.printed import number
from gossipfl.experiments.results import higher_is_better, setting_title
from gossipfl.report.figures import INK, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL_WIDTH, CELL_HEIGHT = 0.58, 0.27
GAP, TITLE, BAR = 0.25, 0.34, 0.85
MOST_CELLS = 400
"""A figure of more places would be a wall of numbers; the tables have them all."""


@dataclass(frozen=True, slots=True)
class _Grid:
    """What all maps of a figure have in common: labels, colours, and the range of values."""

    rows: Sequence[str]
    columns: Sequence[str]
    colours: Any
    low: float
    high: float


def heat_figure(tables: Sequence[Pivot]) -> Figure:
    """Draw tables of one metric as maps on one scale: dark is better, grey has no result.

    Of many tables the first are drawn, up to ``MOST_CELLS`` places.
    """
    grid = _common(tables)
    tables = tables[: max(1, MOST_CELLS // (len(grid.rows) * len(grid.columns)))]
    left, below = text_width(grid.rows) + 0.15, 0.6 * text_width(grid.columns) + 0.2
    width, height = CELL_WIDTH * len(grid.columns), CELL_HEIGHT * len(grid.rows)
    across = max(1, min(len(tables), int((WIDTH - left - BAR) / (width + GAP))))
    down = math.ceil(len(tables) / across)
    with style():
        figure = sheet(left + across * (width + GAP) + BAR, down * (TITLE + height + below) + 0.05)
        for at, table in enumerate(tables):
            row, column = divmod(at, across)
            top = row * (TITLE + height + below) + TITLE
            axes = panel(figure, left + column * (width + GAP), top, width, height)
            drawn = _draw(axes, table, grid)
            axes.set_yticks(np.arange(len(grid.rows)) + 0.5, grid.rows if column == 0 else [])
        scale = panel(figure, left + across * (width + GAP), TITLE, 0.14, min(height, 2.2))
        bar = figure.colorbar(drawn, cax=scale)
        bar.set_label(tables[0].metric)
        bar.outline.set_visible(False)
    return figure


def _common(tables: Sequence[Pivot]) -> _Grid:
    means = [place.mean for table in tables for place in table.places.values() if math.isfinite(place.mean)]
    low, high = min(means, default=0.0), max(means, default=1.0)
    colours = colormaps["YlGnBu" if higher_is_better(tables[0].metric) else "YlGnBu_r"].with_extremes(bad="#ececec")
    return _Grid(
        rows=list(dict.fromkeys(label for table in tables for label in table.row_labels)),
        columns=list(dict.fromkeys(label for table in tables for label in table.column_labels)),
        colours=colours,
        low=low,
        high=high if high > low else low + 1e-9,
    )


def _draw(axes: Axes, table: Pivot, grid: _Grid) -> Any:
    values = np.full((len(grid.rows), len(grid.columns)), np.nan)
    for (row, column), place in table.places.items():
        values[grid.rows.index(row), grid.columns.index(column)] = place.mean
    drawn = axes.pcolormesh(values, cmap=grid.colours, vmin=grid.low, vmax=grid.high, edgecolors="white", linewidth=1.5)
    for (row, column), value in np.ndenumerate(values):
        dark = math.isfinite(value) and sum(grid.colours(drawn.norm(value))[:3]) < 1.5
        shown = number(float(value), table.metric).replace("0.", ".", 1) if abs(value) < 1 else _short(float(value))
        axes.text(column + 0.5, row + 0.5, shown, ha="center", va="center", size=8, color="white" if dark else INK)
    axes.set_xticks(np.arange(len(grid.columns)) + 0.5, grid.columns, rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title(setting_title(table.setting), size=9)
    return drawn


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"
