"""An experiment's folder: a copy of its spec, the index of its cells, their results, and a lock.

spec.toml       the file, as it was last run
cells.jsonl     its axes (first line), then a line for each cell
results.jsonl   a line for each outcome
log.txt         what workers printed, and the tracebacks of cells that failed
runs/<hash>/    a run's full records, with records = "full"
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossipfl import __version__
from gossipfl.errors import ConfigError, DataError
from gossipfl.experiments.grid import RESULT_SCHEMA, Experiment

SPEC_FILE = "spec.toml"
CELLS_FILE = "cells.jsonl"
RESULTS_FILE = "results.jsonl"
LOG_FILE = "log.txt"
LOCK_FILE = "lock"
RUNS_FOLDER = "runs"


@dataclass(frozen=True, slots=True)
class Index:
    """What a report needs to know of an experiment: its name, axes with their labels in order, and all its cells."""

    name: str
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    report: Mapping[str, Any]
    cells: tuple[tuple[str, tuple[str, ...], int], ...]
    """Hash, labels aligned with ``axes``, seed."""


@contextmanager
def claimed(out: Path, *, resume: bool) -> Iterator[None]:
    """Hold the folder ``out`` against every other run; the kernel lets go of it whenever this process ends.

    Raises ConfigError where another run writes there, or where it holds an experiment and ``resume`` is false.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}; choose another --out") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(f"{out}: process {holder} writes there now; wait, or choose another --out") from None
        if not resume and (out / CELLS_FILE).exists():
            raise ConfigError(f"{out}: holds an experiment; add --resume to go on with it, or choose another --out")
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def write_index(out: Path, experiment: Experiment) -> None:
    """Write the copy of the spec and the index of its cells, each in one step."""
    grid, document = experiment.grid, experiment.document
    header = {
        "schema": RESULT_SCHEMA,
        "version": __version__,
        "name": document.name,
        "axes": {name: list(labels) for name, labels in grid.axes.items()},
        "seeds": list(grid.seeds),
        "report": document.report.model_dump(mode="json"),
    }
    _replace(out / SPEC_FILE, [experiment.text])
    cells = ([cell.hash, list(cell.labels), cell.seed] for cell in grid.cells)
    _replace(out / CELLS_FILE, (json.dumps(line, ensure_ascii=False) + "\n" for line in (header, *cells)))


def read_index(path: Path) -> Index:
    """Read the index in the folder ``path``; raises DataError where there is none, or a broken one."""
    index = path / CELLS_FILE
    try:
        with index.open(encoding="utf-8") as lines:
            header = json.loads(next(lines))
            cells = tuple((hash_, tuple(labels), seed) for hash_, labels, seed in map(json.loads, lines))
    except FileNotFoundError:
        raise DataError(f"{path}: holds no experiment; give the folder that experiment run wrote (its --out)") from None
    except (OSError, ValueError, TypeError, StopIteration) as error:
        raise DataError(f"{index}: cannot be read: {error}; experiment run --resume writes it again") from None
    axes = {name: tuple(labels) for name, labels in header["axes"].items()}
    return Index(header["name"], axes, tuple(header["seeds"]), header["report"], cells)


def _replace(path: Path, parts: Iterator[str] | list[str]) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
