"""Sites of the local network, by mDNS as libp2p specifies it (discovery/mdns in libp2p/specs), with zeroconf.

py-libp2p has it, too, but announces 0.0.0.0 as it stands, tells of a peer once and before anybody can listen, and stops
its host for half a second while it registers.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from gossipfl.identity import PeerId
from gossipfl.transports.libp2p.addresses import Address

SERVICE = "_p2p._udp.local."
LOOK_UP_MS = 3000
MAX_TEXT_BYTES = 255
"""Longest string of a TXT record."""

_KEY = b"dnsaddr="
_DOMAIN = ".local."

Found = Callable[[PeerId, list[str]], None]
"""Takes a peer id and its addresses, unverified, in any thread."""


@contextlib.asynccontextmanager
async def on_local_network(me: PeerId, addresses: Iterable[Address], found: Found) -> AsyncIterator[None]:
    """Announce ``me`` at ``addresses`` and tell ``found`` of others, for as long as the context lasts."""
    close = await trio.to_thread.run_sync(_open, me, list(addresses), found)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(close)


def _open(me: PeerId, addresses: list[Address], found: Found) -> Callable[[], None]:
    """Begin; return what ends it. Both wait for the network, so neither is for an event loop."""
    name = secrets.token_hex(16)
    texts = [_KEY + f"{address}/p2p/{me}".encode() for address in addresses]
    record = b"".join(bytes([len(text)]) + text for text in texts if len(text) <= MAX_TEXT_BYTES)
    hosts = sorted({address.host for address in addresses if address.kind in ("ip4", "ip6")})
    own = ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=addresses[0].port if addresses else 0,
        properties=record,
        server=name + _DOMAIN,
        parsed_addresses=hosts,
    )
    network = Zeroconf()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed or name == own.name:
            return
        info = ServiceInfo(service_type, name)
        info.request(zeroconf, LOOK_UP_MS)  # False where it found no A record, which nobody needs here
        for peer, told in _read(info.text or b"").items():
            found(peer, told)

    try:
        network.register_service(own)
        browser = ServiceBrowser(network, SERVICE, handlers=[changed])
    except BaseException:
        network.close()
        raise

    def close() -> None:
        browser.cancel()
        network.close()

    return close


def _read(record: bytes) -> dict[PeerId, list[str]]:
    """Return the addresses in a TXT record by peer id; what is malformed is left out."""
    told: dict[PeerId, list[str]] = {}
    for text in _strings(record):
        with contextlib.suppress(UnicodeDecodeError):
            address, found, peer = text.removeprefix(_KEY).decode().rpartition("/p2p/")
            if text.startswith(_KEY) and found and address:
                told.setdefault(peer, []).append(address)
    return told


def _strings(record: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(record):
        size = record[at]
        yield record[at + 1 : at + 1 + size]
        at += 1 + size
