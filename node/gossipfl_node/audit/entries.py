"""Entries of the audit log as bytes: how they are signed, and read from files that anybody may have made."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from blake3 import blake3

from gossipfl.digest import digest
from gossipfl.identity import Identity, Verifier

AUDIT_FILE = "audit.jsonl"
HEAD_FILE = "audit.head"

Kind = Literal["start", "stop", "membership", "verdict", "evidence", "offence", "mute", "restored"]
"""What the daemon may add."""

MAX_LINE_BYTES = 32 * 1024
"""No entry is longer; of a longer line, no more than this is in memory at a time."""

_DOMAIN = b"gossipfl/1/audit\0"
_HEAD_DOMAIN = b"gossipfl/1/audit-head\0"
_SIGNATURE = rb',"sig":"([A-Za-z0-9+/]{86}==)"\}'
_SIGNATURE_BYTES = len(b',"sig":""}') + 88
_NUMBER = rb'\{"n":(0|[1-9][0-9]{0,15}),'
_ENTRY = re.compile(
    _NUMBER
    + rb'"time":"([0-9TZ:.-]{20,30})","kind":"([a-z_]{1,32})","fields":(\{.*\}),"prev":"([0-9a-f]{64})"'
    + _SIGNATURE
)
_HEAD = re.compile(_NUMBER + rb'"digest":"([0-9a-f]{64})"' + _SIGNATURE)
_OLDER = re.compile(r"audit-[0-9]{16}\.jsonl")


class Place(NamedTuple):
    """A place in the chain: the number of an entry, and the digest of its line."""

    n: int
    digest: str


BEFORE_ALL = Place(-1, "0" * 64)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that has the form of an entry."""

    line: bytes
    n: int
    time: str
    kind: str
    fields: bytes
    prev: str

    @property
    def place(self) -> Place:
        """Where it stands in the chain."""
        return Place(self.n, digest(self.line).hex())

    def told(self) -> Mapping[str, Any]:
        """Return the fields; none, where they are not what this program writes."""
        try:
            fields = json.loads(self.fields)
        except (ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}


@dataclass(slots=True)
class Debris:
    """Lines between two entries that are none; ``torn``: they are at the end of a file, and the last has no end."""

    first_line: int
    size: int = 0
    torn: bool = False
    _hasher: Any = field(default_factory=blake3)

    def add(self, content: bytes) -> None:
        """Take more of them."""
        self._hasher.update(content)
        self.size += len(content)

    def told(self) -> dict[str, Any]:
        """Return what the entry after them says of them; whoever writes it ends a torn line first."""
        hasher = self._hasher.copy()
        hasher.update(b"\n" if self.torn else b"")
        return {"bytes": self.size + self.torn, "blake3": hasher.hexdigest()}


def read_entries(file: BinaryIO, verifier: Verifier | None) -> Iterator[tuple[int, Entry | Debris]]:
    """Yield what a file holds, in order, with the number of its last line; without a verifier, all seem signed."""
    number, midline, debris = 0, False, Debris(1)
    while piece := file.readline(MAX_LINE_BYTES):
        number += not midline
        entry = None if midline else parse_entry(piece.removesuffix(b"\n"), verifier)
        midline = not piece.endswith(b"\n")
        if entry is None:
            debris.add(piece)
            continue
        if debris.size:
            yield number - 1, debris
        yield number, entry
        debris = Debris(number + 1)
    if debris.size:
        debris.torn = midline
        yield number, debris


def parse_entry(line: bytes, verifier: Verifier | None) -> Entry | None:
    """Return the entry in a line (without its end); None where it is none, or not signed by this key."""
    parts = _ENTRY.fullmatch(line)
    if parts is None or (verifier is not None and not _is_signed(line, parts[6], _DOMAIN, verifier)):
        return None
    return Entry(line, int(parts[1]), parts[2].decode(), parts[3].decode(), parts[4], parts[5].decode())


def sign_entry(after: Place, time: str, kind: str, fields: str, identity: Identity) -> tuple[bytes, Place]:
    """Return the line of the entry that comes ``after`` another, and its own place; ``fields`` is JSON in ASCII."""
    body = f'{{"n":{after.n + 1},"time":"{time}","kind":"{kind}","fields":{fields},"prev":"{after.digest}"'
    line = _signed(body, _DOMAIN, identity)
    return line, Place(after.n + 1, digest(line).hex())


def sign_head(place: Place, identity: Identity) -> str:
    """Return the content of the head file."""
    return _signed(f'{{"n":{place.n},"digest":"{place.digest}"', _HEAD_DOMAIN, identity).decode("ascii") + "\n"


def read_head(folder: Path, verifier: Verifier) -> Place | None:
    """Return the place that the head names; None where it names none, or is not this key's; raises OSError."""
    with open_file(folder / HEAD_FILE) as file:
        line = file.read(1024).removesuffix(b"\n")
    parts = _HEAD.fullmatch(line)
    if parts is None or not _is_signed(line, parts[3], _HEAD_DOMAIN, verifier):
        return None
    return Place(int(parts[1]), parts[2].decode())


def open_file(path: Path) -> BinaryIO:
    """Open a file to be read; OSError where it is something else, a pipe that nobody writes to included."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a file")
    return os.fdopen(descriptor, "rb")


def older_files(folder: Path) -> list[Path]:
    """Return the files that were put aside, oldest first."""
    return sorted(path for path in folder.iterdir() if _OLDER.fullmatch(path.name))


def aside(folder: Path, first: int) -> Path:
    """Return where a file goes whose first entry has the number ``first``; one that is there already stays."""
    while (path := folder / f"audit-{first:016d}.jsonl").exists():
        first += 1
    return path


def first_of(older: Path) -> int:
    """Return the number of the first entry of a file that was put aside."""
    return int(older.stem.removeprefix("audit-"))


def utc_now() -> str:
    """Return the wall clock's time, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _signed(body: str, domain: bytes, identity: Identity) -> bytes:
    signature = base64.b64encode(identity.sign(domain + body.encode("ascii"))).decode("ascii")
    return f'{body},"sig":"{signature}"}}'.encode("ascii")


def _is_signed(line: bytes, signature: bytes, domain: bytes, verifier: Verifier) -> bool:
    raw = base64.b64decode(signature)
    # Four bits of the last digit are not part of the signature: only one way to write it counts.
    return base64.b64encode(raw) == signature and verifier.verify(domain + line[:-_SIGNATURE_BYTES], raw)
