"""WFAgg: three filters vote on every neighbour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.reasons import FILTERED, NONE
from gossipfl.robust.rules.condition import BoundedSpan
from gossipfl.robust.rules.coordinates import middle_values
from gossipfl.robust.span import Decision, Geometry, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Need

SHARES = (0.4, 0.4, 0.2)
"""What the votes of the filters D, C and T weigh."""


@dataclass(frozen=True)
class Wfagg(BoundedSpan):
    """WFAgg (Cajaraville-Aboy et al., arXiv 2409.17754).

        D: among the k - f - 1 nearest to m, the coordinate-wise median of the neighbours
        C: among the k - f - 1 with the largest cosine to m
        T: distance and cosine between its models of this and the last round are both within one standard deviation
           of their mean over the ``window`` rounds before; a neighbour with less of a history does not pass
        w_j = 0.4 [D] + 0.4 [C] + 0.2 [T] where at least two filters pass j, else 0
        out = (1 - α) own + α Σ_j w_j x_j / Σ_j w_j,    own where nobody passes

    The paper clips vectors to ‖m‖ before C, which changes no cosine. The defaults of α and ``window`` are ours for want
    of published ones: α as in BALANCE, and the window of the published code. The condition is f < k/2, for the
    median, and k - f - 1 >= 1.
    """

    alpha: float = 0.5
    window: int = 2
    name: ClassVar[str] = "wfagg"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f'rule "wfagg": alpha = {self.alpha} must be between 0 and 1')
        if not isinstance(self.window, int) or self.window < 2:
            raise ConfigError(f'rule "wfagg": window = {self.window} must be a whole number from 2 on')

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told."""
        return ("f", "previous")

    @property
    def memory(self) -> int:
        """Distance and cosine of each round in the window."""
        return 2 * self.window

    def most(self, neighbours: int) -> int:
        """Return the largest f < k/2 that leaves k - f - 1 >= 1."""
        return min((neighbours - 1) // 2, neighbours - 2)

    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Let the filters vote."""
        low, high = middle_values(geometry.differences, geometry.present)
        median = torch.where(geometry.present.any(-1, keepdim=True), low + (high - low) / 2, 0.0).unsqueeze(-2)
        models = geometry.hood.own.unsqueeze(-2) + geometry.differences
        count = geometry.present.sum(-1) - f - 1
        distances = torch.linalg.vector_norm(geometry.differences - median, dim=-1).double()
        angles = turned(models, geometry.hood.own.unsqueeze(-2) + median)
        steady, memory = self._steady(geometry, models)
        filters = (nearest(distances, geometry.present, count), nearest(angles, geometry.present, count), steady)
        passed = (torch.stack(filters).sum(0) >= 2) & geometry.present
        shares = torch.stack([share * passes.double() for share, passes in zip(SHARES, filters, strict=True)]).sum(0)
        shares = torch.where(passed, shares, 0.0)
        weights = self.alpha * shares / shares.sum(-1, keepdim=True).clamp_min(min(SHARES))
        return Decision(weights, passed, reason=torch.where(passed, NONE, FILTERED), memory=memory)

    def _steady(self, geometry: Geometry, models: Tensor) -> tuple[Tensor, Tensor]:
        """Return who passes T, (..., k) bool, and what is to be remembered, (..., k, 2 window), newest first."""
        hood, shape = geometry.hood, geometry.present.shape
        if hood.memory is None:
            past = torch.full((*shape, self.window, 2), torch.nan, dtype=torch.float64, device=models.device)
        else:
            past = hood.memory.to(models.device).view(*shape, self.window, 2)
        if hood.previous is None:
            now = torch.full((*shape, 2), torch.nan, dtype=torch.float64, device=models.device)
        else:
            step = torch.linalg.vector_norm(models - hood.previous, dim=-1).double()
            now = torch.stack([step, turned(models, hood.previous)], dim=-1)
            now = torch.where(geometry.present.unsqueeze(-1), now, torch.nan)
        usual = (now - past.mean(-2)).abs() <= past.std(-2)
        memory = torch.cat([now.unsqueeze(-2), past[..., :-1, :]], dim=-2)
        return usual.all(-1), memory.view(*shape, self.memory)


def turned(vectors: Tensor, others: Tensor) -> Tensor:
    """Return 1 - cos(v, o) along the last dimension, without the cancellation of 1 - cos: ‖v/‖v‖ - o/‖o‖‖²/2."""
    difference = torch.nn.functional.normalize(vectors, dim=-1) - torch.nn.functional.normalize(others, dim=-1)
    length: Tensor = torch.linalg.vector_norm(difference, dim=-1).double()
    return length * length / 2
