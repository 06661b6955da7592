"""How many rounds of gossip until the nodes agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gossipfl.topology.graph import Topology
from gossipfl.topology.weights import mixing_csr

POWER_NODES = 400  # up to here the matrix's powers are cheap: 30 products of at most 0.13 Gflop


@dataclass(frozen=True, slots=True)
class MixingTime:
    """Rounds until what is left of the disagreement is at most ``share`` of what it was; None: never, or unknown.

    ``rounds``: of its root mean square over the nodes, from the worst start. ``every_node``: of the farthest node's
    distance from the mean, as a share of the range of the starting values, from the worst start.
    """

    share: float
    rounds: int | None
    every_node: int | None


def mixing_time(topology: Topology, share: float, sigma_2: float) -> MixingTime:
    """Return when gossip with Metropolis weights on ``topology`` has forgotten all but a ``share`` in (0, 1).

    ``sigma_2`` is that matrix's second largest modulus of an eigenvalue. ``every_node`` is worked out up to
    ``POWER_NODES`` nodes.
    """
    every = rounds_of_every_node(topology, share) if topology.nodes <= POWER_NODES and sigma_2 < 1.0 else None
    return MixingTime(share, rounds(sigma_2, share), every)


def rounds(sigma_2: float, share: float) -> int | None:
    """Return the least t with σ₂ᵗ <= ``share``; None where σ₂ is 1, on a disconnected graph.

    W is symmetric, so the norm of Wᵗ - 11ᵀ/n is exactly σ₂ᵗ: the worst start needs just so long.
    """
    if sigma_2 <= share:
        return 1
    if sigma_2 >= 1.0:
        return None
    # The slack keeps a whole number of rounds whole in spite of rounding.
    return math.ceil(math.log(share) / math.log(sigma_2) - 1e-9)


def rounds_of_every_node(topology: Topology, share: float) -> int:
    """Return the least t with maxᵢ ½ Σⱼ |(Wᵗ)ᵢⱼ - 1/n| <= ``share``, exactly, by powers of W.

    W is the Metropolis matrix of a connected graph. The sum is the total variation distance between the Markov chain
    W from node i and its limit; it never grows with t (Levin and Peres, "Markov Chains and Mixing Times", ch. 4).
    About 2 log₂ t products of dense matrices.
    """
    import numpy as np

    weights = mixing_csr(topology).toarray()
    powers = [weights]
    while _farthest(powers[-1]) > share:
        powers.append(powers[-1] @ powers[-1])
    # powers[k] is W to the power 2ᵏ. The answer lies above the last square that is too small: fill in its lower bits.
    done, reached = 0, np.eye(topology.nodes)
    for bit in reversed(range(len(powers) - 1)):
        further = reached @ powers[bit]
        if _farthest(further) > share:
            done, reached = done + (1 << bit), further
    return done + 1


def _farthest(power: Any) -> float:
    import numpy as np

    return float(0.5 * np.abs(power - 1.0 / len(power)).sum(axis=1).max())
