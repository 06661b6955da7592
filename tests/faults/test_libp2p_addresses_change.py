"""Sites whose address is not what the others were told are found all the same."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest
from libp2p_lab import Site, exchange, free_port, key, loopback, peer, run, sites, until

from gossipfl.transports.libp2p.addresses import Address
from gossipfl.transports.libp2p.records import Record

pytestmark = pytest.mark.timeout(120)

NAMES = ("ann", "bob", "cid")


def triangle(ports: dict[str, int], told: dict[str, dict[str, int]], **options: Any) -> list[Site]:
    """Return three sites that are all neighbours, of which each was told some ports, right or wrong."""
    return [
        Site(
            name,
            [other for other in NAMES if other != name],
            port=ports[name],
            addresses={other: (loopback(port),) for other, port in told.get(name, {}).items()},
            **options,
        )
        for name in NAMES
    ]


async def all_up(*made: Site) -> None:
    for site in made:
        await until(lambda site=site: all(link.state == "up" for link in site.transport.links().values()))


def known_sequences(site: Site) -> dict[str, int]:
    return {record.peer: record.sequence for record in map(Record.read, site.transport.address_records())}


def known_ports(site: Site) -> dict[str, int]:
    return {record.peer: record.addresses[0].port for record in map(Record.read, site.transport.address_records())}


@pytest.mark.parametrize("mover", NAMES)
def test_a_site_whose_address_both_others_have_wrong_is_found_by_all(mover: str) -> None:
    """It knows one of the others; the third learns of it through that one, and dials it or is dialled."""

    async def main() -> None:
        ports = {name: free_port() for name in NAMES}
        wrong = {**ports, mover: free_port()}
        helper, third = (name for name in NAMES if name != mover)
        told = {helper: wrong, third: {mover: wrong[mover], helper: ports[helper]}, mover: {helper: ports[helper]}}
        for name, known in told.items():
            known.pop(name, None)
        async with sites(*triangle(ports, told)) as made:
            await all_up(*made)
            by_name = {site.name: site for site in made}
            await exchange(by_name[mover], by_name[third])
            assert known_ports(by_name[third])[peer(mover)] == ports[mover]

    run(main())


def test_a_site_that_starts_again_elsewhere_is_found_although_the_others_do_not_know_where() -> None:
    async def main() -> None:
        ports = {name: free_port() for name in NAMES}
        everyone = {name: {other: ports[other] for other in NAMES if other != name} for name in NAMES}
        ann, bob, cid = triangle(ports, everyone)
        async with sites(ann, bob):
            async with cid:
                await all_up(ann, bob, cid)
            await asyncio.gather(ann.down("cid"), bob.down("cid"))
            elsewhere = free_port()
            # It knows bob alone, so that ann has to find it, or be found, through bob.
            way = {"bob": (loopback(ports["bob"]),)}
            moved = Site("cid", ["ann", "bob"], port=elsewhere, sequence=2, addresses=way)
            async with moved:
                await all_up(ann, bob, moved)
                await exchange(ann, moved)

    run(main())


def test_where_a_site_is_now_is_known_by_all_however_soon_it_started_again() -> None:
    """Else, once the links have ended, all who remember would dial where it was before."""

    async def main() -> None:
        ports = {name: free_port() for name in NAMES}
        everyone = {name: {other: ports[other] for other in NAMES if other != name} for name in NAMES}
        ann, bob, cid = triangle(ports, everyone)
        async with sites(ann, bob):
            async with cid:
                await all_up(ann, bob, cid)
                await until(lambda: all(known_sequences(site).get(peer("cid")) == 1 for site in (ann, bob)))
            elsewhere = free_port()
            moved = Site("cid", ["ann", "bob"], port=elsewhere, sequence=2, addresses=cid_knows(ports))
            async with moved:
                await all_up(ann, bob, moved)
                await until(lambda: all(known_sequences(site)[peer("cid")] == 2 for site in (ann, bob)))
                assert known_ports(ann)[peer("cid")] == known_ports(bob)[peer("cid")] == elsewhere

    run(main(), deadline_s=15)


def cid_knows(ports: dict[str, int]) -> dict[str, tuple[str, ...]]:
    return {"ann": (loopback(ports["ann"]),), "bob": (loopback(ports["bob"]),)}


def test_a_stale_record_does_not_take_the_place_of_a_newer_one() -> None:
    def record(sequence: int, port: int) -> bytes:
        return Record.sign(key("cid"), [Address("ip4", "127.0.0.1", port)], sequence).envelope

    async def main() -> None:
        port = free_port()
        ann = Site("ann", ["bob", "cid"], port=port, remembered=[record(7, 4007)])
        stale = Site("bob", ["ann", "cid"], addresses={"ann": (loopback(port),)}, remembered=[record(6, 4006)])
        async with sites(ann, stale):
            await ann.up("bob")
            await until(lambda: known_sequences(stale)[peer("cid")] == 7)
            assert known_ports(ann)[peer("cid")] == known_ports(stale)[peer("cid")] == 4007
            assert ann.transport.counters.frames_dropped == 0

    run(main())


def test_remembered_records_bring_two_sites_together_that_were_told_nothing() -> None:
    async def main() -> None:
        ports = {name: free_port() for name in NAMES}
        everyone = {name: {other: ports[other] for other in NAMES if other != name} for name in NAMES}
        first = triangle(ports, everyone)
        async with sites(*first):
            await all_up(*first)
            await until(lambda: all(len(known_sequences(site)) == 2 for site in first))
            kept = {site.name: site.transport.address_records() for site in first}
        again = [
            Site(
                name,
                [other for other in NAMES if other != name],
                port=ports[name],
                remembered=[*kept[name], b"", b"not a record", kept[name][0][:-1]],
                sequence=2,
            )
            for name in NAMES
        ]
        async with sites(*again):
            await all_up(*again)
            await exchange(again[0], again[2])

    run(main())


def test_a_site_that_nobody_knows_waits_without_dialling() -> None:
    async def main() -> None:
        async with sites(Site("ann", ["bob"])) as (ann,):
            port = ann.port
            assert ann.transport.links()[peer("bob")].detail == "not reached yet"
            assert not await ann.send("bob", b"nobody there")
            async with sites(Site("bob", ["ann"], addresses={"ann": (loopback(port),)})) as (bob,):
                await ann.up("bob")
                await exchange(ann, bob)

    run(main())


def multicast_works() -> str | None:
    """Tell why two zeroconf instances of this machine do not find each other; None where they do."""
    from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

    service, found = "_libp2plab._udp.local.", threading.Event()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        found.set()

    try:
        one, other = Zeroconf(), Zeroconf()
    except OSError as error:
        return f"no multicast socket: {error}"
    try:
        info = ServiceInfo(service, f"lab.{service}", port=4001, parsed_addresses=["127.0.0.1"], server="lab.local.")
        one.register_service(info)
        browser = ServiceBrowser(other, service, handlers=[changed])
        answered = found.wait(5)
        browser.cancel()
    except OSError as error:
        return f"multicast fails: {error}"
    finally:
        one.close()
        other.close()
    return None if answered else "a zeroconf service was not found by its own machine within 5 s"


def test_two_sites_without_addresses_find_each_other_by_mdns() -> None:
    problem = multicast_works()
    if problem is not None:
        pytest.skip(problem)

    async def main() -> None:
        host = next(iter(_own_hosts()), "127.0.0.1")
        made = [
            Site(name, [other], listen=(f"/ip4/{host}/tcp/0",), mdns=True)
            for name, other in (("ann", "bob"), ("bob", "ann"))
        ]
        async with sites(*made) as (ann, bob):
            await all_up(ann, bob)
            await exchange(ann, bob)

    run(main(), deadline_s=30)


def _own_hosts() -> list[str]:
    """Return the address that this machine would be seen under, if there is a network at all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
