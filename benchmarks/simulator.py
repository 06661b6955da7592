"""Seconds a round of the dense simulator, at growing numbers of nodes.

    python benchmarks/simulator.py [--nodes 10 100 1000 10000] [--rule balance mean] [--json FILE]

Softmax regression on digits (650 parameters) over a random 4-regular graph, a tenth of the nodes Byzantine (sign
flip), 10 local steps of 32 images a round. Every node holds 144 images, drawn with replacement: the data set has
fewer images than the largest network has nodes. Figures are medians over rounds, on one torch thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gossipfl.codec import make_codec
from gossipfl.robust.registry import make_attack, make_rule
from gossipfl.simulator import Byzantine, Simulator
from gossipfl.tasks.base import Partition, Shard, TrainOptions
from gossipfl.tasks.fleet import make_fleet
from gossipfl.tasks.registry import load_task
from gossipfl.topology import make_topology

IMAGES = 144


@dataclass(frozen=True)
class Row:
    """One network: medians over rounds, in wall seconds of the whole network; peak memory of the process so far."""

    nodes: int
    rule: str
    round_s: float
    train_s: float
    peak_rss_bytes: int


def network(nodes: int, rule: str, rounds: int) -> Simulator:
    """Return a simulator of ``nodes`` nodes."""
    task = load_task("digits", {"model": "softmax"})
    whole = task.shards(1, Partition("iid"), 0)[0]
    generator = np.random.default_rng(0)
    draws = [generator.choice(len(whole.inputs), IMAGES) for _ in range(nodes)]
    shards = [Shard(whole.inputs[d], whole.targets[d], whole.test_inputs, whole.test_targets) for d in draws]
    return Simulator(
        make_topology("random-regular", nodes, {"degree": 4}, 0),
        make_fleet(task, shards, TrainOptions(), model_seed=0, order_seeds=range(nodes)),
        make_rule(rule),
        make_codec("float32"),
        byzantine=Byzantine(range(0, nodes, 10), make_attack("sign-flip"), 0),
        horizon=rounds,
    )


def measure(nodes: int, rule: str, rounds: int) -> Row:
    """Run ``rounds`` rounds after one to warm up."""
    simulator = network(nodes, rule, rounds + 1)
    simulator.step()
    reports = [simulator.step() for _ in range(rounds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Row(
        nodes,
        rule,
        statistics.median(report.round_s for report in reports),
        statistics.median(report.train_s for report in reports),
        peak if sys.platform == "darwin" else peak * 1024,
    )


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Seconds a round of the dense simulator.")
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--rule", nargs="+", default=["balance", "mean"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'nodes':>8}{'rule':>10}{'round s':>11}{'of it training':>17}{'peak MB':>10}")
    rows = []
    for nodes in sorted(options.nodes):
        for rule in options.rule:
            row = measure(nodes, rule, options.rounds)
            rows.append(row)
            print(
                f"{nodes:>8,}{rule:>10}{row.round_s:>11.4f}{row.train_s:>17.4f}{row.peak_rss_bytes / 1e6:>10.0f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
