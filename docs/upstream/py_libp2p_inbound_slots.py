"""An inbound connection keeps its place after it has ended: a host that was dialled often enough refuses everybody."""

from __future__ import annotations

import logging

import trio
from libp2p import new_host
from libp2p.network.config import ConnectionConfig
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

PLACES = 4


async def main() -> None:
    """Connect and disconnect, one client after the other."""
    config = ConnectionConfig(max_connections=PLACES, high_watermark=PLACES, low_watermark=0, min_connections=0)
    server = new_host(connection_config=config)
    swarm = server.get_network()
    assert isinstance(swarm, Swarm)
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        for number in range(1, PLACES + 2):
            client = new_host()
            async with client.run([]):
                try:
                    await client.connect(PeerInfo(server.get_id(), server.get_addrs()))
                    outcome = "connected, disconnected"
                    await client.disconnect(server.get_id())
                except SwarmException:
                    outcome = "refused"
            await trio.sleep(0.5)
            taken = swarm._inbound_limiter.borrowed_tokens
            print(
                f"client {number}: {outcome}; open: {len(swarm.get_connections())}, places taken: {taken} of {PLACES}"
            )


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
trio.run(main)
