"""Graph families: what they are, and one clear line for every mistake."""

from __future__ import annotations

import math
from collections.abc import Mapping

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.digest import derive_seed
from gossipfl.errors import TopologyError
from gossipfl.topology import TOPOLOGIES, make_topology
from gossipfl.topology.analysis.spectra import algebraic_connectivity
from gossipfl.topology.families import random_graphs
from gossipfl.topology.graph import canonical_edges
from gossipfl.topology.limits import MAX_NODES


def composite(nodes: int) -> bool:
    return any(nodes % divisor == 0 for divisor in range(2, math.isqrt(nodes) + 1))


def possible(name: str, nodes: int) -> bool:
    """Whether the family exists at this size with its default options."""
    if name in ("torus", "grid"):
        return composite(nodes)
    if name == "hypercube":
        return nodes.bit_count() == 1
    if name in ("random-regular", "small-world"):
        return nodes > 4
    if name == "barabasi-albert":
        return nodes > 2
    if name == "two-castles":
        return nodes >= 16 and nodes % 2 == 0
    return True


@settings(max_examples=150)
@given(st.sampled_from(sorted(TOPOLOGIES)), st.integers(2, 40), st.integers(0, 2**63 - 1))
def test_every_family_is_connected_simple_and_repeatable_or_refused(name: str, nodes: int, seed: int) -> None:
    if nodes < TOPOLOGIES[name].least or not possible(name, nodes):
        with pytest.raises(TopologyError, match=f'^topology "{name}".*; '):
            make_topology(name, nodes, seed=seed)
        return
    graph = make_topology(name, nodes, seed=seed)
    assert (graph.name, graph.nodes, graph.repairs) == (name, nodes, ())
    assert graph.is_connected
    assert graph == make_topology(name, nodes, seed=seed)
    if not TOPOLOGIES[name].random:
        assert graph == make_topology(name, nodes, seed=seed + 1)


@pytest.mark.parametrize(
    ("name", "nodes", "options", "reference"),
    [
        ("ring", 7, {}, nx.cycle_graph(7)),
        ("line", 5, {}, nx.path_graph(5)),
        ("complete", 6, {}, nx.complete_graph(6)),
        ("star", 6, {}, nx.star_graph(5)),
        ("torus", 20, {}, nx.grid_2d_graph(4, 5, periodic=True)),
        ("torus", 20, {"rows": 2}, nx.grid_2d_graph(2, 10, periodic=True)),
        ("torus", 4, {}, nx.cycle_graph(4)),
        ("grid", 12, {}, nx.grid_2d_graph(3, 4)),
        ("grid", 12, {"rows": 6}, nx.grid_2d_graph(6, 2)),
        ("hypercube", 16, {}, nx.hypercube_graph(4)),
        ("tree", 15, {}, nx.balanced_tree(2, 3)),
        ("tree", 9, {"branching": 3}, nx.full_rary_tree(3, 9)),
        ("exponential", 20, {}, nx.circulant_graph(20, [1, 2, 4, 8, 16])),
        ("dumbbell", 12, {}, nx.barbell_graph(6, 0)),
        ("two-castles", 8, {"cross": 1}, nx.cartesian_product(nx.complete_graph(4), nx.path_graph(2))),
        ("two-castles", 8, {"cross": 4}, nx.complete_graph(8)),
        ("equitopo", 5, {"m": 1}, nx.cycle_graph(5)),
        ("geometric", 9, {"range": 1.5}, nx.complete_graph(9)),
        ("k-nearest", 9, {"k": 8}, nx.complete_graph(9)),
        ("random-regular", 8, {"degree": 7}, nx.complete_graph(8)),
        ("erdos-renyi", 9, {"p": 1}, nx.complete_graph(9)),
        ("small-world", 9, {"rewire": 0.0}, nx.watts_strogatz_graph(9, 4, 0)),
    ],
)
def test_families_are_the_graphs_of_their_names(
    name: str, nodes: int, options: Mapping[str, object], reference: nx.Graph[object]
) -> None:
    assert nx.is_isomorphic(make_topology(name, nodes, options).to_networkx(), reference)


@settings(max_examples=40)
@given(st.integers(3, 30), st.integers(2, 29), st.integers(0, 1000))
def test_random_regular_has_the_asked_degree_sparse_or_dense(nodes: int, degree: int, seed: int) -> None:
    if degree >= nodes or nodes * degree % 2:
        with pytest.raises(TopologyError, match=f"degree {degree} with {nodes} nodes is impossible"):
            make_topology("random-regular", nodes, {"degree": degree}, seed)
        return
    assert set(make_topology("random-regular", nodes, {"degree": degree}, seed).degrees) == {degree}


def test_erdos_renyi_gives_the_graph_of_the_published_experiment() -> None:
    # Wu et al.'s network of 12 nodes (IOS, 2023) is fast_gnp with p = 0.7 and seed 300: 47 edges.
    assert len(canonical_edges(random_graphs.erdos_renyi(12, {"p": 0.7}, 300))) == 47


@given(st.integers(2, 20), st.integers(1, 20))
def test_castles_are_regular_and_as_hard_to_split_as_asked(half: int, cross: int) -> None:
    if cross > half:
        with pytest.raises(TopologyError, match=f"cross is {cross} with {half} nodes in each castle; give 1 to {half}"):
            make_topology("two-castles", 2 * half, {"cross": cross})
        return
    graph = make_topology("two-castles", 2 * half, {"cross": cross})
    assert set(graph.degrees) == {half - 1 + cross}
    # x = +1 in one castle and -1 in the other is an eigenvector of the Laplacian: each node differs from cross others.
    assert sum(j >= half > i for i, j in graph.edges) == half * cross


def test_the_published_two_worlds_are_split_by_their_cross_edges() -> None:
    graph = make_topology("two-castles", 26)
    assert set(graph.degrees) == {20}
    assert algebraic_connectivity(graph) == pytest.approx(2 * 8)


@settings(max_examples=40)
@given(st.integers(2, 60), st.integers(1, 8), st.integers(0, 1000))
def test_equitopo_is_a_circulant_graph_of_at_most_m_hops(nodes: int, m: int, seed: int) -> None:
    graph = make_topology("equitopo", nodes, {"m": m}, seed)
    hops = {min(j - i, nodes - j + i) for i, j in graph.edges}
    assert len(hops) <= m
    assert graph.edges == canonical_edges((i, (i + hop) % nodes) for hop in hops for i in range(nodes))


def test_only_spatial_families_have_positions() -> None:
    placed = {name for name in TOPOLOGIES if make_topology(name, 16).positions is not None}
    assert placed == {"geometric", "k-nearest"}


def test_random_families_follow_the_seed() -> None:
    for name in (name for name, family in TOPOLOGIES.items() if family.random):
        drawn = {make_topology(name, 30, seed=seed).edges for seed in range(5)}
        assert len(drawn) == 5, name


def test_first_draw_comes_from_the_seed_that_the_contract_names() -> None:
    reference = nx.random_regular_graph(4, 20, seed=derive_seed(7, "topology"))
    graph = make_topology("random-regular", 20, seed=7)
    assert set(graph.edges) == {(min(edge), max(edge)) for edge in reference.edges}


def test_a_disconnected_draw_is_redrawn() -> None:
    # G(20, 0.12) is connected about one time in ten.
    firsts = [nx.fast_gnp_random_graph(20, 0.12, seed=derive_seed(seed, "topology")) for seed in range(8)]
    assert not all(nx.is_connected(first) for first in firsts)
    assert all(make_topology("erdos-renyi", 20, {"p": 0.12}, seed).is_connected for seed in range(8))


def test_a_family_that_never_connects_says_so() -> None:
    with pytest.raises(TopologyError, match=r"p = 0\.001 was never connected in 100 draws; choose options"):
        make_topology("erdos-renyi", 50, {"p": 0.001})


@pytest.mark.parametrize(
    ("name", "nodes", "options", "message"),
    [
        ("rnig", 8, {}, r'topology "rnig" is unknown; did you mean "ring"\? choose one of: ring, line, '),
        ("zzz", 8, {}, 'topology "zzz" is unknown; choose one of: ring, '),
        ("ring", None, {}, 'topology "ring" needs a number of nodes; give nodes'),
        ("ring", 2, {}, "2 nodes are too few; give 3 to"),
        ("ring", MAX_NODES + 1, {}, "too many; give 3 to"),
        ("ring", 8, {"degree": 4}, 'topology "ring" has no option "degree"; it takes none'),
        ("random-regular", 8, {"degre": 4}, 'has no option "degre"; choose one of: degree'),
        ("random-regular", 8, {"degree": "4"}, "degree is '4'; give a whole number"),
        ("random-regular", 8, {"degree": True}, "degree is True; give a whole number"),
        ("random-regular", 8, {"degree": 4.0}, r"degree is 4\.0; give a whole number"),
        ("random-regular", 9, {"degree": 3}, "is odd.; give an even degree or an even number"),
        ("random-regular", 8, {"degree": 8}, "degree 8 with 8 nodes is impossible; give a degree below 8"),
        ("random-regular", 8, {"degree": 0}, "give a degree of at least 2"),
        ("random-regular", 8, {"degree": 1}, "pairs are not connected.; give a degree of at least 2"),
        ("random-regular", 50_000, {"degree": 100}, "about 2500000 edges; give fewer nodes"),
        ("complete", 10_000, {}, "would have about 49995000 edges; give fewer nodes"),
        ("erdos-renyi", 8, {"p": 0}, "p is 0; give a probability above 0"),
        ("erdos-renyi", 8, {"p": 1.5}, "p is 1.5; give a probability"),
        ("erdos-renyi", 8, {"p": math.nan}, "p is nan; give a number"),
        ("erdos-renyi", 20_000, {"p": 1.0}, "edges; give fewer nodes or a sparser graph"),
        ("small-world", 8, {"k": 3}, "k is 3 with 8 nodes; give an even k"),
        ("small-world", 8, {"rewire": 2}, "rewire is 2; give a probability from 0 to 1"),
        ("barabasi-albert", 8, {"m": 8}, "m is 8 with 8 nodes; give 1 to 7"),
        ("torus", 13, {}, "the number is prime.; nearby numbers that can: 12, 14, 15"),
        ("grid", 5, {}, "nearby numbers that can: 4, 6"),
        ("torus", 20, {"rows": 3}, "20 nodes do not fill 3 rows"),
        ("grid", 20, {"rows": 20}, "20 nodes do not fill 20 rows"),
        ("hypercube", 12, {}, "12 nodes are no power of two; give 8 or 16 nodes"),
        ("tree", 8, {"branching": 0}, "branching is 0; give at least 1"),
        ("dumbbell", 8, {"bridges": 5}, "5 bridges between halves of 4 and 4 nodes; give 1 to 4"),
        ("two-castles", 17, {}, "17 nodes make no two halves; give 16 or 18 nodes"),
        ("two-castles", 14, {}, "cross is 8 with 7 nodes in each castle; give 1 to 7"),
        ("equitopo", 8, {"m": 0}, "m is 0; give at least 1 hop"),
        ("equitopo", 100_000, {"m": 50}, "about 5000000 edges; give fewer nodes"),
        ("geometric", 8, {"range": 0}, "range is 0; give a range of at least 0"),
        ("geometric", 8, {"metric": "moon"}, 'metric is "moon"; choose one of: plane, earth'),
        ("geometric", 8, {"metric": "earht"}, 'metric is "earht"; did you mean "earth"'),
        ("geometric", 8, {"metric": "earth"}, "drawn sites lie on the plane; leave metric out, or give sites"),
        ("geometric", 40, {"range": 0.05}, "range = 0.05, metric = plane was never connected in 100 draws"),
        ("k-nearest", 8, {"k": 8}, "k is 8 with 8 sites; give 1 to 7"),
        ("k-nearest", 8, {"sites": 3}, "sites is 3; give a text"),
        ("base-k", 8, {}, "is another graph each round, and one for all rounds is needed here; choose one of: ring,"),
        ("base", 8, {}, 'is unknown; did you mean "base-k"'),
    ],
)
def test_mistakes_are_told_in_one_line_with_the_mend(
    name: str, nodes: int | None, options: Mapping[str, object], message: str
) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        make_topology(name, nodes, options)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["ring", "torus", "random-regular", "erdos-renyi", "small-world", "tree", "geometric"],
)
def test_ten_thousand_nodes_are_made(name: str) -> None:
    graph = make_topology(name, 10_000, seed=1)
    assert graph.nodes == 10_000
    assert graph.is_connected
