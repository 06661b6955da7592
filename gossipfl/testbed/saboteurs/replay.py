"""Replay: what was said once is said again, by somebody who was there."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gossipfl.messages import Hello
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur, check_rate

if TYPE_CHECKING:
    from gossipfl.messages import Buffer

KEPT_BYTES = 16 << 20
"""What a saboteur remembers; the oldest frames give way."""
EARLIER = 0
"""The incarnation of the life that the node pretends to have had; incarnations of a testbed's nodes count from 1."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Record everything that the node sends and hears, and send ``rate`` frames of it a second to all neighbours.

    Own messages are there twice: as they were, and signed again as if the node had said them before a restart. That it
    has restarted its neighbours believe: they are greeted first as in that earlier life, and then as in this one.
    """

    rate: float = 50.0
    name: ClassVar[str] = "replay"
    forges: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_rate(self.name, self.rate)

    def saboteur(self, cover: Cover) -> Saboteur:
        """Return one that never forgets."""
        return _Parrot(cover, self.rate)


class _Parrot(Saboteur):
    def __init__(self, cover: Cover, rate: float) -> None:
        self.every_s = 1.0 / rate
        self._neighbours = cover.neighbours
        self._forge = cover.forge
        self._random = cover.random
        self._heard: deque[bytes] = deque()
        self._heard_bytes = 0

    def pass_on(self, parcel: Parcel) -> tuple[Parcel, ...]:
        """Keep what the node says, also in the voice of its earlier life; greetings go out in both."""
        self._keep(parcel.frame)
        letter = self._forge.read(parcel.frame)
        if letter is None:
            return (parcel,)
        earlier = self._forge.rewrite(letter, letter.body, incarnation=EARLIER)
        self._keep(earlier)
        return (Parcel(parcel.recipients, earlier), parcel) if isinstance(letter.body, Hello) else (parcel,)

    def overhear(self, frame: Buffer) -> None:
        """Keep what others say."""
        self._keep(bytes(frame))

    def _keep(self, frame: bytes) -> None:
        self._heard.append(frame)
        self._heard_bytes += len(frame)
        while self._heard_bytes > KEPT_BYTES:
            self._heard_bytes -= len(self._heard.popleft())

    def act(self) -> tuple[Parcel, ...]:
        """Say again whatever comes to mind."""
        if not self._heard:
            return ()
        return (Parcel(self._neighbours, self._random.choice(self._heard)),)
