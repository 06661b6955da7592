"""Carry out a small grid on a Ray cluster of two nodes, kill a worker and then a whole node on the way.

Run as a program of its own, with the folder to work in: Ray brings threads, signal handlers and warnings with it.
Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS_SKIP_REGEX=".", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")

from ray.cluster_utils import Cluster
from small_grids import BASE, experiment_of

from gossipfl.experiments.cluster import RayCluster
from gossipfl.experiments.folder import claimed
from gossipfl.experiments.run import run_experiment

STORE = {"num_cpus": 1, "object_store_memory": 80 << 20}
GRID = """
[grid]
rule = ["mean", "balance"]
attack = ["none", "sign-flip"]
byzantine = [1]
task = ["tell_where:make"]
"""
TASK = '''
import os, signal
from gossipfl.tasks.digits import load

def make():
    """Return the digits, but for the first who asks: that one waits until it is killed."""
    try:
        with open("waiting", "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return load(model="softmax")
    signal.pause()
'''


class Killer:
    """Kills the worker that waits once another has a result, and a node some results later."""

    def __init__(self, cluster: Any, node: Any) -> None:
        self._cluster, self._node = cluster, node
        self.attempts: list[int] = []
        self.removed = False

    def on_batch(self, outcomes: Any, _tally: Any, _workers: int) -> None:
        """Do what is due."""
        if outcomes and not self.attempts:
            os.kill(int(Path("waiting").read_text(encoding="ascii")), signal.SIGKILL)
        self.attempts += [outcome.attempts for outcome in outcomes]
        if not self.removed and len(self.attempts) >= 6:
            self.removed = True
            self._cluster.remove_node(self._node, allow_graceful=False)


def main(folder: Path) -> None:
    """Do it."""
    os.chdir(folder)
    (folder / "tell_where.py").write_text(TASK, encoding="utf-8")
    sys.path.insert(0, str(folder))
    experiment = experiment_of(
        folder, "seeds = 4\n" + BASE.replace('task = { name = "digits", model = "softmax" }\n', "") + GRID
    )
    cluster = Cluster(initialize_head=True, head_node_args={**STORE, "include_dashboard": False})
    second = cluster.add_node(**STORE)
    executor = RayCluster(address=cluster.address)
    workers = executor.workers
    killer = Killer(cluster, second)
    with claimed(folder / "out", resume=False):
        tally = run_experiment(experiment, folder / "out", executor, killer)
    cluster.shutdown()
    told = {"workers": workers, "attempts": killer.attempts, "removed": killer.removed, "left": tally.left}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
