"""What is known of one neighbour, and which of several connections with it is its link."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from gossipfl.identity import PeerId
from gossipfl.transports.libp2p.link import Desk, Link

CROSSED_S = 3.0
"""Two connections that are made within this time may have been made by both sides at once."""
REMEMBERED_STARTS = 8


@dataclass(slots=True)
class Neighbour:
    """One neighbour of ``me``: its link, and its starts.

    ``instance`` is the start that was linked last, ``former`` those before it.
    """

    me: PeerId
    peer: PeerId
    desk: Desk
    link: Link | None = None
    instance: bytes = b""
    former: deque[bytes] = field(default_factory=lambda: deque(maxlen=REMEMBERED_STARTS))
    changed: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        """Let its keeper look: there is a link, or a new address."""
        self.changed.set()
        self.changed = trio.Event()

    def drop_all(self, reason: str) -> None:
        """Give up the frames that wait for this neighbour."""
        for _ in range(self.desk.outbox.drop_all()):
            self.desk.on_drop(reason)

    @property
    def dials_first(self) -> bool:
        """Whether it is this side that dials at once: the one with the smaller peer id."""
        return self.me < self.peer

    def objection(self, link: Link) -> str | None:
        """Return, in a word, why ``link`` should not take the place of what is there, or None."""
        old = self.link
        if self.instance in (b"", link.instance):
            return "duplicate" if old is not None and self._outranks(old, link) else None
        if link.instance in self.former and old is not None and not old.muxed.is_closed:
            return "twin"
        return None

    def adopt(self, link: Link) -> Link | None:
        """Make ``link`` the link, and return the one whose place it takes."""
        old = self.link
        if self.instance not in (b"", link.instance):
            self.former.append(self.instance)
        self.instance, self.link = link.instance, link
        if old is not None:
            old.retire()
        return old

    def _outranks(self, old: Link, new: Link) -> bool:
        """Tell whether ``old`` stays although ``new`` was made: both sides dialled, and it is the smaller one's."""
        crossed = old.dialled != new.dialled and new.opened_at - old.opened_at < CROSSED_S
        made_by_smaller = old.dialled == self.dials_first
        return crossed and made_by_smaller and not old.muxed.is_closed
