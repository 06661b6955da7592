"""A receiver grants more than it has taken, up to half again of the largest window."""

from __future__ import annotations

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import MAX_WINDOW_SIZE, Yamux, YamuxStream


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


async def take(stream: YamuxStream, size: int, at_most: int) -> None:
    """Read ``size`` bytes."""
    while size:
        size -= len(await stream.read(at_most))


async def main() -> None:
    """Let the window grow to its limit, then send 8 MB that are read in one piece."""
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        reader = await b.accept_stream()
        nursery.start_soon(sender.write, bytes(60_000_000))
        await take(reader, 60_000_000, 1 << 20)
        await trio.sleep(0.3)
        print(f"largest window by the code: {MAX_WINDOW_SIZE:,}; the sender may now send: {sender.send_window:,}")
        await sender.write(bytes(8_000_000))
        await trio.sleep(0.3)
        await take(reader, 8_000_000, 1 << 24)
        await trio.sleep(0.3)
        print(f"after 8,000,000 bytes, all of them read: {sender.send_window:,}")
        nursery.cancel_scope.cancel()


trio.run(main)
