"""The transport seam: opaque frames between named peers, at most best effort.

What every transport promises, and no more: a frame may be lost, duplicated, delayed or reordered, and never
arrives altered. Credits, acknowledgement, framing of large bodies and authenticity belong to the protocol
above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from gossipfl.identity import PeerId as PeerId  # re-exported: transports name peers, and need no keys

MAX_FRAME_BYTES = 1 << 20
"""No frame is larger, on any transport; larger bodies are cut into chunks above the transport."""

FORMER_PEER = "former peer"
"""Why a frame is dropped whose recipient was a peer when it was sent, and is none any more."""


@dataclass(frozen=True, slots=True)
class Received:
    """One frame; ``source`` is whom the transport takes for the sender: a hint for counting, no proof."""

    source: PeerId | None
    frame: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """The link to ``peer`` (None: to the whole network, e.g. a broker) went ``up`` or ``down``.

    ``refused``: a connection with ``peer`` (None: nobody known) was not used, by this side or by the other.
    """

    state: Literal["up", "down", "refused"]
    peer: PeerId | None
    detail: str = ""


@dataclass(slots=True)
class TransportCounters:
    """Totals since the start, read by metrics.

    A frame for several recipients counts once for each time that it goes to the wire: once where a broker spreads
    it, once for each recipient elsewhere.
    """

    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    frames_dropped: int = 0
    reconnects: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    """Frames dropped and connections refused, by a short label of the reason."""

    def count_sent(self, size_bytes: int, frames: int = 1) -> None:
        """Count ``frames`` frames of ``size_bytes`` each that went to the wire."""
        self.frames_sent += frames
        self.bytes_sent += frames * size_bytes

    def count_received(self, size_bytes: int) -> None:
        """Count one frame that ``receive`` returned."""
        self.frames_received += 1
        self.bytes_received += size_bytes

    def count_drop(self, reason: str) -> None:
        """Count one frame that this transport gave up."""
        self.frames_dropped += 1
        self.by_reason[reason] = self.by_reason.get(reason, 0) + 1

    def count_refusal(self, reason: str) -> None:
        """Count one connection that was refused; its frames were never seen, so none counts as dropped."""
        self.by_reason[reason] = self.by_reason.get(reason, 0) + 1


def check_frame(
    frame: bytes | bytearray | memoryview, recipients: Collection[PeerId], peers: frozenset[PeerId]
) -> None:
    """Raise ValueError unless ``frame`` may be sent to each of ``recipients``."""
    size_bytes = memoryview(frame).nbytes
    if not 0 < size_bytes <= MAX_FRAME_BYTES:
        raise ValueError(f"a frame has 1 to {MAX_FRAME_BYTES} bytes, not {size_bytes}")
    unknown = sorted(set(recipients) - peers)
    if unknown:
        raise ValueError(f"not a peer of this transport: {', '.join(unknown)}")


class Transport(ABC):
    """An unreliable, unordered carrier of frames of at most ``MAX_FRAME_BYTES`` from ``me`` to its ``peers``.

    Life: construct, ``await start()`` (raises TransportUnavailable in one clear line when the network cannot
    be reached), use, ``await close()`` (idempotent). A link that breaks later is retried for
    ever with jittered exponential back-off, and reported by ``events``. All methods run on one event loop.
    """

    me: PeerId
    peers: frozenset[PeerId]
    counters: TransportCounters
    shares_wire: bool = True
    """Whether a frame for several recipients is best sent in one call: a broker spreads it. Where it is not, each of
    them is sent to by itself, so that a slow one holds up nobody else."""

    @abstractmethod
    async def start(self) -> None:
        """Connect; returns when frames can be received."""

    @abstractmethod
    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        """Hand one frame to the wire for each recipient, waiting while the wire is full (back-pressure).

        A ``bulk`` frame is part of a large body: where the wire can, others overtake it.

        Returns False when the frame was certainly not sent (link down); True promises nothing about arrival.
        Safe to call from several tasks at once. Raises ValueError for a frame over the limit or an unknown
        recipient, and TransportClosed after ``close``. The caller may change its buffer once ``send`` has returned.
        """

    @abstractmethod
    async def receive(self) -> Received:
        """Return the next frame; raises TransportClosed after ``close``.

        At most a stated number of frames wait inside the transport; more are dropped and counted, or hold back
        their senders.
        """

    @abstractmethod
    async def events(self) -> LinkEvent:
        """Return the next link event; raises TransportClosed after ``close``."""

    @abstractmethod
    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        """Have ``peers``, and nobody else, for peers from now on; ``members`` are all who may ever be believed.

        ``self.peers`` is ``frozenset(peers)`` before this first waits. From then on frames from former peers, even if
        they wait inside the transport already, are dropped and counted, and so are frames to them that ``send`` has
        taken and that are not on the wire yet; what is on the wire may arrive. Links to those who stay lose nothing.

        Returns when a broker has answered, and when the links that end are closed. Whoever is new is not waited for:
        that link comes up later, as after ``start``, and ``events`` tells. A link that is down, or breaks meanwhile, is
        no error: the next connection is made for these peers. May be called before ``start``, while others send and
        receive, while another call waits (the last one decides), and again with the same peers, which changes nothing.

        ``members`` matter where connections prove who is there: no connection is held with anybody else, and what they
        sign about themselves is not believed. Whoever is a peer is a member.

        Raises ConfigError, and changes nothing, for an id that the wire cannot name, and TransportClosed after
        ``close``.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop all work and free every task, socket and thread."""
