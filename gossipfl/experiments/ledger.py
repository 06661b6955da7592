"""``results.jsonl``: one line for each outcome of a cell, only ever appended to, by one process.

A later line of the same cell replaces an earlier one. Lines are written whole and reach the disk within ``SYNC_S``
seconds; a last line that a crash has cut off is dropped.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gossipfl.errors import DataError
from gossipfl.experiments.executors import Outcome
from gossipfl.experiments.grid import RESULT_SCHEMA, Grid, differences
from gossipfl.records import as_json_line

SYNC_S = 2.0
DONE, FAILED = "done", "failed"

Record = Mapping[str, Any]


class Ledger:
    """The open file at ``path``, cut to its whole lines; a context manager. ``now`` tells monotonic seconds."""

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._file = path.open("ab", buffering=0)
        whole = _whole_bytes(path)
        if whole < path.stat().st_size:
            self._file.truncate(whole)
        self._synced_s = now()
        self._dirty = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._sync()
        finally:
            self._file.close()

    def append(self, records: Sequence[Record]) -> None:
        """Append records, possibly none; call it at least every ``SYNC_S`` to keep what the module promises."""
        view = memoryview("".join(as_json_line(record) + "\n" for record in records).encode())
        while view:
            view = view[self._file.write(view) :]
            self._dirty = True
        if self._dirty and self._now() - self._synced_s >= SYNC_S:
            self._sync()

    def _sync(self) -> None:
        if self._dirty:
            os.fsync(self._file.fileno())
        self._synced_s, self._dirty = self._now(), False


def record_of(outcome: Outcome, grid: Grid) -> Record:
    """Return the line of an outcome: which cell it is of, and its results or its error."""
    cell = outcome.cell
    results = {key: value for key, value in outcome.result.items() if key != "trace"}
    return {
        "schema": RESULT_SCHEMA,
        "hash": cell.hash,
        "status": DONE if outcome.error is None else FAILED,
        "labels": dict(zip(grid.axes, cell.labels, strict=True)),
        "seed": cell.seed,
        "engine": cell.engine,
        "spec": differences(cell.spec()),
        "attempts": outcome.attempts,
        **results,
    }


def read_records(path: Path) -> dict[str, Record]:
    """Return the last record of each cell by its hash; raises DataError for a line that no run has written."""
    found: dict[str, Record] = {}
    with _without_collector():
        for number, line in enumerate(_lines(path), start=1):
            try:
                record = json.loads(line)
                found[record["hash"]] = record
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}: line {number} is no result: {line[:40]!r}; delete that line") from None
    return found


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from walking all records again and again while more of them come: half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as lines:
        yield from (line for line in lines if line.endswith(b"\n"))


def _whole_bytes(path: Path) -> int:
    """Return the size of the file up to the end of its last whole line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        at = size
        while at > 0:
            start = max(0, at - (1 << 16))
            file.seek(start)
            cut = file.read(at - start).rfind(b"\n")
            if cut >= 0:
                return start + cut + 1
            at = start
    return 0
