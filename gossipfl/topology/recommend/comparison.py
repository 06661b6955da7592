"""What a proposal is worth: the graph before and after, by the same measures."""

from __future__ import annotations

from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.analysis.graphs import articulation_points, bridges, degree_statistics
from gossipfl.topology.analysis.mixing import rounds
from gossipfl.topology.analysis.robustness import robustness
from gossipfl.topology.analysis.spectra import algebraic_connectivity, mixing_gap
from gossipfl.topology.graph import Topology
from gossipfl.topology.recommend.optimal_weights import LINK_WEIGHTS
from gossipfl.topology.recommend.rewiring import Proposal
from gossipfl.topology.weights import mixing_csr

SHARE = 0.01  # of the disagreement that mixing times are told for


def comparison(proposal: Proposal) -> dict[str, Any]:
    """Return a plain, JSON-ready description of ``proposal``.

    ``before`` and ``after`` have the same keys; ``weights`` are those of the graph after, one for each of ``links``, by
    the way they are chosen, None where the graph is too large for it.
    """
    before, after = _weights(proposal.before), _weights(proposal.after)
    return {
        "name": proposal.before.name,
        "nodes": proposal.before.nodes,
        "added": [list(edge) for edge in proposal.added],
        "removed": [list(edge) for edge in proposal.removed],
        "cost": proposal.cost,
        "short": list(proposal.short),
        "before": _outlook(proposal.before, before),
        "after": _outlook(proposal.after, after),
        "links": [list(edge) for edge in proposal.after.edges],
        "weights": {name: None if links is None else links.tolist() for name, links in after.items()},
    }


def _weights(topology: Topology) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    for name, chosen in LINK_WEIGHTS.items():
        try:
            weights[name] = chosen(topology)
        except TopologyError:
            weights[name] = None  # the graph is too large for this one
    return weights


def _outlook(topology: Topology, weights: dict[str, Any]) -> dict[str, Any]:
    gaps = {
        name: None if links is None else mixing_gap(topology, mixing_csr(topology, links))
        for name, links in weights.items()
    }
    sturdy = robustness(topology)
    return {
        "edges": len(topology.edges),
        "degree": degree_statistics(topology),
        "spectral_gap": gaps,
        "rounds": {name: None if gap is None else rounds(1.0 - gap, SHARE) for name, gap in gaps.items()},
        "algebraic_connectivity": algebraic_connectivity(topology),
        "bridges": len(bridges(topology)),
        "articulation_points": len(articulation_points(topology)),
        "robustness": {"least": sturdy.least, "most": sturdy.most},
    }
