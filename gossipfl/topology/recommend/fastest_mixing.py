"""The semidefinite program of the fastest mixing weights, solved by a primal-dual interior-point method.

    min s  such that  P = s I - (W - J) >= 0,  N = s I + (W - J) >= 0,  w >= 0,  d = 1 - B w >= 0

over one weight wₗ for each link l = (i, j) and the bound s of σ₂. W = I - Σₗ wₗ aₗaₗᵀ with aₗ = eᵢ - eⱼ, J = 11ᵀ/n, and
B (nodes, links) tells which links end at a node, so that d is the diagonal of W.

Each constraint has a multiplier, X for a matrix S and x for a vector; at the optimum each product of a constraint and
its multiplier is 0, and on the way there all are about μ. The derivative of P by wₗ is aₗaₗᵀ, of rank one, so the
matrix of the Newton equations is a sum of entrywise products (AᵀXA) * (AᵀS⁻¹A). Directions after Helmberg, Rendl,
Vanderbei and Wolkowicz (SIAM J. Optim. 6(2), 1996), predictor and corrector after Mehrotra (SIAM J. Optim. 2(4), 1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gossipfl.topology.graph import Topology
from gossipfl.topology.weights import metropolis_links

ACCURACY = 1e-6  # of the optimal s
_STEPS = 100  # a dozen or two is usual
_SHORT_OF_WALL = 0.95  # of the way to where a constraint would break
_SIGNS = (-1.0, 1.0)  # of W - J in the matrices P and N


def fastest_mixing(topology: Topology) -> Any:
    """Return the weight of each link, float64 (links,), of a connected graph of at least two nodes."""
    program = _Program(topology)
    for _ in range(_STEPS):
        if program.distance <= ACCURACY or not program.improve():
            break
    return program.links


@dataclass(frozen=True, slots=True)
class _Direction:
    """Changes: of the weights (links,) and the bound s, of both matrices, of own weights, and of all multipliers."""

    links: Any
    bound: float
    slacks: tuple[Any, ...]
    own: Any
    multipliers: tuple[Any, ...]
    of_links: Any
    of_own: Any


class _Program:
    """A strictly feasible point (w, s), the multipliers, and the steps that bring both to the optimum."""

    def __init__(self, topology: Topology) -> None:
        import numpy as np

        self._nodes = topology.nodes
        edges = np.asarray(topology.edges, dtype=np.int64).reshape(-1, 2)
        self._first, self._second = edges[:, 0], edges[:, 1]
        self._ends = np.zeros((self._nodes, len(edges)))
        self._ends[self._first, np.arange(len(edges))] = 1.0
        self._ends[self._second, np.arange(len(edges))] = 1.0
        unit = np.eye(self._nodes)
        self.links = metropolis_links(topology)
        self._own = 1.0 - self._ends @ self.links
        mixing = unit - self._laplacian(self.links) - 1.0 / self._nodes
        self._slacks = [1.5 * unit + sign * mixing for sign in _SIGNS]  # s = 1.5; σ₂ is below 1
        self._multipliers = [unit / (2 * self._nodes) for _ in _SIGNS]
        self._of_links = np.full(len(edges), 1.0 / len(edges))
        self._of_own = np.full(self._nodes, 1.0 / self._nodes)
        self.distance = self._gap() + 1.0

    def improve(self) -> bool:
        """Go a predicted and corrected step; whether it led anywhere. ``distance`` is then what s lacks, at most."""
        import numpy as np

        inverses = [np.linalg.inv(slack) for slack in self._slacks]
        matrix = self._newton_matrix(inverses)
        predicted = self._direction(matrix, inverses, 0.0, None)
        share = (1.0 - min(self._reach(predicted))) ** 2
        mean = self._gap() / (3 * self._nodes + len(self.links))
        corrected = self._direction(matrix, inverses, share * mean, predicted)
        forward, back = self._reach(corrected)
        self._move(corrected, forward, back)
        # Multipliers that do not balance yet prove nothing about the optimum.
        self.distance = self._gap() + float(np.abs(self._imbalance()).sum())
        return min(forward, back) > 1e-4

    def _gap(self) -> float:
        pairs = zip(self._slacks, self._multipliers, strict=True)
        matrices = sum(float((slack * multiplier).sum()) for slack, multiplier in pairs)
        return matrices + float(self.links @ self._of_links + self._own @ self._of_own)

    def _imbalance(self) -> Any:
        """Return, by link and for s, what the multipliers lack to balance the goal."""
        return self._goal() - self._weigh(self._multipliers, self._of_links, self._of_own)

    def _goal(self) -> Any:
        import numpy as np

        return np.concatenate([np.zeros(len(self.links)), [1.0]])

    def _weigh(self, matrices: Any, by_link: Any, by_node: Any) -> Any:
        """Return (links + 1,): how the constraints, weighted by a multiplier for each, change with w and with s."""
        import numpy as np

        links = by_link - self._ends.T @ by_node
        for sign, matrix in zip(_SIGNS, matrices, strict=True):
            links = links - sign * self._along(matrix)
        return np.append(links, sum(np.trace(matrix) for matrix in matrices))

    def _newton_matrix(self, inverses: Any) -> Any:
        """Return the factorised matrix of the Newton equations, (links + 1, links + 1), with its scale."""
        import numpy as np

        links = len(self.links)
        matrix = np.zeros((links + 1, links + 1))
        matrix[:-1, :-1] = (self._ends.T * (self._of_own / self._own)) @ self._ends
        matrix[np.diag_indices(links)] += self._of_links / self.links
        for sign, inverse, multiplier in zip(_SIGNS, inverses, self._multipliers, strict=True):
            matrix[:-1, :-1] += self._across(inverse) * self._across(multiplier)
            product = _symmetric(multiplier @ inverse)
            matrix[-1, :-1] -= sign * self._along(product)
            matrix[-1, -1] += np.trace(product)
        matrix[:-1, -1] = matrix[-1, :-1]
        return _factorised(matrix)

    def _direction(self, matrix: Any, inverses: Any, mean: float, predicted: _Direction | None) -> _Direction:
        """Return the Newton direction to where all products are ``mean``, given what the ``predicted`` one neglects."""
        from scipy.linalg import cho_solve

        wanted = [mean * inverse for inverse in inverses]
        by_link, by_node = mean / self.links, mean / self._own
        if predicted is not None:
            wanted = [
                matrix - _symmetric(multiplier @ slack @ inverse)
                for matrix, multiplier, slack, inverse in zip(
                    wanted, predicted.multipliers, predicted.slacks, inverses, strict=True
                )
            ]
            by_link = by_link - predicted.of_links * predicted.links / self.links
            by_node = by_node - predicted.of_own * predicted.own / self._own
        scale, factor = matrix
        step = scale * cho_solve(factor, scale * (self._weigh(wanted, by_link, by_node) - self._goal()))
        links, bound = step[:-1], float(step[-1])
        own, laplacian = -self._ends @ links, self._laplacian(links)
        slacks = [-sign * laplacian for sign in _SIGNS]
        for slack in slacks:
            slack[range(self._nodes), range(self._nodes)] += bound
        multipliers = [
            matrix - multiplier - _symmetric(multiplier @ slack @ inverse)
            for matrix, multiplier, slack, inverse in zip(wanted, self._multipliers, slacks, inverses, strict=True)
        ]
        of_links = by_link - self._of_links - self._of_links * links / self.links
        of_own = by_node - self._of_own - self._of_own * own / self._own
        return _Direction(links, bound, tuple(slacks), own, tuple(multipliers), of_links, of_own)

    def _reach(self, step: _Direction) -> tuple[float, float]:
        """Return how much of ``step`` the constraints allow, and how much the multipliers do; at most 1."""
        forward = [_to_wall(self.links, step.links), _to_wall(self._own, step.own)]
        forward += [_to_edge(slack, change) for slack, change in zip(self._slacks, step.slacks, strict=True)]
        back = [_to_wall(self._of_links, step.of_links), _to_wall(self._of_own, step.of_own)]
        back += [_to_edge(x, change) for x, change in zip(self._multipliers, step.multipliers, strict=True)]
        return min(1.0, _SHORT_OF_WALL * min(forward)), min(1.0, _SHORT_OF_WALL * min(back))

    def _move(self, step: _Direction, forward: float, back: float) -> None:
        self.links = self.links + forward * step.links
        self._own = 1.0 - self._ends @ self.links
        self._slacks = [slack + forward * change for slack, change in zip(self._slacks, step.slacks, strict=True)]
        self._multipliers = [x + back * change for x, change in zip(self._multipliers, step.multipliers, strict=True)]
        self._of_links = self._of_links + back * step.of_links
        self._of_own = self._of_own + back * step.of_own

    def _laplacian(self, links: Any) -> Any:
        """Return Σₗ wₗ aₗaₗᵀ, (nodes, nodes)."""
        import numpy as np

        laplacian = np.diag(self._ends @ links)
        laplacian[self._first, self._second] -= links
        laplacian[self._second, self._first] -= links
        return laplacian

    def _along(self, matrix: Any) -> Any:
        """Return aₗᵀ Z aₗ for each link l, (links,), of a symmetric matrix Z."""
        diagonal = matrix.diagonal()
        return diagonal[self._first] + diagonal[self._second] - 2.0 * matrix[self._first, self._second]

    def _across(self, matrix: Any) -> Any:
        """Return Aᵀ Z A, (links, links), of a symmetric matrix Z."""
        rows = matrix[self._first] - matrix[self._second]
        return rows[:, self._first] - rows[:, self._second]


def _symmetric(matrix: Any) -> Any:
    return 0.5 * (matrix + matrix.T)


def _factorised(matrix: Any) -> Any:
    """Return (scale, Cholesky factor) of a positive definite matrix that rounding may have made indefinite."""
    import numpy as np
    from scipy.linalg import LinAlgError, cho_factor

    scale = 1.0 / np.sqrt(matrix.diagonal())
    scaled = matrix * scale[:, None] * scale
    # On symmetric graphs many weights are equally good; a ridge settles for those near the point at hand.
    ridge = 1e-13
    while True:
        try:
            return scale, cho_factor(scaled + ridge * np.eye(len(scaled)), check_finite=False)
        except LinAlgError:
            ridge *= 100.0


def _to_wall(values: Any, changes: Any) -> float:
    """Return the largest t for which values + t changes stays non-negative; infinity where it always does."""
    import numpy as np

    falling = changes < 0
    return float(np.min(values[falling] / -changes[falling], initial=np.inf))


def _to_edge(matrix: Any, change: Any) -> float:
    """Return the largest t for which matrix + t change stays positive semidefinite."""
    import numpy as np
    from scipy.linalg import solve_triangular

    try:
        root = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return 0.0  # rounding has put it on the edge
    half = solve_triangular(root, change, lower=True, check_finite=False)
    least = float(np.linalg.eigvalsh(solve_triangular(root, half.T, lower=True, check_finite=False))[0])
    return -1.0 / least if least < 0 else np.inf
