"""A packet that comes in more than a hundred pieces ends a healthy connection."""

from __future__ import annotations

import contextlib
import logging

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux

SENT = 65_000


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print("  logged:", record.getMessage().partition(": ")[2].partition(". Transport")[0])


class SlowLink(RawConnection):
    """Hands over ``segment`` bytes a millisecond."""

    segment = 0

    async def write(self, data: bytes) -> None:
        """Send in segments."""
        for at in range(0, len(data), self.segment):
            await super().write(data[at : at + self.segment])
            await trio.sleep(0.001)


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
        session = await noise[0].secure_outbound(SlowLink(TrioTCPStream(dialled), True), ids[1])
        ends["a"] = Yamux(session, ids[1])

    async def accept() -> None:
        session = await noise[1].secure_inbound(SlowLink(TrioTCPStream(accepted), False))
        ends["b"] = Yamux(session, ids[0])

    async with trio.open_nursery() as handshake:
        handshake.start_soon(dial)
        handshake.start_soon(accept)
    for end in ends.values():
        nursery.start_soon(end.start)
        await end.event_started.wait()
    return ends["a"], ends["b"]


async def main() -> None:
    """Send one packet over links with segments of two sizes."""
    logging.getLogger("libp2p.stream_muxer.yamux.yamux").addHandler(_Handler(logging.WARNING))
    for SlowLink.segment in (1000, 500):
        async with trio.open_nursery() as nursery:
            a, b = await connect(nursery)
            sender = await a.open_stream()
            reader = await b.accept_stream()
            with contextlib.suppress(ConnectionClosedError):
                await sender.write(bytes(SENT))
            await trio.sleep(0.5)
            arrived = len(b.stream_buffers.get(reader.stream_id, b""))
            print(f"segments of {SlowLink.segment} bytes: {arrived:,} of {SENT:,} bytes; closed: {b.is_closed}")
            nursery.cancel_scope.cancel()


trio.run(main)
