"""A sender that ignores the window is let through, and the receiver keeps everything in memory."""

from __future__ import annotations

import logging

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux

SENT = 100_000_000


async def connect(nursery: trio.Nursery) -> tuple[Yamux, Yamux]:
    """Return both ends of a connection over Noise and TCP, started."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    dialled = await trio.open_tcp_stream(*listener.socket.getsockname())
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
    for end in ends.values():
        nursery.start_soon(end.start)
        await end.event_started.wait()
    return ends["a"], ends["b"]


async def main() -> None:
    """Send far more than was granted, to a reader that reads nothing."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        reader = await b.accept_stream()
        granted, sender.send_window = sender.send_window, SENT
        await sender.write(bytes(SENT))
        await trio.sleep(0.5)
        print(f"granted {granted:,} bytes; held unread by the receiver: {len(b.stream_buffers[reader.stream_id]):,}")
        print(f"connection closed by the receiver: {b.is_closed}; stream reset: {reader.reset_received}")
        nursery.cancel_scope.cancel()


trio.run(main)
