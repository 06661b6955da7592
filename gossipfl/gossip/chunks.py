"""Large bodies: announced by a signed message, fetched chunk by chunk as the receiver grants credit.

The receiver asks for at most ``CREDIT_CHUNKS`` chunks at a time, so neither a broker nor a stream ever holds more of a
body than that per neighbour, and a status message waits behind one chunk at most.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from gossipfl.digest import digest
from gossipfl.messages import CHUNK_BYTES, Buffer, Chunk, Header, Statement, chunk_spans, frame_chunk

CREDIT_CHUNKS = 6
"""Chunks in flight per neighbour: about 6 MiB, what keeps a broker's memory flat."""
STALL_S = 2.0
"""After this long without a chunk, or ``STALL_GAPS`` times the last gap, the missing ones are asked for again."""
STALL_GAPS = 2 * CREDIT_CHUNKS
"""More than what may be queued on a slow link, so that repeats on their way do not bring about further ones."""
STALL_MAX_S = 30.0
PATIENCE_DECAY = 0.7
MAX_STALLS = 3
"""Stalls in a row after which an assembly is given up; a keyframe will mend the loss."""
OUTBOX_BODIES = 4
"""Bodies kept for fetching: the latest update, the one before, and two keyframes; those in demand stay longest."""
OUTBOX_MESSAGES = 256
"""Announcements kept; many may share one body."""
SERVINGS = 3
"""How many times over one neighbour may fetch one body, so that grants are no amplifier."""


@dataclass(slots=True)
class Assembly:
    """A body that is being fetched: memory of exactly the announced size, filled only by chunks that verify.

    ``patience_s`` doubles with each stall and follows the pace at which chunks come: on a slow link, asking again too
    early would fill it with what is on its way already.
    """

    header: Header
    kind: int
    statement: Statement
    body: bytearray
    missing: set[int]
    granted: set[int]
    progress_at: float
    stalls: int = 0
    patience_s: float = STALL_S

    @classmethod
    def begin(cls, statement: Statement, kind: int, now: float) -> Assembly:
        """Allocate for an authenticated announcement whose size the caller has bounded."""
        header = statement.header
        return cls(header, kind, statement, bytearray(header.body_bytes), set(range(len(header.digests))), set(), now)

    @property
    def complete(self) -> bool:
        """Whether every chunk has arrived and verified."""
        return not self.missing

    def place(self, chunk: Chunk, now: float) -> bool:
        """Store a chunk if it is the announced one; returns False otherwise and changes nothing."""
        index = chunk.index
        if index not in self.missing:
            return False
        start = index * CHUNK_BYTES
        end = min(start + CHUNK_BYTES, self.header.body_bytes)
        if len(chunk.data) != end - start or digest(chunk.data) != self.header.digests[index]:
            return False
        self.body[start:end] = chunk.data
        self.missing.discard(index)
        self.granted.discard(index)
        gap_s = now - self.progress_at if not self.stalls else 0.0  # a stall measures patience, not the link
        self.patience_s = min(max(STALL_S, PATIENCE_DECAY * self.patience_s, STALL_GAPS * gap_s), STALL_MAX_S)
        self.progress_at, self.stalls = now, 0
        return True

    def next_grant(self) -> tuple[int, int] | None:
        """Return (first, count) of the next run of chunks to ask for, or None while enough are on their way."""
        room = CREDIT_CHUNKS - len(self.granted)
        waiting = sorted(self.missing - self.granted)
        if not waiting or room < min(CREDIT_CHUNKS // 2, len(waiting)):
            return None
        first = waiting[0]
        count = 1
        while count < min(room, len(waiting)) and waiting[count] == first + count:
            count += 1
        self.granted.update(range(first, first + count))
        return first, count

    @property
    def stalls_at(self) -> float:
        """When the next stall is due."""
        return self.progress_at + self.patience_s

    def stalled(self, now: float) -> bool:
        """Tell whether nothing came for too long, and then forget what was granted."""
        if now < self.stalls_at:
            return False
        self.progress_at = now
        self.patience_s = min(2 * self.patience_s, STALL_MAX_S)
        self.stalls += 1
        self.granted.clear()
        return True


@dataclass(slots=True)
class _Announced:
    header: Header
    body: Buffer
    served: dict[str, int] = field(default_factory=dict)


class Outbox:
    """The bodies that neighbours may still fetch from this node, by announcement, the last wanted one last."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[int, _Announced] = OrderedDict()

    def keep(self, header: Header, body: Buffer) -> None:
        """Hold a body for fetching; what nobody has wanted for longest gives way."""
        self._bodies[header.sequence] = _Announced(header, body)
        while len(self._bodies) > OUTBOX_MESSAGES or self._distinct() > OUTBOX_BODIES:
            self._bodies.popitem(last=False)

    def _distinct(self) -> int:
        return len({id(announced.body) for announced in self._bodies.values()})

    def serve(self, peer: str, sequence: int, first: int, count: int) -> list[bytes]:
        """Return the frames that a grant asks for, as far as the body is still here and the peer's share lasts."""
        announced = self._bodies.get(sequence)
        if announced is None:
            return []
        self._bodies.move_to_end(sequence)
        spans = chunk_spans(announced.header.body_bytes)
        served = announced.served.get(peer, 0)
        wanted = range(first, min(first + min(count, CREDIT_CHUNKS), len(spans)))
        if served + len(wanted) > SERVINGS * len(spans):
            return []
        announced.served[peer] = served + len(wanted)
        view = memoryview(announced.body)
        return [frame_chunk(announced.header, index, view[slice(*spans[index])]) for index in wanted]
