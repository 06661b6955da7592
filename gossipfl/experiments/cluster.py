"""The Ray engine: the same cells on the machines of a cluster; this process hands them out and alone writes.

A cell is a task without retries of Ray's own, so that deaths are counted here as they are for the local engine. Every
machine needs the same gossipfl, and the data where a task's options say it is.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gossipfl import __version__
from gossipfl.errors import ConfigError
from gossipfl.experiments.cell import Job, carry_out
from gossipfl.experiments.executors import TICK_S, Batches, Interrupt, Outcome, Queue, job_of
from gossipfl.experiments.grid import Cell

STORE_BYTES = 80 << 20
"""Ray's object store on this machine; results are small, and Ray takes no less."""

AHEAD = 2
"""Tasks in flight for each core: one at work, one that waits for it."""

REACH_S = 5.0
"""Ray itself waits for minutes where nobody listens."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "error",
    # Ray prints what raylets complain of on stdout, where our results may go; deaths are counted here anyway.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # What later versions do by default, and this one warns about.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class RayCluster:
    """A running cluster at ``address`` (or RAY_ADDRESS), or one that is started on this machine for the experiment.

    ``workers`` bounds how many cells are carried out at once (None: one for each core of the cluster); ``runs`` is the
    folder of full records, on a disk that all machines share. Raises ConfigError where Ray or the cluster is missing.
    """

    def __init__(self, workers: int | None = None, *, address: str | None = None, runs: Path | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        if self._address is not None:
            _reach(self._address)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError:
            raise ConfigError('--engine ray needs Ray; pip install "gossipfl[ray]"') from None
        self._ray: Any = ray
        self._most = workers
        self._runs = None if runs is None else str(runs.resolve())
        self._connect()

    @property
    def workers(self) -> int:
        """How many cells are carried out at once, on the machines that are there now."""
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        return cores if self._most is None else min(self._most, max(cores, 1))

    def batches(self, cells: Iterable[Cell], interrupt: Interrupt) -> Batches:
        """Yield outcomes as they come; see ``Executor``."""
        queue = Queue(cells)
        running: dict[Any, Cell] = {}
        try:
            while not interrupt.seen and self._feed(queue, running):
                self._ray.wait(list(running), num_returns=1, timeout=TICK_S)
                yield self._collect(queue, running)
            if interrupt.seen:
                yield self._collect(queue, running)
        finally:
            # On somebody's cluster this ends the tasks of this experiment, on our own everything.
            self._ray.shutdown()

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self._address is None:
            own = {"num_cpus": self._most, "object_store_memory": STORE_BYTES, "include_dashboard": False}
            self._ray.init(address="local", **own, **quiet)
        else:
            try:
                self._ray.init(address=self._address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                told = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ConfigError(f"no Ray cluster at {self._address}: {told}; see ray status there") from None
        self._task = self._ray.remote(num_cpus=1, max_retries=0)(_carry_out)

    def _feed(self, queue: Queue, running: dict[Any, Cell]) -> bool:
        """Hand out cells; say whether anything is under way."""
        most = self.workers if self._most is not None else AHEAD * max(self.workers, 1)
        while len(running) < most and (cell := queue.take()) is not None:
            job = asdict(job_of(cell, self._runs))
            running[self._task.remote(job, __version__, sys.path, str(Path.cwd()))] = cell
        return bool(running)

    def _collect(self, queue: Queue, running: dict[Any, Cell]) -> Sequence[Outcome]:
        """Return the outcomes that are there; cells of dead processes go back to the queue."""
        ready, _ = self._ray.wait(list(running), num_returns=len(running), timeout=0) if running else ([], [])
        outcomes = []
        for task in ready:
            outcome = self._outcome(task, running.pop(task), queue)
            if outcome is not None:
                outcomes.append(outcome)
        return outcomes

    def _outcome(self, task: Any, cell: Cell, queue: Queue) -> Outcome | None:
        errors = self._ray.exceptions
        try:
            return queue.done(cell, self._ray.get(task))
        except errors.RayTaskError as error:
            # A cell's own mistakes are its result; this is a machine that cannot even begin, so another try is no use.
            return queue.done(cell, {"error": " ".join(str(error.cause or error).split()), "trace": str(error)})
        except errors.RayError as error:
            return queue.died(cell, f"with {type(error).__name__}")


def _reach(address: str) -> None:
    """Raise ConfigError where nobody listens at ``address``, if that is a host and a port."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"no Ray cluster at {address}: {told}; start one with ray start, or mend --address") from None


def _carry_out(job: Mapping[str, Any], version: str, path: Sequence[str], folder: str) -> dict[str, Any]:
    """Carry out a cell on a machine of the cluster, with the caller's path and, where it exists, working directory."""
    if version != __version__:
        return {"error": f"gossipfl {__version__} is on a machine of the cluster, not {version}; install the same"}
    sys.path.extend(entry for entry in path if entry not in sys.path)
    if Path(folder).is_dir():
        os.chdir(folder)
    return carry_out(Job(**job))
