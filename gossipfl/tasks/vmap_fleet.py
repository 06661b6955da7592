"""Any network of plain layers, many at once, by torch's vectorising map; for accelerators, where calls are dear."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossipfl.tasks.base import TrainOptions
from gossipfl.tasks.models import GreyNet, Softmax
from gossipfl.tasks.optimizers import make_optimizer
from gossipfl.vector import Layout

CONTAINERS = frozenset((nn.Sequential, GreyNet, Softmax))

LAYERS = frozenset(
    (nn.AvgPool2d, nn.Conv1d, nn.Conv2d, nn.Flatten, nn.GELU, nn.Linear, nn.MaxPool2d, nn.ReLU, nn.Sigmoid, nn.Tanh)
)
"""Layers without buffers and without draws, that torch maps over models."""

GROUP_NODES = 64
"""Models trained together; a guess, to bound what activations take (2,000 images of a net for 28x28: 0.7 GB)."""

JUDGED_NODES = 8
"""Models judged together, on up to 512 images; a guess as well."""


Named = dict[str, Tensor]
"""The tensors of a model, or of many, by name."""

Gradients = Callable[[Named, Tensor, Tensor, Tensor], tuple[Named, Tensor]]
"""From models (g, ...), inputs (g, b, p), labels (g, b) and shares (g, b): gradients (g, ...) and losses (g,)."""


class VmappedNetwork:
    """Models that are all like ``module``, their parameters laid out by ``layout``, for inputs of ``shape``."""

    def __init__(self, module: nn.Module, layout: Layout, shape: Sequence[int]) -> None:
        self._module, self._layout, self._shape = module, layout, tuple(shape)

    def logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        """Return what ``models`` (m, d) make of ``inputs`` (rows, p): (m, M, rows)."""
        from torch.func import functional_call, vmap

        def one(parameters: Named) -> Tensor:
            logits: Tensor = functional_call(self._module, parameters, (inputs.view(-1, *self._shape),))
            return logits

        with torch.no_grad():
            outputs: Tensor = vmap(one)(_named(models, self._layout))
        return outputs.transpose(1, 2)

    def workbench(self, models: Tensor, scratch: Tensor, shares: Tensor, options: TrainOptions) -> VmappedBench:
        """Return a place to train ``models`` (g, d) in."""
        parameters = scratch.view(len(models), -1)
        gradients_and_losses = mapped_gradients(self._module, self._shape)
        return VmappedBench(gradients_and_losses, self._layout, models, parameters, shares, options)

    def trained_together(self, batch: int) -> int:
        """Return ``GROUP_NODES``."""
        del batch
        return GROUP_NODES

    def judged_together(self, rows: int) -> int:
        """Return ``JUDGED_NODES``."""
        del rows
        return JUDGED_NODES


class VmappedBench:
    """Models in rows of ``parameters`` (g, d), and their gradients in rows of a matrix like it."""

    def __init__(
        self,
        gradients_and_losses: Gradients,
        layout: Layout,
        models: Tensor,
        parameters: Tensor,
        shares: Tensor,
        options: TrainOptions,
    ) -> None:
        self._gradients_and_losses = gradients_and_losses
        self._models, self._parameters, self._shares = models, parameters, shares
        self._gradient = torch.zeros_like(parameters)
        self._named, self._named_gradients = _named(parameters, layout), _named(self._gradient, layout)
        self._optimizer = make_optimizer(options, parameters)

    def load(self) -> None:
        """Take over the models as they are now."""
        self._parameters.copy_(self._models)

    def store(self) -> None:
        """Write the models back."""
        self._models.copy_(self._parameters)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step on ``inputs`` (g, b, p) and ``labels`` (g, b); return the losses (g,)."""
        gradients, losses = self._gradients_and_losses(self._named, inputs, labels, self._shares)
        for name, gradient in gradients.items():
            self._named_gradients[name].copy_(gradient)
        self._optimizer.step(self._parameters, self._gradient)
        return losses


def mapped_gradients(module: nn.Module, shape: Sequence[int]) -> Gradients:
    """Return the function that gives all models' gradients and losses Σ_b shares * cross-entropy."""
    from torch.func import functional_call, grad_and_value, vmap

    def loss(named: Named, inputs: Tensor, labels: Tensor, shares: Tensor) -> Tensor:
        logits = functional_call(module, named, (inputs.view(-1, *shape),))
        return (functional.cross_entropy(logits, labels, reduction="none") * shares).sum()

    mapped: Gradients = vmap(grad_and_value(loss))
    return mapped


def can_be_mapped(module: nn.Module) -> bool:
    """Tell whether ``module`` is made of known layers alone: others may draw, keep statistics, or branch on values."""
    return all(type(part) in (LAYERS if not list(part.children()) else CONTAINERS) for part in module.modules())


def _named(models: Tensor, layout: Layout) -> Named:
    """See rows (g, d) as the model's tensors (g, ...)."""
    return {entry.name: models[:, part].view(-1, *entry.shape) for entry, part in layout.slices()}
