"""Epidemic learning: every round each node's model goes to s others, drawn anew.

de Vos, Farhadkhani, Guerraoui, Kermarrec, Pires and Sharma, "Epidemic learning: boosting decentralized learning with
randomized communication", NeurIPS 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gossipfl.digest import derive_seed
from gossipfl.errors import TopologyError
from gossipfl.topology.limits import check_edges
from gossipfl.topology.sequences.schedule import Arrows, MixingSequence, RoundLinks

if TYPE_CHECKING:
    from gossipfl.topology.sequences.schedule import Integers


def fanout(nodes: int, s: int | None, variant: str) -> int:
    """Return how many others a node's model goes to: ``s``, or by default ceil(log2 n).

    The oracle's graphs have n·s / 2 edges: where n and ceil(log2 n) are odd, its default is one more. Raises
    ``TopologyError``.
    """
    if s is None:
        s = (nodes - 1).bit_length()
        s += variant == "oracle" and nodes * s % 2 == 1
    if not 1 <= s < nodes:
        raise TopologyError(f'topology "epidemic": s is {s} with {nodes} nodes; give 1 to {nodes - 1}')
    if variant == "oracle" and nodes * s % 2:
        raise TopologyError(
            f'topology "epidemic": no graph of {nodes} nodes has {s} neighbours for each (nodes x s is odd); '
            "give an even s, an even number of nodes, or variant = local"
        )
    check_edges("epidemic", nodes * s)
    return s


@dataclass(frozen=True)
class EpidemicOracle(MixingSequence):
    """EL-Oracle: each round's graph is drawn among those where all have ``s`` neighbours; W_ij = 1 / (s + 1)."""

    name: ClassVar[str] = "epidemic"
    period: ClassVar[None] = None
    nodes: int
    s: int
    seed: int

    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``."""
        rng = np.random.default_rng(derive_seed(self.seed, "round", round_))
        first, second = _regular(self.nodes, self.s, rng)
        return Arrows.both_ways(first, second, np.full(len(first), 1.0 / (self.s + 1))).links(self.nodes)


def _regular(nodes: int, degree: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Draw the edges of a graph whose nodes all have ``degree`` neighbours, close to uniformly among such graphs.

    As the family random-regular does, but with whole arrays: a thousand nodes take a quarter of the time.
    """
    if 2 * degree < nodes:
        edges = None
        while edges is None:
            edges = _paired(nodes, degree, rng)
        return edges // nodes, edges % nodes
    # Few pairs of dense graphs are free for the last stubs; the complement is sparse and just as uniform.
    first, second = np.triu_indices(nodes, 1)
    apart, other = _regular(nodes, nodes - 1 - degree, rng)
    kept = ~np.isin(first * nodes + second, apart * nodes + other)
    return first[kept], second[kept]


def _paired(nodes: int, degree: int, rng: np.random.Generator) -> Integers | None:
    """Pair stubs at random, again for those that met themselves or a neighbour; None where the last cannot be paired.

    Edges i < j come as i·n + j. Steger and Wormald, "Generating random regular graphs quickly", Comb. Probab. Comput.
    8(4), 1999.
    """
    edges = np.zeros(0, dtype=np.int64)
    stubs = np.repeat(np.arange(nodes), degree)
    while len(stubs):
        pairs = rng.permutation(stubs).reshape(-1, 2)
        low, high = pairs.min(axis=1), pairs.max(axis=1)
        found, places = np.unique(low * nodes + high, return_index=True)
        fresh = places[(low[places] != high[places]) & ~np.isin(found, edges)]
        edges = np.concatenate([edges, low[fresh] * nodes + high[fresh]])
        stubs = np.delete(pairs, fresh, axis=0).ravel()
        if not len(fresh) and not _can_be_paired(np.unique(stubs), nodes, edges):
            return None
    return edges


def _can_be_paired(left: Integers, nodes: int, edges: Integers) -> bool:
    """Tell whether two of the nodes ``left``, ascending, are not neighbours yet."""
    first, second = np.triu_indices(len(left), 1)
    return not bool(np.isin(left[first] * nodes + left[second], edges).all())


@dataclass(frozen=True)
class EpidemicLocal(MixingSequence):
    """EL-Local: each node sends to ``s`` others of its own choice; who got r models averages them and its own.

    W_ij = 1 / (r_i + 1). Rows sum to one but columns need not: the mean of all models moves, though not in
    expectation.
    """

    name: ClassVar[str] = "epidemic"
    period: ClassVar[None] = None
    doubly_stochastic: ClassVar[bool] = False
    nodes: int
    s: int
    seed: int

    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``."""
        rng = np.random.default_rng(derive_seed(self.seed, "round", round_))
        senders = np.repeat(np.arange(self.nodes), self.s)
        receivers = _others(self.nodes, self.s, rng).ravel()
        received = np.bincount(receivers, minlength=self.nodes)
        weights = np.reciprocal(1.0 + received[receivers], dtype=np.float64)
        return Arrows(receivers, senders, weights).links(self.nodes)


def _others(nodes: int, count: int, rng: np.random.Generator) -> Integers:
    """Draw ``count`` distinct others for each node, uniformly, (nodes, count).

    Floyd's algorithm for all nodes at once: Bentley and Floyd, "Programming pearls: a sample of brilliance", CACM
    30(9), 1987.
    """
    drawn = np.empty((nodes, count), dtype=np.int64)
    for step, last in enumerate(range(nodes - 1 - count, nodes - 1)):
        wanted = rng.integers(0, last + 1, nodes)
        taken = (drawn[:, :step] == wanted[:, None]).any(axis=1)
        drawn[:, step] = np.where(taken, last, wanted)
    # Numbers 0 .. n - 2 stand for the others of a node: from its own number on they are one more.
    return drawn + (drawn >= np.arange(nodes)[:, None])
