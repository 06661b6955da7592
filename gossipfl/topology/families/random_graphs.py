"""Random graph families, drawn from an explicit seed; a draw may be disconnected, the caller redraws."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import cast

from gossipfl.errors import TopologyError
from gossipfl.topology.graph import Edge
from gossipfl.topology.limits import check_edges
from gossipfl.topology.options import Options


def random_regular(nodes: int, options: Options, seed: int) -> Iterable[Edge]:
    """Draw a graph whose nodes all have ``degree`` neighbours, close to uniformly among such graphs.

    Steger and Wormald, "Generating random regular graphs quickly", Comb. Probab. Comput. 8(4), 1999.
    """
    import networkx as nx

    degree = options["degree"]
    _check_degree(nodes, degree)
    check_edges("random-regular", nodes * degree / 2)
    if 2 * degree <= nodes:
        return cast("Iterable[Edge]", nx.random_regular_graph(degree, nodes, seed=seed).edges())
    # Pairing stubs at random rarely succeeds on dense graphs; the complement is sparse and just as uniform.
    sparse = nx.random_regular_graph(nodes - 1 - degree, nodes, seed=seed)
    return cast("Iterable[Edge]", nx.complement(sparse).edges())


def _check_degree(nodes: int, degree: int) -> None:
    where = f'topology "random-regular": degree {degree} with {nodes} nodes is impossible'
    if degree >= nodes:
        raise TopologyError(f"{where}; give a degree below {nodes}")
    if degree < 1:
        raise TopologyError(f"{where}; give a degree of at least {2 if nodes > 2 else 1}")
    if nodes * degree % 2:
        raise TopologyError(f"{where} (nodes x degree is odd); give an even degree or an even number of nodes")
    if degree == 1 and nodes > 2:
        raise TopologyError(f"{where} (separate pairs are not connected); give a degree of at least 2")


def erdos_renyi(nodes: int, options: Options, seed: int) -> Iterable[Edge]:
    """Draw G(n, p); the default p = min(1, 2 ln n / n) is twice the threshold of connectedness.

    Batagelj and Brandes, "Efficient generation of large random networks", Phys. Rev. E 71, 2005.
    """
    import networkx as nx

    p = options["p"]
    if p is None:
        p = min(1.0, 2 * math.log(nodes) / nodes)
    if not 0 < p <= 1:
        raise TopologyError(f'topology "erdos-renyi": p is {p:g}; give a probability above 0 and at most 1')
    check_edges("erdos-renyi", p * nodes * (nodes - 1) / 2)
    return cast("Iterable[Edge]", nx.fast_gnp_random_graph(nodes, p, seed=seed).edges())


def small_world(nodes: int, options: Options, seed: int) -> Iterable[Edge]:
    """Draw a ring lattice of ``k`` neighbours whose edges are rewired with probability ``rewire``.

    Watts and Strogatz, "Collective dynamics of small-world networks", Nature 393, 1998.
    """
    import networkx as nx

    k, rewire = options["k"], options["rewire"]
    if k < 2 or k % 2 or k >= nodes:
        raise TopologyError(
            f'topology "small-world": k is {k} with {nodes} nodes; give an even k from 2 to below {nodes}'
        )
    if not 0 <= rewire <= 1:
        raise TopologyError(f'topology "small-world": rewire is {rewire:g}; give a probability from 0 to 1')
    check_edges("small-world", nodes * k / 2)
    return cast("Iterable[Edge]", nx.watts_strogatz_graph(nodes, k, rewire, seed=seed).edges())


def barabasi_albert(nodes: int, options: Options, seed: int) -> Iterable[Edge]:
    """Grow a graph node by node, each joined to ``m`` earlier ones in proportion to their degrees.

    Barabási and Albert, "Emergence of scaling in random networks", Science 286, 1999.
    """
    import networkx as nx

    m = options["m"]
    if not 1 <= m < nodes:
        raise TopologyError(f'topology "barabasi-albert": m is {m} with {nodes} nodes; give 1 to {nodes - 1}')
    check_edges("barabasi-albert", m * (nodes - m))
    return cast("Iterable[Edge]", nx.barabasi_albert_graph(nodes, m, seed=seed).edges())


def equitopo(nodes: int, options: Options, seed: int) -> Iterable[Edge]:
    """Join node i to i ± a (mod n) for ``m`` hops a drawn at random: the edges of U-EquiStatic, at most 2m to a node.

    Song et al., "Communication-efficient topologies for decentralized learning with O(1) consensus rate", NeurIPS
    2022. Their own weights count a hop as often as it was drawn; on this graph, as on any other, they are Metropolis.
    """
    m = hops_wanted("equitopo", nodes, options["m"])
    return ((i, (i + hop) % nodes) for hop in hops_drawn(nodes, m, seed) for i in range(nodes))


def hops_wanted(name: str, nodes: int, m: int | None) -> int:
    """Return the number of hops to draw: ``m``, or by default ceil(log2 n), as many as an exponential graph has."""
    if m is None:
        return (nodes - 1).bit_length()
    if m < 1:
        raise TopologyError(f'topology "{name}": m is {m}; give at least 1 hop')
    check_edges(name, m * nodes)
    return m


def hops_drawn(nodes: int, m: int, seed: int) -> tuple[int, ...]:
    """Draw ``m`` hops around a circle of ``nodes``, uniformly from 1 .. n - 1 with replacement, ascending."""
    return tuple(sorted(random.Random(seed).choices(range(1, nodes), k=m)))
