"""Clipping around the own model: how far a neighbour pulls is bounded, whatever it sends.

    out = own + Σ_j W_ij min(1, τ/‖x_j - own‖) (x_j - own)

The rules differ in the radius τ. Those with an ``f`` think in weights, δ = what the f heaviest of the node's edges
weigh together: the most that f Byzantine neighbours can have. The published conditions of these rules are on the
whole graph, on δ against its spectral gap; what a node can see of them is that f < k/2 of its k neighbours are
Byzantine, so that the distances that make the radius include those of honest ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.reasons import CLIPPED, NONE, OUTLYING
from gossipfl.robust.rules.condition import BoundedSpan
from gossipfl.robust.span import Decision, Geometry, GramRule

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 1e-9
"""Sums of weights that differ by less than this are equal: 0.1 three times is not 0.3."""


@dataclass(frozen=True)
class SelfClip(GramRule):
    """ClippedGossip with a fixed radius τ (He, Karimireddy, Jaggi, arXiv 2202.01545).

    The radius is in the units of the models; the paper runs 0.1, 1 and 10. However many lie, they move the model by
    no more than τ Σ_j W_ij in a round.
    """

    tau: float = 1.0
    name: ClassVar[str] = "self-clip"

    def __post_init__(self) -> None:
        if not (self.tau > 0 and isfinite(self.tau)):
            raise ConfigError(f'rule "self-clip": tau = {self.tau} must be greater than 0')

    def decide(self, geometry: Geometry) -> Decision:
        """Clip all to the fixed radius."""
        return clip(geometry, geometry.everywhere(self.tau), geometry.present)


@dataclass(frozen=True)
class ClippingRule(BoundedSpan, GramRule):
    """A rule whose radius depends on f."""

    def most(self, neighbours: int) -> int:
        """Return the largest f < k/2 of k neighbours."""
        return (neighbours - 1) // 2


@dataclass(frozen=True)
class AdaptiveClip(ClippingRule):
    """ClippedGossip with the radius of its theory (He, Karimireddy, Jaggi, arXiv 2202.01545).

        τ² = 1/δ Σ_{j in S} W_ij ‖x_j - own‖²

    S are the honest neighbours, unknown in practice: as the paper proposes, those that are left without the farthest
    ones whose weights sum to at most δ. With f = 0 nothing is clipped.
    """

    name: ClassVar[str] = "adaptive-clip"

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Clip all to the radius that the nearer ones make."""
        delta = heaviest(geometry.weights, f)
        near = geometry.present & ~farthest(geometry, delta)
        return clip(geometry, mean_radius(geometry, near, delta), geometry.present)


@dataclass(frozen=True)
class CsPlus(ClippingRule):
    """CS+ robust gossip (Gaucher, Dieuleveut, Hendrikx, ICML 2025).

    τ is the largest distance such that the neighbours up to it have at most the weight Σ_j W_ij - 2δ together: with
    equal weights, the 2f farthest are clipped to the distance of the next one. Where 2δ leaves nothing, τ = 0 and
    the node keeps its own model. With f = 0 nothing is clipped. The paper's step size is 1 here, the Laplacian that
    of the mixing weights.
    """

    name: ClassVar[str] = "cs-plus"

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Clip all to the distance at which 2δ of the weight is farther."""
        delta = heaviest(geometry.weights, f)
        order = torch.where(geometry.present, geometry.distances, torch.inf).argsort(dim=-1, stable=True)
        sums = geometry.weights.gather(-1, order).cumsum(-1)
        trusted = sums <= (geometry.weights.sum(-1) - 2 * delta + SLACK).unsqueeze(-1)
        tau = torch.where(trusted, geometry.distances.gather(-1, order), 0.0).amax(-1)
        return clip(geometry, torch.where(delta > 0, tau, torch.inf), geometry.present)


@dataclass(frozen=True)
class Rtc(ClippingRule):
    """Remove-then-clip (Yang, Ghaderi, AAAI 2024).

    The farthest neighbours whose weights sum to at most δ are removed, their weight returns to the node; the others,
    S, are clipped to τ² = 1/δ Σ_{j in S} W_ij ‖x_j - own‖². Clipping is by the factor τ/‖x_j - own‖ of ClippedGossip;
    published code with the square of that factor shortens far vectors to less than the radius. The centre is the model
    that the node publishes, after its local step. With f = 0 it is the weighted mean.
    """

    name: ClassVar[str] = "rtc"

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Remove the farthest, clip the rest."""
        delta = heaviest(geometry.weights, f)
        kept = geometry.present & ~farthest(geometry, delta)
        return clip(geometry, mean_radius(geometry, kept, delta), kept)


def heaviest(weights: Tensor, f: Tensor) -> Tensor:
    """Return δ, (...): the sum of each node's ``f`` (...) largest ``weights`` (..., k)."""
    ranks = torch.arange(weights.shape[-1], device=weights.device)
    return (weights.sort(dim=-1, descending=True).values * (ranks < f.unsqueeze(-1))).sum(-1)


def farthest(geometry: Geometry, delta: Tensor) -> Tensor:
    """Return where the farthest neighbours are whose weights sum to at most ``delta`` (...), (..., k) bool."""
    order = torch.where(geometry.present, geometry.distances, -1.0).argsort(dim=-1, descending=True, stable=True)
    fits = geometry.weights.gather(-1, order).cumsum(-1) <= (delta + SLACK).unsqueeze(-1)
    return torch.zeros_like(fits).scatter(-1, order, fits & (delta > 0).unsqueeze(-1)) & geometry.present


def mean_radius(geometry: Geometry, near: Tensor, delta: Tensor) -> Tensor:
    """Return τ = sqrt(1/δ Σ_{j near} W_ij ‖x_j - own‖²), (...); infinite where δ is 0."""
    spread = (torch.where(near, geometry.weights, 0.0) * geometry.squares).sum(-1)
    return torch.where(delta > 0, (spread / torch.where(delta > 0, delta, 1.0)).sqrt(), torch.inf)


def clip(geometry: Geometry, tau: Tensor, kept: Tensor) -> Decision:
    """Return the weighted sum of those ``kept`` (..., k), clipped to ``tau`` (...) around the own model."""
    radius, distances = tau.unsqueeze(-1), geometry.distances
    scale = torch.where(distances > radius, radius / distances.clamp_min(torch.finfo(distances.dtype).tiny), 1.0)
    clipped = torch.where(scale < 1, CLIPPED, NONE)
    return Decision(
        coefficients=torch.where(kept, geometry.weights * scale, 0.0),
        accepted=kept & (scale > 0),
        threshold=radius.expand(distances.shape),
        scale=torch.where(kept, scale, 1.0),
        reason=torch.where(kept, clipped, OUTLYING),
    )
