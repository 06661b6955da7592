"""Where members can be reached, kept together from what they sign, what this node was told, and the local network."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping

import trio

from gossipfl.errors import MessageError
from gossipfl.identity import Identity, PeerId
from gossipfl.transports.libp2p.addresses import Address
from gossipfl.transports.libp2p.interfaces import on_every_interface
from gossipfl.transports.libp2p.link import Link
from gossipfl.transports.libp2p.neighbour import Neighbour
from gossipfl.transports.libp2p.options import MAX_ADDRESSES, Libp2pOptions
from gossipfl.transports.libp2p.records import MIN_GAP_S, AddressBook, Record, Stranger, TooSoon

MAX_STRANGERS = 64
"""Strangers of whom a record is kept: many more than join a federation at once."""


class Directory:
    """The address book of one node, and how it spreads: each new record goes to all links but the one it came from."""

    def __init__(
        self,
        identity: Identity,
        members: Collection[PeerId],
        neighbours: Mapping[PeerId, Neighbour],
        options: Libp2pOptions,
    ) -> None:
        self._identity = identity
        self._neighbours = neighbours
        self._options = options
        self._book = AddressBook(options.addresses, {identity.peer_id, *members, *neighbours})
        self._own_addresses: list[Address] = []
        self._held_back: dict[PeerId, tuple[PeerId, bytes]] = {}
        self._strangers: dict[PeerId, tuple[PeerId, Record]] = {}

    def addresses(self, peer: PeerId) -> list[Address]:
        """Return where to try ``peer``, in this order."""
        return self._book.addresses(peer)

    def change_members(self, members: Collection[PeerId]) -> list[tuple[PeerId, bytes]]:
        """Believe these members from now on; return what others have told of new ones before, and who has.

        Members learn at different times that somebody is new: a record that came too early is not sent again.
        """
        members = {self._identity.peer_id, *members}
        self._book.change_members(members)
        early = [self._strangers.pop(peer) for peer in list(self._strangers) if peer in members]
        return [(source, record.envelope) for source, record in early]

    def sign(self, listening: Iterable[Address]) -> None:
        """Sign where this node is: what it shall announce, or else where it listens."""
        told = [Address.parse(text) for text in self._options.announce]
        self._own_addresses = (told or on_every_interface(listening))[:MAX_ADDRESSES]
        record = Record.sign(self._identity, self._own_addresses, self._options.sequence)
        self._book.take(record, trio.current_time())

    def tell_all(self, link: Link) -> None:
        """Tell the other side of a new link everything."""
        for record in self._book.records():
            link.tell_record(record.peer, record.envelope)

    def take(self, source: PeerId, envelope: bytes, nursery: trio.Nursery) -> None:
        """Keep a record that a neighbour has told, and pass it on where it is new."""
        if self._book.knows(envelope):  # it comes from every neighbour, and checking a signature takes its time
            return
        try:
            record = Record.read(envelope)
            if record.peer == self._identity.peer_id or not self._book.take(record, trio.current_time()):
                return
        except TooSoon as error:
            if not self._held_back:
                nursery.start_soon(self._take_held_back, nursery)
            self._held_back[error.peer] = source, envelope
            self._count(source, error)
        except Stranger as error:
            self._keep_for_later(source, error.record)
            self._count(source, error)
        except MessageError as error:
            self._count(source, error)
        else:
            self._spread(source, record)

    def _keep_for_later(self, source: PeerId, record: Record) -> None:
        """Keep the newest record of a stranger, who may be a member that this node has not heard of yet."""
        known = self._strangers.pop(record.peer, None)
        if known is not None and known[1].sequence >= record.sequence:
            source, record = known
        self._strangers[record.peer] = source, record
        if len(self._strangers) > MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]

    def _spread(self, source: PeerId, record: Record) -> None:
        for other in self._neighbours.values():
            if other.link is not None and other.peer not in (source, record.peer):
                other.link.tell_record(record.peer, record.envelope)
        self._wake(record.peer)

    def _wake(self, peer: PeerId) -> None:
        """Let a neighbour that has no link be tried at its new address."""
        moved = self._neighbours.get(peer)
        if moved is not None and moved.link is None:
            moved.wake()

    def _count(self, source: PeerId, error: MessageError) -> None:
        if source in self._neighbours:
            self._neighbours[source].desk.on_drop(str(error))

    async def _take_held_back(self, nursery: trio.Nursery) -> None:
        """Look again, a little later, at the newest record of whoever signs them too fast."""
        await trio.sleep(MIN_GAP_S)
        held, self._held_back = self._held_back, {}
        for source, envelope in held.values():
            self.take(source, envelope, nursery)

    def remember(self, envelopes: Iterable[bytes]) -> None:
        """Take records that were kept over a restart; one that cannot be read is left out."""
        for envelope in envelopes:
            with contextlib.suppress(MessageError):
                self._book.take(Record.read(envelope), float("-inf"))

    def records(self) -> tuple[bytes, ...]:
        """Return the newest record of every other member that is known."""
        me = self._identity.peer_id
        return tuple(record.envelope for record in self._book.records() if record.peer != me)

    def on_local_network(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Find, and be found by, sites of the local network; nothing where that is not wanted."""
        if not self._options.mdns:
            return contextlib.nullcontext()
        from gossipfl.transports.libp2p.local import on_local_network

        token = trio.lowlevel.current_trio_token()

        def found(peer: PeerId, told: list[str]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._take_hint, peer, told)

        return on_local_network(self._identity.peer_id, self._own_addresses, found)

    def _take_hint(self, peer: PeerId, told: list[str]) -> None:
        if self._book.hint(peer, told):  # of a member that may become a neighbour: the network tells of it once
            self._wake(peer)
