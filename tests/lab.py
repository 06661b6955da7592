"""A few protocol cores on a table, with a wire that the test holds in its hand and a clock that it turns."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import torch
from torch import Tensor

from gossipfl.codec import make_codec
from gossipfl.digest import digest
from gossipfl.errors import MessageError
from gossipfl.gossip import (
    Adopt,
    Charters,
    Convict,
    Effect,
    GossipCore,
    GossipSettings,
    Mixing,
    Party,
    Report,
    Send,
)
from gossipfl.gossip.post import stated_in
from gossipfl.gossip.replica import Followed
from gossipfl.identity import Identity, PeerId
from gossipfl.membership import Membership
from gossipfl.membership.document import Document
from gossipfl.messages import (
    Body,
    Chunk,
    Envelope,
    Header,
    Kind,
    chunk_digests,
    decode_body,
    encode_body,
    frame_message,
    parse_frame,
    signing_input,
)
from gossipfl.robust.mean import Mean

LAYOUT = digest(b"layout")
FEDERATION = "lab"


def make_identity(node: int) -> Identity:
    """Return the key of node ``node`` in every lab."""
    return Identity.from_seed(digest(b"lab", bytes([node])))


def make_membership(nodes: int, federation: str = FEDERATION) -> Membership:
    """Return the federation of the lab's first ``nodes`` nodes."""
    return Membership.from_ids(federation, {f"n{node}": make_identity(node).peer_id for node in range(nodes)})


@dataclass(frozen=True, slots=True)
class Letter:
    """One frame on its way between two nodes."""

    sender: int
    recipient: int
    frame: bytes
    bulk: bool = False

    @property
    def kind(self) -> Kind | None:
        """What the frame says; None for a chunk."""
        parsed = parse_frame(self.frame)
        return Kind(parsed.kind) if isinstance(parsed, Envelope) else None

    @property
    def body(self) -> Any:
        """The decoded body of an inline message."""
        parsed = parse_frame(self.frame)
        assert isinstance(parsed, Envelope)
        assert parsed.body is not None
        return decode_body(parsed.kind, parsed.body)


class Lab:
    """Cores that know each other, frames between them in ``wire``, and what they reported in ``reports``.

    ``nodes`` cores over the given undirected ``edges`` (default: all), each with the initial model zero of ``size``
    elements. Nothing is delivered and no time passes unless the test says so. ``documents``: versions of the membership
    that every core knows. What cores want adopted is in ``adoptions``, whom they convict in ``convictions``.
    """

    def __init__(
        self,
        nodes: int = 2,
        size: int = 64,
        *,
        edges: Iterable[tuple[int, int]] | None = None,
        initial: Tensor | None = None,
        codec: str = "float32",
        layouts: Mapping[int, bytes] | None = None,
        documents: Sequence[Document] = (),
        **settings: Any,
    ) -> None:
        self.now = 0.0
        self.size = size
        self.identities = [make_identity(node) for node in range(nodes)]
        self.ids: list[PeerId] = [identity.peer_id for identity in self.identities]
        self.index = {peer: node for node, peer in enumerate(self.ids)}
        self.membership = make_membership(nodes)
        pairs = edges if edges is not None else [(a, b) for a in range(nodes) for b in range(a)]
        self.neighbours: list[list[int]] = [[] for _ in range(nodes)]
        for one, other in pairs:
            self.neighbours[one].append(other)
            self.neighbours[other].append(one)
        self.settings = GossipSettings(**settings)
        self.initial = torch.zeros(size) if initial is None else initial
        self._codec = codec
        self._layouts = layouts or {}
        self._incarnations = [0] * nodes
        self._forged = 500
        self.wire: list[Letter] = []
        self.reports: list[list[Report]] = [[] for _ in range(nodes)]
        self.adoptions: list[list[Document]] = [[] for _ in range(nodes)]
        self.convictions: list[list[Convict]] = [[] for _ in range(nodes)]
        self._documents = list(documents)
        self.models = [self.initial.clone() for _ in range(nodes)]
        self.cores = [self._make_core(node) for node in range(nodes)]

    def _make_core(self, node: int) -> GossipCore:
        self._incarnations[node] += 1
        neighbours = sorted(self.neighbours[node])
        weights = {self.ids[other]: 1.0 / (1 + len(neighbours)) for other in neighbours}
        party = Party(self.identities[node], self.membership, self._incarnations[node], weights)
        layout = self._layouts.get(node, LAYOUT)
        charters = Charters(self._documents) if self._documents else None
        codec = make_codec(self._codec)
        return GossipCore(party, layout, self.initial, Mean(), codec, self.settings, charters=charters)

    # ------------------------------------------------------------------------------------------ doing

    def perform(self, node: int, effects: Sequence[Effect]) -> list[Letter]:
        """Put what a core sends on the wire and keep what it reports; returns the new letters."""
        letters = []
        for effect in effects:
            match effect:
                case Send():
                    letters += [Letter(node, self.index[p], effect.frame, effect.bulk) for p in effect.recipients]
                case Report():
                    self.reports[node].append(effect)
                case Adopt():
                    self.adoptions[node].append(effect.document)
                case Convict():
                    self.convictions[node].append(effect)
        self.wire += letters
        return letters

    def start(self, *, joined: bool = True) -> Lab:
        """Start all cores and, with ``joined``, let them all meet."""
        for node, core in enumerate(self.cores):
            self.perform(node, core.start(self.now))
        if joined:
            self.settle()
            assert all(core.all_joined for core in self.cores)
        return self

    def restart(self, node: int) -> None:
        """Replace a core by a new one of the next incarnation, with the initial model, and start it."""
        self.cores[node] = self._make_core(node)
        self.models[node] = self.initial.clone()
        self.perform(node, self.cores[node].start(self.now))

    def deliver(self, letter: Letter) -> list[Letter]:
        """Hand one letter to its recipient; returns what that one sends because of it."""
        return self.receive(letter.recipient, letter.frame)

    def receive(self, node: int, frame: bytes) -> list[Letter]:
        """Hand any bytes to a node."""
        return self.perform(node, self.cores[node].receive(frame, self.now))

    def settle(self) -> None:
        """Deliver what is on the wire, and what follows from it, in order, until nothing is left."""
        for _ in range(100_000):
            if not self.wire:
                return
            self.deliver(self.wire.pop(0))
        raise AssertionError("the cores never stop talking")

    def wait(self, duration_s: float, *, delivering: bool = True, step_s: float = 0.05) -> None:
        """Let time pass, with ticks and, unless told otherwise, delivery."""
        end = self.now + duration_s
        while self.now < end:
            self.now = min(end, self.now + step_s)
            for node, core in enumerate(self.cores):
                if core.next_wakeup() <= self.now:
                    self.perform(node, core.tick(self.now))
            if delivering:
                self.settle()

    def publish(self, node: int, model: Tensor | None = None) -> list[Letter]:
        """Let a node publish ``model``, or its own."""
        if model is not None:
            self.models[node].copy_(model)
        return self.perform(node, self.cores[node].publish(self.models[node], self.now))

    def mix(self, node: int) -> Mixing:
        """Let a node finish its round."""
        mixing, effects = self.cores[node].mix(self.models[node], self.now)
        self.perform(node, effects)
        return mixing

    def take(self, *kinds: Kind) -> list[Letter]:
        """Take letters of these kinds (none given: all) off the wire."""
        taken = [letter for letter in self.wire if not kinds or letter.kind in kinds]
        self.wire = [letter for letter in self.wire if letter not in taken]
        return taken

    # ------------------------------------------------------------------------------------------ looking

    def seen_by(self, node: int, other: int) -> Followed:
        """What ``node`` holds of ``other``."""
        return self.cores[node].followed[self.ids[other]]

    def agree(self, node: int, other: int) -> bool:
        """Whether ``node`` holds exactly what ``other`` has published."""
        held, own = self.seen_by(node, other), self.cores[other].exchange.own
        return held.vector is not None and held.version == own.version and torch.equal(held.vector, own.vector)

    def events(self, node: int, name: str) -> list[Report]:
        """The reports of one name."""
        return [report for report in self.reports[node] if report.event == name]

    def dropped(self, node: int) -> dict[str, int]:
        """A node's error counters."""
        return dict(self.cores[node].exchange.post.dropped)

    # ------------------------------------------------------------------------------------------ forging

    def forge(
        self,
        sender: int,
        kind: int,
        body: Body | bytes,
        *,
        sequence: int | None = None,
        incarnation: int | None = None,
        recipient: int | None = None,
    ) -> bytes:
        """Return the frame of any body (also raw bytes) that ``sender`` could sign, numbered from 501 on by default."""
        self._forged += 1
        return forge(
            self.identities[sender],
            kind,
            body,
            federation=self.membership.federation_id,
            sequence=self._forged if sequence is None else sequence,
            incarnation=self._incarnations[sender] if incarnation is None else incarnation,
            recipient=b"" if recipient is None else self.identities[recipient].public_key,
        )


def forge(
    identity: Identity,
    kind: int,
    body: Body | bytes,
    *,
    federation: bytes,
    sequence: int,
    incarnation: int = 1,
    recipient: bytes = b"",
) -> bytes:
    """Return the frame of any body (also raw bytes), signed with ``identity``."""
    encoded = body if isinstance(body, bytes) else encode_body(body)
    header = Header(
        federation,
        identity.public_key,
        recipient,
        incarnation,
        sequence,
        len(encoded),
        chunk_digests(encoded),
        None if isinstance(body, bytes) else stated_in(body),
    )
    signed = signing_input(kind, header.pack())
    return frame_message(signed, identity.sign(signed), encoded)


def says_the_same(altered: bytes, genuine: bytes) -> bool:
    """Tell whether two frames are one chunk, whose minor version and kind bytes mean nothing and are not covered."""
    try:
        parsed = parse_frame(altered)
    except MessageError:
        return False
    return altered == genuine or (isinstance(parsed, Chunk) and parsed == parse_frame(genuine))


def raw_body(meta: Any, payload: bytes = b"") -> bytes:
    """Return a body around any msgpack tree."""
    packed: bytes = msgpack.packb(meta)
    return struct.pack("<I", len(packed)) + packed + payload
