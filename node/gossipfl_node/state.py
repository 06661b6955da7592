"""What a site keeps on its disk from one start of its daemon to the next.

state/
  lock              held by the running daemon; names its process
  incarnation       how often the daemon was started: grows at each start, on the disk before it is used
  replay.json       replay marks: (incarnation, highest sequence) of each neighbour's last message
  addresses.json    over libp2p: what members last signed about where they are, as base64
  events.jsonl      what happened; older ones are events.jsonl.1 to .4
  status.sock       answers `gossipfl-node status`
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId
from gossipfl_node.durable import write_atomically as write_atomically

LOCK_FILE = "lock"
INCARNATION_FILE = "incarnation"
REPLAY_FILE = "replay.json"
ADDRESSES_FILE = "addresses.json"
EVENTS_FILE = "events.jsonl"
STATUS_SOCKET = "status.sock"

LOCK_PATIENCE_S = 0.5
"""How long a starting daemon tries for the lock: whoever asks for the status holds it for an instant."""
MAX_INCARNATION = 2**53
"""What every reader of JSON can hold exactly."""
MAX_ADDRESSES_BYTES = 512 * 1024
"""Longest file of address records, some 2,000 of the usual size; what does not fit is left out."""

log = logging.getLogger(__name__)


class StateFolder:
    """The folder, locked for one daemon as long as the context lasts.

    Raises ConfigError where it cannot be made or written, is open to others, or another daemon holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"state folder {self.path} cannot be made: {error.strerror}") from None
        for mistake in find_mistakes(self.path):
            raise ConfigError(mistake)
        self._lock = self._acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        os.close(self._lock)  # the kernel frees the lock with it, as it does when the process dies
        self._lock = None

    def _acquire(self) -> int:
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"state folder {self.path} cannot be used: {error.strerror}") from None
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
                    os.close(descriptor)
                    raise ConfigError(
                        f"state folder {self.path} is in use by process {holder or 'unknown'}; "
                        "stop that daemon, or give this site a folder of its own"
                    ) from None
            time.sleep(0.02)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def next_incarnation(self, now_s: float) -> int:
        """Return this start's number, larger than any before, after it has reached the disk.

        It is the clock's ``now_s`` (seconds since 1970), or one more than the last if that is larger: a site that
        lost this folder is believed again by neighbours who remember its former numbers.
        """
        last = self.last_incarnation()
        incarnation = max(last + 1, int(now_s))
        self._write(INCARNATION_FILE, f"{incarnation}\n")
        return incarnation

    def last_incarnation(self) -> int:
        """Return the number of the last start, or 0; raises ConfigError where the file holds none."""
        path = self.path / INCARNATION_FILE
        text = _read(path)
        if text is None:
            return 0
        if not text.strip().isdecimal() or not 0 < int(text) < MAX_INCARNATION:
            raise ConfigError(f"{path} holds no number; delete it: the clock then gives a new one")
        return int(text)

    def replay_marks(self) -> dict[PeerId, tuple[int, int]]:
        """Return the marks that were last saved; raises ConfigError where the file is broken."""
        path = self.path / REPLAY_FILE
        text = _read(path)
        if text is None:
            return {}
        try:
            marks = {str(peer): (int(mark[0]), int(mark[1])) for peer, mark in json.loads(text).items()}
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ConfigError(
                f"{path} is broken; restore it, or delete it and accept that old messages could be replayed once"
            ) from None
        return marks

    def save_replay_marks(self, marks: Mapping[PeerId, tuple[int, int]]) -> None:
        """Put the marks on the disk in one step; raises ConfigError where it cannot be written."""
        self._write(REPLAY_FILE, json.dumps(marks) + "\n")

    def address_records(self) -> list[bytes]:
        """Return the address records that were last saved; of a file that is broken, none, and the log says so.

        Each is signed by its own site, and can be had again from any neighbour: no reason not to start.
        """
        try:
            text = _read(self.path / ADDRESSES_FILE)
            return [] if text is None else [base64.b64decode(each, validate=True) for each in json.loads(text)]
        except (ConfigError, ValueError, TypeError, RecursionError) as error:
            log.warning("%s is broken, and begun anew: %s", self.path / ADDRESSES_FILE, error)
            return []

    def save_address_records(self, records: Sequence[bytes]) -> None:
        """Put the records on the disk in one step; raises ConfigError where it cannot be written."""
        lines, size_bytes = [], 0
        for record in records:
            line = json.dumps(base64.b64encode(record).decode("ascii"))
            size_bytes += len(line) + len(",\n")
            if size_bytes > MAX_ADDRESSES_BYTES - len("[]\n"):
                break
            lines.append(line)
        self._write(ADDRESSES_FILE, "[" + ",\n".join(lines) + "]\n")

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomically(self.path / name, text)
        except OSError as error:
            raise ConfigError(f"{self.path / name} cannot be written: {error.strerror}") from None


def find_mistakes(path: Path) -> list[str]:
    """Return, one line each, why ``path`` cannot be a state folder; it is neither made nor changed."""
    if not path.exists():
        parent = next(parent for parent in path.parents if parent.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return [f"state folder {path} cannot be made: {parent} may not be written by this user"]
        return []
    if not path.is_dir():
        return [f"state folder {path} is no folder"]
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return [f"state folder {path} may not be written by this user; run: chown -R USER {path}"]
    mistakes = []
    if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mistakes.append(f"state folder {path} may be written by other users; run: chmod go-w {path}")
    folder = StateFolder(path)
    readers: tuple[Callable[[], object], ...] = (folder.last_incarnation, folder.replay_marks)
    for read in readers:
        try:
            read()
        except ConfigError as error:
            mistakes.append(str(error))
    return mistakes


def running_pid(path: Path) -> int | None:
    """Return the process of the daemon that holds the folder now, 0 where it is not known, or None."""
    try:
        descriptor = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
