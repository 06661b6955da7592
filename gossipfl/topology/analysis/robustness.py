"""How much lying a graph can carry whatever the rule: r-robustness, exact where the graph is small, bounded elsewhere.

A set of nodes is *r-reachable* if one of its nodes has at least r neighbours outside the set. A graph is *r-robust* if
of every two disjoint, non-empty sets of nodes at least one is r-reachable. It is *(r, s)-robust* if for every such pair
all nodes of one set, or at least s nodes of the two together, have r neighbours outside their own set.

LeBlanc, Zhang, Koutsoukos and Sundaram, "Resilient asymptotic consensus in robust networks", IEEE JSAC 31(4), 2013:
where every node discards the F largest and the F smallest values, the honest agree in spite of F liars in all exactly
if the graph is (F+1, F+1)-robust; in spite of F liars around each node if it is (2F+1)-robust.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from gossipfl.topology.analysis.spectra import DENSE_NODES, algebraic_connectivity, fiedler, laplacian_csr
from gossipfl.topology.graph import Topology

SUBSET_NODES = 20  # all subsets are tried: 2^20, about a second
PROGRAM_NODES = 64  # an integer program is solved
PROGRAM_BRANCHES = 300  # of its search tree; a few seconds

Method = Literal["subsets", "integer program", "bounds"]


@dataclass(frozen=True, slots=True)
class Robustness:
    """The largest r for which a graph is r-robust, and the largest F for which it is (F+1, F+1)-robust.

    Each lies between its ``least`` and its ``most``; where they are equal, it is known. ``method`` tells how the bounds
    of r were found.
    """

    least: int
    most: int
    total_least: int
    total_most: int
    method: Method

    @property
    def exact(self) -> bool:
        """Whether r itself is known."""
        return self.least == self.most

    @property
    def local(self) -> int:
        """How many liars around each node are surely tolerated: the largest F with 2F + 1 <= r."""
        return max(0, (self.least - 1) // 2)


def robustness(topology: Topology) -> Robustness:
    """Return the robustness of ``topology``; a disconnected graph is 0-robust, and by convention no r exceeds ⌈n/2⌉.

    Up to ``SUBSET_NODES`` nodes both numbers are exact. Beyond, r is bounded below by ⌈λ₂/2⌉, and above by the least
    degree and by the sets that cuts along the Fiedler vector make; up to ``PROGRAM_NODES`` nodes an integer program,
    given ``PROGRAM_BRANCHES`` branches, narrows that further, often to one number. F is then bounded through r and the
    least degree.
    """
    if not topology.is_connected:
        return Robustness(0, 0, 0, 0, "bounds")
    if topology.nodes <= SUBSET_NODES:
        r, total = by_subsets(topology)
        return Robustness(r, r, total, total, "subsets")
    method: Method = "bounds"
    least, most = bounds(topology)
    if least < most and topology.nodes <= PROGRAM_NODES:
        method = "integer program"
        low, high = by_integer_program(topology)
        least, most = max(least, low), min(most, high)
    # (2F+1)-robust implies (F+1, F+1)-robust, which implies (F+1)-robust and, of two sets of which one is a node, 2F
    # neighbours for each.
    total_most = min(most - 1, min(topology.degrees) // 2)
    return Robustness(least, most, min((least - 1) // 2, total_most), total_most, method)


def bounds(topology: Topology) -> tuple[int, int]:
    """Return a lower and an upper bound of r for a connected graph of at least two nodes.

    Below: of two disjoint sets one has at most n/2 nodes, at least λ₂/2 links for each of its nodes lead out of it
    (Mohar, "Isoperimetric numbers of graphs", J. Comb. Theory B 47, 1989), and so one node has so many. Above: one
    node against the rest, and the best of the cuts along the Fiedler vector.
    """
    slack = 1e-7  # an eigenvalue that is a whole number may come out a little above it
    least = max(1, math.ceil(algebraic_connectivity(topology) / 2 - slack))
    most = min(*topology.degrees, math.ceil(topology.nodes / 2))
    if least < most and topology.nodes <= DENSE_NODES:
        most = min(most, _best_sweep(topology))
    return least, max(least, most)


def by_subsets(topology: Topology) -> tuple[int, int]:
    """Return the largest r and the largest F with (F+1, F+1), exactly, for a connected graph of few nodes.

    Over all 2ⁿ subsets, as bits of a number: r is the least, over the ways to split the nodes in two, of the larger of
    both sides' least reach; a side's least reach is over its subsets, which n passes find for all sides at once.
    O(n 2ⁿ) time for r and for each F tried, O(2ⁿ) memory.
    """
    import numpy as np

    if topology.nodes == 1:
        return 1, 0
    full = (1 << topology.nodes) - 1
    reach = np.zeros(full + 1, dtype=np.int8)
    for inside, out in _outside(topology):
        np.maximum(reach, np.where(inside, out, 0), out=reach)
    reach[0] = topology.nodes
    sides = _least_of_subsets(reach)
    r = min(int(np.maximum(sides, sides[::-1]).min()), math.ceil(topology.nodes / 2))
    total = 0
    while total + 1 < r and _reached_by_pairs(topology, total + 2) >= total + 2:
        total += 1
    return r, total


def _reached_by_pairs(topology: Topology, r: int) -> int:
    """Return the largest s for which the graph is (r, s)-robust; more than n where no pair of sets limits it."""
    import numpy as np

    size = 1 << topology.nodes
    reached = np.zeros(size, dtype=np.int8)
    whole = np.ones(size, dtype=bool)
    for inside, out in _outside(topology):
        far = out >= r
        reached += inside & far
        whole &= ~inside | far
    # Sets that are reached as a whole (and the empty one, which is none) limit nothing.
    reached[whole] = topology.nodes + 1
    sides = _least_of_subsets(reached).astype(np.int16)
    return int((sides + sides[::-1]).min())


def _outside(topology: Topology) -> Iterator[tuple[Any, Any]]:
    """Yield for each node, over all 2ⁿ subsets: whether it is inside, and how many of its neighbours are outside."""
    import numpy as np

    for node in range(topology.nodes):
        out = np.zeros(1, dtype=np.int8)
        inside = np.zeros(1, dtype=bool)
        around = set(topology.neighbours(node))
        for other in range(topology.nodes):
            # Subsets with the other node follow those without it, in the same order.
            out = np.concatenate([out + (other in around), out])
            inside = np.concatenate([inside, inside | (other == node)])
        yield inside, out


def _least_of_subsets(values: Any) -> Any:
    """Return for every set the least of ``values`` (2ⁿ,) over its subsets, itself among them."""
    import numpy as np

    least = values.copy()
    for bit in range(len(values).bit_length() - 1):
        pairs = least.reshape(-1, 2, 1 << bit)
        np.minimum(pairs[:, 1], pairs[:, 0], out=pairs[:, 1])
    return least


def by_integer_program(topology: Topology) -> tuple[int, int]:
    """Return bounds of r from an integer program that looks for the two sets least reachable; equal where it is solved.

    min t such that L b₁ <= t, L b₂ <= t, b₁ + b₂ <= 1, b₁ and b₂ in {0, 1}ⁿ and not 0. For a node inside a set b the
    row (L b)ᵢ is its number of neighbours outside. Bounded by ``PROGRAM_BRANCHES``, and so always the same.

    Usevitch and Panagou, "Determining r- and (r,s)-robustness of digraphs using mixed integer linear programming",
    Automatica 111, 2020.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_array, csr_array, eye_array

    nodes, laplacian = topology.nodes, laplacian_csr(topology)
    minus, no, unit = csr_array(-np.ones((nodes, 1))), csr_array((nodes, 1)), eye_array(nodes, format="csr")
    rows = block_array([[minus, laplacian, None], [minus, None, laplacian], [no, unit, unit]], format="csr")
    sums = np.zeros((2, 1 + 2 * nodes))
    sums[0, 1 : 1 + nodes] = sums[1, 1 + nodes :] = 1.0
    goal = np.zeros(1 + 2 * nodes)
    goal[0] = 1.0
    found = milp(
        goal,
        integrality=np.ones_like(goal),
        bounds=Bounds(0.0, np.concatenate([[min(topology.degrees)], np.ones(2 * nodes)])),
        constraints=[
            LinearConstraint(rows, -np.inf, np.concatenate([np.zeros(2 * nodes), np.ones(nodes)])),
            LinearConstraint(sums, 1.0, nodes - 1.0),
        ],
        options={"node_limit": PROGRAM_BRANCHES},
    )
    slack = 1e-6  # the solver's own tolerance
    dual = getattr(found, "mip_dual_bound", None)
    least = 1 if dual is None or not math.isfinite(dual) else max(1, math.ceil(dual - slack))
    most = min(topology.degrees) if found.x is None else round(found.fun)
    return min(least, most), most


def _best_sweep(topology: Topology) -> int:
    """Return the least of the larger reach of both sides, over the cuts along the order of the Fiedler vector."""
    import numpy as np

    laplacian = laplacian_csr(topology)
    order = np.argsort(fiedler(laplacian)[1], kind="stable")
    joined = laplacian.toarray()[np.ix_(order, order)] < 0
    # after[i, k]: how many neighbours of the i-th node come after the first k + 1 nodes.
    after = joined.sum(axis=1, keepdims=True) - np.cumsum(joined, axis=1)
    before = joined.sum(axis=1, keepdims=True) - after
    first = np.tri(topology.nodes, dtype=bool).T  # [i, k]: node i is among the first k + 1
    reach = np.maximum(np.where(first, after, 0).max(axis=0), np.where(first, 0, before).max(axis=0))
    return int(reach[:-1].min())
