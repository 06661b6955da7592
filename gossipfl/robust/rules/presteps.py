"""Steps before a rule: the vectors are mixed or clipped, then any rule does its work on the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from gossipfl.robust.hood import Bounded, Mixed
from gossipfl.robust.reasons import CLIPPED, NONE, NOT_FINITE, OUTLYING, TOO_FEW
from gossipfl.robust.rules.coordinates import mean_freshness
from gossipfl.robust.span import Geometry

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Need, Rule
    from gossipfl.robust.hood import Hood

TRACE = 1e-6
"""A smaller weight than this is rounding: mixing makes vectors equal, whose differences should be 0."""


class PreStep(Protocol):
    """Replaces each of the n = k + 1 vectors of a node and its neighbours by a mean of them."""

    @property
    def name(self) -> str:
        """The name it has in ``PRE_STEPS``."""
        ...

    @property
    def clips(self) -> bool:
        """Whether all that it does is to draw vectors towards the own one."""
        ...

    def shares(self, geometry: Geometry, f: Tensor) -> Tensor:
        """Return P (..., n, n), own first: vector i becomes Σ_j P_ij x_j. Rows sum to 1; absent ones become own."""
        ...


@dataclass(frozen=True)
class Nnm:
    """Nearest-neighbour mixing (Allouah et al., AISTATS 2023).

        y_i = 1/(n - f) Σ_{j near i} x_j,    ``near i`` the n - f vectors nearest to x_i, itself included

    for each of the n = k + 1 vectors, the own one too.
    """

    name: ClassVar[str] = "nnm"
    clips: ClassVar[bool] = False

    def shares(self, geometry: Geometry, f: Tensor) -> Tensor:
        """Return equal shares of the nearest."""
        there = geometry.present_with_own
        squares = torch.where(there.unsqueeze(-2), geometry.pairwise, torch.inf)
        squares = squares - torch.diag_embed(torch.ones_like(squares[..., 0]))  # itself first, before equal ones
        ranks = squares.argsort(dim=-1, stable=True).argsort(dim=-1)
        count = (there.sum(-1) - f)[..., None, None]
        return torch.where(there.unsqueeze(-1), (ranks < count) / count.double(), _own(squares))


@dataclass(frozen=True)
class Arc:
    """Adaptive robust clipping (Allouah et al., ICLR 2025).

        y_i = own + min(1, C/‖x_i - own‖) (x_i - own)

    C is the largest of the n = k + 1 norms when the ⌊2 f/n (n - f)⌋ largest are left out. The paper clips
    gradients, around 0; models are clipped around the own one, whose own norm is then 0, and counts among the n.
    """

    name: ClassVar[str] = "arc"
    clips: ClassVar[bool] = True

    def shares(self, geometry: Geometry, f: Tensor) -> Tensor:
        """Return the shares that are left of each vector; the rest is the own one's."""
        there = geometry.present_with_own
        norms = torch.nn.functional.pad(geometry.distances, (1, 0))
        count = there.sum(-1)
        place = count - 1 - 2 * f * (count - f) // count
        limit = torch.where(there, norms, torch.inf).sort(dim=-1).values.gather(-1, place.unsqueeze(-1))
        scale = torch.where(norms > limit, limit / norms.clamp_min(torch.finfo(norms.dtype).tiny), 1.0)
        scale = torch.where(there, scale, 0.0)
        kept = torch.diag_embed(scale)
        return kept + (1.0 - scale).unsqueeze(-1) * _own(kept)


@dataclass(frozen=True)
class Preceded(Bounded):
    """A ``rule`` after a ``step``: what it is given are the vectors that the step makes, the own one among them.

        out = R(y_own, {y_j})

    The ``step`` is made for ``f``; a rule with an f of its own has ``"known"`` there, and is told what is left of f.
    A neighbour's weight is what of its vector goes into the result; distances and thresholds are those that the rule
    saw, after the step. Freshness scales the step from the own model to ``out`` by the mean freshness of the
    neighbours, each counted by its weight. The condition is an honest majority, f < n/2 of n = k + 1, for the step,
    and the rule's own.
    """

    step: PreStep
    rule: Rule

    @property
    def name(self) -> str:
        """The step's name and the rule's."""
        return f"{self.step.name}+{self.rule.name}"

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told, the rule included."""
        return ("f", *(need for need in self.rule.needs if need != "f"))

    @property
    def memory(self) -> int:
        """What the rule remembers."""
        return self.rule.memory

    def most(self, neighbours: int) -> int:
        """Return the smaller of what the step and the rule allow; a rule without f relies on the step."""
        majority = neighbours // 2
        most = self.rule.most(neighbours) if "f" in self.rule.needs else None
        return majority if most is None else min(most, majority)

    def mix(self, hood: Hood) -> Mixed:
        """Mix many nodes at once."""
        geometry = Geometry.of(hood)
        f, feasible = self.bound(hood, geometry.present)
        shares = self.step.shares(geometry, f)
        moved = hood.own.unsqueeze(-2) + shares[..., 1:].to(hood.own.dtype) @ geometry.differences
        mixed = self.rule.mix(
            replace(
                hood,
                own=moved[..., 0, :],
                received=moved[..., 1:, :],
                present=geometry.present,
                freshness=torch.ones_like(hood.freshness),
                byzantine=f,
            )
        )
        return self._told(geometry, mixed, shares, feasible.unsqueeze(-1))

    def _told(self, geometry: Geometry, mixed: Mixed, shares: Tensor, here: Tensor) -> Mixed:
        """Return what the rule ``mixed``, in terms of the vectors before the step; ``here`` (..., 1): feasible."""
        hood, scale = geometry.hood, torch.ones_like(mixed.weight)
        inner = scale if mixed.scale is None else mixed.scale
        if self.step.clips:
            accepted = mixed.accepted & here
            scale = torch.where(accepted, shares.diagonal(dim1=-2, dim2=-1)[..., 1:] * inner, 1.0)
        else:
            # A vector may be clipped to next to nothing, and be in all the same: what counts is its share before that.
            whole = mixed.weight / torch.where(inner > 0, inner, 1.0)
            accepted = (through(shares, mixed.weight, whole) > TRACE) & geometry.present & here
        weights = torch.where(accepted, through(shares, mixed.weight, mixed.weight), 0.0)
        fresh = mean_freshness(hood, weights)
        step = torch.where(accepted.any(-1, keepdim=True), mixed.vector - hood.own, 0.0) * fresh.to(hood.own.dtype)
        rejected = torch.full_like(accepted, NONE, dtype=torch.long) if mixed.reason is None else mixed.reason
        rejected = torch.where(here, torch.where(rejected == NONE, OUTLYING, rejected), TOO_FEW)
        reason = torch.where(accepted, torch.where(scale < 1, CLIPPED, NONE), rejected)
        return Mixed(
            vector=hood.own + step,
            accepted=accepted,
            weight=weights * fresh,
            distance=mixed.distance,
            threshold=mixed.threshold,
            scale=scale,
            reason=torch.where(hood.present & ~geometry.present, NOT_FINITE, reason),
            memory=mixed.memory,
        )


def through(shares: Tensor, weights: Tensor, parts: Tensor) -> Tensor:
    """Return what there is of each neighbour's vector, (..., k), in a sum of those that ``shares`` make of them.

    The sum has ``parts`` (..., k) of the neighbours' and what the ``weights`` (..., k) leave of 1 of the own one.
    """
    everybody = torch.cat([1.0 - weights.sum(-1, keepdim=True), parts], dim=-1)
    return (everybody.unsqueeze(-2) @ shares).squeeze(-2)[..., 1:]


def _own(like: Tensor) -> Tensor:
    """Return rows that stand for the own model, (..., n, n) as ``like``."""
    rows = torch.zeros_like(like)
    rows[..., 0] = 1.0
    return rows
