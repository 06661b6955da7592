"""Experiments that are small enough to carry out in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossipfl.experiments.cell import measure
from gossipfl.experiments.executors import Batches, Interrupt, Outcome, Queue
from gossipfl.experiments.grid import Cell, Experiment, load_experiment

BASE = """
[base]
nodes = 6
topology = "ring"
rounds = 2
task = { name = "digits", model = "softmax" }
train = { local_steps = 1, batch = 8 }
"""
GRID = """
[grid]
rule = ["mean", "balance"]
attack = ["none", "sign-flip"]
byzantine = [1]
"""


def experiment_of(folder: Path, text: str = BASE + GRID, name: str = "small.toml") -> Experiment:
    """Return the experiment that a TOML text is; keys of the file itself come first in ``text``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_experiment(path)


def outcome_free_of_time(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what the machine's speed decides."""
    return {key: value for key, value in result.items() if key not in {"wall_s", "attempts"}}


def reference(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the results of all cells by hash, carried out one after the other in this process."""
    return {cell.hash: measure(cell.engine, cell.spec()) for cell in experiment.grid.cells}


class Inline:
    """Carries out cells in this process, each with what ``carry`` says; it tells of every one before it begins."""

    workers = 1

    def __init__(self, carry: Any = None, before: Any = None) -> None:
        self._carry = carry or (lambda cell: measure(cell.engine, cell.spec()))
        self._before = before or (lambda _: None)

    def batches(self, cells: Any, interrupt: Interrupt) -> Batches:
        """Yield an outcome at a time."""
        queue = Queue(cells)
        while not interrupt.seen and (cell := queue.take()) is not None:
            self._before(cell)
            yield [queue.done(cell, {"wall_s": 0.0, **self._carry(cell)})]


class Unseen:
    """Watches nothing, but keeps all outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def on_batch(self, outcomes: Any, _tally: Any, _workers: int) -> None:
        """Keep them."""
        self.outcomes += outcomes


def made_up(cell: Cell) -> dict[str, Any]:
    """Return results that follow from the seed and labels alone."""
    value = 0.5 + 0.01 * cell.seed + 0.001 * len("".join(cell.labels))
    return made_up_of(value)


def made_up_of(accuracy: float) -> dict[str, Any]:
    """Return the results of a run that ended with this accuracy."""
    spread = {"mean": accuracy, "min": accuracy - 0.1, "max": accuracy + 0.1, "std": 0.05}
    return {
        "rounds": 2,
        "accuracy": spread,
        "loss": {"mean": 1 - accuracy, "min": 0.0, "max": 1.0, "std": 0.1},
        "metrics": {},
        "worst": {"node": 3, "accuracy": accuracy - 0.1, "loss": 1.0},
        "consensus_distance": 0.25,
        "bytes_per_node_per_round": 1000.0,
        "filter": {"honest_accepted": 9, "honest_rejected": 1, "byzantine_accepted": 1, "byzantine_rejected": 3},
        "series": {
            "round": [1, 2],
            "bytes": [1000.0, 2000.0],
            "consensus_distance": [0.5, 0.25],
            "accuracy": [accuracy / 2, accuracy],
            "accuracy_min": [accuracy / 4, accuracy - 0.1],
            "loss": [1.0, 1 - accuracy],
        },
        "wall_s": 0.5,
    }
