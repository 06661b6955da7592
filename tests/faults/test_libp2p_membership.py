"""Who is let in, and who is not: each refusal is counted and told once, and no other link suffers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p_lab import (
    Outsider,
    Process,
    Site,
    exchange,
    key,
    linked,
    loopback,
    peer,
    run,
    sites,
    tell,
    timed,
    unharmed,
    until,
)
from multiaddr import Multiaddr

from gossipfl.identity import Identity
from gossipfl.transports.libp2p.bridge import TrioThread
from gossipfl.transports.libp2p.transport import REFUSAL_EVENT_S

pytestmark = pytest.mark.timeout(120)


def told_once(site: Site, about: str | None, words: str) -> None:
    (event,) = site.seen("refused", about)
    assert words in event.detail


def test_a_stranger_is_refused() -> None:
    async def main() -> None:
        async with linked() as (ann, bob), unharmed(ann, bob):
            async with sites(Site("eve", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (eve,):
                await ann.refused("stranger", times=3)
                assert not eve.is_up("ann")
                assert not await eve.send("ann", b"let me in")
            told_once(ann, "eve", "no member")
            assert set(ann.reasons) == {"refused stranger"}

    run(main())


def test_a_member_that_is_no_neighbour_is_refused() -> None:
    async def main() -> None:
        async with linked(members=["ann", "bob", "dan"]) as (ann, bob), unharmed(ann, bob):
            async with sites(Site("dan", ["ann"], addresses={"ann": (loopback(ann.port),)})):
                await ann.refused("no neighbour", times=3)
            told_once(ann, "dan", "no neighbour")
            assert set(ann.reasons) == {"refused no neighbour"}

    run(main())


def test_a_member_of_another_federation_is_refused_whoever_dials() -> None:
    async def main() -> None:
        async with linked("cid", federation="default") as (ann, bob), unharmed(ann, bob):
            there = Site("cid", ["ann"], federation="elsewhere", addresses={"ann": (loopback(ann.port),)})
            async with sites(there) as (cid,):
                await ann.refused("federation", times=3)
                await until(lambda: cid.reasons.get("refused by peer", 0) + cid.reasons.get("refused federation", 0))
                assert not ann.is_up("cid")
                assert not cid.is_up("ann")
            told_once(ann, "cid", "another federation")
            assert ann.seen("up", "cid") == cid.seen("up") == []

    run(main())


def test_a_node_that_connects_with_this_nodes_own_key_is_refused() -> None:
    async def main() -> None:
        async with linked() as (ann, bob), unharmed(ann, bob):
            async with Outsider(key("ann")) as other:
                assert not await other.knock(ann.port, ann.id)
            await ann.refused("own key")
            told_once(ann, None, "own key")

    run(main())


def test_of_two_nodes_with_one_key_one_is_refused_and_the_neighbour_works_with_the_other() -> None:
    async def main() -> None:
        async with linked("cid") as (ann, bob), unharmed(ann, bob):
            way = {"ann": (loopback(ann.port),)}
            async with sites(Site("cid", ["ann"], addresses=way)) as (first,):
                await ann.up("cid")
                async with sites(Site("cid", ["ann"], addresses=way)) as (second,):
                    await ann.refused("twin", times=3)
                    await until(lambda: second.is_up("ann") and not first.is_up("ann"))
                    await exchange(ann, second, b"to one of them")
                    assert first.reasons["refused by peer"] >= 1
                    assert "twin" in first.seen("refused")[0].detail
                    told_once(ann, "cid", "same key")

    run(main())


def test_a_node_whose_twin_has_gone_is_let_in_again() -> None:
    """A key was copied by mistake, and one of the two nodes is stopped: the other works, without a restart."""

    async def main() -> None:
        async with linked("cid") as (ann, bob), unharmed(ann, bob):
            way = {"ann": (loopback(ann.port),)}
            async with sites(Site("cid", ["ann"], addresses=way)) as (first,):
                await ann.up("cid")
                async with sites(Site("cid", ["ann"], addresses=way)):
                    await ann.refused("twin", times=3)
                await until(lambda: ann.is_up("cid"))
                await exchange(ann, first, b"alone again")

    run(main(), deadline_s=15)


@pytest.mark.processes
def test_twins_in_two_processes_are_noticed_by_their_neighbour() -> None:
    async def main() -> None:
        async with linked("cid") as (ann, bob), unharmed(ann, bob):
            way: dict[str, Any] = {"listen": [loopback(0)], "addresses": {"ann": [loopback(ann.port)]}}
            async with Process("cid", ["ann"], **way) as one:
                await ann.up("cid")
                async with Process("cid", ["ann"], **way) as other:
                    await ann.refused("twin", times=2)
                    refused = await one.until(lambda: one.events("refused"))
                    assert "twin" in refused[0]["detail"]
                    await other.until(lambda: other.events("up"))
                    assert other.events("refused") == []

    run(main())


def test_a_member_that_dials_and_speaks_only_another_major_version_is_refused() -> None:
    async def main() -> None:
        async with linked("cid", timeout_s=0.5) as (ann, bob), unharmed(ann, bob), Outsider(key("cid")) as cid:

            async def dial() -> str:
                conn = await cid.dial(ann.port, ann.id)
                try:
                    await cid.open_stream(conn, "/gossipfl/2")
                except Exception as error:  # noqa: BLE001 - the library's own
                    await conn.muxed_conn.ended.wait()  # type: ignore[attr-defined]
                    return str(error)
                return "was accepted"

            assert "not supported" in await cid.run(dial)
            await ann.refused("no lane")
            told_once(ann, "cid", "major version")

    run(main())


def test_a_member_that_is_dialled_and_speaks_only_another_major_version_is_refused() -> None:
    async def accept(stream: INetStream) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with Outsider(key("cid"), {"/gossipfl/2": accept}) as cid:
            known = {"cid": (cid.listening,)}
            async with linked("cid", addresses=known) as (ann, bob), unharmed(ann, bob):
                await ann.refused("protocol", times=2)
                told_once(ann, "cid", "no protocol of this version")
                await until(lambda: "no protocol of this version" in ann.transport.links()[cid.id].detail)

    run(main())


def test_another_site_at_a_peers_address_is_noticed() -> None:
    async def main() -> None:
        async with (
            Outsider(key("eve")) as eve,
            linked("cid", addresses={"cid": (eve.listening,)}) as (ann, bob),
            unharmed(ann, bob),
        ):
            await ann.refused("other site", times=2)
            told_once(ann, "cid", "another site answers")

    run(main())


def test_a_stranger_that_knocks_all_the_time_is_counted_and_told_once() -> None:
    knocks, at_once = 250, 25

    async def main() -> None:
        async with linked() as (ann, bob), unharmed(ann, bob), Outsider(key("eve")) as eve:
            watch = timed()

            async def knock_often() -> None:
                for _ in range(knocks // at_once):
                    assert not await eve.knock(ann.port, ann.id)

            began = time.monotonic()
            await asyncio.gather(*(knock_often() for _ in range(at_once)))
            await ann.refused("stranger", times=knocks)
            lasted_s = time.monotonic() - began
            tell(f"{knocks} knocks", watch())
            assert ann.reasons == {"refused stranger": knocks}
            assert 1 <= len(ann.seen("refused")) <= 1 + lasted_s / REFUSAL_EVENT_S
            assert await ann.connections() == 1

    run(main())


def test_a_thousand_refusals_of_each_kind_are_told_once_for_each() -> None:
    async def main() -> None:
        async with sites(Site("ann", ["bob"])) as (ann,):
            began = time.monotonic()
            for _ in range(1000):
                for reason in ("stranger", "twin"):
                    await ann.inside(
                        lambda reason=reason: ann.transport._switchboard._admission.refuse(reason, peer("eve"))
                    )
            await ann.refused("twin", times=1000)
            lasted_s = time.monotonic() - began
            assert ann.reasons == {"refused stranger": 1000, "refused twin": 1000}
            assert 2 <= len(ann.seen("refused")) <= 2 * (1 + lasted_s / REFUSAL_EVENT_S)

    run(main())


class Plaintext:
    """A host of py-libp2p that offers no security but /plaintext."""

    def __init__(self, identity: Identity) -> None:
        pair = create_new_key_pair(identity._key.private_bytes_raw())
        self.host = new_host(
            key_pair=pair, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(pair)}, listen_addrs=[]
        )
        self._bridge = TrioThread("plaintext")

    async def __aenter__(self) -> Plaintext:
        await self._bridge.start()
        self.listening = await self._bridge.start_task(self._hold)
        return self

    async def _hold(self, *, task_status: Any) -> None:
        async with self.host.run([Multiaddr(loopback(0))]):
            task_status.started(str(self.host.get_addrs()[0]).partition("/p2p/")[0])
            await trio.sleep_forever()

    async def __aexit__(self, *_: object) -> None:
        await self._bridge.close()

    async def dial(self, port: int, expected: str) -> str:
        async def dial() -> str:
            try:
                await self.host.get_network().dial_addr(  # type: ignore[attr-defined]
                    Multiaddr(loopback(port)), ID.from_base58(expected)
                )
            except Exception as error:  # noqa: BLE001 - the library's own
                return type(error).__name__
            return "connected"

        return await self._bridge.run(dial)


def test_a_host_that_offers_no_security_is_refused_whoever_dials() -> None:
    async def main() -> None:
        async with Plaintext(key("cid")) as cid:
            known = {"cid": (cid.listening,)}
            async with linked("cid", addresses=known) as (ann, bob), unharmed(ann, bob):
                assert await cid.dial(ann.port, ann.id) != "connected"
                await until(lambda: cid.listening in ann.transport.links()[peer("cid")].detail)
                assert not ann.is_up("cid")
                assert ann.seen("up", "cid") == []

    run(main())
