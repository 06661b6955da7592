"""What a choice costs where another would have been better: the table by which a default is chosen.

In a setting s (one label on every axis but the chosen one), with m(c, s) the metric of choice c averaged over seeds,

    regret(c, s) = max_c' m(c', s) - m(c, s)          (the other way round where less is better)

The choice with the least worst regret is the minimax-regret choice (Savage, J. Amer. Stat. Assoc. 46, 1951, 55-67).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from gossipfl.experiments.pivot import COLUMNS
from gossipfl.experiments.results import Results, Setting, higher_is_better, setting_title


@dataclass(frozen=True, slots=True)
class Cost:
    """A choice's regret over some settings: the ``worst``, with where that is, and the ``mean``."""

    worst: float
    mean: float
    settings: int
    where: str


@dataclass(frozen=True, slots=True)
class RegretTable:
    """The regret of each choice on ``axis``, the least worst regret first; choices that lack a setting come last.

    ``total`` covers all settings in which the choice was carried out, ``by`` each label of the axis ``across``.
    ``complete`` counts the settings in which every choice was, out of ``settings``.
    """

    axis: str
    metric: str
    across: str | None
    across_labels: tuple[str, ...]
    total: Mapping[str, Cost]
    by: Mapping[str, Mapping[str, Cost]]
    complete: int
    settings: int


def regret(
    results: Results, axis: str = "rule", metric: str = "accuracy", *, across: str | None = COLUMNS
) -> RegretTable:
    """Return the regret of each choice on ``axis``.

    A setting's choices are compared over the seeds that all of them have finished; a setting without such a seed, or
    with one choice only, says nothing and is left out. Raises ConfigError for an axis or metric that is not there.
    """
    labels = results.axes[axis] if results.axis(axis) else ()
    across = across if across in results.axes and across != axis else None
    costs: dict[str, list[tuple[Setting, float]]] = {label: [] for label in labels}
    means = _means(results, axis, metric)
    for setting, by_choice in means.items():
        best = (max if higher_is_better(metric) else min)(by_choice.values())
        for choice, mean in by_choice.items():
            costs[choice].append((setting, abs(best - mean)))
    total = {choice: _cost(costs[choice]) for choice in labels if costs[choice]}
    most = max((cost.settings for cost in total.values()), default=0)
    ranked = dict(sorted(total.items(), key=lambda one: (one[1].settings < most, one[1].worst, one[1].mean)))
    columns = results.axes[across] if across is not None else ()
    by = {choice: _by_column(costs[choice], across) for choice in ranked}
    present = {label for choices in means.values() for label in choices}
    return RegretTable(
        axis=axis,
        metric=metric,
        across=across,
        across_labels=tuple(label for label in columns if any(label in one for one in by.values())),
        total=ranked,
        by=by,
        complete=sum(len(by_choice) == len(present) for by_choice in means.values()),
        settings=len(_settings(results, axis)),
    )


def _means(results: Results, axis: str, metric: str) -> dict[Setting, dict[str, float]]:
    """Return each setting's mean by choice, over the seeds that its choices have in common."""
    values = results.metric(metric).tolist()
    names = [name for name in results.axes if name != axis]
    found: dict[Setting, dict[str, dict[int, float]]] = {}
    for row, value in enumerate(values):
        if math.isfinite(value):
            setting = tuple((name, results.labels[name][row]) for name in names)
            choices = found.setdefault(setting, {})
            choices.setdefault(results.labels[axis][row], {})[results.seeds[row]] = value
    means = {}
    for setting, choices in found.items():
        common = set.intersection(*(set(by_seed) for by_seed in choices.values()))
        if common and len(choices) > 1:
            means[setting] = {
                choice: fmean(by_seed[seed] for seed in sorted(common)) for choice, by_seed in choices.items()
            }
    return means


def _settings(results: Results, axis: str) -> set[tuple[str, ...]]:
    names = [name for name in results.axes if name != axis]
    return set(zip(*(results.labels[name] for name in names), strict=True)) if names else {()}


def _cost(costs: list[tuple[Setting, float]]) -> Cost:
    where, worst = max(costs, key=lambda one: one[1])
    return Cost(worst, fmean(cost for _, cost in costs), len(costs), setting_title(where))


def _by_column(costs: list[tuple[Setting, float]], across: str | None) -> dict[str, Cost]:
    if across is None:
        return {}
    groups: dict[str, list[tuple[Setting, float]]] = {}
    for setting, cost in costs:
        groups.setdefault(dict(setting)[across], []).append((setting, cost))
    return {label: _cost(group) for label, group in groups.items()}
