"""The muxer, against itself and against py-libp2p's own: streams, flow control, and how a connection ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from libp2p.connection_types import ConnectionType
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from libp2p_pairs import (
    ANN,
    BOB,
    Ends,
    by_sockets,
    in_memory,
    jumping_clock,
    member_noise,
    muxed,
    run_trio,
    shake_hands,
    two_muxers,
)

from gossipfl.transports.libp2p.yamux import Yamux
from gossipfl.transports.libp2p.yamux_frames import FIRST_WINDOW_BYTES, MAX_DATA_BYTES, MAX_STREAMS

KIB, MIB = 1 << 10, 1 << 20
SOON_S = 5.0
"""Bounds a wait that ought to be none."""

OTHERS = pytest.mark.parametrize("own", [True, False], ids=["own", "library"])
SIDES = pytest.mark.parametrize("we_dial", [True, False], ids=["we dial", "they dial"])


def content(size: int, salt: int = 0) -> bytes:
    """Return bytes with a period that no packet and no window is a multiple of."""
    period = bytes((salt + 7 * place + place // 256) % 256 for place in range(65_521))
    return (period * (size // len(period) + 1))[:size]


async def read_all(stream: Any) -> bytes:
    """Return everything up to the end of a stream."""
    found = bytearray()
    try:
        while True:
            found += await stream.read(64 * KIB)
    except MuxedStreamEOF:
        return bytes(found)


async def read_exactly(stream: Any, size: int) -> bytes:
    """Return ``size`` bytes of a stream of either muxer."""
    found = bytearray()
    while len(found) < size:
        found += await stream.read(size - len(found))
    return bytes(found)


# ---------------------------------------------------------------------------------------------------- streams


@OTHERS
@SIDES
def test_each_side_opens_streams_and_the_other_accepts_them_in_order(own: bool, we_dial: bool) -> None:
    async def main() -> None:
        async with two_muxers(own=own, we_dial=we_dial) as (ours, theirs):
            assert ours.is_initiator == we_dial
            assert ours.is_established
            assert str(ours.peer_id) == BOB.peer_id
            for opener, accepter in ((ours, theirs), (theirs, ours)):
                opened = [await opener.open_stream() for _ in range(3)]
                for number, stream in enumerate(opened):
                    await stream.write(b"%d" % number)
                for number in range(3):
                    accepted = await accepter.accept_stream()
                    assert await read_exactly(accepted, 1) == b"%d" % number
                    await accepted.write(b"back %d" % number)
                    assert await read_exactly(opened[number], 6) == b"back %d" % number

    run_trio(main)


@OTHERS
@SIDES
@pytest.mark.parametrize("size", [1, 4 * KIB, FIRST_WINDOW_BYTES, FIRST_WINDOW_BYTES + 1, 3 * MIB])
def test_what_is_sent_comes_back(size: int, own: bool, we_dial: bool) -> None:
    """Our side sends much and gets at most 64 KiB back from the library's, which cannot take more (docs/upstream)."""

    async def main() -> None:
        async with two_muxers(by_sockets(), own=own, we_dial=we_dial) as (ours, theirs), trio.open_nursery() as nursery:
            sent = content(size)
            echoed = size if own else min(size, 64 * KIB)

            async def echo() -> None:
                stream = await theirs.accept_stream()
                received = await read_exactly(stream, echoed)
                nursery.start_soon(stream.write, received)
                received += await read_exactly(stream, size - echoed)
                assert received == sent

            nursery.start_soon(echo)
            stream = await ours.open_stream()
            nursery.start_soon(stream.write, sent)
            assert await read_exactly(stream, echoed) == sent[:echoed]

    run_trio(main)


@OTHERS
def test_both_directions_at_once_on_one_stream(own: bool) -> None:
    async def main() -> None:
        async with two_muxers(by_sockets(), own=own) as (ours, theirs), trio.open_nursery() as nursery:
            large, small = content(3 * MIB, 1), content(3 * MIB if own else 128 * KIB, 2)
            stream = await ours.open_stream()
            nursery.start_soon(stream.write, large)

            async def serve() -> None:
                accepted = await theirs.accept_stream()
                nursery.start_soon(accepted.write, small)
                assert await read_exactly(accepted, len(large)) == large

            nursery.start_soon(serve)
            assert await read_exactly(stream, len(small)) == small

    run_trio(main)


def test_reads_of_every_kind() -> None:
    async def main() -> None:
        async with two_muxers() as (ours, theirs):
            out = await ours.open_stream()
            await out.write_parts((b"", b"01", memoryview(b"2345"), bytearray(b"6789"), b""))
            back = await theirs.accept_stream()
            assert await back.read(0) == b""
            assert await back.read(1) == b"0"
            assert bytes(await back.read_exactly(3)) == b"123"
            assert bytes(await back.read_exactly(0)) == b""
            assert await read_exactly(back, 6) == b"456789"
            await out.write(content(200_000))
            assert bytes(await back.read_exactly(200_000)) == content(200_000)
            for most in (None, -1):
                await out.write(b"all")
                assert await back.read(most) == b"all"
            with pytest.raises(NotImplementedError):
                back.set_deadline(1)

    run_trio(main)


@OTHERS
def test_a_stream_that_is_closed_on_one_side_carries_the_answer(own: bool) -> None:
    async def main() -> None:
        async with two_muxers(own=own) as (ours, theirs):
            for opener, accepter in ((ours, theirs), (theirs, ours)):
                stream = await opener.open_stream()
                await stream.write(content(100_000))
                await stream.close()
                await stream.close()
                with pytest.raises(MuxedStreamError):
                    await stream.write(b"more")
                accepted = await accepter.accept_stream()
                assert await read_all(accepted) == content(100_000)
                await accepted.write(b"thanks")
                await accepted.close()
                assert await read_all(stream) == b"thanks"
                with pytest.raises(MuxedStreamError):
                    await accepted.write(b"more")

    run_trio(main)


@OTHERS
def test_a_reset_ends_one_stream_in_both_directions_and_no_other(own: bool) -> None:
    async def main() -> None:
        async with two_muxers(own=own) as (ours, theirs):
            for resetter, other in ((ours, theirs), (theirs, ours)):
                doomed, healthy = await resetter.open_stream(), await resetter.open_stream()
                await doomed.write(b"a")
                await healthy.write(b"b")
                other_doomed, other_healthy = await other.accept_stream(), await other.accept_stream()
                assert await other_doomed.read(1) == b"a"
                await doomed.reset()
                with pytest.raises(MuxedStreamReset if other is ours or own else MuxedStreamError):
                    await other_doomed.read(1)
                with pytest.raises(MuxedStreamError):
                    await other_doomed.write(b"!")
                with pytest.raises(MuxedStreamError):
                    await doomed.write(b"!")
                with pytest.raises(MuxedStreamError):
                    await doomed.read(1)
                assert await other_healthy.read(1) == b"b"
                await other_healthy.write(b"c")
                assert await healthy.read(1) == b"c"

    run_trio(main)


@pytest.mark.parametrize("by_us", [True, False], ids=["by us", "by them"])
def test_a_reset_wakes_who_reads_and_who_writes(by_us: bool) -> None:
    async def main() -> None:
        async with two_muxers() as (ours, theirs):
            mine = await ours.open_stream()
            await mine.write(b"!")
            other = await theirs.accept_stream()
            ended: list[str] = []

            async def read() -> None:
                with pytest.raises(MuxedStreamReset):
                    await mine.read_exactly(1)
                ended.append("reader")

            async def write() -> None:
                with pytest.raises(MuxedStreamError):
                    await mine.write(bytes(MIB))
                ended.append("writer")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked()
                assert not ended
                await (mine if by_us else other).reset()
            assert sorted(ended) == ["reader", "writer"]

    run_trio(main)


@OTHERS
def test_streams_that_have_ended_make_room_for_others(own: bool) -> None:
    async def main() -> None:
        async with two_muxers(own=own) as (ours, theirs):
            for number in range(5 * MAX_STREAMS):
                opened = await theirs.open_stream()
                await opened.write(b"x")
                accepted = await ours.accept_stream()
                assert await accepted.read(1) == b"x"
                if number % 3 == 0:
                    await accepted.reset()
                elif number % 3 == 1:
                    await opened.reset()
                else:
                    await opened.close()
                    await accepted.close()
                with pytest.raises(MuxedStreamError):
                    await accepted.read(1)

    run_trio(main)


@OTHERS
@SIDES
def test_a_ping_is_answered(own: bool, we_dial: bool) -> None:
    async def main() -> None:
        async with two_muxers(own=own, we_dial=we_dial) as (ours, _):
            await ours.ping()
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(ours.ping)

    run_trio(main)


def test_a_ping_returns_once_everything_before_it_has_been_read() -> None:
    """What was sent before lies ready for the reader: it can be taken without waiting for the network."""

    async def main() -> None:
        async with two_muxers(by_sockets()) as (ours, theirs):
            stream = await ours.open_stream()
            await stream.write(content(FIRST_WINDOW_BYTES))
            await ours.ping()
            other = await theirs.accept_stream()
            assert await what_is_there(other) == content(FIRST_WINDOW_BYTES)

    run_trio(main)


def test_a_probe_is_answered_and_heard() -> None:
    async def main() -> None:
        async with two_muxers() as (ours, _):
            before = ours.heard_at
            await trio.sleep(10)
            ours.probe()
            await trio.testing.wait_all_tasks_blocked()
            assert ours.heard_at >= before + 10

    run_trio(main, clock=jumping_clock())


def test_what_the_library_asks_about_a_connection() -> None:
    async def over_tcp() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        host, port = listener.socket.getsockname()
        async with listener, trio.open_nursery() as nursery:
            accepted: list[trio.SocketStream] = []

            async def accept() -> None:
                accepted.append(await listener.accept())

            nursery.start_soon(accept)
            dialled = await trio.open_tcp_stream(host, port)
            await trio.testing.wait_all_tasks_blocked()
            async with two_muxers((dialled, accepted[0])) as (ours, _):
                assert ours.get_remote_address() == (host, port)
                assert list(map(str, ours.get_transport_addresses())) == [f"/ip4/{host}/tcp/{port}"]
                assert ours.get_connection_type() is ConnectionType.DIRECT
                stream = await ours.open_stream()
                assert stream.get_remote_address() == (host, port)

    async def in_a_process() -> None:
        async with two_muxers() as (ours, _):
            assert ours.get_remote_address() is None
            assert ours.get_transport_addresses() == []

    run_trio(over_tcp)
    run_trio(in_a_process)


# ---------------------------------------------------------------------------------------------------- flow control


def test_a_sender_without_credit_waits_for_as_long_as_it_takes_and_goes_on_at_once() -> None:
    """The library's gives up after 5 s, and looks only every 10 ms; here time stands still but for the hour."""

    async def main() -> None:
        async with two_muxers() as (ours, theirs), trio.open_nursery() as nursery:
            stream = await ours.open_stream()
            sent = content(4 * MIB)
            written = trio.Event()

            async def write() -> None:
                await stream.write(sent)
                written.set()

            nursery.start_soon(write)
            other = await theirs.accept_stream()
            began = trio.current_time()
            await trio.sleep(3600)
            assert not written.is_set()
            assert await read_exactly(other, len(sent)) == sent
            await written.wait()
            assert trio.current_time() == began + 3600

    run_trio(main, clock=jumping_clock())


def test_no_more_is_sent_than_was_granted() -> None:
    async def main() -> None:
        async with two_muxers() as (ours, theirs), trio.open_nursery() as nursery:
            stream = await ours.open_stream()
            nursery.start_soon(stream.write, content(4 * MIB))
            other = await theirs.accept_stream()
            await trio.testing.wait_all_tasks_blocked()
            assert len(await what_is_there(other)) == FIRST_WINDOW_BYTES
            await trio.testing.wait_all_tasks_blocked()
            assert FIRST_WINDOW_BYTES // 2 <= len(await what_is_there(other)) <= FIRST_WINDOW_BYTES
            nursery.cancel_scope.cancel()

    run_trio(main)


async def what_is_there(stream: Any) -> bytes:
    """Return what can be read without waiting."""
    found = bytearray()
    with trio.move_on_after(0):
        while True:
            found += await stream.read()
    return bytes(found)


def test_a_wider_window_lets_more_be_on_its_way() -> None:
    async def main() -> None:
        async with two_muxers() as (ours, theirs):
            stream = await ours.open_stream()
            await stream.write(b"!")
            other = await theirs.accept_stream()
            other.widen(2 * MIB)
            other.widen(MIB)  # never narrower
            await stream.write(content(2 * MIB - 1))
            with trio.move_on_after(1) as scope:
                await stream.write(b"one too many")
            assert scope.cancelled_caught
            assert bytes(await other.read_exactly(2 * MIB)) == b"!" + content(2 * MIB - 1)

    run_trio(main, clock=jumping_clock())


def test_a_stream_that_nobody_reads_holds_up_no_other() -> None:
    async def main() -> None:
        async with two_muxers(by_sockets()) as (ours, theirs), trio.open_nursery() as nursery:
            stuck = await ours.open_stream()
            nursery.start_soon(stuck.write, content(4 * MIB))
            await theirs.accept_stream()
            other = await ours.open_stream()
            nursery.start_soon(other.write, content(4 * MIB, 1))
            assert await read_exactly(await theirs.accept_stream(), 4 * MIB) == content(4 * MIB, 1)
            await ours.ping()
            nursery.cancel_scope.cancel()

    run_trio(main)


def test_two_sides_that_both_send_much_at_once_both_finish() -> None:
    """Readers that wait for the lock of writers stop each other for ever; pings make a reader want to write."""
    size, block = 50 * MIB, MIB

    async def main() -> None:
        async with two_muxers(by_sockets(64 * KIB)) as (ours, theirs), trio.open_nursery() as nursery:
            done: list[int] = []
            expected = content(block)

            async def send(stream: Any) -> None:
                for _ in range(size // 2 // block):
                    await stream.write(expected)
                await stream.close()

            async def receive(conn: Yamux) -> None:
                stream: Any = await conn.accept_stream()
                for _ in range(size // 2 // block):
                    assert await stream.read_exactly(block) == expected
                with pytest.raises(MuxedStreamEOF):
                    await stream.read_exactly(1)
                done.append(1)

            async def keep_pinging(conn: Yamux) -> None:
                while len(done) < 4:
                    await conn.ping()

            for conn in (ours, theirs):
                for _ in range(2):
                    nursery.start_soon(send, await conn.open_stream())
                    nursery.start_soon(receive, conn)
                nursery.start_soon(keep_pinging, conn)

    run_trio(main)


# ---------------------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("goodbye", [True, False], ids=["closed", "cut off"])
@pytest.mark.parametrize("accepted_before", [True, False], ids=["known stream", "new stream"])
def test_what_has_arrived_can_be_read_after_the_connection_has_ended(goodbye: bool, accepted_before: bool) -> None:
    async def main() -> None:
        async with two_muxers() as (ours, theirs):
            stream = await ours.open_stream()
            await stream.write(b"!")
            other: Any = await theirs.accept_stream() if accepted_before else None
            await stream.write(content(200_000))
            await ours.ping()
            if goodbye:
                await ours.close()
            else:
                await ours.abort("cut off")
            await theirs.ended.wait()
            other = other or await theirs.accept_stream()
            await other.reset()  # which may come too late, and takes nothing away
            assert await read_all(other) == b"!" + content(200_000)
            with pytest.raises(MuxedStreamError):
                await other.write(b"?")
            with pytest.raises(MuxedConnUnavailable):
                await theirs.accept_stream()

    run_trio(main)


def test_the_end_of_a_connection_wakes_everybody() -> None:
    async def main() -> None:
        async with two_muxers() as (ours, theirs):
            stream, full = await ours.open_stream(), await ours.open_stream()
            await stream.write(b"!")
            other: Any = await theirs.accept_stream()
            await theirs.accept_stream()
            woken: list[str] = []

            async def expect(error: type[Exception], what: Callable[..., Awaitable[Any]], *args: Any) -> None:
                with pytest.raises(error):
                    await what(*args)
                woken.append(what.__name__)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect, MuxedStreamEOF, stream.read, 1)
                nursery.start_soon(expect, MuxedStreamEOF, other.read_exactly, 100)
                nursery.start_soon(expect, MuxedStreamError, full.write, bytes(MIB))
                nursery.start_soon(expect, MuxedConnUnavailable, theirs.accept_stream)
                nursery.start_soon(expect, MuxedConnUnavailable, ours.accept_stream)
                await trio.testing.wait_all_tasks_blocked()
                assert woken == []
                await theirs.abort("enough")
            assert len(woken) == 5
            await ours.ended.wait()
            for conn, detail in ((theirs, "enough"), (ours, "closed by the other side")):
                assert conn.is_closed
                assert not conn.is_established
                assert conn.detail == detail
                with pytest.raises(MuxedStreamError):
                    await conn.open_stream()

    run_trio(main)


def test_the_end_of_a_connection_wakes_who_waits_for_a_ping() -> None:
    async def main() -> None:
        ends = Ends(in_memory())
        session, _ = await shake_hands(member_noise(ANN), member_noise(BOB), ends)
        async with trio.open_nursery() as nursery:
            conn = await muxed(nursery, session)

            async def ping() -> None:
                with pytest.raises(MuxedStreamError):
                    await conn.ping()

            nursery.start_soon(ping)
            await trio.testing.wait_all_tasks_blocked()
            await conn.abort("enough")
        await ends.close()

    run_trio(main)


def test_a_ping_on_an_ended_connection_says_so() -> None:
    async def main() -> None:
        async with two_muxers() as (ours, _):
            await ours.abort("enough")
            with trio.fail_after(SOON_S), pytest.raises(MuxedStreamError):
                await ours.ping()

    run_trio(main)


@OTHERS
def test_closing_says_good_bye_once(own: bool) -> None:
    async def main() -> None:
        async with two_muxers(own=own) as (ours, theirs):
            closed: list[str] = []

            async def on_close() -> None:
                closed.append("ours")

            ours.on_close = on_close
            await ours.close()
            await ours.close()
            assert closed == ["ours"]
            with pytest.raises(MuxedConnUnavailable):
                await theirs.accept_stream()
            await ours.abort("again")
            assert ours.detail == "closed here"

    run_trio(main)


def test_closing_is_bounded_where_the_other_side_reads_nothing() -> None:
    async def main() -> None:
        async with blocked_writer() as (ours, _, nursery, _):
            await ours.close()
            assert ours.is_closed
            nursery.cancel_scope.cancel()

    run_trio(main, clock=jumping_clock())


# ---------------------------------------------------------------------------------------------------- cancelled writes


class blocked_writer:  # noqa: N801 - used as a function
    """A muxer with a write that waits for the socket: the other side has shaken hands, and reads nothing yet.

    Gives the muxer, the other side's session, a nursery, and the scope of the write.
    """

    def __init__(self, size: int = FIRST_WINDOW_BYTES) -> None:
        self._size = size

    async def __aenter__(self) -> tuple[Yamux, Any, trio.Nursery, trio.CancelScope]:
        self._ends = Ends(by_sockets(4 * KIB))
        mine, other = await shake_hands(member_noise(ANN), member_noise(BOB), self._ends)
        self._manager = trio.open_nursery()
        nursery = await self._manager.__aenter__()
        ours = await muxed(nursery, mine)
        stream, scope = await ours.open_stream(), trio.CancelScope()

        async def write() -> None:
            with scope:
                try:
                    await stream.write(content(self._size))
                except MuxedStreamError:
                    assert ours.is_closed

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        return ours, other, nursery, scope

    async def __aexit__(self, *error: Any) -> None:
        await self._manager.__aexit__(*error)
        await self._ends.close()


def test_a_write_that_is_cancelled_midway_ends_the_connection_and_the_other_side_sees_an_end() -> None:
    async def main() -> None:
        async with blocked_writer() as (ours, session, nursery, scope):
            assert not ours.is_closed
            scope.cancel()
            await ours.ended.wait()
            assert ours.detail == "a write was cancelled"
            with pytest.raises(MuxedStreamError):
                await ours.open_stream()
            theirs = await muxed(nursery, session)
            await theirs.ended.wait()
            assert theirs.detail == "closed by the other side"
            with trio.move_on_after(0):  # whether the stream itself got through depends on the buffers
                found = await read_all(await theirs.accept_stream())
                assert len(found) < MAX_DATA_BYTES
                assert content(FIRST_WINDOW_BYTES).startswith(found)

    run_trio(main)


def test_a_write_that_is_cancelled_while_another_one_is_under_way_leaves_the_stream_usable_or_ended() -> None:
    """None of its bytes has been sent, so its credit must not be gone."""

    async def main() -> None:
        async with blocked_writer() as (ours, session, nursery, _):
            stream = await ours.open_stream()
            with trio.CancelScope() as scope:
                nursery.start_soon(cancel_when_blocked, scope)
                await stream.write(content(200 * KIB, 1))
            assert scope.cancelled_caught
            theirs = await muxed(nursery, session)
            first, second = await theirs.accept_stream(), await theirs.accept_stream()
            nursery.start_soon(read_until_end, first)
            nursery.start_soon(read_until_end, second)
            with trio.fail_after(SOON_S):
                try:
                    await stream.write(content(200 * KIB, 2))
                except MuxedStreamError:
                    assert ours.is_closed
            nursery.cancel_scope.cancel()

    run_trio(main, clock=jumping_clock())


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


async def read_until_end(stream: Any) -> None:
    try:
        while True:
            await stream.read()
    except MuxedStreamError:
        return
