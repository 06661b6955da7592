"""The endless stream of example indices that a learner's batches are cut from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
