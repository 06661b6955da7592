"""events.jsonl of a daemon: one line for each thing that happened, bounded in size however long it runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from gossipfl.records import Event

OLDER_FILES = 4

log = logging.getLogger(__name__)


class Journal:
    """Appends events to ``path``; at ``max_bytes`` it becomes ``path.1``, the former ``path.1`` becomes ``path.2``...

    Lines have the form of every record, and the wall clock's ``time`` (UTC) besides. A disk that takes no more is
    reported once, and what happens meanwhile is left out: the journal never stops the daemon.
    """

    def __init__(self, path: Path, site: str, max_bytes: int) -> None:
        self._path = path
        self._site = site
        self._max_bytes = max_bytes
        self._file: TextIO | None = None
        self._size = 0
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, t_s: float, event: str, fields: Mapping[str, Any]) -> None:
        """Write an event that happened ``t_s`` seconds after the start; it reaches the file with ``flush``."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = Event(t_s, event, self._site, {"time": time, **fields}).as_json() + "\n"
        try:
            file = self._opened(len(line))
            file.write(line)
            self._size += len(line)
        except OSError as error:
            self._lose(error)

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        if self._file is None:
            return
        try:
            self._file.flush()
        except OSError as error:
            self._lose(error)
            return
        if self.lost:
            log.warning("events are written again; %d were lost", self.lost)
            self.lost = 0

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._lose(error)
            self._file = None

    def _opened(self, more_bytes: int) -> TextIO:
        if self._file is not None and self._size + more_bytes > self._max_bytes:
            self._file.close()
            self._file = None
            self._shift()
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
            self._size = self._file.tell()
        return self._file

    def _shift(self) -> None:
        for number in range(OLDER_FILES, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path

    def _lose(self, error: OSError) -> None:
        if not self.lost:
            log.error("events cannot be written to %s: %s; the site works on without", self._path, error.strerror)
        self.lost += 1
