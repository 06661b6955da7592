"""The local engine: worker processes that fill the cores.

Each worker is handed a few cells ahead, enough for ``AHEAD_S`` of work, so that it never waits for the next one, and so
few that none is left with a long queue at the end. A worker answers in the order of its cells; when it dies, the first
one without an answer is the one that it was at.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gossipfl.errors import GossipflError
from gossipfl.experiments.executors import TICK_S, Batches, Interrupt, Outcome, Queue, job_of
from gossipfl.experiments.grid import Cell

AHEAD_S = 0.2
MOST_AHEAD = 64
AHEAD_BYTES = 32 << 10
"""Jobs that wait in a worker's pipe; less than a pipe holds, or this side and the worker could block each other."""

READ_BYTES = 1 << 20
STILLBORN = 3
"""So many workers in a row that die before they are ready end the experiment."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from gossipfl.experiments.worker import main; main(int(sys.argv[1]))"
"""A worker imports what this process would: the same path, and not the working directory before it."""


class Worker:
    """One worker process and the cells that it has been handed."""

    def __init__(self, log: Path) -> None:
        environment = {**dict.fromkeys(THREADS, "1"), **os.environ}
        with log.open("ab") as errors:
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter, and nothing that a user wrote
                [sys.executable, "-P", "-c", PROGRAM, str(os.getpid()), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                bufsize=0,
            )
        self.ready = False
        self.pending: deque[Cell] = deque()
        self._sizes: deque[int] = deque()
        self._partial = b""

    @property
    def output(self) -> int:
        """The descriptor to wait on."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def has_room(self, ahead: int) -> bool:
        """Say whether it should be handed another cell."""
        return not self.pending or (len(self.pending) < ahead and sum(self._sizes) < AHEAD_BYTES)

    def hand(self, cell: Cell, runs: str | None) -> None:
        """Hand it a cell; a worker that has just died is found out by its output."""
        line = json.dumps(asdict(job_of(cell, runs)), separators=(",", ":")).encode() + b"\n"
        self.pending.append(cell)
        self._sizes.append(len(line))
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(line)

    def answers(self) -> Iterator[tuple[Cell, dict[str, Any]]] | None:
        """Return what it has answered by now, or None once it has died and said its last."""
        data = os.read(self.output, READ_BYTES)
        return self._parsed(data) if data else None

    def end(self) -> str:
        """End it, if it has not ended by itself, and say how it ended."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        code = self.process.wait()
        if code >= 0:
            return f"with exit code {code}"
        name = signal.Signals(-code).name
        return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def _parsed(self, data: bytes) -> Iterator[tuple[Cell, dict[str, Any]]]:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if not self.ready:
                self.ready = True
                continue
            self._sizes.popleft()
            yield self.pending.popleft(), json.loads(line)


class LocalPool:
    """Worker processes on this machine; ``runs`` is the folder of full records, ``log`` takes what workers print."""

    def __init__(self, workers: int, *, log: Path, runs: Path | None = None) -> None:
        self.workers = workers
        self._log = log
        self._runs = None if runs is None else str(runs)
        self._alive: dict[int, Worker] = {}
        self._stillborn = 0
        self._mean_s = AHEAD_S

    def batches(self, cells: Iterable[Cell], interrupt: Interrupt) -> Batches:
        """Yield outcomes as they come; see ``Executor``."""
        queue = Queue(cells)
        with selectors.DefaultSelector() as selector:
            try:
                while not interrupt.seen and self._feed(queue, selector):
                    ready = selector.select(TICK_S)
                    yield [outcome for key, _ in ready for outcome in self._collect(key.data, queue, selector)]
                if interrupt.seen:
                    yield self._drain(queue)
            finally:
                for worker in self._alive.values():
                    worker.end()
                self._alive.clear()

    def _feed(self, queue: Queue, selector: selectors.BaseSelector) -> bool:
        """Hand out cells, with new workers for them where there is room; say whether anything is under way."""
        ahead = max(1, min(MOST_AHEAD, int(AHEAD_S / self._mean_s)))
        # One each before anybody gets a second one.
        for depth in range(1, ahead + 1):
            for worker in self._alive.values():
                if worker.has_room(depth) and not self._hand(worker, queue):
                    return any(worker.pending for worker in self._alive.values())
        while len(self._alive) < self.workers:
            cell = queue.take()
            if cell is None:
                break
            worker = Worker(self._log)
            self._alive[worker.output] = worker
            selector.register(worker.output, selectors.EVENT_READ, worker)
            worker.hand(cell, self._runs)
        return any(worker.pending for worker in self._alive.values())

    def _hand(self, worker: Worker, queue: Queue) -> bool:
        cell = queue.take()
        if cell is not None:
            worker.hand(cell, self._runs)
        return cell is not None

    def _collect(self, worker: Worker, queue: Queue, selector: selectors.BaseSelector) -> Iterator[Outcome]:
        answers = worker.answers()
        if answers is not None:
            yield from self._noted(answers, queue)
            return
        selector.unregister(worker.output)
        del self._alive[worker.output]
        how = worker.end()
        begun = worker.pending.popleft() if worker.pending and worker.ready else None
        queue.put_back(list(worker.pending))
        self._stillborn = 0 if worker.ready else self._stillborn + 1
        if self._stillborn >= STILLBORN:
            raise GossipflError(f"no worker can start, the last one ended {how}; {self._log} says why")
        given_up = queue.died(begun, how) if begun is not None else None
        if given_up is not None:
            yield given_up

    def _noted(self, answers: Iterable[tuple[Cell, dict[str, Any]]], queue: Queue) -> Iterator[Outcome]:
        for cell, result in answers:
            self._mean_s += 0.2 * (result["wall_s"] - self._mean_s)
            yield queue.done(cell, result)

    def _drain(self, queue: Queue) -> list[Outcome]:
        """End all workers, and return what they had finished before."""
        outcomes: list[Outcome] = []
        for worker in self._alive.values():
            worker.process.kill()
            while (answers := worker.answers()) is not None:
                outcomes += self._noted(answers, queue)
        return outcomes
