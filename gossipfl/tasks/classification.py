"""Classification tasks: labelled examples, cross-entropy and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gossipfl.errors import ConfigError, DataError, LayoutError
from gossipfl.tasks.base import Evaluation, Learner, Partition, Shard, TrainOptions
from gossipfl.tasks.models import ModelFactory, build
from gossipfl.tasks.numpy_learner import NumpySoftmax
from gossipfl.tasks.partition import split
from gossipfl.tasks.torch_learner import TorchLearner
from gossipfl.vector import Buffers, flatten

Examples = tuple[NDArray[Any], NDArray[Any]]
"""Inputs (n, ...) and integer labels (n,)."""


class ClassificationTask:
    """Examples with integer labels, learnt by a torch module that returns logits (n, classes).

    ``train`` is dealt to the nodes; every node is measured on the whole of ``test``. ``model`` makes the
    module, with torch's default generator seeded for it. Raises DataError for examples that do not pair up,
    labels that are not integers from 0 up, and inputs that are not finite; ConfigError for a model that
    cannot be one float32 vector.
    """

    def __init__(
        self, name: str, train: Examples, test: Examples, model: ModelFactory, *, buffers: Buffers = "local"
    ) -> None:
        self.name = name
        self._train = _checked(f"{name} training data", train)
        self._test = _checked(f"{name} test data", test)
        self._model, self._buffers = model, buffers
        self.classes = int(max(self._train[1].max(), self._test[1].max())) + 1

    def shards(self, nodes: int, partition: Partition, seed: int) -> Sequence[Shard]:
        """Deal the training examples; raises DataError where the split is impossible."""
        inputs, labels = self._train
        parts = split(labels, nodes, partition, np.random.default_rng(seed))
        return [Shard(inputs[part], labels[part], *self._test) for part in parts]

    def learner(self, shard: Shard, options: TrainOptions, *, model_seed: int, order_seed: int) -> Learner:
        """Return a learner whose initial vector depends on ``model_seed`` alone."""
        try:
            return TorchLearner(
                build(self._model, model_seed),
                shard,
                options,
                loss=functional.cross_entropy,
                scorer=score,
                order_seed=order_seed,
                buffers=self._buffers,
            )
        except LayoutError as error:
            raise ConfigError(f'the model of task "{self.name}" cannot be used: {error}') from error

    def flip_labels(self, shard: Shard) -> Shard:
        """Return the shard with training labels y -> M-1-y; test labels stay true."""
        return replace(shard, targets=self.classes - 1 - shard.targets)


class NumpySoftmaxTask(ClassificationTask):
    """Softmax regression in NumPy, with layout and initial vector of the torch module ``models.Softmax``."""

    def learner(self, shard: Shard, options: TrainOptions, *, model_seed: int, order_seed: int) -> Learner:
        """Return a NumPy learner that starts where the torch one would."""
        flat = flatten(build(self._model, model_seed))
        return NumpySoftmax(flat.layout, flat.vector.numpy(), shard, options, order_seed=order_seed)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Mean cross-entropy and accuracy of ``logits`` (n, M) against ``labels`` (n,)."""
    loss = functional.cross_entropy(logits, labels).item()
    return Evaluation(loss=loss, accuracy=(logits.argmax(1) == labels).double().mean().item())


def stratified_split(examples: Examples, test_share: float, seed: int) -> tuple[Examples, Examples]:
    """Split examples into training and test part, each class in the same proportion, by a fixed ``seed``."""
    inputs, labels = examples
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held_out[members[: round(test_share * len(members))]] = True
    return (inputs[~held_out], labels[~held_out]), (inputs[held_out], labels[held_out])


def _checked(what: str, examples: Examples) -> Examples:
    """Return float32 inputs and int64 labels, checked."""
    inputs, labels = (np.asarray(part) for part in examples)
    if labels.ndim != 1 or len(inputs) != len(labels) or not len(labels):
        raise DataError(f"{what}: {len(inputs)} inputs and labels of shape {labels.shape}; give one label per input")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(f"{what}: labels must be integers from 0 up; found {labels.dtype}, least {labels.min()}")
    inputs = np.ascontiguousarray(inputs, dtype=np.float32)
    finite = torch.from_numpy(inputs).isfinite() if inputs.flags.writeable else np.isfinite(inputs)
    if not bool(finite.all()):
        raise DataError(f"{what}: inputs hold values that are not finite; remove or fill them")
    return inputs, labels.astype(np.int64)
