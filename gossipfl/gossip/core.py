"""Rounds: train, publish, wait (or not), mix. The state machine that an agent, a daemon and a test all drive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gossipfl.codec import Codec
from gossipfl.errors import ConfigError
from gossipfl.gossip import donors
from gossipfl.gossip.charters import Charters
from gossipfl.gossip.effects import Effect, Report
from gossipfl.gossip.exchange import Exchange
from gossipfl.gossip.mixing import Knowledge, Mixer
from gossipfl.gossip.replica import Followed
from gossipfl.gossip.rounds import INFINITY, Clockwork, CoreState, Mixing, Phase
from gossipfl.gossip.settings import GossipSettings, Party
from gossipfl.identity import PeerId
from gossipfl.membership.document import check_successor
from gossipfl.messages import Buffer, Bye, Kind, Proof
from gossipfl.robust.base import Rule, Verdict

if TYPE_CHECKING:
    from gossipfl.membership.document import Document

MAX_MISSES = 16
"""Each miss in a row halves the longest wait for a neighbour, this often at most."""


class GossipCore:
    """The protocol of one node: no input or output, no clock, no randomness of its own.

    The shell calls, in this order and for each round, ``publish`` (the model has been trained), then, once ``ready``,
    ``mix``; in between ``receive`` for each frame and ``tick`` when ``next_wakeup`` is reached. Every call takes the
    time ``now`` in seconds and returns effects, to be carried out in order.

    One gossip step of node i with public replicas x̂ and rule R:

        x̂_i <- x̂_i + C(x_i - x̂_i);   x_i <- x_i + R(x̂_i, {x̂_j}) - x̂_i

    With a lossless codec that is x_i <- R(x_i, {x_j}); a lossy one leaves its error in x_i - x̂_i.

    Args:
        party: Who this node is and whom it follows.
        layout: Digest of the model's layout; neighbours with another one are refused.
        initial: The common initial model, shape (d,).
        rule: What filters and averages; codec: what makes deltas small.
        knowledge: What the rule may be told.
        charters: The versions of the membership, where it has versions.
    """

    def __init__(
        self,
        party: Party,
        layout: bytes,
        initial: Tensor,
        rule: Rule,
        codec: Codec,
        settings: GossipSettings,
        knowledge: Knowledge | None = None,
        charters: Charters | None = None,
    ) -> None:
        self.exchange = Exchange(party, layout, initial, codec, settings, charters)
        self.phase = Phase.TRAINING
        self.round = 0
        self._mixer = Mixer(rule, knowledge or Knowledge(), initial)
        self._codec = codec
        self._settings = settings
        self._times = Clockwork()
        self._restraint: donors.Restraint | None = None
        self._mixed = torch.empty_like(self.exchange.own.vector)

    @property
    def followed(self) -> Mapping[PeerId, Followed]:
        """The neighbours, in the order in which rules see them."""
        return self.exchange.followed

    @property
    def all_joined(self) -> bool:
        """Whether every neighbour has been heard from (or refused)."""
        return all(other.joined for other in self.followed.values())

    # ------------------------------------------------------------------------------------------ replay marks

    def replay_marks(self) -> dict[PeerId, tuple[int, int]]:
        """Return (incarnation, highest sequence) of every neighbour heard so far, to be kept over a restart."""
        windows = {peer: channel.window for peer, channel in self.exchange.post.channels.items()}
        return {peer: (w.incarnation, w.highest) for peer, w in windows.items() if w.incarnation >= 0}

    def restore_replay_marks(self, marks: Mapping[PeerId, tuple[int, int]]) -> None:
        """Refuse, from now on, whatever the neighbours sent up to these marks; those of others are left aside."""
        for peer, channel in self.exchange.post.channels.items():
            if peer in marks:
                channel.window.incarnation, channel.window.highest = marks[peer]
                channel.window.close_past()

    # ------------------------------------------------------------------------------------------ checkpoints

    def state(self) -> CoreState:
        """Return copies of what a restarted node needs to go on, taken between two rounds."""
        own = self.exchange.own
        facts = {
            "round": self.round,
            "own_step": self.exchange.own_step,
            "version": own.version,
            "published_round": own.round,
            "calm": None if self._restraint is None else self._restraint.calm,
        }
        return CoreState({"replica": own.vector.clone(), **self._mixer.state()}, facts)

    def restore(self, state: CoreState) -> None:
        """Go on from a ``state``; raises ValueError where it is of another model."""
        replica, facts = state.tensors["replica"], state.facts
        self.exchange.own.restore(replica, version=facts["version"], round_=facts["published_round"])
        self._mixer.restore(state.tensors)
        self.round = self.exchange.own_round = facts["round"]
        self.exchange.own_step = facts["own_step"]
        if self._settings.mode == "sync":
            self.exchange.open_round = self.round - 1
        self._restraint = None if facts["calm"] is None else donors.Restraint(facts["calm"])

    # ------------------------------------------------------------------------------------------ coming late

    @property
    def lateness(self) -> int:
        """By how many rounds at least half of the neighbours are ahead of this node."""
        return donors.lateness(self.followed, self.round)

    @property
    def may_choose_donor(self) -> bool:
        """Whether the replicas of all neighbours that can be heard are here."""
        return donors.complete(self.followed)

    def donors(self) -> list[PeerId]:
        """Return neighbours in the order in which to try to start from their replicas."""
        return donors.in_turn(self.followed)

    def copy_of(self, peer: PeerId) -> Tensor | None:
        """Return a neighbour's replica (d,), if it is here."""
        vector = self.followed[peer].vector
        return None if vector is None else vector.clone()

    def start_from(self, model: Tensor) -> None:
        """Begin the next round from another ``model`` (d,), where most neighbours are by now."""
        self.round += self.lateness
        self.exchange.own_round = self.round
        if self._settings.mode == "sync":
            self.exchange.open_round = self.round - 1
        self._mixer.start_from(model.cpu())
        self._restraint = donors.Restraint()

    def hold_back(self, model: Tensor) -> None:
        """Draw the trained ``model`` (d,) of a newcomer back, in place, to where its neighbours will listen."""
        if self._restraint is None:
            return
        self._restraint.hold_back(model, self.followed)
        if self._restraint.over:
            self._restraint = None

    # ------------------------------------------------------------------------------------------ evidence

    @property
    def proofs(self) -> Mapping[PeerId, Proof]:
        """Who is known to have equivocated, and the proofs of it."""
        return self.exchange.affairs.proofs

    def restore_proofs(self, proofs: Mapping[PeerId, Proof]) -> None:
        """Go on without those who are known to have equivocated."""
        self.exchange.affairs.restore(proofs)

    # ------------------------------------------------------------------------------------------ membership

    def farewell(self, document: Document, party: Party | None) -> list[Effect]:
        """Show neighbours that will be none any more why: whoever is no member then stops by itself."""
        staying = set() if party is None else set(party.weights)
        effects: list[Effect] = []
        for peer, other in self.followed.items():
            if peer not in staying:
                effects += self.exchange.affairs.show(peer, document, other.membership)
        return effects

    def adopt(self, document: Document, party: Party, now: float) -> list[Effect]:
        """Go on with a later version of the membership, in which this node is ``party``; all neighbours are told.

        Raises ConfigError where the document may not take the place of the one in force.
        """
        assert self.exchange.affairs.charters is not None
        self.exchange.affairs.charters.adopt(document)
        before = set(self.followed)
        self.exchange.change_party(party)
        self._mixer.keep_only(party.weights)
        for peer, other in self.followed.items():
            if peer not in before:
                other.times.heard = now
        fields = {"version": document.content.version, "members": len(document.content.members)}
        effects: list[Effect] = [Report("membership", None, fields)]
        effects += self.exchange.heartbeat(now)
        for peer, other in self.followed.items():
            effects += self.exchange.offer(peer, other.membership, now)
        return effects

    def decline(self) -> None:
        """Take note that a version of the membership could not be kept: it will be offered again."""
        if self.exchange.affairs.charters is not None:
            self.exchange.affairs.charters.decline()

    def check_successor(self, document: Document) -> None:
        """Raise ConfigError where ``document`` may not take the place of the membership in force."""
        if self.exchange.affairs.charters is None:
            raise ConfigError("this federation's membership has no versions")
        check_successor(document, self.exchange.affairs.charters.current)

    # ------------------------------------------------------------------------------------------ inputs

    def start(self, now: float) -> list[Effect]:
        """Greet the neighbours."""
        for other in self.followed.values():
            other.times.heard = now
        return self.exchange.heartbeat(now)

    def receive(self, frame: Buffer, now: float) -> list[Effect]:
        """Take one frame from the wire, whatever it holds."""
        opened, effects = self.exchange.post.open(frame, now)
        for message in opened:
            other = self.followed[message.peer]
            before = other.claimed
            effects += self.exchange.hear(message, now)
            if message.kind == Kind.DELTA and other.claimed > before:
                self._note_lateness(other, now)
        return effects

    def _note_lateness(self, other: Followed, now: float) -> None:
        newest = other.waiting.get(other.claimed)
        round_ = newest.round if newest is not None else other.round
        if round_ >= self.round and self.phase is Phase.TRAINING:
            other.lateness.add(0.0)
        elif round_ in self._times.published:
            other.lateness.add(now - self._times.published[round_])

    def tick(self, now: float) -> list[Effect]:
        """Do what is due at this time."""
        effects = self.exchange.tick(now)
        if self.phase is Phase.WAITING and now >= self._times.nudge_at:
            self._times.nudge_gap = min(2 * self._times.nudge_gap, self._settings.nudge_s)
            self._times.nudge_at = now + self._times.nudge_gap
            for peer, other in self.followed.items():
                if other.alive and not other.arrived(self.round):
                    effects += self.exchange.ask(peer, now)
        return effects

    def link(self, up: bool, now: float) -> list[Effect]:
        """Take note that this node's own link went down or came back."""
        return self.exchange.link(up, now)

    def meet(self, peer: PeerId, now: float) -> list[Effect]:
        """Take note that the link to one neighbour has come up: it hears at once where this node stands."""
        return self.exchange.meet(peer, now)

    def next_wakeup(self) -> float:
        """Return when ``tick`` or ``ready`` may have something new to say."""
        wake = self.exchange.next_wakeup()
        if self.phase is Phase.WAITING:
            wake = min(wake, self._hold_until(), self._times.nudge_at)
        return wake

    # ------------------------------------------------------------------------------------------ the round

    def may_publish(self, now: float) -> bool:
        """Tell whether every live neighbour has credit, or has been without for longer than our patience."""
        free = True
        for peer, other in self.followed.items():
            if not self._hears(peer, now) or self._has_credit(other):
                other.times.blocked_since = INFINITY
                continue
            other.times.blocked_since = min(other.times.blocked_since, now)
            free = free and now >= other.times.blocked_since + self._settings.patience_s
        return free

    def _has_credit(self, other: Followed) -> bool:
        return self.exchange.own.version - other.acked < self.exchange.credit

    def publish(self, model: Tensor, now: float) -> list[Effect]:
        """Publish the trained model (or, from a Byzantine node, its lie), shape (d,), and begin to wait."""
        recipients = tuple(
            peer for peer, other in self.followed.items() if other.speaks and not other.left and self._has_credit(other)
        )
        effects = self.exchange.publish(model.cpu(), self._codec, recipients, now)
        self.phase = Phase.WAITING
        self._times.note(self.round, now)
        if self._settings.mode == "sync":
            self._begin_waiting(now)
            self.exchange.open_round = self.round
            for peer in self.followed:
                effects += self.exchange.drain(peer, now)
        return effects

    def _hears(self, peer: PeerId, now: float) -> bool:
        """Tell whether there is anything to wait for from a neighbour; one that is muted would not be heard."""
        return self.followed[peer].alive and not self.exchange.post.is_muted(peer, now)

    def _awaited(self, now: float) -> list[Followed]:
        """Return the neighbours that a synchronous round waits for."""
        return [other for peer, other in self.followed.items() if self._hears(peer, now) and not other.owing]

    def _begin_waiting(self, now: float) -> None:
        settings = self._settings
        waits = [
            other.lateness.wait_s(
                settings.deadline_min_s, max(settings.deadline_min_s, settings.deadline_s / 2**other.misses)
            )
            for other in self._awaited(now)
        ]
        self._times.deadline = now + max(waits, default=0.0)
        self._times.nudge_gap = self._nudge_gap_s()
        self._times.nudge_at = now + self._times.nudge_gap
        for other in self.followed.values():
            other.times.ask_gap = 0.0

    def _nudge_gap_s(self) -> float:
        settings = self._settings
        gaps = [
            other.lateness.wait_s(settings.nudge_min_s, settings.nudge_s)
            for other in self.followed.values()
            if other.alive and not other.arrived(self.round)
        ]
        return min(gaps, default=settings.nudge_s)

    def _hold_until(self) -> float:
        down_since = self.exchange.link_down_since
        held = down_since + self._settings.outage_s if down_since is not None else -INFINITY
        return max(self._times.deadline, held)

    def ready(self, now: float) -> bool:
        """Tell whether ``mix`` may be called: at once in async mode; else when all live neighbours are here or late."""
        if self.phase is not Phase.WAITING:
            return False
        if self._settings.mode == "async" or now >= self._hold_until():
            return True
        if self.exchange.link_down_since is not None:
            return False
        return all(other.arrived(self.round) for other in self._awaited(now))

    def mix(self, model: Tensor, now: float, *, lied: bool = False) -> tuple[Mixing, list[Effect]]:
        """Filter and average the neighbours' replicas into ``model`` (d,), in place, and begin the next round.

        A node that ``lied`` mixes around its own model, since its replica is not its model.
        """
        effects: list[Effect] = []
        chosen: dict[PeerId, Followed] = {}
        staleness: dict[PeerId, int] = {}
        missed = []
        for peer, other in self.followed.items():
            other.misses = 0 if other.arrived(self.round) else min(other.misses + 1, MAX_MISSES)
            stale = self._staleness(peer, other, now, effects)
            if stale is None:
                if other.alive and (other.claimed or self._settings.mode == "sync"):
                    missed.append(peer)
                continue
            chosen[peer] = other
            staleness[peer] = stale
        verdicts = self._apply_rule(model, chosen, staleness, lied)
        mixing = Mixing(self.round, dict(zip(chosen, verdicts, strict=True)), staleness, tuple(missed))
        self.exchange.own_step += 1
        effects += [Report("miss", peer, {"round": self.round}) for peer in missed]
        self._begin_round()
        return mixing, effects

    def _staleness(self, peer: PeerId, other: Followed, now: float, effects: list[Effect]) -> int | None:
        """Return how old the replica is that this round may use, in own gossip steps, or None if it may use none."""
        if self._settings.mode == "async":
            stale = self.exchange.own_step - other.moved_at
            published = other.version > 0  # until then its replica is where all began, which is nobody's vote
            return stale if other.usable and published and stale <= self._settings.max_staleness else None
        if other.arrived(self.round) and other.round < self.round:  # the neighbour has skipped this round
            successor = other.waiting[other.version + 1]
            self.exchange.open_round = successor.round
            effects += self.exchange.drain(peer, now)
            self.exchange.open_round = self.round
        return 0 if other.usable and other.round >= self.round else None

    def _apply_rule(
        self, model: Tensor, chosen: Mapping[PeerId, Followed], staleness: Mapping[PeerId, int], lied: bool
    ) -> tuple[Verdict, ...]:
        exponent = self._settings.staleness_exponent
        freshness = [(1.0 + stale) ** -exponent for stale in staleness.values()]
        own = model.cpu() if lied else self.exchange.own.vector
        moved = self._mixer.moved(model.cpu())
        aggregate = self._mixer.mix(own, chosen, freshness, round_=self.round, moved=moved, out=self._mixed)
        step = torch.sub(aggregate.vector, own, out=self._mixed)
        model.add_(step.to(model.device))
        self._mixer.start_from(model.cpu())
        return aggregate.verdicts

    def undo(self, model: Tensor) -> None:
        """Take note that the last gossip step was rolled back to ``model`` (d,)."""
        self._mixer.start_from(model.cpu())

    def skip(self) -> None:
        """Go on to the next round without a gossip step (an asynchronous node without credit)."""
        self._begin_round()

    def _begin_round(self) -> None:
        if self._settings.mode == "sync":
            self.exchange.open_round = self.round
        self.round += 1
        self.exchange.own_round = self.round
        self.exchange.post.renew_allowances()
        self.phase = Phase.TRAINING

    # ------------------------------------------------------------------------------------------ the end

    def drain(self, now: float) -> list[Effect]:
        """Begin to leave: acknowledge everything at once, from now on, so that others can settle too."""
        self.exchange.open_round = INFINITY
        effects = [effect for peer in self.followed for effect in self.exchange.drain(peer, now)]
        self.exchange.ack_delay_s = 0.0
        self.exchange.done = True
        return effects + self.exchange.heartbeat(now)

    def settled(self, now: float = INFINITY, *, together: bool = False) -> bool:
        """Tell whether every live neighbour has acknowledged the newest update and owes this node none.

        With ``together``, also whether every one of them has ended its own rounds. Those muted at ``now`` do not count.
        """
        version = self.exchange.own.version
        return all(
            other.acked >= version and (other.owing or not other.behind) and (other.done or not together)
            for peer, other in self.followed.items()
            if self._hears(peer, now)
        )

    def progress(self, rounds: int | None) -> int:
        """Return a number that grows whenever a neighbour is known to have published something new.

        Nobody publishes more often than once in each of a run's ``rounds``: further claims count for nothing.
        """
        return sum(other.claimed if rounds is None else min(other.claimed, rounds) for other in self.followed.values())

    def stop(self, now: float, reason: str = "") -> list[Effect]:
        """Say good-bye."""
        self.phase = Phase.STOPPED
        speaking = [peer for peer, other in self.followed.items() if other.speaks]
        return self.exchange.post.send(Kind.BYE, Bye(reason), speaking)
