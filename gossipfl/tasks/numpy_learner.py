"""Softmax regression in plain NumPy: a model outside torch takes part through the same seam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossipfl.errors import ConfigError, LayoutError
from gossipfl.tasks.base import Evaluation, Shard, TrainOptions, TrainReport
from gossipfl.tasks.batches import BatchOrder, probe_rows
from gossipfl.tasks.optimizers import make_optimizer
from gossipfl.tasks.torch_learner import check_shard
from gossipfl.vector import Layout

Floats = NDArray[np.float32]


class NumpySoftmax:
    """Softmax regression over one float32 array: W (M, p) row by row, then b (M,).

    The loss is the mean of -log softmax(W x + b)[y]; its gradient is (P - Y)^T X / n for W and the mean of
    P - Y for b, with probabilities P and one-hot labels Y (n, M). ``initial`` (d,) is copied. ``vector`` is
    a torch view of the same memory. Raises ConfigError for a device other than the CPU, LayoutError where
    ``layout`` is not W, b.
    """

    def __init__(
        self, layout: Layout, initial: Floats, shard: Shard, options: TrainOptions, *, order_seed: int
    ) -> None:
        if options.device != "cpu":
            raise ConfigError(f'device "{options.device}" cannot run NumPy; use "cpu" or a torch model')
        check_shard(shard, options)
        match [entry.shape for entry in layout.entries]:
            case [(classes, _), (biases,)] if classes == biases:
                pass
            case shapes:
                raise LayoutError(f"softmax regression has a matrix (M, p) and a bias (M,); the layout has {shapes}")
        self._layout = layout
        self._vector = torch.from_numpy(np.array(initial, dtype=np.float32))
        self._gradient = torch.zeros_like(self._vector)
        self._open(self._vector, self._gradient)
        self._shard = shard
        self._batch = min(options.batch, len(shard.inputs))
        self._order = BatchOrder(len(shard.inputs), order_seed)
        self._probe = probe_rows(len(shard.inputs), order_seed).numpy()
        self._optimizer = make_optimizer(options, self._vector)

    @property
    def layout(self) -> Layout:
        """Names and shapes of W and b."""
        return self._layout

    @property
    def vector(self) -> Tensor:
        """The model itself, a live float32 CPU tensor of shape (d,) over the NumPy array."""
        return self._vector

    def train(self, steps: int) -> TrainReport:
        """Take ``steps`` steps; a loss that is not finite says that the model has diverged."""
        total = 0.0
        for _ in range(steps):
            rows = self._order.take(self._batch).numpy()
            total += self.gradient(self._shard.inputs[rows], self._shard.targets[rows])
            self._optimizer.step(self._vector, self._gradient)
        return TrainReport(total / steps if steps else float("nan"), steps, steps * self._batch)

    @np.errstate(over="ignore", invalid="ignore")  # a diverged model shows in the loss, not as a warning
    def gradient(self, inputs: NDArray[Any], labels: NDArray[Any]) -> float:
        """Write the gradient over ``inputs`` (n, p) into the gradient buffer; return the mean loss."""
        log_probabilities = _log_probabilities(self._model, inputs)
        each = np.arange(len(labels))
        loss = _cross_entropy(log_probabilities, labels)
        error = np.exp(log_probabilities)
        error[each, labels] -= 1
        error /= len(labels)
        weights, biases = self._gradients
        np.matmul(error.T, inputs, out=weights)
        error.sum(axis=0, out=biases)
        return loss

    @np.errstate(over="ignore", invalid="ignore")
    def evaluate(self) -> Evaluation:
        """Mean cross-entropy and accuracy on the shard's held-out data."""
        labels = self._shard.test_targets
        log_probabilities = _log_probabilities(self._model, self._shard.test_inputs)
        loss = _cross_entropy(log_probabilities, labels)
        return Evaluation(loss=loss, accuracy=float((log_probabilities.argmax(axis=1) == labels).mean()))

    @np.errstate(over="ignore", invalid="ignore")
    def losses(self, vectors: Sequence[Tensor]) -> list[float]:
        """Return the mean cross-entropy of each of ``vectors`` (d,) on a fixed probe of the training data."""
        inputs, labels = self._shard.inputs[self._probe], self._shard.targets[self._probe]
        models = (self._parts(vector) for vector in vectors)
        return [_cross_entropy(_log_probabilities(model, inputs), labels) for model in models]

    def move_to(self, vector: Tensor, gradient: Tensor) -> None:
        """Keep the model in ``vector`` (d,) and gradients in ``gradient`` (d,) from now on."""
        vector.copy_(self._vector)
        self._open(vector, gradient)

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to go on bit for bit."""
        return {
            "vector": self._vector.clone(),
            "optimizer": {name: tensor.clone() for name, tensor in self._optimizer.state.items()},
            "order": self._order.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, in place."""
        self._vector.copy_(state["vector"])
        for name, tensor in self._optimizer.state.items():
            tensor.copy_(state["optimizer"][name])
        self._order.restore(state["order"])

    def _open(self, vector: Tensor, gradient: Tensor) -> None:
        """Compute in the memory of both."""
        self._vector, self._gradient = vector, gradient
        self._model, self._gradients = self._parts(vector), self._parts(gradient)

    def _parts(self, vector: Tensor) -> tuple[Floats, Floats]:
        """See a vector (d,) as W (M, p) and b (M,)."""
        weights, biases = self._layout.views(vector).values()
        return weights.numpy(), biases.numpy()


def _log_probabilities(model: tuple[Floats, Floats], inputs: NDArray[Any]) -> Floats:
    """log softmax of W x + b, (n, M), shifted by the row's largest logit so that exp cannot overflow."""
    weights, biases = model
    logits: Floats = inputs @ weights.T + biases
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def _cross_entropy(log_probabilities: Floats, labels: NDArray[Any]) -> float:
    return float(-log_probabilities[np.arange(len(labels)), labels].mean(dtype=np.float64))
