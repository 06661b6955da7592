"""Replay protection: each (incarnation, sequence) of a sender is accepted at most once."""

from __future__ import annotations

from dataclasses import dataclass

SPAN = 1024
"""How far behind the highest sequence a late message may still be new."""


@dataclass(slots=True)
class ReplayWindow:
    """Sliding window over one sender's sequence numbers, as in RFC 4303, section 3.4.3.

    Within ``SPAN`` of the highest sequence seen, a bitmap tells new from seen, so that reordered messages are not
    taken for replays; whatever is older is refused. A higher incarnation starts afresh, a lower one is refused.
    """

    incarnation: int = -1
    highest: int = -1
    seen: int = 0

    def is_new(self, incarnation: int, sequence: int) -> bool:
        """Tell whether a message would be accepted, without changing anything."""
        if incarnation != self.incarnation:
            return incarnation > self.incarnation
        offset = self.highest - sequence
        if offset < 0:
            return True
        return offset < SPAN and not self.seen >> offset & 1

    def mark(self, incarnation: int, sequence: int) -> None:
        """Note an authenticated message that ``is_new`` allowed."""
        if incarnation > self.incarnation:
            self.incarnation, self.highest, self.seen = incarnation, sequence, 1
            return
        offset = self.highest - sequence
        if offset < 0:
            self.seen = (self.seen << -offset | 1) & ((1 << SPAN) - 1) if -offset < SPAN else 1
            self.highest = sequence
        else:
            self.seen |= 1 << offset

    def close_past(self) -> None:
        """Refuse everything up to the highest sequence: what a restart must assume of messages before it."""
        self.seen = (1 << SPAN) - 1
