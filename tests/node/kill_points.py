"""Disks that die, fail or forget at a chosen step, and what is saved to them.

Run as a program, it is the helper that is really killed: one process, which has loaded torch, forks a child for each
step of a save or load, and the child kills itself with SIGKILL before that step, or in the middle of a write.

    python kill_points.py {first,save,load} KEEP BASE FOLDER

BASE is copied to FOLDER/1, FOLDER/2, ... for the children; their results are printed as JSON lines.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossipfl_node.checkpoints import Checkpoint, Checkpoints
from gossipfl_node.durable import Disk

STEPS = frozenset(name for name in vars(Disk) if not name.startswith("_"))
STORE = "checkpoints"


class StepwiseDisk(Disk):
    """Calls ``before`` with the name and arguments of each step, and ``after`` with its result."""

    def before(self, step: str, *args: Any) -> None:
        pass

    def after(self, step: str, result: Any, *args: Any) -> None:
        pass


def _stepwise(step: str) -> Any:
    take = getattr(Disk, step)

    def method(self: StepwiseDisk, *args: Any) -> Any:
        self.before(step, *args)
        result = take(self, *args)
        self.after(step, result, *args)
        return result

    return method


for _step in STEPS:
    setattr(StepwiseDisk, _step, _stepwise(_step))


class CountingDisk(StepwiseDisk):
    """Lists the steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before(self, step: str, *args: Any) -> None:
        self.steps.append(step)


class FastDisk(StepwiseDisk):
    """Says that everything is on the disk, at once: for tests of what a healthy machine does."""

    def fsync(self, descriptor: int) -> None:
        self.before("fsync", descriptor)

    def fsync_folder(self, folder: Path) -> None:
        self.before("fsync_folder", folder)
        folder.stat()


class FailingDisk(FastDisk):
    """Fails at step ``first`` (from 1) with ``error``, and ``for_ever`` from there on, but where nothing is changed."""

    def __init__(self, first: int, error: int, for_ever: bool) -> None:
        self.first = first
        self.error = error
        self.for_ever = for_ever
        self.steps: list[str] = []
        self.failed = 0

    def before(self, step: str, *args: Any) -> None:
        self.steps.append(step)
        if len(self.steps) == self.first or (self.for_ever and len(self.steps) > self.first):
            self.failed += 1
            if step == "close":
                os.close(args[0])
            if step == "write" and len(args[1]) > 1:
                os.write(args[0], args[1][: len(args[1]) // 2])
            raise OSError(self.error, os.strerror(self.error))


class KillingDisk(StepwiseDisk):
    """Kills this process before step ``fatal`` (from 1), or in the middle of it if it writes."""

    def __init__(self, fatal: int, log: int) -> None:
        self.left = fatal
        self.log = log

    def before(self, step: str, *args: Any) -> None:
        os.write(self.log, f"{step}\n".encode())
        self.left -= 1
        if self.left == 0:
            if step == "write":
                os.write(args[0], args[1][: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)


def content(number: int) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Return what the tests save as generation ``number``: tensors, facts and round."""
    generator = torch.Generator().manual_seed(number)
    tensors = {
        "layer.weight": torch.randn((9, 7), generator=generator).t(),
        "steps": torch.tensor(number, dtype=torch.int64),
        "mask": torch.rand(5, generator=generator) > 0.5,
        "none": torch.empty(0, 3),
    }
    return tensors, {"number": number, "marks": {"peer": [number, 2**53], "other": None}}, 10 * number


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Return tensors as something whose equality is that of every bit."""
    return {
        name: (
            each.dtype,
            tuple(each.shape),
            each.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(),
        )
        for name, each in tensors.items()
    }


def assert_is(checkpoint: Checkpoint | None, number: int) -> None:
    """Assert that a checkpoint is, bit for bit, generation ``number``, saved by ``save``."""
    assert checkpoint is not None
    tensors, facts, round_ = content(number)
    assert (checkpoint.number, checkpoint.round, checkpoint.facts) == (number, round_, facts)
    assert bits(checkpoint.tensors) == bits(tensors)
    assert list(checkpoint.tensors) == list(tensors)


def save(store: Checkpoints, number: int) -> None:
    """Save ``content(number)``, which must become generation ``number``."""
    assert store.save(*content(number)) == number


def _child(mode: str, keep: int, folder: Path, fatal: int, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    store = Checkpoints(folder / STORE, keep, disk=KillingDisk(fatal, descriptor))
    if mode == "load":
        store.load()
    else:
        store.save(*content(1 if mode == "first" else 3))


def main(mode: str, keep: int, base: Path, folder: Path) -> None:
    """Fork a child for each step until one survives."""
    fatal, survived = 0, False
    while not survived:
        fatal += 1
        mine, log = folder / str(fatal), folder / f"{fatal}.log"
        shutil.copytree(base, mine)
        child = os.fork()
        if not child:
            code = 1
            try:
                _child(mode, keep, mine, fatal, log)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        survived = not os.WIFSIGNALED(status)
        result = {
            "folder": str(mine),
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "steps": log.read_text().split(),
        }
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
