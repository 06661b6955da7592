"""Conspiracies against gossip itself: they undo, or overdo the opposite of, what mixing does to a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.attacks import bounds, draws
from gossipfl.robust.attacks.crowd import by_all

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import ConspiracyView


@dataclass(frozen=True, slots=True)
class Dissensus:
    """Push a target away from its honest neighbours (He, Karimireddy and Jaggi, 2022).

        lie = x_i - strength Σ_{honest j} W_ij (x_j - x_i) / Σ_{lying b} W_ib

    With strength 1 the weighted mean leaves the target where it is; above, it drives it away.
    """

    strength: float = 1.5
    name: ClassVar[str] = "dissensus"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        return by_all(view, view.target - self.strength * _counterweight(view))


@dataclass(frozen=True, slots=True)
class Isolation:
    """Cut a target off: with this lie the weighted mean is its own model (Wu, Chen and Ling, IEEE TSP 71, 2023)."""

    name: ClassVar[str] = "isolation"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        return by_all(view, view.target - _counterweight(view))


@dataclass(frozen=True, slots=True)
class SampleDuplicating:
    """All say what one honest node says: its data counts many times over (Wu, Chen and Ling, IEEE TSP 71, 2023).

    The node is drawn from all honest ones of the network by the generator's seed, and stays the same.
    """

    name: ClassVar[str] = "sample-duplicating"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        honest = torch.nonzero(view.is_honest).flatten()
        return view.everyone[honest[draws.constant(view.generator, len(honest))]].expand_as(view.own)


def _counterweight(view: ConspiracyView) -> Tensor:
    """Return Σ_{honest j} W_ij (x_j - x_i) / Σ_{lying b} W_ib, (..., d)."""
    differences = view.honest - view.target.unsqueeze(-2)
    differences = torch.where(view.honest_present.unsqueeze(-1), differences, 0.0)
    weights = torch.where(view.honest_present, view.honest_weights, 0.0).to(differences.dtype)
    lying = torch.where(view.byzantine_present, view.byzantine_weights, 0.0).sum(-1, keepdim=True)
    return (weights.unsqueeze(-2) @ differences).squeeze(-2).div_(lying)
