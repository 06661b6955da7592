"""The weighted mean of a node and its neighbours: plain gossip, no defence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.base import Aggregate, MixContext, Need, Verdict
from gossipfl.robust.hood import Mixed

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.hood import Hood

BLOCK = 32_768
"""Elements mixed at a time: the block of the result stays in the cache while all neighbours are added to it."""


@dataclass(frozen=True, slots=True)
class Mean:
    """Weighted mean, one step of linear consensus (Xiao & Boyd, Systems & Control Letters 53, 2004).

        out = (1 - Σ_j W_ij f_j) own + Σ_j W_ij f_j x_j

    ``W_ij`` is the mixing weight and ``f_j`` the freshness of neighbour j. It accepts everything it is given: one
    lying neighbour can move the result anywhere.
    """

    name: ClassVar[str] = "mean"
    needs: ClassVar[tuple[Need, ...]] = ()
    memory: ClassVar[int] = 0

    def most(self, neighbours: int) -> int | None:
        """Return 0: one lying neighbour is too many."""
        del neighbours
        return 0

    def __call__(
        self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor | None = None
    ) -> Aggregate:
        """Return the weighted mean; every verdict is accepted."""
        weights = [w * f for w, f in zip(context.weights, context.freshness, strict=True)]
        vector = torch.empty_like(own) if out is None else out
        weighted_sum(own, received, weights, vector)
        verdicts = tuple(Verdict(accepted=True, weight=weight) for weight in weights)
        return Aggregate(vector, verdicts)

    def mix(self, hood: Hood) -> Mixed:
        """Mix many nodes at once."""
        weights = torch.where(hood.present, hood.weights * hood.freshness, 0.0)
        factors = weights.to(hood.own.dtype)
        vector = (1 - factors.sum(-1, keepdim=True)) * hood.own
        received = hood.received
        if not bool(hood.present.all()):  # padding may be NaN, which no weight of 0 removes
            received = torch.where(hood.present.unsqueeze(-1), received, 0.0)
        vector += (factors.unsqueeze(-2) @ received).squeeze(-2)
        return Mixed(vector, hood.present, weights)


def weighted_sum(own: Tensor, received: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    """Write (1 - Σ w_j) own + Σ w_j x_j to ``out``, which must not overlap an input; all vectors are (d,)."""
    own_weight = 1.0 - sum(weights)
    rows = [torch.split(vector, BLOCK) for vector in received]
    for target, start, *blocks in zip(torch.split(out, BLOCK), torch.split(own, BLOCK), *rows, strict=True):
        torch.mul(start, own_weight, out=target)
        for weight, block in zip(weights, blocks, strict=True):
            target.add_(block, alpha=weight)
