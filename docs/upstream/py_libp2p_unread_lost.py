"""What has arrived and was not read yet is thrown away when the connection ends."""

from __future__ import annotations

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import Yamux

SENT = 100_000


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


async def read_after(how: str) -> str:
    """Send, let everything arrive, end something in the way that ``how`` says, then read."""
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        reader = await b.accept_stream()
        await sender.write(bytes(SENT))
        await sender.close()
        await trio.sleep(0.3)
        arrived = len(b.stream_buffers[reader.stream_id])
        if how == "the connection closed":
            await a.close()
        elif how == "the socket closed":
            await a.secured_conn.close()
        await trio.sleep(0.3)
        try:
            outcome = f"{len(await reader.read(1 << 20)):,} bytes read"
        except MuxedStreamError as error:
            outcome = f"nothing read: {type(error).__name__}"
        nursery.cancel_scope.cancel()
    return f"{arrived:,} bytes had arrived; {outcome}"


async def main() -> None:
    """Try three ways to end."""
    for how in ("the stream closed", "the connection closed", "the socket closed"):
        print(f"{how + ' by the sender':36} {await read_after(how)}")


trio.run(main)
