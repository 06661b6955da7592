"""The federation as one site sees it: members, the graph, its neighbours and their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId
from gossipfl.membership import Member, Membership, federation_id_of
from gossipfl.membership.document import graph_of
from gossipfl.settings import suggest
from gossipfl.topology.weights import metropolis
from gossipfl.transports.libp2p.addresses import Address, dialable
from gossipfl.transports.libp2p.options import MAX_ADDRESSES

if TYPE_CHECKING:
    from gossipfl.membership.document import Document
    from gossipfl.topology.graph import Topology
    from gossipfl_node.config import FederationSpec

MANY = 5
"""How many names an error line lists."""


@dataclass(frozen=True, slots=True)
class Federation:
    """Members, and this site's place among them.

    ``weights`` maps the peer id of each neighbour to its Metropolis weight, in the order of the neighbours' names:
    the same order at every site, however its file is sorted.
    """

    membership: Membership
    me: Member
    weights: Mapping[PeerId, float]

    @classmethod
    def of(cls, spec: FederationSpec, site: str) -> Self:
        """Return the federation of ``spec`` as ``site`` sees it; raises ConfigError with the first mistake."""
        for mistake in find_mistakes(spec, site):
            raise ConfigError(mistake)
        membership = Membership.from_ids(spec.name, spec.members)
        weights = _weights(_graph(spec), spec.members, site)
        return cls(membership, membership.members[spec.members[site]], weights)

    @classmethod
    def of_document(cls, document: Document, peer_id: PeerId) -> Self:
        """Return the federation of a membership as the member ``peer_id`` sees it."""
        membership = document.membership()
        return cls(membership, membership.members[peer_id], weights_of(document, peer_id))

    def name_of(self, peer: PeerId) -> str:
        """Return a member's name, or the peer id itself for a stranger."""
        member = self.membership.get(peer)
        return member.name if member is not None else peer

    @property
    def neighbours(self) -> tuple[Member, ...]:
        """The neighbours, by name."""
        return tuple(self.membership.members[peer] for peer in self.weights)


def weights_of(document: Document, peer_id: PeerId) -> dict[PeerId, float]:
    """Return the Metropolis weight of each neighbour of a member, in the order of the neighbours' names."""
    ids = {name: site.peer_id for name, site in document.content.members.items()}
    name = document.name_of(peer_id)
    assert name is not None
    return _weights(document.graph, ids, name)


def _weights(graph: Topology, ids: Mapping[str, PeerId], name: str) -> dict[PeerId, float]:
    """Return the weights of the neighbours of ``name``; ``ids`` are all members' by name."""
    place = sorted(ids).index(name)
    neighbours = [ids[graph.label(other)] for other in graph.neighbours(place)]
    return dict(zip(neighbours, metropolis(graph)[place], strict=True))


def find_mistakes(spec: FederationSpec, site: str) -> Iterator[str]:
    """Yield, one line each, what is wrong with members, addresses, edges, and this site's place among them."""
    members = list(_member_mistakes(spec))
    yield from members
    yield from _address_mistakes(spec)
    if site not in spec.members:
        yield f'site.name "{site}" is no member{suggest(site, spec.members)}; members: {_listed(spec.members)}'
    edges = list(_edge_mistakes(spec))
    yield from edges
    if members or edges or site not in spec.members:
        return
    graph = _graph(spec)
    if not any(site in edge for edge in spec.edges):
        yield f'site "{site}" has no neighbour; add an edge with it to federation.edges'
    elif not graph.is_connected:
        parts = graph.components()
        alone = [graph.label(node) for node in parts[-1]]
        yield f"federation.edges leave {_listed(alone)} cut off from the rest; add an edge that joins them"


def _member_mistakes(spec: FederationSpec) -> Iterator[str]:
    try:
        federation_id_of(spec.name)
    except ConfigError as error:
        yield f"federation.name: {error}"
    owners: dict[PeerId, str] = {}
    for name, peer_id in spec.members.items():
        try:
            Member.from_peer_id(name, peer_id)
        except ConfigError as error:
            yield f"federation.members.{name}: {error}"
            continue
        if peer_id in owners:
            yield f"federation.members.{name} has the peer id of {owners[peer_id]}; each site needs a key of its own"
        owners.setdefault(peer_id, name)
    folded: dict[str, str] = {}
    for name in spec.members:
        twin = folded.setdefault(name.casefold(), name)
        if twin != name:
            yield f'federation.members: names "{twin}" and "{name}" are too alike; change one'


def _address_mistakes(spec: FederationSpec) -> Iterator[str]:
    owners: dict[Address, str] = {}
    for name, texts in spec.addresses.items():
        key = f"federation.addresses.{name}"
        if name not in spec.members:
            yield f"{key} names no member{suggest(name, spec.members)}"
            continue
        if len(texts) > MAX_ADDRESSES:
            yield f"{key} has {len(texts)} entries; at most {MAX_ADDRESSES}"
        for text in texts:
            try:
                address = dialable(text, spec.members[name])
            except ConfigError as error:
                yield f"{key}: {error}"
                continue
            owner = owners.setdefault(address, name)
            if owner != name:
                yield f"{key}: {address} is the address of {owner}, too; correct one of them"


def _edge_mistakes(spec: FederationSpec) -> Iterator[str]:
    seen: set[tuple[str, ...]] = set()
    for edge in spec.edges:
        shown = f'federation.edges: ["{edge[0]}", "{edge[1]}"]'
        for name in dict.fromkeys(edge):
            if name not in spec.members:
                yield f'{shown} names "{name}", who is no member{suggest(name, spec.members)}'
        if edge[0] == edge[1]:
            yield f"{shown} makes a site its own neighbour; remove it"
        pair = tuple(sorted(edge))
        if pair in seen:
            yield f"{shown} is there twice; remove one"
        seen.add(pair)


def _graph(spec: FederationSpec) -> Topology:
    return graph_of(spec.name, spec.members, spec.edges)


def _listed(names: Mapping[str, str] | list[str]) -> str:
    shown = sorted(names)
    more = len(shown) - MANY
    return ", ".join(shown[:MANY]) + (f" and {more} more" if more > 0 else "")
