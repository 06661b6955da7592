"""A neighbour that was let in and does not keep to the protocol harms nobody but itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from libp2p.abc import INetConn
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p_lab import (
    Outsider,
    Site,
    exchange,
    key,
    linked,
    loopback,
    open_descriptors,
    peer,
    run,
    sites,
    unharmed,
    until,
)

from gossipfl.messages.bounded import pack
from gossipfl.transports.base import MAX_FRAME_BYTES
from gossipfl.transports.libp2p.addresses import Address
from gossipfl.transports.libp2p.records import Record
from gossipfl.transports.libp2p.wire import (
    BULK,
    CONTROL,
    FRAME,
    HEAD,
    MAX_GREETING_BYTES,
    RECORD,
    Greeting,
    Refused,
    frame_head,
)
from gossipfl.transports.libp2p.yamux_frames import MAX_STREAMS
from gossipfl.transports.libp2p.yamux_stream import YamuxStream

pytestmark = pytest.mark.timeout(120)


@dataclass
class Bad:
    """Cid, who is a neighbour of ann and says by hand what he says; all of this runs in his trio thread."""

    host: Outsider
    ann: Site

    async def dial(self) -> INetConn:
        return await self.host.dial(self.ann.port, self.ann.id)

    async def greeted(self, instance: bytes = b"i" * 16) -> tuple[INetConn, YamuxStream]:
        """Return a connection and its control lane."""
        conn = await self.dial()
        lane = await self.host.open_stream(conn)
        await lane.write(self.host.greeting(instance=instance))
        await Greeting.read(lane)
        return conn, lane

    async def said_in_place_of_a_greeting(self, *said: bytes) -> None:
        """Say things, each on a new stream of one new connection, and wait until that is given up."""
        conn = await self.dial()
        for one in said:
            lane = await self.host.open_stream(conn)
            await lane.write(one)
            with contextlib.suppress(MuxedStreamError):
                await lane.read_exactly(1 << 20)
        await conn.close()


@contextlib.asynccontextmanager
async def bad_neighbour(**options: Any) -> AsyncIterator[tuple[Site, Bad]]:
    """Give ann and a bad cid; bob, linked to ann, notices nothing, and an honest cid is let in in the end."""
    async with linked("cid", **{"timeout_s": 2.0, **options}) as (ann, bob), unharmed(ann, bob):
        async with Outsider(key("cid")) as host:
            yield ann, Bad(host, ann)
        async with sites(Site("cid", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (honest,):
            await asyncio.gather(honest.up("ann"), until(lambda: ann.is_up("cid")))
            await exchange(ann, honest, b"the real one")


def check(script: Callable[[Site, Bad], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with bad_neighbour(**options) as (ann, cid):
            await script(ann, cid)

    run(main(), deadline_s=20)


# ---------------------------------------------------------------------------------------------- no greeting, no link


def test_a_stream_without_a_greeting_is_given_up() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        await cid.host.run(cid.said_in_place_of_a_greeting, b"")
        await until(lambda: ann.reasons.get("refused greeting") or ann.reasons.get("refused no lane"))
        assert ann.seen("up", "cid") == []

    check(script, timeout_s=0.4)


@pytest.mark.parametrize(
    "said",
    [
        (MAX_GREETING_BYTES + 1).to_bytes(2, "big") + bytes(MAX_GREETING_BYTES + 1),
        b"\xff\xff",
        b"\x00\x00",
        b"\x00\x03abc",
        b"\x00\x40" + b"\x91" * 64,  # lists in lists
        b"\x00\x05\xdd\xff\xff\xff\xff",  # a list that claims four thousand million entries
        b"\x00\x01\x80",  # an empty map
    ],
    ids=["oversized", "claims 64 KiB", "empty", "garbage", "nested", "claims a long list", "empty map"],
)
def test_what_is_no_greeting_is_refused(said: bytes) -> None:
    async def script(ann: Site, cid: Bad) -> None:
        await cid.host.run(cid.said_in_place_of_a_greeting, said)
        await ann.refused("greeting")
        (event,) = ann.seen("refused")
        assert event.peer == peer("cid")
        assert ann.seen("up", "cid") == []

    check(script)


def test_any_greeting_of_random_fields_is_refused_or_answered() -> None:
    choose = random.Random(7)
    values: list[Any] = [b"", b"i" * 16, bytes(8), bytes(16), bytes(32), "text", "", 0, 1, -1, 2**63, 2**64 - 1]
    values += [1.5, None, True, [], {}, [[[]]]]

    async def script(ann: Site, cid: Bad) -> None:
        for _ in range(4):
            said = []
            for _ in range(15):
                packed = pack({name: choose.choice(values) for name in "film" if choose.random() < 0.9})
                said.append(len(packed).to_bytes(2, "big") + packed)
            await cid.host.run(cid.said_in_place_of_a_greeting, *said)
        assert ann.reasons["refused greeting"] >= 1
        assert ann.seen("up", "cid") == []

    check(script)


def test_a_lane_that_does_not_exist_is_refused_and_counted() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> str:
            conn = await cid.dial()
            lane = await cid.host.open_stream(conn)
            await lane.write(cid.host.greeting(lane=7))
            try:
                await Greeting.read(lane)
            except Refused as refused:
                return refused.reason
            finally:
                await conn.close()
            return "was accepted"

        assert await cid.host.run(say) == "lane"
        assert ann.seen("up", "cid") == []
        assert ann.reasons.get("refused lane") == 1

    check(script)


def test_a_bulk_lane_before_the_control_lane_is_refused() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> str:
            conn = await cid.dial()
            lane = await cid.host.open_stream(conn)
            await lane.write(cid.host.greeting(lane=BULK))
            try:
                await Greeting.read(lane)
            except Refused as refused:
                return refused.reason
            finally:
                await conn.close()
            return "was accepted"

        assert await cid.host.run(say) == "no control lane"
        assert ann.seen("up", "cid") == []

    check(script)


def test_a_connection_that_is_refused_its_federation_is_not_kept() -> None:
    """It says that it belongs elsewhere, is told no, and stays."""

    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> None:
            conn = await cid.dial()
            lane = await cid.host.open_stream(conn)
            await lane.write(cid.host.greeting(federation="elsewhere"))
            with pytest.raises(Refused):
                await Greeting.read(lane)
            await conn.muxed_conn.ended.wait()  # type: ignore[attr-defined]

        await cid.host.run(say)
        await ann.refused("federation")

    check(script, timeout_s=0.5)


# ---------------------------------------------------------------------------------------------- what libp2p negotiates


@pytest.mark.parametrize(
    "said",
    [b"\x03\xff\xfe\n", b"\x13/multistream/1.0.0\n\x03\xff\xfe\n", b"\xff" * 10, b"\x00", b"\x81\x80\x80\x80\x40"],
    ids=["no text", "a protocol that is no text", "endless length", "nothing", "claims much"],
)
def test_garbage_where_a_protocol_is_negotiated_ends_that_stream_and_no_more(said: bytes) -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> None:
            conn = await cid.dial()
            stream = await conn.new_stream()
            with contextlib.suppress(Exception):
                await stream.write(said)
                with trio.move_on_after(0.5):
                    while await stream.read(100):
                        pass
            await conn.close()

        await cid.host.run(say)

    check(script)


def test_streams_that_are_reset_or_closed_at_once_do_no_harm() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> None:
            conn = await cid.dial()
            with contextlib.suppress(MuxedStreamError):  # on a busy machine the node loses patience before the end
                for number in range(40):
                    stream: Any = await conn.new_stream()
                    lane = stream.muxed_stream
                    if number % 2:
                        await lane.write(b"\x13/multistream/1.0.0\n\x0b/gossipfl/1"[: number % 31 + 1])
                    await (lane.reset() if number % 3 else lane.close())
                await conn.muxed_conn.ping()  # type: ignore[attr-defined]
            await conn.close()

        for _ in range(3):
            await cid.host.run(say)

    check(script)


@pytest.mark.parametrize("protocol", ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"])
def test_what_the_library_serves_by_itself_takes_garbage(protocol: str) -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say(said: bytes) -> None:
            conn = await cid.dial()
            with contextlib.suppress(Exception):
                lane = await cid.host.open_stream(conn, protocol)
                await lane.write(said)
                await lane.close()
                with trio.move_on_after(0.3):
                    await lane.read_exactly(1 << 20)
            await conn.close()

        for said in (b"", b"\x05\xff\xfe\xfd\xfc\xfb", b"\xff\xff\xff\xff\x0f", bytes(5000)):
            await cid.host.run(say, said)

    check(script)


# ---------------------------------------------------------------------------------------------- on a link


@pytest.mark.parametrize("size_bytes", [MAX_FRAME_BYTES + 1, (1 << 24) - 1])
def test_a_frame_over_the_limit_ends_the_link_and_is_counted(size_bytes: int) -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> None:
            conn, lane = await cid.greeted()
            await lane.write(frame_head(FRAME, size_bytes))
            await conn.muxed_conn.ended.wait()  # type: ignore[attr-defined]

        await cid.host.run(say)
        event = await ann.down("cid")
        assert "oversized" in event.detail
        assert ann.reasons == {"frame oversized": 1}

    check(script)


async def say_frames(ann: Site, cid: Bad, *frames: bytes) -> None:
    """Send some frames on a link, then one of the protocol above, which has to arrive by that link."""

    async def say() -> None:
        conn, lane = await cid.greeted()
        for frame in frames:
            await lane.write(frame)
        await lane.write(frame_head(FRAME, 4) + b"last")
        await conn.muxed_conn.ping()  # type: ignore[attr-defined]
        await arrived.wait()
        await conn.close()

    arrived = trio.Event()
    saying = asyncio.create_task(cid.host.run(say))
    try:
        assert await ann.receive() == (peer("cid"), b"last")
        assert ann.seen("down", "cid") == []
        await cid.host.inside(arrived.set)
        await saying
    finally:
        saying.cancel()
        await asyncio.wait([saying])


def test_frames_of_an_unknown_type_are_passed_over() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        await say_frames(ann, cid, *(frame_head(kind, 3) + b"abc" for kind in (2, 77, 255)), frame_head(FRAME, 0))
        assert ann.reasons == {"frame type": 4}

    check(script)


def record(name: str, sequence: int, port: int = 4001) -> bytes:
    envelope = Record.sign(key(name), [Address("ip4", "127.0.0.1", port)], sequence).envelope
    return frame_head(RECORD, len(envelope)) + envelope


def test_a_record_that_cannot_be_read_or_is_a_strangers_is_passed_over_and_counted() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        torn = bytearray(record("cid", 1))
        torn[-1] ^= 1
        nothing = frame_head(RECORD, 0)
        garbage = frame_head(RECORD, 100) + bytes(range(100))
        large = frame_head(RECORD, 9000) + bytes(9000)
        await say_frames(ann, cid, bytes(torn), nothing, garbage, large, record("eve", 1))
        assert sum(ann.reasons.values()) == 5, ann.reasons
        assert ann.reasons["record: of a stranger"] == 1
        assert ann.reasons["record: oversized"] == 1

    check(script)


def test_a_flood_of_records_is_counted_and_not_passed_on() -> None:
    flood = 300

    async def script(ann: Site, cid: Bad) -> None:
        told_before = ann.transport.address_records()
        await say_frames(ann, cid, *(record("cid", sequence) for sequence in range(1, flood + 1)))
        assert ann.reasons["record: too often"] >= flood - 10
        assert len(ann.transport.address_records()) == len(told_before) + 1

    check(script)


def test_a_record_of_another_member_is_believed_only_with_its_own_signature() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        forged = Record.sign(key("cid"), [Address("ip4", "127.0.0.1", 1)], 99).envelope
        mixed = forged.replace(_bytes_of("cid"), _bytes_of("bob"))
        assert mixed != forged
        await say_frames(ann, cid, frame_head(RECORD, len(mixed)) + mixed)
        assert sum(ann.reasons.values()) == 1, ann.reasons
        assert all(Record.read(envelope).sequence < 99 for envelope in ann.transport.address_records())

    check(script)


def _bytes_of(name: str) -> bytes:
    return b"\x00\x24\x08\x01\x12\x20" + key(name).public_key


def test_a_frame_that_drips_in_holds_nobody_up_and_arrives() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        frame = bytes(range(256)) * (MAX_FRAME_BYTES // 256)
        drops = 400
        dripped = trio.Event()

        async def say() -> None:
            conn, lane = await cid.greeted()
            await lane.write(frame_head(FRAME, len(frame)))
            for at in range(drops):
                await lane.write(frame[at : at + 1])
                if at % 20 == 0:
                    await conn.muxed_conn.ping()  # type: ignore[attr-defined]
            await dripped.wait()
            await lane.write(frame[drops:])
            await conn.muxed_conn.ended.wait()  # type: ignore[attr-defined]

        saying = asyncio.create_task(cid.host.run(say))
        await ann.up("cid")
        receiving = asyncio.create_task(ann.receive())
        assert await ann.send("bob", b"meanwhile")
        for _ in range(5):
            await ann.ping("bob")
        assert not receiving.done()
        await cid.host.inside(dripped.set)
        assert await receiving == (peer("cid"), frame)
        saying.cancel()
        await asyncio.wait([saying])

    check(script)


def test_a_hundred_streams_are_refused_but_for_a_few() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        before = open_descriptors()

        async def say() -> int:
            conn, lane = await cid.greeted()
            streams: list[Any] = [await conn.new_stream() for _ in range(100)]
            await conn.muxed_conn.ping()  # type: ignore[attr-defined]
            refused = sum(stream.muxed_stream.was_reset for stream in streams)
            await lane.write(frame_head(FRAME, 5) + b"still")
            await conn.muxed_conn.ended.wait()  # type: ignore[attr-defined]
            return refused

        saying = asyncio.create_task(cid.host.run(say))
        assert await ann.receive() == (peer("cid"), b"still")
        assert await ann.streams("cid") <= MAX_STREAMS
        assert ann.seen("down", "cid") == []

        async def hang_up() -> None:
            link = ann.link("cid")
            assert link is not None
            await link.close("enough")

        await ann.transport._bridge.run(hang_up)
        assert await saying >= 100 - MAX_STREAMS
        await until(lambda: open_descriptors() == before)

    check(script)


@pytest.mark.parametrize(
    "said",
    [
        b"\x01" * 12,  # another version of yamux
        HEAD.pack(0) * 3 + b"\xff" * 12,
        b"\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00",  # a stream number that is not its own to give
        b"\x00\x00\x00\x00\x00\x00\x00\x01\x7f\xff\xff\xff",  # more data than was granted
        b"\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07" * 20_000,  # pings, and nobody reads the answers
    ],
    ids=["version", "garbage", "number", "window", "pings"],
)
def test_what_is_no_yamux_ends_that_link_and_no_more(said: bytes) -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> None:
            conn, _ = await cid.greeted()
            muxed: Any = conn.muxed_conn
            with contextlib.suppress(Exception):
                await muxed.secured_conn.write(said)
            await muxed.close()

        await cid.host.run(say)
        event = await ann.down("cid")
        assert event.detail

    check(script)


# ---------------------------------------------------------------------------------------------- at the wrong moment


def test_a_neighbour_that_hangs_up_during_the_greeting_is_dialled_again() -> None:
    """It greets and is gone before the answer: nothing waits for the end of a link that never was."""

    async def main() -> None:
        port = Site("cid", []).port
        async with linked("cid", addresses={"cid": (loopback(port),)}, timeout_s=2.0) as (ann, bob), unharmed(ann, bob):
            async with Outsider(key("cid")) as host:
                bad = Bad(host, ann)

                async def say() -> None:
                    conn = await bad.dial()
                    lane = await host.open_stream(conn)
                    muxed: Any = conn.muxed_conn
                    await lane.write(host.greeting(instance=b"h" * 16))
                    await muxed.abort("gone")
                    await conn.close()

                for _ in range(20):
                    await host.run(say)
            await until(lambda: not ann.is_up("cid"))
            # Only ann dials here: an honest cid is found by her, or not at all.
            async with sites(Site("cid", ["ann"], port=port)) as (cid,):
                await until(lambda: ann.is_up("cid") and cid.is_up("ann"))
                await exchange(ann, cid, b"the real one")

    run(main(), deadline_s=15)


def test_a_second_control_lane_on_a_connection_ends_no_other_link() -> None:
    async def script(ann: Site, cid: Bad) -> None:
        async def say() -> None:
            conn, _ = await cid.greeted()
            with contextlib.suppress(Exception):
                for number in range(3):
                    lane = await cid.host.open_stream(conn)
                    await lane.write(cid.host.greeting(lane=CONTROL, instance=bytes([number]) * 16))
                    await Greeting.read(lane)
            await conn.close()

        for _ in range(3):
            await cid.host.run(say)
        await until(lambda: not ann.is_up("cid"))

    check(script)
