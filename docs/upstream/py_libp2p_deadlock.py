"""Two processes that send much to each other over one connection stop each other for ever.

python py_libp2p_deadlock.py [RUNS]
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair as new_keys
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

WATCH_S = 4.0
STILL_S = 2.0
KINDS = (
    # label, bytes of a yamux frame, seconds between two pings, whether each side also opens a short stream every 20 ms
    ("as it comes", 64 << 10, 30.0, False),
    ("short streams beside it", 64 << 10, 30.0, True),
    ("a ping every 10 ms", 64 << 10, 0.01, False),
    ("the same, frames of 1 MiB", 1 << 20, 0.01, False),
)


async def talk(sock: socket.socket, keys: list[KeyPair], me: int, short_streams: bool) -> bool:
    """Be one of two sides: write and read without end. The first one tells whether what comes has stopped coming."""
    raw = RawConnection(TrioTCPStream(trio.SocketStream(trio.socket.from_stdlib_socket(sock))), me == 0)
    noise = Noise(keys[me], new_noise_keys().private_key)
    other = ID.from_pubkey(keys[1 - me].public_key)
    conn = Yamux(await (noise.secure_inbound(raw) if me else noise.secure_outbound(raw, other)), other)
    came, at = 0, time.monotonic()

    async def write(stream: YamuxStream) -> None:
        while True:
            await stream.write(bytes(10_000_000))

    async def read(stream: YamuxStream) -> None:
        nonlocal came, at
        while True:
            came += len(await stream.read(1 << 20))
            at = time.monotonic()

    async def open_streams() -> None:
        while True:
            await trio.sleep(0.02)
            await (await conn.open_stream()).close()

    async def close_streams() -> None:
        while True:
            nursery.start_soon((await conn.accept_stream()).close)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.start)
        await conn.event_started.wait()
        stream: Any = await (conn.accept_stream() if me else conn.open_stream())
        nursery.start_soon(write, stream)
        nursery.start_soon(read, stream)
        if short_streams:
            nursery.start_soon(open_streams)
            nursery.start_soon(close_streams)
        await trio.sleep(WATCH_S + 60 * me)
        await trio.sleep(max(0.0, at + STILL_S - time.monotonic()))
        stuck = time.monotonic() - at >= STILL_S
        nursery.cancel_scope.cancel()
    return stuck


def run(frame_bytes: int, ping_s: float, short_streams: bool) -> bool:
    """Let two processes talk; tell whether they got stuck."""
    yamux.MAX_MESSAGE_SIZE = frame_bytes
    yamux.RTT_MEASURE_INTERVAL = ping_s
    keys = [new_keys(), new_keys()]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    other = os.fork()
    if other == 0:
        signal.alarm(30)
        dialled.close()
        try:
            trio.run(talk, accepted, keys, 1, short_streams)
        finally:
            os._exit(0)
    accepted.close()
    try:
        return trio.run(talk, dialled, keys, 0, short_streams)
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


runs = int(sys.argv[1]) if len(sys.argv) > 1 else 1
for label, *kind in KINDS:
    stuck = sum(run(*kind) for _ in range(runs))
    print(f"{label}: stuck in {stuck} of {runs}", flush=True)
