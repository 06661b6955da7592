"""The addresses of this machine."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable

import trio

from gossipfl.transports.libp2p.addresses import Address

PROBE_S = 0.5


def on_every_interface(listening: Iterable[Address]) -> list[Address]:
    """Return addresses that can be dialled: an unspecified one (0.0.0.0) becomes each of this machine's own.

    Loopback and link-local addresses stand in only where there is no other.
    """
    found: list[Address] = []
    for address in listening:
        if not address.is_unspecified:
            found.append(address)
            continue
        own = [Address(address.kind, host, address.port) for host in _own_hosts(address.kind)]
        wide = [one for one in own if not _is_narrow(one)]
        found += wide or own
    return list(dict.fromkeys(found))


def _own_hosts(kind: str) -> list[str]:
    import ifaddr

    hosts = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if kind == "ip4" and ip.is_IPv4:
                hosts.append(str(ip.ip))
            elif kind == "ip6" and ip.is_IPv6:
                hosts.append(str(ip.ip[0]))
    return hosts


def _is_narrow(address: Address) -> bool:
    host = ipaddress.ip_address(address.host)
    return host.is_loopback or host.is_link_local


async def someone_listens(address: Address) -> bool:
    """Tell whether a program of this machine answers at an address that one is about to listen on."""
    if address.port == 0:
        return False
    host = address.host
    if address.is_unspecified:
        host = "127.0.0.1" if address.kind == "ip4" else "::1"
    answered = False
    with trio.move_on_after(PROBE_S), contextlib.suppress(OSError):
        async with await trio.open_tcp_stream(host, address.port):
            answered = True
    return answered
