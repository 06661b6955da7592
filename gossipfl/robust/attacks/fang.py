"""Local model poisoning (Fang et al., USENIX Security 2020), full knowledge, per target.

Both push every coordinate against s = sign(Σ_j x_j), the sum over the target's honest neighbours and itself: the way
that training has taken it. That is the authors' code, which takes the vectors that are exchanged, applied to models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.attacks import draws
from gossipfl.robust.attacks.crowd import Crowd, by_all

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import ConspiracyView

LEAST = 1e-5
"""The paper's smallest λ: where Krum refuses a lie so near, the conspirators say the truth."""


@dataclass(frozen=True, slots=True)
class Trim:
    """Just beyond the honest ones on the wrong side, against trimmed mean and median.

    d = min_j x_j where s > 0, max_j x_j where s < 0
    lie = d / r where s d > 0, d r elsewhere,        r ~ U(1, 2) for each liar and coordinate
    """

    name: ClassVar[str] = "trim"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        crowd = Crowd.around(view, target=True)
        sign = crowd.sum.sign()
        edge = torch.where(sign > 0, crowd.least, crowd.most) * sign.abs()
        size = edge.shape[-1]
        factors = 1 + draws.each(view.byzantine_present, size, view.generator, edge, gaussian=False)
        inwards = (sign * edge > 0).unsqueeze(-2)
        return by_all(view, edge) * torch.where(inwards, 1 / factors, factors)


@dataclass(frozen=True, slots=True)
class KrumAttack:
    """The furthest lie that Krum still picks: ``x_i - λ s`` by all liars, λ halved from the paper's bound until it is.

    With n vectors around target i (itself included), b of them lies, Krum picks the one with the least sum of the
    n - b - 2 smallest squared distances to others. The bound is

        λ = min_j Σ_{n-b-2 nearest l} ‖x_j - x_l‖ / ((n - 2b - 1) √d) + max_j ‖x_j - x_i‖ / √d

    over honest j and l. Where no λ from 1e-5 on is picked, each conspirator publishes its honestly trained model.
    """

    name: ClassVar[str] = "krum-attack"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        crowd = Crowd.around(view, target=True)
        sign = crowd.sum.sign()
        election = _Election(view, crowd, sign)
        size = election.bound()
        picked = torch.zeros_like(size, dtype=torch.bool)
        while bool((trying := ~picked & (size >= LEAST)).any()):
            picked |= trying & election.won(size)
            size = torch.where(picked, size, size / 2)
        lie = view.target - size.to(sign.dtype).unsqueeze(-1) * sign
        return torch.where(picked[..., None, None], by_all(view, lie), view.own)


class _Election:
    """Krum at every target, between the honest models (..., m, d) and b copies of ``x_i - λ s``."""

    def __init__(self, view: ConspiracyView, crowd: Crowd, sign: Tensor) -> None:
        nobody = ~(crowd.present.unsqueeze(-1) & crowd.present.unsqueeze(-2))
        itself = torch.eye(nobody.shape[-1], dtype=torch.bool, device=nobody.device)
        self._honest = crowd.pairwise.masked_fill(nobody | itself, torch.inf)
        self._present = crowd.present
        self._copies = view.byzantine_present
        self._liars = view.byzantine_present.sum(-1)
        self._size = sign.shape[-1]
        self._closest = (crowd.count - 2).clamp_min(1)
        # ‖x_j - x_i + λ s‖² = ‖x_j - x_i‖² + 2 λ ⟨x_j - x_i, s⟩ + λ² ‖s‖²; the target comes first.
        steps = torch.where(crowd.present.unsqueeze(-1), crowd.models - view.target.unsqueeze(-2), 0.0)
        self._to_target = torch.linalg.vecdot(steps, steps).double()
        self._along = (steps @ sign.unsqueeze(-1)).squeeze(-1).double()
        self._sign_squared = torch.linalg.vecdot(sign, sign).double().unsqueeze(-1)

    def bound(self) -> Tensor:
        """Return the largest λ that the paper allows, (...)."""
        spread = torch.where(self._present, _least_sum(self._honest.sqrt(), self._closest), torch.inf).amin(-1)
        rest = (self._present.sum(-1) - self._liars - 1).clamp_min(1)
        bound: Tensor = (spread / rest + self._to_target.sqrt().amax(-1)) / self._size**0.5
        return bound

    def won(self, size: Tensor) -> Tensor:
        """Return where the lies with λ = ``size`` (...) have the least score, (...)."""
        scale = size.unsqueeze(-1)
        distances = (self._to_target + 2 * scale * self._along + scale.square() * self._sign_squared).clamp_min(0)
        distances = distances.masked_fill(~self._present, torch.inf)
        to_lies = torch.where(self._copies.unsqueeze(-2), distances.unsqueeze(-1), torch.inf)
        honest = _least_sum(torch.cat([self._honest, to_lies], -1), self._closest)
        honest = torch.where(self._present, honest, torch.inf).amin(-1)
        others = torch.arange(self._copies.shape[-1], device=size.device) < (self._liars - 1).unsqueeze(-1)
        copies = torch.where(others, 0.0, torch.inf).double()
        lie = _least_sum(torch.cat([copies, distances], -1).unsqueeze(-2), self._closest).squeeze(-1)
        return lie < honest


def _least_sum(distances: Tensor, count: Tensor) -> Tensor:
    """Return the sum of the ``count`` (...) least of each row of ``distances`` (..., m, k), (..., m)."""
    ordered = distances.sort(-1).values
    wanted = torch.arange(ordered.shape[-1], device=ordered.device) < count[..., None, None]
    return torch.where(wanted & ordered.isfinite(), ordered, 0.0).sum(-1)
