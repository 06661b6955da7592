"""Traces of base stations: one CSV file per site, a row every two minutes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import DataError

TIME = "time"
CHANNELS = ("down", "up", "rnti_count", "mcs_down", "mcs_up")
"""What is forecast: volumes down and up, users (radio network temporary identifiers), mean coding schemes."""

COLUMNS = (*CHANNELS, "mcs_down_var", "mcs_up_var", "rb_down", "rb_down_var", "rb_up", "rb_up_var")
"""All measured columns; their order in a file does not matter, and other columns are not read."""

LARGEST = 1e30
"""No count, volume or variance comes near it; squares of what is below still fit into a float64."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One site in time order: ``seconds`` (n,) and ``values`` (n, c), NaN where a cell is blank."""

    path: Path
    columns: tuple[str, ...]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def site(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def find_traces(folder: Path, sites: Sequence[str] = ()) -> list[Path]:
    """Return a folder's CSV files by name, or those of ``sites``; raises DataError without any."""
    if not folder.is_dir():
        raise DataError(f"lte-traffic path {folder} is no folder; name the folder that holds the CSV traces")
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".csv" and path.is_file())
    if not paths:
        raise DataError(f"{folder} holds no .csv file; put one trace per site there")
    by_site = {path.stem: path for path in paths}
    for site in sites:
        if site not in by_site:
            raise DataError(f'{folder} has no trace "{site}.csv"; it has: {", ".join(by_site)}')
    return [path for path in paths if not sites or path.stem in sites]


def read_trace(path: Path, columns: Sequence[str]) -> Trace:
    """Read ``columns`` of one trace; blank cells become NaN.

    Raises DataError with file, line and column for a missing column, a row of another length, a time that
    cannot be read or does not grow, and a value that is no finite number from 0 to LARGEST.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _parse(csv.reader(stream, strict=True), path, tuple(columns))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV text in UTF-8: {error}") from error


class _Rows(Protocol):
    """What ``csv.reader`` returns: rows of cells, and the line of the file that was read last."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...

    def __next__(self) -> list[str]: ...


def _parse(rows: _Rows, path: Path, columns: tuple[str, ...]) -> Trace:
    header = [name.strip() for name in next(rows, [])]
    for name in (TIME, *columns):
        if header.count(name) != 1:
            problem = "no" if name not in header else "more than one"
            raise DataError(f'{path} line 1 has {problem} column "{name}"; the header must name it once')
    clock, places = header.index(TIME), [(header.index(name), name) for name in columns]
    seconds: list[float] = []
    values: list[list[float]] = []
    for row in rows:
        if not row:
            continue
        where = f"{path} line {rows.line_num}"
        if len(row) != len(header):
            raise DataError(f"{where} has {len(row)} cells, the header has {len(header)}; mend or remove the row")
        seconds.append(_time(row[clock], where))
        if len(seconds) > 1 and seconds[-1] <= seconds[-2]:
            raise DataError(f'{where}, column "{TIME}": {row[clock]} is not after the row before; sort by time')
        values.append([_value(row[place], where, name) for place, name in places])
    table = np.array(values, dtype=np.float64).reshape(len(values), len(columns))
    return Trace(path, columns, np.array(seconds, dtype=np.float64), table)


def _time(cell: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(cell.strip())
    except ValueError:
        raise DataError(f'{where}, column "{TIME}": {cell!r} is no time; write it like 2018-03-28 15:56:00') from None
    # A time without a zone is taken as it stands: only differences between rows are ever used.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _value(cell: str, where: str, column: str) -> float:
    text = cell.strip()
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LARGEST:
        raise DataError(
            f'{where}, column "{column}": {cell!r} is no finite number from 0 to {LARGEST:g}; '
            "mend it, or leave the cell blank where nothing was measured"
        )
    return value
