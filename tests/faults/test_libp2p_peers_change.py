"""Neighbours and members that change while sites run, over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from libp2p_lab import (
    Outsider,
    Site,
    exchange,
    free_port,
    key,
    linked,
    loopback,
    peer,
    run,
    sites,
    unharmed,
    until,
    until_async,
    wired,
)

from gossipfl.errors import ConfigError
from gossipfl.transports.base import FORMER_PEER
from gossipfl.transports.libp2p.host import MAX_CONNECTIONS_PER_PEER, PLACES_FOR_OTHERS
from gossipfl.transports.libp2p.records import Record

pytestmark = pytest.mark.timeout(120)

EVERYONE = ("ann", "bob", "cid", "dan")


async def change(site: Site, peers: Iterable[str], members: Iterable[str] = EVERYONE) -> None:
    wanted = [peer(name) for name in peers]
    await site.transport.change_peers(wanted, [peer(name) for name in members])
    assert site.transport.peers == set(wanted) == site.transport.links().keys()


@pytest.mark.parametrize(
    ("members", "reason", "words"),
    [
        (("ann", "bob"), "removed", "no member any more"),
        (("ann", "bob", "cid"), "no neighbour", "no neighbour"),
    ],
)
def test_a_former_neighbour_loses_its_link_and_is_refused(members: tuple[str, ...], reason: str, words: str) -> None:
    async def main() -> None:
        async with (
            linked("cid") as (ann, bob),
            unharmed(ann, bob),
            sites(Site("cid", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (cid,),
        ):
            await ann.up("cid")
            await exchange(ann, cid)
            await change(ann, ["bob"], members)
            assert await ann.connections() == 1
            await asyncio.gather(ann.down("cid"), cid.down("ann"))
            await ann.refused(reason, times=3)
            with pytest.raises(ValueError, match="not a peer"):
                await ann.send("cid", b"good-bye")
            assert not await cid.send("ann", b"good-bye")
            (refused,) = ann.seen("refused", "cid")
            assert words in refused.detail
            assert len(ann.seen("up", "cid")) == len(ann.seen("down", "cid")) == 1
            known = {Record.read(envelope).peer for envelope in ann.transport.address_records()}
            assert (cid.id in known) == (reason == "no neighbour")

    run(main())


def test_a_former_neighbour_that_is_one_again_is_linked_again_and_nothing_is_left_behind() -> None:
    async def main() -> None:
        async with (
            linked("cid") as (ann, bob),
            unharmed(ann, bob),
            sites(Site("cid", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (cid,),
        ):
            await ann.up("cid")
            await exchange(ann, cid)

            async def quiet() -> bool:
                passing = ("_expect_lane", "_try", "close", "_cleanup", "_cut", "give_way", "run_out")
                names = [*await ann.trio_tasks(), *await cid.trio_tasks()]
                lanes = (await ann.streams("cid"), await cid.streams("ann"))
                return lanes == (2, 2) and not any(name.endswith(passing) for name in names)

            await until_async(quiet)
            before = await ann.trio_tasks()
            for times in range(2, 7):
                await change(ann, ["bob"])
                await change(ann, ["bob", "cid"])
                await asyncio.gather(ann.up("cid", times=times), cid.up("ann", times=times))
                await exchange(ann, cid, b"%d" % times)
            await until_async(quiet)
            assert await ann.trio_tasks() == before
            assert await ann.connections() == 2
            assert ann.transport.counters.reconnects == 0
            assert [event.state for event in ann.events if event.peer == cid.id and event.state != "refused"] == [
                *["up", "down"] * 5,
                "up",
            ]

    run(main())


def test_what_is_told_late_of_a_former_link_is_not_taken_for_the_new_one() -> None:
    async def main() -> None:
        async with (
            linked("cid") as (ann, bob),
            unharmed(ann, bob),
            sites(Site("cid", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (cid,),
        ):
            await asyncio.gather(ann.up("cid"), cid.up("ann"))
            former = ann.transport._desks[cid.id]
            await change(ann, ["bob"])
            await ann.inside(lambda: former.on_link("up", "told late"))
            await change(ann, ["bob", "cid"])
            await asyncio.gather(ann.up("cid", times=2), cid.up("ann", times=2))
            await ann.inside(lambda: former.on_link("down", "told late"))
            await exchange(ann, cid)
            assert ann.is_up("cid")
            assert len(ann.seen("down", "cid")) == 1

    run(main())


def test_changes_that_nobody_waits_for_hold_all_the_same() -> None:
    async def main() -> None:
        async with (
            linked("cid") as (ann, bob),
            unharmed(ann, bob),
            sites(Site("cid", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (cid,),
        ):
            await ann.up("cid")
            for peers in (["bob"], ["bob", "cid"]) * 5:
                changing = asyncio.create_task(change(ann, peers))
                await asyncio.sleep(0)
                changing.cancel()
                await asyncio.wait([changing])
            await until(lambda: ann.is_up("cid") and cid.is_up("ann"))
            await exchange(ann, cid)

    run(main())


def test_a_connection_that_is_not_a_link_yet_is_closed_too() -> None:
    async def main() -> None:
        async with linked("cid") as (ann, bob), unharmed(ann, bob), Outsider(key("cid")) as cid:

            async def dial() -> Any:
                conn: Any = await cid.dial(ann.port, ann.id)
                await conn.muxed_conn.ping()
                return conn.muxed_conn

            muxed = await cid.run(dial)
            await change(ann, ["bob"])
            await cid.run(muxed.ended.wait)
            assert await ann.connections() == 1
            assert not await cid.knock(ann.port, ann.id)
            await ann.refused("no neighbour")

    run(main())


def test_an_address_record_of_a_new_member_counts_even_if_it_was_told_before_that_was_known() -> None:
    """Dan believes that ann is nowhere, so that it is ann who has to find him, by what bob has told too early."""

    async def main() -> None:
        nowhere = (loopback(free_port()),)
        async with linked(announce=nowhere) as (ann, bob):
            async with sites(Site("dan", ["bob"], members=["ann"], addresses={"bob": (loopback(bob.port),)})) as (dan,):
                await change(bob, ["ann", "dan"])
                await bob.up("dan")
                await until(lambda: ann.reasons.get("record: of a stranger"))
                assert dan.id not in ann.transport.links()
                await change(dan, ["bob", "ann"])
                await change(ann, ["bob", "dan"])
                await asyncio.gather(ann.up("dan"), dan.up("ann"))
                await exchange(ann, dan)
            assert ann.seen("down", "bob") == bob.seen("down", "ann") == []

    run(main())


def test_two_members_that_become_neighbours_find_each_other_by_what_they_have_heard() -> None:
    async def main() -> None:
        port = free_port()
        way = {"bob": (loopback(port),)}
        async with sites(
            Site("bob", ["ann", "cid"], port=port),
            Site("ann", ["bob"], addresses=way, members=["cid"]),
            Site("cid", ["bob"], addresses=way, members=["ann"]),
        ) as (bob, ann, cid):
            await bob.up("ann", "cid")
            await asyncio.gather(change(ann, ["bob", "cid"]), change(cid, ["bob", "ann"]))
            await asyncio.gather(ann.up("cid"), cid.up("ann"))
            await exchange(ann, cid)
            assert bob.seen("down") == []

    run(main())


def test_what_waits_for_a_former_neighbour_is_given_up_and_counted() -> None:
    async def main() -> None:
        room, waiting = 4, 3
        patient: dict[str, Any] = {"outbox_frames": room, "dead_s": 60.0, "window_bytes": 1 << 18}
        async with wired(patient, patient) as (ann, bob, wire):
            wire.black_hole()
            link = ann.link("bob")
            assert link is not None
            outbox = ann.transport._desks[bob.id].outbox
            sends: list[asyncio.Task[bool]] = []

            def stuck() -> bool:
                """Hand in frames until some wait for room: what bob granted is used up then, and he grants no more."""
                undone = sum(not task.done() for task in sends)
                if undone < waiting:
                    sends.append(asyncio.create_task(ann.send("bob", bytes(1 << 18))))
                full = link.control._may_send_bytes == 0 and len(outbox._lanes[0]) == room
                return full and undone == waiting

            await until(stuck)
            await change(ann, [])
            results = await asyncio.gather(*sends)
            assert results == [True] * (len(sends) - waiting) + [False] * waiting
            assert ann.reasons == {FORMER_PEER: room + waiting}
            assert await ann.connections() == 0
            wire.heal()

    run(main())


def test_the_host_makes_room_for_more_neighbours() -> None:
    async def main() -> None:
        async with linked() as (ann, bob), unharmed(ann, bob):
            await change(ann, ["bob", "cid", "dan"])

            def limits() -> tuple[int, int]:
                swarm = ann.transport._switchboard._swarm
                return swarm.connection_config.max_connections, int(swarm._inbound_limiter.total_tokens)

            wanted = 3 * MAX_CONNECTIONS_PER_PEER + PLACES_FOR_OTHERS
            assert await ann.inside(limits) == (wanted, wanted)

    run(main())


def test_an_id_that_is_none_changes_nothing() -> None:
    async def main() -> None:
        async with linked() as (ann, bob), unharmed(ann, bob):
            with pytest.raises(ConfigError, match="peer id"):
                await ann.transport.change_peers([bob.id, "cid"], [])
            assert ann.transport.peers == {bob.id}

    run(main())
