"""Rules that hold only up to so many Byzantine neighbours, and what they do where there are more."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from gossipfl.robust.hood import Bounded
from gossipfl.robust.reasons import TOO_FEW
from gossipfl.robust.span import Decision, Geometry, SpanRule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BoundedSpan(Bounded, SpanRule):
    """A span rule with an ``f``. Where its condition fails, a node accepts nobody and keeps its own model."""

    @abstractmethod
    def choose(self, geometry: Geometry, f: Tensor) -> Decision:
        """Return the coefficients for ``f`` (...); those of nodes whose condition fails are ignored."""

    def decide(self, geometry: Geometry) -> Decision:
        """Let the rule choose where its condition holds."""
        f, feasible = self.bound(geometry.hood, geometry.present)
        decision, here = self.choose(geometry, f), feasible.unsqueeze(-1)
        reason = torch.zeros_like(geometry.present, dtype=torch.long) if decision.reason is None else decision.reason
        return replace(
            decision,
            coefficients=torch.where(here, decision.coefficients, 0.0),
            accepted=decision.accepted & here,
            threshold=None if decision.threshold is None else torch.where(here, decision.threshold, torch.nan),
            scale=None if decision.scale is None else torch.where(here, decision.scale, 1.0),
            reason=torch.where(here, reason, TOO_FEW),
        )
