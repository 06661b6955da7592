"""Mixing weights: the doubly stochastic matrix of one gossip step, by node, by link or as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gossipfl.topology.graph import Topology

if TYPE_CHECKING:
    from scipy.sparse import csr_array


Weights = tuple[tuple[float, ...], ...]
"""Each node's weights of its neighbours, aligned with ``Topology.neighbours``; what is left to 1 is its own."""


def metropolis(topology: Topology) -> Weights:
    """Return each node's mixing weights, aligned with ``topology.neighbours(i)``.

    W_ij = 1 / (1 + max(deg_i, deg_j)) for neighbours; the own weight W_ii = 1 - sum_j W_ij is at least
    1 / (1 + deg_i). W is symmetric, so its rows and columns both sum to one, and a node needs only its neighbours'
    degrees.

    Xiao, Boyd and Kim, "Distributed average consensus with least-mean-square deviation", JPDC 67(1), 2007.
    """
    degrees = topology.degrees
    return tuple(
        tuple(1.0 / (1 + max(degrees[node], degrees[other])) for other in topology.neighbours(node))
        for node in range(topology.nodes)
    )


def metropolis_links(topology: Topology) -> Any:
    """Return the Metropolis weight of each link, float64 (edges,), aligned with ``topology.edges``."""
    import numpy as np

    degrees = np.asarray(topology.degrees, dtype=np.int64)
    edges = np.asarray(topology.edges, dtype=np.int64).reshape(-1, 2)
    return 1.0 / (1 + np.maximum(degrees[edges[:, 0]], degrees[edges[:, 1]]))


def by_node(topology: Topology, links: Sequence[float]) -> Weights:
    """Return one weight per link, aligned with ``topology.edges``, as weights of each node's neighbours."""
    around: list[dict[int, float]] = [{} for _ in range(topology.nodes)]
    for (i, j), weight in zip(topology.edges, links, strict=True):
        around[i][j] = around[j][i] = float(weight)
    return tuple(tuple(around[node][other] for other in topology.neighbours(node)) for node in range(topology.nodes))


def mixing_csr(topology: Topology, links: Any = None) -> csr_array:
    """Return the mixing matrix W as a float64 CSR array of shape (nodes, nodes), diagonal included.

    ``links`` (edges,) are the symmetric weights W_ij = W_ji of the links, Metropolis weights by default. One gossip
    step of a network is ``X <- W @ X`` for X of shape (nodes, d). Columns ascend within each row.
    """
    import numpy as np
    from scipy.sparse import csr_array

    edges = np.asarray(topology.edges, dtype=np.int64).reshape(-1, 2)
    rows, columns = edges[:, 0], edges[:, 1]
    weights = metropolis_links(topology) if links is None else np.asarray(links, dtype=np.float64)
    off_diagonal = np.bincount(rows, weights, topology.nodes) + np.bincount(columns, weights, topology.nodes)
    nodes = np.arange(topology.nodes)
    matrix = csr_array(
        (
            np.concatenate([weights, weights, 1.0 - off_diagonal]),
            (np.concatenate([rows, columns, nodes]), np.concatenate([columns, rows, nodes])),
        ),
        shape=(topology.nodes, topology.nodes),
    )
    matrix.sort_indices()
    return matrix
