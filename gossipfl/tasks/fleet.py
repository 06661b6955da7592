"""All learners of a simulated network, with their models as rows of one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.tasks.base import Evaluation, Judge, Learner, Movable, Shard, Task, TrainOptions
from gossipfl.tasks.batched_fleet import BatchedFleet, Network, no_common_test
from gossipfl.tasks.classification import ClassificationTask, NumpySoftmaxTask
from gossipfl.tasks.mlp_fleet import Perceptrons, perceptron_sizes
from gossipfl.tasks.numpy_learner import NumpySoftmax
from gossipfl.tasks.torch_learner import TorchLearner, open_device
from gossipfl.tasks.vmap_fleet import VmappedNetwork, can_be_mapped

BATCHED_FROM = 10
"""Nodes from which on models are computed many at once; fewer run exactly what their agents would run.

Batched products are faster from two nodes on (measured, on one thread). But they round differently, and a codec with
losses makes of the last bit a whole quantum: after four rounds with int8 the simulator and the agents of 8 nodes were
1e-5 to 1e-3 of the models' norm apart. Small networks are where the two are compared.
"""


class Fleet(Protocol):
    """The learners of n nodes; row i of ``vectors`` is node i's model, live: writing there changes it."""

    @property
    def vectors(self) -> Tensor:
        """All models, (n, d) float32 on the CPU."""
        ...

    @property
    def common_test(self) -> bool:
        """Whether all nodes are measured on the same held-out data."""
        ...

    def train(self, steps: int) -> Tensor:
        """Let every node take ``steps`` local steps; return the mean training losses, (n,) float64."""
        ...

    def evaluate(self) -> list[Evaluation]:
        """Measure every node's model on its own held-out data."""
        ...

    def evaluate_vectors(self, vectors: Tensor) -> list[Evaluation]:
        """Measure any models (m, d) on the held-out data that all nodes share; raises ConfigError where they do not."""
        ...

    def losses(self, vectors: Tensor, nodes: Tensor) -> Tensor:
        """Return the mean loss of each of ``vectors`` (m, d) on a fixed probe of training data; (m,) float64.

        The probe is that of its node, ``nodes`` (m,); see ``Judge``. Models of one node are best neighbours. Raises
        ConfigError where the task's learners cannot tell.
        """
        ...


class LearnerFleet:
    """Learners of any kind, one after the other.

    Those that can move live in the matrix's rows, and share one gradient; what others hold is copied from and to them.
    """

    def __init__(self, learners: Sequence[Learner], *, common_test: bool) -> None:
        self._learners, self._common_test = learners, common_test
        self._vectors = torch.stack([learner.vector.detach().cpu() for learner in learners])
        gradient = torch.zeros_like(self._vectors[0])
        self._at_home = [_move(learner, row, gradient) for learner, row in zip(learners, self._vectors, strict=True)]

    @property
    def vectors(self) -> Tensor:
        """All models, (n, d)."""
        return self._vectors

    @property
    def common_test(self) -> bool:
        """Whether all nodes are measured on the same held-out data."""
        return self._common_test

    def train(self, steps: int) -> Tensor:
        """Train one node after the other."""
        losses = torch.empty(len(self._learners), dtype=torch.float64)
        for node, learner in enumerate(self._learners):
            self._bring(node)
            losses[node] = learner.train(steps).loss
            if not self._at_home[node]:
                self._vectors[node].copy_(learner.vector)
        return losses

    def evaluate(self) -> list[Evaluation]:
        """Measure one node after the other."""
        for node in range(len(self._learners)):
            self._bring(node)
        return [learner.evaluate() for learner in self._learners]

    def evaluate_vectors(self, vectors: Tensor) -> list[Evaluation]:
        """Measure any models (m, d) on the common held-out data, in the place of the first node's own."""
        if not self._common_test:
            raise no_common_test()
        learner, own = self._learners[0], self._vectors[0].clone()
        results = []
        try:
            for vector in vectors.clone():  # they may be rows of our own
                learner.vector.copy_(vector)
                results.append(learner.evaluate())
        finally:
            learner.vector.copy_(own)
        return results

    def losses(self, vectors: Tensor, nodes: Tensor) -> Tensor:
        """Ask one node after the other."""
        found: list[float] = []
        for node, run in groupby(nodes.tolist()):
            learner = self._learners[node]
            if not isinstance(learner, Judge):
                raise ConfigError(
                    f"a {type(learner).__name__} cannot tell the losses of models, which the rule asks for; "
                    "give it a method losses(vectors), or use another rule"
                )
            start = len(found)
            found += learner.losses(list(vectors[start : start + len(list(run))]))
        return torch.tensor(found, dtype=torch.float64)

    def _bring(self, node: int) -> None:
        """Let the node's learner have its row."""
        if not self._at_home[node]:
            self._learners[node].vector.copy_(self._vectors[node])


def make_fleet(
    task: Task,
    shards: Sequence[Shard],
    options: TrainOptions,
    *,
    model_seed: int,
    order_seeds: Sequence[int],
    own_init_seeds: Sequence[int] | None = None,
    init_scale: float = 1.0,
) -> Fleet:
    """Return the learners of all ``shards``, each as ``task.learner`` makes it with its own order seed.

    From ``BATCHED_FROM`` nodes on what is faster many at once is trained so, with the same batches and the same updates
    up to the rounding of float32: perceptrons everywhere, and on an accelerator everything made of plain layers. All
    start from the model of ``model_seed``, or each from ``init_scale`` times N(0, 1) of its own ``own_init_seeds``.
    """
    first = task.learner(shards[0], options, model_seed=model_seed, order_seed=order_seeds[0])
    network = _network(task, first, shards[0], options) if len(shards) >= BATCHED_FROM else None
    fleet: Fleet
    if network is not None:
        vectors = first.vector.detach().cpu().repeat(len(shards), 1)
        fleet = BatchedFleet(network, vectors, shards, options, order_seeds)
    else:
        rest = zip(shards[1:], order_seeds[1:], strict=True)
        learners = [task.learner(shard, options, model_seed=model_seed, order_seed=seed) for shard, seed in rest]
        fleet = LearnerFleet([first, *learners], common_test=_have_common_test(shards))
    if own_init_seeds is not None:
        _start_apart(fleet.vectors, first, own_init_seeds, init_scale)
    return fleet


def _network(task: Task, learner: Learner, shard: Shard, options: TrainOptions) -> Network | None:
    """Return how to compute the task's models many at once, or None where one by one is better or the only way."""
    if type(task) not in {ClassificationTask, NumpySoftmaxTask}:
        return None  # a task of the user's own may have another loss
    device = open_device(options.device)
    if isinstance(learner, NumpySoftmax):
        classes, features = learner.layout.entries[0].shape
        return Perceptrons((features, classes), device)
    if not isinstance(learner, TorchLearner):
        return None
    sizes = perceptron_sizes(learner.module, learner.layout)
    if sizes is not None and shard.inputs.ndim == 2:
        return Perceptrons(sizes, device)
    # On a CPU a loop is faster: there convolutions of many models are computed one by one anyway.
    if device.type != "cpu" and can_be_mapped(learner.module):
        return VmappedNetwork(learner.module, learner.layout, shard.inputs.shape[1:])
    return None


def _move(learner: Learner, row: Tensor, gradient: Tensor) -> bool:
    """Let the learner live in ``row`` (d,), and say whether it can."""
    if not isinstance(learner, Movable) or learner.vector.device.type != "cpu":
        return False
    learner.move_to(row, gradient)
    return True


def _have_common_test(shards: Sequence[Shard]) -> bool:
    first = shards[0]
    return all(shard.test_inputs is first.test_inputs and shard.test_targets is first.test_targets for shard in shards)


def _start_apart(vectors: Tensor, learner: Learner, seeds: Sequence[int], scale: float) -> None:
    """Draw every node's start, scale * N(0, 1), from its own seed."""
    if isinstance(learner, TorchLearner) and len(learner.parameters) < learner.layout.size:
        raise ConfigError('init = "own" cannot draw buffers that are shared; use init = "common" or local buffers')
    for row, seed in zip(vectors, seeds, strict=True):
        start_apart(row, seed, scale)


def start_apart(row: Tensor, seed: int, scale: float) -> None:
    """Draw a node's own start, scale * N(0, 1), into ``row`` (d,)."""
    row.copy_(scale * torch.randn(len(row), generator=torch.Generator().manual_seed(seed)))
