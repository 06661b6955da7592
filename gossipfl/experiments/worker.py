"""A worker process: it reads jobs, a line of JSON each, and answers each of them with a line.

It is started by ``gossipfl.experiments.pool`` with pipes as its standard input and output. The first line that it
writes says that it is ready. It ends when its input does, and the kernel ends it when its parent dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from io import BufferedReader

from gossipfl.experiments.cell import Job, carry_out
from gossipfl.heap import keep_freed_pages
from gossipfl.testbed.orphans import die_with_parent

READY = b'{"ready":true}\n'


def main(parent: int) -> None:
    """Answer jobs until there are no more."""
    # A Ctrl-C on the terminal reaches the whole group; the parent decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    keep_freed_pages()
    jobs, answers = _take_streams()
    _load_engines()
    os.write(answers, READY)
    for line in jobs:
        answer = carry_out(Job(**json.loads(line)))
        _write(answers, json.dumps(answer, separators=(",", ":"), allow_nan=False).encode() + b"\n")


def _take_streams() -> tuple[BufferedReader, int]:
    """Keep the pipes for jobs and answers; whatever else is printed here goes to the log."""
    jobs, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(jobs, "rb"), answers


def _load_engines() -> None:
    """Load before the first job what all jobs need, and no job's time should show."""
    import torch

    import gossipfl.testbed.simulated  # noqa: F401 - for the sake of loading it

    torch.set_num_threads(1)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
