"""A host that cannot listen runs on without a word."""

from __future__ import annotations

import logging
import socket

import trio
from libp2p import new_host
from multiaddr import Multiaddr


async def main() -> None:
    """Run a host on a port that a plain socket has taken."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = new_host()
        async with host.run([Multiaddr(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")]):
            print("run() raised nothing; addresses that the host listens on:", host.get_addrs())


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
trio.run(main)
