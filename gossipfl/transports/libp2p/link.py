"""One connection to one neighbour, from the greeting to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from libp2p.abc import INetConn
from libp2p.stream_muxer.exceptions import MuxedStreamError

from gossipfl.errors import MessageError
from gossipfl.identity import PeerId
from gossipfl.transports.base import Received
from gossipfl.transports.libp2p.queues import Inbox, Outbox
from gossipfl.transports.libp2p.wire import BULK, CONTROL, FRAME, HEAD, RECORD, frame_head, read_head
from gossipfl.transports.libp2p.yamux import Yamux
from gossipfl.transports.libp2p.yamux_stream import YamuxStream

RETIRE_S = 0.5
"""How long a link that was replaced still brings what was on its way: closed at once, it would look like a failure."""
LAST_FRAMES_S = 5.0
"""How long what has arrived on an ended connection may wait for the agent."""

LATE_S = 0.25
"""How late a look at the clock may be before this process takes itself for the one that was away."""

KEPT_WHOLE_BYTES = 4096
"""Smaller frames are copied: as a view they would keep a whole packet in memory."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a link takes from and brings to; all callbacks are called in trio's thread.

    ``on_link`` hears of the link ("up", "down", "unreachable"), and the address or what is wrong.
    """

    outbox: Outbox
    inbox: Inbox
    on_sent: Callable[[int], None]
    on_record: Callable[[PeerId, bytes], None]
    on_drop: Callable[[str], None]
    on_link: Callable[[str, str], None]


@dataclass(slots=True, eq=False)
class Link:
    """A connection that has been greeted on the control lane.

    ``instance`` is the peer's start; ``dialled`` says whether this side made the connection. Where the bulk lane is
    missing, the control lane carries everything.
    """

    peer: PeerId
    conn: INetConn
    muxed: Yamux
    control: YamuxStream
    instance: bytes
    dialled: bool
    address: str
    opened_at: float
    window_bytes: int
    bulk: YamuxStream | None = None
    ended: trio.Event = field(default_factory=trio.Event)
    _records: dict[PeerId, bytes] = field(default_factory=dict)
    _is_retired: bool = False
    _desk: Desk | None = None
    _readers: trio.Nursery = field(init=False)
    _writers: trio.Nursery = field(init=False)

    async def run(self, desk: Desk, ping_s: float, dead_s: float) -> None:
        """Carry frames both ways until the connection ends, whoever ends it."""
        self._desk = desk
        try:
            async with trio.open_nursery() as self._writers:
                self._writers.start_soon(self._watch, ping_s, dead_s)
                async with trio.open_nursery() as self._readers:
                    self._writers.start_soon(self._end_readers, self._readers.cancel_scope)
                    self._start_lane(CONTROL, self.control)
                    if self.bulk is not None:
                        self._start_lane(BULK, self.bulk)
                self._writers.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def _end_readers(self, scope: trio.CancelScope) -> None:
        """Readers end by themselves once they have handed over all that has arrived; a slow agent gets a moment."""
        await self.muxed.ended.wait()
        scope.deadline = trio.current_time() + LAST_FRAMES_S

    def attach_bulk(self, stream: YamuxStream) -> None:
        """Use the second lane, which the other side has just opened."""
        self.bulk = stream
        if self._desk is not None and not self.muxed.is_closed:
            self._start_lane(BULK, stream)
            self._desk.outbox.wake_link()

    def _start_lane(self, lane: int, stream: YamuxStream) -> None:
        # Half for chunks: with a frame in the making, what a message can be behind is then less than one chunk.
        stream.widen(self.window_bytes if lane == CONTROL else self.window_bytes // 2)
        self._readers.start_soon(self._read, lane, stream)
        self._writers.start_soon(self._write, lane, stream)

    def retire(self) -> None:
        """Send no more: the neighbour has a newer link. What it has sent on this one is still taken in."""
        self._is_retired = True
        if self._desk is not None:
            self._desk.outbox.wake_link()

    async def give_way(self) -> None:
        """Close once the other side has had time to take up the link that has replaced this one."""
        with trio.move_on_after(RETIRE_S):
            await self.ended.wait()
        await self.close("replaced by a newer connection")

    async def run_out(self, desk: Desk, ping_s: float, dead_s: float) -> None:
        """Hear out a connection that loses against one made at the same time: the other side may not know that yet."""
        self.retire()
        with trio.move_on_after(RETIRE_S):
            await self.run(desk, ping_s, dead_s)
        await self.close("another connection was made at the same time")

    async def close(self, detail: str) -> None:
        """End the connection."""
        self.muxed.detail = self.muxed.detail or detail
        await self.muxed.abort(detail)
        await self.conn.close()

    # ------------------------------------------------------------------------------------------ in

    async def _read(self, lane: int, stream: YamuxStream) -> None:
        detail = "the other side closed its stream"
        try:
            while True:
                kind, size_bytes = read_head(await stream.read_exactly(HEAD.size))
                body = await stream.read_exactly(size_bytes)
                await self._take(lane, kind, body if size_bytes > KEPT_WHOLE_BYTES else bytes(body))
        except MuxedStreamError:
            pass
        except MessageError as error:
            assert self._desk is not None
            self._desk.on_drop(f"frame {error.reason}")
            detail = f"a frame was {error.reason}"
        if not self.muxed.is_closed:
            await self.muxed.abort(detail)

    async def _take(self, lane: int, kind: int, body: bytes | bytearray | memoryview) -> None:
        desk = self._desk
        assert desk is not None
        if kind == FRAME and len(body):
            await desk.inbox.put(Received(self.peer, body), lane)
        elif kind == RECORD:
            desk.on_record(self.peer, bytes(body))
        else:  # a later minor version may say more
            desk.on_drop("frame type")

    # ------------------------------------------------------------------------------------------ out

    def tell_record(self, origin: PeerId, envelope: bytes) -> None:
        """Send a signed address record, before other messages; a newer one of the same peer takes its place."""
        self._records[origin] = envelope
        if self._desk is not None:
            self._desk.outbox.wake_link()

    async def _write(self, lane: int, stream: YamuxStream) -> None:
        desk = self._desk
        assert desk is not None
        outbox = desk.outbox
        try:
            while True:
                if self._is_retired:  # another link takes from the outbox now
                    return
                outbox.writing += 1
                try:
                    if lane == CONTROL and self._records:
                        records, self._records = self._records, {}
                        framed = (part for one in records.values() for part in (frame_head(RECORD, len(one)), one))
                        await stream.write_parts([b"".join(framed)])
                        continue
                    frame = outbox.take(lane)
                    if frame is None and lane == CONTROL and self.bulk is None:
                        frame = outbox.take(BULK)
                    if frame is not None:
                        await stream.write_parts((frame_head(FRAME, len(frame)), frame))
                        desk.on_sent(len(frame))
                        continue
                finally:
                    outbox.writing -= 1
                outbox.note_empty()
                await outbox.filled()
        except MuxedStreamError:
            with trio.move_on_after(LAST_FRAMES_S):  # what it said last may still be on its way in
                await self.muxed.ended.wait()
            await self.muxed.abort("the other side takes no more")

    async def settle(self) -> None:
        """Return when the other side has read all that was handed over so far."""
        assert self._desk is not None
        with contextlib.suppress(MuxedStreamError):
            while not (self._desk.outbox.idle or self.muxed.is_closed):
                await self._desk.outbox.emptied()
            await self.muxed.ping()

    # ------------------------------------------------------------------------------------------ life

    async def _watch(self, ping_s: float, dead_s: float) -> None:
        """Probe a quiet connection, and end a dead one.

        A process that was itself stopped for a while finds every connection silent; it listens first, then judges.
        """
        step_s = ping_s / 2
        looked_at = trio.current_time()
        while True:
            await trio.sleep(step_s)
            now = trio.current_time()
            if now - looked_at > 1.5 * step_s + LATE_S:
                self.muxed.heard_at = now
            looked_at = now
            silent_s = now - self.muxed.heard_at
            if silent_s >= dead_s:
                await self.muxed.abort(f"silent for {silent_s:.1f} s")
                return
            if silent_s >= ping_s:
                self.muxed.probe()
