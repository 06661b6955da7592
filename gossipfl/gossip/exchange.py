"""Keeping replicas in step with every neighbour: handshake, updates, acknowledgements, heartbeats, resync."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from torch import Tensor

from gossipfl.codec import Codec, codec_by_wire_id
from gossipfl.errors import CodecError
from gossipfl.gossip.affairs import Affairs
from gossipfl.gossip.charters import Charters
from gossipfl.gossip.effects import Effect, Report, Send
from gossipfl.gossip.post import Encoded, Opened, Post
from gossipfl.gossip.replica import KEYFRAME_CODEC, Followed, PublicReplica
from gossipfl.gossip.rounds import INFINITY
from gossipfl.gossip.settings import GossipSettings, Party
from gossipfl.identity import PeerId
from gossipfl.messages import Bye, Charter, Evidence, Hello, Kind, Request, Status, Update

CONVICTED = "equivocation"
"""Why a neighbour is refused that has said different things to different nodes."""
ASK_BACK_OFF = 1.2
"""Gentle, so that about ten requests fit the shortest deadline: enough for a wire that loses a third of all frames."""
RECENT_UPDATES = 2
"""Updates kept to be sent again: a synchronous neighbour is at most one round behind, so it never needs more."""
SERVINGS_PER_VERSION = 16
"""Answers to one neighbour's requests for one version; further ones wait ``resync_max_s``: resync is no amplifier."""
CREDIT_UPDATES = (2, 32)
"""Least and most updates that may be on their way to a neighbour, whatever their size."""


def _credit(window_bytes: int, update_bytes: int) -> int:
    """Return how many updates a neighbour may leave unacknowledged."""
    return max(CREDIT_UPDATES[0], min(CREDIT_UPDATES[1], window_bytes // update_bytes))


class Exchange:
    """The replicas this node publishes and follows, and the messages that keep them equal to their owners'.

    ``open_round`` is the newest round whose updates are applied on arrival; later ones wait for their turn, so that
    a synchronous node never mixes a neighbour's future. ``own_round`` is this node's round,
    ``own_step`` counts its gossip steps: rounds, less those in which it deferred its gossip.
    """

    def __init__(
        self,
        party: Party,
        layout: bytes,
        initial: Tensor,
        codec: Codec,
        settings: GossipSettings,
        charters: Charters | None = None,
    ) -> None:
        self.own = PublicReplica(initial)
        self.followed = {peer: Followed(weight, self.own.vector.clone()) for peer, weight in party.weights.items()}
        size = self.own.vector.numel()
        self.post = Post(party, max(codec.max_bytes(size), KEYFRAME_CODEC.max_bytes(size)) + 64 * 1024)
        self.affairs = Affairs(party, self.post, charters, self.shut_out)
        self.open_round: float = INFINITY if settings.mode == "async" else -1
        self.own_round = 0
        self.own_step = 0
        self.credit = _credit(settings.window_bytes, codec.max_bytes(size))
        self._party = party
        self._layout = layout
        self._settings = settings
        self._codecs: dict[int, Codec] = {}
        self._recent: deque[tuple[int, Encoded]] = deque(maxlen=RECENT_UPDATES)
        self._keyframe: Encoded | None = None
        self.done = False
        self._beat_at = 0.0
        self.ack_delay_s = settings.ack_delay_s
        self.link_down_since: float | None = None

    def change_party(self, party: Party) -> None:
        """Go on with another membership and other neighbours; of a new one nothing is held yet."""
        self._party = party
        self.post.change_party(party)
        self.affairs.change_party(party)
        followed = {peer: self.followed.get(peer) or Followed(weight, None) for peer, weight in party.weights.items()}
        for peer, weight in party.weights.items():
            followed[peer].weight = weight
        self.followed = followed
        for peer in self.affairs.proofs:
            self.shut_out(peer)

    def shut_out(self, peer: PeerId) -> None:
        """Use nothing of a neighbour any more, now or after its restart."""
        other = self.followed.get(peer)
        if other is not None:
            other.joined, other.refused, other.vector = True, CONVICTED, None
            other.waiting.clear()

    # ------------------------------------------------------------------------------------------ speaking

    def hello(self, peers: list[PeerId], now: float, *, reply: bool = False) -> list[Effect]:
        """Introduce this node to some neighbours."""
        for peer in peers:
            self.followed[peer].times.greeted = now
        own = self.own
        body = Hello(
            self._layout,
            own.initial_digest,
            own.version,
            own.round,
            own.digest,
            reply,
            membership=self.affairs.version,
        )
        return self.post.send(Kind.HELLO, body, peers)

    def publish(self, target: Tensor, codec: Codec, recipients: tuple[PeerId, ...], now: float) -> list[Effect]:
        """Move the public replica towards ``target`` and send the delta."""
        payload = self.own.advance(target, codec, self.own_round)
        body = Update(
            round=self.own_round,
            version=self.own.version,
            digest=self.own.digest,
            codec=codec.wire_id,
            payload=memoryview(payload),
            acks=self._acks(),
            witness=self.affairs.testimony(self.followed),
        )
        encoded = Encoded.of(Kind.DELTA, body)
        self._recent.append((body.version, encoded))
        self._keyframe = None
        sealed = self.post.seal(encoded)
        present = sum(other.speaks and not other.left for other in self.followed.values())
        if len(recipients) == present:  # otherwise the heartbeat is all that some neighbours hear of this node
            self._beat_at = now + self._settings.heartbeat_s
        return [Send(recipients, sealed.frame)] if recipients else []

    def _acks(self) -> dict[bytes, tuple[int, int]]:
        acks: dict[bytes, tuple[int, int]] = {}
        for peer, other in self.followed.items():
            acks |= self._ack_of(peer, other)
        return acks

    def _ack_of(self, peer: PeerId, other: Followed) -> dict[bytes, tuple[int, int]]:
        other.times.ack_due = INFINITY
        if not other.speaks:
            return {}
        other.confirmed = other.received
        return {self._party.membership.members[peer].public_key: (other.incarnation, other.received)}

    def _owe_ack(self, other: Followed, now: float) -> None:
        """Acknowledge with the next message, after ``ack_delay_s`` at the latest, or at once at half the credit."""
        urgent = 2 * (other.received - other.confirmed) >= self.credit
        other.times.ack_due = min(other.times.ack_due, now if urgent else now + self.ack_delay_s)

    def heartbeat(self, now: float) -> list[Effect]:
        """Tell every neighbour where this node stands; introduce it to those that do not know it yet."""
        self._beat_at = now + self._settings.heartbeat_s
        unknown = [peer for peer, other in self.followed.items() if not other.joined]
        speaking = [peer for peer, other in self.followed.items() if other.speaks]
        return self.hello(unknown, now) + self.post.send(Kind.STATUS, self._status(self._acks()), speaking)

    def _status(self, acks: Mapping[bytes, tuple[int, int]]) -> Status:
        own = self.own
        witness = self.affairs.testimony(self.followed)
        return Status(own.round, own.version, own.digest, acks, self.done, self.affairs.version, witness)

    def meet(self, peer: PeerId, now: float) -> list[Effect]:
        """Tell one neighbour, whose link has just come up, where this node stands: what it missed it will ask for."""
        other = self.followed.get(peer)
        if other is None:
            return []
        other.times.ask_gap = 0.0
        if not other.joined:
            return self.hello([peer], now)
        if not other.speaks:
            return []
        return self.post.send(Kind.STATUS, self._status(self._ack_of(peer, other)), (peer,))

    def ask(self, peer: PeerId, now: float) -> list[Effect]:
        """Ask a neighbour for what it has that this node does not hold, at a limited rate."""
        other, settings = self.followed[peer], self._settings
        times = other.times
        if now < times.asked + times.ask_gap or self.post.fetching(peer):
            return []
        times.asked = now
        if other.behind:  # a neighbour that may merely be slow is asked at the caller's own pace
            times.ask_gap = min(max(ASK_BACK_OFF * times.ask_gap, settings.resync_s), settings.resync_max_s)
        have = None if other.vector is None else other.received
        effects: list[Effect] = []
        if other.behind:
            effects.append(Report("resync", peer, {"have": have, "claimed": other.claimed}))
        return effects + self.post.send(Kind.REQUEST, Request(have), (peer,))

    # ------------------------------------------------------------------------------------------ hearing

    def hear(self, message: Opened, now: float) -> list[Effect]:
        """Act on one authenticated message."""
        peer, body = message.peer, message.body
        other = self.followed[peer]
        effects: list[Effect] = self.affairs.note(message)
        if other.refused == CONVICTED:
            return effects
        other.times.heard = now
        if other.lost:
            other.lost = False
            effects.append(Report("neighbour_back", peer))
        if message.incarnation > other.incarnation:
            if other.incarnation >= 0:
                effects.append(Report("neighbour_restarted", peer, {"incarnation": message.incarnation}))
            other.restart(message.incarnation)
        if isinstance(body, Hello | Update | Status):
            other.told_round = max(other.told_round, body.round)
        match body:
            case Hello():
                effects += self._hear_hello(peer, other, body, now) + self.offer(peer, body.membership, now)
            case Charter():
                effects += self.affairs.hear_charter(peer, body, now)
            case Evidence():
                effects += self.affairs.hear_evidence(peer, body, now)
            case Bye():
                if not other.left:
                    other.left, other.left_at = True, message.sequence
                    effects.append(Report("neighbour_left", peer, {"reason": body.reason}))
            case _ if not other.speaks:
                if not other.joined and now >= other.times.greeted + self._settings.resync_s:
                    effects += self.hello([peer], now)
            case Update():
                other.left = other.left and message.sequence < other.left_at
                self._hear_acks(other, body.acks)
                effects += self.affairs.hear_testimony(peer, body.witness, now)
                if message.kind == Kind.DELTA:
                    effects += self._hear_delta(peer, other, body, now)
                else:
                    effects += self._hear_keyframe(peer, other, body, now)
            case Status():
                other.left = other.left and message.sequence < other.left_at
                self._hear_acks(other, body.acks)
                effects += self.affairs.hear_testimony(peer, body.witness, now)
                effects += self._hear_status(peer, other, body, now) + self.offer(peer, body.membership, now)
            case Request():
                effects += self._answer(peer, other, body, now)
            case _:
                pass
        return effects

    def offer(self, peer: PeerId, theirs: int, now: float) -> list[Effect]:
        """Note which version of the membership a neighbour has, and send it the one in force where it has an older."""
        self.followed[peer].membership = theirs
        return self.affairs.offer(peer, theirs, now)

    def _hear_hello(self, peer: PeerId, other: Followed, hello: Hello, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if not hello.reply and now >= other.times.replied + self._settings.resync_s / 4:
            other.times.replied = now
            effects += self.hello([peer], now, reply=True)
        if hello.layout != self._layout:
            if other.refused is None:
                fields = {"reason": "layout", "theirs": hello.layout.hex(), "ours": self._layout.hex()}
                effects.append(Report("neighbour_refused", peer, fields))
            other.joined, other.refused = True, "layout"
            return effects
        other.claimed = max(other.claimed, hello.version)
        if other.joined:
            return effects
        other.joined, other.left = True, False
        if hello.initial != self.own.initial_digest and other.version == 0:
            other.vector = None
            effects.append(Report("initial_model_differs", peer))
        effects.append(Report("neighbour_joined", peer, {"round": hello.round, "version": hello.version}))
        return effects + self.affairs.show_proofs(peer) + self._mend(peer, other, now)

    def _hear_acks(self, other: Followed, acks: Mapping[bytes, tuple[int, int]]) -> None:
        mine = acks.get(self._party.identity.public_key)
        if mine is not None and mine[0] == self._party.incarnation:
            other.acked = max(other.acked, min(mine[1], self.own.version))

    def _hear_delta(self, peer: PeerId, other: Followed, update: Update, now: float) -> list[Effect]:
        other.hold(update, self.credit + 2)
        self._owe_ack(other, now)
        return self.drain(peer, now)

    def drain(self, peer: PeerId, now: float) -> list[Effect]:
        """Apply the updates whose turn it is, in order."""
        other = self.followed[peer]
        effects: list[Effect] = []
        while other.vector is not None:
            update = other.waiting.get(other.version + 1)
            if update is None or update.round > self.open_round:
                break
            del other.waiting[update.version]
            codec = self._codec_of(update)
            try:
                intact = codec is not None and other.apply(update, codec, self.own_step, self._settings.max_norm)
            except CodecError as error:
                other.vector = None
                effects += self.post.offend(peer, "codec", now)
                effects.append(Report("update_refused", peer, {"detail": str(error), "version": update.version}))
                break
            if codec is None:  # keyframes still come through: every node reads those
                other.vector = None
                effects.append(Report("codec_unsupported", peer, {"codec": update.codec}))
                break
            if not intact:
                effects.append(Report("digest_mismatch", peer, {"version": update.version}))
                break
            if other.absurd:
                effects.append(Report("absurd_norm", peer, {"version": update.version}))
            other.times.ask_gap = 0.0
        return effects + self._mend(peer, other, now)

    def _codec_of(self, update: Update) -> Codec | None:
        if update.codec not in self._codecs:
            try:
                self._codecs[update.codec] = codec_by_wire_id(update.codec)
            except CodecError:
                return None
        return self._codecs[update.codec]

    def _hear_keyframe(self, peer: PeerId, other: Followed, update: Update, now: float) -> list[Effect]:
        if not other.behind or update.version < other.version:
            self.post.dropped["unsolicited-keyframe"] += 1
            return []
        try:
            if update.codec != KEYFRAME_CODEC.wire_id:
                return self.post.offend(peer, "keyframe-codec", now)
            if not other.adopt(update, self.own.vector.numel(), self.own_step, self._settings.max_norm):
                return self.post.offend(peer, "keyframe-digest", now)
        except CodecError:
            return self.post.offend(peer, "codec", now)
        other.times.ask_gap = 0.0
        self._owe_ack(other, now)
        effects: list[Effect] = [Report("keyframe", peer, {"version": update.version, "round": update.round})]
        return effects + self.drain(peer, now)

    def _hear_status(self, peer: PeerId, other: Followed, status: Status, now: float) -> list[Effect]:
        other.claimed = max(other.claimed, status.version)
        other.done = other.done or status.done
        same = other.vector is not None and status.version == other.version
        if same and status.version > 0 and status.digest != other.digest:
            other.vector = None
            other.waiting.clear()
            return [
                Report("digest_mismatch", peer, {"version": status.version}),
                *self._mend(peer, other, now),
            ]
        return self._mend(peer, other, now)

    def _answer(self, peer: PeerId, other: Followed, request: Request, now: float) -> list[Effect]:
        own, times = self.own, other.times
        if times.served_version != own.version:
            times.served_version, times.servings = own.version, 0
        spent = times.servings >= SERVINGS_PER_VERSION
        gap_s = self._settings.resync_max_s if spent else self._settings.resync_s / 2
        if request.have == own.version or now < times.served + gap_s:
            return []
        times.served = now
        times.servings += 1
        missing = [pair for pair in self._recent if request.have is not None and pair[0] > request.have]
        if missing and missing[0][0] - 1 == request.have:
            return [effect for _, encoded in missing for effect in self.post.send_encoded(encoded, (peer,))]
        return self.post.send_encoded(self._encoded_keyframe(), (peer,))

    def _encoded_keyframe(self) -> Encoded:
        if self._keyframe is None:
            own = self.own
            payload = memoryview(KEYFRAME_CODEC.encode(own.vector).payload)
            body = Update(own.round, own.version, own.digest, KEYFRAME_CODEC.wire_id, payload)
            self._keyframe = Encoded.of(Kind.KEYFRAME, body)
        return self._keyframe

    # ------------------------------------------------------------------------------------------ time

    def _mend(self, peer: PeerId, other: Followed, now: float) -> list[Effect]:
        """Ask for what is missing, after a moment in which reordered updates may still arrive."""
        times = other.times
        if not other.behind:
            times.behind_since, other.owing = INFINITY, False
            return []
        times.behind_since = min(times.behind_since, now)
        if other.vector is not None and now < times.behind_since + self._settings.resync_s / 2:
            return []
        return self.ask(peer, now)

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: heartbeats, acknowledgements, repeated requests, and noticing who went silent."""
        effects = self.post.tick(now)
        if self.link_down_since is not None:
            return effects
        ack_due = any(other.times.ack_due <= now for other in self.followed.values())
        if now >= self._beat_at or ack_due:
            effects += self.heartbeat(now)
        for peer, other in self.followed.items():
            effects += self._mend(peer, other, now)
            other.owing = other.owing or (now >= self._overdue_at(other) and not self.post.fetching(peer))
            if other.alive and now >= other.times.heard + self._settings.liveness_s:
                if other.done:  # its good-bye was lost on the way
                    other.left = True
                    effects.append(Report("neighbour_left", peer, {"reason": "silent after its last round"}))
                else:
                    other.lost = True
                    effects.append(Report("neighbour_lost", peer, {"silent_s": now - other.times.heard}))
        return effects

    def _overdue_at(self, other: Followed) -> float:
        """Return when a neighbour that is known to have published more than it sends has had time enough to send it."""
        return other.times.behind_since + self._settings.deadline_min_s

    def next_wakeup(self) -> float:
        """Return when ``tick`` is due next."""
        if self.link_down_since is not None:
            return self.post.next_wakeup()
        times = [self._beat_at, self.post.next_wakeup()]
        for peer, other in self.followed.items():
            times.append(other.times.ack_due)
            if other.behind and not self.post.fetching(peer):
                grace = other.times.behind_since + self._settings.resync_s / 2
                times.append(max(other.times.asked + other.times.ask_gap, grace if other.vector is not None else 0))
                times.append(INFINITY if other.owing else self._overdue_at(other))
            if other.alive:
                times.append(other.times.heard + self._settings.liveness_s)
        return min(times)

    def link(self, up: bool, now: float) -> list[Effect]:
        """Take note that this node's own link went down or came back; after an outage everyone is greeted anew."""
        if not up:
            self.link_down_since = now if self.link_down_since is None else self.link_down_since
            return []
        if self.link_down_since is None:
            return []
        self.link_down_since = None
        for other in self.followed.values():
            other.times.heard = now
        return self.heartbeat(now)
