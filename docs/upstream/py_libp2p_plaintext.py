"""A host without ``sec_opt`` accepts plaintext, and with it whoever a dialler says that it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

DEMO = TProtocol("/demo/1")


async def main() -> None:
    """Dial a default host with the public key of somebody else, whose private key nobody here has."""
    victim = create_new_key_pair().public_key
    claim = KeyPair(cast("Any", SimpleNamespace(get_public_key=lambda: victim)), victim)
    impostor = new_host(sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(claim)})
    server = new_host()
    heard_from: list[ID] = []
    heard = trio.Event()

    async def hear(stream: INetStream) -> None:
        heard_from.append(stream.muxed_conn.peer_id)
        heard.set()

    server.set_stream_handler(DEMO, hear)
    async with server.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]), impostor.run([]):
        await impostor.connect(PeerInfo(server.get_id(), server.get_addrs()))
        await impostor.new_stream(server.get_id(), [DEMO])
        with trio.fail_after(10):
            await heard.wait()
    print("the server heard from the victim:  ", heard_from[0] == ID.from_pubkey(victim))
    print("the server heard from the impostor:", heard_from[0] == impostor.get_id())


trio.run(main)
