"""EquiTopo: averaging around the circle by random hops, at a rate that does not depend on the number of nodes.

With P_a the cyclic shift by a hop a, A_a = I / n + (1 - 1/n) P_a; over all hops 1 .. n - 1 the mean of A_a is the exact
average 11ᵀ / n.

Song, Li, Jin, Shi, Yan, Yin and Yuan, "Communication-efficient topologies for decentralized learning with O(1)
consensus rate", NeurIPS 2022.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gossipfl.digest import derive_seed
from gossipfl.topology.graph import Topology, canonical_edges
from gossipfl.topology.sequences.schedule import Arrows, MixingSequence, RoundLinks

if TYPE_CHECKING:
    from gossipfl.topology.sequences.schedule import Integers


@dataclass(frozen=True)
class EquiStatic(MixingSequence):
    """D-EquiStatic, the same directed links in every round: W is the mean of A_a over the ``hops`` a as drawn."""

    name: ClassVar[str] = "equistatic"
    period: ClassVar[int] = 1
    nodes: int
    hops: tuple[int, ...]

    def links(self, round_: int) -> RoundLinks:
        """Return the links, which no round changes."""
        nodes = np.arange(self.nodes)
        share = (1.0 - 1.0 / self.nodes) / len(self.hops)
        return Arrows.joined(
            Arrows(nodes, (nodes + hop) % self.nodes, np.full(self.nodes, share * times))
            for hop, times in Counter(self.hops).items()
        ).links(self.nodes)


@dataclass(frozen=True)
class EquiDyn(MixingSequence):
    """OD-EquiDyn, or OU-EquiDyn if ``undirected``: one hop a round, W = (1 - ``eta``) I + ``eta`` A_a.

    ``hops`` are those that rounds draw from; empty stands for all of 1 .. n - 1, where one directed round shrinks the
    square of the distance to consensus by (1 - η)² + η² (1 - 2/n) in the mean: about a half with η = 1/2. The
    undirected form goes round the circle from a random start and joins i and i + a wherever both are free, so that
    P_a becomes a matching.
    """

    name: ClassVar[str] = "equidyn"
    period: ClassVar[None] = None
    nodes: int
    seed: int
    hops: tuple[int, ...] = ()
    eta: float = 0.5
    undirected: bool = False

    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``."""
        rng = np.random.default_rng(derive_seed(self.seed, "round", round_))
        hop = self.hops[rng.integers(len(self.hops))] if self.hops else int(rng.integers(1, self.nodes))
        share = self.eta * (1.0 - 1.0 / self.nodes)
        if not self.undirected:
            nodes = np.arange(self.nodes)
            return Arrows(nodes, (nodes + hop) % self.nodes, np.full(self.nodes, share)).links(self.nodes)
        first, second = _joined_round_circle(self.nodes, hop, int(rng.integers(self.nodes)))
        return Arrows.both_ways(first, second, np.full(len(first), share)).links(self.nodes)

    def union(self) -> Topology | None:
        """Return the graph of all hops that rounds draw from; None where they are all there are."""
        steps = {min(hop, self.nodes - hop) for hop in self.hops}
        if not steps or len(steps) == self.nodes // 2:
            return None
        edges = canonical_edges((i, (i + step) % self.nodes) for step in steps for i in range(self.nodes))
        return Topology(self.name, self.nodes, edges)


def _joined_round_circle(nodes: int, hop: int, start: int) -> tuple[Integers, Integers]:
    free = [True] * nodes
    first, second = [], []
    for place in range(start, start + nodes):
        i, j = place % nodes, (place + hop) % nodes
        if free[i] and free[j]:
            free[i] = free[j] = False
            first.append(i)
            second.append(j)
    return np.array(first), np.array(second)
