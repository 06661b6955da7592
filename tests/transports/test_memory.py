"""The memory transport under virtual time."""

from __future__ import annotations

import asyncio

import pytest

from gossipfl.clock import run_virtual
from gossipfl.errors import TransportClosed, TransportUnavailable
from gossipfl.transports.base import FORMER_PEER
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport


def test_an_id_can_join_a_network_once() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        first, second = (MemoryTransport(network, "ann", ["bob"]) for _ in range(2))
        await first.start()
        with pytest.raises(TransportUnavailable, match="ann"):
            await second.start()
        await second.close()  # leaves the first one where it is
        assert network.find("ann") is first
        await first.close()
        assert network.find("ann") is None

    run_virtual(main())


def test_a_sender_that_waits_for_room_goes_on_when_it_is_closed() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        ann = MemoryTransport(network, "ann", ["bob"])
        bob = MemoryTransport(network, "bob", ["ann"], inbox_frames=1)
        await ann.start()
        await bob.start()
        await ann.send(["bob"], b"fills the inbox")
        waiting = asyncio.create_task(ann.send(["bob"], b"waits"))
        await asyncio.sleep(1)
        assert not waiting.done()
        await ann.close()
        with pytest.raises(TransportClosed):
            await waiting
        await bob.close()

    run_virtual(main())


def test_a_sender_that_waits_for_room_goes_on_when_the_recipient_leaves() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        ann = MemoryTransport(network, "ann", ["bob"])
        bob = MemoryTransport(network, "bob", ["ann"], inbox_bytes=10)
        await ann.start()
        await bob.start()
        await ann.send(["bob"], bytes(8))
        waiting = asyncio.create_task(ann.send(["bob"], bytes(8)))
        await asyncio.sleep(1)
        await bob.close()
        assert await waiting
        assert ann.counters.by_reason == {"absent": 1}
        await ann.close()

    run_virtual(main())


def test_a_sender_that_waits_for_room_goes_on_when_the_recipient_is_no_peer_any_more() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        ann = MemoryTransport(network, "ann", ["bob"])
        bob = MemoryTransport(network, "bob", ["ann"], inbox_frames=1)
        await ann.start()
        await bob.start()
        await ann.send(["bob"], b"fills the inbox")
        for changing, dropping, reason in ((ann, ann, FORMER_PEER), (bob, bob, "foreign")):
            waiting = asyncio.create_task(ann.send(["bob"], b"waits"))
            await asyncio.sleep(1)
            assert not waiting.done()
            await changing.change_peers([], ["ann", "bob"])
            assert await waiting
            assert dropping.counters.by_reason == {reason: 1}
            await changing.change_peers({"ann", "bob"} - {changing.me}, ["ann", "bob"])
        assert (await bob.receive()).frame == b"fills the inbox"
        await ann.close()
        await bob.close()

    run_virtual(main())


def test_what_waits_in_the_inbox_from_a_former_peer_is_dropped_and_counted() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        members = {me: MemoryTransport(network, me, {"ann", "bob", "cid"} - {me}) for me in ("ann", "bob", "cid")}
        for transport in members.values():
            await transport.start()
        for frame in (b"1", b"2"):
            await members["ann"].send(["bob"], frame)
            await members["cid"].send(["bob"], frame)
        receiving = asyncio.create_task(members["bob"].receive())
        await asyncio.sleep(1)
        assert (await receiving).source == "ann"
        await members["bob"].change_peers(["cid"], members)
        for frame in (b"1", b"2"):
            received = await members["bob"].receive()
            assert (received.source, received.frame) == ("cid", frame)
        assert members["bob"].counters.by_reason == {"foreign": 1}
        assert members["bob"].counters.frames_received == 3
        for transport in members.values():
            await transport.close()

    run_virtual(main())
