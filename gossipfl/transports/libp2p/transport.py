"""Frames between sites that dial each other, with py-libp2p."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from gossipfl.errors import TransportClosed, TransportError
from gossipfl.identity import Identity, public_key_of
from gossipfl.transports.base import (
    FORMER_PEER,
    LinkEvent,
    PeerId,
    Received,
    Transport,
    TransportCounters,
    check_frame,
)
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
    not sent; the latter are counted as ``link down``. Refused connections are counted by reason: that of a former peer
    as ``refused no neighbour``, or ``refused removed`` where it is no member any more.
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
        self._options = options
        self._desks = {peer: self._desk(peer) for peer in sorted(self.peers)}
        self._links: dict[PeerId, LinkState] = {}
        self._been_up: set[PeerId] = set()
        self._refused_at: dict[str, float] = {}
        self._switchboard = Switchboard(
            identity,
            {*(members or ()), *self.peers},
            self._desks,
            options,
            secrets.token_bytes(INSTANCE_BYTES),
            lambda told: self._bridge.tell_asyncio(self._note_refusal, told),
        )
        self._switchboard.directory.remember(remembered)
        self._has_thread = False
        self._closed = False
        self._running: asyncio.Task[None] | None = None

    def _desk(self, peer: PeerId) -> Desk:
        outbox = Outbox(self._bridge, self._options.outbox_frames, self._options.outbox_bytes)
        return Desk(
            outbox,
            self._inbox,
            on_sent=self.counters.count_sent,
            on_record=self._take_record,
            on_drop=lambda reason: self._bridge.tell_asyncio(self.counters.count_drop, reason),
            on_link=lambda what, detail: self._bridge.tell_asyncio(self._note_link, peer, outbox, what, detail),
        )

    # ------------------------------------------------------------------------------------------ the seam

    async def start(self) -> None:
        """Listen, and begin to dial; raises TransportUnavailable where it cannot listen."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        self._links = {peer: self._not_reached_yet() for peer in sorted(self.peers)}
        await self._bridge.start()
        self._has_thread = True
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
            desk = self._desks.get(peer)  # None where it ceased to be a peer while another one was waited for
            taken = desk is not None and await desk.outbox.put(content, lane)
            if self._closed:
                raise TransportClosed("the transport was closed")
            if not taken and peer not in self.peers:
                self.counters.count_drop(FORMER_PEER)
            sent = taken or sent
        return sent

    async def receive(self) -> Received:
        """Return the next frame."""
        while True:
            received = await self._inbox.get()
            if received.source in self.peers:
                self.counters.count_received(len(received.frame))
                return received
            self.counters.count_drop("foreign")

    async def events(self) -> LinkEvent:
        """Return the next event; the oldest are dropped when nobody asks."""
        return await self._events.get()

    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        """Dial new neighbours and close the links of former ones, who are refused from now on."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        for peer in set(peers).difference(self._desks):
            public_key_of(peer)
        self.peers = frozenset(peers)
        for peer in sorted(self._desks.keys() - self.peers):
            self._let_go(peer)
        for peer in sorted(self.peers - self._desks.keys()):
            self._desks[peer] = self._desk(peer)
            self._links[peer] = self._not_reached_yet()
        desks, members = dict(self._desks), {*members, *self.peers}
        if not self._has_thread:
            self._switchboard.change_peers(desks, members)
            return
        self._bridge.tell_trio(self._switchboard.change_peers, desks, members)  # in order, and whoever cancels this
        await self._bridge.run(self._switchboard.all_cut)
        if self._closed:
            raise TransportClosed("the transport was closed")

    def _let_go(self, peer: PeerId) -> None:
        self._desks.pop(peer).outbox.close()
        self._been_up.discard(peer)
        link = self._links.pop(peer, None)
        if link is not None and link.state == "up":
            self._events.push(LinkEvent("down", peer, "no neighbour any more"))

    async def close(self) -> None:
        """Let the neighbours read what was sent, close all links, and end the thread."""
        if self._closed:
            return
        self._closed = True
        for desk in self._desks.values():
            desk.outbox.close()
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

    # ------------------------------------------------------------------------------------------ what links tell

    def _note_link(self, peer: PeerId, outbox: Outbox, what: str, detail: str) -> None:
        if self._closed or peer not in self._desks or self._desks[peer].outbox is not outbox:
            return  # it is about a former neighbour, even where that is one again
        match what:
            case "up":
                if self._links[peer].state != "up":
                    outbox.open()
                self._set_link(peer, LinkState("up", detail, self._now(), ""))
            case "down":
                outbox.close()
                self._set_link(peer, LinkState("down", "", self._now(), detail))
            case _:
                if self._links[peer].state == "down":
                    self._links[peer] = LinkState("down", "", self._links[peer].since_s, detail)

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

    def _note_refusal(self, told: Told) -> None:
        if self._closed:
            return
        self.counters.count_refusal(told.what)
        now = self._now()
        if now >= self._refused_at.get(told.what, float("-inf")) + REFUSAL_EVENT_S:
            self._refused_at[told.what] = now
            self._events.push(LinkEvent("refused", told.peer, told.detail))

    def _not_reached_yet(self) -> LinkState:
        return LinkState("down", "", self._now(), "not reached yet")

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _watch(self) -> None:
        """See to it that an error over there is not taken for silence."""
        error = await self._bridge.ended()
        if not self._closed:
            problem = TransportError(f"the libp2p host ended: {type(error).__name__}: {error}")
            problem.__cause__ = error
            self._inbox.close(problem)
