"""What a daemon knows of itself and its neighbours: kept while it runs, told as one JSON document."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gossipfl import __version__
from gossipfl_node.narrate import narrate

if TYPE_CHECKING:
    from gossipfl.agent import RoundReport
    from gossipfl.gossip import GossipCore, Report
    from gossipfl.gossip.replica import Followed
    from gossipfl.identity import PeerId
    from gossipfl.robust.base import Verdict
    from gossipfl.tasks.base import Evaluation
    from gossipfl.transports.base import Transport
    from gossipfl.transports.libp2p.transport import Libp2pTransport, LinkState
    from gossipfl_node.federation import Federation
    from gossipfl_node.journal import Journal
    from gossipfl_node.site import Site

SCHEMA = 1
ROUND_LINE_S = 5.0
"""Rounds of small models take milliseconds; their log lines keep at least this distance."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tally:
    """What the rule made of one neighbour so far."""

    accepted: int = 0
    rejected: int = 0
    last: dict[str, Any] | None = None

    def add(self, round_: int, verdict: Verdict) -> None:
        """Count one verdict."""
        if verdict.accepted:
            self.accepted += 1
        else:
            self.rejected += 1
        self.last = {"round": round_, "accepted": verdict.accepted, **verdict.fields()}


@dataclass(slots=True)
class Link:
    """The link to the broker; over libp2p, the transport knows its links itself."""

    state: str = "connecting"
    since_s: float = 0.0
    detail: str = ""


@dataclass(slots=True)
class Ledger:
    """The agent's observer: keeps the figures for ``status``, writes the journal and the log.

    ``started_s`` is when the daemon started, on the monotonic clock; all other times are seconds since then.
    """

    federation: Federation
    journal: Journal
    started_s: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    link: Link = field(default_factory=Link)
    round: RoundReport | None = None
    round_ended_s: float = 0.0
    evaluation: tuple[int, Evaluation] | None = None
    tallies: dict[PeerId, Tally] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    _line_s: float = float("-inf")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the daemon started."""
        return time.monotonic() - self.started_s

    def name_of(self, peer: PeerId) -> str:
        """Return a member's name in the membership in force, or the peer id itself for a stranger."""
        return self.federation.name_of(peer)

    def note(self, event: str, **fields: Any) -> None:
        """Take note of something that the daemon itself did."""
        self.journal.add(self.elapsed_s, event, fields)

    def on_event(self, t_s: float, report: Report) -> None:
        """Take note of something that happened to the agent; ``t_s``, its own clock, began later than ours."""
        del t_s
        fields = dict(report.fields)
        if report.peer is not None:
            fields["peer"] = self.federation.name_of(report.peer)
        if "silent" in fields:
            fields["silent"] = [self.federation.name_of(peer) for peer in fields["silent"]]
        if report.event in {"link-up", "link-down"} and report.peer is None:
            self.link = Link(report.event.removeprefix("link-"), self.elapsed_s, str(fields.get("detail", "")))
        self.events[report.event] += 1
        self.note(report.event, **fields)
        narrate(report.event, fields)

    def on_round(self, report: RoundReport) -> None:
        """Take note of a finished round."""
        self.round, self.round_ended_s = report, self.elapsed_s
        evaluation = report.evaluation
        measured: dict[str, Any] = {}
        if evaluation is not None:
            self.evaluation = (report.round, evaluation)
            measured = {"test_loss": evaluation.loss, "test_accuracy": evaluation.accuracy, **evaluation.metrics}
        fields = {"round": report.round, "loss": report.training.loss, "round_s": report.round_s, **measured}
        self.note("round", train_s=report.train_s, deferred=report.mixing is None, **fields)
        for peer, verdict in (report.mixing.verdicts if report.mixing else {}).items():
            tally = self.tallies.setdefault(peer, Tally())
            tally.add(report.round, verdict)
            assert tally.last is not None
            verdict_fields = {key: value for key, value in tally.last.items() if key != "accepted"}
            self.note("accept" if verdict.accepted else "reject", peer=self.federation.name_of(peer), **verdict_fields)
        self._log_round(report)

    def _log_round(self, report: RoundReport) -> None:
        due = self.round_ended_s >= self._line_s + ROUND_LINE_S
        if due:
            self._line_s = self.round_ended_s
        elif not log.isEnabledFor(logging.DEBUG):
            return
        verdicts = report.mixing.verdicts.items() if report.mixing else ()
        names = {
            word: [self.federation.name_of(peer) for peer, verdict in verdicts if verdict.accepted is accepted]
            for word, accepted in (("averaged with", True), ("rejected", False))
        }
        parts = [f"loss {report.training.loss:.4g}"]
        if report.evaluation is not None and report.evaluation.accuracy is not None:
            parts.append(f"test accuracy {report.evaluation.accuracy:.3f}")
        elif report.evaluation is not None:
            parts.append(f"test loss {report.evaluation.loss:.4g}")
        parts += [f"{word} {', '.join(who)}" for word, who in names.items() if who]
        log.log(logging.INFO if due else logging.DEBUG, "round %d: %s", report.round, "; ".join(parts))


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything that a status document is made of; ``direct`` is the transport where it has links of its own."""

    site: Site
    ledger: Ledger
    core: GossipCore
    transport: Transport
    direct: Libp2pTransport | None
    incarnation: int
    parameters: int

    def document(self, phase: str, now: float) -> dict[str, Any]:
        """Return the status as JSON values; ``now`` is the agent's clock. What is not known is None."""
        ledger, core, spec = self.ledger, self.core, self.site.spec
        links = self.direct.links() if self.direct is not None else {}
        if phase == "running" and core.round == 0 and not core.all_joined:
            phase = "joining"
        return {
            "schema": SCHEMA,
            "version": __version__,
            "site": spec.site.name,
            "peer_id": self.site.identity.peer_id,
            "federation": spec.federation.name,
            "pid": os.getpid(),
            "incarnation": self.incarnation,
            "phase": phase,
            "up_since": ledger.started_at.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "uptime_s": round(ledger.elapsed_s, 3),
            "membership": self._membership(),
            "mode": spec.mode,
            "rule": spec.rule.name,
            "codec": spec.codec.name,
            "model_parameters": self.parameters,
            "round": core.round,
            "rounds": spec.rounds,
            "last_round": self._last_round(),
            "evaluation": self._evaluation(),
            "broker": self._broker(),
            "libp2p": self._libp2p(links, now),
            "neighbours": [self._neighbour(peer, other, links.get(peer), now) for peer, other in core.followed.items()],
            "dropped": dict(sorted(core.exchange.post.dropped.items())),
            "traffic": self._traffic(),
            "events": dict(sorted(ledger.events.items())),
        }

    def _membership(self) -> dict[str, Any] | None:
        charters = self.core.exchange.affairs.charters
        if charters is None:
            return None
        content = charters.current.content
        return {
            "version": content.version,
            "issued": content.issued,
            "members": len(content.members),
            "encrypted": content.key is not None,
        }

    def _last_round(self) -> dict[str, Any] | None:
        report = self.ledger.round
        if report is None:
            return None
        return {
            "round": report.round,
            "ended_s_ago": round(self.ledger.elapsed_s - self.ledger.round_ended_s, 3),
            "loss": report.training.loss,
            "train_s": report.train_s,
            "round_s": report.round_s,
        }

    def _evaluation(self) -> dict[str, Any] | None:
        if self.ledger.evaluation is None:
            return None
        round_, measured = self.ledger.evaluation
        return {"round": round_, "loss": measured.loss, "accuracy": measured.accuracy, "metrics": measured.metrics}

    def _broker(self) -> dict[str, Any] | None:
        link, broker = self.ledger.link, self.site.spec.broker
        if broker is None:
            return None
        return {
            "address": broker.address,
            "link": link.state,
            "since_s": round(self.ledger.elapsed_s - link.since_s, 3),
            "detail": link.detail,
            "reconnects": self.transport.counters.reconnects,
        }

    def _libp2p(self, links: Mapping[PeerId, LinkState], now: float) -> dict[str, Any] | None:
        if self.direct is None:
            return None
        return {
            "listening": list(self.direct.listening),
            "links": {
                self.ledger.federation.name_of(peer): {
                    "state": link.state,
                    "address": link.address or None,
                    "since_s": round(now - link.since_s, 3),
                    "detail": link.detail,
                }
                for peer, link in links.items()
            },
            "reconnects": self.transport.counters.reconnects,
        }

    def _traffic(self) -> dict[str, Any]:
        counters = self.transport.counters
        return {
            "frames_sent": counters.frames_sent,
            "frames_received": counters.frames_received,
            "bytes_sent": counters.bytes_sent,
            "bytes_received": counters.bytes_received,
            "frames_dropped": dict(counters.by_reason),
        }

    def _neighbour(self, peer: PeerId, other: Followed, link: LinkState | None, now: float) -> dict[str, Any]:
        heard = other.incarnation >= 0
        tally = self.ledger.tallies.get(peer, Tally())
        return {
            "name": self.ledger.federation.name_of(peer),
            "peer_id": peer,
            "state": self._state_of(peer, other, now),
            "link": link.state if link is not None else None,
            "address": (link.address or None) if link is not None else None,
            "refused": other.refused,
            "last_heard_s": round(now - other.times.heard, 3) if heard else None,
            "incarnation": other.incarnation if heard else None,
            "round": other.round if other.round >= 0 else None,
            "version": other.version,
            "staleness": self.core.round - other.moved_at if other.usable and other.version else None,
            "behind": other.behind,
            "weight": other.weight,
            "accepted": tally.accepted,
            "rejected": tally.rejected,
            "last_verdict": tally.last,
        }

    def _state_of(self, peer: PeerId, other: Followed, now: float) -> str:
        states: Mapping[str, bool] = {
            "muted": self.core.exchange.post.is_muted(peer, now),
            "refused": other.refused is not None,
            "left": other.left,
            "lost": other.lost,
            "joined": other.joined,
            "greeting": other.incarnation >= 0,
        }
        return next((state for state, holds in states.items() if holds), "never heard")
