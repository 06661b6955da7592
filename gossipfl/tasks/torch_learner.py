"""The learner for torch models: one flat vector, resident data, as little per step as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks.base import Evaluation, Shard, TrainOptions, TrainReport
from gossipfl.tasks.batches import BatchOrder, probe_rows
from gossipfl.tasks.models import Dropout
from gossipfl.tasks.optimizers import make_optimizer
from gossipfl.vector import Buffers, Layout, flatten

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of (outputs, targets), a scalar tensor that can be differentiated."""

Scorer = Callable[[Tensor, Tensor], Evaluation]
"""Turns all outputs and targets of the held-out data into an evaluation; called without gradients."""

GATHER_BYTES = 16 << 20
"""Rows of several steps are gathered in one call up to this size; more would only cost memory."""

EVALUATION_ROWS = 128
"""Rows of one forward pass of ``evaluate``: keeps a CNN's activations near the processor's caches (measured)."""


class TorchLearner:
    """Trains a torch module on one shard.

    The module is moved to ``options.device`` and flattened there. A step is: gradient buffer to zero,
    forward, backward, one in-place update of the whole vector. A batch is never larger than the shard.
    ``loss`` averages over a batch; ``scorer`` judges the held-out outputs. Raises ConfigError for a device
    that is not there, an unknown optimiser or a batch below 1, DataError for an empty shard.

    ``order_seed`` drives batches, the probe of ``losses`` and every ``models.Dropout``. Torch's own dropout draws
    from torch's default generator, which torch gives no way to replace: its runs repeat only where the process
    seeds that generator and trains one at a time.
    """

    def __init__(
        self,
        module: nn.Module,
        shard: Shard,
        options: TrainOptions,
        *,
        loss: Loss,
        scorer: Scorer,
        order_seed: int,
        buffers: Buffers = "local",
    ) -> None:
        device = open_device(options.device)
        check_shard(shard, options)
        self._flat = flatten(module.to(device), buffers=buffers)
        self._loss, self._scorer = loss, scorer
        self._inputs, self._targets = resident(shard.inputs, device), resident(shard.targets, device)
        self._test = resident(shard.test_inputs, device), resident(shard.test_targets, device)
        self._batch = min(options.batch, len(shard.inputs))
        self._order = BatchOrder(len(shard.inputs), order_seed)
        self._probe = probe_rows(len(shard.inputs), order_seed)
        self._optimizer = make_optimizer(options, self._flat.gradient)
        self._tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for place, part in enumerate(module.modules()):
            if isinstance(part, Dropout):
                part.seed(derive_seed(order_seed, "dropout", place))

    @property
    def layout(self) -> Layout:
        """Names and shapes of the vector's parts."""
        return self._flat.layout

    @property
    def vector(self) -> Tensor:
        """The model itself, a live float32 tensor of shape (d,) on the learner's device."""
        return self._flat.vector

    @property
    def module(self) -> nn.Module:
        """The torch module whose parameters are views of ``vector``."""
        return self._flat.module

    @property
    def parameters(self) -> Tensor:
        """The trained part of ``vector``, its first p values; shared buffers follow."""
        return self._flat.parameters

    def train(self, steps: int) -> TrainReport:
        """Take ``steps`` steps; a loss that is not finite says that the model has diverged."""
        module, gradient, parameters = self._flat.module, self._flat.gradient, self._flat.parameters
        module.train()
        losses: list[Tensor] = []
        while len(losses) < steps:
            for inputs, targets in self._batches(steps - len(losses)):
                gradient.zero_()
                loss = self._loss(module(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
                self._optimizer.step(parameters, gradient)
        # One transfer for all steps: reading each step's loss would stall an accelerator's queue.
        mean = torch.stack(losses).double().mean().item() if losses else float("nan")
        return TrainReport(loss=mean, steps=steps, samples=steps * self._batch)

    def evaluate(self) -> Evaluation:
        """Score the current model on the shard's held-out data."""
        module, (inputs, targets) = self._flat.module, self._test
        module.eval()
        with torch.no_grad():
            outputs = torch.cat([module(rows) for rows in torch.split(inputs, EVALUATION_ROWS)])
            return self._scorer(outputs, targets)

    def losses(self, vectors: Sequence[Tensor]) -> list[float]:
        """Return the mean loss of each of ``vectors`` (d,) on a fixed probe of the training data."""
        rows = self._probe.to(self._inputs.device)
        inputs, targets = self._inputs.index_select(0, rows), self._targets.index_select(0, rows)
        self._flat.module.eval()
        try:
            with torch.no_grad():
                return [self._loss(self._as(vector)(inputs), targets).item() for vector in vectors]
        finally:
            self._as(self.vector)

    def move_to(self, vector: Tensor, gradient: Tensor) -> None:
        """Keep the model in ``vector`` (d,) and gradients in ``gradient`` (d,) from now on."""
        vector.copy_(self.vector)
        trained = gradient[: self._flat.gradient.numel()]
        self._flat = replace(self._flat, vector=vector, gradient=trained)
        self._as(vector)
        for entry, part in self.layout.slices():
            if part.stop <= len(trained):
                self._tensors[entry.name].grad = trained[part].view(entry.shape)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on bit for bit: tensors in nested dictionaries."""
        return {
            "module": {name: tensor.clone() for name, tensor in self._flat.module.state_dict().items()},
            "optimizer": {name: tensor.clone() for name, tensor in self._optimizer.state.items()},
            "order": self._order.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, in place: the vector stays the same tensor."""
        self._flat.module.load_state_dict(state["module"])
        for name, tensor in self._optimizer.state.items():
            tensor.copy_(state["optimizer"][name])
        self._order.restore(state["order"])

    def _as(self, vector: Tensor) -> nn.Module:
        """Let the module's tensors be views of ``vector`` (d,)."""
        for name, view in self.layout.views(vector.to(self.vector.device)).items():
            self._tensors[name].data = view
        return self._flat.module

    def _batches(self, steps: int) -> zip[tuple[Tensor, Tensor]]:
        """Gather the rows of up to ``steps`` batches at once, and cut them."""
        row_bytes = max(1, self._inputs[0].nbytes)
        steps = max(1, min(steps, GATHER_BYTES // (row_bytes * self._batch)))
        rows = self._order.take(steps * self._batch).to(self._inputs.device)
        inputs, targets = self._inputs.index_select(0, rows), self._targets.index_select(0, rows)
        return zip(torch.split(inputs, self._batch), torch.split(targets, self._batch), strict=True)


def open_device(name: str) -> torch.device:
    """Return the device called ``name``; raises ConfigError where torch does not have it here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f'device "{name}" is not available to torch here; use "cpu" or a device that this machine has'
        ) from error
    return device


def check_shard(shard: Shard, options: TrainOptions) -> None:
    """Raise where no batch can be drawn from the shard or nothing can be measured on it."""
    if options.batch < 1:
        raise ConfigError(f"batch = {options.batch} holds no example; use at least 1")
    for name, inputs, targets in (
        ("training", shard.inputs, shard.targets),
        ("test", shard.test_inputs, shard.test_targets),
    ):
        if len(inputs) == 0:
            raise DataError(f"a shard has no {name} data; use fewer nodes or another partition")
        if len(inputs) != len(targets):
            raise DataError(f"a shard has {len(inputs)} {name} inputs but {len(targets)} targets; pair them")


def resident(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an array as a float32 (values) or int64 (labels) tensor on ``device``.

    Read-only arrays (memory maps, shared shards) are copied, since torch cannot promise not to write.
    """
    dtype = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32
    array = np.ascontiguousarray(array, dtype=dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
