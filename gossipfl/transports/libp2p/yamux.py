"""yamux/1.0.0 for py-libp2p's hosts, with flow control by events: the same bytes as any other yamux on the wire.

Why not the library's own: its reader waits for the lock that writers hold, so that two sides that both send much stop
each other for ever; a sender whose window is used up asks every 10 ms whether it may go on, and gives up after 5 s; and
what has arrived is thrown away when a connection ends (docs/upstream shows each). Here the reader never waits for a
writer: what it has to answer goes through a small queue, ahead of the next data.

Specification: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamError
from multiaddr import Multiaddr

from gossipfl.transports.libp2p.noise import MemberSession, Part
from gossipfl.transports.libp2p.yamux_frames import (
    ACK,
    GO_AWAY,
    HEADER,
    MAX_ANSWERS_BYTES,
    MAX_STREAMS,
    PING,
    RST,
    SYN,
    WINDOW,
    Parser,
    YamuxError,
)
from gossipfl.transports.libp2p.yamux_stream import YamuxStream

CLOSE_S = 1.0

Broken = (IOException, RawConnError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


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
        self._parser = Parser(self)

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
