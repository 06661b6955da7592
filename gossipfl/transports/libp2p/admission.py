"""Who may connect, and what is said where somebody may not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gossipfl.identity import PeerId

REASONS: Mapping[str, str] = {
    "stranger": "no member of the federation",
    "no neighbour": "a member, but no neighbour of this node",
    "removed": "no member any more",
    "own key": "it has this node's own key: another node runs with it",
    "twin": "another node runs with the same key",
    "federation": "it belongs to another federation",
    "greeting": "it sent no greeting that can be read",
    "lane": "it opened a stream that this protocol does not have, or has already",
    "no control lane": "it opened the second stream before the first",
    "no lane": "it opened no stream of this protocol; does it speak another major version?",
    "protocol": "it speaks no protocol of this version",
    "other site": "another site answers at its address",
}
"""Why a connection is not used, by the word that is counted, in words for people."""


@dataclass(frozen=True, slots=True)
class Told:
    """Something that the transport on the asyncio side has to know."""

    what: str
    peer: PeerId | None
    detail: str = ""


class Admission:
    """The neighbours of ``me`` may connect, nobody else; ``tell`` hears of everybody who is refused."""

    def __init__(
        self,
        me: PeerId,
        members: Collection[PeerId],
        neighbours: Collection[PeerId],
        tell: Callable[[Told], None],
    ) -> None:
        self._me = me
        self._members = frozenset(members)
        self._neighbours = frozenset(neighbours)
        self._removed: frozenset[PeerId] = frozenset()
        self._tell = tell

    def objection(self, peer: PeerId) -> str | None:
        """Return why ``peer`` may not connect, in a word, or None."""
        if peer == self._me:
            return "own key"
        if peer in self._neighbours:
            return None
        if peer in self._removed:
            return "removed"
        return "no neighbour" if peer in self._members else "stranger"

    def refuse(self, reason: str, peer: PeerId, detail: str = "") -> None:
        """Tell of a connection that was refused."""
        self._tell(Told(f"refused {reason}", peer, detail or REASONS.get(reason, reason)))

    def change(self, members: Collection[PeerId], neighbours: Collection[PeerId]) -> None:
        """Admit other neighbours from now on; whoever was a member, and is none any more, counts as removed."""
        self._removed = (self._removed | self._members).difference(members)
        self._members = frozenset(members)
        self._neighbours = frozenset(neighbours)
