"""Rules that choose whole neighbours and average them: nearest to the own model, or without outliers of the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.reasons import NONE, OUTLYING
from gossipfl.robust.rules.condition import BoundedSpan
from gossipfl.robust.span import Decision, Geometry, GramRule, nearest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Nna(BoundedSpan, GramRule):
    """Nearest-neighbour averaging, of MoNNA (Farhadkhani et al., ICML 2023), which is GTS-RG with equal weights.

        out = 1/(n - f) (own + Σ_{j in S} x_j),    S the n - 1 - f neighbours nearest to own, n = k + 1

    The rule asks for an honest majority, f < n/2; MoNNA's proof of convergence, on complete graphs, for n >= 11 f.
    """

    name: ClassVar[str] = "nna"

    def most(self, neighbours: int) -> int:
        """Return the largest f < n/2 of n = k + 1."""
        return neighbours // 2

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Average the nearest."""
        count = geometry.present.sum(-1) - f
        kept = nearest(geometry.distances, geometry.present, count)
        return average(kept, 1.0 / (count + 1))


@dataclass(frozen=True)
class Ios(BoundedSpan, GramRule):
    """Iterative outlier scissor (Wu, Chen, Ling, IEEE TSP 71, 2023).

    f times: take the weighted mean of the node and the neighbours that are left, and drop the one farthest from it.

        out = (W_ii own + Σ_{j in S} W_ij x_j) / (W_ii + Σ_{j in S} W_ij),    S those left in the end

    Its condition is that the f heaviest edges weigh less than 1/3; with equal weights, n = k + 1 > 3f.
    """

    name: ClassVar[str] = "ios"

    ANGLES: ClassVar[bool] = True

    def most(self, neighbours: int) -> int:
        """Return the largest f < n/3 of n = k + 1."""
        return neighbours // 3

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Cut off f outliers of the weighted mean."""
        own = 1.0 - geometry.weights.sum(-1)
        kept = scissor(geometry, f, geometry.weights, own)
        left = torch.where(kept, geometry.weights, 0.0)
        return Decision(left / (own + left.sum(-1)).unsqueeze(-1), kept, reason=torch.where(kept, NONE, OUTLYING))


@dataclass(frozen=True)
class Faba(BoundedSpan, GramRule):
    """FABA (Xia et al., IJCAI 2019) among the neighbours, as Wu, Chen, Ling (IEEE TSP 71, 2023) compare with it.

    f times: take the plain mean of the neighbours that are left, and drop the one farthest from it.

        out = (own + Σ_{j in S} x_j) / (|S| + 1),    S those left in the end

    Its condition is f < k/3 of the k vectors that it filters.
    """

    name: ClassVar[str] = "faba"

    ANGLES: ClassVar[bool] = True

    def most(self, neighbours: int) -> int:
        """Return the largest f < k/3 of k neighbours."""
        return (neighbours - 1) // 3

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Cut off f outliers of the mean."""
        equal = geometry.present.double()
        kept = scissor(geometry, f, equal, geometry.everywhere(0.0))
        return average(kept, 1.0 / (kept.sum(-1) + 1))


def average(kept: Tensor, share: Tensor) -> Decision:
    """Return the decision that gives each of those ``kept`` (..., k) the ``share`` (...)."""
    return Decision(kept * share.unsqueeze(-1), kept, reason=torch.where(kept, NONE, OUTLYING))


def scissor(geometry: Geometry, f: Tensor, weights: Tensor, own: Tensor) -> Tensor:
    """Return which neighbours are left, (..., k) bool, once the ``f`` (...) outliers of the mean were cut off.

    The mean has ``weights`` (..., k) of the neighbours and ``own`` (...) of the node itself.
    """
    kept = geometry.present
    for cut in range(int(f.max())):
        shares = torch.where(kept, weights, 0.0)
        shares = shares / (own + shares.sum(-1)).unsqueeze(-1).clamp_min(torch.finfo(shares.dtype).tiny)
        # ‖D_j - D c‖² without cᵀ G c, which is the same for all j.
        away = geometry.squares - 2 * (geometry.gram @ shares.unsqueeze(-1)).squeeze(-1)
        worst = torch.where(kept, away, -torch.inf).argmax(dim=-1, keepdim=True)
        kept = kept & ~torch.zeros_like(kept).scatter(-1, worst, (cut < f).unsqueeze(-1))
    return kept
