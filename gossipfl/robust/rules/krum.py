"""Krum and Multi-Krum among the neighbours and the node itself."""

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
class Krum(BoundedSpan, GramRule):
    """Krum (Blanchard et al., NeurIPS 2017), in gossip BRIDGE-K (Fang, Yang, Bajwa, IEEE TSIPN 8, 2022).

        out = x_m,    m = argmin_i Σ_{j near i} ‖x_i - x_j‖²

    over the n = k + 1 vectors of the neighbours and the node, where ``near i`` are the n - f - 2 nearest to x_i of the
    others. Of equal scores the node's own wins, then the first. Its condition is n >= 2f + 3.
    """

    name: ClassVar[str] = "krum"

    ANGLES: ClassVar[bool] = True

    def most(self, neighbours: int) -> int:
        """Return the largest f with 2f + 3 <= n = k + 1."""
        return (neighbours - 2) // 2

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Take the one with the best score."""
        return best(geometry, f, torch.ones_like(f))


@dataclass(frozen=True)
class MultiKrum(BoundedSpan, GramRule):
    """Multi-Krum (Blanchard et al., NeurIPS 2017): the mean of the m = n - f vectors with the best Krum scores.

    Neighbours and node are scored as in ``Krum``, n = k + 1 of them; its condition is n >= 2f + 3.
    """

    name: ClassVar[str] = "multi-krum"

    ANGLES: ClassVar[bool] = True

    def most(self, neighbours: int) -> int:
        """Return the largest f with 2f + 3 <= n = k + 1."""
        return (neighbours - 2) // 2

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Average those with the best scores."""
        return best(geometry, f, geometry.present.sum(-1) + 1 - f)


def scores(geometry: Geometry, f: Tensor) -> Tensor:
    """Return the Krum scores of all, own first, (..., k + 1); those of absent ones mean nothing."""
    squares = torch.where(geometry.present_with_own.unsqueeze(-2), geometry.pairwise, torch.inf)
    squares = squares + torch.diag_embed(torch.full_like(squares[..., 0], torch.inf))
    sums = squares.sort(dim=-1).values.cumsum(-1)
    near = (geometry.present.sum(-1) - f - 1).clamp_min(1)
    return sums.gather(-1, (near - 1)[..., None, None].expand(*sums.shape[:-1], 1)).squeeze(-1)


def best(geometry: Geometry, f: Tensor, count: Tensor) -> Decision:
    """Average the ``count`` (...) vectors with the best scores, the own one among the candidates."""
    chosen = nearest(scores(geometry, f), geometry.present_with_own, count)[..., 1:]
    return Decision(chosen / count.unsqueeze(-1).double(), chosen, reason=torch.where(chosen, NONE, OUTLYING))
