"""What a round is made of: its phases, what a gossip step did, and its times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from gossipfl.identity import PeerId
from gossipfl.robust.base import Verdict

if TYPE_CHECKING:
    from torch import Tensor

INFINITY = float("inf")
REMEMBERED_ROUNDS = 16
"""Rounds whose publication is remembered, to tell how late a neighbour's answer to them is."""


class Phase(Enum):
    """Where in its round a node is."""

    TRAINING = "training"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Mixing:
    """What one gossip step did: a verdict and a staleness (in own steps) per neighbour used, and who was missed."""

    round: int
    verdicts: Mapping[PeerId, Verdict]
    staleness: Mapping[PeerId, int]
    missed: tuple[PeerId, ...]


@dataclass(slots=True)
class Clockwork:
    """Times of the current round."""

    deadline: float = INFINITY
    nudge_at: float = INFINITY
    nudge_gap: float = 0.0
    published: dict[int, float] = field(default_factory=dict)

    def note(self, round_: int, now: float) -> None:
        """Remember when a round was published; only the last few matter."""
        self.published[round_] = now
        while len(self.published) > REMEMBERED_ROUNDS:
            del self.published[min(self.published)]


@dataclass(frozen=True, slots=True)
class CoreState:
    """What a node keeps over a restart, beside its learner's state: ``tensors`` by name, and whole numbers."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
