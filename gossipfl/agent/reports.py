"""What an agent tells of its rounds and of its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gossipfl.gossip import Mixing, Report
    from gossipfl.tasks.base import Evaluation, TrainReport


@dataclass(frozen=True, slots=True)
class RoundReport:
    """One finished round of one node; ``mixing`` is None when an asynchronous node deferred its gossip step."""

    round: int
    t_s: float
    training: TrainReport
    train_s: float
    train_cpu_s: float | None
    round_s: float
    mixing: Mixing | None
    evaluation: Evaluation | None
    bytes_sent: int
    bytes_received: int


class Observer(Protocol):
    """Whoever keeps the records."""

    def on_round(self, report: RoundReport) -> None:
        """Take note of a finished round."""

    def on_event(self, t_s: float, report: Report) -> None:
        """Take note of something that happened."""


@dataclass(frozen=True, slots=True)
class AgentResult:
    """How an agent ended; ``personalised`` is its model after a few more local steps, measured but not kept."""

    rounds: int
    digest: bytes
    evaluation: Evaluation | None
    personalised: Evaluation | None
    dropped: dict[str, int]
