"""Softmax regression of thousands of nodes at once, as batched matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gossipfl.tasks.base import Evaluation, Shard, TrainOptions
from gossipfl.tasks.batches import BatchOrder
from gossipfl.tasks.optimizers import make_optimizer
from gossipfl.tasks.torch_learner import EVALUATION_ROWS, GATHER_BYTES, check_shard, resident
from gossipfl.vector import Layout

GROUP_NODES = 128
"""Nodes trained together: their models, gradients and one batch each stay near the core."""

CPU = torch.device("cpu")


class SoftmaxFleet:
    """n softmax regressions whose models, W (M, p) row by row and then b (M,), are the rows of one matrix.

    Every node draws the batches that a learner of its own with the same seed would draw, and takes the same steps:
    gradient (P - Y)^T X / n for W and the mean of P - Y for b. ``initial`` (d,) is where all start. Shards that are
    smaller than a batch train on the whole of it. Raises ConfigError and DataError as a learner does.
    """

    def __init__(
        self,
        layout: Layout,
        initial: Tensor,
        shards: Sequence[Shard],
        options: TrainOptions,
        order_seeds: Sequence[int],
    ) -> None:
        self._shape = layout.entries[0].shape
        self._vectors = initial.repeat(len(shards), 1)
        self._shards = shards
        self._groups = []
        for low in range(0, len(shards), GROUP_NODES):
            nodes = slice(low, low + GROUP_NODES)
            models = _Models(self._vectors[nodes], *self._shape)
            self._groups.append(_Group(models, shards[nodes], options, order_seeds[nodes]))

    @property
    def vectors(self) -> Tensor:
        """All models, (n, d)."""
        return self._vectors

    def train(self, steps: int) -> Tensor:
        """Let every node take ``steps`` steps; return the mean losses, (n,) float64."""
        return torch.cat([group.train(steps) for group in self._groups])

    def evaluate(self) -> list[Evaluation]:
        """Mean cross-entropy and accuracy of every node on its held-out data."""
        results: list[Evaluation] = []
        first, last = 0, 0
        while first < len(self._shards):
            last = min(first + GROUP_NODES, self._shared_until(first))
            results += self._evaluate(first, last)
            first = last
        return results

    def _shared_until(self, first: int) -> int:
        """Return the end of the run of nodes that have the held-out data of node ``first``."""
        inputs = self._shards[first].test_inputs
        last = first
        while last < len(self._shards) and self._shards[last].test_inputs is inputs:
            last += 1
        return last

    def _evaluate(self, first: int, last: int) -> list[Evaluation]:
        shard = self._shards[first]
        inputs, labels = resident(shard.test_inputs, CPU).flatten(1), resident(shard.test_targets, CPU)
        models = _Models(self._vectors[first:last], *self._shape)
        losses, hits = torch.zeros(last - first, dtype=torch.float64), torch.zeros(last - first, dtype=torch.int64)
        for rows, truth in zip(torch.split(inputs, EVALUATION_ROWS), torch.split(labels, EVALUATION_ROWS), strict=True):
            logits = models.logits(rows.expand(last - first, -1, -1))
            index = truth.expand(last - first, -1).unsqueeze(2)
            losses -= functional.log_softmax(logits, 2).gather(2, index).sum((1, 2), dtype=torch.float64)
            hits += (logits.argmax(2) == truth).sum(1)
        return [
            Evaluation(loss=loss / len(labels), accuracy=hit / len(labels))
            for loss, hit in zip(losses.tolist(), hits.tolist(), strict=True)
        ]


class _Models:
    """Rows (g, d) seen as weights (g, M, p) and biases (g, M)."""

    def __init__(self, vectors: Tensor, classes: int, features: int) -> None:
        cut = classes * features
        self.vectors = vectors
        self.weights = vectors[:, :cut].view(-1, classes, features)
        self.biases = vectors[:, cut:]

    def logits(self, inputs: Tensor) -> Tensor:
        """W x + b for inputs (g, rows, p): (g, rows, M)."""
        return torch.baddbmm(self.biases.unsqueeze(1), inputs, self.weights.transpose(1, 2))


class _Group:
    """Nodes that are trained together."""

    def __init__(
        self, models: _Models, shards: Sequence[Shard], options: TrainOptions, order_seeds: Sequence[int]
    ) -> None:
        for shard in shards:
            check_shard(shard, options)
        self._models = models
        self._gradients = _Models(torch.zeros_like(models.vectors), *models.weights.shape[1:])
        self._optimizer = make_optimizer(options, models.vectors)
        self._data = [(resident(shard.inputs, CPU).flatten(1), resident(shard.targets, CPU)) for shard in shards]
        self._orders = [BatchOrder(len(shard.inputs), seed) for shard, seed in zip(shards, order_seeds, strict=True)]
        sizes = torch.tensor([min(options.batch, len(shard.inputs)) for shard in shards])
        self._sizes, self._batch = sizes.tolist(), int(sizes.max())
        # Batches are padded to the longest; a padded row counts for nothing.
        self._shares = (torch.arange(self._batch) < sizes[:, None]) / sizes[:, None]

    def train(self, steps: int) -> Tensor:
        losses = torch.zeros(len(self._orders), dtype=torch.float64)
        for inputs, labels in self._batches(steps):
            losses += self._step(inputs, labels)
        return losses / steps if steps else torch.full_like(losses, torch.nan)

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step on inputs (g, batch, p) and labels (g, batch); return the losses (g,)."""
        log_probabilities = functional.log_softmax(self._models.logits(inputs), 2)
        index = labels.unsqueeze(2)
        losses = -(log_probabilities.gather(2, index).squeeze(2) * self._shares).sum(1)
        errors = log_probabilities.exp_()
        errors.scatter_add_(2, index, torch.full_like(index, -1, dtype=errors.dtype))
        errors *= self._shares.unsqueeze(2)
        gradients = self._gradients
        gradients.weights.copy_(torch.bmm(errors.transpose(1, 2), inputs))
        gradients.biases.copy_(errors.sum(1))
        self._optimizer.step(self._models.vectors, gradients.vectors)
        return losses.double()

    def _batches(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs (g, batch, p) and labels (g, batch) of each step, gathered for several steps at a time."""
        nodes, features = len(self._orders), self._data[0][0].shape[1]
        most = max(1, GATHER_BYTES // (4 * nodes * self._batch * features))
        while steps > 0:
            count = min(steps, most)
            inputs = torch.zeros(nodes, count, self._batch, features)
            labels = torch.zeros(nodes, count, self._batch, dtype=torch.int64)
            for node, (order, size) in enumerate(zip(self._orders, self._sizes, strict=True)):
                rows = order.take(count * size)
                examples, targets = self._data[node]
                inputs[node, :, :size] = examples.index_select(0, rows).view(count, size, features)
                labels[node, :, :size] = targets.index_select(0, rows).view(count, size)
            yield from zip(inputs.unbind(1), labels.unbind(1), strict=True)
            steps -= count
