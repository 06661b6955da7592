"""Back-pressure: a slow reader slows its own sender, and what is urgent waits behind no more than is on its way."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from libp2p_lab import Process, Site, free_port, loopback, peer, run, sites, tell, timed, until, wired

from gossipfl.transports.libp2p.queues import MAX_BULK_INBOX_FRAMES
from gossipfl.transports.libp2p.yamux_frames import MAX_DATA_BYTES

pytestmark = pytest.mark.timeout(120)

CHUNK_BYTES = 960 << 10


@pytest.mark.parametrize("bulk", [False, True])
def test_a_slow_reader_slows_its_sender_and_nobody_else(bulk: bool) -> None:
    frame_bytes, count = 100_000, 100
    limits: dict[str, Any] = {
        "window_bytes": 1 << 18,
        "outbox_bytes": 1 << 20,
        "inbox_bytes": 1 << 20,
        "inbox_frames": 64,
    }
    # In two places one frame is in hand: taken from the outbox and not sent yet, read and not in the inbox yet.
    most_held_bytes = limits["outbox_bytes"] + 2 * limits["window_bytes"] + limits["inbox_bytes"]
    assert 2 * frame_bytes <= limits["window_bytes"]
    assert count * frame_bytes > 2 * most_held_bytes

    async def main() -> None:
        port = free_port()
        way = {"ann": (loopback(port),)}
        async with sites(
            Site("ann", ["bob", "cid"], port=port, **limits),
            Site("bob", ["ann"], addresses=way, members=["cid"], **limits),
            Site("cid", ["ann"], addresses=way, members=["bob"], **limits),
        ) as (ann, bob, cid):
            await ann.up("bob", "cid")
            frames = [bytes([number]) * frame_bytes for number in range(count)]
            handed = {"bob": 0, "cid": 0}

            async def send_all(name: str) -> None:
                for frame in frames:
                    assert await ann.send(name, frame, bulk=bulk)
                    handed[name] += 1

            senders = {name: asyncio.create_task(send_all(name)) for name in handed}
            for frame in frames:
                assert await cid.receive() == (ann.id, frame)
                assert handed["bob"] * frame_bytes <= most_held_bytes
            await senders["cid"]
            for _ in range(3):  # all that bob can be sent has been sent, and read as far as there is room
                await ann.ping("bob")
            assert not senders["bob"].done()
            held_bytes = handed["bob"] * frame_bytes
            tell(f"held for a reader that reads nothing (of at most {most_held_bytes} bytes), MB", held_bytes / 1e6)
            assert held_bytes <= most_held_bytes
            for number, frame in enumerate(frames):
                assert handed["bob"] - number <= most_held_bytes // frame_bytes
                assert await bob.receive() == (ann.id, frame)
            await senders["bob"]
            assert ann.seen("down") == []

    run(main())


def test_an_urgent_frame_overtakes_all_chunks_that_wait_for_a_reader() -> None:
    """The reader takes frames one by one; everything ahead is full of chunks when the urgent frame is handed in."""

    async def main() -> None:
        async with wired() as (ann, bob, _):
            sending = [asyncio.create_task(ann.send("bob", bytes(CHUNK_BYTES), bulk=True)) for _ in range(16)]
            await until(lambda: len(bob.transport._inbox) == MAX_BULK_INBOX_FRAMES)
            sent = ann.transport.counters.frames_sent
            assert await ann.send("bob", b"urgent")
            await until(lambda: ann.transport.counters.frames_sent > sent)
            await ann.ping("bob")
            before = []
            while (frame := (await bob.receive())[1]) != b"urgent":
                before.append(len(frame))
            assert len(before) <= 1
            while len(before) < len(sending):
                before.append(len((await bob.receive())[1]))
            assert all(await asyncio.gather(*sending))

    run(main())


@pytest.mark.parametrize("window_bytes", [1 << 18, 1 << 20])
def test_on_a_slow_network_an_urgent_frame_waits_behind_what_is_on_its_way_and_no_more(window_bytes: int) -> None:
    """Ahead of it are at most: the rest of a chunk, a window, and the data frame that is being written.

    For a window of 256 KiB that is one chunk of 960 KiB; for the default of 1 MiB it may be two.
    """
    most = (CHUNK_BYTES - 1 + window_bytes + MAX_DATA_BYTES) // CHUNK_BYTES
    rate = 12e6

    async def main() -> None:
        options = {"window_bytes": window_bytes, "dead_s": 30.0}
        async with wired(options, options, rate) as (ann, bob, _):
            chunks = 0
            urgent = asyncio.Event()

            async def receive_all() -> None:
                nonlocal chunks
                while True:
                    if (await bob.receive())[1] == b"urgent":
                        urgent.set()
                    else:
                        chunks += 1

            async def send_all() -> None:
                while not enough.is_set():
                    assert await ann.send("bob", bytes(CHUNK_BYTES), bulk=True)

            enough = asyncio.Event()
            tasks = [asyncio.create_task(receive_all()), asyncio.create_task(send_all())]
            worst = 0
            for number in range(1, 6):
                await until(lambda number=number: chunks >= 2 * number)
                received, watch = chunks, timed()
                assert await ann.send("bob", b"urgent")
                await urgent.wait()
                urgent.clear()
                worst = max(worst, chunks - received)
                tell(f"urgent frame, window {window_bytes >> 10} KiB, behind {chunks - received} chunks", watch())
                assert chunks - received <= most
            enough.set()
            await tasks[1]
            tasks[0].cancel()
            await asyncio.wait(tasks)

    run(main())


@pytest.mark.processes
def test_a_thousand_exchanges_of_a_megabyte_at_once_arrive_whole_and_within_memory() -> None:
    async def main() -> None:
        port = free_port()
        ways = {"ann": [loopback(port)]}
        watch = timed()
        async with (
            Process("ann", ["bob"], job="stress", listen=[loopback(port)], dead_s=20.0, timeout_s=10.0) as ann,
            Process("bob", ["ann"], job="stress", addresses=ways, dead_s=20.0, timeout_s=10.0) as bob,
        ):
            for process in (ann, bob):
                outcome = await process.until(lambda process=process: process.last("stressed"))
                assert outcome["problem"] is None, outcome
                assert outcome["frames"] == outcome["urgent"] == 1000
                assert outcome["pings"] > 0
                assert outcome["grown_mb"] < 150, outcome
                assert not process.events("down")
                tell(f"{process.name}: memory grew by {outcome['grown_mb']:.0f} MB, pings {outcome['pings']}", watch())

    run(main(), deadline_s=58)


def test_the_digest_of_the_stress_sees_a_changed_byte() -> None:
    from libp2p_stress import CONTENTS, content

    frames = [content(number) for number in range(CONTENTS)]
    assert len({hashlib.sha256(frame).digest() for frame in frames}) == CONTENTS
    assert {len(frame) for frame in frames} == {1_000_000}
    assert Path(__file__).with_name("libp2p_stress.py").exists()
    assert peer("ann") != peer("bob")
