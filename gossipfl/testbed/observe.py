"""From what an agent says to what records hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gossipfl.agent import AgentResult, RoundReport
from gossipfl.gossip import Report
from gossipfl.records import Event, NodeRound
from gossipfl.testbed.plan import node_name

if TYPE_CHECKING:
    from gossipfl.identity import PeerId
    from gossipfl.testbed.plan import Plan


def told_at_the_end(result: AgentResult) -> dict[str, Any]:
    """Return what a summary wants to know of how one agent ended."""
    personal = result.personalised
    return {
        "digest": result.digest.hex(),
        "dropped": result.dropped,
        "personalised": None if personal is None else personal.measures(),
    }


class NodeObserver:
    """Turns one agent's reports into rows and events, with node names in place of peer ids.

    ``keep_row`` and ``keep_event`` take them: the records of this process, or a pipe to the process that has them.
    A neighbour that ends takes the link to it down. That is left out: it would look like a fault.
    """

    def __init__(
        self,
        plan: Plan,
        node: int,
        keep_row: Callable[[NodeRound], None],
        keep_event: Callable[[Event], None],
    ) -> None:
        self._plan = plan
        self._node = node
        self._keep_row = keep_row
        self._keep_event = keep_event
        self._left: set[PeerId] = set()
        self._ending = False

    def on_event(self, t_s: float, report: Report) -> None:
        """Keep an event."""
        if report.peer is not None and self._is_farewell(report.event, report.peer):
            return
        fields = dict(report.fields)
        if report.peer is not None:
            fields["peer"] = self._name(report.peer)
        if "silent" in fields:
            fields["silent"] = [self._name(peer) for peer in fields["silent"]]
        self._keep_event(Event(t_s, report.event, node_name(self._node), fields))

    def _is_farewell(self, event: str, peer: PeerId) -> bool:
        """Tell whether this is a link that ends because its neighbour has, or because all rounds are over."""
        if event == "neighbour_left":
            self._left.add(peer)
        return event == "link-down" and (self._ending or peer in self._left)

    def on_round(self, report: RoundReport) -> None:
        """Keep a round: its row, and an accept or reject event for each verdict."""
        self._ending = report.round + 1 == self._plan.spec.rounds
        counts = {"accepted_honest": 0, "accepted_byzantine": 0, "rejected_honest": 0, "rejected_byzantine": 0}
        mixing = report.mixing
        if mixing is not None:
            for peer, verdict in mixing.verdicts.items():
                sender = self._plan.node_of[peer]
                kind = "byzantine" if sender in self._plan.byzantine else "honest"
                counts[f"{'accepted' if verdict.accepted else 'rejected'}_{kind}"] += 1
                fields = {"peer": node_name(sender), "round": report.round, **verdict.fields()}
                event = "accept" if verdict.accepted else "reject"
                self._keep_event(Event(report.t_s, event, node_name(self._node), fields))
        evaluation = report.evaluation
        self._keep_row(
            NodeRound(
                node=self._node,
                name=node_name(self._node),
                byzantine=self._node in self._plan.byzantine,
                round=report.round,
                t_s=report.t_s,
                loss=report.training.loss,
                test_loss=evaluation.loss if evaluation else None,
                test_accuracy=evaluation.accuracy if evaluation else None,
                metrics=evaluation.metrics if evaluation else {},
                **counts,
                missed=len(mixing.missed) if mixing else 0,
                bytes_sent=report.bytes_sent,
                bytes_received=report.bytes_received,
                train_s=report.train_s,
                train_cpu_s=report.train_cpu_s,
                round_s=report.round_s,
                staleness_max=max(mixing.staleness.values(), default=0) if mixing else 0,
            )
        )

    def _name(self, peer: str) -> str:
        return node_name(self._plan.node_of[peer]) if peer in self._plan.node_of else peer
