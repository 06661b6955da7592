"""What is kept of one run: how its honest nodes ended, and a short series on the way there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gossipfl.tasks.base import Evaluation

Spread = dict[str, float]
"""``mean``, ``min``, ``max`` and ``std`` (over the whole group, not a sample of it) over honest nodes."""

SERIES_DIGITS = 6
"""Significant digits of a series, which is for figures; final results are kept to the last bit."""


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return the spread of ``values``, or None where any is unknown."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"mean": fmean(known), "min": min(known), "max": max(known), "std": pstdev(known)}


@dataclass
class Verdicts:
    """How often honest nodes accepted and rejected neighbours, by what these truly were."""

    honest_accepted: int = 0
    honest_rejected: int = 0
    byzantine_accepted: int = 0
    byzantine_rejected: int = 0


@dataclass
class Measures:
    """Gathers a run's results, round by round. Bytes are those that a node sends, mean over all nodes."""

    verdicts: Verdicts = field(default_factory=Verdicts)
    rounds: int = 0
    sent_bytes: float = 0.0
    consensus_distance: float | None = None
    final: Mapping[int, Evaluation] = field(default_factory=dict)
    _series: list[dict[str, float | None]] = field(default_factory=list)

    def evaluated(self, final: Mapping[int, Evaluation], consensus_distance: float | None) -> None:
        """Take the evaluations of the honest nodes, by number, after the rounds so far."""
        self.final = final
        self.consensus_distance = consensus_distance
        entry: dict[str, float | None] = {"round": self.rounds, "bytes": self.sent_bytes}
        entry["consensus_distance"] = consensus_distance
        for name, values in _columns(final).items():
            found = spread(values) or {}
            entry[name] = found.get("mean")
            if name == "accuracy":
                entry["accuracy_min"] = found.get("min")
        self._series.append(entry)

    def result(self) -> dict[str, Any]:
        """Return the results as a record holds them; what the run cannot know is None."""
        columns = _columns(self.final)
        spreads = {name: spread(values) for name, values in columns.items()}
        return {
            "rounds": self.rounds,
            "accuracy": spreads.pop("accuracy", None),
            "loss": spreads.pop("loss", None),
            "metrics": spreads,
            "worst": _worst(self.final),
            "consensus_distance": self.consensus_distance,
            "bytes_per_node_per_round": self.sent_bytes / self.rounds if self.rounds else None,
            "filter": vars(self.verdicts).copy(),
            "series": self._as_columns(),
        }

    def _as_columns(self) -> dict[str, list[float | None]]:
        names = dict.fromkeys(name for entry in self._series for name in entry)
        columns = {name: [_rounded(entry.get(name)) for entry in self._series] for name in names}
        return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _columns(evaluations: Mapping[int, Evaluation]) -> dict[str, list[float | None]]:
    measures = [evaluation.measures() for evaluation in evaluations.values()]
    names = dict.fromkeys(name for one in measures for name in one)
    return {name: [one.get(name) for one in measures] for name in names}


def _worst(evaluations: Mapping[int, Evaluation]) -> dict[str, Any] | None:
    """Return the honest node with the least accuracy, or with the greatest loss where there is no accuracy."""

    def badness(node: int) -> float:
        one = evaluations[node]
        if one.accuracy is not None:
            return -one.accuracy
        return math.inf if math.isnan(one.loss) else one.loss

    if not evaluations:
        return None
    node = max(evaluations, key=badness)
    return {"node": node, "accuracy": evaluations[node].accuracy, "loss": evaluations[node].loss}


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.{SERIES_DIGITS}g}")
