"""Proposals: they keep to the limits, are worth something, and say what cannot be had."""

from __future__ import annotations

import math
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis.spectra import spectral_gap
from gossipfl.topology.files.costs import read_costs
from gossipfl.topology.recommend.comparison import comparison
from gossipfl.topology.recommend.draft import Draft, Limits
from gossipfl.topology.recommend.lengths import ruler
from gossipfl.topology.recommend.rewiring import Wish, recommend

families = st.tuples(
    st.sampled_from(["erdos-renyi", "barabasi-albert", "tree", "ring", "star", "geometric"]), st.integers(6, 16)
)


@settings(max_examples=20, deadline=None)
@given(families, st.integers(0, 4), st.integers(0, 4), st.integers(0, 99))
def test_proposals_never_lower_the_gap_and_say_what_they_change(
    family: tuple[str, int], add: int, swap: int, seed: int
) -> None:
    graph = make_topology(*family, seed=seed)
    proposal = recommend(graph, Wish(add=add, swap=swap), Limits(), seed)
    assert spectral_gap(proposal.after) >= spectral_gap(graph) - 1e-8
    assert set(proposal.after.edges) == (set(graph.edges) - set(proposal.removed)) | set(proposal.added)
    assert not set(proposal.added) & set(graph.edges)
    assert set(proposal.removed) <= set(graph.edges)
    assert len(proposal.added) - len(proposal.removed) <= add
    assert len(proposal.removed) <= 2 * swap
    assert proposal.after == recommend(graph, Wish(add=add, swap=swap), Limits(), seed).after


@settings(max_examples=20, deadline=None)
@given(families, st.integers(1, 2), st.integers(2, 7), st.floats(0.2, 1.5), st.integers(0, 4), st.integers(0, 99))
def test_proposals_keep_to_the_limits(
    family: tuple[str, int], byzantine: int, more: int, length: float, swap: int, seed: int
) -> None:
    graph = make_topology("geometric", family[1], seed=seed)
    limits = Limits(
        max_degree=2 * byzantine + more, max_links=len(graph.edges) + 2 * more, max_length=length, budget=3 * length
    )
    if 2 * byzantine + 1 > graph.nodes - 1:
        return
    proposal = recommend(graph, Wish(byzantine=byzantine, swap=swap), limits, seed)
    after = proposal.after
    positions = np.array(graph.positions)
    lengths = [math.dist(positions[i], positions[j]) for i, j in proposal.added]
    assert all(one <= length for one in lengths)
    assert sum(lengths) <= 3 * length + 1e-9
    assert proposal.cost == pytest.approx(sum(lengths))
    assert len(after.edges) <= len(graph.edges) + 2 * more
    for node, (before, now) in enumerate(zip(graph.degrees, after.degrees, strict=True)):
        assert now <= max(before, 2 * byzantine + more)
        assert (node in proposal.short) == (now < 2 * byzantine + 1)


@pytest.mark.parametrize(("name", "nodes", "byzantine"), [("geant2012", None, 2), ("ring", 9, 3), ("star", 12, 1)])
def test_every_node_gets_an_honest_majority_whoever_lie(name: str, nodes: int | None, byzantine: int) -> None:
    graph = make_topology(name, nodes)
    proposal = recommend(graph, Wish(byzantine=byzantine), Limits())
    assert min(proposal.after.degrees) >= 2 * byzantine + 1
    assert proposal.short == ()
    assert proposal.removed == ()
    # No more links than nodes of odd need must take: each serves two wherever two are in want.
    wanted = sum(max(0, 2 * byzantine + 1 - degree) for degree in graph.degrees)
    assert wanted / 2 <= len(proposal.added) <= wanted


def test_a_limit_on_links_leaves_nodes_short_and_names_them() -> None:
    graph = make_topology("ring", 10)
    proposal = recommend(graph, Wish(byzantine=1, add=2), Limits())
    assert len(proposal.added) == 2
    assert len(proposal.short) == 6
    assert recommend(graph, Wish(byzantine=1), Limits(max_links=12)).short == proposal.short


def test_one_link_is_the_best_of_all_where_all_are_tried() -> None:
    graph = make_topology("line", 7)
    proposal = recommend(graph, Wish(add=1), Limits())
    gaps = [
        spectral_gap(Topology("more", 7, tuple(sorted((*graph.edges, pair)))))
        for pair in nx.non_edges(graph.to_networkx())
    ]
    assert spectral_gap(proposal.after) == pytest.approx(max(gaps))


def test_links_end_bridges_where_they_mix_best() -> None:
    graph = make_topology("dumbbell", 16)
    report = comparison(recommend(graph, Wish(add=1), Limits()))
    assert (report["before"]["bridges"], report["after"]["bridges"]) == (1, 0)
    assert report["after"]["rounds"]["metropolis"] < report["before"]["rounds"]["metropolis"]


def test_exchanges_keep_every_degree_and_help_even_a_symmetric_graph() -> None:
    graph = make_topology("torus", 36)
    proposal = recommend(graph, Wish(swap=12), Limits(), 1)
    assert proposal.after.degrees == graph.degrees
    assert spectral_gap(proposal.after) > 1.1 * spectral_gap(graph)


def test_large_graphs_are_sampled_with_the_seed() -> None:
    graph = make_topology("torus", 324)
    first, again = (recommend(graph, Wish(swap=2), Limits(), 5) for _ in range(2))
    assert first.after.edges == again.after.edges
    assert first.after.degrees == graph.degrees


def test_the_mended_graph_says_that_it_was_mended() -> None:
    graph = make_topology("abilene")
    assert recommend(graph, Wish(), Limits()).after == graph
    after = recommend(graph, Wish(add=2), Limits()).after
    assert after.repairs == (*graph.repairs, "recommended: 2 links added, 0 links removed")
    assert (after.labels, after.positions) == (graph.labels, graph.positions)


def test_comparison_tells_the_weights_of_the_mended_graph() -> None:
    report = comparison(recommend(make_topology("abilene"), Wish(add=2), Limits()))
    assert [len(weights) for weights in report["weights"].values()] == [16, 16, 16]
    assert len(report["links"]) == 16
    for side in ("before", "after"):
        gaps = report[side]["spectral_gap"]
        assert gaps["fastest"] >= max(gaps["metropolis"], gaps["best-constant"]) - 2e-6
        assert report[side]["rounds"]["fastest"] <= report[side]["rounds"]["metropolis"]


@pytest.mark.parametrize(
    ("wish", "limits", "message"),
    [
        (Wish(add=-1), Limits(), "links to add: -1 is negative"),
        (Wish(swap=-2), Limits(), "exchanges: -2 is negative"),
        (Wish(byzantine=5), Limits(), "each node wants 11 neighbours, but has 10 others; give at most 4 Byzantine"),
        (Wish(byzantine=2), Limits(max_degree=4), "wants 5 neighbours, more than the max degree 4"),
        (Wish(), Limits(max_degree=0), "max degree is 0; give at least 1"),
        (Wish(), Limits(max_links=13), "has 14 links; give at least 14"),
        (Wish(), Limits(max_length=0.0), "max length is 0; give more than 0"),
        (Wish(), Limits(budget=math.nan), "budget is nan; give more than 0"),
        (Wish(), Limits(metric="earth"), "a position is no longitude and latitude"),
        (Wish(), Limits(metric="moon"), 'metric "moon" is unknown; choose one of: auto, plane, earth'),
    ],
)
def test_what_cannot_be_is_refused(wish: Wish, limits: Limits, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        recommend(make_topology("abilene"), wish, limits)


def test_graphs_without_positions_have_no_lengths() -> None:
    with pytest.raises(TopologyError, match="has no positions to measure links by"):
        recommend(make_topology("ring", 8), Wish(add=1), Limits(max_length=1.0))
    assert recommend(make_topology("ring", 8), Wish(add=1), Limits()).cost is None
    with pytest.raises(TopologyError, match="not connected; join its parts first"):
        recommend(Topology("parts", 4, ((0, 1), (2, 3))), Wish(add=1), Limits())


def test_costs_say_which_links_can_be_had_and_for_how_much(tmp_path: Path) -> None:
    graph = make_topology("abilene")
    path = tmp_path / "costs.csv"
    path.write_text("# from, to, cost\nSeattle, New York, 7\n0, 8, 2.5\n\nHouston,Chicago,3\n")
    costs = read_costs(path, graph)
    assert costs == {(0, 10): 7.0, (0, 8): 2.5, (5, 8): 3.0}
    dear = recommend(graph, Wish(add=3), Limits(costs=costs))
    assert set(dear.added) <= set(costs)
    cheap = recommend(graph, Wish(add=3), Limits(costs=costs, budget=3.0))
    assert len(cheap.added) == 1
    assert cheap.cost is not None
    assert cheap.cost <= 3.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Seattle, Chicago", "line 1 has 2 fields; write from, to, cost"),
        ("Seattle, Paris, 1", '"Paris" is no node'),
        ("Seattle, 0, 1", "links a node to itself"),
        ("Seattle, 5, -1", 'cost "-1" is no number of at least 0'),
        ("Seattle, 5, nan", 'cost "nan" is no number'),
        ("Seattle, 5, much", 'cost "much" is no number'),
    ],
)
def test_wrong_costs_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(line)
    with pytest.raises(TopologyError, match=message):
        read_costs(path, make_topology("abilene"))


def test_costs_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopologyError, match="are not UTF-8 text"):
        read_costs(path, make_topology("abilene"))
    with pytest.raises(TopologyError, match="cannot be read"):
        read_costs(tmp_path / "none.csv", make_topology("abilene"))


def located(*positions: tuple[float, float]) -> Topology:
    return Topology("sites", len(positions), tuple((i, i + 1) for i in range(len(positions) - 1)), positions=positions)


def test_degrees_are_measured_along_great_circles() -> None:
    # Paris to New York, 5837 km (by the mean radius of 6371.0088 km).
    measure = ruler(located((2.3522, 48.8566), (-74.006, 40.7128), (2.3522, 48.8567)))
    assert (measure.metric, measure.unit) == ("earth", "km")
    assert float(measure.lengths(0, 1)) == pytest.approx(5837, abs=1)
    assert float(measure.lengths(0, 2)) == pytest.approx(0.01112, abs=1e-5)


@pytest.mark.parametrize(
    ("positions", "metric"),
    [
        (((0.1, 0.2), (0.9, 0.8)), "plane"),  # the unit square of drawn sites
        (((49.0, -161.4), (60.9, -203.1)), "plane"),  # a drawing
        (((8.55, 47.37), (8.56, 47.38)), "earth"),  # a town
    ],
)
def test_positions_are_taken_for_what_they_look_like(positions: tuple[tuple[float, float], ...], metric: str) -> None:
    assert ruler(located(*positions)).metric == metric
    assert ruler(located(*positions), "plane").lengths(0, 1) == pytest.approx(math.dist(*positions))


def test_a_draft_gives_back_what_it_took() -> None:
    graph = make_topology("ring", 6)
    draft = Draft(graph, Limits(max_links=7))
    draft.exchange([(0, 1)], [(0, 3), (1, 4)])
    assert (draft.added, draft.removed) == (((0, 3), (1, 4)), ((0, 1),))
    assert not draft.open_pairs().any()
    draft.exchange([(0, 3), (1, 4)], [(0, 1)])
    assert draft.topology() is graph
    assert int(draft.open_pairs().sum()) == 2 * (15 - 6)
