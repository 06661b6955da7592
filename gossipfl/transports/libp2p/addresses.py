"""Multiaddresses that this transport can dial or listen on, read without loading libp2p."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId, public_key_of

MAX_ADDRESS_CHARACTERS = 512

_EXAMPLE = "/ip4/192.0.2.1/tcp/4001"
_IP_VERSIONS = {"ip4": 4, "ip6": 6}
_NAMES = ("dns", "dns4", "dns6")
_LABEL = r"(?!(?!xn)..--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Address:
    """``/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT``, and the peer id where ``/p2p/ID`` follows."""

    kind: str
    host: str
    port: int
    peer: PeerId | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a multiaddress; raises ConfigError in one line that names it and the mend."""
        parts = text.split("/") if len(text) <= MAX_ADDRESS_CHARACTERS else []
        if len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp" or (len(parts) == 7 and parts[5] != "p2p"):
            raise ConfigError(f"address {_shown(text)} is no multiaddress for TCP; write it like {_EXAMPLE}")
        _, kind, host, _, port, *rest = parts
        _check_host(text, kind, host)
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise ConfigError(f"address {_shown(text)}: port {_shown(port)} does not exist; use 1 to 65535")
        if rest:
            _check_peer(text, rest[1])
        return cls(kind, host, int(port), rest[1] if rest else None)

    @property
    def is_unspecified(self) -> bool:
        """Whether it stands for every address of this machine, as 0.0.0.0 does."""
        return self.kind in _IP_VERSIONS and ipaddress.ip_address(self.host).is_unspecified

    def __str__(self) -> str:
        peer = f"/p2p/{self.peer}" if self.peer else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{peer}"


def _check_peer(text: str, peer: str) -> None:
    try:
        public_key_of(peer)
    except ConfigError as error:
        raise ConfigError(f"address {_shown(text)}: {error}; correct or leave out /p2p/...") from None


def _check_host(text: str, kind: str, host: str) -> None:
    if kind in _IP_VERSIONS:
        try:
            known = ipaddress.ip_address(host).version == _IP_VERSIONS[kind] and "%" not in host
        except ValueError:
            known = False
        if not known:
            raise ConfigError(f"address {_shown(text)}: {_shown(host)} is no {kind} address; write it like {_EXAMPLE}")
    elif kind not in _NAMES:
        raise ConfigError(
            f"address {_shown(text)} begins with {_shown('/' + kind)}; use /ip4, /ip6, /dns, /dns4 or /dns6"
        )
    elif not _HOST_NAME.fullmatch(host):
        raise ConfigError(f"address {_shown(text)}: {_shown(host)} is no host name; use letters, digits, '-' and '.'")


def dialable(text: str, peer: PeerId) -> Address:
    """Read an address of ``peer`` that it can be reached at; raises ConfigError."""
    address = Address.parse(text)
    if address.peer not in (None, peer):
        raise ConfigError(f"address {_shown(text)} ends in another peer id than the site's own, {peer}; correct one")
    if address.port == 0:
        raise ConfigError(f"address {_shown(text)}: port 0 cannot be dialled; name the port that the site listens on")
    if address.is_unspecified:
        raise ConfigError(f"address {_shown(text)} stands for any machine; name the site's own address")
    return Address(address.kind, address.host, address.port)


def announceable(text: str) -> Address:
    """Read an address of one's own that others shall dial; raises ConfigError."""
    address = Address.parse(text)
    if address.peer is not None:
        raise ConfigError(f"address {_shown(text)}: leave out /p2p/...; a site announces itself under its own key")
    return dialable(text, "")


def listenable(text: str) -> Address:
    """Read an address to listen on; raises ConfigError."""
    address = Address.parse(text)
    if address.kind not in _IP_VERSIONS:
        raise ConfigError(f"address {_shown(text)}: listen on an IP address, such as /ip4/0.0.0.0/tcp/4001")
    if address.peer is not None:
        raise ConfigError(f"address {_shown(text)}: leave out /p2p/...; a site listens under its own key")
    return address


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")
