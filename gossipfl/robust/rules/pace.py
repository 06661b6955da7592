"""PACE: trust as far as one's neighbours agree and one's own training moves, without being told T or f."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.reasons import BEYOND, CLIPPED, NONE, OUTLYING
from gossipfl.robust.span import Decision, DistanceRule, Geometry

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Need


LEAST = 1e-300
"""In place of a weight of 0, which absent neighbours have."""


@dataclass(frozen=True)
class Pace(DistanceRule):
    """PACE, the default: two radii around the own model, one from the peers, one from the own pace.

        tent(r, R) = max(0, R - |R - r|)                        how far a neighbour at distance r pulls
        P_i  = spread median_j r_ij,     a_ij = tent(r_ij, P_i) / r_ij                       r_ij = ‖x_j - x_i‖
        m_i  = max(‖own - the model before this round's training‖, decay m_i of the round before)
        L_ij = reach m_i / ((k + 1) W_ij),     b_ij = tent(r_ij, L_ij) / r_ij
        out  = own + Σ_j W_ij a_ij b_ij (x_j - own) / (1 - Σ_j W_ij (1 - a_ij))

    A neighbour's weight counts in full up to a radius; beyond it the pull falls, and from twice the radius on there is
    none. A lie does best at the radius itself: a larger one is no larger influence.

    *Peers*: where most of the k neighbours are honest, the median distance is no more than some honest one's, whatever
    the others send. It grows and shrinks with models, data and graph, so that no threshold need be set and no horizon
    known. Of an even number it is the mean of the middle two, so that of two neighbours neither is judged by itself
    alone. The weight that this radius takes away is shared by all, own model included: under label skew, models are
    only as good as they mix fast.

    *Pace*: with Metropolis weights, W_ij <= 1/(k + 1), and half of the neighbours within P_i, no neighbour moves the
    node in a round by more than

        W_ij L_ij / (1 - Σ_j W_ij (1 - a_ij)) <= 2 reach m_i / (k + 1).

    So where the peers' majority is lost, lies are still bounded by the node's own progress, and fade out as training
    converges. m_i is a maximum that decays, for a single round moves a node little that was just pulled to where it
    wants to be. The weight that this radius takes away stays with the node.

    The tent is a redescending influence function (Hampel et al., Robust Statistics, 1986, ch. 2.6), the median as a
    scale is of the same school; clipping around the own model is ClippedGossip's (He, Karimireddy, Jaggi, arXiv
    2202.01545), the filter by distance BALANCE's (Fang et al., CCS 2024). The constants come from the matrix of
    docs/studies/matrix.md.
    """

    spread: float = 1.25
    reach: float = 8.0
    decay: float = 0.9
    name: ClassVar[str] = "pace"

    def __post_init__(self) -> None:
        for option, value, allowed, needs in (
            ("spread", self.spread, self.spread >= 1, "1 or greater"),
            ("reach", self.reach, self.reach > 0, "greater than 0"),
            ("decay", self.decay, 0 <= self.decay < 1, "from 0 to less than 1"),
        ):
            if not (allowed and isfinite(value)):
                raise ConfigError(f'rule "pace": {option} = {value} must be {needs}')

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told."""
        return ("moved",)

    @property
    def memory(self) -> int:
        """The node's pace m_i, the same number for each neighbour: nothing is remembered of a neighbour itself."""
        return 1

    def decide(self, geometry: Geometry) -> Decision:
        """Let the neighbours pull as far as peers and pace allow."""
        distances, weights, pace = geometry.distances, geometry.weights, self._pace(geometry)
        peers = self.spread * median(distances, geometry.present)
        limit = self.reach * pace / ((geometry.present.sum(-1, keepdim=True) + 1) * weights.clamp_min(LEAST))
        near, slow = self.factor(distances, peers), self.factor(distances, limit)
        scale = near * slow
        reason = torch.where(near > 0, torch.where(slow > 0, CLIPPED, BEYOND), OUTLYING)
        return Decision(
            coefficients=weights * scale / self.kept(weights, near),
            accepted=scale > 0,
            threshold=2 * torch.minimum(peers, limit),
            scale=torch.where(scale > 0, scale, 1.0),
            reason=torch.where(scale < 1, reason, NONE),
            memory=pace.unsqueeze(-1).expand(*distances.shape, 1),
        )

    def factor(self, distances: Tensor, radius: Tensor) -> Tensor:
        """Return tent(r, R)/r, in [0, 1], for distances r (..., k) and radii R (..., 1) or (..., k); 1 for r = 0."""
        beyond = 2 * radius / distances.clamp_min(LEAST) - 1
        return torch.where(distances <= radius, 1.0, beyond.clamp(0.0, 1.0))

    def kept(self, weights: Tensor, near: Tensor) -> Tensor:
        """Return 1 - Σ_j W_ij (1 - a_ij), (..., 1): all weights together, without what the peers take away."""
        return 1.0 - (weights * (1.0 - near)).sum(-1, keepdim=True)

    def _pace(self, geometry: Geometry) -> Tensor:
        """Return m_i, (..., 1)."""
        hood = geometry.hood
        if hood.moved is None:
            raise ValueError('rule "pace" was not told how far training moved the model')
        pace = hood.moved.to(geometry.distances).unsqueeze(-1)
        if hood.memory is None:
            return pace
        # Whoever is newly met brings no memory; a neighbour that is not finite still carries it.
        before = torch.where(hood.present, hood.memory[..., 0].to(pace), 0.0).nan_to_num(nan=0.0)
        return torch.maximum(pace, self.decay * before.amax(-1, keepdim=True))


def median(values: Tensor, present: Tensor) -> Tensor:
    """Return the median of the values (..., k) that are ``present``, (..., 1); of an even number the middle two's mean.

    Where there are none it is infinite.
    """
    ordered = torch.where(present, values, torch.inf).sort(dim=-1).values
    count = present.sum(-1, keepdim=True)
    low = ordered.gather(-1, ((count - 1) // 2).clamp_min(0))
    high = ordered.gather(-1, (count // 2).clamp_max(values.shape[-1] - 1))
    return (low + high) / 2
