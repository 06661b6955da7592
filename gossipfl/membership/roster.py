"""Who belongs to a federation: a fixed table of names and keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from gossipfl.digest import digest
from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId, public_key_of

FEDERATION_ID_BYTES: Final = 16

_FEDERATION_CONTEXT: Final = b"gossipfl federation id v1\0"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def federation_id_of(name: str) -> bytes:
    """Return the 16-byte id of the federation called ``name``: the start of a domain-separated digest.

    id = BLAKE3("gossipfl federation id v1" ‖ 0x00 ‖ UTF-8 of name)[0:16]

    Raises ConfigError where ``name`` is not of 1 to 64 letters, digits, ``_``, ``.`` or ``-``.
    """
    return digest(_FEDERATION_CONTEXT, check_name("federation", name).encode())[:FEDERATION_ID_BYTES]


def check_name(kind: str, name: str) -> str:
    """Return ``name`` where it is safe in an MQTT topic and as a file name; ConfigError otherwise."""
    # "." and ".." are made of legal characters, and are not names in a file system.
    if not _NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(
            f"{kind} name {name!r} cannot be used; 1 to 64 letters, digits, '_', '.' or '-', not '.' or '..'"
        )
    return name


@dataclass(frozen=True, slots=True)
class Member:
    """One node: its ``name`` for people, and its 32-byte ``public_key`` with the ``peer_id`` made of it."""

    name: str
    peer_id: PeerId
    public_key: bytes

    @classmethod
    def from_peer_id(cls, name: str, peer_id: PeerId) -> Self:
        """Return the member with the key that ``peer_id`` holds; ConfigError for a bad name or peer id."""
        return cls(check_name("node", name), peer_id, public_key_of(peer_id))


@dataclass(frozen=True)
class Membership:
    """The nodes whose messages are believed: ``members`` by peer id, in the given order. Never changed."""

    federation_id: bytes
    members: Mapping[PeerId, Member]
    _by_public_key: Mapping[bytes, Member] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.federation_id) != FEDERATION_ID_BYTES:
            raise ValueError(f"a federation id has {FEDERATION_ID_BYTES} bytes")
        if any(peer_id != member.peer_id for peer_id, member in self.members.items()):
            raise ValueError("members are keyed by their own peer ids")
        _check_unique_names(self.members.values())
        object.__setattr__(self, "members", dict(self.members))
        by_public_key = {member.public_key: member for member in self.members.values()}
        object.__setattr__(self, "_by_public_key", by_public_key)

    @classmethod
    def from_ids(cls, federation: str, peer_ids: Mapping[str, PeerId]) -> Self:
        """Return the membership of the federation called ``federation``, from its nodes' peer ids by name.

        Raises ConfigError for a name or a peer id that cannot be used, or a peer id given to two names.
        """
        members: dict[PeerId, Member] = {}
        for name, peer_id in peer_ids.items():
            if peer_id in members:
                raise ConfigError(
                    f'nodes "{members[peer_id].name}" and "{name}" have one peer id, {peer_id}; '
                    "give each node a key of its own"
                )
            members[peer_id] = Member.from_peer_id(name, peer_id)
        return cls(federation_id_of(federation), members)

    def by_public_key(self, public_key: bytes) -> Member | None:
        """Return the member who owns a raw 32-byte ``public_key``, or None for a stranger."""
        return self._by_public_key.get(public_key)

    def get(self, peer_id: PeerId) -> Member | None:
        """Return the member called ``peer_id``, or None for a stranger."""
        return self.members.get(peer_id)

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self.members

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def __len__(self) -> int:
        return len(self.members)


def _check_unique_names(members: Iterable[Member]) -> None:
    """Refuse names that differ in case only, too: not every file system tells them apart."""
    seen: dict[str, Member] = {}
    for member in members:
        twin = seen.setdefault(member.name.casefold(), member)
        if twin is not member:
            raise ConfigError(f'node names "{twin.name}" and "{member.name}" are too alike; change one')
