"""What can be said of an audit log afterwards: by its own site, another member, or whoever has the files and a peer id.

What nobody can find: entries taken from the end together with the head of that time (a copy of the folder put back, the
folder deleted), unless ``verify`` is told ``at_least`` how many there were, from a scraped
``gossipfl_audit_entries_total``, say; what a site never wrote, or had not yet brought to the disk when it was killed;
and anything done by whoever holds the site's key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossipfl.identity import PeerId, Verifier, peer_id_of, public_key_of
from gossipfl_node.audit.entries import (
    AUDIT_FILE,
    HEAD_FILE,
    Debris,
    Entry,
    Place,
    older_files,
    open_file,
    read_entries,
    read_head,
)

MAX_LINES = 100
"""Findings, and notes, that are told; of further ones, how many."""
TRIES = 3
"""How often a log is read whose daemon puts a file aside meanwhile."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``verify`` made of a log: ``findings`` are what should not be, ``notes`` what one may want to know.

    ``entries`` were read whose signature holds, the ``first`` and the ``last`` of them with these numbers and times;
    ``kinds`` counts them.
    """

    findings: tuple[str, ...]
    notes: tuple[str, ...]
    entries: int
    first: tuple[int, str] | None
    last: tuple[int, str] | None
    kinds: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def verify(where: Path | Sequence[Path], key: bytes | PeerId, *, at_least: int = 0) -> Verdict:
    """Check the log in a folder, or in files in their order, against the key (or peer id) of its site.

    Reads each file once, in little memory, and raises for no content of them: only ConfigError for a mistyped peer id
    and ValueError for a weak key. A log that is being written may have lines that its head does not name yet.
    """
    public_key = public_key_of(key) if isinstance(key, str) else key
    inspection = _Inspection(Verifier(public_key), peer_id_of(public_key))
    try:
        if isinstance(where, Path) and where.is_dir():
            for _ in range(TRIES):
                inspection = _Inspection(Verifier(public_key), peer_id_of(public_key))
                inspection.read_head(where)  # before the files, which a running daemon writes first
                older = older_files(where)
                inspection.read([*older, where / AUDIT_FILE])
                if older == older_files(where):
                    break
        else:
            files = [where] if isinstance(where, Path) else list(where)
            if files and (files[-1].parent / HEAD_FILE).exists():
                inspection.read_head(files[-1].parent)
            inspection.read(files)
    except OSError as error:
        inspection.fail(error)
    return inspection.verdict(at_least)


def describe(verdict: Verdict) -> list[str]:
    """Return the verdict as lines for people."""
    lines = []
    if verdict.first is not None and verdict.last is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in verdict.kinds.items())
        (first, since), (last, until) = verdict.first, verdict.last
        lines.append(f"{verdict.entries} entries, {first} to {last}, from {since} to {until}: {kinds}")
    lines += [f"note: {note}" for note in verdict.notes]
    lines += [f"found: {finding}" for finding in verdict.findings]
    lines.append("the log is whole, as far as this can be known" if verdict.ok else "this log is not as it was written")
    return lines


class _Lines:
    """Lines of a verdict, the first of them."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = 0

    def add(self, line: str) -> None:
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)
        else:
            self._more += 1

    def told(self) -> tuple[str, ...]:
        return (*self._lines, *([f"and {self._more} more"] if self._more else []))


class _Inspection:
    """One pass over a log."""

    def __init__(self, verifier: Verifier, peer_id: PeerId) -> None:
        self._verifier = verifier
        self._peer_id = peer_id
        self._findings = _Lines()
        self._notes = _Lines()
        self._head: Place | None = None
        self._head_read = False
        self._end: Place | None = None
        self._oldest: int | None = None
        self._entries = 0
        self._debris = 0
        self._first: tuple[int, str] | None = None
        self._last: tuple[int, str] | None = None
        self._kinds: Counter[str] = Counter()

    # ------------------------------------------------------------------------------------------ what is read

    def read_head(self, folder: Path) -> None:
        """Read what the log's last entry should at least be."""
        self._head_read = True
        try:
            self._head = read_head(folder, self._verifier)
        except OSError as error:
            self._findings.add(f"{HEAD_FILE} cannot be read, and entries may be missing at the end: {error.strerror}")
            return
        if self._head is None:
            self._findings.add(f"{HEAD_FILE} is not signed by {self._peer_id}; entries may be missing at the end")

    def fail(self, error: OSError) -> None:
        """Take note that something cannot be read at all."""
        self._findings.add(f"the log cannot be read: {error.strerror}")

    def read(self, files: Sequence[Path]) -> None:
        """Read files in their order."""
        for number, path in enumerate(files, start=1):
            self._read_file(path, is_last=number == len(files))

    def _read_file(self, path: Path, *, is_last: bool) -> None:
        debris: tuple[str, Debris] | None = None
        begins = True
        try:
            with open_file(path) as file:
                for number, item in read_entries(file, self._verifier):
                    if isinstance(item, Debris):
                        debris = _lines_of(path, item.first_line, number), item
                        self._debris += 1
                        continue
                    self._explain(item, debris)
                    self._take(item, begins=begins)
                    debris, begins = None, False
        except OSError as error:
            self._findings.add(f"{path.name} cannot be read: {error.strerror}")
        if debris is not None:
            self._leave(*debris, is_last=is_last)

    def _explain(self, entry: Entry, debris: tuple[str, Debris] | None) -> None:
        """Compare what lies before an entry with what it says of it."""
        told = entry.told() if entry.kind in {"anchor", "recovered"} else {}
        if debris is not None and told.get("torn") == debris[1].told():
            size = debris[1].size
            self._notes.add(f"{debris[0]}: {size} bytes are no entry, as a crash leaves them; entry {entry.n} tells so")
        elif debris is not None:
            self._findings.add(f"{debris[0]}: no entry that {self._peer_id} has signed")
        elif "torn" in told:
            self._findings.add(f"entry {entry.n} tells of bytes before it that are gone")
        if "headless" in told:
            self._findings.add(f"entry {entry.n}: {HEAD_FILE} was gone or another's when the site started")
        if "missing" in told:
            self._findings.add(f"entry {entry.n}: entries up to {entry.n - 1} were gone when the site started")
        if entry.kind == "lost":
            self._notes.add(f"entry {entry.n}: the site could not keep {_number(entry.told(), 'count')} entries")

    def _leave(self, where: str, debris: Debris, *, is_last: bool) -> None:
        if is_last and debris.torn:
            self._notes.add(f"{where}: {debris.size} bytes at the end are no entry: a crash, or one being written")
        else:
            self._findings.add(f"{where}: no entry that {self._peer_id} has signed")

    def _take(self, entry: Entry, *, begins: bool) -> None:
        self._entries += 1
        self._kinds[entry.kind] += 1
        if begins and entry.kind != "anchor":
            self._findings.add(f"entry {entry.n} begins a file, and is no anchor")
        if entry.kind == "anchor" and not begins:
            self._findings.add(f"entry {entry.n} is an anchor, and begins no file")
        if self._head is not None and entry.n == self._head.n and entry.place != self._head:
            self._findings.add(f"entry {entry.n} is another than {HEAD_FILE} names")
        end = self._end
        if end is not None and entry.n <= end.n:
            self._findings.add(f"entry {entry.n} comes after entry {end.n}: it was moved, or is there again")
            return
        if end is not None and entry.n > end.n + 1:
            self._findings.add(f"{_range(end.n + 1, entry.n - 1)} missing before entry {entry.n}")
        elif end is not None and entry.prev != end.digest:
            self._findings.add(f"entry {entry.n} follows upon another entry {end.n} than the one that is there")
        self._end = entry.place
        self._first = self._first or (entry.n, entry.time)
        self._last = entry.n, entry.time
        if entry.kind == "anchor":
            self._oldest = _number(entry.told(), "oldest")

    # ------------------------------------------------------------------------------------------ what is said

    def verdict(self, at_least: int) -> Verdict:
        """Return it, once everything was read."""
        last = -1 if self._end is None else self._end.n
        if self._first is None:
            self._findings.add(f"nothing here is an entry that {self._peer_id} has signed" + self._other_key())
        elif self._oldest is not None and self._first[0] > self._oldest:
            self._findings.add(f"{_range(self._oldest, self._first[0] - 1)} missing at the beginning")
        elif self._first[0] > 0:
            self._notes.add(f"entries before {self._first[0]} were put away by the site, which keeps so many files")
        known = max(at_least - 1, -1 if self._head is None else self._head.n)
        if known > last:
            self._findings.add(f"{_range(last + 1, known)} missing at the end")
        elif self._head is not None and self._head.n < last:
            self._notes.add(
                f"{HEAD_FILE} names entry {self._head.n}: the site was killed before it named {last}, or runs"
            )
        if not self._head_read:
            self._notes.add(f"there is no {HEAD_FILE}: whether entries are missing at the end cannot be known")
        return Verdict(
            self._findings.told(), self._notes.told(), self._entries, self._first, self._last, dict(self._kinds)
        )

    def _other_key(self) -> str:
        return "; is it the log of another site?" if self._debris else ""


def _lines_of(path: Path, first: int, last: int) -> str:
    return f"{path.name}, line {first}" if first == last else f"{path.name}, lines {first} to {last}"


def _range(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def _number(told: Mapping[str, Any], key: str) -> int:
    value = told.get(key)
    return value if isinstance(value, int) else 0
