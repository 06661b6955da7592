"""Whose model a node takes over that comes late, or back after a long time.

To mix with the others it would have to be near them, and is not. So it starts again from a neighbour's replica: from
the one in the middle of all that it holds, which a minority of liars cannot choose, and from the next where its own
data speak against that one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.gossip.replica import Followed
    from gossipfl.identity import PeerId


def lateness(followed: Mapping[PeerId, Followed], round_: int) -> int:
    """Return by how many rounds at least half of the neighbours are ahead of ``round_``; 0 where none is known."""
    told = sorted(other.told_round for other in followed.values() if other.speaks and not other.left)
    return max(0, told[(len(told) - 1) // 2] - round_) if told else 0


def complete(followed: Mapping[PeerId, Followed]) -> bool:
    """Whether the replicas of all neighbours that can be heard are here."""
    return all(not other.behind for other in followed.values() if other.alive)


def in_turn(followed: Mapping[PeerId, Followed]) -> list[PeerId]:
    """Return the neighbours whose replicas could be taken over, the one in the middle first.

    By the median of the distances to the others, ‖x_i - x_j‖; of few neighbours, those whose rounds are further come
    first among equals.
    """
    held = {
        peer: other.vector
        for peer, other in followed.items()
        if other.usable and other.version and other.vector is not None
    }
    middle = dict(zip(held, _median_distances(list(held.values())), strict=True))
    return sorted(held, key=lambda peer: (middle[peer], -followed[peer].round))


def _median_distances(vectors: Sequence[Tensor]) -> list[float]:
    distances = [[0.0] * len(vectors) for _ in vectors]
    for i, one in enumerate(vectors):
        for j in range(i):
            distances[i][j] = distances[j][i] = float(torch.linalg.vector_norm(one - vectors[j]))
    return [median(row[:i] + row[i + 1 :]) if len(row) > 1 else 0.0 for i, row in enumerate(distances)]


CALM_ROUNDS = 20
"""After so many rounds in a row in which its step was no larger than the others' differences, a newcomer is none."""


@dataclass(slots=True)
class Restraint:
    """Keeps the first steps of a newcomer as small as what its neighbours differ by, so that they listen to it.

    The others have settled, and the newcomer's data are new: one round of training carries it farther than they are
    from each other, for which a rule must take it for an outlier, today and ever after. So its model x is drawn back to

        c + min(1, s / ‖x - c‖) (x - c),    s = median_j ‖x̂_j - c‖

    where c is the replica in the middle of all that it holds and x̂_j are the others, until that need not be for
    ``CALM_ROUNDS`` rounds in a row.
    """

    calm: int = 0

    @property
    def over(self) -> bool:
        """Whether the newcomer is none any more."""
        return self.calm >= CALM_ROUNDS

    def hold_back(self, model: Tensor, followed: Mapping[PeerId, Followed]) -> bool:
        """Draw ``model`` (d,) back, in place, where it is too far out; tell whether it was."""
        held = [followed[peer].vector for peer in in_turn(followed)]
        vectors = [vector for vector in held if vector is not None]
        if len(vectors) < 2:  # one neighbour alone shows no differences
            return False
        centre = vectors[0].clone()
        radius = median(float(torch.linalg.vector_norm(vector - centre)) for vector in vectors[1:])
        step = model.cpu() - centre
        distance = float(torch.linalg.vector_norm(step))
        if distance <= radius:
            self.calm += 1
            return False
        self.calm = 0
        model.copy_(centre.add_(step, alpha=radius / distance))
        return True
