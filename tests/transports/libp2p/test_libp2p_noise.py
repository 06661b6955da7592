"""Noise sessions against py-libp2p's own: the same bytes, whole or not at all, and nobody but who is admitted."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import Transport as LibraryNoise
from libp2p_pairs import (
    ANN,
    BOB,
    CID,
    Ends,
    Secured,
    identity_of,
    in_memory,
    key_pair,
    library_noise,
    member_noise,
    run_trio,
    secured,
    shake_hands,
)

from gossipfl.identity import PeerId
from gossipfl.transports.libp2p.noise import MAX_PLAIN_BYTES, MemberSession, NotAdmitted

SIZES = [0, 1, 2, 15, 16, 17, 1000, 65518, 65519, 65520, 65535, 65536, 2 * 65519, 2 * 65519 + 1, 200_000]
SIDES = pytest.mark.parametrize("we_dial", [True, False], ids=["we dial", "they dial"])


def content(size: int, salt: int = 0) -> bytes:
    """Return bytes in which no two places look alike."""
    words = itertools.islice(itertools.count(salt), -(-size // 4))
    return b"".join(word.to_bytes(4, "big") for word in words)[:size]


def test_one_packet_holds_what_the_specification_says() -> None:
    assert MAX_PLAIN_BYTES == 65519


@SIDES
@pytest.mark.parametrize("size", SIZES)
def test_the_library_reads_what_is_written(size: int, we_dial: bool) -> None:
    async def main() -> None:
        async with secured(we_dial=we_dial) as pair:
            sent = content(size)
            await pair.ours.write(sent)
            await pair.ours.write(b"the end")
            assert await pair.theirs.read(size) == sent
            assert await pair.theirs.read(7) == b"the end"

    run_trio(main)


@SIDES
@pytest.mark.parametrize("size", SIZES)
def test_what_the_library_writes_is_read(size: int, we_dial: bool) -> None:
    async def main() -> None:
        async with secured(we_dial=we_dial) as pair:
            sent = content(size)
            await pair.theirs.write(sent)
            await pair.theirs.write(b"the end")
            assert await pair.ours.read(size) == sent
            assert await pair.ours.read(7) == b"the end"
            assert pair.ours.leftover() == b""

    run_trio(main)


def test_both_directions_at_once() -> None:
    async def main() -> None:
        async with secured() as pair:

            async def write_ours() -> None:
                for number in range(20):
                    await pair.ours.write(content(30_000, number))

            async def write_theirs() -> None:
                for number in range(20):
                    await pair.theirs.write(content(20_000, number))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_ours)
                nursery.start_soon(write_theirs)
                for number in range(20):
                    assert await pair.theirs.read(30_000) == content(30_000, number)
                    assert await pair.ours.read(20_000) == content(20_000, number)

    run_trio(main)


@given(st.lists(st.one_of(st.integers(0, 100), st.integers(65_000, 66_000)), max_size=12), st.booleans())
@settings(max_examples=40)
def test_many_parts_are_one_plaintext(sizes: list[int], views: bool) -> None:
    whole = content(sum(sizes))
    ends = list(itertools.accumulate(sizes, initial=0))
    parts = [whole[begin:end] for begin, end in itertools.pairwise(ends)]

    async def main() -> None:
        async with secured() as pair:
            await pair.ours.write_parts([memoryview(part) for part in parts] if views else parts)
            await pair.ours.write(b".")
            assert await pair.theirs.read(len(whole) + 1) == whole + b"."

    run_trio(main)


def test_read_returns_exactly_what_was_asked_for_and_leftover_the_rest() -> None:
    async def main() -> None:
        async with secured() as pair:
            await pair.theirs.write(b"0123456789")
            assert await pair.ours.read(3) == b"012"
            assert await pair.ours.read(0) == b""
            assert await pair.ours.read(4) == b"3456"
            assert pair.ours.leftover() == b"789"
            assert pair.ours.leftover() == b""
            await pair.theirs.write(b"")
            await pair.theirs.write(b"ab")
            assert await pair.ours.read() == b"ab"
            await pair.theirs.write(b"cd")
            await pair.theirs.close()
            assert await pair.ours.read(5) == b"cd"
            with pytest.raises(ConnectionClosedError):
                await pair.ours.read(1)

    run_trio(main)


@given(st.lists(st.integers(0, 70_000), min_size=1, max_size=4), st.data())
@settings(max_examples=40)
def test_packets_in_pieces_give_the_same_plaintext(sizes: list[int], data: st.DataObject) -> None:
    """A read of the socket ends anywhere: within a length, within a tag, several packets further on."""
    sent = [content(size, number) for number, size in enumerate(sizes)]
    pieces = data.draw(st.lists(st.one_of(st.integers(1, 40), st.integers(1, 200_000)), max_size=60))

    async def main() -> None:
        async with secured() as pair:
            pair.our_pipe.read_sizes = pieces
            for plain in sent:
                await pair.theirs.write(plain)
            await pair.theirs.close()
            blocks = await every_block(pair.ours)
            assert b"".join(blocks) == b"".join(sent)
            assert all(len(block) <= MAX_PLAIN_BYTES for block in blocks)

    run_trio(main)


async def until_closed(session: MemberSession) -> bytes:
    """Return what can be read before a read says that the connection is closed."""
    found = b""
    try:
        while True:
            found += await session.read(1)
    except ConnectionClosedError:
        return found


async def every_block(session: MemberSession) -> list[bytes]:
    found: list[bytes] = []
    while blocks := await session.read_blocks():
        found += blocks
    return found


@given(st.integers(0, 3 * 120 - 1), st.integers(1, 255), st.lists(st.integers(1, 200), max_size=8))
@example(position=0, flip=1, pieces=[])  # a length that is 256 more than it was
@example(position=1, flip=0x6F, pieces=[])  # a length of nearly nothing
@settings(max_examples=100)
def test_an_altered_byte_ends_the_session(position: int, flip: int, pieces: list[int]) -> None:
    """Three packets of 102 bytes each; what came before the altered one may be read, and nothing else."""
    sent = [content(102, salt) for salt in (0, 1000, 2000)]

    async def main() -> None:
        async with secured() as pair:
            written = bytearray()
            pair.their_pipe.on_write = keep(written)
            for plain in sent:
                await pair.theirs.write(plain)
            assert len(written) == 3 * 120
            written[position] ^= flip
            pair.their_pipe.on_write = bytes
            pair.our_pipe.read_sizes = list(pieces)
            await pair.their_pipe.write(bytes(written))
            await pair.their_pipe.close()
            found = await until_closed(pair.ours)
            assert b"".join(sent[: position // 120]).startswith(found)

    run_trio(main)


def keep(written: bytearray) -> Callable[[bytes], bytes]:
    """Return what takes note of the bytes that are written, and sends none."""

    def on_write(data: bytes) -> bytes:
        written.extend(data)
        return b""

    return on_write


async def packets_of(pair: Secured, *plains: bytes) -> list[bytes]:
    """Return what the library seals, none of it sent."""
    written = bytearray()
    pair.their_pipe.on_write = keep(written)
    packets = []
    for plain in plains:
        await pair.theirs.write(plain)
        packets.append(bytes(written))
        written.clear()
    pair.their_pipe.on_write = bytes
    return packets


@pytest.mark.parametrize("order", [[1], [0, 0], [1, 0], [0, 2]], ids=["lost", "again", "swapped", "left out"])
def test_a_packet_out_of_its_turn_ends_the_session(order: list[int]) -> None:
    async def main() -> None:
        async with secured() as pair:
            packets = await packets_of(pair, b"first", b"second", b"third")
            for number in order:
                await pair.their_pipe.write(packets[number])
            await pair.their_pipe.close()
            found = await until_closed(pair.ours)
            assert b"first".startswith(found)

    run_trio(main)


@pytest.mark.parametrize("body", [b"", b"\0" * 15, b"\0" * 16, b"\xff" * 65535])
def test_a_packet_that_nobody_sealed_ends_the_session(body: bytes) -> None:
    async def main() -> None:
        async with secured() as pair:
            await pair.their_pipe.write(len(body).to_bytes(2, "big") + body)
            with pytest.raises(ConnectionClosedError):
                await pair.ours.read(1)

    run_trio(main)


def test_after_an_altered_packet_nothing_can_be_read_any_more() -> None:
    async def main() -> None:
        async with secured() as pair:
            first, second = await packets_of(pair, b"pay ann 10", b"pay bob 10")
            await pair.their_pipe.write(first[:-1] + bytes([first[-1] ^ 1]))
            with pytest.raises(ConnectionClosedError):
                await pair.ours.read(1)
            with contextlib.suppress(ConnectionClosedError):  # the other end may have been closed already
                await pair.their_pipe.write(second)
            await pair.their_pipe.close()
            with pytest.raises(ConnectionClosedError):
                await pair.ours.read(1)

    run_trio(main)


# ---------------------------------------------------------------------------------------------------- who may come in


@SIDES
def test_a_peer_that_is_refused_is_cut_off(we_dial: bool) -> None:
    asked: list[PeerId] = []

    def refuse(peer: PeerId) -> None:
        asked.append(peer)
        raise NotAdmitted("stranger")

    async def main() -> None:
        ends = Ends(in_memory())
        dialling, listening = ends.raw()
        refused: list[NotAdmitted] = []

        async def ours() -> None:
            noise = member_noise(ANN, refuse)
            try:
                if we_dial:
                    await noise.secure_outbound(dialling, identity_of(BOB.peer_id))
                else:
                    await noise.secure_inbound(listening)
            except NotAdmitted as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours)
            theirs = library_noise(BOB)
            if we_dial:
                session = await theirs.secure_inbound(listening)
            else:
                session = await theirs.secure_outbound(dialling, identity_of(ANN.peer_id))
        assert list(map(str, refused)) == ["stranger"]
        with pytest.raises(BaseLibp2pError):
            await session.read(1)
        await ends.close()

    run_trio(main)
    assert asked == [BOB.peer_id]


@SIDES
def test_a_peer_that_is_admitted_is_named_by_its_proven_id(we_dial: bool) -> None:
    asked: list[PeerId] = []

    async def main() -> None:
        ends = Ends(in_memory())
        ours, theirs = member_noise(ANN, asked.append), library_noise(BOB)
        if we_dial:
            session, _ = await shake_hands(ours, theirs, ends)
        else:
            _, session = await shake_hands(theirs, ours, ends)
        assert str(session.get_remote_peer()) == BOB.peer_id
        assert str(session.get_local_peer()) == ANN.peer_id
        assert session.is_initiator == we_dial
        await ends.close()

    run_trio(main)
    assert asked == [BOB.peer_id]


def test_another_peer_than_the_one_dialled_is_never_asked_about() -> None:
    asked: list[PeerId] = []

    async def main() -> None:
        ends = Ends(in_memory())
        dialling, listening = ends.raw()

        async def listen() -> None:
            with pytest.raises(BaseLibp2pError):
                await library_noise(CID).secure_inbound(listening)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            with pytest.raises(PeerIDMismatchesPubkey):
                await member_noise(ANN, asked.append).secure_outbound(dialling, identity_of(BOB.peer_id))
            await ends.dialler.close()
        await ends.close()

    run_trio(main)
    assert not asked


def test_a_handshake_that_another_key_has_signed_is_refused_and_never_asked_about() -> None:
    """Cid claims to be Bob: it sends Bob's public key, and can only sign with its own."""
    asked: list[PeerId] = []

    async def main() -> None:
        ends = Ends(in_memory())
        dialling, listening = ends.raw()
        pair = key_pair(CID)
        impostor = LibraryNoise(pair, new_noise_key().private_key)
        pair.private_key.get_public_key = key_pair(BOB).private_key.get_public_key  # type: ignore[method-assign]

        async def dial() -> None:
            await impostor.secure_outbound(dialling, identity_of(ANN.peer_id))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            with pytest.raises(BaseLibp2pError):
                await member_noise(ANN, asked.append).secure_inbound(listening)
        await ends.close()

    run_trio(main)
    assert not asked
