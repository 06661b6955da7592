"""A disk that is full, read-only or failing costs no checkpoint but the one that it did not take."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from kill_points import STEPS, STORE, FailingDisk, FastDisk, assert_is, content, save

from gossipfl_node.checkpoints import Checkpoint, CheckpointError, Checkpoints
from gossipfl_node.durable import Disk, write_atomically

ERRORS = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with generations 1 and 2."""
    path = tmp_path / "base"
    path.mkdir()
    store = Checkpoints(path / STORE, disk=FastDisk())
    for number in (1, 2):
        save(store, number)
    return path


def _refusal(action: Callable[[], object]) -> CheckpointError | None:
    try:
        action()
    except CheckpointError as error:
        return error
    return None


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_save_that_the_disk_refuses_at_any_step_harms_nothing(
    tmp_path: Path, base: Path, error: int, for_ever: bool
) -> None:
    before = _files(base / STORE)
    failed: set[str] = set()
    for first in range(1, 1000):
        folder = tmp_path / str(first) / STORE
        shutil.copytree(base, folder.parent)
        disk = FailingDisk(first, error, for_ever)
        store = Checkpoints(folder, keep=2, disk=disk)
        caught = _refusal(lambda store=store: save(store, 3))
        if caught is None:
            # A manifest that is read only to see whether a newer version wrote it.
            assert not disk.failed or disk.steps[first - 1] == "read"
        else:
            assert (caught.reason, caught.path.is_relative_to(folder.parent)) == (os.strerror(error), True)
            assert str(caught).startswith(f"checkpoint cannot be saved: {caught.path}: {caught.reason}; ")
            assert "\n" not in str(caught)
        if disk.failed:
            failed.add(disk.steps[first - 1])
        after = _files(folder)
        whole = "0000000003/manifest.json" in after
        still = {name: held for name, held in before.items() if name.startswith("0000000002") or not whole}
        assert still.items() <= after.items()
        if not for_ever:
            assert not list(folder.glob("*.part")), "what was written of it is removed"
        mended = Checkpoints(folder, keep=2, disk=FastDisk())
        assert_is(mended.load(), 3 if whole else 2)
        assert mended.damaged == []
        store._disk = FastDisk()
        number = store.save(*content(5))
        assert number >= 3 + whole
        assert len(list(folder.iterdir())) == 2, "nothing but what is kept"
        loaded = mended.load()
        assert loaded is not None
        assert (loaded.number, loaded.facts) == (number, content(5)[1])
        if not disk.failed:
            break
    assert failed == STEPS


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_first_save_that_the_disk_refuses_may_be_tried_again(tmp_path: Path, error: int) -> None:
    for first in range(1, 1000):
        (tmp_path / str(first)).mkdir()
        folder = tmp_path / str(first) / STORE
        disk = FailingDisk(first, error, for_ever=False)
        store = Checkpoints(folder, disk=disk)
        _refusal(lambda store=store: save(store, 1))
        store._disk = FastDisk()
        number = store.save(*content(2))
        loaded = Checkpoints(folder, disk=FastDisk()).load()
        assert loaded is not None
        assert (loaded.number, loaded.facts) == (number, content(2)[1])
        if not disk.failed:
            break
    assert first > 15


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_a_load_that_the_disk_refuses_at_any_step_harms_nothing(
    tmp_path: Path, base: Path, error: int, for_ever: bool
) -> None:
    shutil.copytree(base / STORE / "0000000002", base / STORE / "0000000003")
    (base / STORE / "0000000003" / "manifest.json").write_text("torn")
    (base / STORE / "0000000004.part").mkdir()
    before = _files(base / STORE)
    for first in range(1, 1000):
        folder = tmp_path / str(first) / STORE
        shutil.copytree(base, folder.parent)
        disk = FailingDisk(first, error, for_ever)
        store = Checkpoints(folder, disk=disk)
        found: list[Checkpoint | None] = []
        caught = _refusal(lambda store=store, found=found: found.append(store.load()))
        after = {name.replace(".damaged", ""): held for name, held in _files(folder).items()}
        assert after == before, "damaged or not, all bytes are still there"
        if caught is not None:
            assert str(caught).startswith(f"checkpoint cannot be loaded: {caught.path}: {os.strerror(error)}; ")
            assert_is(Checkpoints(folder, disk=FastDisk()).load(), 2)
        else:
            # What the disk says it lost is set aside for good; a disk that loses everything gives nothing.
            lost = [name for name, _ in store.damaged if not name.startswith("0000000003")]
            assert bool(lost) <= (error == errno.EIO)
            expected = 2 - len(lost)
            if expected:
                assert_is(found[0], expected)
            else:
                assert found == [None]
        if not disk.failed:
            break
    assert first > 8


def test_a_read_only_disk_can_be_loaded_from(tmp_path: Path, base: Path) -> None:
    """What is damaged is told, though it cannot be set aside."""

    class ReadOnlyDisk(FastDisk):
        def before(self, step: str, *args: object) -> None:
            if step not in ("names", "read"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (base / STORE / "0000000002" / "manifest.json").write_text("torn")
    store = Checkpoints(base / STORE, disk=ReadOnlyDisk())
    assert_is(store.load(), 1)
    ((name, reason),) = store.damaged
    assert name == "0000000002"
    assert reason.endswith("; it cannot be set aside: Read-only file system")
    with pytest.raises(CheckpointError, match="Read-only file system; mount that disk for writing"):
        save(store, 3)


def test_a_generation_that_may_not_be_read_now_is_not_given_up(base: Path) -> None:
    class ForeignDisk(FastDisk):
        def before(self, step: str, *args: object) -> None:
            if step == "read":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(args[0]))

    before = _files(base)
    with pytest.raises(CheckpointError, match=r"0000000002/manifest.json: Permission denied; run: chown -R USER "):
        Checkpoints(base / STORE, disk=ForeignDisk()).load()
    assert _files(base) == before


def test_a_folder_that_somebody_removed_is_made_again(base: Path) -> None:
    store = Checkpoints(base / STORE, disk=FastDisk())
    save(store, 3)
    shutil.rmtree(base / STORE)
    with pytest.raises(CheckpointError, match="No such file or directory"):
        store.save(*content(4))
    save(store, 1)
    assert_is(store.load(), 1)


# ------------------------------------------------------------------------------------------- errors of the real kernel


@contextlib.contextmanager
def _file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_the_kernel_cuts_short(base: Path) -> None:
    store = Checkpoints(base / STORE)
    big = {"weight": torch.ones(1 << 18)}
    before = _files(base)
    with _file_size_limit(300_000), pytest.raises(CheckpointError, match=r"File too large; raise the limit") as caught:
        store.save(big, {}, 3)
    assert caught.value.path == base / STORE / "0000000003.part" / "tensors.safetensors"
    assert _files(base) == before
    assert_is(store.load(), 2)
    assert store.save(big, {}, 3) == 3


def test_a_disk_that_the_kernel_calls_full(base: Path) -> None:
    class FullDisk(Disk):
        def create(self, path: Path) -> int:
            path.touch()
            return os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)

    before = _files(base)
    with pytest.raises(CheckpointError, match="No space left on device; make room on that disk"):
        save(Checkpoints(base / STORE, disk=FullDisk()), 3)
    assert _files(base) == before
    save(Checkpoints(base / STORE), 3)


@pytest.mark.parametrize("state", ["missing", "a file"])
def test_a_place_where_no_folder_can_be(tmp_path: Path, state: str) -> None:
    parent = tmp_path / "state"
    if state == "a file":
        parent.touch()
    with pytest.raises(CheckpointError, match=rf"cannot be saved: {parent / STORE}: .*; \w+"):
        save(Checkpoints(parent / STORE), 1)


# ------------------------------------------------------------------------------------------- small files, same promise


def test_a_file_replaced_at_once_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old\n")
    for first in range(1, 100):
        disk = FailingDisk(first, errno.ENOSPC, for_ever=True)
        with contextlib.suppress(OSError):
            write_atomically(path, "new ä\n", disk)
        renamed = "rename" in disk.steps[: first - 1]
        assert path.read_text(encoding="utf-8") == ("new ä\n" if renamed else "old\n")
        if not disk.failed:
            break
    assert disk.steps == ["create", "write", "fsync", "close", "rename", "fsync_folder"]
