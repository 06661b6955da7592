"""Sequences of rounds in which a node meets one other at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gossipfl.digest import derive_seed
from gossipfl.topology.graph import Topology
from gossipfl.topology.sequences.schedule import Arrows, MixingSequence, RoundLinks

if TYPE_CHECKING:
    from gossipfl.topology.sequences.schedule import Integers


@dataclass(frozen=True)
class OnePeerExponential(MixingSequence):
    """In round t node i averages with what node i + 2^(t mod τ) sends, τ = ceil(log2 n): W = (I + P) / 2.

    With n = 2^τ all nodes agree after τ rounds; with other numbers they never do exactly.

    Ying et al., "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021.
    """

    name: ClassVar[str] = "one-peer-exponential"
    nodes: int

    @property
    def period(self) -> int:
        """Rounds until the hop is 1 again, τ."""
        return (self.nodes - 1).bit_length()

    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``."""
        receivers = np.arange(self.nodes)
        senders = (receivers + (1 << round_ % self.period)) % self.nodes
        return Arrows(receivers, senders, np.full(self.nodes, 0.5)).links(self.nodes)


@dataclass(frozen=True)
class Matching(MixingSequence):
    """Each round joins pairs at random, as many as fit side by side, and each pair averages: W_ij = 1/2.

    With a ``graph`` only its neighbours can be joined: edges are taken in random order, each whose ends are both
    free. Without one any two can, and at most one node is left alone.

    Boyd, Ghosh, Prabhakar and Shah, "Randomized gossip algorithms", IEEE Trans. Inf. Theory 52(6), 2006, join one pair
    at a time; Wang et al., "MATCHA", ICC 2019, matchings of a graph.
    """

    name: ClassVar[str] = "matching"
    period: ClassVar[None] = None
    nodes: int
    seed: int
    graph: Topology | None = None

    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``."""
        rng = np.random.default_rng(derive_seed(self.seed, "round", round_))
        first, second = self._pairs(rng)
        return Arrows.both_ways(first, second, np.full(len(first), 0.5)).links(self.nodes)

    def _pairs(self, rng: np.random.Generator) -> tuple[Integers, Integers]:
        if self.graph is None:
            order = rng.permutation(self.nodes)[: self.nodes // 2 * 2]
            return order[::2], order[1::2]
        free = [True] * self.nodes
        pairs = []
        for place in rng.permutation(len(self.graph.edges)).tolist():
            i, j = self.graph.edges[place]
            if free[i] and free[j]:
                free[i] = free[j] = False
                pairs.append((i, j))
        joined = np.array(pairs, dtype=np.int64)
        return joined[:, 0], joined[:, 1]

    def union(self) -> Topology | None:
        """Return the graph whose edges are matched; None where any two nodes may meet."""
        return self.graph
