"""Which examples a node trains on, step by step, and which ones it judges models with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gossipfl.digest import derive_seed

PROBE_SAMPLES = 128
"""Most examples of a node's own that models are judged with."""

AHEAD_STEPS = 16
"""Steps whose batches are drawn at a time for nodes side by side: one step at a time costs microseconds a node."""


class BatchOrder:
    """Epochs of random permutations of ``samples`` indices, laid end to end.

    A batch is the next piece of that stream, so every example is seen equally often whatever the batch size
    is, and how often one asks does not change what one gets. ``seed`` drives this order alone.
    """

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._generator = torch.Generator().manual_seed(seed)
        self._rest = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """Return the next ``count`` indices, an int64 CPU tensor of shape (count,)."""
        pieces, missing = [self._rest], count - self._rest.numel()
        while missing > 0:
            pieces.append(torch.randperm(self._samples, generator=self._generator))
            missing -= self._samples
        stream = torch.cat(pieces) if len(pieces) > 1 else self._rest
        self._rest = stream[count:]
        return stream[:count]

    def state(self) -> dict[str, Any]:
        """Return what ``restore`` needs to continue the stream: two CPU tensors."""
        return {"rest": self._rest.clone(), "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the stream from ``state``."""
        self._rest = state["rest"].clone()
        self._generator.set_state(state["generator"])


class StackedOrders:
    """The batches of g nodes side by side, as rows of a table that holds the examples of all.

    Node i's examples are the ``sizes[i]`` rows from ``starts[i]`` on. It draws what a ``BatchOrder`` of its own with
    ``seeds[i]`` would draw, ``batch`` examples a step or all it has. Batches are padded to the longest, b, with a row
    of the node's own; ``shares`` (g, b) is what each row weighs in its batch's mean, 0 for padding.
    """

    def __init__(
        self, starts: Sequence[int], sizes: Sequence[int], batch: int, seeds: Sequence[int], device: torch.device
    ) -> None:
        self._orders = [BatchOrder(size, seed) for size, seed in zip(sizes, seeds, strict=True)]
        self._starts = torch.tensor(starts)
        counts = torch.tensor([min(batch, size) for size in sizes])
        self._counts: list[int] = counts.tolist()
        self._width = int(counts.max())
        self._device = device
        self.shares = ((torch.arange(self._width) < counts[:, None]) / counts[:, None]).to(device)
        self._ahead = torch.empty(0, len(sizes) * self._width, dtype=torch.int64, device=device)
        self._next = 0

    def take(self) -> Tensor:
        """Return the rows of the next step, node by node, (g * b,)."""
        if self._next == len(self._ahead):
            self._ahead, self._next = self._draw(AHEAD_STEPS).to(self._device), 0
        self._next += 1
        return self._ahead[self._next - 1]

    def _draw(self, steps: int) -> Tensor:
        rows = self._starts[:, None].expand(steps, -1, self._width).clone()
        for node, (order, count) in enumerate(zip(self._orders, self._counts, strict=True)):
            rows[:, node, :count] += order.take(steps * count).view(steps, count)
        return rows.flatten(1)


def probe_rows(samples: int, seed: int) -> Tensor:
    """Return the up to ``PROBE_SAMPLES`` of ``samples`` examples to judge models with, apart from any batch order."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "probe"))
    return torch.randperm(samples, generator=generator)[:PROBE_SAMPLES]
