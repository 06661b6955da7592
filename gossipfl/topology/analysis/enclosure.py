"""Sets of nodes with few neighbours: what a few nodes can cut off from the rest."""

from __future__ import annotations

from random import Random

from gossipfl.topology.graph import Topology

KERNELS = 64  # nodes from which sets are grown, in graphs that have more: those of least degree
KEPT = 3


def enclosures(topology: Topology, count: int, generator: Random) -> list[tuple[int, ...]]:
    """Return up to ``KEPT`` different sets of at most ``count`` nodes that enclose as many others as can be found.

    From each of some nodes a set grows by the neighbour that brings the fewest new neighbours with it; whenever it has
    at most ``count`` neighbours, these enclose it. ``generator`` decides between nodes of equal degree.
    """
    order = sorted(generator.sample(range(topology.nodes), topology.nodes), key=topology.degrees.__getitem__)
    found: dict[tuple[int, ...], int] = {}
    for kernel in order[:KERNELS]:
        enclosed, border = _grown(topology, kernel, count)
        if border is not None:
            found[border] = max(enclosed, found.get(border, 0))
    return sorted(found, key=lambda border: (-found[border], border))[:KEPT]


def _grown(topology: Topology, kernel: int, count: int) -> tuple[int, tuple[int, ...] | None]:
    inside, border = {kernel}, set(topology.neighbours(kernel))
    best: tuple[int, tuple[int, ...] | None] = (0, None)
    # A border may widen on the way to a narrower one, but not for ever, and half the nodes are enough.
    while border and len(border) <= 2 * count + 4 and 2 * len(inside) <= topology.nodes:
        cut_off = min(len(inside), topology.nodes - len(inside) - len(border))
        if len(border) <= count and cut_off > best[0]:
            best = (cut_off, tuple(sorted(border)))
        node = min(border, key=lambda other: (len(set(topology.neighbours(other)) - inside - border), other))
        inside.add(node)
        border = (border | set(topology.neighbours(node))) - inside
    return best
