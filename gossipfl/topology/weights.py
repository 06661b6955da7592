"""Metropolis-Hastings mixing weights: the doubly stochastic matrix of one gossip step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gossipfl.topology.graph import Topology

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def metropolis(topology: Topology) -> tuple[tuple[float, ...], ...]:
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


def mixing_csr(topology: Topology) -> csr_array:
    """Return the Metropolis matrix W as a float64 CSR array of shape (nodes, nodes), diagonal included.

    One gossip step of a network is ``X <- W @ X`` for X of shape (nodes, d). Columns ascend within each row.
    """
    import numpy as np
    from scipy.sparse import csr_array

    degrees = np.asarray(topology.degrees, dtype=np.int64)
    edges = np.asarray(topology.edges, dtype=np.int64).reshape(-1, 2)
    rows, columns = edges[:, 0], edges[:, 1]
    weights = 1.0 / (1 + np.maximum(degrees[rows], degrees[columns]))
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
