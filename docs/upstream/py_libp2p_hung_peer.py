"""A peer whose process is stopped is not noticed: unanswered pings have no consequence."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import trio
from libp2p import new_host
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

PING_S = 1
"""Instead of the library's 30 s, so that several pings fall into the time watched."""


async def be_stopped() -> None:
    """Listen, for a bounded time."""
    host = new_host()
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        print(host.get_addrs()[0], flush=True)
        await trio.sleep(60)


async def watch(peer: subprocess.Popen[str]) -> None:
    """Connect, stop the other process, and look."""
    assert peer.stdout is not None
    info = info_from_p2p_addr(Multiaddr(peer.stdout.readline().strip()))
    host = new_host()
    async with host.run([]):
        await host.connect(info)
        await trio.sleep(2)
        (conn,) = host.get_network().connections[info.peer_id]
        os.kill(peer.pid, signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(2):
            await trio.sleep(10)
            print(
                f"stopped for {time.monotonic() - began:.0f} s: connection closed: {conn.is_closed},"
                f" connected peers: {len(host.get_connected_peers())}"
            )


def main() -> None:
    """Start the other process, and end it whatever happens."""
    yamux.RTT_MEASURE_INTERVAL = PING_S
    peer = subprocess.Popen([sys.executable, __file__, "peer"], stdout=subprocess.PIPE, text=True)
    try:
        trio.run(watch, peer)
    finally:
        peer.kill()
        peer.wait()


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
if sys.argv[1:] == ["peer"]:
    trio.run(be_stopped)
else:
    main()
