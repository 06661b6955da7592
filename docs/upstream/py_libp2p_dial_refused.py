"""After one failed dial, a peer is refused for a minute without a try."""

from __future__ import annotations

import logging
import socket
import time

import trio
from libp2p import new_host
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr


async def main() -> None:
    """Dial a peer that does not listen yet, then does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Multiaddr(f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}")
    here, there = new_host(), new_host()
    swarm = here.get_network()
    assert isinstance(swarm, Swarm)

    async def dial(when: str) -> None:
        began = time.monotonic()
        try:
            await here.connect(PeerInfo(there.get_id(), [address]))
            outcome = "connected"
        except SwarmException as error:
            outcome = str(error).replace(str(there.get_id()), "...").partition(",")[0]
        print(f"{when:27} {time.monotonic() - began:.3f} s: {outcome}")

    async with here.run([]):
        await dial("nobody listens:")
        async with there.run([address]):
            await dial("it listens:")
            await trio.sleep(5)
            await dial("5 s later:")
            swarm.unblock_peer(there.get_id())
            await dial("after unblock_peer():")


logging.getLogger("libp2p").setLevel(logging.CRITICAL)
trio.run(main)
