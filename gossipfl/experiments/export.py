"""Results for other programs: ``results.csv`` and ``results.parquet``, a row a cell, and ``series.parquet``."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from gossipfl.experiments.results import Results, is_failed

CSV_FILE = "results.csv"
PARQUET_FILE = "results.parquet"
SERIES_FILE = "series.parquet"


def write_tables(results: Results, folder: Path) -> tuple[Path, ...]:
    """Write all three files into ``folder`` and return their paths; what a cell does not have is empty or null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = flat_columns(results)
    _write_csv(folder / CSV_FILE, columns)
    pq.write_table(pa.table(columns), folder / PARQUET_FILE, compression="zstd")
    pq.write_table(pa.table(series_columns(results)), folder / SERIES_FILE, compression="zstd")
    return folder / CSV_FILE, folder / PARQUET_FILE, folder / SERIES_FILE


def flat_columns(results: Results) -> dict[str, list[Any]]:
    """Return a list for each column, a row for each cell: what it is, what came of it, and all its numbers."""
    records = results.records
    columns: dict[str, list[Any]] = {"hash": list(results.hashes), "seed": list(results.seeds)}
    columns["status"] = list(results.statuses)
    numbers = {
        name: [value if math.isfinite(value) else None for value in column.tolist()]
        for name, column in results.metrics.items()
    }
    ends = {
        "worst_node": [record["worst"]["node"] if record and record.get("worst") else None for record in records],
        "attempts": [record["attempts"] if record else None for record in records],
        "error": [record.get("error") if record and is_failed(record) else None for record in records],
    }
    for name, labels in results.labels.items():
        taken = name in columns or name in numbers or name in ends
        columns[f"axis_{name}" if taken else name] = list(labels)
    return {**columns, **numbers, **ends}


def series_columns(results: Results) -> dict[str, list[Any]]:
    """Return the series of all cells below one another, each row with its cell's hash, labels and seed."""
    names = dict.fromkeys(name for record in results.records for name in (record or {}).get("series", {}))
    columns: dict[str, list[Any]] = {name: [] for name in ("hash", "seed")}
    axes: dict[str, list[Any]] = {name: [] for name in results.axes}
    numbers: dict[str, list[Any]] = {name: [] for name in names}
    for row, record in enumerate(results.records):
        series = (record or {}).get("series", {})
        length = len(series.get("round", ()))
        columns["hash"] += [results.hashes[row]] * length
        columns["seed"] += [results.seeds[row]] * length
        for name in axes:
            axes[name] += [results.labels[name][row]] * length
        for name in numbers:
            numbers[name] += series.get(name) or [None] * length
    labelled = {f"axis_{name}" if name in columns or name in numbers else name: axes[name] for name in axes}
    return {**columns, **labelled, **numbers}


def _write_csv(path: Path, columns: dict[str, list[Any]]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    part.replace(path)
