"""Where a libp2p transport listens, where its peers are, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId
from gossipfl.membership import federation_id_of
from gossipfl.transports.libp2p.addresses import announceable, dialable, listenable

MAX_ADDRESSES = 8
"""Addresses that one site may have, here and in its signed record."""


@dataclass(frozen=True, slots=True)
class Libp2pOptions:
    """How to reach the neighbours and be reached.

    ``listen``: multiaddresses to listen on; port 0 takes any free one. ``announce``: what others shall dial instead,
    where that is another address (a forwarded port); left empty, it is what the host listens on. ``addresses``: what is
    known of the peers; one without an address is waited for, and found by its signed address record. ``mdns``: also
    announce this site, and look for others, on the local network. ``sequence`` numbers this start's address record:
    it must grow with each start of the site (the incarnation does).

    ``ping_s``: a link on which nothing came for so long is probed; one that is silent for ``dead_s`` is closed and
    dialled anew. ``window_bytes``: what may be on its way to a peer in the control lane, and half of it in the bulk
    lane.

    Raises ConfigError for a value that cannot be used.
    """

    federation: str = "default"
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()
    addresses: Mapping[PeerId, tuple[str, ...]] = field(default_factory=dict)
    mdns: bool = False
    sequence: int = 1
    ping_s: float = 2.0
    dead_s: float = 6.0
    timeout_s: float = 5.0
    """Longest time for one connection to be made, up to the greeting."""

    backoff_s: tuple[float, float] = (0.2, 15.0)
    """The first and the longest wait between two attempts to reach a peer."""

    window_bytes: int = 1 << 20
    outbox_frames: int = 64
    outbox_bytes: int = 4 << 20
    inbox_frames: int = 1024
    inbox_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        federation_id_of(self.federation)
        if not self.listen:
            raise ConfigError("libp2p: listen is empty; name an address such as /ip4/0.0.0.0/tcp/4001")
        for text in self.listen:
            listenable(text)
        for peer, addresses in self.addresses.items():
            _check_number(f"addresses of {peer}", addresses)
            for text in addresses:
                dialable(text, peer)
        _check_number("announce", self.announce)
        for text in self.announce:
            announceable(text)
        if not 0 < self.ping_s < self.dead_s:
            raise ConfigError(f"libp2p: ping_s = {self.ping_s} must be above 0 and below dead_s = {self.dead_s}")
        if not (self.timeout_s > 0 and 0 < self.backoff_s[0] <= self.backoff_s[1]):
            raise ConfigError("libp2p: timeout_s and both of backoff_s are above 0, the shortest first")
        if not 0 <= self.sequence < 1 << 64:
            raise ConfigError(f"libp2p: sequence = {self.sequence} must be at least 0 and below 2^64")
        if self.window_bytes < 1 << 18 or min(self.outbox_frames, self.inbox_frames) < 1:
            raise ConfigError("libp2p: window_bytes is at least 262144, and each queue holds at least one frame")


def _check_number(what: str, addresses: tuple[str, ...]) -> None:
    if len(addresses) > MAX_ADDRESSES:
        raise ConfigError(f"libp2p: {what} has {len(addresses)} entries; at most {MAX_ADDRESSES}")
