"""Eigenvalues that tell how fast a graph mixes, dense for small graphs and by Lanczos iteration for large ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gossipfl.topology.graph import Topology
from gossipfl.topology.weights import mixing_csr

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DENSE_NODES = 1500  # up to here a dense solver is exact and takes about a second
VECTOR_NODES = 300  # the same for eigenvectors, which are asked for over and over
_START_SEED = 20  # Lanczos needs a start vector without symmetry; a fixed one keeps results the same
_KRYLOV_VECTORS = 48
_RESTARTS = 40


def spectral_gap(topology: Topology) -> float:
    """Return 1 - max(|λ₂|, |λₙ|) of the Metropolis matrix W: the rate at which gossip forgets differences.

    One step of ``X <- W X`` shrinks the distance to consensus by σ₂ = 1 - gap at worst. It is 1 for a complete
    graph and 0 for a disconnected one.
    """
    return mixing_gap(topology, mixing_csr(topology))


def mixing_gap(topology: Topology, mixing: csr_array) -> float:
    """Return the spectral gap of any symmetric, doubly stochastic ``mixing`` matrix (nodes, nodes) on the graph."""
    if not topology.is_connected:
        return 0.0
    if topology.nodes == 1:
        return 1.0
    import numpy as np
    from scipy.sparse import eye_array

    if topology.nodes <= DENSE_NODES:
        spectrum = np.linalg.eigvalsh(mixing.toarray())
        return float(1.0 - max(abs(spectrum[-2]), abs(spectrum[0])))
    # I - W is a weighted Laplacian with eigenvalues 0 = μ₁ < μ₂ <= ... <= μₙ, and the gap is min(μ₂, 2 - μₙ).
    laplacian = (eye_array(topology.nodes, format="csr") - mixing).tocsr()
    smallest, _ = fiedler(laplacian)
    # By Gershgorin 2 - μₙ >= 2 min W_ii; where μ₂ is below that, as on slowly mixing graphs, μₙ is no matter.
    if smallest <= 2.0 * mixing.diagonal().min():
        return smallest
    return min(smallest, 2.0 - _largest(laplacian))


def algebraic_connectivity(topology: Topology) -> float:
    """Return the second smallest eigenvalue of the Laplacian L = D - A; 0 for a disconnected graph.

    Fiedler, "Algebraic connectivity of graphs", Czechoslovak Math. J. 23(2), 1973.
    """
    if not topology.is_connected or topology.nodes == 1:
        return 0.0
    import numpy as np

    laplacian = laplacian_csr(topology)
    if topology.nodes <= DENSE_NODES:
        return float(np.linalg.eigvalsh(laplacian.toarray())[1])
    return fiedler(laplacian)[0]


def effective_resistance(topology: Topology) -> float | None:
    """Return the Kirchhoff index n Σ 1/μᵢ over the Laplacian's eigenvalues μ₂ ... μₙ; None where it is unknown.

    It is the resistance between two nodes, summed over all pairs, of a network of unit resistors; the less, the
    more ways round a lost link. Unknown for a disconnected graph and above ``DENSE_NODES`` nodes.

    Klein and Randić, "Resistance distance", J. Math. Chem. 12, 1993.
    """
    if not topology.is_connected or topology.nodes > DENSE_NODES:
        return None
    import numpy as np

    spectrum = np.linalg.eigvalsh(laplacian_csr(topology).toarray())
    return float(topology.nodes * np.sum(1.0 / spectrum[1:]))


def adjacency_csr(topology: Topology) -> csr_array:
    """Return the adjacency matrix as a float64 CSR array of shape (nodes, nodes)."""
    import numpy as np
    from scipy.sparse import csr_array

    edges = np.asarray(topology.edges, dtype=np.int64).reshape(-1, 2)
    rows = np.concatenate([edges[:, 0], edges[:, 1]])
    columns = np.concatenate([edges[:, 1], edges[:, 0]])
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(topology.nodes, topology.nodes))


def laplacian_csr(topology: Topology) -> csr_array:
    """Return the Laplacian D - A as a float64 CSR array of shape (nodes, nodes)."""
    import numpy as np
    from scipy.sparse import csr_array, diags_array

    return csr_array(diags_array(np.asarray(topology.degrees, dtype=float)) - adjacency_csr(topology))


def fiedler(laplacian: csr_array) -> tuple[float, Any]:
    """Return the second smallest eigenvalue of a connected graph's Laplacian and its unit vector (nodes,).

    ``laplacian`` (nodes, nodes) may be weighted; its rows sum to 0. Where the eigenvalue is a multiple one, the
    vector is one of many, always the same.
    """
    import numpy as np

    if laplacian.shape[0] > min(VECTOR_NODES, DENSE_NODES):
        return _sparse_fiedler(laplacian)
    spectrum, vectors = np.linalg.eigh(laplacian.toarray())
    return float(spectrum[1]), vectors[:, 1]


def _sparse_fiedler(laplacian: csr_array) -> tuple[float, Any]:
    # Graphs that mix fast have the eigenvalue well apart from 0, and Lanczos finds it; graphs that mix slowly
    # (rings, grids, trees) are nearly planar, and factorising the shifted matrix is cheap.
    import numpy as np
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    nodes = laplacian.shape[0]
    bound = 2.0 * float(laplacian.diagonal().max())  # Gershgorin: no eigenvalue lies above it

    def deflated(vector: Any) -> Any:
        # bound·I - L with the known eigenvector of 0, the constant one, taken out
        flat = np.ravel(vector)
        return bound * (flat - flat.mean()) - laplacian @ flat

    operator = LinearOperator((nodes, nodes), matvec=deflated, dtype=np.float64)
    start = _start(nodes)
    try:
        found, vectors = eigsh(operator, k=1, which="LA", v0=start, ncv=_KRYLOV_VECTORS, maxiter=_RESTARTS)
        return float(bound - found[0]), vectors[:, 0]
    except ArpackNoConvergence:
        # A shift just below 0 keeps the matrix definite; next to it lie 0 and the eigenvalue that is sought.
        found, vectors = eigsh(laplacian.tocsc(), k=2, sigma=-1e-7 * bound, which="LM", v0=start)
        second = int(np.argmax(found))
        return float(found[second]), vectors[:, second]


def _largest(laplacian: csr_array) -> float:
    from scipy.sparse.linalg import eigsh

    start = _start(laplacian.shape[0])
    return float(eigsh(laplacian, k=1, which="LA", v0=start, ncv=_KRYLOV_VECTORS, return_eigenvectors=False)[0])


def _start(nodes: int) -> Any:
    import numpy as np

    return np.random.default_rng(_START_SEED).standard_normal(nodes)
