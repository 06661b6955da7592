"""PACE: trust as far as one's neighbours agree and one's own training moves, without being told T or f."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.reasons import BEYOND, CLIPPED, NONE, OUTLYING
from gossipfl.robust.span import Decision, Geometry, GramRule

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Need

LEAST = 1e-300
"""In place of a distance of 0 below a fraction."""


@dataclass(frozen=True)
class Pace(GramRule):
    """PACE, the default: who may pull is decided by the peers, how far by the own pace; trust is earned, then kept.

        med_i  = median_j r_ij,    r_ij = ‖x_j - own‖ over the k neighbours
        S_i(t) = {j : r_ij <= enter med_i}  ∪  {j in S_i(t - 1) : r_ij <= leave med_i}
        a_ij   = min(1, enter med_i / r_ij) for j in S_i,  0 for others
        m_i(t) = max(‖own - the model before this round's training‖, decay m_i(t - 1))
        b_ij   = min(1, max(0, 2 reach m_i / r_ij - 1))
        out    = own + Σ_j a_ij b_ij (x_j - own) / (1 + |S_i|)

    *Peers*: where most neighbours are honest, the median distance is no more than some honest one's, whatever the
    others send. It grows and shrinks with models, data and graph, so that no threshold need be set and no horizon
    known. Of an even number it is the mean of the middle two, so that of two neighbours neither is judged by itself
    alone. Those who are let in have equal shares, and none pulls from farther than ``enter`` medians.

    *Trust*: honest nodes begin alike, from one model, and drift apart as their data differ. A threshold that lets the
    honest stay later is one that lets liars in at first; models then are drawn towards theirs, and soon they are no
    outliers any more. So a stranger must come nearer (``enter``) than one who has been let in (``leave``).

    *Pace*: beyond the reach of ``reach`` times its own movement a neighbour pulls less, from twice the reach on not at
    all; what that takes away stays with the node. Half of the neighbours are within the median, so none moves the node
    in a round by more than

        min(enter med_i, reach m_i) / (1 + k/2).

    Where the peers' majority is lost, lies are still bounded by the node's own progress, and fade out as training
    converges; one large lie is no larger influence. m_i is a maximum that decays, for a single round moves a node
    little that was just pulled to where it wants to be.

    The median as scale and the pull that falls again are of robust statistics (Hampel et al., Robust Statistics, 1986,
    ch. 2); clipping around the own model is ClippedGossip's (He, Karimireddy, Jaggi, arXiv 2202.01545), equal shares of
    those near the own model are BALANCE's (Fang et al., CCS 2024). The constants come from docs/studies/matrix.md.
    """

    enter: float = 1.25
    leave: float = 2.0
    reach: float = 6.0
    decay: float = 0.9
    name: ClassVar[str] = "pace"

    def __post_init__(self) -> None:
        for option, value, allowed, needs in (
            ("enter", self.enter, self.enter >= 1, "1 or greater"),
            ("leave", self.leave, self.leave >= self.enter, f"at least enter = {self.enter}"),
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
        """The node's pace m_i, and whether the neighbour is in S_i."""
        return 2

    def decide(self, geometry: Geometry) -> Decision:
        """Let those in whom the peers vouch for, as far as the pace allows."""
        distances, pace = geometry.distances, self.pace(geometry)
        middle, reach = median(distances, geometry.present), self.reach * pace
        threshold = torch.where(self.trusted(geometry), self.leave, self.enter) * middle
        inside = geometry.present & (distances <= threshold)
        near = torch.where(inside, (self.enter * middle / distances.clamp_min(LEAST)).clamp_max(1.0), 0.0)
        slow = self.slowed(distances, reach)
        scale = near * slow
        accepted = scale > 0
        reason = torch.where(accepted, torch.where(scale < 1, CLIPPED, NONE), torch.where(inside, BEYOND, OUTLYING))
        return Decision(
            coefficients=scale / (1.0 + inside.sum(-1, keepdim=True)),
            accepted=accepted,
            threshold=torch.minimum(threshold, 2 * reach),
            scale=torch.where(accepted, scale, 1.0),
            reason=reason,
            memory=torch.stack([pace.expand_as(distances), inside.to(pace)], dim=-1),
        )

    def slowed(self, distances: Tensor, reach: Tensor) -> Tensor:
        """Return b_ij, (..., k), for the reach (..., 1); 1 for a distance of 0."""
        return torch.where(distances <= reach, 1.0, (2 * reach / distances.clamp_min(LEAST) - 1).clamp(0.0, 1.0))

    def pace(self, geometry: Geometry) -> Tensor:
        """Return m_i, (..., 1)."""
        hood = geometry.hood
        if hood.moved is None:
            raise ValueError('rule "pace" was not told how far training moved the model')
        now = hood.moved.to(geometry.distances).unsqueeze(-1)
        if hood.memory is None:
            return now
        # A neighbour newly met brings no memory, one that was away the pace of long ago, when steps were larger: by the
        # least that is remembered, nobody lengthens the reach by being away. One that is not finite still carries it.
        known = hood.present & torch.isfinite(hood.memory[..., 0])
        before = torch.where(known, hood.memory[..., 0].to(now), torch.inf).amin(-1, keepdim=True)
        return torch.maximum(now, torch.where(torch.isfinite(before), self.decay * before, 0.0))

    def trusted(self, geometry: Geometry) -> Tensor:
        """Return who was in S_i the round before, (..., k)."""
        memory = geometry.hood.memory
        return torch.zeros_like(geometry.present) if memory is None else memory[..., 1].to(geometry.distances) > 0


def median(values: Tensor, present: Tensor) -> Tensor:
    """Return the median of the values (..., k) that are ``present``, (..., 1); of an even number the middle two's mean.

    Where there are none it is infinite.
    """
    ordered = torch.where(present, values, torch.inf).sort(dim=-1).values
    count = present.sum(-1, keepdim=True)
    low = ordered.gather(-1, ((count - 1) // 2).clamp_min(0))
    high = ordered.gather(-1, (count // 2).clamp_max(values.shape[-1] - 1))
    return (low + high) / 2
