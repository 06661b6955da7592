"""Training alone: the baseline of every study of gossip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.reasons import ALONE
from gossipfl.robust.span import Decision, GramRule

if TYPE_CHECKING:
    from gossipfl.robust.span import Geometry


@dataclass(frozen=True)
class Alone(GramRule):
    """Keep the own model whatever the neighbours say: out = own."""

    name: ClassVar[str] = "alone"

    def most(self, neighbours: int) -> int:
        """Return all of them: none has any influence."""
        return neighbours

    def decide(self, geometry: Geometry) -> Decision:
        """Accept nobody."""
        nobody = torch.zeros_like(geometry.weights)
        return Decision(nobody, nobody.bool(), reason=torch.full_like(nobody, ALONE, dtype=torch.long))
