"""Tables for a terminal: pivots, regret, and the grid itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from gossipfl.experiments.pivot import Pivot, Place
from gossipfl.experiments.regret import Cost, RegretTable
from gossipfl.experiments.results import setting_title

NOTHING = "–"

MOST_ACROSS = 8
"""Columns of a regret table that a terminal has room for; the page shows any number."""


def number(value: float, metric: str) -> str:
    """Return a metric's value: accuracies and shares with three decimals, others with four digits; a dash for NaN."""
    if not math.isfinite(value):
        return NOTHING
    shares = metric.startswith("accuracy") or metric in {"honest_rejected", "byzantine_accepted"}
    return f"{value:.3f}" if shares else f"{value:.4g}"


def place_text(place: Place | None, metric: str) -> str:
    """Return mean, standard deviation over seeds, and the worst honest node in brackets."""
    if place is None or not place.seeds:
        return NOTHING
    spread = "" if math.isnan(place.std) else f" ± {number(place.std, metric)}"
    worst = "" if math.isnan(place.worst) else f" ({number(place.worst, metric)})"
    return number(place.mean, metric) + spread + worst


def cost_text(cost: Cost | None, metric: str) -> str:
    """Return worst and mean regret."""
    return NOTHING if cost is None else f"{number(cost.worst, metric)} / {number(cost.mean, metric)}"


def pivot_table(pivot: Pivot) -> Table:
    """Return a pivot as a table."""
    title = f"{pivot.metric}{': ' if pivot.setting else ''}{setting_title(pivot.setting)}"
    table = _table([pivot.rows, *(label or pivot.metric for label in pivot.column_labels)], title)
    for row in pivot.row_labels:
        places = [pivot.places.get((row, column)) for column in pivot.column_labels]
        table.add_row(row, *(place_text(place, pivot.metric) for place in places))
    return table


def regret_table(found: RegretTable) -> Table:
    """Return the regret of each choice as a table; the columns after the number of settings hold the worst there.

    They are left to the page where there are more than ``MOST_ACROSS``.
    """
    title = f"Regret of {found.axis} in {found.metric}, over {found.settings} settings"
    labels = found.across_labels if len(found.across_labels) <= MOST_ACROSS else ()
    across = [f"{found.across} {label}" for label in labels]
    table = _table([found.axis, "worst", "mean", "settings", *across], title)
    if len(labels) < len(found.across_labels):
        table.caption = f"the worst of each {found.across}: see the page"
        table.caption_justify = "left"
    for choice, cost in found.total.items():
        by = [found.by[choice].get(label) for label in labels]
        worst = [NOTHING if one is None else number(one.worst, found.metric) for one in by]
        total = number(cost.worst, found.metric), number(cost.mean, found.metric), str(cost.settings)
        table.add_row(choice, *total, *worst)
    return table


def axes_table(axes: Mapping[str, Sequence[str]]) -> Table:
    """Return the axes of a grid with their labels."""
    table = _table(["axis", "values", "labels"], "")
    for name, labels in axes.items():
        table.add_row(name, str(len(labels)), ", ".join(labels))
    return table


def _table(columns: Sequence[str], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
