"""A second host listens on a port that is taken, and gets some of the first one's connections."""

from __future__ import annotations

import logging

import trio
from libp2p import new_host
from libp2p.network.config import RetryConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

DIALS = 20


async def main() -> None:
    """Dial the first of two hosts that listen on one port."""
    first, second = new_host(), new_host()
    reached = 0
    async with first.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        address = first.get_addrs()[0].decapsulate("/p2p")
        async with second.run([address]):
            print("both listen on one port:", address == second.get_addrs()[0].decapsulate("/p2p"))
            for _ in range(DIALS):
                client = new_host()
                swarm = client.get_network()
                assert isinstance(swarm, Swarm)
                swarm.retry_config = RetryConfig(max_retries=0)
                async with client.run([]):
                    try:
                        await client.connect(PeerInfo(first.get_id(), [address]))
                        reached += 1
                    except SwarmException:
                        pass
    print(f"dials of the first that reached it: {reached} of {DIALS}")


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
trio.run(main)
