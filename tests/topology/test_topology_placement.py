"""Placements of Byzantine nodes: each does what its name says, and the worst are the worst."""

from __future__ import annotations

from itertools import combinations
from random import Random

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis.enclosure import enclosures
from gossipfl.topology.analysis.harm import Harm, Majority, Placement, Split
from gossipfl.topology.analysis.placement import PLACEMENTS, at_random, worst_placement
from gossipfl.topology.analysis.splits import largest_left, parts_of

families = st.tuples(st.sampled_from(["erdos-renyi", "barabasi-albert", "tree", "ring", "star"]), st.integers(5, 9))


def outvoted(graph: Topology, bad: Placement, share: float = 0.5) -> set[int]:
    return {
        node
        for node in range(graph.nodes)
        if node not in bad and len(set(graph.neighbours(node)) & set(bad)) >= share * graph.degrees[node]
    }


def cut_off(graph: Topology, bad: Placement) -> int:
    parts = list(nx.connected_components(graph.to_networkx().subgraph(set(range(graph.nodes)) - set(bad))))
    return sum(map(len, parts)) - max(map(len, parts))


def connectivity(graph: Topology, bad: Placement) -> float:
    rest = graph.to_networkx().subgraph(set(range(graph.nodes)) - set(bad))
    return float(np.linalg.eigvalsh(nx.laplacian_matrix(rest).toarray().astype(float))[1])


@pytest.mark.parametrize("name", list(PLACEMENTS))
@settings(max_examples=15, deadline=None)
@given(families, st.integers(0, 4), st.integers(0, 2**63 - 1))
def test_every_placement_gives_as_many_distinct_nodes_ascending_and_repeats(
    name: str, family: tuple[str, int], count: int, seed: int
) -> None:
    graph = make_topology(*family, seed=3)
    nodes = PLACEMENTS[name](graph, count, seed)
    assert len(nodes) == count
    assert list(nodes) == sorted(set(nodes))
    assert set(nodes) <= set(range(graph.nodes))
    assert nodes == PLACEMENTS[name](graph, count, seed)


@pytest.mark.parametrize("name", list(PLACEMENTS))
@pytest.mark.parametrize("count", [-1, 6])
def test_impossible_numbers_are_refused(name: str, count: int) -> None:
    with pytest.raises(TopologyError, match=f"{count} Byzantine among 6 nodes; give 0 to 5"):
        PLACEMENTS[name](make_topology("ring", 6), count, 0)


def test_hubs_come_first_and_chance_decides_between_equals() -> None:
    graph = make_topology("barabasi-albert", 40, seed=1)
    chosen = PLACEMENTS["degree"](graph, 5, 0)
    assert sorted((graph.degrees[node] for node in chosen), reverse=True) == sorted(graph.degrees, reverse=True)[:5]
    regular = make_topology("ring", 30)
    assert len({PLACEMENTS["degree"](regular, 3, seed) for seed in range(5)}) > 1


def test_betweenness_finds_the_bridgeheads() -> None:
    assert PLACEMENTS["betweenness"](make_topology("dumbbell", 12), 2, 0) == (0, 6)


def test_spread_nodes_are_far_apart_and_clustered_ones_near() -> None:
    graph = make_topology("ring", 24)
    hops = dict(nx.all_pairs_shortest_path_length(graph.to_networkx()))

    def distances(name: str, seed: int) -> list[int]:
        return [hops[i][j] for i, j in combinations(PLACEMENTS[name](graph, 4, seed), 2)]

    for seed in range(5):
        assert min(distances("spread", seed)) == 6
        assert max(distances("clustered", seed)) <= 4


@settings(max_examples=40, deadline=None)
@given(families, st.integers(1, 3), st.integers(0, 99))
def test_the_worst_placement_against_majorities_is_the_worst_of_all(
    family: tuple[str, int], count: int, seed: int
) -> None:
    graph = make_topology(*family, seed=seed)
    found = worst_placement(graph, count, Majority(graph))
    assert found.exact
    assert found.harmed[0] == len(outvoted(graph, found.nodes))
    assert found.harmed[0] == max(len(outvoted(graph, bad)) for bad in combinations(range(graph.nodes), count))


@settings(max_examples=40, deadline=None)
@given(families, st.integers(1, 3), st.integers(0, 99))
def test_the_worst_placement_at_the_cut_is_the_worst_of_all(family: tuple[str, int], count: int, seed: int) -> None:
    graph = make_topology(*family, seed=seed)
    found = worst_placement(graph, count, Split(graph))
    placements = list(combinations(range(graph.nodes), count))
    most = max(cut_off(graph, bad) for bad in placements)
    assert found.exact
    assert found.harmed[0] == cut_off(graph, found.nodes) == most
    if most == 0:
        least = min(connectivity(graph, bad) for bad in placements)
        assert -found.harmed[1] == pytest.approx(least, abs=1e-9)


@pytest.mark.parametrize("kind", [Majority, Split])
@pytest.mark.parametrize(
    ("name", "nodes", "count"), [("geant2012", None, 3), ("random-regular", 16, 5), ("abilene", None, 4)]
)
def test_a_search_comes_as_far_as_trying_all(
    kind: type[Majority | Split], name: str, nodes: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_topology(name, nodes, {"degree": 3} if name == "random-regular" else None, seed=0)
    every = worst_placement(graph, count, kind(graph))
    monkeypatch.setattr(kind, "every", 0)
    searched = worst_placement(graph, count, kind(graph))
    assert (every.exact, searched.exact) == (True, False)
    assert searched.harmed[0] == every.harmed[0]


def test_a_search_beats_chance_on_a_large_graph() -> None:
    graph = make_topology("barabasi-albert", 300, seed=1)
    for harm in (Majority(graph), Split(graph)):
        chance = max(harm.measure(at_random(graph, 10, seed)) for seed in range(20))
        assert worst_placement(graph, 10, harm).harmed > chance


def test_many_attackers_stay_within_the_bound_on_the_work() -> None:
    graph = make_topology("random-regular", 60, {"degree": 10}, seed=1)
    calls = 0

    class Counted(Split):
        def next(self, bad: object) -> int:
            nonlocal calls
            calls += 1
            return super().next(bad)  # type: ignore[arg-type]

        @property
        def steps(self) -> int:
            return 5

    harm: Harm = Counted(graph)
    assert len(worst_placement(graph, 25, harm).nodes) == 25
    assert calls <= 5


def test_a_share_other_than_half_moves_the_quota() -> None:
    star = make_topology("star", 11)
    assert Majority(star, 0.3).outvoted((1, 2, 3)) == (0,)
    assert Majority(star, 0.4).outvoted((1, 2, 3)) == ()
    assert Majority(star).outvoted((0,)) == tuple(range(1, 11))


@settings(max_examples=30, deadline=None)
@given(families, st.integers(0, 3), st.integers(0, 99))
def test_a_connected_placement_leaves_the_honest_part_connected(family: tuple[str, int], count: int, seed: int) -> None:
    graph = make_topology(*family, seed=seed)
    assert cut_off(graph, PLACEMENTS["connected"](graph, count, seed)) == 0


def test_a_connected_placement_leaves_majorities_where_it_can() -> None:
    graph = make_topology("random-regular", 30, {"degree": 6}, seed=1)
    for seed in range(10):
        assert not outvoted(graph, PLACEMENTS["connected"](graph, 5, seed))
    # Any one node of a star is all that a leaf hears, or one of many that the hub hears.
    assert 0 not in PLACEMENTS["connected"](make_topology("star", 8), 2, 0)


def test_a_connected_placement_needs_a_connected_graph() -> None:
    with pytest.raises(TopologyError, match="is not connected, so its honest part cannot be"):
        PLACEMENTS["connected"](Topology("parts", 4, ((0, 1), (2, 3))), 1, 0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["erdos-renyi", "barabasi-albert", "tree", "line"]), st.integers(2, 25), st.integers(0, 99))
def test_what_each_nodes_loss_leaves_agrees_with_taking_it_out(name: str, nodes: int, seed: int) -> None:
    if name == "barabasi-albert" and nodes < 4:
        return
    graph = make_topology(name, nodes, seed=seed)
    left = largest_left(graph, range(nodes))
    for node in range(nodes):
        parts = parts_of(graph, {node})
        assert left[node] == max(map(len, parts))
        rest = graph.to_networkx().subgraph(set(range(nodes)) - {node})
        assert sorted(map(len, parts)) == sorted(map(len, nx.connected_components(rest)))


def test_enclosures_enclose_what_they_can() -> None:
    # Two nodes of a ring of twenty cut off nine at most; none of a complete graph cut off any.
    ring = make_topology("ring", 20)
    assert {cut_off(ring, border) for border in enclosures(ring, 2, Random(0))} == {9}
    assert enclosures(make_topology("complete", 8), 3, Random(0)) == []
