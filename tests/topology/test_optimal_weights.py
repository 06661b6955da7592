"""Optimised mixing weights against closed forms and a slow method."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis.spectra import mixing_gap, spectral_gap
from gossipfl.topology.recommend import optimal_weights
from gossipfl.topology.recommend.optimal_weights import (
    LINK_WEIGHTS,
    WEIGHTS,
    best_constant_links,
    fastest,
    fastest_links,
)
from gossipfl.topology.weights import metropolis, mixing_csr

connected = st.tuples(
    st.sampled_from(["erdos-renyi", "barabasi-albert", "tree", "star", "ring", "dumbbell", "complete"]),
    st.integers(4, 24),
)


def sigma_2(graph: Topology, links: Any) -> float:
    return 1 - mixing_gap(graph, mixing_csr(graph, links))


def slow_optimum(graph: Topology) -> float:
    """The projected subgradient method of Boyd, Diaconis and Xiao (2004), section 5, with steps of 1 / sqrt(k)."""
    edges = np.array(graph.edges)
    links = LINK_WEIGHTS["metropolis"](graph)
    best = sigma_2(graph, links)
    for step in range(1, 801):
        values, vectors = np.linalg.eigh(mixing_csr(graph, links).toarray() - 1 / graph.nodes)
        end = -1 if values[-1] >= -values[0] else 0
        best = min(best, abs(values[end]))
        across = (vectors[edges[:, 0], end] - vectors[edges[:, 1], end]) ** 2
        gradient = -across if end else across
        links = np.maximum(links - 0.1 / np.sqrt(step) * gradient / np.linalg.norm(gradient), 0.0)
        for node in range(graph.nodes):
            around = (edges == node).any(axis=1)
            while links[around].sum() > 1.0 + 1e-12:
                positive = around & (links > 0)
                excess = (links[around].sum() - 1.0) / positive.sum()
                links[positive] -= min(links[positive].min(), excess)
    return float(best)


@pytest.mark.parametrize(
    ("graph", "optimum"),
    [
        (make_topology("line", 3), 0.5),
        # On a path weights of 1/2 are the fastest: cos(pi/n) (Boyd, Diaconis, Sun and Xiao, Amer. Math. Monthly, 2006).
        (make_topology("line", 10), math.cos(math.pi / 10)),
        (make_topology("star", 9), 1 - 1 / 8),
        (make_topology("complete", 8), 0.0),
        # Edge-transitive graphs have one best weight for all links: 2 / (λ₂ + λₙ) (Boyd, Diaconis and Xiao, 2004).
        (make_topology("ring", 12), (4 - 2 + 2 * math.cos(math.tau / 12)) / (4 + 2 - 2 * math.cos(math.tau / 12))),
        (make_topology("hypercube", 16), 6 / 10),
    ],
    ids=lambda value: f"{value.name}-{value.nodes}" if isinstance(value, Topology) else None,
)
def test_fastest_weights_reach_known_optima(graph: Topology, optimum: float) -> None:
    assert sigma_2(graph, fastest_links(graph)) == pytest.approx(optimum, abs=2e-6)


@pytest.mark.parametrize(("name", "nodes", "seed"), [("erdos-renyi", 8, 1), ("barabasi-albert", 9, 2), ("tree", 7, 0)])
def test_a_slow_method_finds_nothing_faster(name: str, nodes: int, seed: int) -> None:
    graph = make_topology(name, nodes, seed=seed)
    found, slow = sigma_2(graph, fastest_links(graph)), slow_optimum(graph)
    assert slow - 5e-3 < found <= slow + 1e-6


@settings(max_examples=20, deadline=None)
@given(connected, st.integers(0, 99))
def test_fastest_weights_are_admissible_and_no_slower_than_others(family: tuple[str, int], seed: int) -> None:
    graph = make_topology(family[0], family[1], seed=seed)
    links = fastest_links(graph)
    mixing = mixing_csr(graph, links).toarray()
    assert mixing.min() >= 0
    assert mixing.sum(axis=0) == pytest.approx(np.ones(graph.nodes))
    others = [sigma_2(graph, chosen(graph)) for chosen in LINK_WEIGHTS.values()]
    assert sigma_2(graph, links) <= min(others) + 2e-6


@settings(max_examples=15, deadline=None)
@given(connected, st.integers(0, 99))
def test_no_other_admissible_constant_is_better(family: tuple[str, int], seed: int) -> None:
    graph = make_topology(family[0], family[1], seed=seed)
    best = best_constant_links(graph)
    assert np.ptp(best) == 0
    assert best[0] * max(graph.degrees) <= 1 + 1e-12
    for alpha in np.linspace(0.01, 1.0, 25) / max(graph.degrees):
        assert sigma_2(graph, best) <= sigma_2(graph, np.full(len(best), alpha)) + 1e-9


def test_abilene_mixes_much_faster_than_with_metropolis_weights() -> None:
    graph = make_topology("abilene")
    assert 1 - spectral_gap(graph) == pytest.approx(0.91845, abs=1e-5)
    assert sigma_2(graph, fastest_links(graph)) == pytest.approx(0.84473, abs=1e-5)


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_weights_are_aligned_with_neighbours_and_symmetric(name: str) -> None:
    graph = make_topology("geant2012")
    weights = WEIGHTS[name](graph)
    assert [len(row) for row in weights] == list(graph.degrees)
    by_pair = {(i, j): w for i, row in enumerate(weights) for j, w in zip(graph.neighbours(i), row, strict=True)}
    assert all(by_pair[i, j] == by_pair[j, i] for i, j in graph.edges)
    assert list(LINK_WEIGHTS[name](graph)) == [by_pair[edge] for edge in graph.edges]
    assert WEIGHTS["metropolis"](graph) == metropolis(graph)


def test_trivial_graphs() -> None:
    assert fastest(Topology("one", 1, ())) == ((),)
    assert fastest(make_topology("line", 2))[0][0] == pytest.approx(0.5, abs=1e-5)


def test_graphs_without_an_answer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TopologyError, match="not connected; no weights make it agree"):
        fastest(Topology("parts", 4, ((0, 1), (2, 3))))
    monkeypatch.setattr(optimal_weights, "MAX_LINKS", 10)
    with pytest.raises(TopologyError, match="has 61 links; such weights are worked out for at most 10"):
        fastest(make_topology("geant2012"))
