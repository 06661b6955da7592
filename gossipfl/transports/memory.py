"""Frames between transports of one process: the testbed's wire in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from gossipfl.errors import TransportClosed, TransportUnavailable
from gossipfl.transports.base import (
    FORMER_PEER,
    LinkEvent,
    PeerId,
    Received,
    Transport,
    TransportCounters,
    check_frame,
)
from gossipfl.transports.mailbox import Mailbox

INBOX_FRAMES = 1024
"""Frames that wait in one inbox before its senders have to wait."""

INBOX_BYTES = 64 << 20
"""Bytes that wait in one inbox before its senders have to wait."""

_EVENTS = 16


class MemoryNetwork:
    """The air between the memory transports of one event loop: it knows who is there, and nothing else."""

    def __init__(self) -> None:
        self._present: dict[PeerId, MemoryTransport] = {}

    def join(self, transport: MemoryTransport) -> None:
        """Make ``transport`` reachable; raises TransportUnavailable when its id is taken."""
        if transport.me in self._present:
            raise TransportUnavailable(
                f"peer {transport.me} is already on this memory network; give each transport an id of its own"
            )
        self._present[transport.me] = transport

    def leave(self, transport: MemoryTransport) -> None:
        """Make ``transport`` unreachable."""
        if self._present.get(transport.me) is transport:
            del self._present[transport.me]

    def find(self, peer: PeerId) -> MemoryTransport | None:
        """Return the transport that ``peer`` has started, if any."""
        return self._present.get(peer)


class MemoryTransport(Transport):
    """One endpoint of a ``MemoryNetwork``; it loses nothing, except what is sent to a peer that is not there.

    Frames reach every inbox in the order in which they were sent, with no delay: loss and latency are
    ``FaultyTransport``'s business. ``send`` waits while a recipient's inbox holds ``inbox_frames`` frames or
    ``inbox_bytes`` bytes, so nothing is dropped for want of room.
    """

    def __init__(
        self,
        network: MemoryNetwork,
        me: PeerId,
        peers: Collection[PeerId],
        *,
        inbox_frames: int = INBOX_FRAMES,
        inbox_bytes: int = INBOX_BYTES,
    ) -> None:
        self.me = me
        self.peers = frozenset(peers)
        self.counters = TransportCounters()
        self._network = network
        self.inbox: Mailbox[Received] = Mailbox(inbox_frames, inbox_bytes)
        self._events: Mailbox[LinkEvent] = Mailbox(_EVENTS)
        self._waits_for: Counter[Mailbox[Received]] = Counter()
        self._closed = False

    async def start(self) -> None:
        """Join the network; raises TransportUnavailable when ``me`` is there already."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        self._network.join(self)
        self._events.push(LinkEvent("up", None, "memory"))

    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        """Put one copy of ``frame`` into the inbox of each recipient that is on the network."""
        check_frame(frame, recipients, self.peers)
        if self._closed:
            raise TransportClosed("the transport was closed")
        if self._network.find(self.me) is not self:
            return False
        content = bytes(frame)  # no copy when it is bytes already; else the caller may reuse its buffer
        received = Received(self.me, content)
        for peer in sorted(recipients):  # a set's order changes from process to process
            await self._deliver(peer, received, len(content))
        return True

    async def _deliver(self, peer: PeerId, received: Received, size_bytes: int) -> None:
        while True:  # who is there, and whose peer, may have changed while this frame waited for room
            target = self._network.find(peer)
            if peer not in self.peers:
                self.counters.count_drop(FORMER_PEER)
            elif target is None:
                self.counters.count_drop("absent")
            elif self.me not in target.peers:
                target.counters.count_drop("foreign")
            elif target.inbox.offer(received, size_bytes):
                self.counters.count_sent(size_bytes)
            else:
                await self._room_in(target.inbox)
                continue
            return

    async def _room_in(self, inbox: Mailbox[Received]) -> None:
        self._waits_for[inbox] += 1
        try:
            await inbox.room()
        finally:
            self._waits_for[inbox] -= 1
        if self._closed:
            raise TransportClosed("the transport was closed")

    async def receive(self) -> Received:
        """Return the next frame of any peer."""
        while True:
            received = await self.inbox.get()
            if received.source in self.peers:
                self.counters.count_received(len(received.frame))
                return received
            self.counters.count_drop("foreign")

    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        """Have other peers, at once; a sender that waits for room looks again whether it may still send."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        self.peers = frozenset(peers)
        self.inbox.wake()
        self._wake_own_senders()

    def _wake_own_senders(self) -> None:
        for inbox in self._waits_for:
            inbox.wake()

    async def events(self) -> LinkEvent:
        """Return the next link event: ``up`` once, after ``start``."""
        return await self._events.get()

    async def close(self) -> None:
        """Leave the network; whoever waits in this transport, or for room in its inbox, goes on."""
        self._closed = True
        self._wake_own_senders()
        self._network.leave(self)
        self.inbox.close()
        self._events.close()
