"""How far each engine goes on this machine: whole commands at growing numbers of nodes.

    python benchmarks/scale.py [--rounds 10] [--engine processes virtual simulator] [--transport mqtt] [--most 10000]
                               [--json FILE]

Softmax regression on digits (650 parameters) over a random 4-regular graph, BALANCE, 10 local steps of 32 images a
round. Every node holds 144 images, drawn with replacement: the data set has fewer images than the largest network has
nodes. Processes run over MQTT, or libp2p. ``a round`` is the median wall time of a round; in virtual time, which has no
wall clock, it is the time from the first round to the end of the command over the rounds between, measuring all models
once included. Memory is the proportional set size of all node processes, or the peak of the one process that holds the
whole network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GOSSIPFL = [sys.executable, "-m", "gossipfl"]
ENGINES = {
    "processes": (["testbed", "run"], (10, 32, 100, 128)),
    "virtual": (["testbed", "run", "--transport", "memory"], (10, 100, 1_000)),
    "simulator": (["simulate"], (10, 100, 1_000, 10_000)),
}
WORKLOAD = ["--rule", "balance", "--set", "task.model=softmax", "--set", "partition.samples=144"]
OUTPUT = ["--quiet", "--json", "--no-report"]


def measure(engine: str, nodes: int, rounds: int, transport: str) -> dict[str, Any]:
    """Run one command, processes over ``transport``, and return its figures."""
    size = ["--nodes", str(nodes), "--rounds", str(rounds), "--set", f"evaluate_every={rounds}"]
    with tempfile.TemporaryDirectory() as folder:
        over = ["--transport", transport] if engine == "processes" else []
        command = [*GOSSIPFL, *ENGINES[engine][0], *over, *WORKLOAD, *size, *OUTPUT, "--out", str(Path(folder, "run"))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    round_s = summary["round_s_median"]
    if engine == "virtual":
        round_s = (summary["wall_s"] - summary["startup_s"]) / (rounds - 1)
    return {
        "engine": engine,
        "transport": summary["transport"],
        "nodes": nodes,
        "first_round_s": summary["startup_s"],
        "round_s": round_s,
        "wall_s": summary["wall_s"],
        "memory_bytes": summary.get("pss_bytes_nodes") or summary["peak_rss_bytes"],
        "accuracy": summary["accuracy"]["mean"],
        "faults": summary["fault_counts"],
    }


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="How far each engine goes on this machine.")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--transport", choices=("mqtt", "libp2p"), default="mqtt", help="of the processes (mqtt)")
    parser.add_argument("--rounds", type=int, default=10, help="at least 2")
    parser.add_argument("--most", type=int, default=10_000, metavar="NODES", help="leave out larger networks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: must be at least 2")
    print(f"{'engine':>10}{'nodes':>8}{'first round s':>15}{'a round s':>11}{'memory MB':>11}{'accuracy':>10}  faults")
    rows = []
    for engine in options.engine:
        for nodes in (count for count in ENGINES[engine][1] if count <= options.most):
            row = measure(engine, nodes, options.rounds, options.transport)
            rows.append(row)
            print(
                f"{engine:>10}{nodes:>8,}{row['first_round_s']:>15.2f}{row['round_s']:>11.4f}"
                f"{row['memory_bytes'] / 1e6:>11.0f}{row['accuracy']:>10.3f}  {row['faults'] or 'none'}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
