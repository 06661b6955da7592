"""A checkpoint that was saved is there after a crash of the process or of the machine, at whatever moment."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kill_points
import pytest
from kill_points import STEPS, STORE, CountingDisk, FastDisk, StepwiseDisk, assert_is, save

from gossipfl_node.checkpoints import Checkpoints

# --------------------------------------------------------------------------------------------- the process is killed


def _kill_everywhere(mode: str, keep: int, base: Path, folder: Path) -> list[dict[str, Any]]:
    """Return what became of a child for each step; all but the last were killed, each one step later."""
    folder.mkdir()
    command = [sys.executable, str(Path(kill_points.__file__)), mode, str(keep), str(base), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    killed, survivor = results[:-1], results[-1]
    assert (survivor["signal"], survivor["exit"]) == (0, 0)
    assert [result["signal"] for result in killed] == [signal.SIGKILL] * len(survivor["steps"])
    # The order of names in a folder is the file system's.
    assert [sorted(result["steps"]) for result in killed[-1:]] == [sorted(survivor["steps"])]
    assert [len(result["steps"]) for result in killed] == list(range(1, len(killed) + 1))
    return results


@pytest.mark.processes
@pytest.mark.parametrize("keep", [1, 2])
def test_a_process_killed_at_any_step_of_a_save_loses_nothing(tmp_path: Path, keep: int) -> None:
    base = tmp_path / "base"
    base.mkdir()
    store = Checkpoints(base / STORE, keep)
    for number in (1, 2):
        save(store, number)
    results = _kill_everywhere("save", keep, base, tmp_path / "children")
    assert set(results[-1]["steps"]) == STEPS
    assert results[-1]["steps"].count("write") >= 4
    loaded = []
    for result in results:
        folder = Path(result["folder"]) / STORE
        store = Checkpoints(folder, keep, disk=FastDisk())
        found = store.load()
        assert found is not None
        assert found.number in (2, 3)
        assert_is(found, found.number)
        assert store.damaged == []
        assert not list(folder.glob("*.*")), "leftovers are removed"
        loaded.append(found.number)
        assert store.save(*kill_points.content(4)) == found.number + 1
        assert len(list(folder.iterdir())) == keep
    renamed = results[-1]["steps"].index("rename") + 1
    assert loaded == [2] * renamed + [3] * (len(results) - renamed)


@pytest.mark.processes
def test_a_process_killed_at_any_step_of_the_first_save_leaves_the_whole_or_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    results = _kill_everywhere("first", 3, base, tmp_path / "children")
    loaded = []
    for result in results:
        store = Checkpoints(Path(result["folder"]) / STORE, disk=FastDisk())
        found = store.load()
        if found is not None:
            assert_is(found, 1)
        assert store.damaged == []
        loaded.append(found is not None)
        save(store, 1 + loaded[-1])
        assert_is(store.load(), 1 + loaded[-1])
    assert (loaded[0], loaded[-1]) == (False, True)


@pytest.mark.processes
def test_a_process_killed_at_any_step_of_a_load_loses_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    store = Checkpoints(base / STORE)
    for number in range(1, 4):
        save(store, number)
    (base / STORE / "0000000003" / "manifest.json").write_text("torn")
    for name in ("0000000004.part", "0000000001.old", *(f"000000{number:04d}.damaged" for number in range(5, 9))):
        (base / STORE / name).mkdir()
        (base / STORE / name / "file").write_text("left")
    results = _kill_everywhere("load", 3, base, tmp_path / "children")
    assert {"rename", "unlink", "rmdir", "fsync_folder"} <= set(results[-1]["steps"])
    for result in results:
        folder = Path(result["folder"]) / STORE
        store = Checkpoints(folder, disk=FastDisk())
        assert_is(store.load(), 2)
        assert len(list(folder.glob("*.damaged"))) == 3
        assert not [*folder.glob("*.part"), *folder.glob("*.old")]


# --------------------------------------------------------------------------------------------- the machine crashes


@dataclass
class _File:
    content: bytes = b""
    safe: bytes = b""


@dataclass
class _Folder:
    """Names as the running system sees them; those that are ``safe``; and what changed since."""

    names: dict[str, _File | _Folder] = field(default_factory=dict)
    safe: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[dict[str, _File | _Folder | None]] = field(default_factory=list)

    def change(self, changes: dict[str, _File | _Folder | None]) -> None:
        self.pending.append(changes)
        _apply(self.names, changes)

    def sync(self) -> None:
        self.safe = dict(self.names)
        self.pending = []


def _apply(names: dict[str, _File | _Folder], changes: dict[str, _File | _Folder | None]) -> None:
    for name, node in changes.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class _Machine:
    """A file system that has lived through a log of steps, and what its disk may hold if it stops now.

    POSIX promises no more than what was synced: of later bytes any part may be there, and of later changes of a
    folder's names any subset, each in one step.
    """

    def __init__(self) -> None:
        self.root = _Folder()
        self._open: dict[int, _File] = {}

    def live(self, step: str, *args: Any) -> None:
        match step, args:
            case "mkdir", (path,):
                self._parent(path).change({path.name: _Folder()})
            case "create", (path, descriptor):
                self._open[descriptor] = _File()
                self._parent(path).change({path.name: self._open[descriptor]})
            case "write", (descriptor, content):
                self._open[descriptor].content += content
            case "fsync", (descriptor,):
                self._open[descriptor].safe = self._open[descriptor].content
            case "rename", (old, new):
                parent = self._parent(old)
                parent.change({old.name: None, new.name: parent.names[old.name]})
            case (("unlink" | "rmdir"), (path,)):
                self._parent(path).change({path.name: None})
            case "fsync_folder", (path,):
                self._folder(path).sync()
            case unknown:
                raise AssertionError(unknown)

    def _parent(self, path: Path) -> _Folder:
        return self._folder(path.parent)

    def _folder(self, path: Path) -> _Folder:
        node: _File | _Folder = self.root
        for name in path.parts:
            assert isinstance(node, _Folder)
            node = node.names[name]
        assert isinstance(node, _Folder)
        return node


Choice = tuple[Callable[[Path], bool], Callable[[bytes, bytes], bytes]]
"""Whether a change of names in a folder has reached the disk; what a file holds, given its safe and written bytes."""

EXTREMES: list[Choice] = [
    (lambda folder, where=where: where(folder), content)
    for where in (
        lambda folder: False,
        lambda folder: folder.name == STORE,
        lambda folder: folder.name != STORE,
        lambda folder: True,
    )
    for content in (lambda safe, written: safe, lambda safe, written: written)
]


def _random_choice(seed: int) -> Choice:
    generator = random.Random(seed)

    def torn(safe: bytes, written: bytes) -> bytes:
        reached = generator.randint(len(safe), len(written))
        zeros = generator.choice([0, len(written) - reached])  # the new length is there, the new blocks are not
        return written[:reached] + bytes(zeros)

    return lambda folder: generator.random() < 0.5, torn


def _lay_out(folder: _Folder, path: Path, choice: Choice) -> None:
    """Write what the disk holds after the crash to ``path``."""
    path.mkdir()
    reached, torn = choice
    names = dict(folder.safe)
    for changes in folder.pending:
        if reached(path):
            _apply(names, changes)
    for name, node in names.items():
        if isinstance(node, _File):
            (path / name).write_bytes(torn(node.safe, node.content))
        else:
            _lay_out(node, path / name, choice)


class _Died(BaseException):
    """Stands for SIGKILL: the process does nothing any more."""


class _RecordingDisk(StepwiseDisk):
    """Keeps a log of what changed the disk, for a ``_Machine`` to live through; may die at a step."""

    def __init__(self, root: Path) -> None:
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self.left: int | None = None
        self._root = root
        self._descriptors: dict[int, int] = {}

    def before(self, step: str, *args: Any) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                self.left = 0
                if step == "close":
                    os.close(args[0])
                raise _Died

    def after(self, step: str, result: Any, *args: Any) -> None:
        shown = [each.relative_to(self._root) if isinstance(each, Path) else each for each in args]
        if step == "create":
            self._descriptors[result] = len(self.log)  # the system gives the same number again and again
            shown.append(len(self.log))
        elif step in ("write", "fsync"):
            shown[0] = self._descriptors[args[0]]
        if step == "write":
            shown[1] = bytes(args[1][:result])
        if step not in ("names", "read", "close"):
            self.log.append((step, tuple(shown)))

    def promise(self, number: int) -> None:
        """Note that a generation was saved, or loaded and built upon: from here on it must be there."""
        self.log.append(("promise", (number,)))


Log = list[tuple[str, tuple[Any, ...]]]


def _crashes(log: Log) -> Iterator[tuple[int, _Machine, int]]:
    """Yield the machine at every step, with the step's number and the newest generation that was promised."""
    machine, promised = _Machine(), 0
    yield 0, machine, promised
    for count, (step, args) in enumerate(log, 1):
        if step == "promise":
            promised = args[0]
        else:
            machine.live(step, *args)
        yield count, machine, promised


def _check(machine: _Machine, promised: int, path: Path, choice: Choice) -> None:
    """Assert that after a crash, what was promised is there, whole."""
    _lay_out(machine.root, path, choice)
    store = Checkpoints(path / STORE, disk=FastDisk())
    found = store.load()
    assert store.damaged == [], "what was never whole bears no name of a whole generation"
    if found is None:
        assert promised == 0
        return
    assert found.number >= promised
    assert_is(found, found.number)


def _check_everywhere(log: Log, places: Iterator[Path], since: int = 0) -> None:
    for count, machine, promised in _crashes(log):
        if count >= since:
            for choice in EXTREMES[::2]:  # what is written and not synced is lost
                _check(machine, promised, next(places), choice)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Yield one new path after the other."""
    return (tmp_path / f"crash-{number}" for number in itertools.count())


def _save_and_promise(store: Checkpoints, disk: _RecordingDisk, numbers: list[int]) -> None:
    for number in numbers:
        save(store, number)
        disk.promise(number)


def _recorded(root: Path, keep: int) -> Log:
    """Return the log of two processes that save, load, and save more than is kept."""
    root.mkdir()
    disk = _RecordingDisk(root)
    for numbers in ([1, 2, 3], [4, 5]):
        store = Checkpoints(root / STORE, keep, disk=disk)
        store.load()
        _save_and_promise(store, disk, numbers)
    return disk.log


@pytest.mark.parametrize("keep", [1, 2])
def test_a_machine_that_crashes_at_any_step_keeps_what_was_saved(
    tmp_path: Path, places: Iterator[Path], keep: int
) -> None:
    log = _recorded(tmp_path / "recorded", keep)
    assert {step for step, _ in log} | {"names", "read", "close"} == STEPS | {"promise"}
    for count, machine, promised in _crashes(log):
        for choice in [*EXTREMES, *(_random_choice(4 * count + extra) for extra in range(4))]:
            _check(machine, promised, next(places), choice)


@pytest.mark.parametrize(
    "forgotten",
    [
        ("fsync", "tensors.safetensors"),
        ("fsync", "manifest.json"),
        ("fsync_folder", "part"),
        ("fsync_folder", STORE),
        ("fsync_folder", ""),
    ],
)
def test_every_fsync_is_needed(tmp_path: Path, places: Iterator[Path], forgotten: tuple[str, str]) -> None:
    """The check above finds a save that leaves any one of them out."""
    files: dict[int, str] = {}

    def is_forgotten(step: str, args: tuple[Any, ...]) -> bool:
        if step == "create":
            files[args[1]] = args[0].name
        target = files[args[0]] if step == "fsync" else args[0].name if step == "fsync_folder" else ""
        return (step, target.removeprefix("0").rpartition(".part")[1].strip(".") or target) == forgotten

    log = _recorded(tmp_path / "recorded", keep=2)
    shortened = [(step, args) for step, args in log if not is_forgotten(step, args)]
    assert len(shortened) < len(log)
    with pytest.raises(AssertionError):
        _check_everywhere(shortened, places)


def test_a_machine_that_crashes_after_a_process_was_killed_keeps_what_was_loaded(
    tmp_path: Path, places: Iterator[Path]
) -> None:
    """Also a generation whose name the killed process had not yet brought to the disk."""
    counting = CountingDisk()
    (tmp_path / "counted").mkdir()
    counted = Checkpoints(tmp_path / "counted" / STORE, keep=1, disk=counting)
    save(counted, 1)
    first = len(counting.steps)
    save(counted, 2)
    for fatal in range(1, len(counting.steps) + 1):
        root = tmp_path / f"killed-{fatal}"
        root.mkdir()
        disk = _RecordingDisk(root)
        disk.left = fatal
        store = Checkpoints(root / STORE, keep=1, disk=disk)
        with pytest.raises(_Died):
            _save_and_promise(store, disk, [1, 2])
        died_at = len(disk.log)
        disk.left = None
        again = Checkpoints(root / STORE, keep=1, disk=disk)
        found = again.load()
        number = found.number if found else 0
        assert number >= (fatal > first)
        disk.promise(number)
        save(again, number + 1)
        disk.promise(number + 1)
        _check_everywhere(disk.log, places, died_at)
