"""BALANCE on sketches: neighbours are judged by a short summary of their models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.balance import Balance
from gossipfl.robust.reasons import BEYOND, NONE
from gossipfl.robust.rules.selection import average
from gossipfl.robust.span import Decision, SpanRule

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.span import Geometry


@dataclass(frozen=True)
class Sketchguard(SpanRule):
    """SketchGuard (arXiv 2510.07922): BALANCE's test on Count-Sketches, then its mean on whole models.

        s(x)_b = Σ_{c : h(c) = b} σ(c) x_c      h: coordinate -> one of ``width`` buckets, σ: -> ±1, from the ``seed``
        S      = {j : ‖s(x_j) - s(own)‖ <= γ exp(-κ λ(t)) ‖s(own)‖}
        out    = α own + (1 - α) mean_{j in S} x_j,    own where S is empty

    A model of fewer than ``width`` coordinates has as many buckets as coordinates. λ is BALANCE's. Distances told are
    those of the sketches. Where S is empty, published code takes the nearest neighbour all the same; here, as in
    BALANCE, the node keeps its own model. Sketches are the same for all who know the seed: who lies and knows it can
    hide any deviation in a direction that the sketch maps to 0.
    """

    gamma: float = 0.3
    kappa: float = 1.0
    alpha: float = 0.5
    width: int = 1000
    seed: int = 0
    horizonless: float = 1000.0
    name: ClassVar[str] = "sketchguard"

    def __post_init__(self) -> None:
        for option, value, allowed, needs in (
            ("gamma", self.gamma, self.gamma > 0, "greater than 0"),
            ("kappa", self.kappa, self.kappa >= 0, "0 or greater"),
            ("alpha", self.alpha, 0 <= self.alpha <= 1, "between 0 and 1"),
            ("width", self.width, isinstance(self.width, int) and self.width > 0, "a whole number from 1 on"),
            ("seed", self.seed, isinstance(self.seed, int) and 0 <= self.seed < 2**63, "a whole number from 0 on"),
            ("horizonless", self.horizonless, self.horizonless > 0, "greater than 0"),
        ):
            if not (allowed and isfinite(value)):
                raise ConfigError(f'rule "sketchguard": {option} = {value} must be {needs}')

    def decide(self, geometry: Geometry) -> Decision:
        """Accept those whose sketch is near."""
        hood = geometry.hood
        own = torch.linalg.vector_norm(self.sketch(hood.own), dim=-1).double()
        # A sketch is linear: the difference of two is the sketch of the difference, with less rounding.
        distances = torch.linalg.vector_norm(self.sketch(geometry.differences), dim=-1).double()
        threshold = (self._balance.radius(hood.round, hood.horizon) * own).unsqueeze(-1)
        near = geometry.present & (distances <= threshold)
        decision = average(near, (1.0 - self.alpha) / near.sum(-1).clamp_min(1))
        reason = torch.where(near, NONE, BEYOND)
        return Decision(decision.coefficients, near, distance=distances, threshold=threshold, reason=reason)

    def sketch(self, vectors: Tensor) -> Tensor:
        """Return the Count-Sketches of ``vectors`` (..., d), (..., min(width, d))."""
        size = vectors.shape[-1]
        buckets, signs = (table.to(vectors.device) for table in _tables(self.seed, size, min(self.width, size)))
        empty = vectors.new_zeros(*vectors.shape[:-1], min(self.width, size))
        return empty.scatter_add_(-1, buckets.expand(vectors.shape), vectors * signs)

    @property
    def _balance(self) -> Balance:
        return Balance(self.gamma, self.kappa, self.alpha, self.horizonless)


@lru_cache(maxsize=4)
def _tables(seed: int, size: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the bucket and the sign of each of ``size`` coordinates."""
    generator = torch.Generator().manual_seed(seed)
    buckets = torch.randint(width, (size,), generator=generator)
    signs = torch.randint(2, (size,), generator=generator).mul_(2).sub_(1).float()
    return buckets, signs
