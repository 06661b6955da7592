"""A write that is cancelled while the socket is full makes the whole connection unreadable."""

from __future__ import annotations

import contextlib
import logging
import socket

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream


async def connect(nursery: trio.Nursery) -> tuple[Yamux, Yamux]:
    """Return both ends of a connection over Noise and TCP with small buffers; only the first one is started."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    dialled = await trio.open_tcp_stream(*listener.socket.getsockname())
    dialled.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    accepted = await listener.accept()
    keys = [new_keys(), new_keys()]
    ids = [ID.from_pubkey(pair.public_key) for pair in keys]
    noise = [Noise(pair, new_noise_keys().private_key) for pair in keys]
    ends: dict[str, Yamux] = {}

    async def dial() -> None:
        session = await noise[0].secure_outbound(RawConnection(TrioTCPStream(dialled), True), ids[1])
        ends["a"] = Yamux(session, ids[1])

    async def accept() -> None:
        session = await noise[1].secure_inbound(RawConnection(TrioTCPStream(accepted), False))
        ends["b"] = Yamux(session, ids[0])

    async with trio.open_nursery() as handshake:
        handshake.start_soon(dial)
        handshake.start_soon(accept)
    nursery.start_soon(ends["a"].start)
    await ends["a"].event_started.wait()
    return ends["a"], ends["b"]


async def other_stream(*, cancel: bool) -> str:
    """Write to a peer that does not read yet, give up or not, then use another stream."""
    got = 0

    async def write(stream: YamuxStream, size: int) -> None:
        with contextlib.suppress(BaseLibp2pError):
            await stream.write(bytes(size))

    async def count(accepting: Yamux) -> None:
        nonlocal got
        with contextlib.suppress(BaseLibp2pError):
            await accepting.accept_stream()
            stream = await accepting.accept_stream()
            while True:
                got += len(await stream.read(1 << 20))

    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        first = await a.open_stream()
        async with trio.open_nursery() as writing:
            writing.start_soon(write, first, 200_000)
            await trio.sleep(0.3)
            if cancel:
                writing.cancel_scope.cancel()
            nursery.start_soon(b.start)
        nursery.start_soon(count, b)
        second = await a.open_stream()
        await write(second, 1_000)
        await trio.sleep(1)
        first_got = got
        nursery.start_soon(write, second, 100_000)
        await trio.sleep(1)
        closed = b.is_closed
        nursery.cancel_scope.cancel()
    return f"{first_got:,} of 1,000 bytes, then {got:,} of 101,000; closed by the reader: {closed}"


async def main() -> None:
    """Let the write finish, then do not."""
    print("write finished, other stream: ", await other_stream(cancel=False))
    print("write cancelled, other stream:", await other_stream(cancel=True))


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
trio.run(main)
