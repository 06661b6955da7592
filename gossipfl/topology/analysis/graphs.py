"""What a graph promises to gossip: size, reach, mixing rate, weak places."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from gossipfl.topology.analysis.harm import Majority, Split
from gossipfl.topology.analysis.mixing import mixing_time
from gossipfl.topology.analysis.placement import check_count, worst_placement
from gossipfl.topology.analysis.robustness import robustness
from gossipfl.topology.analysis.spectra import adjacency_csr, algebraic_connectivity, effective_resistance, spectral_gap
from gossipfl.topology.analysis.traffic import traffic
from gossipfl.topology.graph import Edge, Topology

FLOW_NODES = 200  # up to here vertex connectivity, a maximum flow for each of many pairs, takes about a second
SHARES = (1.0 / math.e, 0.01)  # of the disagreement that mixing times are told for

Tolerance = Callable[[int], int | None]
"""How many Byzantine neighbours a rule's own condition allows a node with so many neighbours; None: it has none."""


def analyse(
    topology: Topology,
    byzantine: int = 0,
    *,
    tolerances: Mapping[str, Tolerance] | None = None,
    model_bytes: int | None = None,
) -> dict[str, Any]:
    """Return a plain, JSON-ready description of ``topology``; numbers that cannot be known are None.

    With ``byzantine`` = F > 0 the key ``byzantine`` tells what F nodes in the worst places could do. ``tolerances`` are
    those of rules by name, and ``model_bytes`` is the size of one update, to tell the traffic of a round. Raises
    ``TopologyError`` where F leaves no honest node.
    """
    check_count(topology, byzantine)
    report: dict[str, Any] = {
        "name": topology.name,
        "source": topology.source or None,
        "repairs": list(topology.repairs),
        "nodes": topology.nodes,
        "edges": len(topology.edges),
        "parts": len(topology.components()),
        "degree": degree_statistics(topology),
        "diameter": diameter(topology),
    }
    gap = spectral_gap(topology)
    report |= {
        "spectral_gap": gap,
        "sigma_2": 1.0 - gap,
        "mixing": [asdict(mixing_time(topology, share, 1.0 - gap)) for share in SHARES],
        "algebraic_connectivity": algebraic_connectivity(topology),
        "effective_resistance": effective_resistance(topology),
        "articulation_points": list(articulation_points(topology)),
        "bridges": [list(edge) for edge in bridges(topology)],
        "robustness": asdict(robustness(topology)),
        "tolerance": {name: tolerance(topology, most) for name, most in (tolerances or {}).items()},
        "byzantine": None if byzantine == 0 else dict(worst_case(topology, byzantine)),
        "traffic": None if model_bytes is None else asdict(traffic(topology, model_bytes)),
    }
    return report


def tolerance(topology: Topology, most: Tolerance) -> dict[str, Any] | None:
    """Return how many Byzantine neighbours a rule allows: ``per_node``, their ``min``, and the nodes ``without`` any.

    A rule may allow less than none: below some number of neighbours it cannot work at all. None where the rule has no
    condition.
    """
    allowed = {degree: most(degree) for degree in set(topology.degrees)}
    per_node = [allowed[degree] for degree in topology.degrees]
    known = [number for number in per_node if number is not None]
    if len(known) < len(per_node):
        return None
    return {
        "min": min(known),
        "without": [node for node, number in enumerate(known) if number < 1],
        "per_node": per_node,
    }


def degree_statistics(topology: Topology) -> dict[str, float | int]:
    """Return ``min``, ``mean``, ``median`` and ``max`` of the number of neighbours."""
    degrees = topology.degrees
    return {
        "min": min(degrees),
        "mean": statistics.fmean(degrees),
        "median": statistics.median(degrees),
        "max": max(degrees),
    }


def diameter(topology: Topology) -> int | None:
    """Return the number of hops between the two nodes farthest apart; None for a disconnected graph.

    Exact: one breadth-first search per node, O(nodes x (nodes + edges)) time, O(nodes + edges) memory.
    """
    from scipy.sparse.csgraph import breadth_first_order

    if not topology.is_connected:
        return None
    adjacency = adjacency_csr(topology)
    longest = 0
    for start in range(topology.nodes):
        order, before = breadth_first_order(adjacency, start, directed=True)
        # The node found last is a farthest one: its depth is the start's eccentricity.
        node, depth = int(order[-1]), 0
        while node != start:
            node, depth = int(before[node]), depth + 1
        longest = max(longest, depth)
    return longest


def articulation_points(topology: Topology) -> tuple[int, ...]:
    """Return the nodes, ascending, whose loss alone disconnects the graph."""
    import networkx as nx

    return tuple(sorted(nx.articulation_points(topology.to_networkx())))


def bridges(topology: Topology) -> tuple[Edge, ...]:
    """Return the edges (i, j), i < j, ascending, whose loss alone disconnects the graph."""
    import networkx as nx

    return tuple(sorted((min(edge), max(edge)) for edge in nx.bridges(topology.to_networkx())))


def vertex_connectivity(topology: Topology) -> int | None:
    """Return the least number of nodes whose loss disconnects the graph; None above ``FLOW_NODES`` nodes.

    By convention it is nodes - 1 for a complete graph.
    """
    import networkx as nx

    if topology.nodes > FLOW_NODES:
        return None
    return int(nx.node_connectivity(topology.to_networkx()))


def worst_case(topology: Topology, byzantine: int) -> Mapping[str, Any]:
    """Return what F = ``byzantine`` nodes could do if an adversary chose their places.

    ``outvoted``: nodes with at most 2F neighbours, half or more of whom could be Byzantine. ``surrounded``: nodes
    with at most F neighbours, all of whom could be. ``honest_part_connected``: whether the honest nodes stay
    connected wherever the F sit, that is, whether vertex connectivity exceeds F; None where that is too
    costly to know. ``majority`` and ``cut``: the worst single placement against majorities, with those it outvotes, and
    against connectivity, with the number it cuts off; ``exact`` where no placement is worse.
    """
    degrees = topology.degrees
    connectivity = vertex_connectivity(topology)
    majority, split = Majority(topology), Split(topology)
    outvoting, cutting = worst_placement(topology, byzantine, majority), worst_placement(topology, byzantine, split)
    return MappingProxyType(
        {
            "count": byzantine,
            "share": byzantine / topology.nodes,
            "vertex_connectivity": connectivity,
            "honest_part_connected": _honest_part_connected(topology, byzantine, connectivity),
            "outvoted": [node for node, degree in enumerate(degrees) if degree <= 2 * byzantine],
            "surrounded": [node for node, degree in enumerate(degrees) if degree <= byzantine],
            "majority": {
                "nodes": list(outvoting.nodes),
                "outvoted": list(majority.outvoted(outvoting.nodes)),
                "exact": outvoting.exact,
            },
            "cut": {
                "nodes": list(cutting.nodes),
                "cut_off": split.cut_off(cutting.nodes),
                "exact": cutting.exact,
            },
        }
    )


def _honest_part_connected(topology: Topology, byzantine: int, connectivity: int | None) -> bool | None:
    least = min(topology.degrees)
    if byzantine >= topology.nodes - 1 or least == topology.nodes - 1:
        return True  # one honest node, or a complete graph, of which every part is complete
    if least <= byzantine:
        return False  # the neighbours of the least connected node cut it off
    return None if connectivity is None else connectivity > byzantine
