"""Queues in front of a transport that sends to each peer by itself: a slow peer holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from typing import Any

import pytest

from gossipfl.clock import run_virtual
from gossipfl.errors import TransportClosed
from gossipfl.gossip.effects import Send
from gossipfl.outgoing import QUEUED_FRAMES, Outgoing
from gossipfl.transports.base import LinkEvent, PeerId, Received, Transport, TransportCounters, check_frame
from gossipfl.transports.libp2p.transport import Libp2pTransport
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport

DEADLINE_S = 1000.0
ANN, BOB, CID = "ann", "bob", "cid"


class SlowTransport(Transport):
    """Takes frames for its peers at once; those to ``blocked`` (peer and bulk) wait until that changes."""

    shares_wire = False

    def __init__(self, *peers: PeerId) -> None:
        self.me = "me"
        self.peers = frozenset(peers)
        self.counters = TransportCounters()
        self.blocked: set[tuple[PeerId, bool]] = set()
        self.sent: list[tuple[tuple[PeerId, ...], bytes, bool]] = []
        self.closed = False
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        raise NotImplementedError

    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        check_frame(frame, recipients, self.peers)
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.closed or not any((peer, bulk) in self.blocked for peer in recipients)
            )
        if self.closed:
            raise TransportClosed("closed")
        self.sent.append((tuple(recipients), bytes(frame), bulk))
        return True

    async def unblock(self) -> None:
        async with self._changed:
            self.blocked.clear()
            self._changed.notify_all()

    async def receive(self) -> Received:
        raise NotImplementedError

    async def events(self) -> LinkEvent:
        raise NotImplementedError

    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        self.peers = frozenset(peers)

    async def close(self) -> None:
        async with self._changed:
            self.closed = True
            self._changed.notify_all()

    def sent_to(self, peer: PeerId) -> list[bytes]:
        return [frame for recipients, frame, _ in self.sent if peer in recipients]


class SharingTransport(SlowTransport):
    """The same, for a wire that spreads a frame by itself."""

    shares_wire = True


@contextlib.asynccontextmanager
async def forwarding(outgoing: Outgoing, transport: Transport) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Forward every lane, as the agent does, and stop in the end."""
    tasks = [asyncio.create_task(lane.forward(transport, lambda: None)) for lane in outgoing.lanes]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settled() -> None:
    """Return when nothing can happen any more without a timer: the virtual clock jumps only then."""
    await asyncio.sleep(1.0)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await main()

    run_virtual(bounded())


def test_the_wires_say_of_themselves_whether_they_are_shared() -> None:
    assert not Libp2pTransport.shares_wire
    assert MemoryTransport.shares_wire

    async def main() -> None:
        assert len(Outgoing.for_transport(SlowTransport(ANN, BOB, CID)).lanes) == 6
        assert len(Outgoing.for_transport(SharingTransport(ANN, BOB, CID)).lanes) == 2
        assert len(Outgoing.for_transport(MemoryTransport(MemoryNetwork(), ANN, {BOB, CID})).lanes) == 2
        assert Outgoing.for_transport(SlowTransport()).lanes == []

    run(main)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_peer_that_takes_nothing_holds_up_no_other(bulk: bool) -> None:
    async def main() -> None:
        transport = SlowTransport(ANN, BOB, CID)
        outgoing = Outgoing.for_transport(transport)
        transport.blocked = {(ANN, bulk)}
        frames = [b"%d" % number for number in range(50)]
        async with forwarding(outgoing, transport):
            for frame in frames:
                outgoing.put(Send((ANN, BOB, CID), frame, bulk))
            await settled()
            assert transport.sent_to(BOB) == transport.sent_to(CID) == frames
            assert transport.sent_to(ANN) == []
            assert not outgoing.idle
            await transport.unblock()
            await settled()
            assert transport.sent_to(ANN) == frames
            assert outgoing.idle
        assert outgoing.dropped == 0
        assert all(len(recipients) == 1 for recipients, _, _ in transport.sent)

    run(main)


@pytest.mark.parametrize("bulk", [False, True])
def test_one_kind_of_frame_does_not_wait_for_the_other(bulk: bool) -> None:
    async def main() -> None:
        transport = SlowTransport(ANN)
        outgoing = Outgoing.for_transport(transport)
        transport.blocked = {(ANN, not bulk)}
        async with forwarding(outgoing, transport):
            outgoing.put(Send((ANN,), b"stuck", not bulk))
            outgoing.put(Send((ANN,), b"free", bulk))
            await settled()
            assert transport.sent == [((ANN,), b"free", bulk)]

    run(main)


@pytest.mark.parametrize("bulk", [False, True])
def test_a_full_queue_gives_up_the_oldest_frames_of_that_peer_alone(bulk: bool) -> None:
    async def main() -> None:
        transport = SlowTransport(ANN, BOB)
        outgoing = Outgoing.for_transport(transport)
        transport.blocked = {(ANN, bulk)}
        room = QUEUED_FRAMES[bulk]
        frames = [b"%d" % number for number in range(1 + room + 10)]
        async with forwarding(outgoing, transport):
            for frame in frames:
                outgoing.put(Send((ANN, BOB), frame, bulk))
                await settled()
            assert outgoing.dropped == 10
            await transport.unblock()
            await settled()
            assert transport.sent_to(BOB) == frames
            assert transport.sent_to(ANN) == [frames[0], *frames[-room:]]

    run(main)


def test_a_shared_wire_gets_a_frame_once() -> None:
    async def main() -> None:
        transport = SharingTransport(ANN, BOB, CID)
        outgoing = Outgoing.for_transport(transport)
        async with forwarding(outgoing, transport):
            outgoing.put(Send((ANN, CID), b"status"))
            outgoing.put(Send((BOB,), b"chunk", bulk=True))
            await settled()
        assert sorted(transport.sent) == [((ANN, CID), b"status", False), ((BOB,), b"chunk", True)]

    run(main)


def test_it_is_idle_once_everything_has_been_handed_over_and_says_so() -> None:
    async def main() -> None:
        transport = SlowTransport(ANN)
        outgoing = Outgoing.for_transport(transport)
        assert outgoing.idle
        outgoing.put(Send((ANN,), b"1"))
        assert not outgoing.idle
        idle_when_told: list[bool] = []
        transport.blocked = {(ANN, False)}
        tasks = [
            asyncio.create_task(lane.forward(transport, lambda: idle_when_told.append(outgoing.idle)))
            for lane in outgoing.lanes
        ]
        await settled()
        assert not outgoing.idle  # it has left the queue, and is not handed over yet
        assert idle_when_told == [False]  # of the bulk lane
        await transport.unblock()
        await settled()
        assert outgoing.idle
        assert idle_when_told[-1]
        await transport.close()
        outgoing.put(Send((ANN,), b"2"))
        await settled()
        assert [task.done() for task in tasks] == [not lane.bulk for lane in outgoing.lanes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main)


def test_a_closed_transport_ends_every_lane_that_has_something_to_send() -> None:
    async def main() -> None:
        transport = SlowTransport(ANN, BOB)
        outgoing = Outgoing.for_transport(transport)
        transport.blocked = {(ANN, False), (ANN, True)}
        async with forwarding(outgoing, transport) as tasks:
            for bulk in (False, True):
                outgoing.put(Send((ANN, BOB), b"frame", bulk))
            await settled()
            await transport.close()
            for bulk in (False, True):
                outgoing.put(Send((BOB,), b"too late", bulk))
            await settled()
            assert all(task.done() and task.exception() is None for task in tasks)

    run(main)


def test_a_frame_for_nobody_goes_nowhere() -> None:
    async def main() -> None:
        transport = SlowTransport(ANN)
        outgoing = Outgoing.for_transport(transport)
        async with forwarding(outgoing, transport):
            outgoing.put(Send((), b"frame"))
            await settled()
        assert transport.sent == []
        assert outgoing.idle

    run(main)


def test_a_change_gives_lanes_to_new_peers_and_takes_those_of_former_ones() -> None:
    async def main() -> None:
        transport = SlowTransport(ANN, BOB)
        outgoing = Outgoing.for_transport(transport)
        before = {lane: lane.bulk for lane in outgoing.lanes}
        await transport.change_peers([CID, BOB], ())
        new, gone = outgoing.change_peers([CID, BOB])
        assert [lane.bulk for lane in new] == [lane.bulk for lane in gone] == list(QUEUED_FRAMES)
        assert set(gone) < set(before)
        assert not before.keys() & set(new)
        assert set(outgoing.lanes) == (before.keys() - set(gone)) | set(new)
        assert outgoing.change_peers({BOB, CID}) == ([], [])
        async with forwarding(outgoing, transport):
            outgoing.put(Send((BOB, CID), b"frame"))
            await settled()
            assert sorted(transport.sent) == [((BOB,), b"frame", False), ((CID,), b"frame", False)]
        assert outgoing.change_peers([]) == ([], [*(lane for lane in before if lane not in gone), *new])
        assert outgoing.lanes == []
        assert outgoing.orphaned == 0

    run(main)


def test_what_was_queued_for_a_former_peer_is_given_up_and_counted() -> None:
    async def main() -> None:
        transport = SlowTransport(ANN, BOB)
        outgoing = Outgoing.for_transport(transport)
        transport.blocked = {(ANN, False), (BOB, False)}
        async with forwarding(outgoing, transport):
            for number in range(4):
                outgoing.put(Send((ANN, BOB), b"%d" % number))
                await settled()
            await transport.change_peers([BOB], ())
            _, gone = outgoing.change_peers([BOB])
            outgoing.put(Send((ANN, BOB), b"4"))
            assert outgoing.orphaned == 4  # three that waited, and one that came after the change
            await transport.unblock()
            await settled()
            assert transport.sent_to(BOB) == [b"%d" % number for number in range(5)]
            assert transport.sent_to(ANN) == [b"0"]  # the wire had it already
            assert outgoing.idle
            assert all(lane.idle for lane in gone)
        assert outgoing.orphaned == 4
        assert outgoing.dropped == 0

    run(main)


@pytest.mark.parametrize("kind", [SlowTransport, SharingTransport])
def test_no_lane_hands_over_a_recipient_that_is_no_peer_any_more(kind: type[SlowTransport]) -> None:
    """The transport changes first: what waits in a lane then would be an unknown recipient's."""

    async def main() -> None:
        transport = kind(ANN, BOB)
        outgoing = Outgoing.for_transport(transport)
        transport.blocked = {(BOB, False)}
        async with forwarding(outgoing, transport) as tasks:
            outgoing.put(Send((BOB,), b"under way"))
            await settled()
            outgoing.put(Send((ANN, BOB), b"to both"))
            outgoing.put(Send((ANN,), b"to ann"))
            if kind is SlowTransport:
                transport.blocked |= {(ANN, False)}
            await transport.change_peers([BOB], ())
            await transport.unblock()
            await settled()
            assert not any(task.done() for task in tasks)
            assert transport.sent_to(BOB) == [b"under way", b"to both"]
            assert transport.sent_to(ANN) == []
            assert outgoing.orphaned == 2
            assert outgoing.idle

    run(main)


def test_a_shared_wire_keeps_its_two_lanes() -> None:
    async def main() -> None:
        transport = SharingTransport(ANN, BOB)
        outgoing = Outgoing.for_transport(transport)
        lanes = outgoing.lanes
        async with forwarding(outgoing, transport):
            await transport.change_peers([BOB, CID], ())
            assert outgoing.change_peers([BOB, CID]) == ([], [])
            assert outgoing.lanes == lanes
            outgoing.put(Send((BOB, CID), b"to both"))
            await settled()
            assert transport.sent == [((BOB, CID), b"to both", False)]

    run(main)
