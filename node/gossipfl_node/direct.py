"""Links without a broker, as a site's file describes them: what may be wrong with them, and the transport they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gossipfl.errors import ConfigError
from gossipfl.transports.libp2p.addresses import dialable, listenable
from gossipfl.transports.libp2p.library import check_library
from gossipfl.transports.libp2p.options import MAX_ADDRESSES, Libp2pOptions

if TYPE_CHECKING:
    from gossipfl_node.config import Libp2pSection, SiteSpec


def find_mistakes(spec: SiteSpec) -> Iterator[str]:
    """Yield, one line each, why this site could not listen, be found, or find anybody; nothing without [libp2p]."""
    section = spec.libp2p
    if section is None:
        return
    yield from _complaint("", check_library)
    yield from _listed_mistakes(spec, section)
    if section.ping_s >= section.dead_s:
        yield f"libp2p.ping_s must be less than libp2p.dead_s ({section.dead_s}), or no link would last"
    if not section.mdns and not any(spec.federation.addresses.values()):
        yield "federation.addresses is empty, and libp2p.mdns is off: no site could find another; give an address"


def _listed_mistakes(spec: SiteSpec, section: Libp2pSection) -> Iterator[str]:
    me = spec.federation.members.get(spec.site.name, "")
    if not section.listen:
        yield "libp2p.listen is empty; name an address, such as /ip4/0.0.0.0/tcp/4001"
    for text in section.listen:
        yield from _complaint("libp2p.listen: ", lambda: listenable(text))  # noqa: B023 - called before the next
    if len(section.announce) > MAX_ADDRESSES:
        yield f"libp2p.announce has {len(section.announce)} entries; at most {MAX_ADDRESSES}"
    for text in section.announce:
        yield from _complaint("libp2p.announce: ", lambda: dialable(text, me))  # noqa: B023 - called before the next


def _complaint(key: str, read: Callable[[], object]) -> Iterator[str]:
    try:
        read()
    except ConfigError as error:
        yield f"{key}{error}"


def options_of(spec: SiteSpec, incarnation: int) -> Libp2pOptions:
    """Return how the transport works; raises ConfigError with the first mistake."""
    section, federation = spec.libp2p, spec.federation
    assert section is not None
    for mistake in find_mistakes(spec):
        raise ConfigError(mistake)
    return Libp2pOptions(
        federation=federation.name,
        listen=tuple(section.listen),
        announce=tuple(section.announce),
        addresses={
            federation.members[name]: tuple(addresses)
            for name, addresses in federation.addresses.items()
            if name != spec.site.name
        },
        mdns=section.mdns,
        sequence=incarnation,
        ping_s=section.ping_s,
        dead_s=section.dead_s,
    )
