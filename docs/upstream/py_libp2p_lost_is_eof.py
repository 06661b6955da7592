"""A connection that breaks in the middle looks like a stream that has come to its end."""

from __future__ import annotations

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.exceptions import MuxedStreamError
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


async def read_all(stream: YamuxStream) -> str:
    """Read until the stream ends; return how much came and how it ended."""
    got = 0
    try:
        while True:
            got += len(await stream.read(1 << 20))
    except MuxedStreamError as error:
        return f"{got:,} bytes, then {type(error).__name__}"


async def read_until(how: str) -> str:
    """Send 100,000 bytes to a reader that waits for more, then end in the way that ``how`` says."""
    outcome = ""
    async with trio.open_nursery() as nursery:
        a, b = await connect(nursery)
        sender = await a.open_stream()
        reader = await b.accept_stream()

        async def read() -> None:
            nonlocal outcome
            outcome = await read_all(reader)

        nursery.start_soon(read)
        await sender.write(bytes(100_000))
        await trio.sleep(0.3)
        if how == "stream closed":
            await sender.close()
        else:
            await a.secured_conn.close()
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()
    return outcome


async def main() -> None:
    """Compare a regular end with a socket that goes away."""
    for how in ("stream closed", "socket gone"):
        print(f"{how}: {await read_until(how)}")


trio.run(main)
