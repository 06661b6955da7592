"""What every transport promises, asked of each of them: memory, faulty without faults, MQTT brokers, libp2p."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from mosquitto import free_port, make_certificates, password_lines, running_mosquitto

from gossipfl.digest import digest
from gossipfl.errors import TransportClosed, TransportUnavailable
from gossipfl.identity import Identity
from gossipfl.transports.base import MAX_FRAME_BYTES, LinkEvent, Received, Transport, check_frame
from gossipfl.transports.broker import start_broker_process
from gossipfl.transports.faults import FaultPlan, FaultyTransport
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.transport import Libp2pTransport
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport
from gossipfl.transports.mqtt import MqttTransport
from gossipfl.transports.mqtt_options import MqttOptions, TlsFiles

DEADLINE_S = 20.0
INBOX_FRAMES = 8
TRIANGLE = {"ann": {"bob", "cid"}, "bob": {"ann", "cid"}, "cid": {"ann", "bob"}}
CHAIN = {"ann": {"bob"}, "bob": {"ann", "cid"}, "cid": {"bob"}}
PAIR = {"ann": {"bob"}, "bob": {"ann"}}
MOSQUITTO_WORLDS = ("mosquitto", "mosquitto-password", "mosquitto-tls", "mosquitto-acl")
WORLDS = (
    "memory",
    "faulty",
    "broker",
    "broker-unix",
    "libp2p",
    *(pytest.param(name, marks=pytest.mark.mosquitto) for name in MOSQUITTO_WORLDS),
)
_numbers = itertools.count()


@dataclass
class World:
    """One kind of transport; ``make`` gives an endpoint of a federation."""

    make: Callable[[str, str, set[str]], Transport]
    full_inbox_drops: bool
    """What a full inbox does: frames are dropped and counted, or their senders wait."""

    on_the_way_bytes: int = 0
    """What may be between a sender that is done and an inbox that is full."""

    dials: bool = False
    """Whether members find each other one by one, after they have started."""

    federation: str = field(default_factory=lambda: f"federation-{next(_numbers)}")

    @contextlib.asynccontextmanager
    async def network(
        self, graph: dict[str, set[str]], federation: str | None = None
    ) -> AsyncIterator[dict[str, Transport]]:
        """Start a transport for every name in ``graph`` and close them all at the end."""
        members = {me: self.make(federation or self.federation, me, peers) for me, peers in graph.items()}
        try:
            for transport in members.values():
                await transport.start()
            if self.dials:
                await self._linked(members, graph)
            yield members
        finally:
            for transport in members.values():
                await transport.close()

    async def _linked(self, members: dict[str, Transport], graph: dict[str, set[str]]) -> None:
        """Wait for every link that both its ends want."""
        for me, transport in members.items():
            missing = {peer for peer in transport.peers if peer in graph and me in graph[peer]}
            while missing:
                event = await transport.events()
                if event.state == "up":
                    missing.discard(event.peer or "")
            assert isinstance(transport, Named)
            transport.replay_up()


async def met(transport: Transport, peer: str) -> None:
    """Wait until the link to ``peer`` comes up."""
    event = await transport.events()
    while (event.state, event.peer) != ("up", peer):
        event = await transport.events()


async def lost(transport: Transport, peer: str) -> None:
    """Wait until the link to ``peer`` goes down."""
    event = await transport.events()
    while (event.state, event.peer) != ("down", peer):
        event = await transport.events()


class Named(Transport):
    """A libp2p transport whose peers are called by the names that these tests give them, not by peer ids."""

    shares_wire = False

    def __init__(self, federation: str, me: str, peers: set[str]) -> None:
        self._ids: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._federation = federation
        self._name({me, *peers})
        ports = PORTS.setdefault(federation, {})
        for name in sorted(self._ids):
            ports.setdefault(name, free_port())
        options = Libp2pOptions(
            federation=federation,
            listen=(f"/ip4/127.0.0.1/tcp/{ports[me]}",),
            addresses={self._ids[name]: (f"/ip4/127.0.0.1/tcp/{ports[name]}",) for name in peers},
            backoff_s=(0.01, 0.05),
            inbox_frames=INBOX_FRAMES,
        )
        self._inner = Libp2pTransport(self._key(me), self._name(peers), options)
        self._again: list[LinkEvent] = []
        self.me = me
        self.peers = frozenset(peers)
        self.counters = self._inner.counters

    def _key(self, name: str) -> Identity:
        return Identity.from_seed(digest(f"{self._federation}/{name}".encode()))

    def _name(self, names: Collection[str]) -> list[str]:
        """Return the peer ids behind names, and know them from now on."""
        self._ids.update({name: self._key(name).peer_id for name in names})
        self._names.update({self._ids[name]: name for name in names})
        return [self._ids[name] for name in names]

    def replay_up(self) -> None:
        """Give the first event once more: who waited for the links has taken it from the test."""
        self._again = [LinkEvent("up", None)]

    async def start(self) -> None:
        await self._inner.start()

    async def send(self, recipients: Any, frame: Any, *, bulk: bool = False) -> bool:
        check_frame(frame, recipients, self.peers)
        return await self._inner.send([self._ids.get(name, name) for name in recipients], frame, bulk=bulk)

    async def receive(self) -> Received:
        received = await self._inner.receive()
        return Received(self._names[received.source or ""], received.frame)

    async def events(self) -> LinkEvent:
        if self._again:
            return self._again.pop()
        event = await self._inner.events()
        return replace(event, peer=self._names.get(event.peer or "", event.peer))

    async def change_peers(self, peers: Collection[str], members: Collection[str]) -> None:
        self.peers = frozenset(peers)
        await self._inner.change_peers(self._name(peers), self._name(members))

    async def close(self) -> None:
        self._again.clear()
        await self._inner.close()


PORTS: dict[str, dict[str, int]] = {}
"""Ports of libp2p members, by federation and name: one that returns listens where it did before."""


def libp2p_world() -> World:
    on_the_way_bytes = Libp2pOptions.__dataclass_fields__["window_bytes"].default
    options = Libp2pOptions()
    return World(
        Named,
        full_inbox_drops=False,
        on_the_way_bytes=options.outbox_bytes + on_the_way_bytes + 2 * MAX_FRAME_BYTES,
        dials=True,
    )


def mqtt_world(options: MqttOptions, by_user: bool = False) -> World:
    options = replace(options, inbox_frames=INBOX_FRAMES, backoff_s=(0.01, 0.05), timeout_s=3.0)

    def make(federation: str, me: str, peers: set[str]) -> Transport:
        login = {"username": me, "password": f"{me}'s secret"} if by_user else {}
        return MqttTransport(me, peers, replace(options, federation=federation, **login))

    return World(make, full_inbox_drops=True)


def memory_world(wrap: Callable[[Transport], Transport]) -> World:
    networks: dict[str, MemoryNetwork] = {}

    def make(federation: str, me: str, peers: set[str]) -> Transport:
        network = networks.setdefault(federation, MemoryNetwork())
        return wrap(MemoryTransport(network, me, peers, inbox_frames=INBOX_FRAMES))

    return World(make, full_inbox_drops=False)


@pytest.fixture(scope="module")
def brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], MqttOptions]]:
    """Start each kind of broker at its first use and keep it for the module."""
    running: dict[str, MqttOptions] = {}
    with contextlib.ExitStack() as stack:

        def options(kind: str) -> MqttOptions:
            if kind not in running:
                running[kind] = _start_broker(kind, tmp_path_factory.mktemp(kind), stack)
            return running[kind]

        yield options


def _start_broker(kind: str, folder: Path, stack: contextlib.ExitStack) -> MqttOptions:
    if kind == "broker":
        return MqttOptions(port=stack.enter_context(start_broker_process()).port)
    if kind == "broker-unix":
        broker = stack.enter_context(start_broker_process(socket_path=folder / "broker.sock"))
        return MqttOptions(socket_path=broker.socket_path)
    lines, tls = ["allow_anonymous true"], None
    if kind in {"mosquitto-password", "mosquitto-acl"}:
        lines = password_lines(folder, {name: f"{name}'s secret" for name in TRIANGLE})
    if kind == "mosquitto-acl":
        acl = folder / "acl"
        acl.write_text(
            "pattern write gossipfl/+/%u/#\npattern read gossipfl/+/+/all\npattern read gossipfl/+/+/to/%u\n"
        )
        lines.append(f"acl_file {acl}")
    if kind == "mosquitto-tls":
        certificates = make_certificates(folder / "tls")
        lines += certificates.lines()
        tls = TlsFiles(str(certificates.ca))
    port, _ = stack.enter_context(running_mosquitto(folder, lines))
    return MqttOptions(port=port, tls=tls)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, brokers: Callable[[str], MqttOptions]) -> World:
    if request.param == "memory":
        return memory_world(lambda inner: inner)
    if request.param == "faulty":
        return memory_world(lambda inner: FaultyTransport(inner, FaultPlan(), seed=1))
    if request.param == "libp2p":
        return libp2p_world()
    by_user = request.param in {"mosquitto-password", "mosquitto-acl"}
    return mqtt_world(brokers(request.param), by_user)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` and check that it leaves no task, thread or descriptor behind."""
    threads, descriptors = threading.active_count(), open_descriptors()

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await main
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors


async def until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; the deadline is the test's."""
    while not condition():  # noqa: ASYNC110  # counters have no event to wait for
        await asyncio.sleep(0.005)


async def receive_all(transport: Transport, count: int) -> list[tuple[str | None, bytes]]:
    frames = [await transport.receive() for _ in range(count)]
    return [(received.source, bytes(received.frame)) for received in frames]


def test_a_frame_reaches_each_of_its_recipients_and_nobody_else(world: World) -> None:
    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            assert await members["ann"].send(["bob"], b"to bob")
            assert await members["ann"].send({"cid"}, b"to cid")
            assert await members["ann"].send(("bob", "cid"), b"to both")
            assert await receive_all(members["bob"], 2) == [("ann", b"to bob"), ("ann", b"to both")]
            assert await receive_all(members["cid"], 2) == [("ann", b"to cid"), ("ann", b"to both")]
            assert members["bob"].counters.frames_received == 2
            assert members["bob"].counters.bytes_received == len(b"to bob" + b"to both")
            assert members["ann"].counters.frames_dropped == 0

    run(main())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_arrives_as_it_was_when_sent(world: World, kind: Callable[[bytes], Any]) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            frame = kind(bytearray(b"before") if kind is memoryview else b"before")
            await members["ann"].send(["bob"], frame)
            if kind is not bytes:
                frame[:6] = b"after!"
            assert await receive_all(members["bob"], 1) == [("ann", b"before")]

    run(main())


def test_the_largest_frame_arrives_and_no_larger_or_empty_one_is_taken(world: World) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            largest = os.urandom(MAX_FRAME_BYTES)
            assert await members["ann"].send(["bob"], largest)
            assert await receive_all(members["bob"], 1) == [("ann", largest)]
            for wrong in (bytes(MAX_FRAME_BYTES + 1), b""):
                with pytest.raises(ValueError, match="a frame has"):
                    await members["ann"].send(["bob"], wrong)

    run(main())


@pytest.mark.parametrize("stranger", ["dan", "ann"])
def test_only_peers_can_be_sent_to(world: World, stranger: str) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            with pytest.raises(ValueError, match=stranger):
                await members["ann"].send(["bob", stranger], b"frame")
            await members["ann"].send(["bob"], b"only this")
            assert await receive_all(members["bob"], 1) == [("ann", b"only this")]

    run(main())


def test_federations_do_not_hear_each_other(world: World) -> None:
    async def main() -> None:
        async with world.network({"ann": {"bob"}}) as one, world.network(PAIR, "elsewhere") as other:
            await one["ann"].send(["bob"], b"to a bob who is elsewhere")
            await other["ann"].send(["bob"], b"to bob")
            assert await receive_all(other["bob"], 1) == [("ann", b"to bob")]

    run(main())


def test_one_who_is_no_peer_of_the_recipient_is_not_heard(world: World) -> None:
    async def main() -> None:
        async with world.network({"ann": {"bob"}, "cid": {"bob"}, "bob": {"cid"}}) as members:
            await members["ann"].send(["bob"], b"from a stranger")
            await members["cid"].send(["bob"], b"from a peer")
            assert await receive_all(members["bob"], 1) == [("cid", b"from a peer")]

    run(main())


def test_an_inbox_is_bounded(world: World) -> None:
    size_bytes = 1 if world.on_the_way_bytes == 0 else MAX_FRAME_BYTES // 2
    count = 4 * INBOX_FRAMES - 1 + world.on_the_way_bytes // size_bytes

    async def main() -> None:
        async with world.network(PAIR) as members:
            ann, bob = members["ann"], members["bob"]
            frames = [bytes([number]) * size_bytes for number in range(count)]
            accepted = 0

            async def send_all() -> None:
                nonlocal accepted
                for frame in frames:
                    await ann.send(["bob"], frame)
                    accepted += 1

            sender = asyncio.create_task(send_all())
            if world.full_inbox_drops:
                await sender
                await until(lambda: bob.counters.frames_dropped == len(frames) - INBOX_FRAMES)
                assert bob.counters.by_reason == {"inbox full": len(frames) - INBOX_FRAMES}
                frames = frames[:INBOX_FRAMES]
            most = INBOX_FRAMES + world.on_the_way_bytes // size_bytes
            await until(lambda: sender.done() or accepted >= INBOX_FRAMES)
            for number, frame in enumerate(frames):
                assert world.full_inbox_drops or accepted - number <= most
                assert await receive_all(bob, 1) == [("ann", frame)]
            await sender

    run(main())


def test_frames_flow_in_all_directions_at_once_under_load(world: World) -> None:
    count, size_bytes = 12, 200_000

    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            received: dict[str, list[tuple[str | None, int, int]]] = {me: [] for me in members}

            async def send_all(me: str, grants: asyncio.Semaphore) -> None:
                for number in range(count):
                    for _ in members[me].peers:
                        await grants.acquire()
                    assert await members[me].send(members[me].peers, bytes([number]) * size_bytes)

            async def receive_from_all(me: str, grants: dict[str, asyncio.Semaphore]) -> None:
                for _ in range(count * len(members[me].peers)):
                    frame = await members[me].receive()
                    assert frame.source is not None
                    received[me].append((frame.source, frame.frame[0], len(frame.frame)))
                    grants[frame.source].release()

            grants = {me: asyncio.Semaphore(INBOX_FRAMES // 2) for me in members}
            async with asyncio.TaskGroup() as group:
                for me in members:
                    group.create_task(send_all(me, grants[me]))
                    group.create_task(receive_from_all(me, grants))
            for me, transport in members.items():
                expected = sorted((peer, number, size_bytes) for peer in transport.peers for number in range(count))
                assert sorted(received[me]) == expected

    run(main())


def test_close_wakes_whoever_waits_and_may_be_called_again(world: World) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            ann = members["ann"]
            assert (await ann.events()).state == "up"
            waiting = [asyncio.create_task(ann.receive()), asyncio.create_task(ann.events())]
            await asyncio.sleep(0)
            await ann.close()
            for task in waiting:
                with pytest.raises(TransportClosed):
                    await task
            late: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                ann.receive,
                ann.events,
                ann.start,
                lambda: ann.send(["bob"], b"late"),
                lambda: ann.change_peers(["bob"], PAIR),
                lambda: ann.change_peers(["cid"], TRIANGLE),
            ]
            for call in late:
                with pytest.raises(TransportClosed):
                    await call()
            await ann.close()

    run(main())


def test_a_transport_that_never_started_can_be_closed(world: World) -> None:
    async def main() -> None:
        transport = world.make(world.federation, "ann", {"bob"})
        assert not await transport.send(["bob"], b"too early")
        await transport.close()

    run(main())


def test_a_peer_that_leaves_and_returns_is_heard_again(world: World) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            await members["bob"].close()
            await members["ann"].send(["bob"], b"lost")
            returned = world.make(world.federation, "bob", {"ann"})
            try:
                await returned.start()
                if world.dials:
                    await met(members["ann"], "bob")
                await members["ann"].send(["bob"], b"welcome back")
                assert await receive_all(returned, 1) == [("ann", b"welcome back")]
            finally:
                await returned.close()

    run(main())


def mortal_broker(
    kind: str, folder: Path, qos: Any = 0
) -> tuple[Callable[[], contextlib.AbstractContextManager[int]], MqttOptions]:
    """Return what starts a broker at one place again and again, telling its process id, and the way there."""
    port = free_port()
    path = folder / "broker.sock" if kind == "broker-unix" else None
    options = MqttOptions(port=port, socket_path=str(path) if path else None, qos=qos)

    @contextlib.contextmanager
    def broker() -> Iterator[int]:
        if kind.startswith("broker"):
            with start_broker_process(port=port, socket_path=path) as process:
                yield process.pid
        else:
            with running_mosquitto(folder, port=port) as (_, mosquitto):
                yield mosquitto.pid

    return broker, options


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["broker", "broker-unix", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
@pytest.mark.parametrize("qos", [0, 1])
def test_every_transport_survives_a_broker_that_dies_and_returns(kind: str, qos: Any, tmp_path: Path) -> None:
    broker, options = mortal_broker(kind, tmp_path, qos)

    async def exchange(members: dict[str, Transport]) -> None:
        """Send and receive between all until everybody has heard everybody."""
        for me, transport in members.items():
            missing = set(transport.peers)
            while missing:
                for peer in sorted(missing):
                    await members[peer].send([me], b"are you there")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        missing.discard((await transport.receive()).source or "")

    async def main() -> None:
        world = mqtt_world(options)
        with contextlib.ExitStack() as first:
            pid = first.enter_context(broker())
            async with world.network(TRIANGLE) as members:
                await exchange(members)
                assert [(await transport.events()).state for transport in members.values()] == ["up"] * 3
                os.kill(pid, signal.SIGKILL)
                assert [(await transport.events()).state for transport in members.values()] == ["down"] * 3
                assert not await members["ann"].send(["bob"], b"into the void")
                first.close()
                with broker():
                    assert [(await transport.events()).state for transport in members.values()] == ["up"] * 3
                    await exchange(members)
                    assert [transport.counters.reconnects for transport in members.values()] == [1] * 3
                    for transport in members.values():
                        await transport.close()

    run(main())


async def change(members: dict[str, Transport], graph: dict[str, set[str]]) -> None:
    """Let everybody in ``graph`` have other peers, at once."""
    async with asyncio.TaskGroup() as group:
        for me, peers in graph.items():
            group.create_task(members[me].change_peers(peers, TRIANGLE))
    assert {me: members[me].peers for me in graph} == graph


async def heard(transport: Transport, source: str, frame: bytes) -> None:
    """Wait for a frame; others may come before it."""
    while await receive_all(transport, 1) != [(source, frame)]:
        pass


async def acquainted(world: World, members: dict[str, Transport], one: str, other: str) -> None:
    """Wait until two who have just become peers carry each other's frames."""
    for sender, recipient in ((one, other), (other, one)) if world.dials else ():
        frame = b"hello %d" % next(_numbers)
        arriving = asyncio.create_task(heard(members[recipient], sender, frame))
        try:
            while not arriving.done():
                await members[sender].send([recipient], frame)
                await asyncio.wait([arriving], timeout=0.05)
        finally:
            arriving.cancel()


async def swept(members: dict[str, Transport], sender: str, others: Collection[str]) -> None:
    """Return when all that ``sender`` has sent through a broker, to whomever, has gone through it."""
    for other in others:
        await members[sender].send([other], b"this is the last")
        await heard(members[other], sender, b"this is the last")


def test_a_new_peer_is_heard_and_reached(world: World) -> None:
    async def main() -> None:
        async with world.network(CHAIN) as members:
            with pytest.raises(ValueError, match="cid"):
                await members["ann"].send(["cid"], b"too early")
            await change(members, {"ann": {"bob", "cid"}, "cid": {"ann", "bob"}})
            await acquainted(world, members, "ann", "cid")
            assert await members["ann"].send({"bob", "cid"}, b"from ann to all")
            assert await members["cid"].send(["ann"], b"from cid")
            await heard(members["bob"], "ann", b"from ann to all")
            await heard(members["cid"], "ann", b"from ann to all")
            await heard(members["ann"], "cid", b"from cid")

    run(main())


def test_a_new_peer_may_start_later(world: World) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            await change(members, {"ann": {"bob", "cid"}})
            async with world.network({"cid": {"ann"}}) as later:
                ann, bob, cid = members["ann"], members["bob"], later["cid"]
                await acquainted(world, {"ann": ann, "cid": cid}, "ann", "cid")
                await ann.send({"bob", "cid"}, b"to both")
                await cid.send(["ann"], b"from cid")
                await heard(bob, "ann", b"to both")
                await heard(cid, "ann", b"to both")
                await heard(ann, "cid", b"from cid")

    run(main())


def test_a_former_peer_is_neither_heard_nor_reached(world: World) -> None:
    """It has not heard of the change itself; ``swept`` makes sure that nothing of it is on its way any more."""

    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            ann, bob, cid = members.values()
            await cid.send(["ann"], b"waits when the change comes")
            await swept(members, "cid", ["bob"])
            await change(members, {"ann": {"bob"}})
            await cid.send(["ann"], b"comes after it")
            await swept(members, "cid", ["bob"])
            await bob.send(["ann"], b"from bob")
            assert await receive_all(ann, 1) == [("bob", b"from bob")]
            for recipients in (["cid"], ["bob", "cid"]):
                with pytest.raises(ValueError, match="cid"):
                    await ann.send(recipients, b"to a former peer")
            await ann.send(ann.peers, b"to all who are left")
            await heard(bob, "ann", b"to all who are left")
            await bob.send(["cid"], b"from bob")
            assert await receive_all(cid, 1) == [("bob", b"from bob")]
            if not world.dials:
                assert ann.counters.by_reason["foreign"] >= 1

    run(main())


def test_a_former_peer_that_is_one_again_is_heard_again(world: World) -> None:
    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            for _ in range(3):
                await change(members, CHAIN)
                if world.dials:
                    await lost(members["ann"], "cid")
                    await lost(members["cid"], "ann")
                await change(members, TRIANGLE)
                await acquainted(world, members, "ann", "cid")
                await members["cid"].send(["ann"], b"back again")
                await heard(members["ann"], "cid", b"back again")

    run(main())


def test_the_links_of_those_who_stay_lose_nothing_while_others_come_and_go(world: World) -> None:
    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            grants = {me: asyncio.Semaphore(INBOX_FRAMES // 2) for me in ("ann", "bob")}
            done = asyncio.Event()
            sent = dict.fromkeys(grants, 0)

            async def send_all(me: str, other: str) -> None:
                while not done.is_set():
                    await grants[me].acquire()
                    assert await members[me].send([other], sent[me].to_bytes(4))
                    sent[me] += 1
                await members[me].send([other], b"end")

            async def receive_from(me: str, other: str) -> None:
                number = 0
                while True:
                    source, frame = (await receive_all(members[me], 1))[0]
                    if (source, frame) == (other, b"end"):
                        break
                    if source == other:
                        assert frame == number.to_bytes(4)
                        number += 1
                        grants[other].release()
                assert number == sent[other]

            async with asyncio.TaskGroup() as group:
                for me, other in (("ann", "bob"), ("bob", "ann")):
                    group.create_task(send_all(me, other))
                    group.create_task(receive_from(me, other))
                for number in range(10):
                    await change(members, CHAIN)
                    await change(members, TRIANGLE)
                    await until(lambda: min(sent.values()) > 10 * number)  # noqa: B023 - awaited before the next
                done.set()
            assert all(members[me].counters.reconnects == 0 for me in grants)

    run(main())


def test_the_last_of_several_changes_at_once_decides_and_the_same_again_changes_nothing(world: World) -> None:
    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            ann = members["ann"]
            changes = [ann.change_peers(peers, TRIANGLE) for peers in ({"cid"}, {"bob"}, set[str](), {"bob", "cid"})]
            await asyncio.gather(*changes)
            assert ann.peers == {"bob", "cid"}
            for other in ("bob", "cid"):
                await acquainted(world, members, "ann", other)
                await members[other].send(["ann"], b"after the changes")
                await heard(ann, other, b"after the changes")
            for _ in range(3):
                await change(members, TRIANGLE)
            await ann.send({"bob", "cid"}, b"to both")
            await heard(members["bob"], "ann", b"to both")
            await heard(members["cid"], "ann", b"to both")

    run(main())


def test_peers_may_change_before_the_start(world: World) -> None:
    async def main() -> None:
        async with world.network(PAIR) as members:
            bob = members["bob"]
            await bob.change_peers({"cid"}, TRIANGLE)
            cid = world.make(world.federation, "cid", {"ann", "bob"})
            try:
                await cid.change_peers({"bob"}, TRIANGLE)
                assert cid.peers == {"bob"}
                await cid.start()
                await acquainted(world, {"bob": bob, "cid": cid}, "bob", "cid")
                await cid.send({"bob"}, b"from cid")
                await heard(bob, "cid", b"from cid")
                with pytest.raises(ValueError, match="ann"):
                    await cid.send(["ann"], b"no peer any more")
            finally:
                await cid.close()

    run(main())


def test_close_ends_a_change_under_way(world: World) -> None:
    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            ann = members["ann"]
            changes = [asyncio.create_task(ann.change_peers(peers, TRIANGLE)) for peers in (["cid"], ["bob"])]
            await asyncio.sleep(0)
            await ann.close()
            for ended in await asyncio.gather(*changes, return_exceptions=True):
                assert ended is None or isinstance(ended, TransportClosed)

    run(main())


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["broker", "broker-unix", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def test_a_change_while_the_broker_is_away_holds_when_it_returns(kind: str, tmp_path: Path) -> None:
    broker, options = mortal_broker(kind, tmp_path)

    async def main() -> None:
        world = mqtt_world(options)
        with contextlib.ExitStack() as first:
            pid = first.enter_context(broker())
            async with world.network(CHAIN) as members:
                assert [(await transport.events()).state for transport in members.values()] == ["up"] * 3
                os.kill(pid, signal.SIGKILL)
                assert [(await transport.events()).state for transport in members.values()] == ["down"] * 3
                await change(members, {"ann": {"cid"}, "cid": {"ann", "bob"}})
                first.close()
                with broker():
                    assert [(await transport.events()).state for transport in members.values()] == ["up"] * 3
                    await members["bob"].send(["ann"], b"from a former peer")
                    await swept(members, "bob", ["cid"])
                    await members["cid"].send(["ann"], b"from a new one")
                    assert await receive_all(members["ann"], 1) == [("cid", b"from a new one")]
                    await members["ann"].send(["cid"], b"to a new one")
                    await heard(members["cid"], "ann", b"to a new one")
                    for transport in members.values():
                        await transport.close()

    run(main())


def test_a_change_while_a_peer_is_away_holds_when_it_returns(world: World) -> None:
    async def main() -> None:
        async with world.network(TRIANGLE) as members:
            ann, cid = members["ann"], members["cid"]
            await members["bob"].close()
            if world.dials:
                await lost(ann, "bob")
            await change(members, {"ann": {"cid"}})
            bob = world.make(world.federation, "bob", {"ann", "cid"})
            try:
                await bob.start()
                await acquainted(world, {"bob": bob, "cid": cid}, "bob", "cid")
                await bob.send(["ann"], b"from a former peer")
                await swept({"bob": bob, "cid": cid}, "bob", ["cid"])
                await cid.send(["ann"], b"from a peer")
                assert await receive_all(ann, 1) == [("cid", b"from a peer")]
            finally:
                await bob.close()

    run(main())


def test_an_unreachable_network_is_told_at_the_start(brokers: Callable[[str], MqttOptions]) -> None:
    async def main() -> None:
        port = free_port()
        transport = mqtt_world(MqttOptions(port=port)).make("nowhere", "ann", {"bob"})
        with pytest.raises(TransportUnavailable, match=f"127.0.0.1:{port}") as caught:
            await transport.start()
        assert "\n" not in str(caught.value)
        await transport.close()

    run(main())
