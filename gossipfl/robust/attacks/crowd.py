"""The honest models around a target, as conspirators see them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import ConspiracyView


@dataclass(frozen=True)
class Crowd:
    """Models (..., m, d) of which at least one of each target is ``present`` (..., m); the others are 0."""

    models: Tensor
    present: Tensor

    @classmethod
    def around(cls, view: ConspiracyView, *, target: bool) -> Self:
        """Return the honest neighbours, behind the target itself where it counts as one of them (``target``).

        A target without honest neighbours is always its own crowd.
        """
        first = ~view.honest_present.any(-1, keepdim=True) | target
        present = torch.cat([first, view.honest_present], -1)
        models = torch.cat([view.target.unsqueeze(-2), view.honest], -2)
        return cls(torch.where(present.unsqueeze(-1), models, 0.0), present)

    @cached_property
    def count(self) -> Tensor:
        """Number of models, (...)."""
        return self.present.sum(-1)

    @cached_property
    def sum(self) -> Tensor:
        """Sum of the models, (..., d)."""
        return self.models.sum(-2)

    @cached_property
    def mean(self) -> Tensor:
        """Mean of the models, (..., d)."""
        return self.sum / self.count.unsqueeze(-1)

    @cached_property
    def away(self) -> Tensor:
        """Differences of the models from their mean, (..., m, d), 0 for absent ones."""
        return torch.where(self.present.unsqueeze(-1), self.models - self.mean.unsqueeze(-2), 0.0)

    @cached_property
    def deviation(self) -> Tensor:
        """Standard deviation per coordinate (divisor m - 1), (..., d); 0 for a single model."""
        freedom = (self.count - 1).clamp_min(1).unsqueeze(-1)
        return (self.away.square().sum(-2) / freedom).sqrt()

    @cached_property
    def least(self) -> Tensor:
        """The least of each coordinate, (..., d)."""
        return torch.where(self.present.unsqueeze(-1), self.models, torch.inf).amin(-2)

    @cached_property
    def most(self) -> Tensor:
        """The largest of each coordinate, (..., d)."""
        return torch.where(self.present.unsqueeze(-1), self.models, -torch.inf).amax(-2)

    @cached_property
    def pairwise(self) -> Tensor:
        """Squared distances of all pairs, (..., m, m) float64; those to absent ones mean nothing."""
        gram = (self.away @ self.away.mT).double()
        squares = gram.diagonal(dim1=-2, dim2=-1)
        return (squares.unsqueeze(-1) + squares.unsqueeze(-2) - 2 * gram).clamp_min_(0)


def by_all(view: ConspiracyView, lie: Tensor) -> Tensor:
    """Return one lie per target (..., d) as told by all its Byzantine neighbours, (..., b, d)."""
    return lie.unsqueeze(-2).expand_as(view.own)
