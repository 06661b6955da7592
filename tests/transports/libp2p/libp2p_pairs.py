"""Two ends of a connection for the tests of the libp2p transport, with the handshake and the bytes of real ones."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import trio
import trio.testing
from libp2p.abc import IRawConnection
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as LibraryNoise
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.yamux.yamux import Yamux as LibraryYamux

from gossipfl.identity import Identity, PeerId
from gossipfl.transports.libp2p.host import SiteKey
from gossipfl.transports.libp2p.noise import MemberNoise, MemberSession
from gossipfl.transports.libp2p.yamux import Yamux
from gossipfl.transports.libp2p.yamux_frames import HEADER

DEADLINE_S = 30.0
ANN, BOB, CID = (Identity.from_seed(name * 32) for name in (b"a", b"b", b"c"))
_NOISE_KEY = new_noise_key().private_key  # one for all: making one costs more than a handshake

AnyYamux = Yamux | LibraryYamux
Streams = tuple[Any, Any]


def run_trio(main: Callable[..., Awaitable[None]], *args: object, clock: trio.abc.Clock | None = None) -> None:
    """Run ``main`` on trio, for a bounded time; with a clock that jumps, for a bounded number of tasks' steps only."""

    async def bounded() -> None:
        with trio.fail_after(DEADLINE_S if clock is None else float("inf")):
            await main(*args)

    trio.run(bounded, clock=clock)


def jumping_clock() -> trio.testing.MockClock:
    """Return a clock that jumps to the next timer when nothing else can happen."""
    return trio.testing.MockClock(autojump_threshold=0)


# ---------------------------------------------------------------------------------------------------- bytes


class Pipe(ReadWriteCloser):
    """One end, as a raw connection wants it; tests may touch what is written, and cut up what is read.

    ``on_write`` returns what goes on instead; ``read_sizes`` says how many bytes the next reads return at most.
    """

    def __init__(self, stream: Any) -> None:
        self._inner = TrioTCPStream(stream)
        self.on_write: Callable[[bytes], bytes] = bytes
        self.read_sizes: list[int] = []

    async def read(self, n: int | None = None) -> bytes:
        most = self.read_sizes.pop(0) if self.read_sizes else n
        return await self._inner.read(most if n is None or most is None else min(most, n))

    async def write(self, data: bytes) -> None:
        await self._inner.write(self.on_write(bytes(data)))

    async def close(self) -> None:
        await self._inner.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._inner.get_remote_address()


def in_memory() -> Streams:
    """Return two ends that hold any number of bytes: a write never waits."""
    return trio.testing.memory_stream_pair()


def by_sockets(buffer_bytes: int | None = None) -> Streams:
    """Return two ends of a socket pair, whose buffers are limited."""
    ends = trio.socket.socketpair()
    if buffer_bytes is not None:
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    return trio.SocketStream(ends[0]), trio.SocketStream(ends[1])


class Ends:
    """A dialling and a listening end; ``pipe_of`` gives the pipe below a raw connection's end."""

    def __init__(self, streams: Streams) -> None:
        self.dialler, self.listener = (Pipe(stream) for stream in streams)

    def raw(self) -> tuple[IRawConnection, IRawConnection]:
        """Return both as raw connections, the dialling one first."""
        return RawConnection(self.dialler, True), RawConnection(self.listener, False)

    async def close(self) -> None:
        """Close both."""
        with trio.CancelScope(shield=True):
            await self.dialler.close()
            await self.listener.close()


# ---------------------------------------------------------------------------------------------------- Noise


def key_pair(identity: Identity) -> KeyPair:
    key = SiteKey(identity)
    return KeyPair(key, key.get_public_key())


def admit_all(peer: PeerId) -> None:
    """Refuse nobody."""


def member_noise(identity: Identity, admit: Callable[[PeerId], None] = admit_all) -> MemberNoise:
    """Return the security under test."""
    return MemberNoise(key_pair(identity), _NOISE_KEY, admit)


def library_noise(identity: Identity) -> LibraryNoise:
    """Return py-libp2p's own."""
    return LibraryNoise(key_pair(identity), _NOISE_KEY)


async def shake_hands(dialler: LibraryNoise, listener: LibraryNoise, ends: Ends) -> tuple[SecureSession, SecureSession]:
    """Return the sessions of both ends."""
    dialling, listening = ends.raw()
    sessions: dict[str, Any] = {}

    async def listen() -> None:
        sessions["listener"] = await listener.secure_inbound(listening)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        sessions["dialler"] = await dialler.secure_outbound(dialling, listener.local_peer)
    return sessions["dialler"], sessions["listener"]


class Secured:
    """``ours``, with the session under test, and ``theirs``, with py-libp2p's own, after a handshake."""

    def __init__(self, ours: MemberSession, theirs: SecureSession, our_pipe: Pipe, their_pipe: Pipe) -> None:
        self.ours = ours
        self.theirs = theirs
        self.our_pipe = our_pipe
        self.their_pipe = their_pipe


@contextlib.asynccontextmanager
async def secured(streams: Streams | None = None, *, we_dial: bool = True) -> AsyncIterator[Secured]:
    """Connect a session under test with one of the library; both are closed in the end."""
    ends = Ends(streams or in_memory())
    ours, theirs = member_noise(ANN), library_noise(BOB)
    try:
        if we_dial:
            dialler, listener = await shake_hands(ours, theirs, ends)
            assert isinstance(dialler, MemberSession)
            yield Secured(dialler, listener, ends.dialler, ends.listener)
        else:
            dialler, listener = await shake_hands(theirs, ours, ends)
            assert isinstance(listener, MemberSession)
            yield Secured(listener, dialler, ends.listener, ends.dialler)
    finally:
        await ends.close()


# ---------------------------------------------------------------------------------------------------- yamux


def packed(kind: int, flags: int = 0, number: int = 0, length: int = 0, version: int = 0) -> bytes:
    """Return the header of a yamux frame."""
    return HEADER.pack(version, kind, flags, number, length)


def unpacked(data: bytes) -> list[tuple[int, int, int, int]]:
    """Return type, flags, stream and length of frames that have no data."""
    assert not len(data) % HEADER.size
    return [frame[1:] for frame in HEADER.iter_unpack(data)]


async def muxed(nursery: trio.Nursery, session: SecureSession, *, own: bool = True) -> Any:
    """Start the muxer under test, or the library's own, on a session."""
    kind: type[AnyYamux] = Yamux if own else LibraryYamux
    conn: Any = kind(session, session.get_remote_peer())
    nursery.start_soon(conn.start)
    await conn.event_started.wait()
    return conn


@contextlib.asynccontextmanager
async def two_muxers(
    streams: Streams | None = None, *, own: bool = True, we_dial: bool = True
) -> AsyncIterator[tuple[Yamux, Any]]:
    """Connect a muxer under test with another one (``own``) or with one of the library; both end with the block."""
    ends = Ends(streams or in_memory())
    ours, theirs = member_noise(ANN), member_noise(BOB) if own else library_noise(BOB)
    try:
        if we_dial:
            mine, other = await shake_hands(ours, theirs, ends)
        else:
            other, mine = await shake_hands(theirs, ours, ends)
        async with trio.open_nursery() as nursery:
            yield await muxed(nursery, mine), await muxed(nursery, other, own=own)
            nursery.cancel_scope.cancel()
    finally:
        await ends.close()


class Puppet:
    """The other side of ``conn``, the muxer under test: it says whatever a test wants."""

    def __init__(self, conn: Yamux, pair: Secured, returned: trio.Event) -> None:
        self.conn = conn
        self.session = pair.theirs
        self.pipe_of_conn = pair.our_pipe
        self._pipe = pair.their_pipe
        self.returned = returned

    async def say(self, *parts: bytes) -> None:
        """Send bytes in one packet, or as many as they need."""
        await self.session.write(b"".join(parts))

    async def say_apart(self, pieces: Iterable[bytes]) -> None:
        """Send every piece in a packet of its own."""
        for piece in pieces:
            await self.session.write(piece)

    async def say_and_go(self, *parts: bytes) -> None:
        """Send every part in a packet of its own, all in one write, and close the connection before any is read."""
        written = bytearray()
        self._pipe.on_write = lambda data: written.extend(data) or b""  # type: ignore[func-returns-value]
        await self.say_apart(parts)
        self._pipe.on_write = bytes
        await self._pipe.write(bytes(written))
        await self._pipe.close()

    async def hear(self, frames: int) -> list[tuple[int, int, int, int]]:
        """Return the next frames, none of which may have data."""
        return unpacked(await self.session.read(frames * HEADER.size))

    async def hear_all(self) -> list[tuple[int, int, int, int]]:
        """Return all frames up to the end of the connection, none of which may have data."""
        heard = bytearray()
        with contextlib.suppress(BaseLibp2pError):
            while True:
                heard += await self.session.read(1)
        return unpacked(bytes(heard))

    async def end(self) -> str:
        """Wait until the muxer has ended, by itself and without an error; return why."""
        await self.conn.ended.wait()
        await self.returned.wait()
        assert self.conn.is_closed
        return self.conn.detail

    async def hang_up(self) -> None:
        """Close the connection and wait until the muxer has ended."""
        await self.session.close()
        await self.end()


@contextlib.asynccontextmanager
async def puppet(streams: Streams | None = None, *, we_dial: bool = False) -> AsyncIterator[Puppet]:
    """Connect a muxer under test with a puppet; an error out of the muxer's ``start`` fails the test."""
    async with secured(streams, we_dial=we_dial) as pair, trio.open_nursery() as nursery:
        conn, returned = Yamux(pair.ours, pair.ours.get_remote_peer()), trio.Event()

        async def serve() -> None:
            await conn.start()
            returned.set()

        nursery.start_soon(serve)
        await conn.event_started.wait()
        yield Puppet(conn, pair, returned)
        nursery.cancel_scope.cancel()


def identity_of(peer: PeerId) -> ID:
    """Return a peer id as the library has it."""
    return ID.from_base58(peer)
