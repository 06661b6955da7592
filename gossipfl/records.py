"""The records that every run leaves, simulated or real, and how they are read back.

A run's folder holds ``events.jsonl`` (one JSON object a line for each thing that happened),
``metrics.parquet`` (a row per node and round), ``summary.json``, ``spec.json`` and ``topology.json`` (the
graph, and what each directed edge accepted and rejected). Reports, dashboards and tests read these files and
nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from gossipfl.errors import ConfigError, DataError
from gossipfl.summary import RunStatistics

if TYPE_CHECKING:
    import pyarrow as pa

    from gossipfl.config import RunSpec
    from gossipfl.topology.graph import Topology

EVENTS_FILE = "events.jsonl"
METRICS_FILE = "metrics.parquet"
SUMMARY_FILE = "summary.json"
SPEC_FILE = "spec.json"
TOPOLOGY_FILE = "topology.json"
RECORD_FILES = (EVENTS_FILE, METRICS_FILE, SUMMARY_FILE, SPEC_FILE, TOPOLOGY_FILE)

CHUNK_ROWS = 8192
"""Rows that wait as Python objects before they are packed into columns (about 150 bytes a row)."""

FLUSH_S = 1.0
"""How much of the run's own time may pass before written events reach the file."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened ``t_s`` seconds after the start, at ``node`` (None: in the run as a whole).

    ``accept`` and ``reject`` name the neighbour in ``fields["peer"]``, with ``round``, ``distance``,
    ``threshold``.
    """

    t_s: float
    event: str
    node: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """Return the event as one line of JSON; numbers that are not finite become null."""
        entry = {"t": round(self.t_s, 6), "node": self.node, "event": self.event, **self.fields}
        try:
            return json.dumps(entry, allow_nan=False, separators=(",", ":"), default=str)
        except ValueError:
            return as_json_line(entry)


@dataclass(frozen=True, slots=True)
class NodeRound:
    """One node's round: a row of ``metrics.parquet``; None where the run cannot know.

    ``loss`` is the mean training loss; ``test_loss``, ``test_accuracy`` and the task's own ``metrics`` are
    measured on held-out data after mixing, in rounds that evaluate. Verdicts count neighbours by what they
    truly are. ``missed`` neighbours gave nothing this round; ``staleness_max`` is the age in rounds of the
    oldest replica used. ``train_s`` is wall time, ``train_cpu_s`` CPU time of local training, ``round_s`` the
    whole round.
    """

    node: int
    name: str
    byzantine: bool
    round: int
    t_s: float
    loss: float | None
    test_loss: float | None = None
    test_accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    accepted_honest: int = 0
    accepted_byzantine: int = 0
    rejected_honest: int = 0
    rejected_byzantine: int = 0
    missed: int = 0
    bytes_sent: int | None = None
    bytes_received: int | None = None
    train_s: float | None = None
    train_cpu_s: float | None = None
    round_s: float | None = None
    staleness_max: int = 0


COLUMN_TYPES = {"str": "string", "bool": "bool_", "int": "int64", "float": "float64"}
COLUMNS = {
    column.name: COLUMN_TYPES[str(column.type).partition(" ")[0]]
    for column in fields(NodeRound)
    if column.name != "metrics"
}
"""Columns of ``metrics.parquet`` with the names of their Arrow types; the task's follow as ``metric_...``."""


class Progress(Protocol):
    """Someone who watches a run: told of everything that is recorded, as it comes."""

    def on_event(self, event: Event) -> None:
        """See an event."""

    def on_round(self, row: NodeRound) -> None:
        """See a node's finished round."""


class RunRecords:
    """Writes one run's records into ``out``; a context manager that saves on failure too.

    Refuses a folder that already holds records (ConfigError) unless ``force``; the old ones go when the first
    event or round of the new run comes, and a run that fails before its first round leaves nothing.
    ``started_s`` is the monotonic time at which the command started.
    """

    def __init__(self, out: Path, *, force: bool = False, started_s: float | None = None) -> None:
        self.out = out
        self.started_s = started_s
        self.statistics = RunStatistics()
        self._made = _claim(out, force)
        self._documents: dict[str, Any] = {}
        self._verdicts: dict[tuple[str, str], list[int]] = {}
        self._rows: list[NodeRound] = []
        self._chunks: list[pa.Table] = []
        self._events: TextIO | None = None
        self._flushed_s = 0.0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_event(self, event: Event) -> None:
        """Write an event."""
        if event.event in {"accept", "reject"}:
            accepted = event.event == "accept"
            self.count_verdicts(event.node or "", str(event.fields.get("peer")), accepted, not accepted)
        self.statistics.add_event(event)
        file = self._started()
        file.write(event.as_json() + "\n")
        if event.t_s - self._flushed_s >= FLUSH_S:
            file.flush()
            self._flushed_s = event.t_s

    def count_verdicts(self, node: str, peer: str, accepted: int, rejected: int) -> None:
        """Count what ``node`` decided about ``peer``, where a line for each verdict would be too many."""
        counts = self._verdicts.setdefault((node, peer), [0, 0])
        counts[0] += accepted
        counts[1] += rejected

    def add_round(self, row: NodeRound) -> None:
        """Take a node's round; rows reach the file when the records are closed."""
        self._started()
        self.statistics.add_round(row)
        self._rows.append(row)
        if len(self._rows) >= CHUNK_ROWS:
            self._pack()

    def write_spec(self, spec: RunSpec) -> None:
        """Write ``spec.json``."""
        self._document(SPEC_FILE, spec.as_dict())

    def write_topology(self, topology: Topology, names: Mapping[int, str] | None = None) -> None:
        """Write ``topology.json``; ``names`` of the nodes in events and rows default to ``node-<i>``."""
        given = names or {}
        document = {
            "name": topology.name,
            "nodes": topology.nodes,
            "names": [given.get(node, f"node-{node}") for node in range(topology.nodes)],
            "edges": topology.edges,
            "positions": topology.positions,
            "labels": topology.labels,
        }
        self._document(TOPOLOGY_FILE, document)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` in one step: a reader sees the whole of it, or none."""
        self._started()
        self._document(SUMMARY_FILE, summary)

    @property
    def summary(self) -> Mapping[str, Any] | None:
        """The summary, once it has been written."""
        return self._documents.get(SUMMARY_FILE)

    def close(self) -> None:
        """Save everything, or leave no trace of a run without a round or a summary; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._events is not None:
            self._events.close()
            if self.statistics.rounds_done or SUMMARY_FILE in self._documents:
                self._save()
            else:
                _remove(self.out)
        if self._made and not any(self.out.iterdir()):
            self.out.rmdir()

    def _started(self) -> TextIO:
        if self._closed:
            raise ValueError("the records are closed")
        if self._events is None:
            _remove(self.out)
            self._events = (self.out / EVENTS_FILE).open("w", encoding="utf-8")
            for name, value in self._documents.items():
                write_json(self.out / name, value)
        return self._events

    def _document(self, name: str, value: Any) -> None:
        self._documents[name] = value
        if self._events is not None:
            write_json(self.out / name, value)

    def _save(self) -> None:
        if TOPOLOGY_FILE in self._documents:
            verdicts = [[node, peer, *counts] for (node, peer), counts in sorted(self._verdicts.items())]
            self._document(TOPOLOGY_FILE, {**self._documents[TOPOLOGY_FILE], "verdicts": verdicts})
        self._pack()
        self._write_metrics()

    def _pack(self) -> None:
        import pyarrow as pa

        metrics = dict.fromkeys(name for row in self._rows for name in row.metrics)
        schema = pa.schema(
            [(column, getattr(pa, kind)()) for column, kind in COLUMNS.items()]
            + [(f"metric_{name}", pa.float64()) for name in metrics]
        )
        data = {column: [getattr(row, column) for row in self._rows] for column in COLUMNS}
        for name in metrics:
            data[f"metric_{name}"] = [row.metrics.get(name) for row in self._rows]
        self._chunks.append(pa.table(data, schema=schema))
        self._rows.clear()

    def _write_metrics(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        part = self.out / (METRICS_FILE + ".part")
        pq.write_table(pa.concat_tables(self._chunks, promote_options="default"), part, compression="zstd")
        part.replace(self.out / METRICS_FILE)
        self._chunks.clear()


@dataclass(frozen=True, slots=True)
class RunData:
    """A run's records, read back: ``rounds`` is a ``pyarrow.Table``; what a broken-off run lacks is empty."""

    path: Path
    summary: Mapping[str, Any]
    spec: Mapping[str, Any]
    topology: Mapping[str, Any]
    rounds: pa.Table

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Yield the events in order; a last line cut off by a crash is left out."""
        path = self.path / EVENTS_FILE
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    raise DataError(f"{path}: a line is no JSON: {line[:40]!r}; delete that line") from None


def load_run(path: Path) -> RunData:
    """Read the records in the folder ``path``; raises DataError where there are none, or broken ones."""
    if not any((path / name).exists() for name in RECORD_FILES):
        raise DataError(f"{path}: holds no records; give the folder that a run wrote (its --out)")
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = path / METRICS_FILE
    try:
        rounds = pq.read_table(metrics) if metrics.exists() else pa.table({name: [] for name in COLUMNS})
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{metrics}: is no readable Parquet file: {str(error).splitlines()[0]}") from None
    return RunData(
        path=path,
        summary=_read_json(path / SUMMARY_FILE),
        spec=_read_json(path / SPEC_FILE),
        topology=_read_json(path / TOPOLOGY_FILE),
        rounds=rounds,
    )


def default_out(spec: RunSpec, now: datetime, root: Path = Path("runs")) -> Path:
    """Return a folder that does not exist yet: ``runs/<time>-<short name>``, numbered if need be."""
    base = root / f"{now:%Y%m%d-%H%M%S}-{spec.short_name}"
    out, number = base, 2
    while out.exists():
        out, number = base.with_name(f"{base.name}-{number}"), number + 1
    return out


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON by way of a temporary file; numbers that are not finite become null."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(finite(value), file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def as_json_line(value: Any) -> str:
    """Return ``value`` as JSON on one line; numbers that are not finite become null."""
    return json.dumps(finite(value), separators=(",", ":"), default=str)


def finite(value: Any) -> Any:
    """Return a JSON tree in which NaN and infinities are None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def _claim(out: Path, force: bool) -> bool:
    """Make the folder ``out`` ready; say whether it had to be made."""
    try:
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be a folder: {error.strerror}; choose another --out") from None
    if not force and any((out / name).exists() for name in RECORD_FILES):
        raise ConfigError(f"{out}: holds an earlier run; add --force to replace it, or choose another --out")
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"{out}: may not be written; choose another --out")
    return made


def _remove(out: Path) -> None:
    for name in RECORD_FILES:
        (out / name).unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no readable JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: is no JSON object; was it written by gossipfl?")
    return value
