"""A flood of what is true and no longer matters: validly signed, so that each message has to be opened and weighed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from gossipfl.gossip.replica import KEYFRAME_CODEC
from gossipfl.messages import Body, Kind, Request, Update
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur, check_rate
from gossipfl.testbed.saboteurs.forge import Letter

PULSE_S = 0.02
"""A pause between two bursts, which the loop's timers can keep."""
REMEMBERED = 32
"""How much of what was said is kept."""


@dataclass(frozen=True, slots=True)
class StaleFlood:
    """Send ``rate`` messages a second to every neighbour, none of which is news.

    In turn, as chance has it: a frame that was sent before; what was said before under a new number; a keyframe of the
    initial model that nobody has asked for; requests for all that the neighbour has ever published.
    """

    rate: float = 200.0
    name: ClassVar[str] = "stale-flood"
    forges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rate(self.name, self.rate)

    def saboteur(self, cover: Cover) -> Saboteur:
        """Return one that talks without end."""
        return _Talker(cover, self.rate)


class _Talker(Saboteur):
    def __init__(self, cover: Cover, rate: float) -> None:
        self.every_s = max(PULSE_S, 1.0 / rate)
        self._burst = round(rate * self.every_s)
        self._neighbours = cover.neighbours
        self._forge = cover.forge
        self._random = cover.random
        self._frames: deque[bytes] = deque(maxlen=REMEMBERED)
        self._letters: deque[Letter] = deque(maxlen=REMEMBERED)
        own = cover.core.exchange.own
        payload = memoryview(bytes(KEYFRAME_CODEC.encode(own.vector).payload))
        self._first = Update(own.round, own.version, own.digest, KEYFRAME_CODEC.wire_id, payload)

    def pass_on(self, parcel: Parcel) -> tuple[Parcel, ...]:
        """Keep what the node says."""
        letter = self._forge.read(parcel.frame)
        if letter is not None and letter.kind != Kind.BYE:
            self._frames.append(parcel.frame)
            self._letters.append(letter)
        return (parcel,)

    def act(self) -> list[Parcel]:
        """Say it all again."""
        return [Parcel(self._neighbours, self._stale()) for _ in range(self._burst if self._letters else 0)]

    def _stale(self) -> bytes:
        letter = self._random.choice(self._letters)
        stale: tuple[bytes | tuple[Kind, Body], ...] = (
            self._random.choice(self._frames),
            (letter.kind, letter.body),
            (Kind.KEYFRAME, self._first),
            (Kind.REQUEST, Request(None)),
            (Kind.REQUEST, Request(0)),
        )
        chosen = self._random.choice(stale)
        return chosen if isinstance(chosen, bytes) else self._forge.write(*chosen)
