"""Base-(k+1) graphs: with at most k neighbours a round, every node has the exact average after a known few rounds.

Takezawa, Sato, Bao, Niwa and Yamada, "Beyond exponential graph: communication-efficient topologies for decentralized
learning via finite-time convergence", NeurIPS 2023: algorithms 1 (hyper-hypercube), 2 (simple base) and 3 (base).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from gossipfl.errors import TopologyError
from gossipfl.topology.limits import check_edges
from gossipfl.topology.sequences.schedule import Arrows, MixingSequence, RoundLinks

if TYPE_CHECKING:
    from gossipfl.topology.sequences.schedule import Integers


class Averaging(Protocol):
    """Rounds of weighted arrows among nodes 0 .. n - 1 whose product is the exact average."""

    @property
    def rounds(self) -> int:
        """Number of rounds."""
        ...

    def arrows(self, round_: int) -> Arrows:
        """Return the arrows of round ``round_`` < ``rounds``."""
        ...


@cache
def _factors(nodes: int, most: int) -> tuple[int, ...] | None:
    """Return the fewest factors up to ``most`` whose product is ``nodes``; None where a prime factor exceeds it."""
    if nodes == 1:
        return ()
    if nodes <= most:
        return (nodes,)
    splits = (
        (*rest, factor)
        for factor in range(most, 1, -1)
        if nodes % factor == 0 and (rest := _factors(nodes // factor, most)) is not None
    )
    return min(splits, key=len, default=None)


@dataclass(frozen=True)
class HyperHypercube:
    """n = n_1 · n_2 · .. · n_L nodes as digits of mixed base: round l averages those that differ in digit l alone."""

    nodes: int
    factors: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """The number L of factors."""
        return len(self.factors)

    def arrows(self, round_: int) -> Arrows:
        """Return the arrows of a round."""
        factor, stride = self.factors[round_], int(np.prod(self.factors[:round_], dtype=np.int64))
        digits = np.arange(self.nodes).reshape(-1, factor, stride)
        return _cliques(digits.transpose(0, 2, 1).reshape(-1, factor))


def _cliques(groups: Integers) -> Arrows:
    """Return the arrows by which each row of ``groups``, (groups, size), averages: W_ij = 1 / size."""
    size = groups.shape[1]
    if size < 2:
        return Arrows.joined([])
    first, second = np.triu_indices(size, 1)
    weights = np.full(len(groups) * len(first), 1.0 / size)
    return Arrows.both_ways(groups[:, first].ravel(), groups[:, second].ravel(), weights)


def _placed(arrows: Arrows, places: Integers) -> Arrows:
    """Return a copy of ``arrows`` for each row of ``places``, (copies, n): local node v of copy c is places[c, v]."""
    return Arrows(
        places[:, arrows.receivers].ravel(),
        places[:, arrows.senders].ravel(),
        np.tile(arrows.weights, len(places)),
    )


@dataclass(frozen=True)
class Part:
    """One digit of n in base k + 1: the nodes from ``first`` on, a·(k+1)^p of them in a ``blocks`` of ``size`` each."""

    first: int
    blocks: int
    size: int
    whole: HyperHypercube
    block: HyperHypercube

    @property
    def nodes(self) -> int:
        """Number of nodes of the part."""
        return self.blocks * self.size

    @property
    def last(self) -> int:
        """The first node behind the part."""
        return self.first + self.nodes

    @property
    def places(self) -> Integers:
        """The nodes of each block, (blocks, size)."""
        return np.arange(self.first, self.last).reshape(self.blocks, self.size)

    def averaged(self, round_: int) -> Arrows:
        """Return arrows that average the whole part, over and over."""
        if not self.whole.rounds:
            return Arrows.joined([])
        return _placed(self.whole.arrows(round_ % self.whole.rounds), self.places.reshape(1, -1))

    def averaged_by_block(self, round_: int) -> Arrows:
        """Return arrows that average each block, over and over; the whole part where blocks are single nodes."""
        if self.size == 1:
            return self.averaged(round_)
        return _placed(self.block.arrows(round_ % self.block.rounds), self.places)


@dataclass(frozen=True)
class SimpleBase:
    """Averages n nodes for any n, split into parts V_1, V_2, .. by the digits of n in base k + 1, largest first.

    All parts average within themselves, as long as V_1 takes. Then, one part l after the other, each node of the parts
    behind V_l meets one node of every block of V_l, with weight |V_l| / (|V_l| + |V_(l+1)| + ..) shared among the
    blocks, which gives each block of V_l the average of all n; those of V_l that nobody meets average among
    themselves. From the next round on V_l spreads it within its blocks.
    """

    nodes: int
    k: int

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """V_1, V_2, .. with falling sizes of block."""
        return tuple(self._parts())

    def _parts(self) -> Iterator[Part]:
        base, first = self.k + 1, 0
        size = 1
        while size * base <= self.nodes:
            size *= base
        while first < self.nodes:
            blocks = (self.nodes - first) // size
            if blocks:
                whole, block = (_hypercube(blocks * size, self.k), _hypercube(size, self.k))
                yield Part(first, blocks, size, whole, block)
            first += blocks * size
            size //= base

    @property
    def rounds(self) -> int:
        """Rounds within V_1, one in which the others meet it, and rounds within its blocks."""
        return self.parts[0].whole.rounds + 1 + self.parts[0].block.rounds

    def arrows(self, round_: int) -> Arrows:
        """Return the arrows of a round."""
        met = round_ - self.parts[0].whole.rounds
        if met < 0:
            return Arrows.joined(part.averaged(round_) for part in self.parts)
        *front, last = self.parts
        arrows = [part.averaged_by_block(met - 1 - place) for place, part in enumerate(front[:met])]
        # Nobody is behind the last part: once it has met all others it is done, and goes on averaging.
        arrows.append(self._meeting(front[met]) if met < len(front) else last.averaged_by_block(met - len(front)))
        return Arrows.joined(arrows)

    def _meeting(self, part: Part) -> Arrows:
        behind = np.arange(part.last, self.nodes)
        weight = part.nodes / (self.nodes - part.first) / part.blocks
        met = part.places[:, : len(behind)].ravel()
        meeting = Arrows.both_ways(met, np.tile(behind, part.blocks), np.full(len(met), weight))
        alone = part.places[:, len(behind) :].ravel()
        full = len(alone) // (self.k + 1) * (self.k + 1)
        rest = _cliques(alone[full:].reshape(1, -1))
        return Arrows.joined([meeting, _cliques(alone[:full].reshape(-1, self.k + 1)), rest])


def _hypercube(nodes: int, k: int) -> HyperHypercube:
    factors = _factors(nodes, k + 1)
    assert factors is not None, "parts and blocks are made of factors up to k + 1"
    return HyperHypercube(nodes, factors)


@dataclass(frozen=True)
class Base:
    """Averages n = p · q nodes, p made of factors up to k + 1 and q of none.

    Each of p teams of q averages as ``SimpleBase``; then those with the same place in their teams, p of them, average
    as a hyper-hypercube.
    """

    nodes: int
    teams: HyperHypercube
    team: SimpleBase

    @property
    def rounds(self) -> int:
        """Rounds within teams and rounds across them."""
        return self.team.rounds + self.teams.rounds

    def arrows(self, round_: int) -> Arrows:
        """Return the arrows of a round."""
        places = np.arange(self.nodes).reshape(self.teams.nodes, self.team.nodes)
        if round_ < self.team.rounds:
            return _placed(self.team.arrows(round_), places)
        return _placed(self.teams.arrows(round_ - self.team.rounds), places.T)


def averaging(nodes: int, k: int) -> Averaging:
    """Return the Base-(k+1) graph: a hyper-hypercube where n has one, else the shorter of the two constructions."""
    factors = _factors(nodes, k + 1)
    if factors is not None:
        return HyperHypercube(nodes, factors)
    smooth = 1
    for factor in range(2, k + 2):
        while nodes % (smooth * factor) == 0:
            smooth *= factor
    simple, base = SimpleBase(nodes, k), Base(nodes, _hypercube(smooth, k), SimpleBase(nodes // smooth, k))
    return simple if simple.rounds < base.rounds else base


@dataclass(frozen=True)
class BaseGraph(MixingSequence):
    """The Base-(k+1) graph over and over: after each period, all nodes have the average of what they had before it.

    A node has at most ``k`` neighbours in a round, and a period is at most 2 log_(k+1)(n) + 2 rounds. W is symmetric
    and doubly stochastic.
    """

    name: ClassVar[str] = "base-k"
    nodes: int
    k: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.k < self.nodes:
            raise TopologyError(f'topology "base-k": k is {self.k} with {self.nodes} nodes; give 1 to {self.nodes - 1}')
        check_edges(self.name, self.nodes * self.k / 2)

    @cached_property
    def _averaging(self) -> Averaging:
        return averaging(self.nodes, self.k)

    @property
    def period(self) -> int:
        """Rounds after which all nodes agree."""
        return self._averaging.rounds

    def links(self, round_: int) -> RoundLinks:
        """Return the links of round ``round_``."""
        return self._averaging.arrows(round_ % self.period).links(self.nodes)
