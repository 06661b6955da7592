"""Frames between the protocol core and the wire."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable

from gossipfl.errors import TransportClosed
from gossipfl.gossip.effects import Send
from gossipfl.identity import PeerId
from gossipfl.transports.base import Transport

QUEUED_FRAMES = {False: 256, True: 64}
"""Frames that may wait, urgent and bulk (True) ones: chunks are about 1 MB each, and grants ask for no more at once."""


class Outgoing:
    """Bounded queues beside each other: status messages never wait behind chunks, and with ``peers`` given, no peer
    waits behind another one.

    Where one is full its oldest frame gives way and is counted in ``dropped``; the protocol above mends losses. A frame
    for somebody who is no peer any more is given up, and counted in ``orphaned``, once for each such recipient.
    """

    def __init__(self, peers: Iterable[PeerId] | None = None) -> None:
        self._lanes = {
            (peer, bulk): Lane(bulk) for peer in ((None,) if peers is None else sorted(peers)) for bulk in QUEUED_FRAMES
        }
        self._by_peer = peers is not None
        self._orphaned = 0
        self.dropped = 0

    @classmethod
    def for_transport(cls, transport: Transport) -> Outgoing:
        """Return the queues that suit a transport."""
        return cls(None if transport.shares_wire else transport.peers)

    def put(self, send: Send) -> None:
        """Take a frame, at once."""
        if not self._by_peer:
            self.dropped += self._lanes[None, send.bulk].put(send.recipients, send.frame)
            return
        for peer in send.recipients:
            lane = self._lanes.get((peer, send.bulk))
            if lane is None:
                self._orphaned += 1
            else:
                self.dropped += lane.put((peer,), send.frame)

    def change_peers(self, peers: Collection[PeerId]) -> tuple[list[Lane], list[Lane]]:
        """Have queues for ``peers``, and return the new ones, to be forwarded, and those of former peers, to be ended.

        To be called once the transport has these peers: until then it takes no frame for a new one. Where the wire is
        shared, so are the queues, and none is new or gone.
        """
        if not self._by_peer:
            return [], []
        wanted = [(peer, bulk) for peer in sorted(set(peers)) for bulk in QUEUED_FRAMES]
        before, self._lanes = self._lanes, {}
        for key in wanted:
            self._lanes[key] = before.get(key) or Lane(key[1])
        new = [lane for key, lane in self._lanes.items() if key not in before]
        gone = [lane for key, lane in before.items() if key not in self._lanes]
        self._orphaned += sum(lane.give_up() for lane in gone)
        return new, gone

    @property
    def orphaned(self) -> int:
        """Frames given up because their recipient is no peer any more."""
        return self._orphaned + sum(lane.orphaned for lane in self._lanes.values())

    @property
    def idle(self) -> bool:
        """Whether everything has been handed to the wire."""
        return all(lane.idle for lane in self._lanes.values())

    @property
    def lanes(self) -> list[Lane]:
        """The queues: each needs a task of its own that forwards it."""
        return list(self._lanes.values())


class Lane:
    """One queue, and how many of its frames are being handed over."""

    def __init__(self, bulk: bool) -> None:
        self.bulk = bulk
        self.frames: deque[tuple[Collection[PeerId], bytes]] = deque(maxlen=QUEUED_FRAMES[bulk])
        self.filled = asyncio.Event()
        self.sending = 0
        self.orphaned = 0

    def put(self, recipients: Collection[PeerId], frame: bytes) -> bool:
        """Append a frame; tell whether the oldest had to give way."""
        full = len(self.frames) == self.frames.maxlen
        self.frames.append((recipients, frame))
        self.filled.set()
        return full

    def give_up(self) -> int:
        """Drop what waits, and return how many frames were given up since the start for want of a recipient."""
        self.orphaned += sum(len(recipients) for recipients, _ in self.frames)
        self.frames.clear()
        return self.orphaned

    @property
    def idle(self) -> bool:
        """Whether everything has been handed to the wire."""
        return not (self.frames or self.sending)

    async def forward(self, transport: Transport, on_empty: Callable[[], None]) -> None:
        """Hand the frames to the wire until that is closed; calls ``on_empty`` whenever none is left.

        No recipient is handed over that is not a peer of the transport by then.
        """
        while True:
            while not self.frames:
                self.filled.clear()
                on_empty()
                await self.filled.wait()
            queued_for, frame = self.frames.popleft()
            recipients = [peer for peer in queued_for if peer in transport.peers]
            self.orphaned += len(queued_for) - len(recipients)
            if not recipients:
                continue
            self.sending += 1
            try:
                await transport.send(recipients, frame, bulk=self.bulk)
            except TransportClosed:
                return
            finally:
                self.sending -= 1
