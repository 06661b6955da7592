"""Mixing weights chosen for the graph as a whole: the best constant one, and the fastest of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.analysis.spectra import laplacian_csr
from gossipfl.topology.graph import Topology
from gossipfl.topology.recommend.fastest_mixing import fastest_mixing
from gossipfl.topology.weights import Weights, by_node, metropolis, metropolis_links

MAX_NODES = 1500  # for the best constant weight: all eigenvalues, about a second
MAX_LINKS = 1000  # for the fastest weights: some fifteen Newton steps of as many equations, about ten seconds


def best_constant(topology: Topology) -> Weights:
    """Return the one weight α for all links that mixes fastest without making a node's own weight negative.

    α = min(2 / (λ₂ + λₙ), 1 / max degree), of the Laplacian's eigenvalues: the first minimises the convex
    σ₂ = max(1 - α λ₂, α λₙ - 1), so where the second is less it is the best of those allowed. Raises ``TopologyError``
    for a disconnected graph and above ``MAX_NODES`` nodes.

    Xiao and Boyd, "Fast linear iterations for distributed averaging", Systems and Control Letters 53(1), 2004.
    """
    return by_node(topology, best_constant_links(topology))


def best_constant_links(topology: Topology) -> Any:
    """Return ``best_constant`` by link, float64 (links,), aligned with ``topology.edges``."""
    import numpy as np

    _refuse(topology, topology.nodes, MAX_NODES, "nodes")
    if topology.nodes == 1:
        return np.zeros(0)
    spectrum = np.linalg.eigvalsh(laplacian_csr(topology).toarray())
    alpha = min(2.0 / (spectrum[1] + spectrum[-1]), 1.0 / max(topology.degrees))
    return np.full(len(topology.edges), alpha)


def fastest(topology: Topology) -> Weights:
    """Return the symmetric, non-negative, doubly stochastic weights whose σ₂ is least.

    They depend on the whole graph, so every node must be given its own, and a new link changes all. Raises
    ``TopologyError`` for a disconnected graph and above ``MAX_LINKS`` links.

    Boyd, Diaconis and Xiao, "Fastest mixing Markov chain on a graph", SIAM Review 46(4), 2004; without the condition
    that weights be non-negative it is the fastest distributed linear averaging of Xiao and Boyd. A robust rule takes
    weights as shares of trust, so here they are non-negative.
    """
    return by_node(topology, fastest_links(topology))


def fastest_links(topology: Topology) -> Any:
    """Return ``fastest`` by link, float64 (links,), aligned with ``topology.edges``."""
    import numpy as np

    _refuse(topology, len(topology.edges), MAX_LINKS, "links")
    return np.zeros(0) if topology.nodes == 1 else fastest_mixing(topology)


WEIGHTS: Mapping[str, Callable[[Topology], Weights]] = MappingProxyType(
    {"metropolis": metropolis, "best-constant": best_constant, "fastest": fastest}
)
"""Ways to choose mixing weights, by name."""

LINK_WEIGHTS: Mapping[str, Callable[[Topology], Any]] = MappingProxyType(
    {"metropolis": metropolis_links, "best-constant": best_constant_links, "fastest": fastest_links}
)
"""The same by link, as arrays."""


def _refuse(topology: Topology, size: int, limit: int, what: str) -> None:
    if not topology.is_connected:
        raise TopologyError(f'topology "{topology.name}" is not connected; no weights make it agree; join its parts')
    if size > limit:
        raise TopologyError(
            f'topology "{topology.name}" has {size} {what}; such weights are worked out for at most {limit}; '
            "use Metropolis weights"
        )
