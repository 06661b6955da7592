"""Each open_stream() that is cancelled uses up one of 256 places for ever."""

from __future__ import annotations

import socket

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux


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


async def main() -> None:
    """Give up 256 times while the connection is busy; then let everything flow."""
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        first = await a.open_stream()
        async with trio.open_nursery() as writing:
            writing.start_soon(first.write, bytes(200_000))
            await trio.sleep(0.3)
            before = a.stream_backlog_semaphore.value
            for _ in range(before):
                with trio.move_on_after(0.002):
                    await a.open_stream()
            nursery.start_soon(b.start)
        print(f"places free before: {before}; after as many cancelled calls: {a.stream_backlog_semaphore.value}")
        with trio.move_on_after(5) as scope:
            await a.open_stream()
        outcome = "hangs, given up after 5 s" if scope.cancelled_caught else "opened a stream"
        print(f"open_stream() on the idle connection: {outcome}; connection closed: {a.is_closed}")
        nursery.cancel_scope.cancel()


trio.run(main)
