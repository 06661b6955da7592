"""Tables of an experiment: one axis down, one across, a mean over seeds in each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gossipfl.experiments.results import Results, Setting, higher_is_better, main_metric

ROWS, COLUMNS = "rule", "attack"
"""The axes that tables have down and across if nobody says otherwise and the experiment has them."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a table, over its finished ``seeds``.

    ``std`` is that of a sample, NaN for one seed; ``worst`` the worst honest node of all seeds, NaN where the metric
    has none; ``missing`` counts cells without results.
    """

    mean: float
    std: float
    worst: float
    seeds: int
    missing: int


@dataclass(frozen=True, slots=True)
class Pivot:
    """A table of one ``metric`` in one ``setting``: ``places[row, column]``, where the setting has that combination.

    A table without an axis across has one column, with an empty label.
    """

    metric: str
    setting: Setting
    rows: str
    columns: str | None
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    places: Mapping[tuple[str, str], Place]


@dataclass(frozen=True, slots=True)
class View:
    """Which axes are down and across, and which metrics the tables show."""

    rows: str
    columns: str | None
    metrics: tuple[str, ...]


def choose_view(
    results: Results, rows: str | None = None, columns: str | None = None, metrics: Sequence[str] = ()
) -> View:
    """Return the view that is asked for, here or in the experiment's ``[report]``, or else the one that suits it.

    Raises ConfigError for an axis or metric that the experiment does not have.
    """
    told = results.report
    names = list(results.axes)
    down = rows or told.get("rows") or (ROWS if ROWS in names else names[0])
    results.axis(down)
    rest = [name for name in names if name != down]
    across = columns or told.get("columns") or next((name for name in (COLUMNS, *rest) if name in rest), None)
    if across is not None:
        results.axis(across)
    shown = tuple(metrics or told.get("metrics") or (main_metric(results),))
    if results.metrics:  # before the first result, no metric is known
        for metric in shown:
            results.metric(metric)
    return View(down, None if across == down else across, shown)


def pivots(results: Results, view: View, metric: str) -> list[Pivot]:
    """Return a table for each setting of the other axes."""
    axes = [view.rows] if view.columns is None else [view.rows, view.columns]
    return [_pivot(results, view, metric, setting) for setting in results.settings(axes)]


def worst_metric(metric: str) -> str:
    """Return the column that holds the worst honest node of a metric."""
    return f"{metric}_{'min' if higher_is_better(metric) else 'max'}"


def _pivot(results: Results, view: View, metric: str, setting: Setting) -> Pivot:
    values = results.metrics.get(metric, np.full(len(results.hashes), np.nan))
    worst = results.metrics.get(worst_metric(metric), np.full(len(results.hashes), np.nan))
    down = results.labels[view.rows]
    across = results.labels[view.columns] if view.columns is not None else [""] * len(down)
    groups: dict[tuple[str, str], list[int]] = {}
    for row in results.rows_of(setting).tolist():
        groups.setdefault((down[row], across[row]), []).append(row)
    columns = results.axes[view.columns] if view.columns is not None else ("",)
    return Pivot(
        metric=metric,
        setting=setting,
        rows=view.rows,
        columns=view.columns,
        row_labels=[label for label in results.axes[view.rows] if any(label == row for row, _ in groups)],
        column_labels=[label for label in columns if any(label == column for _, column in groups)],
        places={at: _place(values[rows], worst[rows], higher_is_better(metric)) for at, rows in groups.items()},
    )


def _place(values: np.ndarray, worst: np.ndarray, higher: bool) -> Place:
    known = values[np.isfinite(values)]
    ends = worst[np.isfinite(worst)]
    return Place(
        mean=float(known.mean()) if known.size else np.nan,
        std=float(known.std(ddof=1)) if known.size > 1 else np.nan,
        worst=float(ends.min() if higher else ends.max()) if ends.size else np.nan,
        seeds=int(known.size),
        missing=int(values.size - known.size),
    )
