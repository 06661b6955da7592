"""Graphs that change from round to round: who hears whom in each round, with what weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gossipfl.topology.graph import Topology, canonical_edges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

COUNTED_ROUNDS = 64  # rounds of an endless sequence over which its messages are counted


@dataclass(frozen=True, slots=True)
class RoundLinks:
    """The directed links j -> i of one round, by receiver i and then by sender j, both ascending.

    Links ``starts[i]`` to ``starts[i + 1]`` lead to node i; ``senders`` (e,) are their other ends and ``weights`` (e,)
    the mixing weights W_ij. The own weight is W_ii = 1 - sum_j W_ij.
    """

    starts: Integers
    senders: Integers
    weights: Floats

    @property
    def nodes(self) -> int:
        """Number of nodes n."""
        return len(self.starts) - 1

    @property
    def receivers(self) -> Integers:
        """The node that each link leads to, (e,)."""
        import numpy as np

        return np.repeat(np.arange(self.nodes), np.diff(self.starts))

    @property
    def own_weights(self) -> Floats:
        """The weight that each node keeps for itself, (n,)."""
        import numpy as np

        given = np.bincount(self.receivers, self.weights, self.nodes).astype(np.float64)
        return 1.0 - given

    def matrix(self) -> csr_array:
        """Return W as a float64 CSR array (n, n), diagonal included: a round is ``X <- W @ X`` for X (n, d)."""
        from scipy.sparse import csr_array, diags_array

        links = csr_array((self.weights, self.senders, self.starts), shape=(self.nodes, self.nodes))
        return csr_array(links + diags_array(self.own_weights))


@dataclass(frozen=True, slots=True)
class Arrows:
    """Weighted arrows j -> i in any order, each pair at most once: what round links are made of."""

    receivers: Integers
    senders: Integers
    weights: Floats

    @staticmethod
    def joined(parts: Iterable[Arrows]) -> Arrows:
        """Return all arrows of ``parts``."""
        import numpy as np

        listed = list(parts)
        if not listed:
            return Arrows(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        return Arrows(
            np.concatenate([part.receivers for part in listed]),
            np.concatenate([part.senders for part in listed]),
            np.concatenate([part.weights for part in listed]),
        )

    @staticmethod
    def both_ways(first: Integers, second: Integers, weights: Floats) -> Arrows:
        """Return one arrow each way between ``first[l]`` and ``second[l]``, both of weight ``weights[l]``."""
        import numpy as np

        return Arrows(
            np.concatenate([first, second]), np.concatenate([second, first]), np.concatenate([weights, weights])
        )

    def links(self, nodes: int) -> RoundLinks:
        """Return the arrows as the links of a round among ``nodes``."""
        import numpy as np

        order = np.lexsort((self.senders, self.receivers))
        counts = np.bincount(self.receivers, minlength=nodes)
        starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        return RoundLinks(starts, self.senders[order].astype(np.int64), self.weights[order])


class MixingSequence(ABC):
    """A network whose links are others in each round.

    ``links`` of a round depends on nothing but the sequence and the round: asking twice gives the same. Round t and
    round t + ``period`` are alike; an endless sequence has no period. ``doubly_stochastic`` tells whether in each
    round every node's weights, given out and taken in, sum to one, so that the mean of all models stays.
    """

    name: ClassVar[str]
    doubly_stochastic: ClassVar[bool] = True
    nodes: int

    @property
    @abstractmethod
    def period(self) -> int | None:
        """After how many rounds the sequence repeats; None for an endless one."""

    @abstractmethod
    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``, counted from 0."""

    def union(self) -> Topology | None:
        """Return the graph of all pairs that ever talk, whoever sends; None where any two may."""
        if self.period is None:
            return None
        pairs: set[tuple[int, int]] = set()
        for round_ in range(self.period):
            links = self.links(round_)
            pairs.update(zip(links.receivers.tolist(), links.senders.tolist(), strict=True))
        edges = canonical_edges(pairs)
        return None if len(edges) == self.nodes * (self.nodes - 1) // 2 else Topology(self.name, self.nodes, edges)

    def messages(self) -> float:
        """Return how many models a node sends in a round: the mean over nodes and rounds.

        Over one period where there is one, else over the first ``COUNTED_ROUNDS`` rounds.
        """
        rounds = range(self.period or COUNTED_ROUNDS)
        return sum(len(self.links(round_).senders) for round_ in rounds) / (len(rounds) * self.nodes)
