"""Conspiracies from the mean μ and the deviation σ per coordinate of the honest models around a target.

μ and σ are of the target's honest neighbours, in most attacks together with the target: so each says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.attacks import bounds, draws
from gossipfl.robust.attacks.crowd import Crowd, by_all

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import ConspiracyView


@dataclass(frozen=True, slots=True)
class Alie:
    """A little is enough (Baruch et al., NeurIPS 2019), as Wu, Chen and Ling (IEEE TSP 71, 2023) play it on graphs.

        lie = μ + z σ,    z = Φ⁻¹((k - s)/k),    s = max(1, ⌊(k + 1)/2⌋ - b)

    of the honest neighbours, for a target with k neighbours of which b lie: s honest ones lie further out and make the
    lie look like the majority's. ``z`` given is used for all targets. He, Karimireddy and Jaggi (2022) play z = -10
    with the target among the crowd (``with_target``).
    """

    z: float | None = None
    with_target: bool = False
    name: ClassVar[str] = "alie"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.z is not None:
            bounds.finite(self.name, "z", self.z)
        bounds.flag(self.name, "with_target", self.with_target)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        crowd = Crowd.around(view, target=self.with_target)
        z = self._quantiles(view).to(crowd.mean.dtype).unsqueeze(-1)
        return by_all(view, crowd.mean + z * crowd.deviation)

    def _quantiles(self, view: ConspiracyView) -> Tensor:
        """Return z of each target, (...) float64."""
        liars = view.byzantine_present.sum(-1).double()
        if self.z is not None:
            return torch.full_like(liars, self.z)
        neighbours = view.honest_present.sum(-1) + liars
        supporters = (((neighbours + 1) / 2).floor() - liars).clamp_min(1)
        # Where there is no majority to look like (one neighbour, or all of them lie), 1/2 keeps z finite.
        z: Tensor = torch.special.ndtri(((neighbours - supporters) / neighbours).clamp_min(0.5))
        return z


@dataclass(frozen=True, slots=True)
class InnerProduct:
    """Inner product manipulation: ``-strength μ`` of neighbours and target (Xie, Koyejo and Gupta, UAI 2019).

    The strength is that of He, Karimireddy and Jaggi (2022).
    """

    strength: float = 0.1
    name: ClassVar[str] = "ipm"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        return by_all(view, -self.strength * Crowd.around(view, target=True).mean)


@dataclass(frozen=True, slots=True)
class SignFlipMean:
    """Sign flip of the others: ``-strength μ`` of neighbours and target (Wu, Chen and Ling, IEEE TSP 71, 2023)."""

    strength: float = 1.0
    name: ClassVar[str] = "sign-flip-mean"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        return by_all(view, -self.strength * Crowd.around(view, target=True).mean)


@dataclass(frozen=True, slots=True)
class GaussianMean:
    """Noise around the mean of the honest neighbours, ``N(μ, strength² I)`` (Wu, Chen and Ling, IEEE TSP 71, 2023)."""

    strength: float = 30.0
    name: ClassVar[str] = "gaussian-mean"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d), with fresh noise for each."""
        mean = Crowd.around(view, target=False).mean
        noise = draws.each(view.byzantine_present, mean.shape[-1], view.generator, mean, gaussian=True)
        return by_all(view, mean) + self.strength * noise


@dataclass(frozen=True, slots=True)
class MinMax:
    """As far from the mean as hides among the honest (Shejwalkar and Houmansadr, NDSS 2021), whatever the rule.

        lie = μ - γ σ,    γ = max{γ : max_j ‖lie - x_j‖ <= max_{j,k} ‖x_j - x_k‖}

    of neighbours and target. The paper searches for γ; the condition on each x_j is quadratic in γ, so that it is
    solved here.
    """

    name: ClassVar[str] = "min-max"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        crowd = Crowd.around(view, target=True)
        both = crowd.present.unsqueeze(-1) & crowd.present.unsqueeze(-2)
        widest = torch.where(both, crowd.pairwise, 0.0).amax((-2, -1))
        squared = torch.linalg.vecdot(crowd.deviation, crowd.deviation).double()
        # ‖μ - γσ - x_j‖² = a γ² + 2 p_j γ + q_j, with p_j = ⟨σ, x_j - μ⟩
        p = (crowd.away @ crowd.deviation.unsqueeze(-1)).squeeze(-1).double()
        q = torch.linalg.vecdot(crowd.away, crowd.away).double()
        a = squared.unsqueeze(-1).clamp_min(torch.finfo(torch.float64).tiny)
        roots = ((p.square() + a * (widest.unsqueeze(-1) - q)).clamp_min(0).sqrt() - p) / a
        gamma = torch.where(crowd.present, roots, torch.inf).amin(-1).clamp_min(0)
        return by_all(view, _below(crowd, torch.where(squared > 0, gamma, 0.0)))


@dataclass(frozen=True, slots=True)
class MinSum:
    """As ``min-max`` with sums of squared distances (Shejwalkar and Houmansadr, NDSS 2021).

        lie = μ - γ σ,    γ = max{γ : Σ_j ‖lie - x_j‖² <= max_k Σ_j ‖x_k - x_j‖²}

    of neighbours and target.
    """

    name: ClassVar[str] = "min-sum"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        crowd = Crowd.around(view, target=True)
        spread = torch.linalg.vecdot(crowd.away, crowd.away).double().sum(-1)
        sums = torch.where(crowd.present.unsqueeze(-2), crowd.pairwise, 0.0).sum(-1)
        widest = torch.where(crowd.present, sums, 0.0).amax(-1)
        # Σ_j ‖μ - γσ - x_j‖² = m γ² ‖σ‖² + Σ_j ‖μ - x_j‖²
        squared = crowd.count * torch.linalg.vecdot(crowd.deviation, crowd.deviation).double()
        gamma = ((widest - spread).clamp_min(0) / squared.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        return by_all(view, _below(crowd, torch.where(squared > 0, gamma, 0.0)))


def _below(crowd: Crowd, gamma: Tensor) -> Tensor:
    """Return μ - γ σ, (..., d)."""
    return crowd.mean - gamma.to(crowd.mean.dtype).unsqueeze(-1) * crowd.deviation
