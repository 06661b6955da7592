"""The geometric median of the neighbours and the node."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.span import Decision, GramRule

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.span import Geometry

AT_REST = 1e-9
"""Where no weight changes by more than this in a step, the iteration has ended."""


@dataclass(frozen=True)
class GeometricMedian(GramRule):
    """Smoothed geometric median by Weiszfeld's iteration (RFA: Pillutla, Kakade, Harchaoui, IEEE TSP 70, 2022).

        out = argmin_z Σ_i ‖z - x_i‖_ν,    z <- Σ_i β_i x_i / Σ_i β_i,    β_i = 1/max(ν, ‖z - x_i‖)

    over the n = k + 1 vectors of the neighbours and the node. It takes up to ``iterations`` steps; every z is a mean of
    the x_i, so that only its weights are iterated. ``nu`` is in the units of the models. The first z weighs each x_i
    by the inverse of its median distance to all: from the plain mean, a lie at 10^15 would take rounding with it.
    It withstands any minority, f < n/2.
    """

    nu: float = 1e-6
    iterations: int = 100
    name: ClassVar[str] = "geometric-median"
    ANGLES: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.nu > 0 and isfinite(self.nu)):
            raise ConfigError(f'rule "geometric-median": nu = {self.nu} must be greater than 0')
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise ConfigError(
                f'rule "geometric-median": iterations = {self.iterations} must be a whole number from 1 on'
            )

    def most(self, neighbours: int) -> int:
        """Return the largest f < n/2 of n = k + 1."""
        return neighbours // 2

    def decide(self, geometry: Geometry) -> Decision:
        """Iterate the weights of the mean."""
        present = geometry.present_with_own
        shares = self._shares(median_distances(geometry), present)
        moving = torch.ones_like(shares[..., :1], dtype=torch.bool)
        for _ in range(self.iterations):
            after = self._shares(distances(geometry.gram_with_own, shares), present)
            step = (after - shares).abs().amax(-1, keepdim=True)
            # A node at rest stays there, however long others of its batch take: alone it would have stopped too.
            shares = torch.where(moving, after, shares)
            moving = moving & (step > AT_REST)
            if not bool(moving.any()):
                break
        return Decision(shares[..., 1:], geometry.present)

    def _shares(self, away: Tensor, present: Tensor) -> Tensor:
        """Return weights, (..., n), that fall with how far ``away`` (..., n) each one is."""
        beta = torch.where(present, 1.0 / away.clamp_min(self.nu), 0.0)
        return beta / beta.sum(-1, keepdim=True)


def median_distances(geometry: Geometry) -> Tensor:
    """Return the (upper) median of each vector's distances to all that are there, itself included, (..., k + 1)."""
    there = geometry.present_with_own
    squares = torch.where(there.unsqueeze(-2), geometry.pairwise, torch.inf).sort(dim=-1).values
    middle = (there.sum(-1) // 2).clamp_max(there.shape[-1] - 1)[..., None, None]
    return squares.gather(-1, middle.expand(*squares.shape[:-1], 1)).squeeze(-1).sqrt()


def distances(gram: Tensor, shares: Tensor) -> Tensor:
    """Return ‖x_i - z‖ of all i, (..., n), for z = Σ_j shares_j x_j, from the Gram matrix of the x_i (..., n, n)."""
    towards = (gram @ shares.unsqueeze(-1)).squeeze(-1)
    length = (shares * towards).sum(-1, keepdim=True)
    return (gram.diagonal(dim1=-2, dim2=-1) - 2 * towards + length).clamp_min(0).sqrt()
