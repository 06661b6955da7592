"""A py-libp2p host for a member: Noise and yamux alone, TCP alone, nobody but members.

What the library leaves open or gets wrong for long-lived links is mended here by its own extension points (security,
muxer, transports), and only for the versions in ``library.TRIED_VERSIONS``; docs/upstream shows each in a program.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
from libp2p import new_host
from libp2p.abc import IHost, IMuxedConn, INetConn, INetStream, ISecureConn
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.keys import KeyPair, KeyType, PrivateKey, PublicKey
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.io.trio import TrioTCPStream
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from gossipfl.errors import TransportUnavailable
from gossipfl.identity import Identity, PeerId
from gossipfl.transports.libp2p.noise import MemberNoise
from gossipfl.transports.libp2p.yamux import Yamux
from gossipfl.transports.libp2p.yamux_frames import PROTOCOL_ID as YAMUX

MAX_CONNECTIONS_PER_PEER = 8
"""More than one while two sides dial each other; ``links`` decides which stays."""

PLACES_FOR_OTHERS = 256
"""Connections whose other side has yet to prove who it is; each is given ``upgrade_s`` for that."""

Handler = Callable[[TrioTCPStream], Awaitable[None]]
StreamHandler = Callable[[INetStream], Awaitable[None]]

# What goes wrong is told by link events and counters; one of the library's modules sets a level of its own.
for _name in ("libp2p", "libp2p.network.auto_connector"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class SiteKey(PrivateKey):
    """A site's key as py-libp2p wants it; the private half stays in ``Identity``."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def to_bytes(self) -> bytes:
        """Refuse: the private key leaves ``Identity`` for nobody."""
        raise NotImplementedError("a site's private key is not handed out")

    def get_type(self) -> KeyType:
        """Return Ed25519."""
        return KeyType.Ed25519

    def sign(self, data: bytes) -> bytes:
        """Return the signature of ``data``."""
        return self._identity.sign(data)

    def get_public_key(self) -> PublicKey:
        """Return the public half."""
        return Ed25519PublicKey.from_bytes(self._identity.public_key)


def make_host(
    identity: Identity,
    admit: Callable[[PeerId], None],
    tcp: TidyTcp,
    *,
    mdns: bool = False,
    peers: int,
    upgrade_s: float = 5.0,
) -> IHost:
    """Return a host, not running; ``admit`` raises NotAdmitted for a peer that may not connect."""
    high_watermark, max_connections = _most_connections(peers)
    key = SiteKey(identity)
    key_pair = KeyPair(key, key.get_public_key())
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE: MemberNoise(key_pair, new_noise_key().private_key, admit)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        transports=[tcp],
        enable_mDNS=mdns,
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=0,
            high_watermark=high_watermark,
            max_connections=max_connections,
            inbound_upgrade_timeout=upgrade_s,
            max_connections_per_peer=MAX_CONNECTIONS_PER_PEER,
        ),
    )
    swarm = swarm_of(host)
    swarm.retry_config = RetryConfig(max_retries=0)  # when to try again is decided above
    swarm.set_resource_manager(None)  # its limits are for open networks; here only members come this far
    swarm.set_stream_handler(_unharmed(swarm.common_stream_handler))
    swarm.auto_connector = _NoAutoConnector(swarm)
    swarm.upgrader.muxer_multistream = _Muxers({TProtocol(YAMUX): Yamux})
    return host


def make_room(swarm: Swarm, peers: int) -> None:
    """Let a running host have the connections that another number of neighbours needs."""
    limits = swarm.connection_config
    limits.high_watermark, limits.max_connections = _most_connections(peers)
    swarm._inbound_limiter.total_tokens = limits.max_connections  # the library reads the limit once, at the start


def _most_connections(peers: int) -> tuple[int, int]:
    """Return from how many connections on the library closes some, and the most that it holds."""
    for_peers = MAX_CONNECTIONS_PER_PEER * peers
    return for_peers + PLACES_FOR_OTHERS // 2, for_peers + PLACES_FOR_OTHERS


def swarm_of(host: IHost) -> Swarm:
    """Return the host's network."""
    return cast("Swarm", host.get_network())


def _unharmed(handler: StreamHandler) -> StreamHandler:
    """Return a handler that resets a stream where the library fails over what it says: else all of the host would."""

    async def serve(stream: INetStream) -> None:
        try:
            await handler(stream)
        except Exception:  # noqa: BLE001 - the library raises UnicodeDecodeError for a protocol id that is no text
            await stream.reset()

    return serve


class _NoAutoConnector(AutoConnector):
    """Dials nobody: the library's own would dial, every half a minute, whoever it has ever met."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        return

    async def maybe_connect(self) -> None:
        return


class _Muxers(MuxerMultistream):
    """Makes the muxer that was asked for; the library's own makes its own yamux whatever ``muxer_opt`` says."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, muxer = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        return self._annotate_connection(muxer(conn, peer_id), conn, protocol)


class TidyTcp(TCP):
    """TCP that ends the task of an accepted connection with the connection, and remembers why it cannot listen.

    The library keeps that task, and a place among its inbound connections, for as long as the host runs: a node that
    is dialled often would leak, and at last refuse everybody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []

    def create_listener(self, handler_function: Any) -> TCPListener:
        """Return a listener that hands connections to ``handler_function``."""
        return _TidyListener(handler_function, self.failures)


class _TidyListener(TCPListener):
    def __init__(self, handler: Handler, failures: list[str]) -> None:
        async def serve(stream: TrioTCPStream) -> None:
            tidy = _TidyStream(stream.stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, tidy.closed, nursery.cancel_scope)
                await handler(tidy)
                nursery.cancel_scope.cancel()

        super().__init__(cast("Any", serve))
        self._failures = failures

    async def listen(self, maddr: Multiaddr) -> None:
        """Hear of it, and do nothing."""
        try:
            await super().listen(maddr)
        except Exception as error:
            cause = error.__cause__ or error
            self._failures.append(f"{maddr}: {cause}")
            raise


class _TidyStream(TrioTCPStream):
    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.closed = trio.Event()

    async def close(self) -> None:
        self.closed.set()
        await super().close()


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def cannot_listen(wanted: str, failures: list[str]) -> TransportUnavailable:
    """Return the error that says, in one line, why nothing listens at ``wanted``."""
    reason = next((line.rpartition(": ")[2] for line in failures if line.startswith(wanted)), "the address is in use")
    return TransportUnavailable(f"cannot listen on {wanted}: {reason}; free it, or correct the listen addresses")


class Arrivals:
    """Hears of connections; py-libp2p asks its listeners for all of these."""

    def __init__(self, arrived: Callable[[INetConn], Any]) -> None:
        self._arrived = arrived

    async def connected(self, network: Any, conn: INetConn) -> None:
        """Pass a new connection on."""
        await self._arrived(conn)

    async def disconnected(self, network: Any, conn: INetConn) -> None:
        """Hear of it, and do nothing."""
        return

    async def opened_stream(self, network: Any, stream: INetStream) -> None:
        """Hear of it, and do nothing."""
        return

    async def closed_stream(self, network: Any, stream: INetStream) -> None:
        """Hear of it, and do nothing."""
        return

    async def listen(self, network: Any, multiaddr: Multiaddr) -> None:
        """Hear of it, and do nothing."""
        return

    async def listen_close(self, network: Any, multiaddr: Multiaddr) -> None:
        """Hear of it, and do nothing."""
        return
