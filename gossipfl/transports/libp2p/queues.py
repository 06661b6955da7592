"""What waits between the agent and the links: bounded, in two lanes, filled on one side and emptied on the other."""

from __future__ import annotations

import asyncio

import trio

from gossipfl.errors import TransportClosed
from gossipfl.transports.base import Received
from gossipfl.transports.libp2p.bridge import Crossing, TrioThread
from gossipfl.transports.libp2p.wire import BULK, CONTROL

IN_A_ROW = 16
"""Messages that may overtake a waiting chunk: chunks come last, and still come."""

MAX_BULK_INBOX_FRAMES = 4
"""Chunks, of up to 1 MiB each, that wait for the agent: more would only delay what is behind them."""


class Outbox:
    """Frames for one peer. The agent's side puts, the link's side takes; both wait where they have to.

    ``open`` and ``close`` are for the agent's side: while the link is down nothing is taken in.
    """

    def __init__(self, bridge: TrioThread, max_frames: int, max_bytes: int) -> None:
        self._bridge = bridge
        self._lanes = tuple(
            Crossing[bytes](max_frames, max_bytes, self._tell_link, self._tell_agent) for _ in (CONTROL, BULK)
        )
        self._room: asyncio.Event | None = None
        self._filled = trio.Event()
        self._emptied = trio.Event()
        self._is_open = False
        self.writing = 0

    # ------------------------------------------------------------------------------------------ the agent's side

    def open(self) -> None:
        """Take frames in, from now on."""
        self._is_open = True

    def close(self) -> None:
        """Take nothing in, and let everybody who waits for room go."""
        self._is_open = False
        self._wake_agent()

    async def put(self, frame: bytes, lane: int) -> bool:
        """Hand over a frame as soon as there is room; False where the link is, or goes, down."""
        while self._is_open:
            if self._lanes[lane].offer(frame, len(frame)):
                return True
            self._room = self._room or asyncio.Event()
            await self._room.wait()
        return False

    def _tell_agent(self) -> None:
        self._bridge.tell_asyncio(self._wake_agent)

    def _wake_agent(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set()

    # ------------------------------------------------------------------------------------------ the link's side

    def take(self, lane: int) -> bytes | None:
        """Return the next frame of a lane; with None, ``filled`` tells when to look again."""
        return self._lanes[lane].take()

    async def filled(self) -> None:
        """Return when there may be something to take, or to do."""
        if self._filled.is_set():
            self._filled = trio.Event()
        await self._filled.wait()

    def note_empty(self) -> None:
        """Let everybody who waits for ``emptied`` look."""
        self._emptied.set()
        self._emptied = trio.Event()

    async def emptied(self) -> None:
        """Return when a lane has been emptied, or the link is down."""
        await self._emptied.wait()

    def wake_link(self) -> None:
        """Let the link look at once."""
        self._filled.set()

    def drop_all(self) -> int:
        """Throw away what waits; return how many frames that were."""
        self.note_empty()
        return sum(len(lane.clear()) for lane in self._lanes)

    @property
    def idle(self) -> bool:
        """Whether everything has been handed to the wire."""
        return not (self.writing or any(len(lane) for lane in self._lanes))

    def _tell_link(self) -> None:
        self._bridge.tell_trio(self.wake_link)


class Inbox:
    """Frames of all peers for the agent. Links wait while it is full, and so do their senders in the end."""

    def __init__(self, bridge: TrioThread, max_frames: int, max_bytes: int) -> None:
        self._bridge = bridge
        bulk_frames = min(max_frames, MAX_BULK_INBOX_FRAMES)
        self._lanes = tuple(
            Crossing[Received](frames, max_bytes, self._tell_agent, self._tell_links)
            for frames in (max_frames, bulk_frames)
        )
        self._arrived = asyncio.Event()
        self._room = trio.Event()
        self._in_a_row = 0
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    async def put(self, received: Received, lane: int) -> None:
        """From a link: hand a frame over, waiting for room."""
        size_bytes = len(received.frame)
        while not self._lanes[lane].offer(received, size_bytes):
            self._room = trio.Event() if self._room.is_set() else self._room
            await self._room.wait()

    async def get(self) -> Received:
        """For the agent: return the next frame; messages overtake chunks."""
        while True:
            if self._error is not None:
                raise self._error
            first = CONTROL if self._in_a_row < IN_A_ROW else BULK
            for lane in (first, 1 - first):
                received = self._lanes[lane].take()
                if received is not None:
                    self._in_a_row = self._in_a_row + 1 if lane == CONTROL else 0
                    return received
            self._arrived.clear()
            await self._arrived.wait()

    def close(self, error: BaseException | None = None) -> None:
        """For the agent's side: every waiting and later ``get`` raises."""
        self._error = self._error or error or TransportClosed("the transport was closed")
        self._arrived.set()
        for lane in self._lanes:
            lane.clear()

    def _tell_agent(self) -> None:
        self._bridge.tell_asyncio(self._arrived.set)

    def _tell_links(self) -> None:
        self._bridge.tell_trio(self._wake_links)

    def _wake_links(self) -> None:
        self._room.set()
