"""How much faster the dense simulator trains a network than a plain loop over its nodes, in one run.

    python benchmarks/simulator_speed.py [--data FOLDER] [--cases softmax-100 ...] [--repeats 7] [--json FILE]

The plain loop is what one would write at first: an ``nn.Module`` and a ``torch.optim.SGD`` for each node, batches by
``index_select``, then the mean over each node and its neighbours. Both do the same arithmetic: same start, same
batches, 10 local steps of 32 images, mean over a random 4-regular graph. ``apart`` is how far their models end from
each other, in units of their norm (float32 rounding, which the kinks of a CNN blow up: float64 ends as far away).

Rounds of the two alternate; figures are medians of CPU seconds on one torch thread, which is wall time on an idle
core. ``bound`` is how many times faster than the plain loop a perceptron's matrix products alone would be, forward and
backward: no program that computes them can do better. ``mixing`` is the simulator's time outside of training.
``--data`` is a folder with MNIST's IDX files; without it the images are noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from gossipfl.codec import make_codec
from gossipfl.robust.registry import make_rule
from gossipfl.simulator import Simulator
from gossipfl.tasks import mnist
from gossipfl.tasks.base import Partition, Shard, TrainOptions
from gossipfl.tasks.classification import ClassificationTask
from gossipfl.tasks.fleet import make_fleet
from gossipfl.tasks.models import Softmax, balance_cnn, mlp
from gossipfl.tasks.registry import load_task
from gossipfl.topology import make_topology
from gossipfl.topology.graph import Topology

STEPS, BATCH, LR, DEGREE = 10, 32, 0.05, 4


@dataclass(frozen=True)
class Case:
    """A network: ``plain`` makes a node's module, ``sizes`` are a perceptron's layers."""

    data: str
    nodes: int
    images: int
    ours: Callable[[], nn.Module]
    plain: Callable[[], nn.Module]
    sizes: tuple[int, ...] = ()


def plain_cnn() -> nn.Module:
    """Return the BALANCE study's CNN as one writes it down."""
    return nn.Sequential(
        nn.Conv2d(1, 30, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(30, 50, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1250, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def plain_mlp(inputs: int, hidden: int) -> nn.Module:
    """Return a perceptron with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


CASES: Mapping[str, Case] = {
    "mlp-digits-20": Case("digits", 20, 144, lambda: mlp(64, [64], 10), lambda: plain_mlp(64, 64), (64, 64, 10)),
    "mlp-mnist-20": Case("mnist", 20, 500, lambda: mlp(784, [128], 10), lambda: plain_mlp(784, 128), (784, 128, 10)),
    "cnn-mnist-20": Case("pictures", 20, 500, lambda: balance_cnn(10), plain_cnn),
    "softmax-mnist-20": Case("mnist", 20, 500, lambda: Softmax(784, 10), lambda: nn.Linear(784, 10), (784, 10)),
    "softmax-mnist-100": Case("mnist", 100, 500, lambda: Softmax(784, 10), lambda: nn.Linear(784, 10), (784, 10)),
    "softmax-100": Case("digits", 100, 144, lambda: Softmax(64, 10), lambda: nn.Linear(64, 10), (64, 10)),
    "softmax-1000": Case("digits", 1_000, 144, lambda: Softmax(64, 10), lambda: nn.Linear(64, 10), (64, 10)),
}


@dataclass(frozen=True)
class Row:
    """One network: local steps of all nodes in a CPU second; ``mixing`` is its share of the simulator's time."""

    case: str
    nodes: int
    parameters: int
    plain_steps_s: float
    simulator_steps_s: float
    ratio: float
    bound: float | None
    mixing: float
    apart: float


class PlainNode:
    """A node of the plain loop."""

    def __init__(self, module: nn.Module, start: Tensor, shard: Shard, seed: int) -> None:
        vector_to_parameters(start.clone(), module.parameters())
        self.module = module
        self._optimizer = torch.optim.SGD(module.parameters(), lr=LR)
        self._inputs, self._labels = torch.from_numpy(shard.inputs), torch.from_numpy(shard.targets)
        self._batches = batches(len(shard.inputs), seed)

    def train(self) -> None:
        """Take the local steps of a round."""
        for _ in range(STEPS):
            rows = next(self._batches)
            inputs, labels = self._inputs.index_select(0, rows), self._labels.index_select(0, rows)
            self._optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.module(inputs), labels)
            loss.backward()
            self._optimizer.step()


def batches(samples: int, seed: int) -> Iterator[Tensor]:
    """Yield batch after batch from permutations laid end to end."""
    generator = torch.Generator().manual_seed(seed)
    stream = torch.empty(0, dtype=torch.int64)
    while True:
        while len(stream) < BATCH:
            stream = torch.cat([stream, torch.randperm(samples, generator=generator)])
        yield stream[:BATCH]
        stream = stream[BATCH:]


def plain_round(nodes: Sequence[PlainNode], topology: Topology) -> None:
    """Carry out one round of the plain loop."""
    for node in nodes:
        node.train()
    with torch.no_grad():
        vectors = [parameters_to_vector(node.module.parameters()) for node in nodes]
        for place, node in enumerate(nodes):
            heard = [vectors[place], *(vectors[peer] for peer in topology.neighbours(place))]
            vector_to_parameters(torch.stack(heard).mean(0), node.module.parameters())


def products_s(sizes: Sequence[int]) -> float:
    """Return the CPU seconds that one node's matrix products of a round take, for as many nodes as 2 MB hold."""
    nodes = max(1, 500_000 // sum((before + BATCH) * after for before, after in pairwise(sizes)))
    layers = [
        (torch.ones(nodes, BATCH, before), torch.ones(nodes, after, before), torch.ones(nodes, after, BATCH))
        for before, after in pairwise(sizes)
    ]

    def compute() -> None:
        for layer, (inputs, weights, errors) in enumerate(layers * STEPS):
            torch.bmm(weights, inputs.transpose(1, 2))
            weights.baddbmm_(errors, inputs, alpha=-LR)
            if layer % len(layers):
                torch.bmm(weights.transpose(1, 2), errors)

    compute()
    return cpu_s(compute) / nodes


def images_of(data: str, folder: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return all images and labels that nodes draw theirs from."""
    if data == "digits":
        whole = load_task("digits").shards(1, Partition("iid"), 0)[0]
        return whole.inputs, whole.targets
    if folder is not None:
        whole = mnist.load(path=str(folder)).shards(1, Partition("iid"), 0)[0]
        inputs, labels = whole.inputs, whole.targets
    else:
        random = np.random.default_rng(0)
        inputs, labels = random.normal(size=(10_000, 784)).astype(np.float32), random.integers(0, 10, 10_000)
    return (inputs.reshape(-1, 1, 28, 28) if data == "pictures" else inputs), labels


def networks(case: Case, folder: Path | None) -> tuple[Simulator, list[PlainNode], Topology]:
    """Return the same network twice."""
    examples = images_of(case.data, folder)
    task = ClassificationTask("speed", examples, examples, lambda _: case.ours())
    shards = task.shards(case.nodes, Partition("iid", samples=case.images), 0)
    topology = make_topology("random-regular", case.nodes, {"degree": DEGREE}, 0)
    options = TrainOptions(batch=BATCH, lr=LR)
    fleet = make_fleet(task, shards, options, model_seed=0, order_seeds=range(case.nodes))
    simulator = Simulator(topology, fleet, make_rule("mean"), make_codec("float32"), local_steps=STEPS)
    start = fleet.vectors[0].clone()
    return simulator, [PlainNode(case.plain(), start, shard, seed) for seed, shard in enumerate(shards)], topology


def cpu_s(work: Callable[[], object]) -> float:
    """Return the CPU seconds that ``work`` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def share_of_mixing(simulator: Simulator) -> float:
    """Carry out one round of the simulator; return which part of it was not training."""
    report = simulator.step()
    return 1 - report.train_s / report.round_s


def measure(name: str, folder: Path | None, repeats: int) -> Row:
    """Run rounds of both in turn, after one of each to warm up."""
    case = CASES[name]
    simulator, nodes, topology = networks(case, folder)
    plain_round(nodes, topology)
    simulator.step()
    plain, ours, mixing, bare = [], [], [], []
    for _ in range(repeats):
        plain.append(cpu_s(lambda: plain_round(nodes, topology)))
        ours.append(cpu_s(lambda: mixing.append(share_of_mixing(simulator))))
        bare += [products_s(case.sizes)] if case.sizes else []
    vectors = torch.stack([parameters_to_vector(node.module.parameters()).detach() for node in nodes])
    apart = (vectors - simulator.vectors).norm(dim=1).max() / vectors.norm(dim=1).max()
    steps, plain_s, ours_s = case.nodes * STEPS, statistics.median(plain), statistics.median(ours)
    return Row(
        case=name,
        nodes=case.nodes,
        parameters=vectors.shape[1],
        plain_steps_s=steps / plain_s,
        simulator_steps_s=steps / ours_s,
        ratio=plain_s / ours_s,
        bound=plain_s / (case.nodes * statistics.median(bare)) if bare else None,
        mixing=statistics.median(mixing),
        apart=float(apart),
    )


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Node-steps a second: simulator against a plain loop.")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':<20}{'parameters':>11}{'plain /s':>11}{'ours /s':>11}{'ratio':>8}{'bound':>8}{'mixing':>8}")
    rows = []
    for name in options.cases:
        row = measure(name, options.data, options.repeats)
        rows.append(row)
        bound = "-" if row.bound is None else f"{row.bound:.1f}"
        print(
            f"{row.case:<20}{row.parameters:>11,}{row.plain_steps_s:>11,.0f}{row.simulator_steps_s:>11,.0f}"
            f"{row.ratio:>8.1f}{bound:>8}{row.mixing:>8.0%}   apart {row.apart:.1e}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
