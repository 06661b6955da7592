"""Graph families without chance: rings, lattices, trees, cliques. The same number of nodes gives the same graph."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gossipfl.errors import TopologyError
from gossipfl.topology.graph import Edge
from gossipfl.topology.limits import check_edges
from gossipfl.topology.options import Options


def ring(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    """Join each node to the next, and the last to the first."""
    return ((i, (i + 1) % nodes) for i in range(nodes))


def line(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    """Join each node to the next."""
    return ((i, i + 1) for i in range(nodes - 1))


def complete(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    """Join all pairs."""
    check_edges("complete", nodes * (nodes - 1) / 2)
    return _clique(0, nodes)


def _clique(first: int, last: int) -> Iterable[Edge]:
    return ((i, j) for i in range(first, last) for j in range(i + 1, last))


def star(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    """Join node 0 to all others."""
    return ((0, leaf) for leaf in range(1, nodes))


def tree(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    """Join each node to ``branching`` children, level by level."""
    branching = options["branching"]
    if branching < 1:
        raise TopologyError(f'topology "tree": branching is {branching}; give at least 1')
    return ((child, (child - 1) // branching) for child in range(1, nodes))


def grid(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    """Join each node of a rectangle to those beside, above and below it."""
    columns = nodes // _rows("grid", nodes, options["rows"])
    for node in range(nodes):
        if (node + 1) % columns:
            yield node, node + 1
        if node + columns < nodes:
            yield node, node + columns


def torus(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    """Join as ``grid`` does, and opposite borders; on a side of two nodes the wrap-around edge is the direct one."""
    columns = nodes // _rows("torus", nodes, options["rows"])
    for node in range(nodes):
        row, column = divmod(node, columns)
        yield node, row * columns + (column + 1) % columns
        yield node, (node + columns) % nodes


def _rows(family: str, nodes: int, rows: int | None) -> int:
    """Return the rows of a rows x columns lattice: the given number, or the one nearest to a square."""
    if rows is not None:
        if rows < 2 or nodes % rows or nodes // rows < 2:
            raise TopologyError(
                f'topology "{family}": {nodes} nodes do not fill {rows} rows of at least 2; '
                "give a divisor of the number of nodes, or leave rows out"
            )
        return rows
    best = _square_divisor(nodes)
    if best < 2:
        # Every even number from 4 on is a product, so a neighbour always works.
        near = [n for n in range(max(4, nodes - 2), nodes + 3) if _square_divisor(n) > 1]
        raise TopologyError(
            f'topology "{family}": {nodes} nodes cannot be laid out in rows (the number is prime); '
            f"nearby numbers that can: {', '.join(map(str, near))}"
        )
    return best


def _square_divisor(nodes: int) -> int:
    """Return the largest divisor of ``nodes`` that is at most its square root."""
    return next(rows for rows in range(math.isqrt(nodes), 0, -1) if nodes % rows == 0)


def hypercube(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    """Join nodes whose numbers differ in one bit."""
    if nodes & (nodes - 1):
        below = 1 << (nodes.bit_length() - 1)
        raise TopologyError(
            f'topology "hypercube": {nodes} nodes are no power of two; give {below} or {2 * below} nodes'
        )
    return ((i, i ^ (1 << bit)) for i in range(nodes) for bit in range(nodes.bit_length() - 1))


def exponential(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    """Join node i to i ± 2^k (mod n): the static exponential graph, with each link used both ways.

    Ying et al., "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021.
    """
    hops = [1 << power for power in range((nodes - 1).bit_length())]
    return ((i, (i + hop) % nodes) for i in range(nodes) for hop in hops)


def dumbbell(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    """Join two cliques of half the nodes each by ``bridges``, no two of which share a node."""
    left, bridges = (nodes + 1) // 2, options["bridges"]
    if not 1 <= bridges <= nodes - left:
        raise TopologyError(
            f'topology "dumbbell": {bridges} bridges between halves of {left} and {nodes - left} nodes; '
            f"give 1 to {nodes - left}"
        )
    check_edges("dumbbell", left * (left - 1))
    yield from _clique(0, left)
    yield from _clique(left, nodes)
    yield from ((i, left + i) for i in range(bridges))


def two_castles(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    """Join two cliques of n/2 nodes: node i of one to the ``cross`` nodes i, i + 1, .. (mod n/2) of the other.

    Every node has n/2 - 1 + ``cross`` neighbours, and 2·``cross`` is an eigenvalue of the Laplacian: the network is
    as hard to split as is asked. Called "two worlds" by Gaucher, Dieuleveut and Hendrikx, "Unified breakdown
    analysis for Byzantine robust gossip", ICML 2025.
    """
    half, cross = nodes // 2, options["cross"]
    if nodes % 2:
        raise TopologyError(
            f'topology "two-castles": {nodes} nodes make no two halves; give {nodes - 1} or {nodes + 1} nodes'
        )
    if not 1 <= cross <= half:
        raise TopologyError(
            f'topology "two-castles": cross is {cross} with {half} nodes in each castle; give 1 to {half}'
        )
    check_edges("two-castles", half * (half - 1 + cross))
    yield from _clique(0, half)
    yield from _clique(half, nodes)
    yield from ((i, half + (i + step) % half) for i in range(half) for step in range(cross))
