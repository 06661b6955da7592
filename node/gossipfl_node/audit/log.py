"""The audit log as the daemon writes it."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from gossipfl.digest import digest
from gossipfl.identity import Identity, Verifier
from gossipfl.records import as_json_line
from gossipfl_node.audit.entries import (
    AUDIT_FILE,
    BEFORE_ALL,
    HEAD_FILE,
    Debris,
    Entry,
    Kind,
    Place,
    aside,
    first_of,
    older_files,
    open_file,
    parse_entry,
    read_entries,
    read_head,
    sign_entry,
    sign_head,
    utc_now,
)
from gossipfl_node.state import write_atomically

if TYPE_CHECKING:
    from gossipfl_node.metrics import Figure

MAX_BYTES = 4 << 20
OLDER_FILES = 15
MAX_WAITING = 1024
"""Entries that wait for ``flush``, or for a disk that takes none now; what comes on top is lost, and counted."""
MAX_FIELDS_BYTES = 16 * 1024
BATCH = 64
"""Entries that share one sync of the disk."""

_OPEN = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

log = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """An entry that has no number yet."""

    time: str
    kind: str
    fields: str


class AuditLog:
    """Appends entries; ``add`` touches no disk, and ``flush`` brings to it what waits, on whatever thread.

    A disk that takes no more is reported once and never stops the daemon: entries wait, ``MAX_WAITING`` at most.
    """

    def __init__(
        self, folder: Path, identity: Identity, max_bytes: int = MAX_BYTES, older_files: int = OLDER_FILES
    ) -> None:
        self.lost = 0
        self._folder = folder
        self._path = folder / AUDIT_FILE
        self._identity = identity
        self._verifier = Verifier(identity.public_key)
        self._max_bytes = max_bytes
        self._older_files = older_files
        self._waiting: deque[_Waiting] = deque()
        self._untold, self._untold_since = 0, ""
        self._queue_lock = threading.Lock()
        self._disk_lock = threading.Lock()
        self._descriptor: int | None = None
        self._size = 0
        self._first: int | None = None
        self._end = BEFORE_ALL
        self._head = BEFORE_ALL
        self._opening: list[_Waiting] = []
        self._surplus: list[Path] = []
        self._failing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, kind: Kind, fields: Mapping[str, Any]) -> None:
        """Put an entry in line; fields that are too long, or no JSON, are replaced by what can be said of them."""
        entry = _Waiting(utc_now(), kind, _as_json(fields))
        with self._queue_lock:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(entry)
            else:
                self._lose(1)

    def flush(self) -> None:
        """Bring what waits to the disk; what it does not take waits for the next time."""
        with self._disk_lock:
            if not self._waiting and self._head == self._end:
                return
            try:
                self._open()
                while (batch := self._take()) or self._opening:
                    self._append(batch)
                    if self._size >= self._max_bytes:
                        self._put_aside()
                self._write_head()
            except OSError as error:
                self._fail(error)
                return
            if self._failing:
                log.warning("the audit log is written again; %d entries were lost since the start", self.lost)
                self._failing = False

    def _fail(self, error: OSError) -> None:
        if not self._failing:
            log.error("audit log %s cannot be written: %s; entries wait", self._path, error.strerror)
        self._failing = True

    def close(self) -> None:
        """Flush, and close the file."""
        self.flush()
        if self._waiting:
            log.error("%d audit entries could not be written, and are lost", len(self._waiting))
        self._close()

    def figures(self) -> list[Figure]:
        """Return what ``Metrics.contribute`` takes."""
        from gossipfl_node.metrics import Figure

        return [
            Figure("gossipfl_audit_entries_total", "Entries of the audit log since it was begun.", self._end.n + 1),
            Figure("gossipfl_audit_lost_total", "Audit entries that could not be kept.", self.lost),
            Figure("gossipfl_audit_waiting_entries", "Audit entries that are not on the disk yet.", len(self._waiting)),
        ]

    # ------------------------------------------------------------------------------------------ what waits

    def _lose(self, count: int) -> None:
        self.lost += count
        self._untold_since = self._untold_since or utc_now()
        self._untold += count

    def _take(self) -> list[_Waiting]:
        """Take what goes to the disk next, and after the last of it, how many were lost."""
        with self._queue_lock:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if self._untold and not self._waiting:
                told = {"count": self._untold, "since": self._untold_since}
                batch.append(_Waiting(utc_now(), "lost", as_json_line(told)))
                self._untold, self._untold_since = 0, ""
        return batch

    def _return(self, batch: Sequence[_Waiting]) -> None:
        """Put back what was not written; or count it as lost, where it is not known what was."""
        with self._queue_lock:
            if self._descriptor is None:
                self._lose(len(batch))
            else:
                self._waiting.extendleft(reversed(batch))

    # ------------------------------------------------------------------------------------------ the disk

    def _append(self, batch: Sequence[_Waiting]) -> None:
        assert self._descriptor is not None
        end, lines = self._end, []
        for entry in (*self._opening, *batch):
            line, end = sign_entry(end, *entry, self._identity)
            lines.append(line)
        content = b"\n".join([*lines, b""])
        try:
            _write_whole(self._descriptor, content)
            os.fsync(self._descriptor)
        except OSError:
            self._cut_back()
            self._return(batch)
            raise
        if self._first is None:
            self._first = self._end.n + 1
        self._size += len(content)
        self._end = end
        self._opening = []
        for path in self._surplus:  # only now: the anchor that says so is on the disk
            with suppress(OSError):
                path.unlink()
        self._surplus = []

    def _cut_back(self) -> None:
        """Undo half a write; where even that fails, the file is read again before the next."""
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            self._close()

    def _open(self) -> None:
        """Open the file and find the end of the chain, unless it is open and as it was left."""
        if self._descriptor is not None:
            if self._is_untouched():
                return
            log.error("%s was changed by somebody else; what is gone will be told in it", self._path)
            self._close()
        self._descriptor = os.open(self._path, _OPEN, 0o600)
        try:
            self._recover(self._descriptor)
        except OSError:
            self._close()
            raise

    def _is_untouched(self) -> bool:
        assert self._descriptor is not None
        here = os.fstat(self._descriptor)
        with suppress(OSError):
            return here.st_size == self._size and os.path.samestat(here, self._path.stat())
        return False

    def _recover(self, descriptor: int) -> None:
        """Find the end of the chain, and what must be told first: what a crash left behind, and what is gone."""
        older = older_files(self._folder)
        first, found, debris = self._scan(self._path)
        for path in reversed(older):
            if found == BEFORE_ALL:
                _, found, _ = self._scan(path)
        head = self._known_head()
        told: dict[str, Any] = {}
        if head is None and self._end == BEFORE_ALL and found.n > BATCH:  # the first batch may be killed without one
            told["headless"] = True
        self._end = max(found, self._end, head or BEFORE_ALL, key=lambda place: place.n)
        if debris is not None:
            told["torn"] = debris.told()
        if found.n < self._end.n:
            told["missing"] = {"from": found.n + 1, "to": self._end.n}
        self._first, self._size = first, os.fstat(descriptor).st_size
        if self._size and os.pread(descriptor, 1, self._size - 1) != b"\n":
            _write_whole(descriptor, b"\n")
            self._size += 1
        _sync_folder(self._folder)
        self._opening = []
        if first is None:
            self._begin(told, older)
        elif told:
            self._opening = [_Waiting(utc_now(), "recovered", as_json_line(told))]

    def _begin(self, told: Mapping[str, Any], older: Sequence[Path]) -> None:
        """Put an anchor at the beginning of a file."""
        oldest = first_of(older[0]) if older else self._end.n + 1
        self._opening = [_Waiting(utc_now(), "anchor", as_json_line({**told, "oldest": oldest}))]

    def _scan(self, path: Path) -> tuple[int | None, Place, Debris | None]:
        """Return the first entry's number, the last one's place, and what comes after it that is no entry."""
        first: int | None = None
        last: Entry | None = None
        debris: Debris | None = None
        for verifier in (None, self._verifier):  # to verify each is slow, and needed only where the last is forged
            first, last, debris = None, None, None
            with open_file(path) as file:
                for _, item in read_entries(file, verifier):
                    if isinstance(item, Debris):
                        debris = item
                    elif last is None or item.n > last.n:
                        first, last, debris = item.n if first is None else first, item, None
            if last is not None and parse_entry(last.line, self._verifier) is not None:
                break
        return first, BEFORE_ALL if last is None else last.place, debris

    def _known_head(self) -> Place | None:
        with suppress(OSError):
            return read_head(self._folder, self._verifier)
        return None

    def _put_aside(self) -> None:
        """Begin a new file; the oldest are deleted when there are too many."""
        assert self._first is not None
        self._path.rename(aside(self._folder, self._first))
        self._close()
        older = older_files(self._folder)
        surplus = max(len(older) - self._older_files, 0)
        self._size, self._first = 0, None
        self._descriptor = os.open(self._path, _OPEN | os.O_EXCL, 0o600)
        _sync_folder(self._folder)
        self._begin({}, older[surplus:])
        self._surplus = older[:surplus]

    def _write_head(self) -> None:
        if self._head != self._end:
            write_atomically(self._folder / HEAD_FILE, sign_head(self._end, self._identity))
            self._head = self._end

    def _close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def _as_json(fields: Mapping[str, Any]) -> str:
    try:
        text = as_json_line(fields)
    except (ValueError, TypeError, RecursionError):
        return '{"unreadable":"these fields are no JSON"}'
    if len(text) > MAX_FIELDS_BYTES:
        return as_json_line({"oversized": len(text), "blake3": digest(text.encode("ascii")).hex()})
    return text


def _write_whole(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
