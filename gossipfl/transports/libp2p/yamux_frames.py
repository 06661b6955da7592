"""yamux/1.0.0 as bytes: the frames, their limits, and a parser that is fed whatever a connection brings.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gossipfl.transports.libp2p.noise import MAX_PLAIN_BYTES

if TYPE_CHECKING:
    from gossipfl.transports.libp2p.yamux import Yamux
    from gossipfl.transports.libp2p.yamux_stream import YamuxStream

PROTOCOL_ID = "/yamux/1.0.0"
DATA, WINDOW, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

HEADER = struct.Struct("!BBHII")
FIRST_WINDOW_BYTES = 256 << 10
"""What either side may send on a new stream before it is granted more (the specification's number)."""
MAX_DATA_BYTES = 4 * MAX_PLAIN_BYTES - HEADER.size
"""Payload of one frame: with its header it fills four Noise packets, and others get their turn in between."""
SMALL_BYTES = 2048
"""Smaller pieces are copied together: each would keep the whole packet in memory that it came in."""
MAX_STREAMS = 16
"""Streams that the remote side may have open at once; with the first window it bounds what it can make us hold."""
MAX_ANSWERS_BYTES = 64 << 10
"""Answers that may wait; a peer that asks for more without reading any is cut off."""


class YamuxError(Exception):
    """The other side does not keep to yamux; the connection is closed."""


class Parser:
    """Cuts the bytes of a connection into frames, wherever the pieces that they come in begin and end."""

    def __init__(self, conn: Yamux) -> None:
        self._conn = conn
        self._head = bytearray()
        self._stream: YamuxStream | None = None
        self._body_left = 0
        self._flags = 0

    def feed(self, block: memoryview) -> None:
        """Take the next bytes; raises YamuxError."""
        while len(block):
            if self._body_left:
                piece, block = block[: self._body_left], block[self._body_left :]
                self._body_left -= len(piece)
                if self._stream is not None:
                    self._stream.arrive(piece)
                if not self._body_left:
                    self._finish()
                continue
            if not self._head and len(block) >= HEADER.size:
                header, block = HEADER.unpack_from(block), block[HEADER.size :]
            else:
                missing = HEADER.size - len(self._head)
                self._head += block[:missing]
                block = block[missing:]
                if len(self._head) < HEADER.size:
                    return
                header = HEADER.unpack(self._head)
                self._head.clear()
            self._frame(*header)

    def _frame(self, version: int, kind: int, flags: int, number: int, length: int) -> None:
        if version != 0 or kind > GO_AWAY:
            raise YamuxError(f"sent a frame of version {version}, type {kind}")
        if kind == PING:
            self._conn.pinged(flags, length)
            return
        if kind == GO_AWAY:  # it opens and accepts no more streams; its connection ends soon
            return
        if flags & SYN:
            self._conn.accept(number)
        self._stream, self._flags = self._conn.stream_of(number), flags
        if kind == WINDOW:
            if self._stream is not None:
                self._stream.granted(length)
            self._finish()
            return
        if self._stream is not None and not self._stream.expect(length):
            raise YamuxError(f"sent more on stream {number} than it was granted")
        if self._stream is None and length > FIRST_WINDOW_BYTES * MAX_STREAMS:
            raise YamuxError(f"sent {length} bytes on stream {number}, which is not open")
        self._body_left = length
        if not length:
            self._finish()

    def _finish(self) -> None:
        if self._stream is not None and self._flags & (FIN | RST):
            self._stream.end(reset=bool(self._flags & RST))
        self._stream = None
