"""Perceptrons of any depth, many at once, as batched matrix products with a backward pass by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from gossipfl.tasks.base import TrainOptions
from gossipfl.tasks.models import Softmax
from gossipfl.tasks.optimizers import make_optimizer
from gossipfl.vector import Layout

GROUP_BYTES = 3 << 20
"""Models trained together on a CPU, with one batch each, fill about so much: it stays near the core all round.

Measured (512 KiB of cache a core, 32 MiB for all): 2 to 4 MiB make no difference, half a MiB costs half of the speed.
"""

DEVICE_GROUP_BYTES = 256 << 20
"""The same elsewhere; a guess."""

GROUP_NODES = 128
"""Most models trained together on a CPU (measured: 256 are slower)."""

JUDGED_BYTES = 16 << 20
"""Outputs of one layer for all models that are judged together."""

Layer = tuple[Tensor, Tensor]
"""Weights (g, out, in) and biases (g, out)."""


class Perceptrons:
    """Perceptrons with layers of ``sizes`` p, ..., M and ReLU between them; softmax regression has no layer between.

    A model's vector holds W (out, in) row by row and then b (out,) of each layer, from the first to the last.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._sizes = tuple(sizes)
        self._device = device
        self._parameters = sum((before + 1) * after for before, after in pairwise(sizes))

    def logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        """Return what ``models`` (m, d) make of ``inputs`` (rows, p): (m, M, rows)."""
        outputs = forward(_layers_in_rows(models, self._sizes), inputs.expand(len(models), -1, -1))
        return outputs[-1]

    def workbench(self, models: Tensor, scratch: Tensor, shares: Tensor, options: TrainOptions) -> PerceptronBench:
        """Return a place to train ``models`` (g, d) in."""
        return PerceptronBench(self._sizes, models, scratch, shares, options)

    def trained_together(self, batch: int) -> int:
        """Return how many models fill ``GROUP_BYTES``."""
        each = 4 * (self._parameters + batch * self._sizes[0])
        return min(GROUP_BYTES // each, GROUP_NODES) if self._device.type == "cpu" else DEVICE_GROUP_BYTES // each

    def judged_together(self, rows: int) -> int:
        """Return how many models' outputs fill ``JUDGED_BYTES``."""
        return JUDGED_BYTES // (4 * rows * max(self._sizes[1:]))


class PerceptronBench:
    """Models layer by layer: first all nodes' first weights, then all their first biases, and so on.

    So each layer of all nodes is one contiguous tensor, and a matrix product can add a gradient to where it belongs.
    """

    def __init__(
        self, sizes: Sequence[int], models: Tensor, scratch: Tensor, shares: Tensor, options: TrainOptions
    ) -> None:
        nodes = len(models)
        self._parameters, self._shares = scratch, shares.unsqueeze(1)
        self._models = _layers_in_rows(models, sizes)
        self._layers = _layers_side_by_side(scratch, sizes, nodes)
        self._optimizer = make_optimizer(options, scratch)
        self._accumulators = _layers_side_by_side(self._optimizer.accumulator(scratch).tensor, sizes, nodes)
        self._ones = shares.new_ones(*shares.shape, 1)

    def load(self) -> None:
        """Take over the models as they are now."""
        for ours, theirs in zip(self._layers, self._models, strict=True):
            ours[0].copy_(theirs[0])
            ours[1].copy_(theirs[1])

    def store(self) -> None:
        """Write the models back."""
        for ours, theirs in zip(self._layers, self._models, strict=True):
            theirs[0].copy_(ours[0])
            theirs[1].copy_(ours[1])

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step on ``inputs`` (g, b, p) and ``labels`` (g, b); return the losses (g,)."""
        outputs = forward(self._layers, inputs)
        losses, errors = cross_entropy(outputs.pop(), labels.unsqueeze(1), self._shares)
        self._backward([inputs.transpose(1, 2), *outputs], errors)
        self._optimizer.finish(self._parameters)
        return losses

    def _backward(self, inputs: Sequence[Tensor], errors: Tensor) -> None:
        """Add E X^T and E 1 of each layer where the optimiser wants them, for inputs X (in, b) and errors E (out, b).

        The errors of the layer below are W^T E where X > 0; they are taken before W may move.
        """
        into = self._optimizer.accumulator(self._parameters)
        for layer in reversed(range(len(self._layers))):
            below, above = inputs[layer], errors
            if layer:
                errors = torch.bmm(self._layers[layer][0].transpose(1, 2), above)
                errors = torch.ops.aten.threshold_backward(errors, below, 0)
            weights, biases = self._accumulators[layer]
            weights.baddbmm_(above, below.transpose(1, 2), beta=into.keep, alpha=into.scale)
            biases.unsqueeze(2).baddbmm_(above, self._ones, beta=into.keep, alpha=into.scale)


def forward(layers: Sequence[Layer], inputs: Tensor) -> list[Tensor]:
    """Return the outputs (g, out, rows) of all layers for ``inputs`` (g, rows, p); after ReLU, but for the last.

    With rows last, products with few outputs take half the time, and so does all that is done for each row.
    """
    outputs: list[Tensor] = []
    for weights, biases in layers:
        below = outputs[-1].clamp_min_(0) if outputs else inputs.transpose(1, 2)
        outputs.append(torch.baddbmm(biases.unsqueeze(2), weights, below))
    return outputs


def cross_entropy(logits: Tensor, labels: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses Σ_b shares * -log softmax(z)[y], (g,), and their gradient by z, shares * (P - Y), (g, M, b).

    ``logits`` z (g, M, b), ``labels`` y (g, 1, b), ``shares`` (g, 1, b).
    """
    log_probabilities = functional.log_softmax(logits, 1)
    losses = log_probabilities.gather(1, labels).mul_(shares).sum((1, 2)).neg_()
    errors = log_probabilities.exp_().mul_(shares)
    errors.scatter_add_(1, labels, -shares)
    return losses, errors


def perceptron_sizes(module: nn.Module, layout: Layout) -> tuple[int, ...] | None:
    """Return p, ..., M where ``module`` is a perceptron that ``Perceptrons`` computes, else None.

    That is ``Softmax``, or linear layers with biases and ReLU between them, each with weights of its own, all trained.
    """
    parts = [module.linear] if type(module) is Softmax else list(module) if type(module) is nn.Sequential else []
    linear = [part for part in parts[::2] if type(part) is nn.Linear and part.bias is not None]
    between = [part for part in parts[1::2] if type(part) is nn.ReLU]
    if len(linear) != len(between) + 1 or len(linear) + len(between) != len(parts):
        return None
    sizes: tuple[int, ...] = (linear[0].in_features, *(part.out_features for part in linear))
    shapes: list[tuple[int, ...]] = []
    for before, after in pairwise(sizes):
        shapes += [(after, before), (after,)]
    return sizes if [entry.shape for entry in layout.entries] == shapes else None


def _layers_in_rows(models: Tensor, sizes: Sequence[int]) -> list[Layer]:
    """See rows (g, d) as layers."""
    layers, start = [], 0
    for before, after in pairwise(sizes):
        cut, end = start + after * before, start + after * (before + 1)
        layers.append((models[:, start:cut].view(-1, after, before), models[:, cut:end]))
        start = end
    return layers


def _layers_side_by_side(vector: Tensor, sizes: Sequence[int], nodes: int) -> list[Layer]:
    """See a vector (nodes * d,) as layers, one after the other."""
    layers, start = [], 0
    for before, after in pairwise(sizes):
        cut, end = start + nodes * after * before, start + nodes * after * (before + 1)
        layers.append((vector[start:cut].view(nodes, after, before), vector[cut:end].view(nodes, after)))
        start = end
    return layers
