"""Where to draw the nodes of a topology in a figure."""

from __future__ import annotations

import math

from gossipfl.topology.graph import Position, Topology

SPRING_NODES = 300  # beyond, a force layout takes seconds and shows no more than a circle


def layout(topology: Topology, seed: int = 0) -> dict[int, Position]:
    """Return one point (x, y) per node within the unit square, y upwards; same seed, same layout.

    Positions of the topology itself keep their proportions. Rings and graphs of more than ``SPRING_NODES``
    nodes are drawn as a circle, others by forces (Fruchterman and Reingold, "Graph drawing by force-directed
    placement", Softw. Pract. Exper. 21(11), 1991).
    """
    if topology.positions is not None:
        return _fitted(dict(enumerate(topology.positions)))
    ring = topology.is_connected and set(topology.degrees) == {2}
    if ring or topology.nodes > SPRING_NODES:
        return _fitted(dict(enumerate(_circle(topology, ring))))
    import networkx as nx

    # NumPy's legacy generator, which networkx draws from, takes seeds of 32 bits.
    points = nx.spring_layout(topology.to_networkx(), seed=seed % 2**32)
    return _fitted({node: (float(x), float(y)) for node, (x, y) in points.items()})


def _circle(topology: Topology, ring: bool) -> list[Position]:
    order = _walk(topology) if ring else list(range(topology.nodes))
    points: list[Position] = [(0.0, 0.0)] * topology.nodes
    for step, node in enumerate(order):
        angle = math.tau * step / topology.nodes
        points[node] = (math.sin(angle), math.cos(angle))  # clockwise from the top
    return points


def _walk(topology: Topology) -> list[int]:
    """Return a ring's nodes in the order in which its edges join them, whatever their numbers."""
    order = [0, topology.neighbours(0)[0]]
    while len(order) < topology.nodes:
        first, second = topology.neighbours(order[-1])
        order.append(second if first == order[-2] else first)
    return order


def _fitted(points: dict[int, Position]) -> dict[int, Position]:
    """Scale and centre ``points`` to fill the unit square, keeping proportions."""
    left, right = min(x for x, _ in points.values()), max(x for x, _ in points.values())
    low, high = min(y for _, y in points.values()), max(y for _, y in points.values())
    extent = max(right - left, high - low) or 1.0
    return {
        node: (0.5 + (x - (left + right) / 2) / extent, 0.5 + (y - (low + high) / 2) / extent)
        for node, (x, y) in points.items()
    }
