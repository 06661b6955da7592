"""A dial that succeeds at once still takes a quarter of a second."""

from __future__ import annotations

import logging
import statistics
import time

import trio
from libp2p import new_host
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr


async def main() -> None:
    """Dial the same host by both of the swarm's methods, ten times each."""
    took_ms: dict[str, list[float]] = {"dial_peer": [], "dial_addr": []}
    server = new_host()
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        for _ in range(10):
            for method, found in took_ms.items():
                client = new_host()
                info = PeerInfo(server.get_id(), server.get_addrs())
                async with client.run([]):
                    swarm = client.get_network()
                    assert isinstance(swarm, Swarm)
                    began = time.perf_counter()
                    if method == "dial_peer":
                        await client.connect(info)
                    else:
                        await swarm.dial_addr(info.addrs[0], info.peer_id)
                    found.append((time.perf_counter() - began) * 1e3)
    for method, found in took_ms.items():
        print(f"{method}: {statistics.median(found):.0f} ms, median of {len(found)}")


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
trio.run(main)
