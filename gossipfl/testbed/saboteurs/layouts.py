"""Layout lies: a neighbour whose model is another one, or whose updates fit no model at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from gossipfl.digest import digest
from gossipfl.messages import MAX_META_BYTES, Hello, Update
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur
from gossipfl.testbed.saboteurs.forge import Letter

ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class LayoutLie:
    """Greet every other neighbour, beginning with the first, with the digest of another layout.

    To the rest the greeting is true and the updates are not: in turn an element short, an element too long, empty, and
    longer than any that the model could need.
    """

    name: ClassVar[str] = "layout-lie"
    forges: ClassVar[bool] = True

    def saboteur(self, cover: Cover) -> Saboteur:
        """Return one that fits nowhere."""
        return _Misfit(cover)


class _Misfit(Saboteur):
    def __init__(self, cover: Cover) -> None:
        neighbours = cover.neighbours
        self._forge = cover.forge
        self._misled, self._misfed = frozenset(neighbours[::2]), frozenset(neighbours[1::2])
        self._layout = digest(b"another layout")
        self._endless = bytes(2 * (ELEMENT_BYTES * cover.core.exchange.own.vector.numel() + MAX_META_BYTES))
        self._lies = 0

    def pass_on(self, parcel: Parcel) -> tuple[Parcel, ...]:
        """Twist the greeting for the ones and the updates for the others."""
        letter = self._forge.read(parcel.frame)
        if letter is None:
            return (parcel,)
        match letter.body:
            case Hello() as hello:
                return parcel.split(self._misled, lambda: self._mislead(letter, hello))
            case Update() as update:
                return parcel.split(self._misfed, lambda: self._misfeed(letter, update))
            case _:
                return (parcel,)

    def _mislead(self, letter: Letter, hello: Hello) -> bytes:
        return self._forge.rewrite(letter, replace(hello, layout=self._layout))

    def _misfeed(self, letter: Letter, update: Update) -> bytes:
        payload = bytes(update.payload)
        sizes = (payload[:-ELEMENT_BYTES], payload + bytes(ELEMENT_BYTES), b"", self._endless)
        lie = sizes[self._lies % len(sizes)]
        self._lies += 1
        return self._forge.rewrite(letter, replace(update, payload=memoryview(lie)))
