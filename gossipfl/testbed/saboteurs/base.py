"""What a saboteur may do: twist what its node sends, remember what it hears, and speak unasked."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from random import Random
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from gossipfl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gossipfl.gossip import GossipCore
    from gossipfl.identity import PeerId
    from gossipfl.messages import Buffer
    from gossipfl.testbed.saboteurs.forge import Forge

MAX_RATE = 10_000.0
"""Most frames a second that a saboteur sends unasked to each neighbour."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One frame and whom it goes to; ``bulk``: it is part of a large body."""

    recipients: tuple[PeerId, ...]
    frame: bytes
    bulk: bool = False

    def split(self, deceived: Collection[PeerId], make_frame: Callable[[], bytes]) -> tuple[Parcel, ...]:
        """Return this parcel for its other recipients, and one with another frame for the ``deceived`` among them."""
        chosen = tuple(peer for peer in self.recipients if peer in deceived)
        if not chosen:
            return (self,)
        second = Parcel(chosen, make_frame(), self.bulk)
        others = tuple(peer for peer in self.recipients if peer not in deceived)
        return (Parcel(others, self.frame, self.bulk), second) if others else (second,)


class Saboteur:
    """A go-between that changes nothing; saboteurs override what they need.

    ``every_s``: how often ``act`` is called from the start of the transport on, in seconds of the agent's loop.
    """

    every_s: float = inf

    def pass_on(self, parcel: Parcel) -> Sequence[Parcel]:
        """Return what goes to the wire in place of what the node sends."""
        return (parcel,)

    def overhear(self, frame: Buffer) -> None:
        """Take note of a frame that has arrived; the node gets it in any case."""

    def act(self) -> Sequence[Parcel]:
        """Return what to send unasked."""
        return ()


@dataclass(frozen=True, slots=True)
class Cover:
    """What a saboteur has at hand: its node's ``core``, its key in a ``forge``, and its own source of randomness."""

    core: GossipCore
    forge: Forge
    random: Random

    @property
    def neighbours(self) -> tuple[PeerId, ...]:
        """All neighbours, by ascending number of their nodes."""
        return tuple(self.core.followed)


@runtime_checkable
class Sabotage(Protocol):
    """An attack on the protocol with its options; ``saboteur`` makes what carries it out at one node.

    ``forges``: it rewrites updates, which it can do to those alone that travel with their message.
    """

    name: ClassVar[str]
    forges: ClassVar[bool]

    def saboteur(self, cover: Cover) -> Saboteur:
        """Return the saboteur of one node."""
        ...


def check_rate(attack: str, rate: float) -> None:
    """Raise ConfigError unless ``rate``, in frames a second, is one that a machine can play."""
    if not (isfinite(rate) and 0 < rate <= MAX_RATE):
        raise ConfigError(f'attack "{attack}": rate = {rate} frames a second must lie above 0 and up to {MAX_RATE:g}')
