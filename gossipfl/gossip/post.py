"""The post room: numbers, signs and frames what goes out; checks, in order of cost, what comes in.

Nothing that arrives changes any state but a counter until its signature has been verified. Offences counted against a
peer are only ever those that its own key has signed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gossipfl.errors import MessageError
from gossipfl.gossip.allowance import Allowance
from gossipfl.gossip.chunks import MAX_STALLS, Assembly, Outbox
from gossipfl.gossip.effects import Effect, Report, Send
from gossipfl.gossip.settings import Party
from gossipfl.gossip.window import ReplayWindow
from gossipfl.identity import PeerId, Verifier
from gossipfl.membership.document import MAX_DOCUMENT_BYTES
from gossipfl.messages import (
    Body,
    Buffer,
    Chunk,
    Envelope,
    Grant,
    Header,
    Hello,
    Kind,
    Stated,
    Statement,
    Status,
    Update,
    chunk_digests,
    decode_body,
    encode_body,
    frame_message,
    parse_frame,
    signing_input,
    travels_inline,
)

OFFENCES_FORGIVEN = 3
MUTE_FIRST_S = 1.0
MUTE_MAX_S = 3600.0
ASSEMBLY_BYTES_MIN = 4 << 20
"""What the bodies under way from one neighbour may take; or two of the largest, where that is more."""
SMALL_BODY_BYTES = 64 * 1024
"""Largest body of any kind but updates."""


@dataclass(slots=True)
class Opened:
    """One authenticated message."""

    peer: PeerId
    kind: int
    incarnation: int
    sequence: int
    body: Body
    statement: Statement


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body in its wire form with the digests that a header carries: made once, sent any number of times."""

    kind: Kind
    body: bytes
    digests: tuple[bytes, ...]
    stated: Stated | None = None

    @classmethod
    def of(cls, kind: Kind, body: Body) -> Encoded:
        """Encode a body."""
        encoded = encode_body(body)
        return cls(kind, encoded, chunk_digests(encoded), stated_in(body))


def stated_in(body: Body) -> Stated | None:
    """Return what a body tells of its sender's replica."""
    return Stated(body.version, body.digest) if isinstance(body, Hello | Update | Status) else None


def statement_of(envelope: Envelope) -> Statement:
    """Return the part of a message that can be shown to others."""
    return Statement(envelope.signed, envelope.signature, envelope.header)


@dataclass(frozen=True, slots=True)
class Sealed:
    """A message ready to be sent any number of times."""

    header: Header
    frame: bytes


@dataclass(slots=True)
class Channel:
    """What the post room remembers of one peer."""

    verifier: Verifier
    window: ReplayWindow = field(default_factory=ReplayWindow)
    allowance: Allowance = field(default_factory=Allowance)
    assemblies: dict[tuple[int, int], Assembly] = field(default_factory=dict)
    active: Assembly | None = None
    offences: int = 0
    mutes: int = 0
    muted_until: float = float("-inf")

    @property
    def fetched(self) -> Assembly | None:
        """The one large body whose chunks are asked for now; the others wait, lest they slow each other down.

        It is one of those that have stalled least, so that one that nobody serves any more holds up none: the one that
        is being fetched, or else the newest, which its sender is the likeliest to hold still.
        """
        return min(
            self.assemblies.values(),
            key=lambda one: (one.stalls, one is not self.active, -one.header.sequence),
            default=None,
        )

    def abandon_all(self) -> None:
        """Give up every large body."""
        self.assemblies.clear()
        self.active = None


class Post:
    """Seals and opens messages for one node.

    ``max_body_bytes`` bounds an update: what the model's own layout can need, and no more. ``convicted`` peers are not
    heard. ``requires_statements``: whether headers must repeat what bodies tell of replicas (since 1.1). ``on_replay``
    is asked what a message is worth whose number was used before; it may be forged.
    """

    def __init__(self, party: Party, max_body_bytes: int) -> None:
        self._party = party
        self._max_body_bytes = max_body_bytes
        self._sequence = 0
        self._outbox = Outbox()
        self.channels = {peer: Channel(Verifier(party.membership.members[peer].public_key)) for peer in party.weights}
        self.dropped: Counter[str] = Counter()
        self.convicted: set[PeerId] = set()
        self.requires_statements = False
        self.on_replay: Callable[[PeerId, Statement], list[Effect]] = lambda _peer, _statement: []

    def change_party(self, party: Party) -> None:
        """Go on with another membership and other neighbours; what is remembered of those who stay is kept."""
        self._party = party
        self.channels = {
            peer: self.channels.get(peer) or Channel(Verifier(party.membership.members[peer].public_key))
            for peer in party.weights
        }

    # ------------------------------------------------------------------------------------------ out

    def seal(self, encoded: Encoded, recipient: PeerId | None = None) -> Sealed:
        """Number, sign and frame a body, for one recipient or for every follower; large ones are kept to be fetched."""
        self._sequence += 1
        members = self._party.membership.members
        header = Header(
            federation=self._party.membership.federation_id,
            sender=self._party.identity.public_key,
            recipient=members[recipient].public_key if recipient is not None else b"",
            incarnation=self._party.incarnation,
            sequence=self._sequence,
            body_bytes=len(encoded.body),
            digests=encoded.digests,
            stated=encoded.stated,
        )
        signed = signing_input(encoded.kind, header.pack())
        if not travels_inline(len(encoded.body)):
            self._outbox.keep(header, encoded.body)
        return Sealed(header, frame_message(signed, self._party.identity.sign(signed), encoded.body))

    def send(self, kind: Kind, body: Body, recipients: Iterable[PeerId]) -> list[Effect]:
        """Seal and send; a message to one recipient is addressed to it alone."""
        to = tuple(recipients)
        return self.send_encoded(Encoded.of(kind, body), to) if to else []

    def send_encoded(self, encoded: Encoded, to: tuple[PeerId, ...]) -> list[Effect]:
        """Seal and send a body that is encoded already."""
        sealed = self.seal(encoded, to[0] if len(to) == 1 else None)
        return [Send(to, sealed.frame)]

    # ------------------------------------------------------------------------------------------ in

    def open(self, frame: Buffer, now: float) -> tuple[list[Opened], list[Effect]]:
        """Return the messages that this frame completes (at most one) and what to send or report because of it."""
        try:
            parsed = parse_frame(frame)
        except MessageError as error:
            return self._drop(error.reason)
        header = parsed.header if isinstance(parsed, Envelope) else parsed
        member = self._party.membership.by_public_key(header.sender)
        if header.federation != self._party.membership.federation_id:
            return self._drop("federation")
        if member is None:
            return self._drop("stranger")
        peer = member.peer_id
        channel = self.channels.get(peer)
        if peer in self.convicted:
            return self._drop("convicted")
        if channel is None:
            return self._drop("no-neighbour")
        if now < channel.muted_until:
            return self._drop("muted")
        if isinstance(parsed, Chunk):
            return self._open_chunk(peer, channel, parsed, now)
        return self._open_message(peer, channel, parsed, now)

    def _open_message(
        self, peer: PeerId, channel: Channel, envelope: Envelope, now: float
    ) -> tuple[list[Opened], list[Effect]]:
        header = envelope.header
        if header.recipient and header.recipient != self._party.identity.public_key:
            return self._drop("recipient")
        if not channel.window.is_new(header.incarnation, header.sequence):
            self.dropped["replay"] += 1
            return [], self.on_replay(peer, statement_of(envelope))
        if not channel.verifier.verify(envelope.signed, envelope.signature):
            return self._drop("signature")
        if header.incarnation > channel.window.incarnation:
            channel.abandon_all()  # the peer has restarted: nobody serves those any more
        if not channel.allowance.spend(now):
            channel.window.mark(header.incarnation, header.sequence)
            return [], self.offend(peer, "flood", now)
        limit = self._limit(envelope.kind)
        if header.body_bytes > limit:
            channel.window.mark(header.incarnation, header.sequence)
            return [], [*self.offend(peer, "oversized", now)]
        if envelope.body is None:
            return [], self._announce(peer, channel, envelope, now)
        if not envelope.body_matches():
            return self._drop("body-digest")
        channel.window.mark(header.incarnation, header.sequence)
        return self._decode(peer, channel, envelope.kind, statement_of(envelope), envelope.body, now)

    def _limit(self, kind: int) -> int:
        if kind in (Kind.DELTA, Kind.KEYFRAME):
            return self._max_body_bytes
        return MAX_DOCUMENT_BYTES + SMALL_BODY_BYTES if kind == Kind.MEMBERSHIP else SMALL_BODY_BYTES

    def renew_allowances(self) -> None:
        """Begin a round: what the neighbours said before counts no more."""
        for channel in self.channels.values():
            channel.allowance.renew()

    def _announce(self, peer: PeerId, channel: Channel, envelope: Envelope, now: float) -> list[Effect]:
        """Line up a body to be fetched, unless enough are: those are finished first, or none ever would be."""
        header = envelope.header
        if any(assembly.header.digests == header.digests for assembly in channel.assemblies.values()):
            channel.window.mark(header.incarnation, header.sequence)
            self.dropped["assembly-twin"] += 1
            return []
        under_way = sum(assembly.header.body_bytes for assembly in channel.assemblies.values())
        if under_way + header.body_bytes > max(2 * self._max_body_bytes, ASSEMBLY_BYTES_MIN):
            self.dropped["assembly-busy"] += 1
            return []
        channel.window.mark(header.incarnation, header.sequence)
        assembly = Assembly.begin(statement_of(envelope), envelope.kind, now)
        channel.assemblies[header.incarnation, header.sequence] = assembly
        return self._ask(peer, channel, now)

    def fetching(self, peer: PeerId) -> bool:
        """Tell whether a large body of this peer is on its way without a stall."""
        return any(not assembly.stalls for assembly in self.channels[peer].assemblies.values())

    def _ask(self, peer: PeerId, channel: Channel, now: float) -> list[Effect]:
        """Grant credit for the next chunks of the first body in line: one message for each run of them."""
        assembly, effects = channel.fetched, list[Effect]()
        if assembly is None:
            channel.active = None
            return []
        if assembly is not channel.active:
            channel.active, assembly.progress_at = assembly, now
        header = assembly.header
        while (grant := assembly.next_grant()) is not None:
            effects += self.send(Kind.GRANT, Grant(header.incarnation, header.sequence, *grant), (peer,))
        return effects

    def _open_chunk(
        self, peer: PeerId, channel: Channel, chunk: Chunk, now: float
    ) -> tuple[list[Opened], list[Effect]]:
        key = (chunk.incarnation, chunk.sequence)
        assembly = channel.assemblies.get(key)
        if assembly is None or not assembly.place(chunk, now):
            return self._drop("chunk")
        if not assembly.complete:
            return [], self._ask(peer, channel, now)
        del channel.assemblies[key]
        opened, effects = self._decode(peer, channel, assembly.kind, assembly.statement, assembly.body, now)
        return opened, effects + self._ask(peer, channel, now)

    def _decode(
        self, peer: PeerId, channel: Channel, kind: int, statement: Statement, body: Buffer, now: float
    ) -> tuple[list[Opened], list[Effect]]:
        header = statement.header
        try:
            decoded = decode_body(kind, body)
        except MessageError as error:
            if error.reason == "kind":  # a newer minor version may say things that this one does not know
                return self._drop("kind")
            return [], self.offend(peer, error.reason, now)
        if isinstance(decoded, Grant):
            if decoded.incarnation != self._party.incarnation:
                return self._drop("grant")
            frames = self._outbox.serve(peer, decoded.sequence, decoded.first, decoded.count)
            return [], [Send((peer,), frame, bulk=True) for frame in frames]
        stated = stated_in(decoded)
        if header.stated != stated and (header.stated is not None or (self.requires_statements and stated is not None)):
            return [], self.offend(peer, "statement", now)
        return [Opened(peer, kind, header.incarnation, header.sequence, decoded, statement)], []

    # ------------------------------------------------------------------------------------------ time and offences

    def tick(self, now: float) -> list[Effect]:
        """Ask again for chunks that did not come; give up what has stalled too often."""
        effects: list[Effect] = []
        for peer, channel in self.channels.items():
            assembly = channel.fetched
            if assembly is None or not assembly.stalled(now):
                continue
            if assembly.stalls > MAX_STALLS:
                del channel.assemblies[assembly.header.incarnation, assembly.header.sequence]
                self.dropped["assembly-stalled"] += 1
                effects.append(Report("body_abandoned", peer, {"missing_chunks": len(assembly.missing)}))
            effects += self._ask(peer, channel, now)
        return effects

    def next_wakeup(self) -> float:
        """Return when ``tick`` is due next (inf: never)."""
        fetched = (channel.fetched for channel in self.channels.values() if channel.assemblies)
        return min((assembly.stalls_at for assembly in fetched if assembly is not None), default=float("inf"))

    def offend(self, peer: PeerId, reason: str, now: float) -> list[Effect]:
        """Count an authenticated offence; repeated ones mute the peer for a time that doubles up to an hour."""
        channel = self.channels[peer]
        channel.offences += 1
        self.dropped[f"offence-{reason}"] += 1
        effects: list[Effect] = [Report("offence", peer, {"reason": reason, "count": channel.offences})]
        if channel.offences % OFFENCES_FORGIVEN == 0:
            duration = min(MUTE_FIRST_S * 2.0**channel.mutes, MUTE_MAX_S)
            channel.mutes += 1
            channel.muted_until = now + duration
            channel.abandon_all()
            effects.append(Report("peer_muted", peer, {"seconds": duration, "reason": reason}))
        return effects

    def is_muted(self, peer: PeerId, now: float) -> bool:
        """Tell whether what ``peer`` sends is dropped unread at this time."""
        return now < self.channels[peer].muted_until

    def _drop(self, reason: str) -> tuple[list[Opened], list[Effect]]:
        self.dropped[reason] += 1
        return [], []
