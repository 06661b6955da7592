"""An experiment's results as columns: a row a cell, whatever has come of it by now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gossipfl.errors import ConfigError
from gossipfl.experiments.folder import RESULTS_FILE, Index, read_index
from gossipfl.experiments.grid import ANY
from gossipfl.experiments.ledger import DONE, FAILED, Record, read_records
from gossipfl.settings import choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MISSING = "missing"
SPREADS = ("mean", "min", "max", "std")
SCALARS = ("consensus_distance", "bytes_per_node_per_round", "wall_s")

Setting = tuple[tuple[str, str], ...]
"""Some axes, each with one label."""


@dataclass(frozen=True)
class Results:
    """All cells of an experiment, in the order of its index.

    ``axes`` maps each axis to its labels in order; ``labels`` to the label of each row; ``records`` holds each row's
    record, None while it is missing. ``strange`` counts results of cells that the experiment no longer has.
    """

    path: Path
    name: str
    axes: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, Sequence[str]]
    seeds: Sequence[int]
    hashes: Sequence[str]
    records: Sequence[Record | None]
    report: Mapping[str, Any]
    strange: int = 0

    @cached_property
    def statuses(self) -> list[str]:
        """``done``, ``failed`` or ``missing`` for each row."""
        return [MISSING if record is None else str(record.get("status")) for record in self.records]

    def count(self, status: str) -> int:
        """Return the number of cells with a status."""
        return self.statuses.count(status)

    @cached_property
    def metrics(self) -> dict[str, Numbers]:
        """Every number that some cell has, as a column; NaN where a cell does not have it.

        A spread gives ``accuracy`` (the mean over honest nodes), ``accuracy_min``, ``accuracy_max``, ``accuracy_std``;
        verdicts give the shares ``honest_rejected`` and ``byzantine_accepted``.
        """
        rows = [_numbers(record) for record in self.records]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}

    def metric(self, name: str) -> Numbers:
        """Return a column; raises ConfigError for one that no cell has."""
        if name not in self.metrics:
            raise ConfigError(f'{self.path}: no cell has the metric "{name}"{choose(name, self.metrics)}')
        return self.metrics[name]

    def axis(self, name: str) -> Sequence[str]:
        """Return each row's label on an axis; raises ConfigError for an axis that the experiment does not have."""
        if name not in self.axes:
            raise ConfigError(f'{self.path}: "{name}" is no axis of {self.name}{choose(name, self.axes)}')
        return self.labels[name]

    def settings(self, without: Iterable[str]) -> list[Setting]:
        """Return all combinations of labels of the axes but those ``without``, in order of first appearance.

        Combinations that stand for several (``any``) are left out where there are others: their rows belong to each.
        """
        names = [name for name in self.axes if name not in set(without)]
        rows = zip(*(self.labels[name] for name in names), strict=True) if names else [()]
        found = dict.fromkeys(tuple(zip(names, labels, strict=True)) for labels in rows)
        exact = [one for one in found if all(label != ANY for _, label in one)]
        return exact or list(found)

    def rows_of(self, setting: Setting) -> NDArray[np.int64]:
        """Return the rows of a setting; a row that reads ``any`` belongs to every label."""
        fits = np.ones(len(self.hashes), dtype=bool)
        for name, label in setting:
            column = self._column(name)
            fits &= (column == label) | (column == ANY)
        return np.flatnonzero(fits)

    def _column(self, name: str) -> NDArray[np.str_]:
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, NDArray[np.str_]]:
        return {name: np.array(labels, dtype=np.str_) for name, labels in self.labels.items()}


def load_results(path: Path) -> Results:
    """Read the experiment in the folder ``path``, finished or not; raises DataError where there is none."""
    return join(path, read_index(path), read_records(path / RESULTS_FILE))


def join(path: Path, index: Index, records: Mapping[str, Record]) -> Results:
    """Return the cells of ``index`` with their records."""
    hashes = [hash_ for hash_, _, _ in index.cells]
    by_axis = list(zip(*(labels for _, labels, _ in index.cells), strict=True))
    return Results(
        path=path,
        name=index.name,
        axes=index.axes,
        labels=dict(zip(index.axes, by_axis, strict=True)),
        seeds=[seed for _, _, seed in index.cells],
        hashes=hashes,
        records=[records.get(hash_) for hash_ in hashes],
        report=index.report,
        strange=len(records.keys() - set(hashes)),
    )


def higher_is_better(metric: str) -> bool:
    """Say which way a metric is better; of those that are known here only accuracies grow."""
    return metric.startswith("accuracy") and metric != "accuracy_std"


def setting_title(setting: Setting) -> str:
    """Return a setting as text, nothing where there is only one."""
    return ", ".join(f"{name} {label}" for name, label in setting)


def main_metric(results: Results) -> str:
    """Return what tables show if nobody says: accuracy, or the task's first metric, or the loss."""
    for name in ("accuracy", *_own_metrics(results), "loss"):
        if name in results.metrics:
            return name
    return "accuracy"


def is_failed(record: Record | None) -> bool:
    """Say whether a record tells of a failure."""
    return record is not None and record.get("status") == FAILED


def _own_metrics(results: Results) -> list[str]:
    first = next((record for record in results.records if record is not None and record.get("metrics")), None)
    return [] if first is None else list(first["metrics"])


def _numbers(record: Record | None) -> dict[str, float]:
    if record is None or record.get("status") != DONE:
        return {}
    found: dict[str, float] = {}
    spreads = {"accuracy": record["accuracy"], "loss": record["loss"], **record["metrics"]}
    for name, spread in spreads.items():
        for part in SPREADS if spread else ():
            if spread[part] is not None:
                found[name if part == "mean" else f"{name}_{part}"] = spread[part]
    found.update({name: record[name] for name in SCALARS if record.get(name) is not None})
    for kind, verdict in (("honest", "rejected"), ("byzantine", "accepted")):
        total = record["filter"][f"{kind}_accepted"] + record["filter"][f"{kind}_rejected"]
        if total:
            found[f"{kind}_{verdict}"] = record["filter"][f"{kind}_{verdict}"] / total
    return found
