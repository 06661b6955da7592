"""Rules whose result lies in the span of what they are given: all they decide is a coefficient per neighbour.

    out = own + Σ_j c_j f_j (x_j - own)

with freshness f_j. The coefficients c depend on the vectors only by way of their geometry: with D_j = x_j - own, the
Gram matrix G = D Dᵀ (k, k) and ‖own‖. Distances follow from it, ‖x_i - x_j‖² = G_ii + G_jj - 2 G_ij, and it is taken
around the own model because models near consensus are long vectors that differ little: around the origin their
distances would drown in the rounding of float32.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.hood import Hood, Mixed, TensorRule, finite_part, hood_of
from gossipfl.robust.reasons import NOT_FINITE
from gossipfl.robust.sweep import add_differences, gram_of_differences, squared_distances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from gossipfl.robust.base import MixContext

FLOAT32_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Geometry:
    """What a span rule looks at; float64, leading dimensions (...) as in ``hood``.

    ``present`` (..., k): the neighbours that count; those that do not have difference 0. ``differences``
    (..., k, d) float32: D.
    """

    hood: Hood
    differences: Tensor
    present: Tensor

    @classmethod
    def of(cls, hood: Hood) -> Geometry:
        """Return the geometry of ``hood``."""
        return cls(hood, *finite_part(hood))

    @classmethod
    def measured(cls, hood: Hood, *, squares: Tensor, gram: Tensor | None = None) -> Geometry:
        """Return what is known where distances ``squares`` (..., k) were measured, and ``gram`` (..., k, k) perhaps.

        There are no differences.
        """
        present = hood.present & (squares <= FLOAT32_MAX)
        geometry = cls(hood, hood.received, present)
        known = vars(geometry)  # where cached properties keep their values
        known["squares"] = torch.where(present, squares, 0.0)
        if gram is not None:
            known["gram"] = torch.where(present.unsqueeze(-1) & present.unsqueeze(-2), gram, 0.0)
        return geometry

    @cached_property
    def squares(self) -> Tensor:
        """‖x_j - own‖², (..., k)."""
        squares: Tensor = torch.linalg.vecdot(self.differences, self.differences).double()
        return squares

    @cached_property
    def distances(self) -> Tensor:
        """‖x_j - own‖, (..., k)."""
        return self.squares.sqrt()

    def everywhere(self, value: float) -> Tensor:
        """Return ``value`` for each node, (...)."""
        return torch.full(self.present.shape[:-1], value, dtype=torch.float64, device=self.present.device)

    @cached_property
    def gram(self) -> Tensor:
        """G = D Dᵀ, (..., k, k)."""
        return (self.differences @ self.differences.mT).double()

    @cached_property
    def gram_with_own(self) -> Tensor:
        """G with a row and a column 0 for the own model, which is the origin, (..., k + 1, k + 1): own comes first."""
        return torch.nn.functional.pad(self.gram, (1, 0, 1, 0))

    @cached_property
    def present_with_own(self) -> Tensor:
        """``present`` with the own model first, (..., k + 1)."""
        return torch.nn.functional.pad(self.present, (1, 0), value=True)

    @cached_property
    def pairwise(self) -> Tensor:
        """Squared distances of all pairs, own first, (..., k + 1, k + 1); those to absent ones mean nothing."""
        gram = self.gram_with_own
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        return (diagonal.unsqueeze(-1) + diagonal.unsqueeze(-2) - 2 * gram).clamp_min_(0)

    @property
    def weights(self) -> Tensor:
        """Mixing weights of those present, (..., k); absent ones have 0, their weight is the node's own."""
        return torch.where(self.present, self.hood.weights.double(), 0.0)


@dataclass(frozen=True, slots=True)
class Decision:
    """Coefficients c (..., k), who is accepted (..., k), and what is told of it, as in ``Mixed``.

    ``distance`` is told where the rule measures another one than that to the own model.
    """

    coefficients: Tensor
    accepted: Tensor
    distance: Tensor | None = None
    threshold: Tensor | None = None
    scale: Tensor | None = None
    reason: Tensor | None = None
    memory: Tensor | None = None


@dataclass(frozen=True)
class SpanRule(TensorRule):
    """A rule of the form above: implementations decide, this does the arithmetic."""

    @abstractmethod
    def decide(self, geometry: Geometry) -> Decision:
        """Return the coefficients; those of absent neighbours are ignored."""

    def mix(self, hood: Hood) -> Mixed:
        """Mix the neighbourhoods of one or many nodes."""
        geometry = Geometry.of(hood)
        decision = self.decide(geometry)
        coefficients = counted(geometry, decision)
        steps = coefficients.to(hood.own.dtype).unsqueeze(-2) @ geometry.differences
        return told(geometry, decision, coefficients, hood.own + steps.squeeze(-2))


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """One node's vectors where they lie, all (d,) on the CPU: its own, those it received, and where the result goes."""

    own: Tensor
    received: Sequence[Tensor]
    out: Tensor


@dataclass(frozen=True)
class GramRule(SpanRule):
    """A span rule that looks at nothing but the Gram matrix: vectors are read where they lie, block by block.

    ``ANGLES``: whether it looks at more of that than the distances on its diagonal.
    """

    ANGLES: ClassVar[bool] = False

    def mix_one(self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor) -> Mixed:
        """Mix one node's vectors into ``out`` (d,); no vector is copied."""
        hood = hood_of(own, torch.empty(len(received), 0), context)
        return self.mix_lying(hood, [Neighbourhood(own, received, out)])

    def mix_lying(self, hood: Hood, places: Sequence[Neighbourhood]) -> Mixed:
        """Mix the vectors at ``places``, one for each node of ``hood``, whose own and received vectors are not read.

        Where a node has fewer neighbours than k, those it has come first in ``hood``. The results are at the places.
        """
        geometry = self._measured(hood, places)
        decision = self.decide(geometry)
        coefficients = counted(geometry, decision)
        for place, factors in zip(places, coefficients.view(len(places), -1).tolist(), strict=True):
            add_differences(place.own, place.received, factors[: len(place.received)], out=place.out)
        return told(geometry, decision, coefficients, hood.own)

    def _measured(self, hood: Hood, places: Sequence[Neighbourhood]) -> Geometry:
        count = hood.present.shape[-1]
        if not self.ANGLES:
            squares = torch.zeros(len(places), count, dtype=torch.float64)
            for row, place in zip(squares, places, strict=True):
                row[: len(place.received)] = torch.tensor(squared_distances(place.own, place.received))
            return Geometry.measured(hood, squares=squares.view(hood.present.shape))
        gram = torch.zeros(len(places), count, count, dtype=torch.float64)
        for square, place in zip(gram, places, strict=True):
            here = len(place.received)
            square[:here, :here] = torch.from_numpy(gram_of_differences(place.own, place.received))
        gram = gram.view(*hood.present.shape, count)
        return Geometry.measured(hood, squares=gram.diagonal(dim1=-2, dim2=-1), gram=gram)


def counted(geometry: Geometry, decision: Decision) -> Tensor:
    """Return c_j f_j (..., k): nothing for absent neighbours, less for stale ones."""
    return torch.where(geometry.present, decision.coefficients, 0.0) * geometry.hood.freshness


def told(geometry: Geometry, decision: Decision, coefficients: Tensor, vector: Tensor) -> Mixed:
    """Return a ``decision`` as it is told; ``coefficients`` (..., k) are those that made the ``vector`` (..., d)."""
    accepted = decision.accepted & geometry.present
    threshold, reason = decision.threshold, decision.reason
    distance = geometry.distances if decision.distance is None else decision.distance
    return Mixed(
        vector=vector,
        accepted=accepted,
        weight=torch.where(accepted, coefficients, 0.0),
        distance=torch.where(geometry.present, distance, torch.inf),
        threshold=None if threshold is None else threshold.expand(accepted.shape),
        scale=decision.scale,
        reason=torch.where(geometry.hood.present & ~geometry.present, NOT_FINITE, 0 if reason is None else reason),
        memory=decision.memory,
    )


def nearest(distances: Tensor, present: Tensor, count: Tensor) -> Tensor:
    """Return where each node's ``count`` (...) nearest present neighbours are, (..., k) bool; ties by position."""
    order = torch.where(present, distances, torch.inf).argsort(dim=-1, stable=True)
    ranks = order.argsort(dim=-1)
    return (ranks < count.unsqueeze(-1)) & present
