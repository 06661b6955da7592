"""Address records and the address book: nobody speaks for another, and nothing grows without bound."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair as new_ed25519
from libp2p.crypto.keys import PrivateKey
from libp2p.crypto.rsa import create_new_key_pair as new_rsa
from libp2p.crypto.secp256k1 import create_new_key_pair as new_secp256k1
from libp2p.peer.envelope import ENVELOPE_DOMAIN, Envelope, consume_envelope, make_unsigned, seal_record
from libp2p.peer.peer_record import PeerRecord
from libp2p_pairs import ANN, BOB, CID, identity_of
from multiaddr import Multiaddr

from gossipfl.errors import ConfigError, MessageError
from gossipfl.identity import Identity
from gossipfl.transports.libp2p.addresses import Address
from gossipfl.transports.libp2p.host import SiteKey
from gossipfl.transports.libp2p.options import MAX_ADDRESSES
from gossipfl.transports.libp2p.records import MAX_HINTS, MIN_GAP_S, AddressBook, Record
from gossipfl.transports.libp2p.wire import MAX_RECORD_BYTES

HOME, AWAY = Address("ip4", "192.0.2.1", 4001), Address("dns4", "ann.example.org", 443)
SIX = Address("ip6", "2001:db8::1", 4001)
MEMBERS = {ANN.peer_id, BOB.peer_id}


def sealed(identity: Identity, told: list[str], sequence: int = 1, signer: PrivateKey | None = None) -> bytes:
    """Return an envelope that says of ``identity`` whatever it is told to."""
    record = PeerRecord(identity_of(identity.peer_id), [Multiaddr(text) for text in told], sequence)
    return seal_record(record, signer or SiteKey(identity)).marshal_envelope()


def record(sequence: int, *addresses: Address, identity: Identity = ANN) -> Record:
    return Record.sign(identity, addresses, sequence)


# ---------------------------------------------------------------------------------------------------- records


@given(st.lists(st.sampled_from([HOME, AWAY, SIX]), unique=True), st.integers(0, (1 << 64) - 1))
@settings(max_examples=50)
def test_a_record_is_read_as_it_was_signed(addresses: list[Address], sequence: int) -> None:
    signed = Record.sign(ANN, addresses, sequence)
    assert signed == Record(ANN.peer_id, sequence, tuple(addresses), signed.envelope)
    assert Record.read(signed.envelope) == signed


def test_the_library_reads_a_record() -> None:
    envelope, found = consume_envelope(record(7, HOME, AWAY).envelope, ENVELOPE_DOMAIN)
    assert envelope.public_key.to_bytes() == ANN.public_key
    assert str(found.peer_id) == ANN.peer_id
    assert found.seq == 7
    assert list(map(str, found.addrs)) == [str(HOME), str(AWAY)]


def test_a_record_of_the_library_is_read() -> None:
    pair = new_ed25519(b"s" * 32)
    identity = Identity.from_seed(b"s" * 32)
    envelope = sealed(identity, [str(HOME)], 3, pair.private_key)
    assert Record.read(envelope) == Record(identity.peer_id, 3, (HOME,), envelope)


@given(st.data())
@settings(max_examples=300)
def test_an_altered_byte_is_noticed(data: st.DataObject) -> None:
    envelope = bytearray(record(5, HOME, AWAY).envelope)
    envelope[data.draw(st.integers(0, len(envelope) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(MessageError):
        Record.read(bytes(envelope))


@given(st.data())
def test_a_record_that_is_cut_short_is_noticed(data: st.DataObject) -> None:
    envelope = record(5, HOME).envelope
    with pytest.raises(MessageError):
        Record.read(envelope[: data.draw(st.integers(0, len(envelope) - 1))])


@given(st.binary(max_size=400))
def test_any_bytes_are_refused(envelope: bytes) -> None:
    with pytest.raises(MessageError):
        Record.read(envelope)


@given(st.binary(max_size=200), st.binary(max_size=4))
def test_any_bytes_that_are_well_signed_are_read_or_refused(payload: bytes, kind: bytes) -> None:
    key = SiteKey(ANN)
    for payload_type in (kind, b"\x03\x01"):
        signature = key.sign(make_unsigned(ENVELOPE_DOMAIN, payload_type, payload))
        envelope = Envelope(key.get_public_key(), payload_type, payload, signature).marshal_envelope()
        with contextlib.suppress(MessageError):
            assert Record.read(envelope).peer == ANN.peer_id


def test_nobody_signs_for_another() -> None:
    with pytest.raises(MessageError, match="not signed by its own peer"):
        Record.read(sealed(ANN, [str(HOME)], signer=SiteKey(BOB)))


@pytest.mark.parametrize("make", [new_secp256k1, lambda: new_rsa(2048)], ids=["secp256k1", "rsa"])
def test_another_kind_of_key_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(MessageError):
        Record.read(sealed(ANN, [str(HOME)], signer=make().private_key))


def test_a_record_for_another_purpose_is_refused() -> None:
    key, payload = SiteKey(ANN), PeerRecord(identity_of(ANN.peer_id), [Multiaddr(str(HOME))], 1).marshal_record()
    signature = key.sign(make_unsigned("something-else", b"\x03\x01", payload))
    with pytest.raises(MessageError):
        Record.read(Envelope(key.get_public_key(), b"\x03\x01", payload, signature).marshal_envelope())


def test_an_oversized_record_is_refused_unread() -> None:
    many = [f"/ip4/192.0.2.{n % 250}/tcp/{1000 + n}" for n in range(1000)]
    assert len(sealed(ANN, many)) > MAX_RECORD_BYTES
    with pytest.raises(MessageError, match="oversized"):
        Record.read(sealed(ANN, many))
    with pytest.raises(MessageError, match="oversized"):
        Record.read(bytes(MAX_RECORD_BYTES + 1))


def test_addresses_that_cannot_be_dialled_are_left_out() -> None:
    told = [
        "/ip4/192.0.2.9/udp/4001",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/192.0.2.9/tcp/0",
        f"/ip4/192.0.2.9/tcp/4001/p2p/{BOB.peer_id}",
        "/ip4/192.0.2.9/tcp/4001/ws",
        f"{HOME}/p2p/{ANN.peer_id}",
        "/unix/tmp",
        str(AWAY),
    ]
    assert Record.read(sealed(ANN, told)).addresses == (HOME, AWAY)


def test_of_many_addresses_the_first_few_are_kept() -> None:
    told = [f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, 4 * MAX_ADDRESSES)]
    assert list(map(str, Record.read(sealed(ANN, told)).addresses)) == told[:MAX_ADDRESSES]


# ---------------------------------------------------------------------------------------------------- the book


def numbered(*numbers: int) -> list[Address]:
    return [Address("ip4", "192.0.2.1", 5000 + number) for number in numbers]


def written(addresses: list[Address]) -> list[str]:
    return list(map(str, addresses))


def test_what_a_peer_signed_comes_before_what_this_node_was_told_and_hints_come_last() -> None:
    one, two, three, four, five = numbered(1, 2, 3, 4, 5)
    book = AddressBook({ANN.peer_id: written([two, three])}, MEMBERS)
    assert book.addresses(ANN.peer_id) == [two, three]
    assert book.hint(ANN.peer_id, written([five, two]))
    assert book.addresses(ANN.peer_id) == [two, three, five]
    assert book.take(record(1, one, three), 0.0)
    assert book.addresses(ANN.peer_id) == [one, three, two, five]
    assert book.take(record(2, four), 10.0)
    assert book.addresses(ANN.peer_id) == [four, two, three, five]
    assert book.addresses(BOB.peer_id) == book.addresses(CID.peer_id) == []


def test_only_the_newest_record_is_kept() -> None:
    book = AddressBook({}, MEMBERS)
    assert book.take(record(5, HOME), 0.0)
    for older in (5, 4, 0):
        assert not book.take(record(older, AWAY), 100.0)
    assert book.addresses(ANN.peer_id) == [HOME]
    assert book.take(record(6, AWAY), 100.0)
    assert book.addresses(ANN.peer_id) == [AWAY]
    assert book.take(record(1, SIX, identity=BOB), 100.0)
    assert [(each.peer, each.sequence) for each in book.records()] == [(ANN.peer_id, 6), (BOB.peer_id, 1)]


def test_records_of_one_peer_that_come_too_often_are_refused_and_those_of_others_are_not() -> None:
    book = AddressBook({}, MEMBERS)
    assert book.take(record(1, HOME), 0.0)
    for now in (0.0, MIN_GAP_S / 2):
        with pytest.raises(MessageError, match="too often"):
            book.take(record(2, AWAY), now)
    assert not book.take(record(1, HOME), MIN_GAP_S / 2)  # nothing new is nothing to complain of
    assert book.take(record(1, HOME, identity=BOB), MIN_GAP_S / 2)
    assert book.addresses(ANN.peer_id) == [HOME]
    assert book.take(record(2, AWAY), MIN_GAP_S)


def test_records_that_were_kept_over_a_restart_do_not_count_as_often() -> None:
    book = AddressBook({}, MEMBERS)
    for sequence in (1, 2):
        assert book.take(record(sequence, HOME), float("-inf"))
    assert book.take(record(3, AWAY), 0.0)


def test_a_record_of_a_stranger_is_refused() -> None:
    book = AddressBook({}, MEMBERS)
    with pytest.raises(MessageError, match="of a stranger"):
        book.take(record(1, HOME, identity=CID), 0.0)
    assert book.records() == []


def test_hints_are_bounded_and_the_newest_come_first() -> None:
    book = AddressBook({ANN.peer_id: [str(HOME)]}, MEMBERS)
    for number in range(10 * MAX_HINTS):
        assert book.hint(ANN.peer_id, written(numbered(number)))
        assert len(book.addresses(ANN.peer_id)) <= 1 + MAX_HINTS
    last = 10 * MAX_HINTS - 1
    assert book.addresses(ANN.peer_id) == [HOME, *numbered(*range(last, last - MAX_HINTS, -1))]
    assert book.hint(ANN.peer_id, written(numbered(*range(100, 200))))
    assert len(book.addresses(ANN.peer_id)) == 1 + MAX_HINTS


def test_a_hint_is_news_once_and_only_of_a_member_and_only_where_it_can_be_dialled() -> None:
    book = AddressBook({ANN.peer_id: [str(HOME)]}, MEMBERS)
    assert not book.hint(ANN.peer_id, [str(HOME)])
    assert book.hint(ANN.peer_id, [str(AWAY)])
    assert not book.hint(ANN.peer_id, [str(AWAY), str(HOME)])
    assert not book.hint(CID.peer_id, [str(SIX)])
    assert book.addresses(CID.peer_id) == []
    assert not book.hint(ANN.peer_id, ["", "nonsense", "/ip4/0.0.0.0/tcp/1", f"{SIX}/p2p/{BOB.peer_id}"])
    assert book.hint(ANN.peer_id, [f"{SIX}/p2p/{ANN.peer_id}"])
    assert book.addresses(ANN.peer_id) == [HOME, SIX, AWAY]


def test_a_member_that_was_removed_is_forgotten() -> None:
    book = AddressBook({}, MEMBERS)
    assert book.take(record(1, HOME), 0.0)
    assert book.hint(ANN.peer_id, [str(AWAY)])
    for _ in range(2):
        book.change_members(set(MEMBERS) - {ANN.peer_id})
        assert book.addresses(ANN.peer_id) == []
        assert book.records() == []
    assert not book.hint(ANN.peer_id, [str(AWAY)])
    with pytest.raises(MessageError, match="of a stranger"):
        book.take(record(2, HOME), 100.0)
    assert book.take(record(1, HOME, identity=BOB), 0.0)


def test_an_address_that_was_told_wrongly_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="port 0"):
        AddressBook({ANN.peer_id: ["/ip4/192.0.2.1/tcp/0"]}, MEMBERS)


@given(st.integers(0, 1 << 32))
@settings(max_examples=30)
def test_whatever_order_records_come_in_the_newest_remains(seed: int) -> None:
    choice = random.Random(seed)
    book, newest = AddressBook({}, MEMBERS), -1
    for now in range(20):
        sequence = choice.randrange(30)
        assert book.take(record(sequence, *numbered(sequence)), float(now)) == (sequence > newest)
        newest = max(newest, sequence)
        assert book.addresses(ANN.peer_id) == numbered(newest)
