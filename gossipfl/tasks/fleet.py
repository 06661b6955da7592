"""All learners of a simulated network, with their models as rows of one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gossipfl.tasks.base import Evaluation, Learner, Shard, Task, TrainOptions
from gossipfl.tasks.classification import ClassificationTask, NumpySoftmaxTask
from gossipfl.tasks.models import Softmax
from gossipfl.tasks.numpy_learner import NumpySoftmax
from gossipfl.tasks.softmax_fleet import SoftmaxFleet
from gossipfl.tasks.torch_learner import TorchLearner

BATCHED_FROM = 32
"""Nodes from which on softmax models are trained all at once; fewer run exactly what their agents would run."""


class Fleet(Protocol):
    """The learners of n nodes; row i of ``vectors`` is node i's model, live: writing there changes it."""

    @property
    def vectors(self) -> Tensor:
        """All models, (n, d) float32 on the CPU."""
        ...

    def train(self, steps: int) -> Tensor:
        """Let every node take ``steps`` local steps; return the mean training losses, (n,) float64."""
        ...

    def evaluate(self) -> list[Evaluation]:
        """Measure every node's model on its own held-out data."""
        ...


class LearnerFleet:
    """Learners of any kind, one after the other; what they hold is copied from and to the matrix's rows."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        self._learners = learners
        self._vectors = torch.stack([learner.vector.detach().cpu() for learner in learners])

    @property
    def vectors(self) -> Tensor:
        """All models, (n, d)."""
        return self._vectors

    def train(self, steps: int) -> Tensor:
        """Train one node after the other."""
        losses = torch.empty(len(self._learners), dtype=torch.float64)
        for node, (learner, row) in enumerate(zip(self._learners, self._vectors, strict=True)):
            learner.vector.copy_(row)
            losses[node] = learner.train(steps).loss
            row.copy_(learner.vector)
        return losses

    def evaluate(self) -> list[Evaluation]:
        """Measure one node after the other."""
        for learner, row in zip(self._learners, self._vectors, strict=True):
            learner.vector.copy_(row)
        return [learner.evaluate() for learner in self._learners]


def make_fleet(
    task: Task, shards: Sequence[Shard], options: TrainOptions, *, model_seed: int, order_seeds: Sequence[int]
) -> Fleet:
    """Return the learners of all ``shards``, each as ``task.learner`` makes it with its own order seed.

    Many softmax regressions are trained as batched matrix products, with the same batches and the same updates up
    to the rounding of float32.
    """
    first = task.learner(shards[0], options, model_seed=model_seed, order_seed=order_seeds[0])
    if len(shards) >= BATCHED_FROM and _is_softmax(task, first, options):
        return SoftmaxFleet(first.layout, first.vector.detach(), shards, options, order_seeds)
    rest = zip(shards[1:], order_seeds[1:], strict=True)
    return LearnerFleet(
        [first, *(task.learner(shard, options, model_seed=model_seed, order_seed=seed) for shard, seed in rest)]
    )


def _is_softmax(task: Task, learner: Learner, options: TrainOptions) -> bool:
    if type(task) not in {ClassificationTask, NumpySoftmaxTask} or options.device != "cpu":
        return False  # a task of the user's own may have another loss
    return isinstance(learner, NumpySoftmax) or (isinstance(learner, TorchLearner) and type(learner.module) is Softmax)
