"""What a membership becomes when a site joins, leaves, or keys are renewed: the next version, not yet signed."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId
from gossipfl.membership.document import TYPE, Content, Document, FederationKey, Site, graph_of
from gossipfl.membership.roster import Member, federation_id_of
from gossipfl.membership.sealing import check_of, new_key, seal_key
from gossipfl.settings import suggest

if TYPE_CHECKING:
    from gossipfl.membership.document import Name

Edges = Iterable[tuple[str, str]]


def first_version(
    federation: str,
    members: Mapping[str, PeerId],
    edges: Edges,
    *,
    signers: Sequence[PeerId],
    threshold: int,
    model_seed: int,
    encrypted: bool,
    addresses: Mapping[str, list[str]],
    issued: datetime,
) -> Document:
    """Return version 1; raises ConfigError for names, ids and edges that cannot be used."""
    federation_id_of(federation)
    content = Content(
        type=TYPE,
        federation=federation,
        version=1,
        issued=_time(issued),
        signers=sorted(signers),
        threshold=threshold,
        members={name: Site(peer_id=peer, addresses=addresses.get(name, [])) for name, peer in sorted(members.items())},
        edges=_sorted(edges),
        model_seed=model_seed,
        key=None,
    )
    return _finished(content, encrypted=encrypted)


def with_site(
    current: Document, name: str, peer_id: PeerId, links: Sequence[str], addresses: list[str], issued: datetime
) -> Document:
    """Return the version in which ``name`` has joined, linked to ``links``."""
    content = current.content
    if name in content.members:
        raise ConfigError(f'"{name}" is a member already; choose another name, or remove it first')
    for link in links:
        _check_member(content, link)
    if not links:
        raise ConfigError(f'"{name}" would have no neighbour; name some with --links')
    members = {**content.members, name: Site(peer_id=peer_id, addresses=addresses)}
    edges = [*((one, other) for one, other in content.edges), *((name, link) for link in links)]
    return _next(current, issued, members=members, edges=edges)


def without_site(current: Document, name: str, links: Edges, issued: datetime) -> Document:
    """Return the version in which ``name`` is no member any more, with new ``links`` between others where given."""
    content = current.content
    _check_member(content, name)
    members = {each: site for each, site in content.members.items() if each != name}
    edges = [(one, other) for one, other in content.edges if name not in (one, other)]
    for one, other in links:
        _check_member(content, one)
        _check_member(content, other)
        edges.append((one, other))
    return _next(current, issued, members=members, edges=edges)


def renewed(
    current: Document,
    issued: datetime,
    *,
    signers: Sequence[PeerId] | None = None,
    threshold: int | None = None,
    peer_ids: Mapping[str, PeerId] | None = None,
    encrypted: bool | None = None,
) -> Document:
    """Return the version with a new federation key, and with other signers or members' keys where given."""
    members = dict(current.content.members)
    for name, peer_id in (peer_ids or {}).items():
        _check_member(current.content, name)
        members[name] = members[name].model_copy(update={"peer_id": peer_id})
    return _next(current, issued, members=members, signers=signers, threshold=threshold, encrypted=encrypted)


def _next(
    current: Document,
    issued: datetime,
    *,
    members: Mapping[Name, Site],
    edges: Edges | None = None,
    signers: Sequence[PeerId] | None = None,
    threshold: int | None = None,
    encrypted: bool | None = None,
) -> Document:
    content = current.content
    update = {
        "version": content.version + 1,
        "issued": _time(issued),
        "members": dict(sorted(members.items())),
        "edges": content.edges if edges is None else _sorted(edges),
        "signers": content.signers if signers is None else sorted(signers),
        "threshold": content.threshold if threshold is None else threshold,
    }
    changed = content.model_copy(update=update)
    return _finished(changed, encrypted=content.key is not None if encrypted is None else encrypted)


def _finished(content: Content, *, encrypted: bool) -> Document:
    """Check it, and seal a new federation key for its members."""
    Document.of(content.model_copy(update={"key": None}))
    _check_connected(content)
    key = _sealed(content) if encrypted else None
    return Document.of(content.model_copy(update={"key": key}))


def _sealed(content: Content) -> FederationKey:
    key, federation = new_key(), federation_id_of(content.federation)
    sealed = {}
    for name, site in content.members.items():
        member = Member.from_peer_id(name, site.peer_id)
        box = seal_key(key, member.public_key, federation=federation, version=content.version)
        sealed[name] = base64.b64encode(box).decode()
    return FederationKey(check=check_of(key), sealed=sealed)


def _check_connected(content: Content) -> None:
    graph = graph_of(content.federation, content.members, content.edges)
    if not graph.is_connected:
        cut_off = [graph.label(node) for node in graph.components()[-1]]
        raise ConfigError(
            f"{', '.join(cut_off[:5])} would be cut off from the rest; give the graph another link (--link A,B)"
        )


def _check_member(content: Content, name: str) -> None:
    if name not in content.members:
        raise ConfigError(f'"{name}" is no member{suggest(name, content.members)}')


def _sorted(edges: Edges) -> list[list[str]]:
    return sorted(sorted(edge) for edge in edges)


def _time(issued: datetime) -> str:
    return issued.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
