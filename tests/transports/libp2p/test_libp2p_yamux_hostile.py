"""The muxer and what a peer may send: frames in any pieces, nonsense, too much; only its own connection suffers."""

from __future__ import annotations

import gc
import itertools
import struct
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.exceptions import BaseLibp2pError
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p_pairs import Puppet, by_sockets, muxed, packed, puppet, run_trio, secured

from gossipfl.transports.libp2p.noise import MAX_PLAIN_BYTES
from gossipfl.transports.libp2p.yamux_frames import (
    ACK,
    DATA,
    FIN,
    FIRST_WINDOW_BYTES,
    GO_AWAY,
    HEADER,
    MAX_ANSWERS_BYTES,
    MAX_STREAMS,
    PING,
    RST,
    SYN,
    WINDOW,
)

KIB, MIB = 1 << 10, 1 << 20


async def read_all(stream: Any) -> bytes:
    """Return everything up to the end of a stream."""
    found = bytearray()
    try:
        while True:
            found += await stream.read()
    except MuxedStreamEOF:
        return bytes(found)


async def accept_all(there: Puppet) -> list[Any]:
    """Return the streams that have been opened on a connection that has ended."""
    found: list[Any] = []
    try:
        while True:
            found.append(await there.conn.accept_stream())
    except MuxedConnUnavailable:
        return found


async def expect_alive(there: Puppet, unheard_frames: int = 0) -> None:
    """Check that a ping is answered, after the given number of other frames."""
    await there.say(packed(PING, SYN, 0, 4711))
    assert (await there.hear(unheard_frames + 1))[-1] == (PING, ACK, 0, 4711)
    assert not there.conn.is_closed


# ---------------------------------------------------------------------------------------------------- any pieces


@dataclass
class Script:
    """Frames that keep to yamux, and what comes of them: the data of each stream, in the order of opening."""

    wire: bytearray = field(default_factory=bytearray)
    data: dict[int, bytearray] = field(default_factory=dict)
    pings: list[int] = field(default_factory=list)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    script = Script()
    opened: list[int] = []
    for action in draw(st.lists(st.sampled_from(["open", "data", "data", "empty", "ping", "window", "other"]))):
        if action == "open" and len(opened) < MAX_STREAMS:
            number = 2 * len(opened) + 1
            kind, first = draw(st.sampled_from([(WINDOW, b""), (DATA, b""), (DATA, b"first")]))
            script.wire += packed(kind, SYN, number, len(first)) + first
            script.data[number] = bytearray(first)
            opened.append(number)
        elif action in {"data", "empty", "window"} and opened:
            number = draw(st.sampled_from(opened))
            if action == "window":
                script.wire += packed(WINDOW, 0, number, draw(st.integers(0, 1 << 32) | st.just(1)) & 0xFFFFFFFF)
            else:
                piece = draw(st.binary(min_size=1, max_size=200)) if action == "data" else b""
                script.wire += packed(DATA, 0, number, len(piece)) + piece
                script.data[number] += piece
        elif action == "ping":
            script.pings.append(draw(st.integers(0, (1 << 32) - 1)))
            script.wire += packed(PING, SYN, 0, script.pings[-1])
        else:  # of a stream that has long been forgotten, an answer to nothing, a good-bye
            piece = draw(st.binary(max_size=50))
            script.wire += packed(DATA, draw(st.sampled_from([0, FIN, ACK])), 9999, len(piece)) + piece
            script.wire += packed(PING, ACK, 0, 5) + packed(GO_AWAY, 0, 0, 0)
    for number in opened:
        last = draw(st.sampled_from([None, b"", b"last"]))
        if last is None:
            script.wire += packed(WINDOW, FIN, number, 0)
        else:
            script.wire += packed(DATA, FIN, number, len(last)) + last
            script.data[number] += last
    return script


@given(scripts(), st.data())
@settings(max_examples=150)
def test_frames_in_any_pieces_give_the_same_streams_and_data(script: Script, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(script.wire)), max_size=40).map(sorted))
    pieces = [bytes(script.wire[a:b]) for a, b in itertools.pairwise([0, *cuts, len(script.wire)])]

    async def main() -> None:
        async with puppet() as there:
            await there.say_apart(pieces)
            for number, expected in script.data.items():
                stream: Any = await there.conn.accept_stream()
                assert stream.stream_id == number
                assert await read_all(stream) == expected
            answers = await there.hear(len(script.data) + len(script.pings))
            assert [length for kind, *_, length in answers if kind == PING] == script.pings
            assert [number for kind, flags, number, _ in answers if (kind, flags) == (WINDOW, ACK)] == list(script.data)
            await expect_alive(there)

    run_trio(main)


def test_frames_byte_by_byte() -> None:
    wire = packed(DATA, SYN, 1, 5) + b"hello" + packed(PING, SYN, 0, 7) + packed(DATA, FIN, 1, 6) + b" world"

    async def main() -> None:
        async with puppet() as there:
            await there.say_apart(bytes([one]) for one in wire)
            assert await read_all(await there.conn.accept_stream()) == b"hello world"
            assert await there.hear(2) == [(WINDOW, ACK, 1, 0), (PING, ACK, 0, 7)]

    run_trio(main)


@pytest.mark.parametrize("sockets", [True, False], ids=["sockets", "memory"])
def test_what_came_before_the_end_is_read_although_it_cannot_be_answered_any_more(sockets: bool) -> None:
    """The other side has written everything and is gone: the first answer fails, and much is still to be read."""
    sent = bytes(range(250)) * 400

    async def main() -> None:
        async with puppet(by_sockets() if sockets else None) as there:
            there.pipe_of_conn.read_sizes = [1000] * 50
            pieces = [packed(DATA, 0, 1, 1000) + sent[begin : begin + 1000] for begin in range(0, len(sent), 1000)]
            await there.say_and_go(packed(WINDOW, SYN, 1), *pieces)
            await there.end()
            assert await read_all(await there.conn.accept_stream()) == sent

    run_trio(main)


def test_a_reset_with_data_a_reset_of_a_stranger_and_a_second_end() -> None:
    async def main() -> None:
        async with puppet() as there:
            await there.say(packed(WINDOW, SYN, 1), packed(DATA, RST, 1, 4), b"last")
            stream: Any = await there.conn.accept_stream()
            assert await stream.read_exactly(4) == b"last"
            with pytest.raises(MuxedStreamReset):
                await stream.read(1)
            await there.say(packed(WINDOW, RST, 1), packed(WINDOW, FIN, 1), packed(WINDOW, RST | FIN, 77))
            await there.say(packed(WINDOW, SYN | FIN, 3), packed(WINDOW, FIN, 3), packed(DATA, FIN, 3))
            assert await read_all(await there.conn.accept_stream()) == b""
            await expect_alive(there, 2)

    run_trio(main)


# ---------------------------------------------------------------------------------------------------- against the rules

WHOLE_WINDOW = packed(DATA, 0, 1, FIRST_WINDOW_BYTES) + bytes(FIRST_WINDOW_BYTES)
AGAINST_THE_RULES: dict[str, tuple[bytes, str]] = {
    "more than the window, in one frame": (
        packed(WINDOW, SYN, 1) + packed(DATA, 0, 1, FIRST_WINDOW_BYTES + 1),
        "more on stream 1 than it was granted",
    ),
    "more than the window, in two": (
        packed(WINDOW, SYN, 1) + WHOLE_WINDOW + packed(DATA, 0, 1, 1) + b"x",
        "more on stream 1 than it was granted",
    ),
    "more than the window, as it opens": (
        packed(DATA, SYN, 1, FIRST_WINDOW_BYTES + 1),
        "more on stream 1 than it was granted",
    ),
    "an even stream": (packed(WINDOW, SYN, 2), "opened stream 2"),
    "stream 0": (packed(WINDOW, SYN, 0), "opened stream 0"),
    "stream 0, with data": (packed(DATA, SYN, 0, 3) + b"abc", "opened stream 0"),
    "a stream twice": (packed(WINDOW, SYN, 1) + packed(WINDOW, SYN, 1), "opened stream 1"),
    "type 4": (packed(4, 0, 0, 0), "version 0, type 4"),
    "type 255": (packed(255, 0, 0, 0), "version 0, type 255"),
    "version 1": (packed(PING, SYN, 0, 0, version=1), "version 1, type 2"),
    "4 GiB for nobody": (packed(DATA, 0, 9, (1 << 32) - 1), "stream 9, which is not open"),
    "4 GiB": (packed(DATA, SYN, 1, (1 << 32) - 1), "more on stream 1 than it was granted"),
    "another protocol": (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", "version 71"),
}


@pytest.mark.parametrize("name", AGAINST_THE_RULES)
def test_what_is_against_the_rules_ends_the_connection(name: str) -> None:
    wire, reason = AGAINST_THE_RULES[name]

    async def main() -> None:
        async with puppet() as there:
            await there.say(wire)
            detail = await there.end()
            assert detail.startswith("broke yamux: ")
            assert reason in detail
            assert {flags for _, flags, _, _ in await there.hear_all()} <= {ACK}
            assert len(await accept_all(there)) <= 1

    run_trio(main)


@pytest.mark.parametrize("number", [1, 3])
def test_the_side_that_has_dialled_accepts_no_odd_streams(number: int) -> None:
    async def main() -> None:
        async with puppet(we_dial=True) as there:
            await there.say(packed(WINDOW, SYN, 2))
            assert await there.hear(1) == [(WINDOW, ACK, 2, 0)]
            await there.say(packed(WINDOW, SYN, number))
            assert f"opened stream {number}" in await there.end()

    run_trio(main)


def test_after_the_end_nothing_of_a_peer_is_read() -> None:
    async def main() -> None:
        async with puppet() as there:
            await there.say(packed(9), packed(WINDOW, SYN, 1), packed(PING, SYN, 0, 1))
            await there.end()
            assert await accept_all(there) == []
            assert await there.hear_all() == []

    run_trio(main)


@given(st.lists(st.binary(max_size=100), max_size=20), st.booleans())
@settings(max_examples=150)
def test_garbage_ends_at_most_the_connection(pieces: list[bytes], well_begun: bool) -> None:
    async def main() -> None:
        async with puppet() as there:
            try:
                if well_begun:
                    await there.say(packed(DATA, SYN, 1, 5), b"hello")
                await there.say_apart(pieces)
            except BaseLibp2pError:
                assert there.conn.is_closed
            await there.hang_up()

    run_trio(main)


HEADERS = st.builds(
    HEADER.pack,
    st.just(0) | st.integers(0, 255),
    st.integers(0, 3) | st.integers(0, 255),
    st.integers(0, 15) | st.integers(0, 0xFFFF),
    st.integers(0, 40) | st.integers(0, 0xFFFFFFFF),
    st.integers(0, 100) | st.integers(0, 0xFFFFFFFF),
)


@given(st.lists(HEADERS | st.binary(max_size=30), max_size=60))
@settings(max_examples=150)
def test_frames_of_any_kind_end_at_most_the_connection(frames: list[bytes]) -> None:
    async def main() -> None:
        async with puppet() as there:
            try:
                await there.say(b"".join(frames))
                stream: Any
                with trio.move_on_after(0):
                    while True:
                        stream = await there.conn.accept_stream()
                        await stream.read()
                        await stream.write(b"answer")
            except (MuxedConnUnavailable, MuxedStreamError):
                pass
            await there.hang_up()

    run_trio(main)


def test_the_first_bytes_may_have_come_with_what_was_read_before() -> None:
    """The library reads the muxer's name from the same session; what it did not ask for waits there."""

    async def main() -> None:
        async with secured(we_dial=False) as pair, trio.open_nursery() as nursery:
            await pair.theirs.write(b"name" + packed(WINDOW, SYN, 1) + packed(DATA, 0, 1, 5) + b"ab")
            assert await pair.ours.read(4) == b"name"
            conn = await muxed(nursery, pair.ours)
            await pair.theirs.write(b"cde")
            stream: Any = await conn.accept_stream()
            assert await stream.read_exactly(5) == b"abcde"
            nursery.cancel_scope.cancel()

    run_trio(main)


# ---------------------------------------------------------------------------------------------------- too much


@pytest.mark.parametrize("wish", ["pings", "streams"])
def test_a_peer_that_asks_and_reads_no_answer_is_cut_off(wish: str) -> None:
    """More than the socket and the queue of answers hold: without a bound, the test would go on until its deadline."""

    async def main() -> None:
        numbers = itertools.count(1, 2)
        async with puppet(by_sockets(4 * KIB)) as there:
            try:
                for _ in range(1000):
                    if wish == "pings":
                        await there.say(packed(PING, SYN, 0, 1) * 1000)
                    else:
                        await there.say(*(packed(WINDOW, SYN, next(numbers)) for _ in range(1000)))
            except BaseLibp2pError:
                pass
            assert "asks for more than it reads" in await there.end()

    run_trio(main)


def test_a_peer_that_asks_much_and_reads_the_answers_is_served() -> None:
    count = 4 * MAX_ANSWERS_BYTES // HEADER.size

    async def main() -> None:
        async with puppet(by_sockets()) as there, trio.open_nursery() as nursery:

            async def ask() -> None:
                for first in range(0, count, 1000):
                    numbers = range(first, min(count, first + 1000))
                    await there.say(*(packed(PING, SYN, 0, number) for number in numbers))

            nursery.start_soon(ask)
            for number in range(count):
                assert await there.hear(1) == [(PING, ACK, 0, number)]

    run_trio(main)


def test_of_a_thousand_streams_the_first_few_are_accepted() -> None:
    async def main() -> None:
        async with puppet() as there:
            for first in range(1, 2000, 2):
                await there.say(packed(DATA, SYN, first, 1), b"x")
            answers = Counter(flags for kind, flags, _, _ in await there.hear(1000) if kind == WINDOW)
            assert answers == {ACK: MAX_STREAMS, RST: 1000 - MAX_STREAMS}
            await expect_alive(there)
            streams: list[Any] = [await there.conn.accept_stream() for _ in range(MAX_STREAMS)]
            assert [stream.stream_id for stream in streams] == list(range(1, 2 * MAX_STREAMS, 2))
            await there.say(packed(WINDOW, SYN, 2001))
            assert await there.hear(1) == [(WINDOW, RST, 2001, 0)]
            await streams[0].reset()
            await there.say(packed(WINDOW, SYN, 2003))
            assert await there.hear(2) == [(WINDOW, RST, 1, 0), (WINDOW, ACK, 2003, 0)]

    run_trio(main)


def test_streams_that_come_and_go_unaccepted_are_bounded() -> None:
    async def main() -> None:
        async with puppet() as there:
            for number in range(1, 2000, 2):
                await there.say(packed(DATA, SYN, number, 1), b"x", packed(WINDOW, RST, number))
            answers = Counter(flags for _, flags, _, _ in await there.hear(1000))
            assert answers == {ACK: MAX_STREAMS, RST: 1000 - MAX_STREAMS}
            await expect_alive(there)

    run_trio(main)


def test_data_for_nobody_is_skipped() -> None:
    async def main() -> None:
        async with puppet() as there:
            most = FIRST_WINDOW_BYTES * MAX_STREAMS
            await there.say(packed(DATA, 0, 9, most))
            for _ in range(most // MIB):
                await there.say(bytes(MIB))
            await expect_alive(there)

    run_trio(main)


def test_any_number_of_grants_does_no_harm() -> None:
    async def main() -> None:
        async with puppet() as there:
            await there.say(packed(WINDOW, SYN, 1), packed(WINDOW, 0, 1, (1 << 32) - 1) * 1000)
            await there.say(packed(WINDOW, 0, 9, (1 << 32) - 1) * 1000)
            stream: Any = await there.conn.accept_stream()
            await stream.write(b"x")
            assert await there.session.read(25) == packed(WINDOW, ACK, 1) + packed(DATA, 0, 1, 1) + b"x"
            await expect_alive(there)

    run_trio(main)


def test_a_grant_that_is_never_used_up_costs_no_more_than_the_window() -> None:
    """A peer that fills every window it has, with nobody reading, is held to what it was granted."""

    async def main() -> None:
        async with puppet() as there:
            held = Held()
            for number in range(1, 2 * MAX_STREAMS, 2):
                await there.say(packed(WINDOW, SYN, number), packed(DATA, 0, number, FIRST_WINDOW_BYTES))
                await there.say(bytes(FIRST_WINDOW_BYTES))
            await expect_alive(there, MAX_STREAMS)
            assert held.bytes() < 2 * MAX_STREAMS * FIRST_WINDOW_BYTES

    with traced():
        run_trio(main)


@pytest.mark.parametrize("padding", [MAX_PLAIN_BYTES - 2 * HEADER.size - 1, 0], ids=["in full packets", "alone"])
def test_small_pieces_of_data_cost_no_more_than_a_few_windows(padding: int) -> None:
    """Single bytes for a stream that nobody reads, each in a packet of its own, with or without much else in it."""
    pieces = 100 if padding else 5000

    async def main() -> None:
        async with puppet() as there:
            await there.say(packed(WINDOW, SYN, 1))
            one = packed(DATA, 0, 1, 1) + b"x"
            if padding:
                one += packed(DATA, 0, 9, padding) + bytes(padding)
            held = Held()
            for _ in range(pieces):
                await there.say(one)
            await expect_alive(there, 1)
            assert held.bytes() < 2 * FIRST_WINDOW_BYTES
            stream: Any = await there.conn.accept_stream()
            assert await stream.read_exactly(pieces) == b"x" * pieces

    with traced():
        run_trio(main)


class traced:  # noqa: N801 - used as a function
    """Memory that Python hands out is counted."""

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *error: object) -> None:
        tracemalloc.stop()


class Held:
    """What is held now, and was not at first."""

    def __init__(self) -> None:
        gc.collect()
        self._before = tracemalloc.get_traced_memory()[0]

    def bytes(self) -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before


def test_a_header_is_twelve_bytes() -> None:
    assert HEADER.size == struct.calcsize("!BBHII") == 12
