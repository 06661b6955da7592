"""Silence: a neighbour that joins, and is waited for in vain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gossipfl.messages import Envelope, Kind, parse_frame
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur


@dataclass(frozen=True, slots=True)
class Silence:
    """Greet, and then say nothing; with ``heartbeats``, tell every second of updates that never come.

    Without heartbeats neighbours take the node for lost; with them it stays alive, and they ask it in vain.
    """

    heartbeats: bool = False
    name: ClassVar[str] = "silence"
    forges: ClassVar[bool] = False

    def saboteur(self, _: Cover) -> Saboteur:
        """Return one that keeps things to itself."""
        return _Silent({Kind.HELLO, Kind.STATUS} if self.heartbeats else {Kind.HELLO})


class _Silent(Saboteur):
    def __init__(self, said: set[Kind]) -> None:
        self._said = said

    def pass_on(self, parcel: Parcel) -> tuple[Parcel, ...]:
        message = parse_frame(parcel.frame)
        return (parcel,) if isinstance(message, Envelope) and message.kind in self._said else ()
