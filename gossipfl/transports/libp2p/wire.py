"""The bytes on a ``/gossipfl/1`` stream: a greeting each way, then frames; docs/wire/libp2p.md is the same in words."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol, Self

from gossipfl import __version__
from gossipfl.errors import MessageError
from gossipfl.membership import FEDERATION_ID_BYTES
from gossipfl.messages.bounded import binary, counter, pack, text, unpack
from gossipfl.transports.base import MAX_FRAME_BYTES

PROTOCOL = "/gossipfl/1"
"""One protocol id for each major version: sides of different ones find no common protocol."""

MINOR = 0
INSTANCE_BYTES = 16
MAX_GREETING_BYTES = 1024
MAX_REASON = 60
"""Longest reason for a refusal that is repeated to people."""

CONTROL, BULK = 0, 1
"""Lanes: one stream for messages, one for the chunks of large bodies, so that neither waits behind the other."""

FRAME, RECORD = 0, 1
"""Types: a frame of the protocol above; a signed address record."""

MAX_RECORD_BYTES = 8 * 1024

HEAD = struct.Struct("!I")
_LENGTH = struct.Struct("!H")
_LENGTH_BITS = 24


class Stream(Protocol):
    """What a greeting needs of a stream."""

    async def read_exactly(self, n: int) -> bytes | bytearray | memoryview:
        """Return ``n`` bytes."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        ...


class Refused(Exception):
    """The other side does not want this stream; ``reason`` is its own short word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first bytes on a stream, from each side: which federation, which start of which node, which lane.

    ``instance`` is random and the same on all streams of one start of the sender: it tells a peer that was restarted
    from a second node that runs under the same key.
    """

    federation: bytes
    instance: bytes
    lane: int

    def pack(self) -> bytes:
        """Return u16 length, then a msgpack map."""
        return _framed({"f": self.federation, "i": self.instance, "l": self.lane, "m": MINOR, "a": __version__})

    @classmethod
    async def read(cls, stream: Stream) -> Self:
        """Read a greeting; raises Refused where there is a refusal instead, and MessageError for anything else."""
        (length,) = _LENGTH.unpack(await stream.read_exactly(_LENGTH.size))
        if length > MAX_GREETING_BYTES:
            raise MessageError("greeting", "oversized")
        fields = unpack(memoryview(await stream.read_exactly(length)), dict)
        if "no" in fields:
            reason = text(fields["no"])
            raise Refused(reason if reason.isprintable() and len(reason) <= MAX_REASON else "in words of its own")
        return cls(
            federation=binary(fields.get("f"), FEDERATION_ID_BYTES),
            instance=binary(fields.get("i"), INSTANCE_BYTES),
            lane=counter(fields.get("l")),
        )


def refusal(reason: str) -> bytes:
    """Return what is sent in place of a greeting by a side that does not want the stream."""
    return _framed({"no": reason})


def _framed(fields: dict[str, Any]) -> bytes:
    packed = pack(fields)
    return _LENGTH.pack(len(packed)) + packed


def frame_head(kind: int, size_bytes: int) -> bytes:
    """Return the four bytes before a frame: u8 type, u24 length."""
    return HEAD.pack(kind << _LENGTH_BITS | size_bytes)


def read_head(head: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return type and length of the frame that follows; MessageError where it is too long."""
    (word,) = HEAD.unpack(head)
    kind, size_bytes = word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)
    if size_bytes > MAX_FRAME_BYTES:
        raise MessageError("oversized")
    return kind, size_bytes
