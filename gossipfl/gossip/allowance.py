"""How often a neighbour may speak: to open a signed message costs arithmetic, and nobody has that without limit."""

from __future__ import annotations

from dataclasses import dataclass

MESSAGES = 1024
"""What a neighbour may say in one round of this node's, however short: an update, some answers, and a status for each
of its own neighbours' updates, of which there are 1,000 at most."""
MESSAGES_PER_S = 256.0
"""What it may say on top in each second of a long round: 50 ms of one core, at 0.2 ms a message."""


@dataclass(slots=True)
class Allowance:
    """How many messages one neighbour has left; it is full at first, and again with each round of this node."""

    left: float = MESSAGES
    counted_at: float = float("-inf")

    def renew(self) -> None:
        """Begin a round."""
        self.left = MESSAGES

    def spend(self, now: float) -> bool:
        """Take one message off what is left; False if nothing is."""
        self.left = min(self.left + MESSAGES_PER_S * (now - self.counted_at), MESSAGES)
        self.counted_at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
