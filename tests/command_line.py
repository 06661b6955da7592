"""The ``gossipfl`` command for tests: called in this process, or run as a person runs it, with its processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gossipfl.cli import app
from gossipfl.entry import run_app
from gossipfl.records import RunData, load_run

PATIENCE_S = 45.0
"""Longest wait for anything; imports take seconds on a busy machine."""

POLL_S = 0.02
COMMAND = (sys.executable, "-m", "gossipfl")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        run_app(app, "gossipfl", arguments)
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until ``condition()`` is true and return its value."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"waited too long for {what}"
        time.sleep(POLL_S)
    return value


@dataclass
class Command:
    """A running ``gossipfl testbed run`` in a session of its own."""

    process: subprocess.Popen[str]
    out: Path

    def await_first_round(self) -> None:
        """Return when all nodes have done a round."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("round "):
                return
        pytest.fail(f"ended with {self.process.wait()} before its first round")

    @property
    def children(self) -> dict[int, str]:
        """What runs below the command: process ids with their names, nodes' as in the records."""
        found = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                head, _, tail = status.read_text().rpartition(")")
                state, parent = tail.split()[:2]
                if int(parent) == self.process.pid and state != "Z":
                    pid, _, name = head.partition(" (")
                    found[int(pid)] = name
        return found

    def node(self, name: str) -> int:
        """Return the process id of a node."""
        return next(pid for pid, found in self.children.items() if found == name)

    @property
    def broker(self) -> int:
        """The process id of the broker."""
        return next(pid for pid, name in self.children.items() if not name.startswith("node-"))

    def interrupt(self) -> None:
        """Do what Ctrl-C on a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; returns exit code, stdout and what stderr still held."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def run(self) -> RunData:
        """Return the records."""
        return load_run(self.out)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the recorded events of one kind."""
        return [dict(event) for event in self.run().events() if event["event"] == name]


@contextlib.contextmanager
def started(out: Path, *arguments: str, **environment: str) -> Iterator[Command]:
    """Start ``gossipfl testbed run`` with records in ``out``; nothing of it outlives the context."""
    process = subprocess.Popen(
        [*COMMAND, "testbed", "run", "--out", str(out), "--no-report", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )
    command = Command(process, out)
    try:
        yield command
    finally:
        for pid in command.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


def gone(pid: int) -> bool:
    """Say whether a process has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def last_line(text: str) -> dict[str, Any]:
    """Return the JSON object on the last line."""
    value = json.loads(text.splitlines()[-1])
    assert isinstance(value, dict)
    return value
