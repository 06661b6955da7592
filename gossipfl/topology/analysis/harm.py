"""What Byzantine nodes in given places take from the honest ones: majorities, or each other."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations, islice
from random import Random
from typing import Any, Protocol

from gossipfl.topology.analysis.enclosure import enclosures
from gossipfl.topology.analysis.spectra import adjacency_csr, fiedler, laplacian_csr
from gossipfl.topology.analysis.splits import largest_left, parts_of
from gossipfl.topology.graph import Topology

Placement = tuple[int, ...]
Harmed = tuple[float, float]
"""How much was harmed; the second number, which tells of progress, decides between equals. Larger is worse."""

_BATCH = 256
_RANDOM_STARTS = 4


class Harm(Protocol):
    """A kind of harm, and how to look for the placement that does most of it."""

    @property
    def steps(self) -> int:
        """How many calls of ``next`` a search may make: some seconds' worth."""
        ...

    def measure(self, bad: Collection[int]) -> Harmed:
        """Return the harm that the nodes ``bad`` do."""
        ...

    def next(self, bad: Collection[int]) -> int:
        """Return the node whose joining ``bad`` seems to harm most."""
        ...

    def worst(self, count: int) -> Placement | None:
        """Return the worst of all placements of ``count`` nodes, or None where they are too many to try."""
        ...

    def starts(self, count: int, generator: Random) -> Iterable[Placement]:
        """Return placements of at most ``count`` nodes from which to search."""
        ...


class Majority:
    """Honest nodes of whose neighbours at least the ``share`` in (0, 1] is Byzantine: by default half or more.

    Progress is how much of its quota each of the other honest nodes has, summed.
    """

    every = 50_000  # placements that may be tried one by one

    def __init__(self, topology: Topology, share: float = 0.5) -> None:
        import numpy as np

        degrees = np.asarray(topology.degrees)
        self._nodes = topology.nodes
        self._adjacency = adjacency_csr(topology)
        # A product such as 0.3 * 10 comes out a little above the whole number it is; a node without neighbours has none
        # that could outvote it.
        self._quota = np.where(degrees > 0, np.maximum(1, np.ceil(share * degrees - 1e-9)), np.inf)

    @property
    def steps(self) -> int:
        """Each step is a product with the adjacency matrix."""
        return 3000

    def outvoted(self, bad: Collection[int]) -> Placement:
        """Return the honest nodes that ``bad`` outvotes, ascending."""
        import numpy as np

        honest, around = self._count(bad)
        return tuple(np.flatnonzero(honest & (around >= self._quota)).tolist())

    def measure(self, bad: Collection[int]) -> Harmed:
        """Return the number of outvoted honest nodes, and the progress."""
        honest, around = self._count(bad)
        lost = honest & (around >= self._quota)
        return float(lost.sum()), float((around / self._quota)[honest & ~lost].sum())

    def gained(self, bad: Collection[int]) -> Any:
        """Return by how many each node's joining ``bad`` changes the number of outvoted, (nodes,); -inf for ``bad``."""
        import numpy as np

        honest, around = self._count(bad)
        lost = honest & (around >= self._quota)
        almost = honest & ~lost & (around + 1 >= self._quota)
        # A node that turns Byzantine is itself no victim any more.
        return np.where(honest, self._adjacency @ almost.astype(float) - lost, -np.inf)

    def next(self, bad: Collection[int]) -> int:
        """Return the node that outvotes most others at once, of several the one that adds most progress."""
        import numpy as np

        honest, around = self._count(bad)
        progress = self._adjacency @ np.where(honest & (around < self._quota), 1.0 / self._quota, 0.0)
        gained = self.gained(bad)
        best = np.flatnonzero(gained == gained.max())
        return int(best[np.argmax(progress[best])])

    def worst(self, count: int) -> Placement | None:
        """Try all placements, a batch at a time."""
        import numpy as np

        if math.comb(self._nodes, count) > self.every:
            return None
        best, most = tuple(range(count)), -1
        for batch in _batches(combinations(range(self._nodes), count)):
            chosen = np.zeros((self._nodes, len(batch)))
            chosen[np.asarray(batch, dtype=np.int64).T, np.arange(len(batch))] = 1.0
            lost = (self._adjacency @ chosen >= self._quota[:, None]) & (chosen == 0)
            counts = lost.sum(axis=0)
            if int(counts.max()) > most:
                best, most = batch[int(counts.argmax())], int(counts.max())
        return best

    def starts(self, count: int, generator: Random) -> Iterable[Placement]:
        """Start from nothing, and from some random placements."""
        yield ()
        for _ in range(_RANDOM_STARTS):
            yield tuple(generator.sample(range(self._nodes), count))

    def _count(self, bad: Collection[int]) -> tuple[Any, Any]:
        import numpy as np

        lies = np.zeros(self._nodes)
        lies[list(bad)] = 1.0
        return lies == 0, self._adjacency @ lies


class Split:
    """Honest nodes that Byzantine ones, if they fall silent, cut off from the largest honest part.

    Progress, where none is cut off yet, is minus the algebraic connectivity of the honest part.
    """

    every = 20_000  # placements that may be tried one by one for parts
    eigenvalues = 4_000_000  # and for eigenvalues: placements times nodes squared

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    @property
    def steps(self) -> int:
        """Each step may need eigenvectors, and looks at all links."""
        return max(16, min(600, 20_000 // self._topology.nodes, 300_000 // (len(self._topology.edges) + 1)))

    def cut_off(self, bad: Collection[int]) -> int:
        """Return how many honest nodes are outside the largest honest part."""
        sizes = [len(part) for part in parts_of(self._topology, set(bad))]
        return sum(sizes) - max(sizes, default=0)

    def measure(self, bad: Collection[int]) -> Harmed:
        """Return the number of honest nodes cut off, and the progress."""
        cut_off = self.cut_off(bad)
        honest = self._topology.nodes - len(bad)
        if cut_off or honest < 2:
            return float(cut_off), 0.0
        rest = self._topology.induced(set(range(self._topology.nodes)) - set(bad))
        return 0.0, -fiedler(laplacian_csr(rest))[0]

    def next(self, bad: Collection[int]) -> int:
        """Return the node that leaves the smallest largest part, or else lowers the connectivity most, by estimate."""
        parts = parts_of(self._topology, set(bad))
        main = max(parts, key=len)
        left = largest_left(self._topology, main)
        node = min(left, key=left.__getitem__)
        return node if left[node] < len(main) - 1 or len(main) < 3 else self._weakest(main)

    def _weakest(self, part: Collection[int]) -> int:
        """Return the node of a connected part without which the Rayleigh quotient of its Fiedler vector is least.

        That quotient bounds the connectivity of what is left from above: without node v the vector x loses the terms
        (x_v - x_j)² of its links, its own square, and its mean.
        """
        import numpy as np

        names = sorted(part)
        laplacian = laplacian_csr(self._topology.induced(names))
        value, x = fiedler(laplacian)
        # The sum over a node's links of (x_v - x_j)², by what the Laplacian does to x and to its squares.
        terms = 2.0 * x * (laplacian @ x) - laplacian @ x**2
        quotient = (value - terms) / np.maximum(1.0 - x**2 - x**2 / (len(names) - 1), 1e-12)
        return names[int(np.argmin(quotient))]

    def worst(self, count: int) -> Placement | None:
        """Try all placements: by parts, and if none cuts anybody off, by eigenvalues."""
        import numpy as np

        nodes = self._topology.nodes
        number = math.comb(nodes, count)
        if number > self.every:
            return None
        placements = list(combinations(range(nodes), count))
        cut_off = [self.cut_off(bad) for bad in placements]
        if max(cut_off) > 0 or nodes - count < 2:
            return placements[cut_off.index(max(cut_off))]
        if number * nodes**2 > self.eigenvalues:
            return None
        values = [self._connectivities(batch) for batch in _batches(iter(placements))]
        return placements[int(np.argmin(np.concatenate(values)))]

    def _connectivities(self, placements: Sequence[Placement]) -> Any:
        """Return the algebraic connectivity of the honest part of each of many placements of as many nodes."""
        import numpy as np

        laplacian = laplacian_csr(self._topology).toarray()
        everybody = set(range(self._topology.nodes))
        honest = np.array([sorted(everybody.difference(bad)) for bad in placements])
        parts = laplacian[honest[:, :, None], honest[:, None, :]]
        # A row sums to the number of links that were lost.
        diagonal = np.arange(honest.shape[1])
        parts[:, diagonal, diagonal] -= parts.sum(axis=2)
        return np.linalg.eigvalsh(parts)[:, 1]

    def starts(self, count: int, generator: Random) -> Iterable[Placement]:
        """Start from nothing, and from the neighbourhoods of sets that so many nodes can enclose."""
        yield ()
        yield from enclosures(self._topology, count, generator)


def _batches(placements: Iterator[Placement]) -> Iterator[list[Placement]]:
    while batch := list(islice(placements, _BATCH)):
        yield batch
