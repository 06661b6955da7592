"""Spectral and structural analysis against closed forms, published figures and brute force."""

from __future__ import annotations

import itertools
import json
import math
import statistics

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis import graphs as analysis
from gossipfl.topology.analysis import spectra
from gossipfl.topology.analysis.graphs import analyse, articulation_points, bridges, diameter, tolerance, worst_case
from gossipfl.topology.analysis.spectra import algebraic_connectivity, spectral_gap
from gossipfl.topology.draw import layout
from gossipfl.topology.graph import canonical_edges


def circulant(nodes: int, hops: tuple[int, ...]) -> Topology:
    return Topology("circulant", nodes, canonical_edges((i, (i + h) % nodes) for i in range(nodes) for h in hops))


def circulant_gap(nodes: int, hops: set[int]) -> float:
    """The eigenvalues of a circulant Metropolis matrix are (1 + sum over hops of cos) / (1 + degree)."""
    both = {h % nodes for h in hops} | {-h % nodes for h in hops}
    spectrum = [
        (1 + sum(math.cos(math.tau * k * hop / nodes) for hop in both)) / (1 + len(both)) for k in range(1, nodes)
    ]
    return 1 - max(map(abs, spectrum))


@pytest.mark.parametrize(
    ("graph", "sigma_2"),
    [
        (make_topology("ring", 20), 0.967),
        (make_topology("torus", 20), 0.724),
        (circulant(20, (1, 2, 3, 4, 5)), 0.574),
    ],
)
def test_sigma_2_of_twenty_nodes(graph: Topology, sigma_2: float) -> None:
    assert 1 - spectral_gap(graph) == pytest.approx(sigma_2, abs=5e-4)


@pytest.mark.parametrize(("degree", "sigma_2"), [(3, 0.893), (4, 0.787), (5, 0.678), (6, 0.610), (10, 0.396)])
def test_mean_sigma_2_of_random_regular_graphs(degree: int, sigma_2: float) -> None:
    drawn = [1 - spectral_gap(make_topology("random-regular", 20, {"degree": degree}, seed)) for seed in range(40)]
    # The figures are means of 20 draws; four standard errors of the difference of two such means.
    error = statistics.stdev(drawn) * math.sqrt(1 / 20 + 1 / 40)
    assert statistics.fmean(drawn) == pytest.approx(sigma_2, abs=4 * error)


def test_exponential_graph_mixes_at_the_rate_of_its_closed_form() -> None:
    # Links used both ways: better than 1 - 2 / (1 + ceil(log2 n)) = 0.667 of the directed graph.
    gap = spectral_gap(make_topology("exponential", 20))
    assert gap == pytest.approx(circulant_gap(20, {1, 2, 4, 8, 16}), abs=1e-12)
    assert 1 - gap < 0.667


@given(st.integers(3, 30), st.sets(st.integers(1, 10), min_size=1, max_size=4))
def test_gap_of_circulants_is_the_closed_form(nodes: int, hops: set[int]) -> None:
    hops = {h for h in hops if h % nodes} | {1}
    assert spectral_gap(circulant(nodes, tuple(hops))) == pytest.approx(circulant_gap(nodes, hops), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "nodes", "gap", "connectivity"),
    [
        ("ring", 1601, 2 / 3 * (1 - math.cos(math.tau / 1601)), 2 * (1 - math.cos(math.tau / 1601))),
        ("torus", 2500, 2 / 5 * (1 - math.cos(math.tau / 50)), 2 * (1 - math.cos(math.tau / 50))),
        ("line", 2000, 2 / 3 * (1 - math.cos(math.pi / 2000)), 2 * (1 - math.cos(math.pi / 2000))),
        ("hypercube", 2048, 2 / 12, 2.0),
        ("star", 1700, 1 / 1700, 1.0),
    ],
)
def test_large_graphs_go_by_sparse_solvers(name: str, nodes: int, gap: float, connectivity: float) -> None:
    assert nodes > spectra.DENSE_NODES
    graph = make_topology(name, nodes)
    assert spectral_gap(graph) == pytest.approx(gap, rel=1e-6)
    assert algebraic_connectivity(graph) == pytest.approx(connectivity, rel=1e-6)


@pytest.mark.parametrize("name", ["random-regular", "erdos-renyi", "barabasi-albert", "dumbbell", "complete", "star"])
def test_sparse_and_dense_solvers_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = make_topology(name, 120, seed=3)
    dense = spectral_gap(graph), algebraic_connectivity(graph)
    monkeypatch.setattr(spectra, "DENSE_NODES", 0)
    assert (spectral_gap(graph), algebraic_connectivity(graph)) == pytest.approx(dense, rel=1e-7)
    assert spectral_gap(graph) == spectral_gap(graph)


def test_the_negative_end_of_the_spectrum_counts() -> None:
    # Complete bipartite K(8,8): W = (I + A) / 9 has -7/9 at its lower end, above the 1/9 at its upper.
    bipartite = Topology("bipartite", 16, tuple((i, j) for i in range(8) for j in range(8, 16)))
    assert spectral_gap(bipartite) == pytest.approx(2 / 9)


def test_the_negative_end_counts_for_large_graphs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "DENSE_NODES", 0)
    bipartite = Topology("bipartite", 160, tuple((i, j) for i in range(80) for j in range(80, 160)))
    assert spectral_gap(bipartite) == pytest.approx(2 / 81)


def test_trivial_and_disconnected_graphs() -> None:
    parts = Topology("parts", 4, ((0, 1), (2, 3)))
    report = analyse(parts)
    assert (report["parts"], report["spectral_gap"], report["algebraic_connectivity"]) == (2, 0.0, 0.0)
    assert report["diameter"] is None
    single = analyse(Topology("one", 1, ()))
    assert (single["spectral_gap"], single["diameter"], single["degree"]["max"]) == (1.0, 0, 0)


@settings(max_examples=60)
@given(
    st.sampled_from(["tree", "erdos-renyi", "barabasi-albert", "line", "ring"]), st.integers(3, 25), st.integers(0, 99)
)
def test_structure_agrees_with_brute_force(name: str, nodes: int, seed: int) -> None:
    graph = make_topology(name, nodes, seed=seed)
    reference = graph.to_networkx()
    assert diameter(graph) == nx.diameter(reference)
    for node in range(nodes):
        rest = reference.subgraph(set(reference) - {node})
        assert (node in articulation_points(graph)) == (not nx.is_connected(rest))
    for edge in graph.edges:
        assert (edge in bridges(graph)) == (not nx.is_connected(nx.restricted_view(reference, [], [edge])))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["ring", "complete", "erdos-renyi", "star"]),
    st.integers(3, 7),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_worst_case_agrees_with_all_placements(name: str, nodes: int, byzantine: int, seed: int) -> None:
    if byzantine >= nodes:
        return
    graph = make_topology(name, nodes, seed=seed)
    reference = graph.to_networkx()
    placements = list(itertools.combinations(range(nodes), byzantine))
    report = worst_case(graph, byzantine)
    assert report["honest_part_connected"] == all(
        nx.is_connected(reference.subgraph(set(range(nodes)) - set(bad))) for bad in placements
    )
    for node in range(nodes):
        around = set(graph.neighbours(node))
        most = max(len(around & set(bad)) for bad in placements if node not in bad)
        assert (node in report["surrounded"]) == (most == len(around))
        assert (node in report["outvoted"]) == (2 * most >= len(around))


def test_worst_case_names_the_worst_placements() -> None:
    graph = make_topology("abilene")
    report = worst_case(graph, 2)
    assert report["majority"]["exact"]
    assert report["cut"]["exact"]
    counts = [
        sum(
            2 * len(set(graph.neighbours(node)) & set(bad)) >= graph.degrees[node]
            for node in range(graph.nodes)
            if node not in bad
        )
        for bad in itertools.combinations(range(graph.nodes), 2)
    ]
    assert len(report["majority"]["outvoted"]) == max(counts)
    assert report["cut"]["cut_off"] == 4  # Kansas City and Houston part the West from the East


def test_tolerance_is_told_by_node() -> None:
    graph = make_topology("star", 8)
    found = tolerance(graph, lambda degree: (degree - 1) // 2)
    assert found == {"min": 0, "without": list(range(1, 8)), "per_node": [3, 0, 0, 0, 0, 0, 0, 0]}
    assert tolerance(graph, lambda _: None) is None
    report = analyse(graph, tolerances={"trimmed": lambda degree: (degree - 1) // 2, "any": lambda _: None})
    assert report["tolerance"] == {"trimmed": found, "any": None}


def test_traffic_counts_each_link_both_ways() -> None:
    graph = make_topology("star", 8)
    assert analyse(graph)["traffic"] is None
    assert analyse(graph, model_bytes=100)["traffic"] == {
        "model_bytes": 100,
        "node_received": 700,
        "node_sent": 700,
        "node_sent_to_broker": 100,
        "all_sent": 1400,
        "all_sent_to_broker": 800,
        "broker_sent": 1400,
    }
    with pytest.raises(TopologyError, match="model bytes is 0; give the size of one update"):
        analyse(graph, model_bytes=0)


def test_analysis_of_a_thousand_nodes_stays_within_bounded_work() -> None:
    report = analyse(make_topology("random-regular", 1000, seed=1), byzantine=3)
    assert report["robustness"]["least"] >= 1
    assert report["robustness"]["most"] <= 4
    assert not report["byzantine"]["majority"]["exact"]
    assert report["mixing"][1]["every_node"] is None


def test_worst_case_is_unknown_where_it_is_too_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "FLOW_NODES", 10)
    graph = make_topology("ring", 12)
    assert worst_case(graph, 1)["vertex_connectivity"] is None
    assert worst_case(graph, 1)["honest_part_connected"] is None
    assert worst_case(graph, 2)["honest_part_connected"] is False


def test_analysis_is_plain_json() -> None:
    report = analyse(make_topology("geant2012"), byzantine=2)
    assert json.loads(json.dumps(report)) == report
    assert report["sigma_2"] == pytest.approx(1 - report["spectral_gap"])
    assert report["degree"]["mean"] == pytest.approx(2 * report["edges"] / report["nodes"])
    assert analyse(make_topology("ring", 8))["byzantine"] is None


@pytest.mark.parametrize("byzantine", [-1, 8])
def test_impossible_numbers_of_byzantine_nodes_are_refused(byzantine: int) -> None:
    with pytest.raises(TopologyError, match=f"{byzantine} Byzantine among 8 nodes; give 0 to 7"):
        analyse(make_topology("ring", 8), byzantine)


@pytest.mark.parametrize(
    "graph",
    [
        make_topology("abilene"),
        make_topology("ring", 9),
        make_topology("random-regular", 20, seed=1),
        make_topology("random-regular", 400, seed=1),
        Topology("one", 1, ()),
    ],
    ids=lambda graph: f"{graph.name}-{graph.nodes}",
)
def test_layout_fills_the_unit_square_and_repeats(graph: Topology) -> None:
    points = layout(graph, seed=2**62)
    assert list(points) == list(range(graph.nodes))
    assert points == layout(graph, seed=2**62)
    spread = np.array(list(points.values()))
    assert spread.min() >= -1e-9
    assert spread.max() <= 1 + 1e-9
    assert len({(round(x, 9), round(y, 9)) for x, y in points.values()}) == graph.nodes


def test_layout_keeps_given_proportions_and_puts_ring_neighbours_side_by_side() -> None:
    wide = Topology("wide", 3, ((0, 1), (1, 2)), positions=((0.0, 0.0), (10.0, 5.0), (20.0, 0.0)))
    assert layout(wide) == {0: (0.0, 0.375), 1: (0.5, 0.625), 2: (1.0, 0.375)}
    shuffled = Topology("ring", 6, canonical_edges([(0, 3), (3, 1), (1, 5), (5, 2), (2, 4), (4, 0)]))
    points = layout(shuffled)
    lengths = [math.dist(points[i], points[j]) for i, j in shuffled.edges]
    assert lengths == pytest.approx([lengths[0]] * 6)
