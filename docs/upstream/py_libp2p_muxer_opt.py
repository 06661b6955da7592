"""A muxer of one's own, given as ``muxer_opt`` under the name of yamux, is not used."""

from __future__ import annotations

import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import PeerInfo
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID, Yamux
from multiaddr import Multiaddr


class OwnYamux(Yamux):
    """What the host is told to use."""


async def main() -> None:
    """Connect to a host that was made with a muxer of its own."""
    server = new_host(muxer_opt={TProtocol(PROTOCOL_ID): OwnYamux})
    client = new_host()
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), client.run([]):
        await client.connect(PeerInfo(server.get_id(), server.get_addrs()))
        (conn,) = server.get_network().connections[client.get_id()]
        print("muxer_opt:", OwnYamux.__name__)
        print("used:     ", type(conn.muxed_conn).__name__)


trio.run(main)
