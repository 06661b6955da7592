from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from gossipfl.config import load_spec
from gossipfl.errors import TransportUnavailable
from gossipfl.gossip import Report
from gossipfl.records import Event
from gossipfl.testbed import ports
from gossipfl.testbed.observe import NodeObserver
from gossipfl.testbed.plan import Plan
from gossipfl.testbed.ports import LOOPBACK, reserve_ports
from gossipfl.testbed.wires import open_wire
from gossipfl.transports.base import Transport


def plan_of(**flags: Any) -> Plan:
    return Plan(load_spec(None, {"nodes": 3, "topology": "line", "transport": "libp2p", "rounds": 2, **flags}))


@contextlib.contextmanager
def sharing(port: int) -> Iterator[socket.socket]:
    """A socket that is bound to a port as libp2p's listeners are."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((LOOPBACK, port))
        yield held


def is_answered(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_reserved_port_is_nobody_elses() -> None:
    with reserve_ports(50) as reserved:
        assert len(set(reserved.numbers)) == 50
        port = reserved.numbers[0]
        with socket.socket() as rival:
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                rival.bind((LOOPBACK, port))
    with socket.create_server((LOOPBACK, port)):
        pass


def test_who_listens_on_a_reserved_port_gets_every_connection() -> None:
    with reserve_ports(1) as reserved:
        (port,) = reserved.numbers
        assert not is_answered(port)
        with sharing(port) as node:
            node.listen(128)
            assert all(is_answered(port) for _ in range(100))
        assert not is_answered(port)
        with sharing(port) as another:
            another.listen(1)
            assert is_answered(port)


def test_ports_that_cannot_be_had_are_told_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve, taken = ports._reserve, []

    def few() -> socket.socket:
        if len(taken) == 3:
            raise OSError(errno.EMFILE, "Too many open files")
        taken.append(reserve())
        return taken[-1]

    monkeypatch.setattr(ports, "_reserve", few)
    with pytest.raises(TransportUnavailable, match=r"cannot reserve 5 ports .* Too many open files"), reserve_ports(5):
        pass
    assert [held.fileno() for held in taken] == [-1, -1, -1]


def test_neighbours_on_a_libp2p_wire_find_each_other() -> None:
    plan = plan_of()
    one, two = (plan.identities[node].peer_id for node in (0, 1))

    async def up(transport: Transport) -> Any:
        while (event := await transport.events()).state != "up":
            pass
        return event.peer

    async def program(first: Transport, second: Transport) -> bytes:
        try:
            await first.start()
            await second.start()
            assert await asyncio.gather(up(first), up(second)) == [two, one]
            assert await first.send([two], b"frame")
            return bytes((await second.receive()).frame)
        finally:
            await first.close()
            await second.close()

    with open_wire(plan) as wire:
        wire.check()
        assert asyncio.run(program(wire.transport(0), wire.transport(1))) == b"frame"
        asyncio.run(asyncio.wait_for(wire.keep(lambda *_, **__: pytest.fail("nothing to tell")), 10))


def test_the_parent_loads_the_library_and_starts_no_thread() -> None:
    program = """
import sys, threading
from gossipfl.config import load_spec
from gossipfl.testbed.plan import Plan
from gossipfl.testbed.wires import open_wire
with open_wire(Plan(load_spec(None, {"transport": "libp2p"}))) as wire:
    wire.check()
    print(sorted({"torch", "trio", "libp2p"} & set(sys.modules)))
    wire.share()
    print("libp2p" in sys.modules, threading.active_count())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True 1"]


def test_a_link_that_ends_with_its_neighbour_is_no_event() -> None:
    plan = plan_of()
    left, other = (plan.identities[node].peer_id for node in (0, 2))
    kept: list[Event] = []
    observer = NodeObserver(plan, 1, lambda _: None, kept.append)
    for event, peer in (
        ("link-up", left),
        ("link-down", left),
        ("neighbour_left", left),
        ("link-down", left),
        ("link-down", other),
        ("link-refused", None),
    ):
        observer.on_event(1.0, Report(event, peer, {"detail": "why"}))
    assert [(event.event, event.fields.get("peer")) for event in kept] == [
        ("link-up", "node-0"),
        ("link-down", "node-0"),
        ("neighbour_left", "node-0"),
        ("link-down", "node-2"),
        ("link-refused", None),
    ]
