"""Frames between sites that dial each other, with py-libp2p."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from gossipfl.errors import TransportClosed, TransportError
from gossipfl.identity import Identity
from gossipfl.transports.base import LinkEvent, PeerId, Received, Transport, TransportCounters, check_frame
from gossipfl.transports.libp2p.admission import Told
from gossipfl.transports.libp2p.bridge import TrioThread
from gossipfl.transports.libp2p.library import check_library
from gossipfl.transports.libp2p.link import Desk
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.queues import Inbox, Outbox
from gossipfl.transports.libp2p.switchboard import Switchboard
from gossipfl.transports.libp2p.wire import BULK, CONTROL, INSTANCE_BYTES
from gossipfl.transports.mailbox import Mailbox

_EVENTS = 256
REFUSAL_EVENT_S = 10.0
"""Shortest time between two events of one kind of refusal: whoever knocks all day fills no event log."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """How the link to one peer stands: since when (the event loop's time), and at which address, or why not."""

    state: Literal["up", "down"]
    address: str
    since_s: float
    detail: str


class Libp2pTransport(Transport):
    """One site that listens, and dials its peers; see ``Libp2pOptions`` for what to set.

    ``members`` are all who may be known; only ``peers``, the neighbours, may connect. ``remembered`` are address
    records from an earlier start. A frame for several peers is sent to each of them. Nothing is dropped for want of
    room: a full inbox holds back its senders. Frames for a peer whose link is down, or goes down while they wait, are
    not sent; the latter are counted as ``link down``. Refused connections are counted by reason.
    """

    shares_wire = False

    def __init__(
        self,
        identity: Identity,
        peers: Collection[PeerId],
        options: Libp2pOptions,
        *,
        members: Collection[PeerId] | None = None,
        remembered: Iterable[bytes] = (),
    ) -> None:
        check_library()
        self.me = identity.peer_id
        self.peers = frozenset(peers)
        self.counters = TransportCounters()
        self.listening: tuple[str, ...] = ()
        self._bridge = TrioThread(f"libp2p[{self.me[-6:]}]")
        self._inbox = Inbox(self._bridge, options.inbox_frames, options.inbox_bytes)
        self._events: Mailbox[LinkEvent] = Mailbox(_EVENTS)
        self._outboxes = {
            peer: Outbox(self._bridge, options.outbox_frames, options.outbox_bytes) for peer in sorted(self.peers)
        }
        self._links: dict[PeerId, LinkState] = {}
        self._been_up: set[PeerId] = set()
        self._refused_at: dict[str, float] = {}
        self._switchboard = Switchboard(
            identity,
            {*(members or ()), *self.peers},
            {peer: self._desk(outbox) for peer, outbox in self._outboxes.items()},
            options,
            secrets.token_bytes(INSTANCE_BYTES),
            lambda told: self._bridge.tell_asyncio(self._take_note, told),
        )
        self._switchboard.directory.remember(remembered)
        self._closed = False
        self._running: asyncio.Task[None] | None = None

    def _desk(self, outbox: Outbox) -> Desk:
        return Desk(
            outbox,
            self._inbox,
            on_sent=self.counters.count_sent,
            on_record=self._take_record,
            on_drop=lambda reason: self._bridge.tell_asyncio(self.counters.count_drop, reason),
        )

    # ------------------------------------------------------------------------------------------ the seam

    async def start(self) -> None:
        """Listen, and begin to dial; raises TransportUnavailable where it cannot listen."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        now = asyncio.get_running_loop().time()
        self._links = {peer: LinkState("down", "", now, "not reached yet") for peer in sorted(self.peers)}
        await self._bridge.start()
        self.listening = await self._bridge.start_task(self._switchboard.run)
        self._running = asyncio.create_task(self._watch(), name=f"libp2p[{self.me}].watch")

    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        """Hand ``frame`` to the link of each recipient, waiting for room; False where none of them took it."""
        check_frame(frame, recipients, self.peers)
        if self._closed:
            raise TransportClosed("the transport was closed")
        content = bytes(frame)
        lane = BULK if bulk else CONTROL
        sent = not recipients
        for peer in sorted(recipients):
            sent = await self._outboxes[peer].put(content, lane) or sent
            if self._closed:
                raise TransportClosed("the transport was closed")
        return sent

    async def receive(self) -> Received:
        """Return the next frame."""
        received = await self._inbox.get()
        self.counters.count_received(len(received.frame))
        return received

    async def events(self) -> LinkEvent:
        """Return the next event; the oldest are dropped when nobody asks."""
        return await self._events.get()

    async def close(self) -> None:
        """Let the neighbours read what was sent, close all links, and end the thread."""
        if self._closed:
            return
        self._closed = True
        for outbox in self._outboxes.values():
            outbox.close()
        self._inbox.close()
        self._events.close()
        try:
            if self._running is not None and not self._running.done():
                await self._bridge.run(self._switchboard.settle)
                await self._bridge.run(self._switchboard.stop)
        finally:
            await self._bridge.close()
            if self._running is not None:
                await asyncio.wait([self._running])

    # ------------------------------------------------------------------------------------------ what else is known

    def links(self) -> dict[PeerId, LinkState]:
        """Return how the link to each peer stands."""
        return dict(self._links)

    def address_records(self) -> tuple[bytes, ...]:
        """Return the newest signed address record of every other member known, to be kept over a restart."""
        return self._switchboard.directory.records()

    async def remove(self, peer: PeerId) -> None:
        """Cut off a member that was removed: its link is closed, and it is refused from now on."""
        await self._bridge.run(self._switchboard.remove, peer)

    # ------------------------------------------------------------------------------------------ what links tell

    def _take_note(self, told: Told) -> None:
        if self._closed:
            return
        match told.what, told.peer:
            case "up", str(peer):
                if self._links[peer].state != "up":
                    self._outboxes[peer].open()
                self._set_link(peer, LinkState("up", told.detail, self._now(), ""))
            case "down", str(peer):
                self._outboxes[peer].close()
                self._set_link(peer, LinkState("down", "", self._now(), told.detail))
            case "unreachable", str(peer):
                if self._links[peer].state == "down":
                    self._links[peer] = LinkState("down", "", self._links[peer].since_s, told.detail)
            case reason, peer:
                self._note_refusal(reason, peer, told.detail)

    def _take_record(self, source: PeerId, envelope: bytes) -> None:
        self._switchboard.take_record(source, envelope)

    def _set_link(self, peer: PeerId, link: LinkState) -> None:
        before, self._links[peer] = self._links[peer], link
        if link.state == "up" and before.state == "down" and peer in self._been_up:
            self.counters.reconnects += 1
        if link.state == "up":
            self._been_up.add(peer)
        if link.state != before.state:
            self._events.push(LinkEvent(link.state, peer, link.address or link.detail))

    def _note_refusal(self, reason: str, peer: PeerId | None, detail: str) -> None:
        self.counters.count_refusal(reason)
        now = self._now()
        if now >= self._refused_at.get(reason, float("-inf")) + REFUSAL_EVENT_S:
            self._refused_at[reason] = now
            self._events.push(LinkEvent("refused", peer, detail))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        """See to it that an error over there is not taken for silence."""
        error = await self._bridge.ended()
        if not self._closed:
            problem = TransportError(f"the libp2p host ended: {type(error).__name__}: {error}")
            problem.__cause__ = error
            self._inbox.close(problem)
