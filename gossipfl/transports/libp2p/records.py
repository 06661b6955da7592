"""Where peers can be reached: what this node was told, and what they sign about themselves.

A record is libp2p's own (RFC 0002 and 0003): addresses and a sequence number, in an envelope signed by the site's key.
Each node passes on what is newer than what it knew, so that a site that has moved is found by everybody who can still
reach anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from libp2p.peer.envelope import ENVELOPE_DOMAIN, consume_envelope, seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from multiaddr import Multiaddr

from gossipfl.errors import ConfigError, MessageError
from gossipfl.identity import Identity, PeerId, peer_id_of
from gossipfl.transports.libp2p.addresses import Address, dialable
from gossipfl.transports.libp2p.host import SiteKey
from gossipfl.transports.libp2p.options import MAX_ADDRESSES
from gossipfl.transports.libp2p.wire import MAX_RECORD_BYTES

MIN_GAP_S = 1.0
"""Shortest time between two records of one peer that are passed on: a member cannot flood the others with them."""

MAX_HINTS = 4


class TooSoon(MessageError):
    """A newer record of a peer whose last one has only just been taken."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__("record", "too often")
        self.peer = peer


class Stranger(MessageError):
    """A record of somebody who is no member, or not yet."""

    def __init__(self, record: Record) -> None:
        super().__init__("record", "of a stranger")
        self.record = record


@dataclass(frozen=True, slots=True)
class Record:
    """What a site has signed about itself; ``envelope`` is that in its wire form."""

    peer: PeerId
    sequence: int
    addresses: tuple[Address, ...]
    envelope: bytes

    @classmethod
    def sign(cls, identity: Identity, addresses: Collection[Address], sequence: int) -> Self:
        """Sign a record of one's own."""
        record = PeerRecord(ID.from_base58(identity.peer_id), [Multiaddr(str(one)) for one in addresses], sequence)
        envelope = seal_record(record, SiteKey(identity)).marshal_envelope()
        return cls(identity.peer_id, sequence, tuple(addresses), envelope)

    @classmethod
    def read(cls, envelope: bytes) -> Self:
        """Read and verify a record; raises MessageError. Addresses that cannot be dialled are left out."""
        if len(envelope) > MAX_RECORD_BYTES:
            raise MessageError("record", "oversized")
        try:
            sealed, record = consume_envelope(envelope, ENVELOPE_DOMAIN)
            peer = peer_id_of(sealed.public_key.to_bytes())
            told = [str(address) for address in record.addrs]
            claimed = str(record.peer_id)
            sequence = int(record.seq)
        except Exception as error:  # noqa: BLE001 - protobuf, multiaddr and nacl each raise their own
            raise MessageError("record", type(error).__name__) from None
        if claimed != peer:
            raise MessageError("record", "not signed by its own peer")
        return cls(peer, sequence, tuple(_dialable(told, peer)), envelope)


def _dialable(told: Iterable[str], peer: PeerId) -> list[Address]:
    found = []
    for text in told:
        try:
            found.append(dialable(text, peer))
        except ConfigError:
            continue
    return found[:MAX_ADDRESSES]


class AddressBook:
    """All that is known of where members are: static addresses, the newest record of each, and hints of the network.

    A hint (mDNS) is not signed and is believed no further than to try it: whoever answers has to prove who it is.
    """

    def __init__(self, static: Mapping[PeerId, Collection[str]], members: Collection[PeerId]) -> None:
        self._static = {peer: [dialable(text, peer) for text in told] for peer, told in static.items()}
        self._members = frozenset(members)
        self._records: dict[PeerId, Record] = {}
        self._envelopes: set[bytes] = set()
        self._taken_at: dict[PeerId, float] = {}
        self._hints: dict[PeerId, list[Address]] = {}

    def addresses(self, peer: PeerId) -> list[Address]:
        """Return where to try ``peer``, the most credible first: what it signed, what this node was told, hints."""
        record = self._records.get(peer)
        known = [*(record.addresses if record else ()), *self._static.get(peer, ()), *self._hints.get(peer, ())]
        return list(dict.fromkeys(known))

    def take(self, record: Record, now: float) -> bool:
        """Keep a record that is newer than the one known; tell whether it was. MessageError for one to be refused."""
        if record.peer not in self._members:
            raise Stranger(record)
        known = self._records.get(record.peer)
        if known is not None and known.sequence >= record.sequence:
            return False
        if known is not None and now < self._taken_at.get(record.peer, float("-inf")) + MIN_GAP_S:
            raise TooSoon(record.peer)
        self._records[record.peer] = record
        self._envelopes.add(record.envelope)
        if known is not None:
            self._envelopes.discard(known.envelope)
        self._taken_at[record.peer] = now
        return True

    def knows(self, envelope: bytes) -> bool:
        """Tell whether these very bytes are the newest record of somebody."""
        return envelope in self._envelopes

    def hint(self, peer: PeerId, told: Iterable[str]) -> bool:
        """Note addresses that somebody on the local network says ``peer`` has; tell whether any is new."""
        hints = self._hints.get(peer, [])
        new = [address for address in _dialable(told, peer) if address not in self.addresses(peer)]
        if peer in self._members and new:
            self._hints[peer] = [*new, *hints][:MAX_HINTS]
            return True
        return False

    def change_members(self, members: Collection[PeerId]) -> None:
        """Believe these members from now on, and forget what was known of anybody else."""
        self._members = frozenset(members)
        self._records = {peer: record for peer, record in self._records.items() if peer in self._members}
        self._envelopes = {record.envelope for record in self._records.values()}
        self._hints = {peer: hints for peer, hints in self._hints.items() if peer in self._members}

    def records(self) -> list[Record]:
        """Return the newest record of every member that has one."""
        return list(self._records.values())
