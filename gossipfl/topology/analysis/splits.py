"""The parts that a graph falls into without some of its nodes."""

from __future__ import annotations

from collections.abc import Collection, Set

from gossipfl.topology.graph import Topology


def parts_of(topology: Topology, without: Set[int]) -> list[set[int]]:
    """Return the connected parts of the graph without the nodes ``without``, by smallest node; O(nodes + edges)."""
    parts: list[set[int]] = []
    seen = set(without)
    for start in range(topology.nodes):
        if start in seen:
            continue
        part, waiting = {start}, [start]
        while waiting:
            for other in topology.neighbours(waiting.pop()):
                if other not in part and other not in without:
                    part.add(other)
                    waiting.append(other)
        parts.append(part)
        seen |= part
    return parts


def largest_left(topology: Topology, part: Collection[int]) -> dict[int, int]:
    """Return for each node of a connected ``part`` how large the largest piece is into which its loss splits it.

    One depth-first search for all nodes: a child's subtree hangs on its parent alone if no link from it reaches above
    that parent (Hopcroft and Tarjan, "Algorithm 447", CACM 16(6), 1973). O(nodes + edges).
    """
    members = set(part)
    root = min(members)
    order, parent = _depth_first(topology, members, root)
    place = {node: position for position, node in enumerate(order)}
    reaches, size = dict(place), dict.fromkeys(order, 1)
    hanging = dict.fromkeys(order, 0)  # nodes in the subtrees that a node's loss cuts off
    largest = dict.fromkeys(order, 0)  # and in the largest of them
    for node in reversed(order):
        for other in topology.neighbours(node):
            if other in members and other != parent[node]:
                # Of a child its own reach counts, of any other node its place.
                child = parent[other] == node
                reaches[node] = min(reaches[node], reaches[other] if child else place[other])
        above = parent[node]
        if above is not None:
            size[above] += size[node]
            if reaches[node] >= place[above]:
                hanging[above] += size[node]
                largest[above] = max(largest[above], size[node])
    return {node: max(largest[node], len(members) - 1 - hanging[node]) for node in order}


def _depth_first(topology: Topology, members: Set[int], root: int) -> tuple[list[int], dict[int, int | None]]:
    order: list[int] = []
    parent: dict[int, int | None] = {}
    waiting: list[tuple[int, int | None]] = [(root, None)]
    while waiting:
        node, above = waiting.pop()
        if node in parent:
            continue
        parent[node] = above
        order.append(node)
        waiting += [(other, node) for other in reversed(topology.neighbours(node)) if other in members]
    return order, parent
