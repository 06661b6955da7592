"""What a sequence of graphs promises to gossip: what is left of the nodes' differences, round by round."""

from __future__ import annotations

from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.analysis.graphs import SHARES
from gossipfl.topology.sequences.schedule import MixingSequence

MAX_NODES = 400  # the norms of dense products are worked out
MAX_ROUNDS = 200
SETTLED = 1e-9  # nodes so near to each other agree, but for rounding


def analyse_sequence(sequence: MixingSequence) -> dict[str, Any]:
    """Return a plain, JSON-ready description of ``sequence``.

    ``residual``: after each round t the norm of (I - 11ᵀ/n) W_t ... W_1, the share of the distance to consensus that is
    left from the worst start, until it is all but 0, for at most ``MAX_ROUNDS`` rounds. ``mixing``: when it is at most
    a ``share`` for the first time; None if not within those. Raises ``TopologyError`` above ``MAX_NODES`` nodes.
    """
    if sequence.nodes > MAX_NODES:
        raise TopologyError(
            f'topology "{sequence.name}" has {sequence.nodes} nodes; a sequence is analysed for at most {MAX_NODES}; '
            "give fewer"
        )
    residual = _residuals(sequence)
    union = sequence.union()
    pairs = sequence.nodes * (sequence.nodes - 1) // 2
    first = [next((t for t, left in enumerate(residual, start=1) if left <= share), None) for share in SHARES]
    return {
        "name": sequence.name,
        "nodes": sequence.nodes,
        "period": sequence.period,
        "messages": sequence.messages(),
        "doubly_stochastic": sequence.doubly_stochastic,
        "pairs": pairs if union is None else len(union.edges),
        "residual": residual,
        "mixing": [{"share": share, "rounds": t} for share, t in zip(SHARES, first, strict=True)],
        "exact_after": len(residual) if residual[-1] <= SETTLED and _is_finite_time(sequence, residual) else None,
    }


def _is_finite_time(sequence: MixingSequence, residual: list[float]) -> bool:
    """Tell agreement in a finite number of rounds, which is sudden, from a slow approach to it."""
    return sequence.period is not None and (len(residual) == 1 or residual[-1] < 1e-4 * residual[-2])


def _residuals(sequence: MixingSequence) -> list[float]:
    import numpy as np

    product = np.eye(sequence.nodes)
    residual: list[float] = []
    while len(residual) < MAX_ROUNDS and (not residual or residual[-1] > SETTLED):
        product = sequence.links(len(residual)).matrix() @ product
        residual.append(float(np.linalg.norm(product - product.mean(axis=0), 2)))
    return residual
