"""Generations of checkpoints in a folder, of which the newest intact one is loaded.

checkpoints/
  0000000041/         a generation: tensors.safetensors and manifest.json, as generation.py describes them
  0000000042/
  0000000043.part/    being written
  0000000040.old/     being removed
  0000000039.damaged  set aside: it is not what was saved
  lost+found          other names are nobody's business here, and stay

The steps of a save; a crash, of the process or of the machine, may come between any two of them:

    1. make 43.part; write and fsync its two files; fsync 43.part
    2. rename it to 43; fsync the folder: from here on it is saved
    3. rename what is older than the last ``keep`` to .old, and remove it with whatever interrupted saves left

No name of a whole generation is on the disk before all its bytes are, and nothing is removed before step 2 is over.
The disk must have room for ``keep`` + 1 generations.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3
from torch import Tensor

from gossipfl.errors import ConfigError, GossipflError
from gossipfl_node.checkpoints.generation import (
    MAX_MANIFEST_BYTES,
    SCHEMA,
    Checkpoint,
    Damaged,
    TensorsFile,
    encode_facts,
    encode_manifest,
    newer_schema,
    parse_manifest,
    parse_tensors,
    table_of,
    tensor_pieces,
)
from gossipfl_node.durable import DISK, Disk, naming, remove, write_file

TENSORS_FILE = "tensors.safetensors"
MANIFEST_FILE = "manifest.json"
MAX_DAMAGED = 3
"""So many damaged generations, the newest, stay for somebody to look at."""
MAX_NUMBER = 10**10 - 1

_WHOLE, _PART, _OLD, _DAMAGED = "", ".part", ".old", ".damaged"
_NAME = re.compile(r"([0-9]{10})(|\.part|\.old|\.damaged)")
_DAMAGE = frozenset(
    {
        *(errno.EIO, errno.ENODATA, errno.EUCLEAN, errno.EBADMSG),  # the disk or the file system lost it
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO),  # something else is there
    }
)
"""Errors that say that a generation is lost; others, such as EACCES or EMFILE, may go away."""
_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room on that disk, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount that disk for writing; if the system did that to it, look at dmesg",
    errno.EACCES: "run: chown -R USER {folder}",
    errno.EPERM: "run: chown -R USER {folder}",
    errno.ENOENT: "make the folder above {folder}",
    errno.ENOTDIR: "move the file away that has a folder's name",
}

log = logging.getLogger(__name__)


class CheckpointError(GossipflError):
    """The disk did not let a checkpoint be saved or loaded: ``path`` and ``reason`` say what failed, and why."""

    def __init__(self, folder: Path, action: str, error: OSError) -> None:
        self.path = Path(str(error.filename or folder))
        self.reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "look at dmesg: the disk may be failing").format(folder=folder)
        super().__init__(f"checkpoint cannot be {action}: {self.path}: {self.reason}; {remedy}")


class Checkpoints:
    """The checkpoints of one site in ``folder``, whose parent must exist; the last ``keep`` are kept.

    For one thread at a time, and one process: the caller holds the state folder's lock.
    """

    def __init__(self, folder: Path, keep: int = 3, *, disk: Disk = DISK) -> None:
        if keep < 1:
            raise ValueError(f"at least 1 checkpoint is kept, not {keep}")
        self.damaged: list[tuple[str, str]] = []
        """What the last ``load`` found damaged: the name under which it lies in the folder now, and why."""
        self._folder = folder
        self._keep = keep
        self._disk = disk
        self._anchored = False

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], round_: int) -> int:
        """Save a new generation and return its number, when it is on the disk; older ones may then be removed.

        ``tensors`` must not change meanwhile. Raises ValueError for what cannot be saved, ConfigError where a newer
        program saved here, and CheckpointError where the disk fails: the new generation is then whole or absent, those
        that it does not replace are as they were, and the next call may succeed. No memory is needed but for copies
        of tensors that are not contiguous, one at a time.
        """
        table, facts_text = table_of(tensors), encode_facts(facts)
        anchored, self._anchored = self._anchored, False  # a failed save may mean that the folder is gone
        with self._telling("saved"):
            number = self._next_number(anchored)
            part = self._path(number, _PART)
            try:
                self._disk.mkdir(part)
                size, digest = self._write_tensors(part / TENSORS_FILE, tensors)
                described = TensorsFile(bytes=size, blake3=digest, table=table)
                manifest = encode_manifest(round_, facts_text, described)
                write_file(self._disk, part / MANIFEST_FILE, [memoryview(manifest)])
                self._fsync_folder(part)
                self._disk.rename(part, self._path(number))
                self._fsync_folder(self._folder)
                self._prune()
            except BaseException:
                self._tidy()
                raise
        self._anchored = True
        return number

    def load(self) -> Checkpoint | None:
        """Return the newest generation that is intact byte by byte, or None where there is none.

        Newer ones that are damaged are set aside, and listed in ``damaged``; what interrupted saves left is removed.
        Raises ConfigError where a newer program saved here, and CheckpointError where the disk cannot be read; the
        generations are then as they were. For a moment the file and its tensors are both in memory.
        """
        self.damaged = []
        with self._telling("loaded"):
            try:
                present = self._present()
            except FileNotFoundError:
                return None
            self._refuse_newer(present)
            found = self._newest_intact(present)
        self._tidy()
        try:
            # Whoever saved it may have died before its name was on the disk; the caller now builds on it.
            self._fsync_folder(self._folder)
        except OSError as error:
            log.warning("%s may not outlive a crash of this machine: %s", self._folder, error.strerror)
        return found

    @contextlib.contextmanager
    def _telling(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(self._folder, action, error) from None

    def _write_tensors(self, path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
        """Write the file of tensors; return its size and its digest."""
        hasher, size = blake3(), 0

        def digested() -> Iterator[memoryview]:
            nonlocal size
            for piece in tensor_pieces(tensors):
                hasher.update(piece)
                size += len(piece)
                yield piece

        write_file(self._disk, path, digested())
        return size, hasher.hexdigest()

    def _next_number(self, anchored: bool) -> int:
        """Return the number of the next generation; unless ``anchored``, make sure of the folder first."""
        if not anchored:
            with contextlib.suppress(FileExistsError):
                self._disk.mkdir(self._folder)
            # Also where the folder exists: whoever made it may have died before its name was on the disk.
            self._fsync_folder(self._folder.parent)
        present = self._present()
        if not anchored:
            self._refuse_newer(present)
        number = 1 + max((number for number, _ in present), default=0)
        if number > MAX_NUMBER:
            raise ConfigError(f"{self._folder} holds number {MAX_NUMBER}, the last there is; move that away")
        return number

    def _present(self) -> list[tuple[int, str]]:
        """Return number and kind of everything here that has a name of ours, oldest first."""
        with naming(self._folder):
            matches = map(_NAME.fullmatch, self._disk.names(self._folder))
            return sorted((int(match[1]), match[2]) for match in matches if match)

    def _refuse_newer(self, present: Iterable[tuple[int, str]]) -> None:
        """Raise ConfigError where a generation is of a newer schema: nothing may remove it unread."""
        for number in _numbers(present, _WHOLE):
            path = self._path(number)
            try:
                schema = newer_schema(self._disk.read(path / MANIFEST_FILE, MAX_MANIFEST_BYTES))
            except OSError:
                continue
            if schema is not None:
                raise ConfigError(
                    f"{path} was saved by a newer version (schema {schema}; this one knows up to {SCHEMA}); "
                    f"install that version again, or move {self._folder} away to start without"
                )

    def _newest_intact(self, present: list[tuple[int, str]]) -> Checkpoint | None:
        for number in reversed(_numbers(present, _WHOLE)):
            try:
                return self._read(number)
            except Damaged as damage:
                self._set_aside(number, str(damage), (number, _DAMAGED) in present)
        return None

    def _read(self, number: int) -> Checkpoint:
        manifest = parse_manifest(self._read_file(number, MANIFEST_FILE, MAX_MANIFEST_BYTES))
        content = self._read_file(number, TENSORS_FILE, manifest.tensors.bytes)
        return Checkpoint(number, manifest.round, parse_tensors(content, manifest.tensors), manifest.facts)

    def _read_file(self, number: int, name: str, limit: int) -> bytes:
        path = self._path(number) / name
        try:
            with naming(path):
                return self._disk.read(path, limit)
        except OSError as error:
            if error.errno in _DAMAGE:
                raise Damaged(f"its {name} cannot be read: {error.strerror}") from None
            raise

    def _set_aside(self, number: int, reason: str, again: bool) -> None:
        path, aside = self._path(number), self._path(number, _DAMAGED)
        try:
            if again:  # somebody gave what had been set aside its former name
                remove(self._disk, aside)
            self._disk.rename(path, aside)
        except OSError as error:
            self.damaged.append((path.name, f"{reason}; it cannot be set aside: {error.strerror}"))
        else:
            self.damaged.append((aside.name, reason))

    def _prune(self) -> None:
        """Remove the generations beyond the last ``keep``, and what was left by interrupted saves."""
        present = self._present()
        for number in _numbers(present, _WHOLE)[: -self._keep]:
            # Were this undone by a crash, what is left of it would still be older than what is loaded.
            self._disk.rename(self._path(number), self._path(number, _OLD))
            remove(self._disk, self._path(number, _OLD))
        for path in self._leftovers(present):
            remove(self._disk, path)

    def _tidy(self) -> None:
        """Remove leftovers and all but the newest of what is damaged, as far as the disk lets us."""
        try:
            present = self._present()
        except OSError:
            return  # the caller says so, or knows already
        excess = [self._path(number, _DAMAGED) for number in _numbers(present, _DAMAGED)[:-MAX_DAMAGED]]
        for path in [*self._leftovers(present), *excess]:
            try:
                remove(self._disk, path)
            except OSError as error:
                log.warning("%s cannot be removed: %s", path, error.strerror)

    def _leftovers(self, present: Iterable[tuple[int, str]]) -> list[Path]:
        return [self._path(number, kind) for number, kind in present if kind in (_PART, _OLD)]

    def _fsync_folder(self, folder: Path) -> None:
        with naming(folder):
            self._disk.fsync_folder(folder)

    def _path(self, number: int, kind: str = _WHOLE) -> Path:
        return self._folder / f"{number:010d}{kind}"


def _numbers(present: Iterable[tuple[int, str]], kind: str) -> list[int]:
    return [number for number, each in present if each == kind]
