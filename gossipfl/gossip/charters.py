"""Versions of the membership on their way: offered to whoever has an older one, believed for their own signatures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gossipfl.errors import ConfigError
from gossipfl.identity import PeerId
from gossipfl.membership.document import Document, check_successor
from gossipfl.messages import Charter

OFFER_FIRST_S = 1.0
"""A neighbour that stays behind is offered the same again after this long, then after twice as long, and so on."""
OFFER_MAX_S = 300.0


class Charters:
    """The versions that one node knows, oldest first; the last is in force.

    Raises ConfigError where one is no successor of the one before.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        if not documents:
            raise ValueError("there is a first version")
        self._known = list(documents)
        for older, newer in pairwise(documents):
            check_successor(newer, older)
        self._pending = False
        self._offered: dict[PeerId, tuple[int, float, float]] = {}

    @property
    def current(self) -> Document:
        """The version in force."""
        return self._known[-1]

    @property
    def version(self) -> int:
        """Its number."""
        return self.current.content.version

    def consider(self, charter: Charter) -> Document | None:
        """Return the version that a neighbour offers; None if it is no newer than the current one.

        Nor is any other looked at until it has been adopted or declined: whoever has more will offer it again. Raises
        ConfigError where it may not take the place of the current one.
        """
        if self._pending or charter.version <= self.version:
            return None
        document = Document.parse(bytes(charter.document))
        if document.content.version != charter.version:
            raise ConfigError("the version is another one than announced")
        check_successor(document, self.current)
        self._pending = True
        return document

    def decline(self) -> None:
        """Take note that what was considered last has not come into force."""
        self._pending = False

    def adopt(self, document: Document) -> None:
        """Take a version as the one in force; raises ConfigError where it may not be."""
        self._pending = False
        check_successor(document, self.current)
        self._known.append(document)
        self._offered.clear()

    def offers(self, peer: PeerId, theirs: int, now: float) -> list[Charter]:
        """Return what a neighbour with version ``theirs`` needs to have the current one, unless it was offered lately.

        The newest is enough where the signers of ``theirs`` have signed it; otherwise all in between are needed.
        """
        if theirs >= self.version or theirs < self._known[0].content.version:
            return []
        last, due, gap = self._offered.get(peer, (-1, 0.0, 0.0))
        if last == theirs and now < due:
            return []
        gap = min(2 * gap, OFFER_MAX_S) if last == theirs else OFFER_FIRST_S
        self._offered[peer] = theirs, now + gap, gap
        return [charter_of(each) for each in self._needed(theirs)]

    def _needed(self, theirs: int) -> list[Document]:
        base = next((each for each in self._known if each.content.version == theirs), None)
        if base is not None:
            try:
                check_successor(self.current, base)
            except ConfigError:
                pass
            else:
                return [self.current]
        return [each for each in self._known if each.content.version > theirs]


def charter_of(document: Document) -> Charter:
    """Return the message that brings a version."""
    return Charter(document.content.version, memoryview(document.encode()))
