"""Links of libp2p sites that die, each in its own way, and come back."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from typing import Any

import pytest
from libp2p_lab import (
    QUICK,
    Process,
    Site,
    exchange,
    free_port,
    insist,
    key,
    loopback,
    run,
    sites,
    tell,
    timed,
    until,
    wired,
)

from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.switchboard import Switchboard

pytestmark = pytest.mark.timeout(120)


async def echoed(ann: Site, text: bytes) -> None:
    """Have bob, in his own process, send a frame back."""

    async def heard() -> None:
        while (await ann.receive())[1] != b"echo " + text:
            pass

    await insist(lambda: ann.send("bob", text), heard())


@pytest.mark.processes
def test_a_process_that_is_killed_and_started_again_at_its_address_is_linked_again() -> None:
    async def main() -> None:
        port = free_port()
        async with sites(Site("ann", ["bob"], addresses={"bob": (loopback(port),)})) as (ann,):
            known: dict[str, Any] = {"listen": [loopback(port)], "addresses": {"ann": [loopback(ann.port)]}}
            async with Process("bob", ["ann"], **known) as bob:
                await ann.up("bob")
                await echoed(ann, b"before")
                watch = timed()
                bob.signal(signal.SIGKILL)
                await ann.down("bob")
                tell("SIGKILL to link-down", watch())
            assert not await ann.send("bob", b"into the void")
            async with Process("bob", ["ann"], **known, sequence=2) as bob:
                await ann.up("bob", times=2)
                await echoed(ann, b"after")
                await bob.until(lambda: bob.events("up"))
        assert ann.transport.counters.reconnects == 1
        assert [event.state for event in ann.events[:3]] == ["up", "down", "up"]

    run(main())


@pytest.mark.parametrize("how", ["reset", "end"])
def test_a_connection_that_is_cut_is_made_again(how: str) -> None:
    async def main() -> None:
        async with wired() as (ann, bob, wire):
            await exchange(ann, bob)
            watch = timed()
            wire.cut() if how == "reset" else wire.end()
            await asyncio.gather(ann.down("bob"), bob.down("ann"))
            tell(f"TCP {how} to link-down at both", watch())
            await asyncio.gather(ann.up("bob", times=2), bob.up("ann", times=2))
            await exchange(ann, bob, b"again")
            assert all(event.detail for event in ann.seen("down") + bob.seen("down"))

    run(main())


def test_a_half_open_connection_is_noticed_and_made_anew_once_the_network_heals() -> None:
    async def main() -> None:
        async with wired() as (ann, bob, wire):
            await exchange(ann, bob)
            watch = timed()
            wire.black_hole()
            events = await asyncio.gather(ann.down("bob"), bob.down("ann"))
            tell("black hole to link-down at both (ping 0.3 s, dead 1.0 s)", watch())
            assert all("silent for" in event.detail for event in events)
            assert not await ann.send("bob", b"into the void")
            wire.heal()
            await asyncio.gather(ann.up("bob", times=2), bob.up("ann", times=2))
            await exchange(ann, bob, b"again")

    run(main())


def test_a_half_open_connection_is_noticed_by_a_sender_whose_window_is_used_up() -> None:
    """A write that waits for ever holds the connection's lock; the watch has to end it all the same."""

    async def main() -> None:
        async with wired() as (ann, bob, wire):
            wire.black_hole()
            sending = [asyncio.create_task(ann.send("bob", bytes(1 << 20), bulk=bulk)) for bulk in (True, False) * 20]
            event = await ann.down("bob")
            assert "silent for" in event.detail
            assert not all(await asyncio.gather(*sending))
            assert ann.reasons["link down"] > 0
            wire.heal()
            await ann.up("bob", times=2)
            await exchange(ann, bob, b"again")

    run(main())


@pytest.mark.processes
def test_a_stopped_process_is_noticed_and_linked_again_when_it_goes_on() -> None:
    async def main() -> None:
        port = free_port()
        async with sites(Site("ann", ["bob"], addresses={"bob": (loopback(port),)}, timeout_s=0.5)) as (ann,):
            known: dict[str, Any] = {"listen": [loopback(port)], "addresses": {"ann": [loopback(ann.port)]}}
            async with Process("bob", ["ann"], **known) as bob:
                await ann.up("bob")
                await echoed(ann, b"before")
                watch = timed()
                bob.signal(signal.SIGSTOP)
                event = await ann.down("bob")
                tell("SIGSTOP to link-down (ping 0.3 s, dead 1.0 s)", watch())
                assert "silent for" in event.detail
                watch = timed()
                bob.signal(signal.SIGCONT)
                await ann.up("bob", times=2)
                tell("SIGCONT to link-up", watch())
                await echoed(ann, b"after")

    run(main())


@pytest.mark.processes
def test_a_process_that_was_stopped_does_not_take_its_own_pause_for_the_silence_of_others() -> None:
    stopped_s = 2.5

    async def main() -> None:
        port = free_port()
        patient = Site("ann", ["bob"], addresses={"bob": (loopback(port),)}, dead_s=50.0)
        async with sites(patient) as (ann,):
            known: dict[str, Any] = {"listen": [loopback(port)], "addresses": {"ann": [loopback(ann.port)]}}
            async with Process("bob", ["ann"], **known) as bob:
                await ann.up("bob")
                await bob.until(lambda: bob.events("up"))
                bob.signal(signal.SIGSTOP)
                began = time.monotonic()
                while time.monotonic() < began + stopped_s:
                    assert await ann.send("bob", b"are you there")
                    await asyncio.sleep(0.1)
                bob.signal(signal.SIGCONT)
                await echoed(ann, b"you are")
                for _ in range(5):
                    await ann.ping("bob")
                assert bob.events("down") == []
                assert ann.seen("down") == []

    run(main())


def test_a_network_that_comes_and_goes_is_dialled_until_it_stays() -> None:
    async def main() -> None:
        async with wired() as (ann, bob, wire):
            for round_ in range(1, 6):
                wire.refuse(True)
                wire.cut()
                await asyncio.gather(ann.down("bob", round_), bob.down("ann", round_))
                await until(lambda: f"/tcp/{wire.proxies[1].port}: " in ann.transport.links()[bob.id].detail)
                wire.refuse(False)
                await asyncio.gather(ann.up("bob", times=round_ + 1), bob.up("ann", times=round_ + 1))
                await exchange(ann, bob, b"%d" % round_)
            assert ann.transport.counters.reconnects >= 5

    run(main())


def test_a_cut_is_told_as_one_link_down_and_one_link_up() -> None:
    """Both sides dial again; that they settle which connection stays is nobody else's business."""
    cuts = 5

    async def main() -> None:
        async with wired() as (ann, bob, wire):
            for times in range(1, cuts + 1):
                wire.cut()
                await asyncio.gather(ann.up("bob", times=times + 1), bob.up("ann", times=times + 1))
                await until(lambda: wire.connections == 1)
                await exchange(ann, bob)
            for site in (ann, bob):
                assert [event.state for event in site.events] == ["up"] + cuts * ["down", "up"], site.events
                assert site.transport.counters.reconnects == cuts

    run(main())


def switchboard(name: str) -> Switchboard:
    options = Libp2pOptions(backoff_s=(0.2, 15.0))
    return Switchboard(key(name), (), {}, options, b"i" * 16, lambda _: None)


def test_the_wait_between_attempts_doubles_to_its_bound_and_differs_from_site_to_site() -> None:
    names = ("ann", "bob", "cid", "dan")
    boards = {name: switchboard(name) for name in names}
    waits = {name: [board._back_off_s(failures) for failures in range(1, 2000)] for name, board in boards.items()}
    for waited in waits.values():
        for failures, wait_s in enumerate(waited, 1):
            longest_s = min(15.0, 0.2 * 2.0 ** min(failures - 1, 32))
            assert longest_s / 2 <= wait_s <= longest_s
        assert len(set(waited)) == len(waited)
    assert len({tuple(waited) for waited in waits.values()}) == len(names)


def test_a_link_that_always_breaks_at_once_is_tried_less_and_less_often() -> None:
    """Each of the first breaks is sooner after its link than STEADY_S, so none of them counts as a success."""

    async def main() -> None:
        slow = {"backoff_s": (0.02, 0.6)}
        async with wired(slow, slow) as (ann, bob, wire):
            ups = [time.monotonic()]
            for times in range(2, 8):
                wire.cut()
                await asyncio.gather(ann.up("bob", times=times), bob.up("ann", times=times))
                ups.append(time.monotonic())
            for number, (before, after) in enumerate(itertools.pairwise(ups), 1):
                tell(f"link {number}, which broke at once, to the next", after - before)

    run(main())


def test_quick_options_are_what_these_tests_say() -> None:
    assert (QUICK["ping_s"], QUICK["dead_s"]) == (0.3, 1.0)
