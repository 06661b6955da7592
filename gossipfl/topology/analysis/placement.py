"""Where Byzantine nodes sit: by chance, by what a graph's shape suggests, or where they do most harm."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from gossipfl.errors import TopologyError
from gossipfl.topology.analysis.harm import Harm, Harmed, Majority, Placement, Split
from gossipfl.topology.analysis.splits import largest_left, parts_of
from gossipfl.topology.graph import Topology

PIVOT_NODES = 400  # up to here betweenness is exact; beyond, estimated from so many sources
DRAWS = 200  # of a placement that leaves the honest nodes connected and in the majority


@dataclass(frozen=True, slots=True)
class Worst:
    """The worst placement found, ascending, what it harms, and whether no other is worse or only none was found."""

    nodes: Placement
    harmed: Harmed
    exact: bool


def check_count(topology: Topology, count: int) -> None:
    """Raise ``TopologyError`` where ``count`` Byzantine nodes leave no honest one."""
    if not 0 <= count < topology.nodes:
        raise TopologyError(
            f'topology "{topology.name}": {count} Byzantine among {topology.nodes} nodes; '
            f"give 0 to {topology.nodes - 1}"
        )


def worst_placement(topology: Topology, count: int, harm: Harm, seed: int = 0) -> Worst:
    """Return where ``count`` Byzantine nodes do most ``harm``.

    All placements are tried where they are few. Elsewhere nodes are added one by one, each where it harms most, and
    then moved one at a time as long as that makes it worse, from several starts; ``harm.steps`` bounds the work.
    """
    check_count(topology, count)
    exact = harm.worst(count)
    if exact is not None:
        return Worst(exact, harm.measure(exact), exact=True)
    generator = Random(seed)
    steps = harm.steps
    best: tuple[Harmed, Placement] | None = None
    for start in harm.starts(count, generator):
        if best is not None and steps <= 0:
            break
        bad, steps = _filled(topology, harm, start, count, steps)
        bad, steps = _moved(harm, bad, steps)
        found = (harm.measure(bad), tuple(sorted(bad)))
        if best is None or found[0] > best[0]:
            best = found
    assert best is not None
    return Worst(best[1], best[0], exact=False)


def _filled(topology: Topology, harm: Harm, start: Placement, count: int, steps: int) -> tuple[list[int], int]:
    bad = list(start)
    while len(bad) < count and steps > 0:
        bad.append(harm.next(bad))
        steps -= 1
    hubs = sorted(set(range(topology.nodes)) - set(bad), key=lambda node: (-topology.degrees[node], node))
    return bad + hubs[: count - len(bad)], steps


def _moved(harm: Harm, bad: list[int], steps: int) -> tuple[list[int], int]:
    harmed = harm.measure(bad)
    stuck = 0  # moves in a row that did not help; after one for each node none will
    while stuck < len(bad) and steps > 0:
        steps -= 1
        rest = bad[1:]
        moved = [*rest, harm.next(rest)]
        worse = harm.measure(moved)
        stuck, harmed, bad = (0, worse, moved) if worse > harmed else (stuck + 1, harmed, [*rest, bad[0]])
    return bad, steps


def at_random(topology: Topology, count: int, seed: int) -> Placement:
    """Return nodes drawn without replacement."""
    check_count(topology, count)
    return tuple(sorted(Random(seed).sample(range(topology.nodes), count)))


def by_degree(topology: Topology, count: int, seed: int) -> Placement:
    """Return the nodes with most neighbours; chance decides between equals."""
    check_count(topology, count)
    return _first(topology, count, seed, dict(enumerate(map(float, topology.degrees))))


def by_betweenness(topology: Topology, count: int, seed: int) -> Placement:
    """Return the nodes on most shortest paths; chance decides between equals.

    Brandes, "A faster algorithm for betweenness centrality", J. Math. Sociol. 25(2), 2001.
    """
    import networkx as nx

    check_count(topology, count)
    pivots = None if topology.nodes <= PIVOT_NODES else PIVOT_NODES
    centrality = nx.betweenness_centrality(topology.to_networkx(), k=pivots, seed=seed % 2**32)
    # Rounding would otherwise decide between nodes that symmetry makes equal.
    return _first(topology, count, seed, {node: round(value, 9) for node, value in centrality.items()})


def spread_out(topology: Topology, count: int, seed: int) -> Placement:
    """Return nodes far apart: from a random first, each next one is farthest, in hops, from all before.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", Theor. Comput. Sci. 38, 1985.
    """
    check_count(topology, count)
    generator = Random(seed)
    order = generator.sample(range(topology.nodes), topology.nodes)
    chosen: list[int] = []
    nearest = dict.fromkeys(order, topology.nodes)
    while len(chosen) < count:
        # A chosen node is at distance 0, so it never comes first again.
        node = max(order, key=nearest.__getitem__)
        chosen.append(node)
        for other, hops in _hops(topology, node).items():
            nearest[other] = min(nearest[other], hops)
    return tuple(sorted(chosen))


def clustered(topology: Topology, count: int, seed: int) -> Placement:
    """Return the nodes nearest, in hops, to a random one, itself among them; chance decides between equals."""
    check_count(topology, count)
    order = Random(seed).sample(range(topology.nodes), topology.nodes)
    hops = _hops(topology, order[0])
    return tuple(sorted(sorted(order, key=lambda node: hops.get(node, topology.nodes))[:count]))


def at_the_cut(topology: Topology, count: int, seed: int) -> Placement:
    """Return nodes that, silent, cut off most honest nodes, or else leave the honest part least connected."""
    return worst_placement(topology, count, Split(topology), seed).nodes


def against_majorities(topology: Topology, count: int, seed: int) -> Placement:
    """Return nodes that are half or more of the neighbours of as many honest nodes as possible."""
    return worst_placement(topology, count, Majority(topology), seed).nodes


def leaving_connected(topology: Topology, count: int, seed: int) -> Placement:
    """Return random nodes without which the honest part is connected, with an honest majority around each honest node.

    Of ``DRAWS`` draws the first that is both, so that it is uniform among those. Where none is, nodes are drawn one by
    one among those whose loss keeps the honest part connected, each time one that outvotes the fewest: majorities as
    far as possible. Raises ``TopologyError`` for a disconnected graph.
    """
    check_count(topology, count)
    if not topology.is_connected:
        raise TopologyError(
            f'topology "{topology.name}" is not connected, so its honest part cannot be; join its parts'
        )
    generator = Random(seed)
    majority = Majority(topology)
    for _ in range(DRAWS):
        bad = generator.sample(range(topology.nodes), count)
        if len(parts_of(topology, set(bad))) == 1 and not majority.outvoted(bad):
            return tuple(sorted(bad))
    grown: list[int] = []
    while len(grown) < count:
        honest = [node for node in generator.sample(range(topology.nodes), topology.nodes) if node not in grown]
        left = largest_left(topology, honest)
        gained = majority.gained(grown)
        # A leaf of a spanning tree can always go, so there is a node whose loss leaves all others connected.
        grown.append(min((node for node in honest if left[node] == len(honest) - 1), key=gained.__getitem__))
    return tuple(sorted(grown))


PLACEMENTS: Mapping[str, Callable[[Topology, int, int], Placement]] = MappingProxyType(
    {
        "random": at_random,
        "degree": by_degree,
        "betweenness": by_betweenness,
        "spread": spread_out,
        "clustered": clustered,
        "cut": at_the_cut,
        "majority": against_majorities,
        "connected": leaving_connected,
    }
)
"""Placements by name: from the topology, the number of Byzantine nodes and a seed to these nodes, ascending."""


def _first(topology: Topology, count: int, seed: int, scores: Mapping[int, float]) -> Placement:
    order = Random(seed).sample(range(topology.nodes), topology.nodes)
    return tuple(sorted(sorted(order, key=lambda node: -scores[node])[:count]))


def _hops(topology: Topology, start: int) -> dict[int, int]:
    hops, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for other in topology.neighbours(node):
            if other not in hops:
                hops[other] = hops[node] + 1
                waiting.append(other)
    return hops
