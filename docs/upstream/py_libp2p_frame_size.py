"""A full yamux frame is 17 bytes too long for one Noise packet."""

from __future__ import annotations

import statistics
import time
from collections import Counter

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

SENT = 20_000_000
packets: Counter[int] = Counter()


class Counting(RawConnection):
    """Counts the Noise packets that the dialling side sends, by size."""

    async def write(self, data: bytes) -> None:
        """Count and send."""
        if self.is_initiator:
            packets[len(data)] += 1
        await super().write(data)


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
        session = await noise[0].secure_outbound(Counting(TrioTCPStream(dialled), True), ids[1])
        ends["a"] = Yamux(session, ids[1])

    async def accept() -> None:
        session = await noise[1].secure_inbound(Counting(TrioTCPStream(accepted), False))
        ends["b"] = Yamux(session, ids[0])

    async with trio.open_nursery() as handshake:
        handshake.start_soon(dial)
        handshake.start_soon(accept)
    for end in ends.values():
        nursery.start_soon(end.start)
        await end.event_started.wait()
    return ends["a"], ends["b"]


async def drain(stream: YamuxStream) -> None:
    """Read for ever."""
    while True:
        await stream.read(1 << 20)


async def send(frame_bytes: int) -> float:
    """Send with yamux frames of this size; return MB/s."""
    yamux.MAX_MESSAGE_SIZE = frame_bytes
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        nursery.start_soon(drain, await b.accept_stream())
        packets.clear()
        began = time.perf_counter()
        await sender.write(bytes(SENT))
        rate = SENT / (time.perf_counter() - began) / 1e6
        nursery.cancel_scope.cancel()
    return rate


rates: dict[int, list[float]] = {65536: [], 65519: []}
for _ in range(5):
    for size, found in rates.items():
        found.append(trio.run(send, size))
        if len(found) == 1:
            print(f"frames of {size}: (packet size, how often):", packets.most_common(2))
print("MB/s, median of 5:", {size: round(statistics.median(found)) for size, found in rates.items()})
