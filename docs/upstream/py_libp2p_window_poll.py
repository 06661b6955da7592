"""A sender whose window is used up looks every 10 ms whether it may go on."""

from __future__ import annotations

import random
import statistics
import time

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream


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


async def send(stream: YamuxStream) -> None:
    """Write for ever."""
    while True:
        await stream.write(bytes(1 << 20))


async def main() -> None:
    """Read one piece from a stream whose window is used up, and wait for the next; a hundred times."""
    granted_ms = []
    gone_on_ms = []
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        reader = await b.accept_stream()
        nursery.start_soon(send, sender)
        for _ in range(100):
            await trio.sleep(0.1 + 0.02 * random.random())
            assert sender.send_window == 0
            began = time.perf_counter()
            await reader.read(1 << 16)
            left = len(b.stream_buffers[reader.stream_id])
            while sender.send_window == 0:
                await trio.lowlevel.checkpoint()
            granted_ms.append((time.perf_counter() - began) * 1e3)
            while len(b.stream_buffers[reader.stream_id]) == left:
                await trio.lowlevel.checkpoint()
            gone_on_ms.append((time.perf_counter() - began) * 1e3)
        nursery.cancel_scope.cancel()
    for what, found in (("sender was granted more", granted_ms), ("its next bytes arrived", gone_on_ms)):
        print(f"ms from read() until {what}: median {statistics.median(found):.1f}, longest {max(found):.1f}")


trio.run(main)
