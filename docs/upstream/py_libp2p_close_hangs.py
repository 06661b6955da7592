"""Closing a connection to a peer that has stopped reading never returns."""

from __future__ import annotations

import socket
import time

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux

PATIENCE_S = 15


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


async def close(unsent: int) -> str:
    """Close a connection whose peer reads nothing, while ``unsent`` bytes are being written."""
    async with trio.open_nursery() as nursery:
        a, _ = await connect(nursery)
        sender = await a.open_stream()
        nursery.start_soon(sender.write, bytes(unsent))
        await trio.sleep(0.3)
        began = time.monotonic()
        with trio.move_on_after(PATIENCE_S) as scope:
            await a.close()
        nursery.cancel_scope.cancel()
    took = time.monotonic() - began
    ended = f"given up after {took:.1f} s" if scope.cancelled_caught else f"returned after {took:.1f} s"
    return f"{ended}; closed: {a.is_closed}"


async def main() -> None:
    """Close with nothing, then with something, on its way."""
    print("close() with an idle writer:   ", await close(0))
    print("close() with a blocked writer: ", await close(200_000))


trio.run(main)
