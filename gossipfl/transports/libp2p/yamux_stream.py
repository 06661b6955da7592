"""One stream of a yamux connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset

from gossipfl.transports.libp2p.noise import Part
from gossipfl.transports.libp2p.yamux_frames import (
    DATA,
    FIN,
    FIRST_WINDOW_BYTES,
    MAX_DATA_BYTES,
    RST,
    SMALL_BYTES,
    WINDOW,
)

if TYPE_CHECKING:
    from gossipfl.transports.libp2p.yamux import Yamux


class YamuxStream(IMuxedStream):
    """One stream: ``read_exactly`` and ``write_parts`` are for frames, the rest is what py-libp2p asks of a stream."""

    def __init__(self, conn: Yamux, number: int) -> None:
        self.muxed_conn = conn
        self.stream_id = number
        self._conn = conn
        self._blocks: deque[memoryview | bytearray] = deque()
        self._arrived = trio.Event()
        self._granted = trio.Event()
        self._may_send_bytes = FIRST_WINDOW_BYTES
        self._may_receive_bytes = FIRST_WINDOW_BYTES
        self._window_bytes = FIRST_WINDOW_BYTES
        self._taken_bytes = 0
        self.sent_fin = False
        self.got_fin = False
        self.was_reset = False

    # ------------------------------------------------------------------------------------------ reading

    async def read(self, n: int | None = None) -> bytes:
        """Return from 1 to ``n`` bytes (None, -1: what is there); MuxedStreamEOF or MuxedStreamReset at the end."""
        if n == 0:
            return b""
        while not self._blocks:
            self._check_readable()
            await self._await_arrival()
        block = self._take(len(self._blocks[0]) if n is None or n < 0 else n)
        self._credit(len(block))
        return bytes(block)

    async def read_exactly(self, n: int) -> bytes | bytearray | memoryview:
        """Return ``n`` bytes, uncopied where they came in one piece; MuxedStreamEOF or MuxedStreamReset at the end."""
        if self._blocks and len(self._blocks[0]) >= n:
            block = self._take(n)
            self._credit(n)
            return block
        whole, at = bytearray(n), 0
        while at < n:
            while not self._blocks:
                self._check_readable()
                await self._await_arrival()
            block = self._take(n - at)
            whole[at : at + len(block)] = block
            at += len(block)
            self._credit(len(block))
        return whole

    def _take(self, most: int) -> memoryview | bytearray:
        block = self._blocks[0]
        if len(block) <= most:
            return self._blocks.popleft()
        first = block[:most]
        if isinstance(block, bytearray):
            del block[:most]
        else:
            self._blocks[0] = block[most:]
        return first

    def _check_readable(self) -> None:
        if self.was_reset:
            raise MuxedStreamReset("the stream was reset")
        if self.got_fin:
            raise MuxedStreamEOF("the stream has ended")

    async def _await_arrival(self) -> None:
        self._arrived = trio.Event()
        await self._arrived.wait()

    def _credit(self, n: int) -> None:
        """Let the other side send as much again, told in halves of the window."""
        self._taken_bytes += n
        if 2 * self._taken_bytes >= self._window_bytes and not (self.got_fin or self.was_reset):
            self._grant(self._taken_bytes)
            self._taken_bytes = 0

    def _grant(self, n: int) -> None:
        self._may_receive_bytes += n
        self._conn.answer(WINDOW, 0, self.stream_id, n)

    def widen(self, window_bytes: int) -> None:
        """Let the other side have up to ``window_bytes`` on its way, from now on."""
        if window_bytes > self._window_bytes:
            self._grant(window_bytes - self._window_bytes)
            self._window_bytes = window_bytes

    def arrive(self, block: memoryview) -> None:
        """Take what the connection has read for this stream."""
        if self.was_reset:
            return
        if len(block) >= SMALL_BYTES:
            self._blocks.append(block)
        elif self._blocks and isinstance(last := self._blocks[-1], bytearray) and len(last) < FIRST_WINDOW_BYTES:
            last += block
        else:
            self._blocks.append(bytearray(block))
        self._arrived.set()

    def expect(self, n: int) -> bool:
        """Tell whether ``n`` more bytes are within what was granted, and count them."""
        self._may_receive_bytes -= n
        return self._may_receive_bytes >= 0

    # ------------------------------------------------------------------------------------------ writing

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting for as long as the other side takes no more."""
        await self.write_parts((data,))

    async def write_parts(self, parts: Sequence[Part]) -> None:
        """Send several pieces behind each other, none of them copied."""
        rest = [memoryview(part) for part in parts if len(part)]
        while rest:
            self._check_writable()
            room = min(self._may_send_bytes, MAX_DATA_BYTES)
            if room <= 0:
                self._granted = trio.Event()
                await self._granted.wait()
                continue
            piece, rest, n = _split(rest, room)
            self._may_send_bytes -= n
            try:
                await self._conn.write_frame(DATA, 0, self.stream_id, n, piece)
            except BaseException:  # cancelled before its turn came: nothing was sent, so nothing is used up
                self._may_send_bytes += n
                raise

    def _check_writable(self) -> None:
        if self.was_reset or self.sent_fin or not self._conn.takes_more:
            raise MuxedStreamError("the stream takes no more")

    def granted(self, n: int) -> None:
        """Take note that the other side takes ``n`` bytes more."""
        self._may_send_bytes += n
        self._granted.set()

    # ------------------------------------------------------------------------------------------ the end

    async def close(self) -> None:
        """Send no more; what the other side still sends can be read."""
        if not (self.sent_fin or self.was_reset or self._conn.is_closed):
            self.sent_fin = True
            self._conn.answer(WINDOW, FIN, self.stream_id, 0)
            self._granted.set()
            self._conn.forget(self)
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Give the stream up, in both directions; once the connection has ended, what it brought can still be read."""
        if not (self.was_reset or self._conn.is_closed):
            self._conn.answer(WINDOW, RST, self.stream_id, 0)
            self._blocks.clear()
            self.end(reset=True)
        await trio.lowlevel.checkpoint()

    def end(self, *, reset: bool) -> None:
        """Take note that the other side sends no more, or (``reset``) has given the stream up."""
        self.got_fin = True
        self.was_reset = self.was_reset or reset
        self._arrived.set()
        self._granted.set()
        self._conn.forget(self)

    def break_off(self) -> None:
        """Take note that the connection is gone: what has arrived can be read, nothing can be sent."""
        self.got_fin = True
        self._arrived.set()
        self._granted.set()

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are trio's: ``trio.fail_after`` around the call."""
        raise NotImplementedError("use trio.fail_after")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return host and port of the other side."""
        return self._conn.get_remote_address()

    async def __aenter__(self) -> YamuxStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _split(parts: list[memoryview], most: int) -> tuple[list[memoryview], list[memoryview], int]:
    """Return the first ``most`` bytes of ``parts``, the rest, and how many bytes were taken."""
    first: list[memoryview] = []
    n = 0
    for index, part in enumerate(parts):
        if n + len(part) > most:
            cut = most - n
            if cut:
                first.append(part[:cut])
            return first, [part[cut:], *parts[index + 1 :]], most
        first.append(part)
        n += len(part)
    return first, [], n
