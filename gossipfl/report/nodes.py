"""A line per node: how it ended, whom it filtered, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gossipfl.report.series import Rows

if TYPE_CHECKING:
    from gossipfl.records import RunData

NodeRow = Mapping[str, Any]

LAST = ("test_accuracy", "test_loss", "loss")
SUMS = ("accepted_honest", "rejected_honest", "accepted_byzantine", "rejected_byzantine", "missed")
MEDIANS = ("round_s", "train_s")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: its title, the key in a row, and the format of a number."""

    title: str
    key: str
    format: str = ""

    def cell(self, row: NodeRow) -> str:
        """Return the cell's text; a dash where the value is unknown."""
        value = row.get(self.key)
        if value is None or (isinstance(value, float) and not np.isfinite(value)):
            return "–"
        return format(value, self.format)


def node_rows(run: RunData) -> list[NodeRow]:
    """Return a mapping per node, in order of node number."""
    if not run.rounds.num_rows:
        return []
    rows = Rows(run.rounds)
    metrics = [name for name in run.rounds.column_names if name.startswith("metric_")]
    order = np.lexsort((rows.column("round"), rows.column("node")))
    nodes = rows.column("node")[order]
    numeric = {name: rows.column(name)[order] for name in ("round", "bytes_sent", *LAST, *SUMS, *MEDIANS, *metrics)}
    names = run.rounds.column("name").to_pylist()
    flags = run.rounds.column("byzantine").to_pylist()
    digests = run.summary.get("vector_digest") or {}
    found: list[NodeRow] = []
    for node in np.unique(nodes):
        place = slice(*np.searchsorted(nodes, [node, node + 1]))
        of = {name: values[place] for name, values in numeric.items()}
        first = order[place.start]
        row: dict[str, Any] = {"name": names[first], "byzantine": flags[first]}
        row["role"] = "Byzantine" if row["byzantine"] else "honest"
        row["rounds"] = int(of["round"].max()) + 1
        row.update({name: _last(of[name]) for name in (*LAST, *metrics)})
        row.update({name: int(np.nansum(of[name])) for name in SUMS})
        row.update({name: _median(of[name]) for name in MEDIANS})
        row["kilobytes"] = _mean(of["bytes_sent"] / 1000)
        row["digest"] = str(digests[str(int(node))])[:12] if str(int(node)) in digests else None
        found.append(row)
    return found


def node_columns(rows: Sequence[NodeRow]) -> list[Column]:
    """Return the columns that have something to show."""
    metrics = [key for key in rows[0] if key.startswith("metric_")]
    columns = [
        Column("node", "name"),
        Column("role", "role"),
        Column("rounds", "rounds", "d"),
        Column("test accuracy", "test_accuracy", ".3f"),
        Column("test loss", "test_loss", ".4f"),
        *(Column(key.removeprefix("metric_"), key, ".4f") for key in metrics),
        Column("training loss", "loss", ".4f"),
        Column("honest accepted", "accepted_honest", "d"),
        Column("honest rejected", "rejected_honest", "d"),
        Column("Byz. accepted", "accepted_byzantine", "d"),
        Column("Byz. rejected", "rejected_byzantine", "d"),
        Column("missed", "missed", "d"),
        Column("kB sent a round", "kilobytes", ".1f"),
        Column("round (s)", "round_s", ".3f"),
        Column("training (s)", "train_s", ".3f"),
        Column("vector digest", "digest"),
    ]
    return [column for column in columns if any(column.cell(row) != "–" for row in rows)]


def _known(values: Any) -> Any:
    return values[np.isfinite(values)]


def _last(values: Any) -> float | None:
    known = _known(values)
    return float(known[-1]) if known.size else None


def _median(values: Any) -> float | None:
    known = _known(values)
    return float(np.median(known)) if known.size else None


def _mean(values: Any) -> float | None:
    known = _known(values)
    return float(known.mean()) if known.size else None
