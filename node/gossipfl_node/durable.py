"""A disk, one method for each step that can fail, and what is written to it so that it outlives a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path


class Disk:
    """The steps that read or change a disk; each raises OSError where the system refuses.

    Tests put one in its place that fails, dies or forgets at any of them.
    """

    def names(self, folder: Path) -> list[str]:
        """Return the names in a folder."""
        return [path.name for path in folder.iterdir()]

    def read(self, path: Path, limit: int) -> bytes:
        """Return a regular file's bytes, of a longer one than ``limit`` the first ``limit`` + 1."""
        # Without O_NONBLOCK, opening a named pipe that somebody left there would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(min(limit, status.st_size) + 1)
        finally:
            os.close(descriptor)

    def mkdir(self, path: Path) -> None:
        """Make a folder that only this user may use."""
        path.mkdir(mode=0o700)

    def create(self, path: Path) -> int:
        """Return the descriptor of an empty file that only this user may use."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, piece: memoryview) -> int:
        """Hand the first bytes of ``piece`` to the system, and return how many."""
        return os.write(descriptor, piece)

    def fsync(self, descriptor: int) -> None:
        """Return when a file's bytes are on the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name in one step."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()

    def fsync_folder(self, folder: Path) -> None:
        """Return when a folder's names are on the disk, as the last renames and removals left them."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


DISK = Disk()
"""The machine's own."""


def write_file(disk: Disk, path: Path, pieces: Iterable[memoryview]) -> None:
    """Write a new file and return when its bytes are on the disk; its name still needs ``fsync_folder``.

    Each piece is written before the next is asked for. An OSError names the file.
    """
    with naming(path):
        descriptor = disk.create(path)
        try:
            for piece in pieces:
                rest = piece
                while rest:
                    rest = rest[disk.write(descriptor, rest) :]
            disk.fsync(descriptor)
        finally:
            disk.close(descriptor)


def write_atomically(path: Path, text: str, disk: Disk = DISK) -> None:
    """Replace a file so that a crash at any moment leaves the old or the new one; returns when it is on the disk."""
    part = path.with_name(path.name + ".part")
    write_file(disk, part, [memoryview(text.encode())])
    disk.rename(part, path)
    disk.fsync_folder(path.parent)


def remove(disk: Disk, path: Path) -> None:
    """Remove a file, or a folder with all that is in it; links are removed and not followed."""
    if path.is_symlink() or not path.is_dir():
        disk.unlink(path)
        return
    for name in disk.names(path):
        remove(disk, path / name)
    disk.rmdir(path)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError that names no file, as those of open files do, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
