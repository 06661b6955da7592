"""Models of one architecture trained many at a time; what the architecture is, a ``Network`` says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from gossipfl.errors import ConfigError
from gossipfl.tasks.base import Evaluation, Shard, TrainOptions
from gossipfl.tasks.batches import StackedOrders, probe_rows
from gossipfl.tasks.torch_learner import EVALUATION_ROWS, check_shard, open_device, resident


class Workbench(Protocol):
    """Where a few models are trained: laid out for it, on the device, with their optimiser's memory."""

    def load(self) -> None:
        """Take over the models as they are now."""
        ...

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Step along the gradient of the losses, Σ_b shares * cross-entropy, and return them, (g,).

        ``inputs`` (g, b, p), ``labels`` (g, b).
        """
        ...

    def store(self) -> None:
        """Write the models back."""
        ...


class Network(Protocol):
    """How classifiers of one architecture are computed, many at once. Inputs come as rows of p values."""

    def logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        """Return what ``models`` (m, d) make of ``inputs`` (rows, p), all of the same: (m, M, rows)."""
        ...

    def workbench(self, models: Tensor, scratch: Tensor, shares: Tensor, options: TrainOptions) -> Workbench:
        """Return a place to train ``models`` (g, d), the fleet's own rows, in.

        ``scratch`` (g * d,), on the device, is shared with others, in turn; ``shares`` (g, b) are those of
        ``StackedOrders``.
        """
        ...

    def trained_together(self, batch: int) -> int:
        """Return how many models are best trained together."""
        ...

    def judged_together(self, rows: int) -> int:
        """Return how many models ``logits`` is best asked for at a time."""
        ...


@dataclass(frozen=True, slots=True)
class _Group:
    """Nodes that are trained together."""

    orders: StackedOrders
    bench: Workbench


@dataclass(frozen=True, slots=True)
class _Test:
    """Consecutive nodes that are measured on the same data, inputs (rows, p) and labels (rows,)."""

    nodes: slice
    inputs: Tensor
    labels: Tensor


class BatchedFleet:
    """n classifiers of one architecture whose models are the rows of one matrix.

    Every node draws the batches that a learner of its own with the same seed would draw, and takes the same steps, up
    to the rounding of float32. ``vectors`` (n, d), on the CPU, is where they start, and is kept. Raises ConfigError
    and DataError as a learner does.
    """

    def __init__(
        self,
        network: Network,
        vectors: Tensor,
        shards: Sequence[Shard],
        options: TrainOptions,
        order_seeds: Sequence[int],
    ) -> None:
        for shard in shards:
            check_shard(shard, options)
        device = open_device(options.device)
        self._network, self._vectors = network, vectors
        self._sizes = [len(shard.inputs) for shard in shards]
        self._starts = [0, *accumulate(self._sizes)][:-1]
        self._seeds = order_seeds
        self._inputs = torch.cat([_rows(shard.inputs, device) for shard in shards])
        self._labels = torch.cat([resident(shard.targets, device) for shard in shards])
        self._tests = list(_tests(shards, device))
        self._groups = list(self._grouped(options))
        rows = max(group.orders.shares.numel() for group in self._groups)
        self._batch = self._inputs.new_empty(rows, self._inputs.shape[1])

    @property
    def vectors(self) -> Tensor:
        """All models, (n, d)."""
        return self._vectors

    @property
    def common_test(self) -> bool:
        """Whether all nodes are measured on the same data."""
        return len(self._tests) == 1

    def train(self, steps: int) -> Tensor:
        """Let every node take ``steps`` steps; return the mean losses, (n,) float64."""
        return torch.cat([self._train(group, steps) for group in self._groups])

    def evaluate(self) -> list[Evaluation]:
        """Mean cross-entropy and accuracy of every node on its held-out data."""
        return [result for test in self._tests for result in self._score(self._vectors[test.nodes], test)]

    def evaluate_vectors(self, vectors: Tensor) -> list[Evaluation]:
        """Measure any models (m, d) on what all nodes are measured on; raises ConfigError where that is not one."""
        if not self.common_test:
            raise no_common_test()
        return self._score(vectors, self._tests[0])

    def losses(self, vectors: Tensor, nodes: Tensor) -> Tensor:
        """Return the mean loss of each of ``vectors`` (m, d) on its node's probe, ``nodes`` (m,); (m,) float64."""
        means = []
        start = 0
        for node, run in groupby(nodes.tolist()):
            candidates = vectors[start : start + len(list(run))]
            start += len(candidates)
            rows = self._probes[node]
            inputs, labels = self._inputs.index_select(0, rows), self._labels.index_select(0, rows)
            means += [losses / len(rows) for losses, _ in self._sums(candidates, inputs, labels)]
        return torch.cat(means).cpu() if means else torch.empty(0, dtype=torch.float64)

    @cached_property
    def _probes(self) -> list[Tensor]:
        """Which rows each node judges models with."""
        each = zip(self._starts, self._sizes, self._seeds, strict=True)
        return [(probe_rows(size, seed) + start).to(self._inputs.device) for start, size, seed in each]

    def _grouped(self, options: TrainOptions) -> Iterator[_Group]:
        """Cut the nodes into groups of nearly equal size, with one scratch for all."""
        count, size = self._vectors.shape
        most = max(1, self._network.trained_together(min(options.batch, max(self._sizes))))
        pieces = -(-count // most)
        bounds = [count * piece // pieces for piece in range(pieces + 1)]
        largest = -(-count // pieces)
        device = self._inputs.device
        scratch = torch.empty(largest * size, device=device)
        for low, high in pairwise(bounds):
            nodes = slice(low, high)
            orders = StackedOrders(self._starts[nodes], self._sizes[nodes], options.batch, self._seeds[nodes], device)
            place = scratch[: (high - low) * size]
            yield _Group(orders, self._network.workbench(self._vectors[nodes], place, orders.shares, options))

    def _train(self, group: _Group, steps: int) -> Tensor:
        shape = group.orders.shares.shape
        inputs = self._batch[: shape.numel()]
        losses = torch.zeros(shape[0], dtype=torch.float64, device=inputs.device)
        group.bench.load()
        for _ in range(steps):
            rows = group.orders.take()
            torch.index_select(self._inputs, 0, rows, out=inputs)
            labels = self._labels.index_select(0, rows)
            losses += group.bench.step(inputs.view(*shape, -1), labels.view(shape))
        group.bench.store()
        return losses.cpu() / steps if steps else torch.full(shape[:1], torch.nan, dtype=torch.float64)

    def _score(self, models: Tensor, test: _Test) -> list[Evaluation]:
        count = len(test.labels)
        return [
            Evaluation(loss=loss / count, accuracy=hits / count)
            for losses, right in self._sums(models, test.inputs, test.labels)
            for loss, hits in zip(losses.tolist(), right.tolist(), strict=True)
        ]

    def _sums(self, models: Tensor, inputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield summed cross-entropies, float64, and numbers of right answers of a few ``models`` at a time."""
        together = max(1, self._network.judged_together(min(len(labels), EVALUATION_ROWS)))
        for few in torch.split(models.to(inputs.device), together):
            losses = torch.zeros(len(few), dtype=torch.float64, device=inputs.device)
            hits = torch.zeros(len(few), dtype=torch.int64, device=inputs.device)
            pieces = torch.split(inputs, EVALUATION_ROWS), torch.split(labels, EVALUATION_ROWS)
            for rows, truth in zip(*pieces, strict=True):
                logits = self._network.logits(few, rows)
                index = truth.expand(len(few), 1, -1)
                losses -= functional.log_softmax(logits, 1).gather(1, index).sum((1, 2), dtype=torch.float64)
                hits += count_hits(logits, index)
            yield losses, hits


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return for how many rows argmax of ``logits`` (m, M, rows) is the label, (m,); ``labels`` (m, 1, rows).

    Argmax takes longer than all else in an evaluation. It decides only where the largest is not one alone or no number.
    """
    largest = logits.amax(1, keepdim=True)
    if bool(((logits == largest).sum(1) == 1).all()):
        return (logits.gather(1, labels) == largest).sum((1, 2))
    return (logits.argmax(1, keepdim=True) == labels).sum((1, 2))


def no_common_test() -> ConfigError:
    """Return the error for a network whose nodes have held-out data of their own."""
    return ConfigError(
        "each node of this task is measured on data of its own; one model cannot be measured for all, leave that out"
    )


def _tests(shards: Sequence[Shard], device: torch.device) -> Iterator[_Test]:
    start = 0
    for _, run in groupby(shards, key=lambda shard: (id(shard.test_inputs), id(shard.test_targets))):
        alike = list(run)
        inputs, labels = _rows(alike[0].test_inputs, device), resident(alike[0].test_targets, device)
        yield _Test(slice(start, start + len(alike)), inputs, labels)
        start += len(alike)


def _rows(array: object, device: torch.device) -> Tensor:
    return resident(array, device).flatten(1)  # type: ignore[arg-type]
