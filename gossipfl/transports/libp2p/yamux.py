"""yamux/1.0.0 for py-libp2p's hosts, with flow control by events: the same bytes as any other yamux on the wire.

Why not the library's own: its reader waits for the lock that writers hold, so that two sides that both send much stop
each other for ever; a sender whose window is used up asks every 10 ms whether it may go on, and gives up after 5 s; and
what has arrived is thrown away when a connection ends (docs/upstream shows each). Here the reader never waits for a
writer: what it has to answer goes through a small queue, ahead of the next data.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, cast

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from multiaddr import Multiaddr

from gossipfl.transports.libp2p.noise import MAX_PLAIN_BYTES, MemberSession, Part

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
CLOSE_S = 1.0

Broken = (IOException, RawConnError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


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


class Yamux(IMuxedConn):
    """One connection: a task that reads, a task that answers, and whoever writes.

    ``heard_at`` is when anything came last, in trio's time; ``was_greeted`` belongs to whoever uses the streams.
    """

    def __init__(self, conn: ISecureConn, peer_id: ID) -> None:
        self.peer_id = peer_id
        self.secured_conn = cast("MemberSession", conn)
        self.event_started = trio.Event()
        self.on_close: Callable[[], Awaitable[Any]] | None = None  # py-libp2p sets it
        self.ended = trio.Event()
        self.heard_at = trio.current_time()
        self.detail = ""
        self.was_greeted = False
        self._streams: dict[int, YamuxStream] = {}
        self._next_number = 1 if conn.is_initiator else 2
        self._accepting, self._accepted = trio.open_memory_channel[YamuxStream](MAX_STREAMS)
        self._write_lock = trio.Lock()
        self._is_mute = False
        self._answers = bytearray()
        self._to_answer = trio.Event()
        self._pings: dict[int, trio.Event] = {}
        self._ping_number = 0
        self._parser = _Parser(self)

    # ------------------------------------------------------------------------------------------ life

    @property
    def is_initiator(self) -> bool:
        """Whether this side has dialled."""
        return bool(self.secured_conn.is_initiator)

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        """Whether the connection has ended."""
        return self.ended.is_set()

    async def start(self) -> None:
        """Read and answer until the connection ends."""
        async with trio.open_nursery() as nursery:
            self.event_started.set()
            nursery.start_soon(self._answer)
            try:
                await self._read()
            finally:
                nursery.cancel_scope.cancel()
                await self.abort(self.detail or "closed by the other side")

    async def _read(self) -> None:
        blocks: list[bytes] = [self.secured_conn.leftover()]
        try:
            while True:
                for block in blocks:
                    self._parser.feed(memoryview(block))
                blocks = await self.secured_conn.read_blocks()
                self.heard_at = trio.current_time()
                if not blocks:
                    return
        except YamuxError as error:
            self.detail = f"broke yamux: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a peer's bytes lead to ends its connection, and no other
            self.detail = str(error) or type(error).__name__

    async def _answer(self) -> None:
        while True:
            self._to_answer = trio.Event()
            if self._answers:
                try:
                    await self.write_frame(None)
                except MuxedStreamError:
                    return
            else:
                await self._to_answer.wait()

    def answer(self, kind: int, flags: int, number: int, length: int) -> None:
        """Send a frame without data, soon, and ahead of any data that is not on its way yet."""
        if not self.takes_more:
            return
        self._answers += HEADER.pack(0, kind, flags, number, length)
        self._to_answer.set()

    async def write_frame(
        self, kind: int | None, flags: int = 0, number: int = 0, length: int = 0, parts: Sequence[Part] = ()
    ) -> None:
        """Send the answers that wait and, unless ``kind`` is None, a frame; MuxedStreamError when the link is gone.

        A write that does not come to its end leaves half a packet behind, so the connection ends with it.
        """
        async with self._write_lock:
            if not self.takes_more:
                raise MuxedStreamError("the connection has ended")
            answers, self._answers = self._answers, bytearray()
            head = [] if kind is None else [HEADER.pack(0, kind, flags, number, length)]
            if not (answers or head):
                return
            try:
                await self.secured_conn.write_parts([answers, *head, *parts])
            except Broken as error:
                self._stop_writing(str(error) or type(error).__name__)
                raise MuxedStreamError("the connection has ended") from None
            except BaseException:
                await self.abort("a write was cancelled")
                raise

    @property
    def takes_more(self) -> bool:
        """Whether anything can still be sent."""
        return not (self.is_closed or self._is_mute)

    def _stop_writing(self, detail: str) -> None:
        """Take note that the other side has gone: what it said before is still to be read, up to its end."""
        self._is_mute = True
        self.detail = self.detail or detail
        for stream in list(self._streams.values()):
            stream.granted(0)

    async def abort(self, detail: str) -> None:
        """End the connection at once, and wake everybody who waits for it."""
        if self.is_closed:
            return
        self.detail = detail
        self.ended.set()
        self._accepting.close()
        for stream in list(self._streams.values()):
            stream.break_off()
        self._streams.clear()
        for ping in self._pings.values():
            ping.set()
        self._to_answer.set()
        with trio.CancelScope(shield=True):  # closing a socket waits for nothing
            await self.secured_conn.close()

    async def close(self) -> None:
        """Say good-bye, for a bounded time, and end the connection."""
        if not self.is_closed:
            self._answers += HEADER.pack(0, GO_AWAY, 0, 0, 0)
            with trio.move_on_after(CLOSE_S):
                with contextlib.suppress(MuxedStreamError):
                    await self.write_frame(None)
            await self.abort("closed here")
        if self.on_close is not None:
            on_close, self.on_close = self.on_close, None
            await on_close()

    # ------------------------------------------------------------------------------------------ streams

    async def open_stream(self) -> YamuxStream:
        """Open a stream; the other side learns of it with the first data."""
        if self.is_closed:
            raise MuxedStreamError("the connection has ended")
        stream = YamuxStream(self, self._next_number)
        self._next_number += 2
        self._streams[stream.stream_id] = stream
        self.answer(WINDOW, SYN, stream.stream_id, 0)
        await trio.lowlevel.checkpoint()
        return stream

    async def accept_stream(self) -> IMuxedStream:
        """Return the next stream that the other side opens; MuxedConnUnavailable at the end."""
        try:
            return await self._accepted.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise MuxedConnUnavailable("the connection has ended") from None

    def forget(self, stream: YamuxStream) -> None:
        """Drop the bookkeeping of a stream that has ended on both sides."""
        if stream.was_reset or (stream.sent_fin and stream.got_fin):
            self._streams.pop(stream.stream_id, None)

    # ------------------------------------------------------------------------------------------ what arrives

    def stream_of(self, number: int) -> YamuxStream | None:
        """Return a stream that is still known."""
        return self._streams.get(number)

    def accept(self, number: int) -> None:
        """Take note of a stream that the other side opens; one too many is refused."""
        if number % 2 == self._next_number % 2 or number == 0 or number in self._streams:
            raise YamuxError(f"opened stream {number}, whose number is not its own to give")
        self._check_flood()
        theirs = sum(1 for known in self._streams if known % 2 == number % 2)
        stream = YamuxStream(self, number)
        if theirs >= MAX_STREAMS or not self._offer(stream):
            self.answer(WINDOW, RST, number, 0)
            return
        self._streams[number] = stream
        self.answer(WINDOW, ACK, number, 0)

    def _offer(self, stream: YamuxStream) -> bool:
        """Put a new stream in line for ``accept_stream``; the reader does not wait for a place there."""
        try:
            self._accepting.send_nowait(stream)
        except trio.WouldBlock:
            return False
        return True

    def _check_flood(self) -> None:
        if len(self._answers) > MAX_ANSWERS_BYTES:
            raise YamuxError("asks for more than it reads")

    def pinged(self, flags: int, number: int) -> None:
        """Answer a ping, or take note of an answer."""
        if flags & SYN:
            self._check_flood()
            self.answer(PING, ACK, 0, number)
        elif flags & ACK and number in self._pings:
            self._pings[number].set()

    async def ping(self) -> None:
        """Return when the other side has read everything that was sent before; MuxedStreamError when the link ends."""
        if self.is_closed:
            raise MuxedStreamError("the connection has ended")
        self._ping_number = number = self._ping_number + 1
        answered = self._pings[number] = trio.Event()
        try:
            self.answer(PING, SYN, 0, number)
            await answered.wait()
        finally:
            del self._pings[number]
        if self.is_closed:
            raise MuxedStreamError("the connection has ended")

    def probe(self) -> None:
        """Make the other side say something, if it can: whatever comes moves ``heard_at``."""
        if not self._answers:
            self.answer(PING, SYN, 0, 0)

    # ------------------------------------------------------------------------------------------ addresses

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return host and port of the other side."""
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the address of the other side."""
        remote = self.get_remote_address()
        if remote is None:
            return []
        host, port = remote
        return [Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}")]

    def get_connection_type(self) -> ConnectionType:
        """Return how the other side was reached: always directly."""
        return ConnectionType.DIRECT


class YamuxError(Exception):
    """The other side does not keep to yamux; the connection is closed."""


class _Parser:
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
