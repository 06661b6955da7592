"""From verdicts in every round to the few entries worth keeping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gossipfl_node.audit.entries import Kind

if TYPE_CHECKING:
    from gossipfl.agent import RoundReport
    from gossipfl.gossip import Report
    from gossipfl.identity import PeerId
    from gossipfl.robust.base import Verdict

QUIET_S = 60.0
"""Least time between two entries on one neighbour's turning: one that turns in every round fills no log."""
TOTALS_S = 3600.0
NEIGHBOURS_PER_ENTRY = 64
COUNTS = ("accepted", "rejected", "missed", "turns")
KINDS: Mapping[str, Kind] = {
    "offence": "offence",
    "peer_muted": "mute",
    "equivocation": "evidence",
    "membership": "membership",
    "removed": "membership",
}

Add = Callable[[Kind, Mapping[str, Any]], None]


@dataclass(slots=True)
class _Standing:
    """How one neighbour stands; the counts are those since the last totals."""

    told: bool = True
    told_s: float = float("-inf")
    accepted: bool = True
    counts: Counter[str] = field(default_factory=Counter)


class Turning:
    """An observer of the agent that adds an entry when a neighbour turns from accepted to rejected or back.

    A neighbour counts as accepted until it is rejected. Every ``totals_s``, and with ``finish``, it adds how often each
    was accepted, rejected, missed, and has turned since the last time. Events in ``KINDS`` are added as they come: the
    protocol keeps them few, since mutes double, one proof convicts, and memberships need their signers.
    """

    def __init__(
        self, add: Add, name_of: Callable[[PeerId], str], quiet_s: float = QUIET_S, totals_s: float = TOTALS_S
    ) -> None:
        self._add = add
        self._name_of = name_of
        self._quiet_s = quiet_s
        self._totals_s = totals_s
        self._standings: dict[PeerId, _Standing] = {}
        self._rounds: tuple[int, int] | None = None
        self._since_s = 0.0

    def on_round(self, report: RoundReport) -> None:
        """Take the verdicts of a round."""
        self._rounds = (self._rounds[0] if self._rounds is not None else report.round, report.round)
        if report.mixing is not None:
            for peer, verdict in report.mixing.verdicts.items():
                self._judge(peer, verdict, report)
            for peer in report.mixing.missed:
                self._standings.setdefault(peer, _Standing()).counts["missed"] += 1
        if report.t_s >= self._since_s + self._totals_s:
            self._since_s = report.t_s
            self.finish()

    def on_event(self, t_s: float, report: Report) -> None:
        """Take an event that is worth an entry."""
        del t_s
        if report.event in KINDS:
            who = {} if report.peer is None else {"peer": self._name_of(report.peer), "peer_id": report.peer}
            self._add(KINDS[report.event], {"event": report.event, **who, **report.fields})

    def finish(self) -> None:
        """Add the totals since the last ones."""
        totals = {
            self._name_of(peer): {word: standing.counts[word] for word in COUNTS}
            for peer, standing in self._standings.items()
            if standing.counts
        }
        names = list(totals)
        for start in range(0, len(names), NEIGHBOURS_PER_ENTRY):
            told = {name: totals[name] for name in names[start : start + NEIGHBOURS_PER_ENTRY]}
            self._add("verdict", {"rounds": self._rounds, "totals": told})
        for standing in self._standings.values():
            standing.counts.clear()
        self._rounds = None

    def _judge(self, peer: PeerId, verdict: Verdict, report: RoundReport) -> None:
        standing = self._standings.setdefault(peer, _Standing())
        word = "accepted" if verdict.accepted else "rejected"
        standing.counts[word] += 1
        if verdict.accepted is not standing.accepted:
            standing.counts["turns"] += 1
        standing.accepted = verdict.accepted
        if verdict.accepted is standing.told or report.t_s < standing.told_s + self._quiet_s:
            return
        standing.told, standing.told_s = verdict.accepted, report.t_s
        fields = {"peer": self._name_of(peer), "turned": word, "round": report.round}
        self._add("verdict", {**fields, **verdict.fields()})
