"""What each part of PACE is worth: the rule without it, over cells of the matrix.

    python benchmarks/pace_ablation.py --matrix runs/matrix [--networks "20 %"] [--workers 2] [--json FILE]

``--matrix`` is a folder that ``gossipfl experiment run experiments/matrix.toml`` filled: the cells, and what the other
rules reached in them with seed 0. Regret is the honest accuracy of the best rule in a cell, variants included, minus a
variant's own. ``below alone`` counts cells where a variant's honest accuracy is more than 0.01 below training alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from gossipfl.experiments.cell import Job, carry_out
from gossipfl.experiments.results import DONE, load_results
from gossipfl.robust import registry
from gossipfl.robust.rules.pace import Pace
from gossipfl.robust.span import Decision, Geometry

Key = tuple[str, ...]


@dataclass(frozen=True)
class Clipped(Pace):
    """Beyond its reach a neighbour pulls as from the reach, however far it is, as in ClippedGossip."""

    name: ClassVar[str] = "clipped"

    def slowed(self, distances: Tensor, reach: Tensor) -> Tensor:
        """Clip."""
        return torch.where(distances <= reach, 1.0, reach / distances.clamp_min(sys.float_info.min))


@dataclass(frozen=True)
class Unequal(Pace):
    """Metropolis weights in place of equal shares; those of the neighbours outside are given to all."""

    name: ClassVar[str] = "unequal"

    def decide(self, geometry: Geometry) -> Decision:
        """Weigh what is let in otherwise."""
        decision, weights = super().decide(geometry), geometry.weights
        assert decision.memory is not None
        inside = decision.memory[..., 1] > 0
        scale = decision.coefficients * (1.0 + inside.sum(-1, keepdim=True))
        kept = 1.0 - torch.where(inside, 0.0, weights).sum(-1, keepdim=True)
        return replace(decision, coefficients=scale * weights / kept)


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "pace": {"name": "pace"},
    "peers only": {"name": "pace", "reach": 1e9},
    "pace only": {"name": "pace", "enter": 1e9, "leave": 1e9},
    "no trust, all strict": {"name": "pace", "leave": 1.25},
    "no trust, all lenient": {"name": "pace", "enter": 2.0},
    "no memory of the pace": {"name": "pace", "decay": 0.0},
    "clipped to the reach": {"name": "clipped"},
    "Metropolis weights": {"name": "unequal"},
    "enter 1.1": {"name": "pace", "enter": 1.1},
    "enter 1.5": {"name": "pace", "enter": 1.5},
    "leave 1.5": {"name": "pace", "leave": 1.5},
    "leave 3": {"name": "pace", "leave": 3.0},
    "reach 3": {"name": "pace", "reach": 3.0},
    "reach 12": {"name": "pace", "reach": 12.0},
}


def prepare() -> None:
    """Make a worker know the variants, and use one core."""
    torch.set_num_threads(1)
    variants = {rule.name: rule for rule in (Clipped, Unequal)}
    registry.RULES = {**registry.RULES, **variants}  # type: ignore[misc] - the library knows no variants


def accuracies(folder: Path, networks: str) -> tuple[dict[Key, dict[str, float]], dict[Key, dict[str, Any]]]:
    """Return what each rule of the matrix reached in each chosen cell with seed 0, and the cell's run."""
    results = load_results(folder)
    axes = [axis for axis in results.axes if axis != "rule"]
    reached: dict[Key, dict[str, float]] = {}
    runs: dict[Key, dict[str, Any]] = {}
    for row, record in enumerate(results.records):
        key = tuple(results.labels[axis][row] for axis in axes)
        if record is None or record["status"] != DONE or results.seeds[row] != 0:
            continue
        if networks in results.labels["network"][row] or results.labels["attack"][row] == "none":
            reached.setdefault(key, {})[results.labels["rule"][row]] = record["accuracy"]["mean"]
            runs[key] = {**record["spec"], "seed": 0}
    return reached, runs


def jobs(runs: Mapping[Key, Mapping[str, Any]], variant: Mapping[str, Any]) -> Iterator[Job]:
    """Return the runs with the rule ``variant`` in place of theirs."""
    for run in runs.values():
        yield Job("simulate", {**run, "rule": dict(variant)})


def row(reached: Mapping[Key, Mapping[str, float]], variant: str, partitions: Sequence[str]) -> dict[str, Any]:
    """Return the regret of one variant, as told in the table."""
    regrets = {key: max(by_rule.values()) - by_rule[variant] for key, by_rule in reached.items()}
    worst = max(regrets, key=lambda key: regrets[key])
    by_partition = {
        partition: fmean(regret for key, regret in regrets.items() if partition in key) for partition in partitions
    }
    below = sum(by_rule[variant] < by_rule.get("alone", 0.0) - 0.01 for by_rule in reached.values())
    return {
        "variant": variant,
        "mean": fmean(regrets.values()),
        "worst": regrets[worst],
        "where": ", ".join(worst),
        **by_partition,
        "below alone": below,
    }


def main() -> None:
    """Run all variants and print the table."""
    parser = argparse.ArgumentParser(description="What each part of PACE is worth.")
    parser.add_argument("--matrix", type=Path, required=True)
    parser.add_argument("--networks", default="20 %")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare()
    reached, runs = accuracies(options.matrix, options.networks)
    partitions = list(load_results(options.matrix).axes["partition"])
    with ProcessPoolExecutor(options.workers, get_context("spawn"), prepare) as pool:
        for variant in options.variants:
            work = jobs(runs, VARIANTS[variant])
            results = pool.map(carry_out, work, chunksize=8) if options.workers > 1 else map(carry_out, work)
            for key, result in zip(runs, results, strict=True):
                if "error" in result:
                    raise SystemExit(f"{variant}, {', '.join(key)}: {result['error']}")
                reached[key] = {**reached[key], variant: result["accuracy"]["mean"]}
            print(f"{variant}: done", file=sys.stderr, flush=True)
    rows = [row(reached, variant, partitions) for variant in options.variants]
    print(f"{len(reached)} cells")
    print(f"{'variant':<24}{'mean':>8}{'worst':>8}" + "".join(f"{name:>15}" for name in partitions) + "  below alone")
    for one in rows:
        numbers = "".join(f"{one[name]:>15.4f}" for name in partitions)
        told = f"{one['below alone']}  ({one['where']})"
        print(f"{one['variant']:<24}{one['mean']:>8.4f}{one['worst']:>8.3f}{numbers}  {told}")
    if options.json:
        options.json.write_text(json.dumps({"cells": len(reached), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
