"""Rules that try the neighbours' models on the node's own data."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.hood import at_large, check_count
from gossipfl.robust.reasons import NONE, OUTLYING, TOO_FEW, WORSE
from gossipfl.robust.rules.selection import average
from gossipfl.robust.span import Decision, SpanRule, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Need
    from gossipfl.robust.span import Geometry

DEFAULT_RHO = 0.4


@dataclass(frozen=True)
class Ubar(SpanRule):
    """UBAR, also called Mozi (Guo et al., IEEE TCSVT 32, 2022, arXiv 2002.08569): near first, then good on own data.

        N   = the ⌊ρ k⌋ neighbours nearest to own, at least one;  with ``f`` instead of ρ, the k - f nearest
        S   = {j in N : loss(x_j) <= loss(own)},   the one of N with the lowest loss where that is empty
        out = α own + (1 - α) mean_{j in S} x_j

    ρ is at most the share of the node's neighbours that are honest; it is 0.4 where neither ρ nor f is given. The
    losses are on data of the node's own.
    """

    rho: float | None = None
    alpha: float = 0.5
    f: int | str | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "ubar"

    def __post_init__(self) -> None:
        if self.rho is not None and self.f is not None:
            raise ConfigError('rule "ubar": rho and f say the same in two ways; give one of them')
        if self.f is not None:
            check_count(self.name, self.f)
        if not 0 < self.share <= 1:
            raise ConfigError(f'rule "ubar": rho = {self.rho} must be greater than 0 and at most 1')
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f'rule "ubar": alpha = {self.alpha} must be between 0 and 1')

    @property
    def share(self) -> float:
        """ρ."""
        return DEFAULT_RHO if self.rho is None else self.rho

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told."""
        return ("losses",) if self.f is None else ("f", "losses")

    def most(self, neighbours: int) -> int:
        """Return how many may lie so that all that are short-listed, or with ``f`` one of them, can be honest."""
        return neighbours - (1 if self.f is not None else self._listed(neighbours))

    def decide(self, geometry: Geometry) -> Decision:
        """Short-list by distance, choose by loss."""
        listed = self._short_list(geometry)
        short = nearest(geometry.distances, geometry.present, listed)
        own, losses = _losses(geometry, short)
        judged = short & losses.isfinite()
        good = judged & (losses <= own.unsqueeze(-1))
        best = torch.zeros_like(short).scatter(-1, losses.argmin(dim=-1, keepdim=True), value=True)
        chosen = torch.where(good.any(-1, keepdim=True), good, best & judged)
        decision = average(chosen, (1.0 - self.alpha) / chosen.sum(-1).clamp_min(1))
        why = torch.where(short, WORSE, torch.where((listed > 0).unsqueeze(-1), OUTLYING, TOO_FEW))
        return Decision(decision.coefficients, chosen, reason=torch.where(chosen, NONE, why))

    def _short_list(self, geometry: Geometry) -> Tensor:
        """Return how many neighbours of each node are short-listed, (...)."""
        count = geometry.present.sum(-1)
        if self.f is not None:
            return (count - at_large(self.name, self.f, geometry.hood, geometry.present)).clamp_min(0)
        places = geometry.present.shape[-1]
        return torch.tensor([self._listed(k) for k in range(places + 1)], device=count.device)[count]

    def _listed(self, neighbours: int) -> int:
        """Return ⌊ρ k⌋, or 1 where that is 0; 0.29 of 100 is 29, whatever the rounding."""
        return min(max(1, floor(self.share * neighbours + 1e-9)), neighbours)


def _losses(geometry: Geometry, short: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of the own model, (...), and of those on the ``short`` list, (..., k), infinite for others."""
    hood = geometry.hood
    if hood.losses is None:
        raise ValueError("ubar was not told the losses")
    most = int(short.sum(-1).max())
    places = torch.where(short, geometry.distances, torch.inf).argsort(dim=-1, stable=True)[..., :most]
    steps = geometry.differences.gather(-2, places.unsqueeze(-1).expand(*places.shape, hood.own.shape[-1]))
    # Rows beyond a node's short list are other neighbours: judged, and not looked at.
    candidates = torch.cat([hood.own.unsqueeze(-2), hood.own.unsqueeze(-2) + steps], dim=-2)
    judged = hood.losses(candidates).double()
    judged = torch.where(judged.isnan(), torch.inf, judged)
    losses = torch.full_like(geometry.distances, torch.inf).scatter(-1, places, judged[..., 1:])
    return judged[..., 0], torch.where(short, losses, torch.inf)
