"""Real libp2p hosts on loopback for tests: sites, a network between them that can be broken, processes, strangers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio
from libp2p.abc import IHost, INetConn
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from mosquitto import free_port
from multiaddr import Multiaddr

from gossipfl.digest import digest
from gossipfl.identity import Identity, PeerId
from gossipfl.membership import federation_id_of
from gossipfl.transports.base import LinkEvent
from gossipfl.transports.libp2p.bridge import TrioThread
from gossipfl.transports.libp2p.host import TidyTcp, make_host, swarm_of
from gossipfl.transports.libp2p.link import Link
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.transport import Libp2pTransport
from gossipfl.transports.libp2p.wire import PROTOCOL, Greeting
from gossipfl.transports.libp2p.yamux_stream import YamuxStream

POLL_S = 0.005
AGAIN_S = 0.05
PEER_PROGRAM = Path(__file__).with_name("libp2p_peer.py")
QUICK: dict[str, Any] = {"backoff_s": (0.01, 0.05), "ping_s": 0.3, "dead_s": 1.0, "timeout_s": 3.0}
"""Options of a site that notices at once; ``timeout_s`` is how long a busy machine may need for one connection."""


IN_ORDER = ("cid", "dan", "eve", "ann", "bob")
"""Sites by their peer ids: of two that know each other's address, the first one dials at once, and few tests wait."""

_KEYS = sorted(
    (Identity.from_seed(digest(f"libp2p lab/{number}".encode())) for number in range(len(IN_ORDER))),
    key=lambda identity: identity.peer_id,
)


def key(name: str) -> Identity:
    """Return the key of a site, always the same for a name."""
    return _KEYS[IN_ORDER.index(name)]


def peer(name: str) -> PeerId:
    return key(name).peer_id


def loopback(port: int) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}"


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def own_threads() -> list[str]:
    """Return the threads of this process, but for those that the runtimes keep for a while and reuse."""
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if not name.startswith(("Trio thread", "asyncio-waitpid", "asyncio_")))


def run(main: Coroutine[Any, Any, None], deadline_s: float = 40.0) -> None:
    """Run ``main`` and check that it leaves no task, thread or descriptor behind."""
    threads, descriptors = own_threads(), open_descriptors()

    async def bounded() -> None:
        async with asyncio.timeout(deadline_s):
            await main
        assert asyncio.all_tasks() == {asyncio.current_task()}, asyncio.all_tasks()

    try:
        asyncio.run(bounded())
    except BaseException:
        # Collected now, lest it be while pytest parses sources, which Python 3.11 does not survive.
        gc.collect()
        raise
    assert own_threads() == threads, own_threads()
    assert open_descriptors() == descriptors, f"{open_descriptors()} descriptors, not {descriptors}"


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until ``condition`` holds and return its value; the deadline is the test's."""
    while not (value := condition()):  # noqa: ASYNC110  # counters and lists have no event to wait for
        await asyncio.sleep(POLL_S)
    return value


async def until_async(condition: Callable[[], Awaitable[Any]]) -> Any:
    while not (value := await condition()):  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    return value


class Site:
    """A transport under test, by name; its events are noted as they come."""

    def __init__(self, name: str, peers: Iterable[str], *, port: int | None = None, **options: Any) -> None:
        self.name = name
        self.port = port or free_port()
        known = {peer(other): told for other, told in options.pop("addresses", {}).items()}
        members = options.pop("members", None)
        remembered = options.pop("remembered", ())
        settings = {"listen": (loopback(self.port),), "addresses": known, **QUICK, **options}
        self.transport = Libp2pTransport(
            key(name),
            [peer(other) for other in peers],
            Libp2pOptions(**settings),
            members=None if members is None else [peer(other) for other in members],
            remembered=remembered,
        )
        self.id = self.transport.me
        self.events: list[LinkEvent] = []
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.transport.start()
        except BaseException:
            await self.transport.close()
            raise
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.transport.close()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])

    async def _watch(self) -> None:
        while True:
            self.events.append(await self.transport.events())

    # ------------------------------------------------------------------------------------------ what is known

    @property
    def reasons(self) -> dict[str, int]:
        return self.transport.counters.by_reason

    def seen(self, state: str, other: str | None = None) -> list[LinkEvent]:
        wanted = None if other is None else peer(other)
        return [event for event in self.events if event.state == state and wanted in (None, event.peer)]

    def is_up(self, other: str) -> bool:
        return self.transport.links()[peer(other)].state == "up"

    async def up(self, *others: str, times: int = 1) -> None:
        """Wait until the link to each was made so often, and is there."""
        await until(lambda: all(len(self.seen("up", other)) >= times and self.is_up(other) for other in others))

    async def down(self, other: str, times: int = 1) -> LinkEvent:
        await until(lambda: len(self.seen("down", other)) >= times)
        return self.seen("down", other)[times - 1]

    async def refused(self, reason: str, times: int = 1) -> None:
        await until(lambda: self.reasons.get(f"refused {reason}", 0) >= times)

    # ------------------------------------------------------------------------------------------ frames

    async def send(self, other: str, frame: bytes, *, bulk: bool = False) -> bool:
        return await self.transport.send([peer(other)], frame, bulk=bulk)

    async def receive(self) -> tuple[PeerId | None, bytes]:
        received = await self.transport.receive()
        return received.source, bytes(received.frame)

    # ------------------------------------------------------------------------------------------ inside

    async def inside(self, function: Callable[[], Any]) -> Any:
        """Call a plain function in the trio thread."""

        async def call() -> Any:
            return function()

        return await self.transport._bridge.run(call)

    def link(self, other: str) -> Link | None:
        return self.transport._switchboard._neighbours[peer(other)].link

    async def ping(self, other: str) -> None:
        """Return when ``other`` has read all that was written so far."""

        async def ping() -> None:
            link = self.link(other)
            assert link is not None
            await link.muxed.ping()

        await self.transport._bridge.run(ping)

    async def streams(self, other: str) -> int:
        def count() -> int:
            link = self.link(other)
            return 0 if link is None else len(link.muxed._streams)

        return await self.inside(count)

    async def connections(self) -> int:
        return await self.inside(lambda: len(self.transport._switchboard._swarm.get_connections()))

    async def trio_tasks(self) -> Counter[str]:
        """Return how many tasks of each name run in the trio thread."""

        def walk() -> Counter[str]:
            found: Counter[str] = Counter()
            tasks = [trio.lowlevel.current_root_task()]
            while tasks:
                task = tasks.pop()
                if task is not None:
                    found[task.name] += 1
                    tasks += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
            return found

        return await self.inside(walk)


@contextlib.asynccontextmanager
async def sites(*made: Site) -> AsyncIterator[tuple[Site, ...]]:
    async with contextlib.AsyncExitStack() as stack:
        for site in made:
            await stack.enter_async_context(site)
        yield made


@contextlib.asynccontextmanager
async def linked(*others: str, **options: Any) -> AsyncIterator[tuple[Site, Site]]:
    """Give ann and bob, linked; ann, who takes ``options``, would also have the ``others`` for neighbours."""
    bob = Site("bob", ["ann"], members=others)
    known = {"bob": (loopback(bob.port),), **options.pop("addresses", {})}
    async with sites(bob, Site("ann", ["bob", *others], addresses=known, **options)) as (bob, ann):
        await ann.up("bob")
        await bob.up("ann")
        yield ann, bob


@contextlib.asynccontextmanager
async def unharmed(ann: Site, bob: Site) -> AsyncIterator[None]:
    """Check that the link of two honest sites carries frames before and after, and never broke."""
    await exchange(ann, bob, b"before")
    yield
    await exchange(ann, bob, b"after")
    assert ann.seen("down", "bob") == bob.seen("down") == []
    assert bob.reasons == {}, bob.reasons


async def exchange(one: Site, other: Site, text: bytes = b"hello") -> None:
    """Get a frame through each way; a transport may lose one, and does where two sites have dialled each other."""
    for sender, receiver in ((one, other), (other, one)):
        frame = text + b" from " + sender.name.encode()
        await insist(partial(sender.send, receiver.name, frame), _await_frame(receiver, sender.id, frame))


async def insist(send: Callable[[], Awaitable[object]], arrival: Coroutine[Any, Any, None]) -> None:
    """Call ``send`` again and again until what is to come of it has come."""
    arrived = asyncio.create_task(arrival)
    try:
        while not arrived.done():
            await send()
            await asyncio.wait([arrived], timeout=AGAIN_S)
        arrived.result()
    finally:
        arrived.cancel()
        await asyncio.wait([arrived])


async def _await_frame(receiver: Site, source: PeerId, frame: bytes) -> None:
    while await receiver.receive() != (source, frame):
        pass


# ---------------------------------------------------------------------------------------------- the network


class Proxy:
    """Forwards TCP connections to ``target``, until it is told to do worse."""

    def __init__(self, target: int, rate: float | None = None) -> None:
        self.target = target
        self.rate = rate
        self.refusing = False
        self.connections = 0
        self.made = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pairs: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()
        self._flowing.set()
        tasks = list(self._pairs)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def address(self) -> str:
        return loopback(self.port)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            near.setblocking(False)
            if self.refusing:
                _reset(near)
                continue
            far = socket.socket()
            far.setblocking(False)
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.rate is not None:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            self.made += 1
            task = asyncio.create_task(self._serve(near, far))
            self._pairs[task] = (near, far)

    async def _serve(self, near: socket.socket, far: socket.socket) -> None:
        self.connections += 1
        try:
            await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self.target))
            pumps = [asyncio.create_task(self._pump(*ends)) for ends in ((near, far), (far, near))]
            try:
                await asyncio.wait(pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
        except OSError:
            pass
        finally:
            near.close()
            far.close()
            self.connections -= 1
            current = asyncio.current_task()
            assert current is not None
            self._pairs.pop(current, None)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(source, 64 << 10):
                await self._flowing.wait()
                if self.rate is not None:
                    await asyncio.sleep(len(data) / self.rate)
                await loop.sock_sendall(sink, data)
        with contextlib.suppress(OSError):
            await self._flowing.wait()
            sink.shutdown(socket.SHUT_WR)

    # ------------------------------------------------------------------------------------------ faults

    def black_hole(self) -> None:
        """Pass nothing on from now on; connections stay open, new ones are taken."""
        self._flowing.clear()

    def heal(self) -> None:
        """Pass everything on again, and forget the connections that were black-holed."""
        self.cut()
        self._flowing.set()

    def cut(self) -> None:
        """Reset all connections."""
        for task, ends in self._pairs.items():
            for end in ends:
                _reset(end)
            task.cancel()

    def end(self) -> None:
        """Close all connections politely, in both directions."""
        for ends in self._pairs.values():
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    """Have the kernel send RST when this is closed, in place of FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


class Wire:
    """The ways between two sites, one for each that dials; what happens to one happens to both."""

    def __init__(self, *proxies: Proxy) -> None:
        self.proxies = proxies

    def cut(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    def end(self) -> None:
        for proxy in self.proxies:
            proxy.end()

    def black_hole(self) -> None:
        for proxy in self.proxies:
            proxy.black_hole()

    def heal(self) -> None:
        for proxy in self.proxies:
            proxy.heal()

    def refuse(self, refusing: bool) -> None:
        for proxy in self.proxies:
            proxy.refusing = refusing

    @property
    def connections(self) -> int:
        return sum(proxy.connections for proxy in self.proxies)


@contextlib.asynccontextmanager
async def wired(
    first: dict[str, Any] | None = None, second: dict[str, Any] | None = None, rate: float | None = None
) -> AsyncIterator[tuple[Site, Site, Wire]]:
    """Give ann and bob, who can reach each other through proxies only, and their wire; both are linked."""
    ports = {"ann": free_port(), "bob": free_port()}
    async with Proxy(ports["ann"], rate) as to_ann, Proxy(ports["bob"], rate) as to_bob:
        way = {"ann": (to_ann.address,), "bob": (to_bob.address,)}
        async with sites(
            Site("ann", ["bob"], **{"port": ports["ann"], "addresses": way, "announce": way["ann"], **(first or {})}),
            Site("bob", ["ann"], **{"port": ports["bob"], "addresses": way, "announce": way["bob"], **(second or {})}),
        ) as (ann, bob):
            await ann.up("bob")
            await bob.up("ann")
            yield ann, bob, Wire(to_ann, to_bob)


# ---------------------------------------------------------------------------------------------- processes


class Process:
    """``libp2p_peer.py`` in a process of its own; killed at the end, whatever happens."""

    def __init__(self, name: str, peers: Iterable[str], *, job: str = "echo", **options: Any) -> None:
        self.name = name
        known = {peer(other): told for other, told in options.pop("addresses", {}).items()}
        self._setup = {
            "name": name,
            "peers": [peer(other) for other in peers],
            "job": job,
            "options": {**QUICK, "addresses": known, **options},
        }
        self.told: list[dict[str, Any]] = []

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            str(PEER_PROGRAM),
            json.dumps(self._setup),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=PEER_PROGRAM.parents[2],
            limit=1 << 20,
        )
        self._reader = asyncio.create_task(self._read())
        try:
            await self.until(lambda: any("listening" in line for line in self.told))
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.told.append(json.loads(line))

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something that it tells."""
        while not (value := condition()):
            assert not self._reader.done(), f"{self.name} ended: {self.told[-3:]}"
            await asyncio.sleep(POLL_S)
        return value

    def events(self, state: str) -> list[dict[str, Any]]:
        return [line for line in self.told if line.get("event") == state]

    def last(self, what: str) -> Any:
        return next((line[what] for line in reversed(self.told) if what in line), None)

    def command(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await asyncio.wait([self._reader])
        self._process._transport.close()  # type: ignore[attr-defined]  # else it warns that its pipes are open

    @property
    def pid(self) -> int:
        return self._process.pid


# ---------------------------------------------------------------------------------------------- strangers and worse


class Outsider:
    """A hand-made host with a key of one's choice, that dials and says what it likes."""

    def __init__(self, identity: Identity, protocols: dict[str, Callable[[Any], Any]] | None = None) -> None:
        self.identity = identity
        self.id = identity.peer_id
        self.protocols = protocols or {}
        self._bridge = TrioThread(f"outsider[{self.id[-6:]}]")
        self.host: IHost

    async def __aenter__(self) -> Self:
        await self._bridge.start()
        self.host = make_host(self.identity, lambda _: None, TidyTcp(), mdns=False, peers=64)
        for protocol, handler in self.protocols.items():
            self.host.set_stream_handler(TProtocol(protocol), handler)
        self.listening = await self._bridge.start_task(self._hold)
        return self

    async def _hold(self, *, task_status: Any) -> None:
        async with self.host.run([Multiaddr(loopback(0))]):
            (listener,) = swarm_of(self.host).listeners.values()
            task_status.started(str(listener.get_addrs()[0]))
            await trio.sleep_forever()

    async def __aexit__(self, *_: object) -> None:
        await self._bridge.close()

    async def run(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return await self._bridge.run(function, *args)

    async def inside(self, function: Callable[[], Any]) -> Any:
        """Call a plain function in the trio thread."""

        async def call() -> Any:
            return function()

        return await self._bridge.run(call)

    async def knock(self, port: int, expected: PeerId) -> bool:
        """Dial; tell whether the other side let this one in, for so long that it can be told."""

        async def dial() -> bool:
            try:
                conn = await self.dial(port, expected)
            except Exception:  # noqa: BLE001 - however it is refused
                return False
            muxed: Any = conn.muxed_conn
            with trio.move_on_after(5):
                try:
                    await muxed.ping()
                except Exception:  # noqa: BLE001 - it was closed
                    return False
            await conn.close()
            return True

        return bool(await self.run(dial))

    async def dial(self, port: int, expected: PeerId) -> INetConn:
        """In the trio thread: connect."""
        return await swarm_of(self.host).dial_addr(Multiaddr(loopback(port)), ID.from_base58(expected))

    async def open_stream(self, conn: INetConn, protocol: str = PROTOCOL) -> YamuxStream:
        """In the trio thread: open a stream and agree on its protocol."""
        stream = await conn.new_stream()
        client: Any = self.host.multiselect_client  # type: ignore[attr-defined]
        await client.select_one_of((TProtocol(protocol),), MultiselectCommunicator(stream))
        return stream.muxed_stream  # type: ignore[attr-defined,no-any-return]

    def greeting(self, lane: int = 0, federation: str = "default", instance: bytes = b"i" * 16) -> bytes:
        return Greeting(federation_id_of(federation), instance, lane).pack()


def timed() -> Callable[[], float]:
    """Return a stop-watch; for telling, never for asserting."""
    began = time.monotonic()
    return lambda: time.monotonic() - began


def tell(what: str, seconds: float) -> None:
    sys.stdout.write(f"\n[measured] {what}: {seconds:.3f} s\n")
