"""Nothing is left behind by links that broke, and nothing by a node that closes, however it goes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Any

import pytest
from libp2p_lab import (
    Proxy,
    Site,
    Wire,
    exchange,
    free_port,
    key,
    linked,
    loopback,
    open_descriptors,
    own_threads,
    peer,
    run,
    sites,
    tell,
    timed,
    until,
    until_async,
    wired,
)

from gossipfl.errors import TransportClosed, TransportUnavailable
from gossipfl.transports.libp2p.host import MAX_CONNECTIONS_PER_PEER, PLACES_FOR_OTHERS
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.transport import Libp2pTransport

pytestmark = pytest.mark.timeout(120)


async def held(ann: Site, bob: Site) -> dict[str, Any]:
    """Return what two linked sites hold together, whichever of them has dialled."""
    return {
        "descriptors": open_descriptors(),
        "threads": own_threads(),
        "tasks": len(asyncio.all_tasks()),
        "trio tasks": await ann.trio_tasks() + await bob.trio_tasks(),
        "streams": (await ann.streams("bob"), await bob.streams("ann")),
    }


async def settled(ann: Site, bob: Site, wire: Wire) -> Any:
    """Return what is held once one connection is left, and its two lanes are there."""

    async def one_connection() -> bool:
        counts = (await ann.connections(), await bob.connections(), wire.connections)
        lanes = (await ann.streams("bob"), await bob.streams("ann"))
        return counts == (1, 1, 1) and lanes == (2, 2)

    await until_async(one_connection)
    await until_async(lambda: _none_ends(ann))
    await until_async(lambda: _none_ends(bob))
    return await held(ann, bob)


async def _none_ends(site: Site) -> bool:
    """Tell whether nothing waits any more that ends by itself: for a greeting, for the library to close something."""
    passing = ("_expect_lane", "_try", "close", "_cleanup")
    return not any(name.endswith(passing) for name in await site.trio_tasks())


@pytest.mark.parametrize(("both_dial", "reconnects", "first"), [(False, 200, 20), (True, 25, 8)])
def test_reconnects_leave_nothing_behind(both_dial: bool, reconnects: int, first: int) -> None:
    async def main() -> None:
        quick: dict[str, Any] = {"backoff_s": (0.01, 0.05), "timeout_s": 1.0}
        # An address that nobody is found at: bob, who believes it, leaves the dialling to ann.
        nowhere = (loopback(free_port()),)
        away = {} if both_dial else {"announce": nowhere}
        known = {} if both_dial else {"addresses": {"ann": nowhere}}
        async with wired({**quick, **away}, {**quick, **known}) as (ann, bob, wire):
            watch = timed()
            for number in range(1, reconnects + 1):
                wire.cut()
                await asyncio.gather(ann.up("bob", times=number + 1), bob.up("ann", times=number + 1))
                if number == first:
                    before = await settled(ann, bob, wire)
            tell(f"{reconnects} reconnects", watch())
            assert await settled(ann, bob, wire) == before
            await exchange(ann, bob)

    run(main(), deadline_s=60)


@pytest.mark.parametrize("bulk", [False, True])
def test_frames_sent_just_before_close_arrive(bulk: bool) -> None:
    count, size_bytes = 40, 60_000

    async def main() -> None:
        async with wired() as (ann, bob, _):
            await exchange(ann, bob)
            frames = [bytes([number]) * size_bytes for number in range(1, count)]
            received: list[bytes] = []

            async def receive_all() -> None:
                while len(received) < len(frames):
                    frame = (await bob.receive())[1]
                    if len(frame) == size_bytes:
                        received.append(frame)

            receiving = asyncio.create_task(receive_all())
            for frame in frames:
                assert await ann.send("bob", frame, bulk=bulk)
            await ann.close()
            await receiving
            assert received == frames
            await bob.down("ann")

    run(main())


def test_both_sides_may_close_at_once() -> None:
    async def main() -> None:
        async with wired() as (ann, bob, _):
            for site in (ann, bob):
                for _ in range(8):
                    assert await site.send("bob" if site is ann else "ann", bytes(100_000), bulk=True)
            watch = timed()
            await asyncio.gather(ann.close(), bob.close())
            tell("close of both while they send", watch())

    run(main())


@pytest.mark.parametrize("queued", [False, True])
def test_close_while_a_link_is_black_holed_is_bounded(queued: bool) -> None:
    """The heartbeat would take for ever here: what bounds the close is its own limit."""

    async def main() -> None:
        patient = {"ping_s": 50.0, "dead_s": 100.0}
        async with wired(patient, patient) as (ann, bob, wire):
            await exchange(ann, bob)
            wire.black_hole()
            sending = [
                asyncio.create_task(ann.send("bob", bytes(1 << 20), bulk=bulk)) for bulk in (True, False) * 20 * queued
            ]
            watch = timed()
            await ann.close()
            tell(f"close of a black-holed link ({'with' if queued else 'without'} frames queued)", watch())
            for task in sending:
                with pytest.raises(TransportClosed):
                    assert await task is None
            wire.heal()

    run(main(), deadline_s=30)


def test_close_while_dialling() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            ann = Site("ann", ["bob"], addresses={"bob": (loopback(port),)}, timeout_s=30.0)
            async with ann:
                silent.setblocking(False)
                conn, _ = await asyncio.get_running_loop().sock_accept(silent)
                await ann.close()
                conn.close()

    run(main())


def test_close_while_starting() -> None:
    async def main() -> None:
        for yields in range(6):
            site = Site("ann", ["bob"])
            starting = asyncio.create_task(site.transport.start())
            for _ in range(yields):
                await asyncio.sleep(0)
            await site.transport.close()
            await asyncio.wait([starting])
            assert starting.cancelled() or isinstance(starting.exception(), TransportClosed | None)

    run(main())


def test_a_start_that_is_cancelled_can_be_closed() -> None:
    async def main() -> None:
        for yields in range(1, 6):
            site = Site("ann", ["bob"])
            starting = asyncio.create_task(site.transport.start())
            for _ in range(yields):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            await site.transport.close()

    run(main())


def test_close_before_start_and_start_after_close() -> None:
    async def main() -> None:
        site = Site("ann", ["bob"])
        assert not await site.send("bob", b"too early")
        await site.transport.close()
        await site.transport.close()
        with pytest.raises(TransportClosed):
            await site.transport.start()
        with pytest.raises(TransportClosed):
            await site.send("bob", b"too late")

    run(main())


async def refused_start(listen: str) -> str:
    transport = Libp2pTransport(key("ann"), [peer("bob")], Libp2pOptions(listen=(listen,)))
    try:
        with pytest.raises(TransportUnavailable) as caught:
            await transport.start()
    finally:
        await transport.close()
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert listen in str(caught.value)
    return str(caught.value)


def test_a_taken_port_is_told_in_one_line() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            problem = await refused_start(loopback(other.getsockname()[1]))
        assert "in use" in problem

    run(main())


def test_an_address_of_another_machine_is_told_in_one_line() -> None:
    async def main() -> None:
        problem = await refused_start(f"/ip4/203.0.113.77/tcp/{free_port()}")
        assert "ssign" in problem, problem  # "cannot assign requested address", as the system has it

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_second_site_on_the_same_port_is_refused_although_the_library_shares_ports(host: str) -> None:
    async def main() -> None:
        async with sites(Site("bob", ["ann"])) as (bob,):
            problem = await refused_start(f"/ip4/{host}/tcp/{bob.port}")
            assert "in use" in problem

    run(main())


def test_a_port_can_be_listened_on_again_at_once() -> None:
    async def main() -> None:
        port = free_port()
        for sequence in range(1, 4):
            async with sites(
                Site("bob", ["ann"], port=port, sequence=sequence),
                Site("ann", ["bob"], addresses={"bob": (loopback(port),)}, sequence=sequence),
            ) as (bob, ann):
                await ann.up("bob")
                await bob.up("ann")

    run(main())


def test_connections_that_say_nothing_or_garbage_leave_nothing_behind() -> None:
    """A hundred of them, which hang up only when they are told to; an honest neighbour is linked all the while."""

    async def main() -> None:
        async with linked() as (ann, bob):
            before = open_descriptors()
            tasks = await ann.trio_tasks()
            half = b"\x13/multistream/1.0.0\n"
            said = (b"", b"GET / HTTP/1.1\r\n\r\n" * 100, half, half + b"\x07/noise\n", bytes(range(256)) * 16)
            strangers = []
            for number in range(100):
                reader, writer = await asyncio.open_connection("127.0.0.1", ann.port)
                writer.write(said[number % len(said)])
                strangers.append((reader, writer))
            assert open_descriptors() > before
            await exchange(ann, bob, b"meanwhile")
            for number, (_, writer) in enumerate(strangers):
                if number % 2:
                    writer.transport.abort()
                else:
                    writer.close()
            for _, writer in strangers:
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            await until(lambda: open_descriptors() == before)
            await until_async(lambda: _same_tasks(ann, tasks))
            await exchange(ann, bob, b"afterwards")
            assert ann.seen("down") == bob.seen("down") == []

    run(main())


def test_more_idle_strangers_than_there_are_places_keep_no_neighbour_out_for_long() -> None:
    """Each holds a place for no longer than ``timeout_s``; a neighbour that dials gets one in the end."""

    async def main() -> None:
        async with linked("cid", timeout_s=1.0) as (ann, bob):
            places = PLACES_FOR_OTHERS + 2 * MAX_CONNECTIONS_PER_PEER
            idle = [await asyncio.open_connection("127.0.0.1", ann.port) for _ in range(places + 20)]
            try:
                async with sites(Site("cid", ["ann"], addresses={"ann": (loopback(ann.port),)})) as (cid,):
                    await cid.up("ann")
                    await exchange(ann, cid)
                assert ann.seen("down", "bob") == bob.seen("down") == []
            finally:
                for _, writer in idle:
                    writer.transport.abort()
                for _, writer in idle:
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()

    run(main())


async def _same_tasks(site: Site, tasks: Counter[str]) -> bool:
    return await site.trio_tasks() == tasks


def test_a_proxy_of_these_tests_forwards() -> None:
    """The network that the other tests break works when nothing breaks it."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"through")
            writer.write_eof()
            assert await reader.read() == b"THROUGH"
            writer.close()
            await writer.wait_closed()
            await until(lambda: proxy.connections == 0)

    run(main())
