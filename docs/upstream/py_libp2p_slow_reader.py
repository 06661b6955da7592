"""A reader that pauses for five seconds costs its sender the stream."""

from __future__ import annotations

import time

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux

WINDOW = 256 << 10


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
    """Fill the window of a stream, and do not read for six seconds."""
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        reader = await b.accept_stream()
        began = time.monotonic()
        try:
            await sender.write(bytes(WINDOW + 1))
            print("sender: everything was written")
        except MuxedStreamError as error:
            print(f"sender, after {time.monotonic() - began:.2f} s: {type(error).__name__}: {error}")
        await trio.sleep(max(0.0, began + 6 - time.monotonic()))
        print(
            f"reader, after 6 s: {len(await reader.read(1 << 20)):,} of {WINDOW + 1:,} bytes, on a healthy connection"
        )
        nursery.cancel_scope.cancel()


trio.run(main)
