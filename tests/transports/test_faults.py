"""Faults: each does what its name says, as often as the plan says, and the same again with the same seed."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.clock import run_virtual
from gossipfl.errors import ConfigError, TransportClosed
from gossipfl.transports import faults
from gossipfl.transports.base import FORMER_PEER
from gossipfl.transports.faults import Crash, FaultPlan, FaultyTransport, Partition
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport

PAIR = {"ann": {"bob"}, "bob": {"ann"}}
TRIO = {"ann": {"bob", "cid"}, "bob": {"ann", "cid"}, "cid": {"ann", "bob"}}


@dataclass
class Wire:
    """What a run over a faulty network saw: (time, recipient, sender, frame) of each arrival."""

    arrivals: list[tuple[float, str, str | None, bytes]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def frames(self, recipient: str = "bob") -> list[bytes]:
        return [frame for _, to, _, frame in self.arrivals if to == recipient]


def over(
    plan: FaultPlan,
    program: Callable[[dict[str, FaultyTransport]], Coroutine[Any, Any, None]],
    graph: dict[str, set[str]] = PAIR,
    seed: int = 1,
) -> Wire:
    """Run ``program`` over a faulty network in virtual time, and 60 s more for what is under way."""
    wire = Wire()

    async def listen(transport: FaultyTransport) -> None:
        while True:
            try:
                received = await transport.receive()
            except TransportClosed:
                return
            now_s = asyncio.get_running_loop().time()
            wire.arrivals.append((now_s, transport.me, received.source, bytes(received.frame)))

    async def main() -> None:
        network = MemoryNetwork()
        members = {
            me: FaultyTransport(MemoryTransport(network, me, sorted(peers)), plan, seed) for me, peers in graph.items()
        }
        async with asyncio.TaskGroup() as group:
            for transport in members.values():
                await transport.start()
                group.create_task(listen(transport))
            await program(members)
            await asyncio.sleep(60)
            for transport in members.values():
                wire.reasons.update(transport.counters.by_reason)
                await transport.close()

    run_virtual(main())
    return wire


def steady(count: int, every_s: float = 1.0) -> Callable[[dict[str, FaultyTransport]], Coroutine[Any, Any, None]]:
    """Return a program in which ann sends numbered frames to all her peers at a steady pace."""

    async def program(members: dict[str, FaultyTransport]) -> None:
        for number in range(count):
            await members["ann"].send(members["ann"].peers, number.to_bytes(4))
            await asyncio.sleep(every_s)

    return program


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame) for frame in frames]


def near(count: int, expected: float) -> bool:
    """Say whether a binomial count is within five standard deviations (generously) of its expectation."""
    return abs(count - expected) <= 5 * math.sqrt(expected)


def test_a_perfect_wire_changes_nothing() -> None:
    wire = over(FaultPlan(), steady(20))
    assert [(now_s, int.from_bytes(frame)) for now_s, _, _, frame in wire.arrivals] == [(n, n) for n in range(20)]


def test_drop_loses_its_share() -> None:
    wire = over(FaultPlan(drop=0.25), steady(1000))
    lost = 1000 - len(wire.arrivals)
    assert near(lost, 250)
    assert wire.reasons == {"fault: drop": lost}
    assert numbers(wire.frames()) == sorted(set(numbers(wire.frames())))


def test_duplicate_doubles_its_share() -> None:
    wire = over(FaultPlan(duplicate=0.25), steady(1000))
    assert set(numbers(wire.frames())) == set(range(1000))
    assert near(len(wire.arrivals) - 1000, 250)


def test_reorder_lets_a_successor_overtake() -> None:
    wire = over(FaultPlan(reorder=0.2), steady(1000, every_s=0.01))
    assert sorted(numbers(wire.frames())) == list(range(1000))
    overtaken = sum(later < earlier for earlier, later in pairwise(numbers(wire.frames())))
    assert near(overtaken, 1000 * 0.2 * 0.8)


def test_a_reordered_frame_without_a_successor_arrives_a_little_later() -> None:
    wire = over(FaultPlan(reorder=1.0), steady(3, every_s=10.0))
    assert [now_s for now_s, *_ in wire.arrivals] == [pytest.approx(at_s + 0.1) for at_s in (0, 10, 20)]


def test_delay_stays_in_its_range() -> None:
    wire = over(FaultPlan(delay_s=(0.5, 2.0)), steady(500, every_s=0.1))
    delays_s = [now_s - 0.1 * int.from_bytes(frame) for now_s, _, _, frame in wire.arrivals]
    assert len(delays_s) == 500
    assert 0.5 <= min(delays_s) < 0.6
    assert 1.9 < max(delays_s) <= 2.0 + 1e-9


def test_corrupt_changes_bytes_and_not_the_length() -> None:
    wire = over(FaultPlan(corrupt=0.25), steady(1000))
    assert {len(frame) for frame in wire.frames()} == {4}
    intact = [number for at, number in zip(range(1000), numbers(wire.frames()), strict=True) if at == number]
    assert near(1000 - len(intact), 250)


def test_a_partition_stops_what_crosses_it_and_heals() -> None:
    split = Partition(3.0, 6.0, (frozenset({"ann", "bob"}),))  # cid is alone
    wire = over(FaultPlan(partitions=(split,)), steady(10), TRIO)
    assert numbers(wire.frames("bob")) == list(range(10))
    assert numbers(wire.frames("cid")) == [0, 1, 2, 6, 7, 8, 9]
    assert wire.reasons == {"fault: partition": 3}


def test_a_partition_catches_what_is_under_way() -> None:
    split = Partition(1.5, 9.0, (frozenset({"ann"}), frozenset({"bob"})))
    wire = over(FaultPlan(delay_s=(1.0, 1.0), partitions=(split,)), steady(3, every_s=1.0))
    assert numbers(wire.frames()) == [0]
    assert wire.reasons == {"fault: partition": 2}


def test_a_crashed_peer_neither_sends_nor_receives() -> None:
    async def both_ways(members: dict[str, FaultyTransport]) -> None:
        for number in range(6):
            for me in ("ann", "bob"):
                await members[me].send(["bob" if me == "ann" else "ann"], number.to_bytes(4))
            await asyncio.sleep(1)

    wire = over(FaultPlan(crashes=(Crash("bob", 2.0, 4.0),)), both_ways)
    assert numbers(wire.frames("ann")) == numbers(wire.frames("bob")) == [0, 1, 4, 5]
    assert wire.reasons == {"fault: crash": 4}


def test_all_faults_together_repeat_with_the_seed() -> None:
    plan = FaultPlan(
        0.2, 0.2, 0.2, 0.2, (0.0, 1.0), (Partition(5, 10, (frozenset({"ann"}),)),), (Crash("cid", 20, 30),)
    )
    first, again, other = (over(plan, steady(60, every_s=0.5), TRIO, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_one_link_does_not_disturb_another() -> None:
    plan = FaultPlan(drop=0.5)

    async def to_bob_only(members: dict[str, FaultyTransport]) -> None:
        for number in range(50):
            await members["ann"].send(["bob"], number.to_bytes(4))

    assert over(plan, steady(50), TRIO).frames("bob") == over(plan, to_bob_only, TRIO).frames("bob")


@settings(max_examples=30)
@given(
    st.builds(
        FaultPlan,
        drop=st.floats(0, 1),
        duplicate=st.floats(0, 1),
        reorder=st.floats(0, 1),
        delay_s=st.tuples(st.floats(0, 5), st.floats(5, 9)),
    )
)
def test_without_corruption_nothing_arrives_that_was_not_sent(plan: FaultPlan) -> None:
    wire = over(plan, steady(10))
    copies = Counter(numbers(wire.frames()))
    assert set(copies) <= set(range(10))
    assert all(count <= 2 for count in copies.values())
    assert len(copies) + wire.reasons["fault: drop"] == 10


def test_close_loses_what_is_under_way() -> None:
    async def main() -> None:
        network = MemoryNetwork()
        ann = FaultyTransport(MemoryTransport(network, "ann", ["bob"]), FaultPlan(delay_s=(5, 5)), seed=1)
        bob = MemoryTransport(network, "bob", ["ann"])
        await ann.start()
        await bob.start()
        for _ in range(10):
            assert await ann.send(["bob"], b"under way")
        await ann.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await bob.close()

    run_virtual(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": 1.1},
        {"corrupt": -0.1},
        {"reorder": math.nan},
        {"delay_s": (2.0, 1.0)},
        {"delay_s": (-1.0, 1.0)},
        {"delay_s": (0.0, math.inf)},
        {"partitions": (Partition(2.0, 1.0, ()),)},
        {"crashes": (Crash("ann", 2.0, 1.0),)},
    ],
)
def test_an_impossible_plan_is_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^fault plan: [^\n]+$"):
        FaultPlan(**wrong)


def test_a_frame_under_way_to_a_former_peer_is_lost_and_counted() -> None:
    async def program(members: dict[str, FaultyTransport]) -> None:
        await members["ann"].send(["bob", "cid"], b"frame")
        await asyncio.sleep(0.5)
        await members["ann"].change_peers(["cid"], TRIO)

    wire = over(FaultPlan(delay_s=(1.0, 1.0)), program, TRIO)
    assert wire.frames("bob") == []
    assert wire.frames("cid") == [b"frame"]
    assert wire.reasons == {FORMER_PEER: 1}


def test_a_recipient_that_ceases_to_be_a_peer_while_a_frame_waits_does_not_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The copies for cid wait for each other, and bob's frame, which no fault touches, goes after them."""
    fates = {"bob": faults._Fate((0.0,), held=False, corrupt=False), "cid": faults._Fate((5.0, 5.0), False, False)}
    monkeypatch.setattr(faults, "IN_FLIGHT_FRAMES", 1)
    monkeypatch.setattr(FaultyTransport, "_draw", lambda self, peer: fates[peer])

    async def program(members: dict[str, FaultyTransport]) -> None:
        sending = asyncio.create_task(members["ann"].send(["bob", "cid"], b"frame"))
        await asyncio.sleep(1)
        assert not sending.done()
        await members["ann"].change_peers(["cid"], TRIO)
        assert await sending

    wire = over(FaultPlan(drop=0.5), program, TRIO)
    assert wire.frames("bob") == []
    assert wire.frames("cid") == [b"frame", b"frame"]
    assert wire.reasons == {FORMER_PEER: 1}


def test_the_faults_of_a_link_go_on_where_they_were_when_a_peer_returns() -> None:
    def program(changes: bool) -> Callable[[dict[str, FaultyTransport]], Coroutine[Any, Any, None]]:
        async def send(members: dict[str, FaultyTransport]) -> None:
            for number in range(100):
                if changes and number == 50:
                    await members["ann"].change_peers([], TRIO)
                    await members["ann"].change_peers(["bob"], TRIO)
                await members["ann"].send(["bob"], number.to_bytes(4))

        return send

    plan = FaultPlan(drop=0.5)
    assert over(plan, program(changes=True)).frames() == over(plan, program(changes=False)).frames()


def test_a_new_peer_has_the_faults_that_it_would_have_had_from_the_start() -> None:
    plan, last = FaultPlan(drop=0.5), {"ann": {"bob", "cid"}, "bob": {"ann"}, "cid": {"ann"}}
    first = {**last, "ann": {"bob"}}

    def program(changes: bool) -> Callable[[dict[str, FaultyTransport]], Coroutine[Any, Any, None]]:
        async def send(members: dict[str, FaultyTransport]) -> None:
            if changes:
                await members["ann"].change_peers(["bob", "cid"], last)
            for number in range(100):
                await members["ann"].send(["cid"], number.to_bytes(4))

        return send

    grown, whole = over(plan, program(changes=True), first), over(plan, program(changes=False), last)
    assert grown.frames("cid") == whole.frames("cid") != []
