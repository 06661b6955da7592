"""Graphs that change each round: rates known from the papers, invariants of every sequence, one line a mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import (
    SEQUENCES,
    TOPOLOGIES,
    MixingSequence,
    RoundLinks,
    is_sequence,
    make_sequence,
    make_topology,
)
from gossipfl.topology.graph import canonical_edges
from gossipfl.topology.limits import MAX_NODES
from gossipfl.topology.sequences.epidemic import EpidemicLocal, EpidemicOracle
from gossipfl.topology.sequences.equi import EquiDyn, EquiStatic
from gossipfl.topology.sequences.schedule import Arrows

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("one-peer-exponential", {}),
    ("base-k", {}),
    ("base-k", {"k": 3}),
    ("equistatic", {}),
    ("equistatic", {"m": 9}),
    ("equidyn", {}),
    ("equidyn", {"m": 2, "eta": 1}),
    ("equidyn", {"variant": "undirected"}),
    ("epidemic", {}),
    ("epidemic", {"s": 2}),
    ("epidemic", {"variant": "local"}),
    ("matching", {}),
    ("matching", {"graph": "star"}),
]
DRAWN = [(name, options) for name, options in KINDS if name in ("equidyn", "epidemic", "matching")]


def dense(links: RoundLinks) -> np.ndarray:
    return links.matrix().toarray()


def rate(matrix: np.ndarray) -> float:
    """σ₂: the norm of what is left of differences."""
    return float(np.linalg.norm(matrix - 1 / len(matrix), 2))


def unit_difference(nodes: int) -> np.ndarray:
    vector = np.random.default_rng(0).standard_normal(nodes)
    vector -= vector.mean()
    return vector / np.linalg.norm(vector)


def mean_square(sequence: MixingSequence, rounds: int) -> float:
    vector = unit_difference(sequence.nodes)
    return float(np.mean([np.sum((sequence.links(round_).matrix() @ vector) ** 2) for round_ in range(rounds)]))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(KINDS), st.integers(4, 40), st.integers(0, 2**63 - 1), st.integers(0, 10_000))
def test_every_round_of_every_sequence_is_well_formed_and_repeatable(
    kind: tuple[str, dict[str, Any]], nodes: int, seed: int, round_: int
) -> None:
    sequence = make_sequence(kind[0], nodes, kind[1], seed)
    links = sequence.links(round_)
    assert (sequence.name, sequence.nodes, links.nodes) == (kind[0], nodes, nodes)
    for node in range(nodes):
        senders = links.senders[links.starts[node] : links.starts[node + 1]].tolist()
        assert node not in senders
        assert all(first < second for first, second in pairwise(senders))
        assert all(0 <= sender < nodes for sender in senders)
    assert links.starts.dtype == links.senders.dtype == np.int64
    matrix = dense(links)
    assert matrix.min() >= 0
    assert matrix.sum(axis=1) == pytest.approx(np.ones(nodes))
    if sequence.doubly_stochastic:
        assert matrix.sum(axis=0) == pytest.approx(np.ones(nodes))
    later = 0 if sequence.period is None else sequence.period
    for other in (make_sequence(kind[0], nodes, kind[1], seed).links(round_), sequence.links(round_ + later)):
        assert (dense(other) == matrix).all()


@pytest.mark.parametrize(("name", "options"), DRAWN)
def test_drawn_rounds_differ_by_round_and_by_seed(name: str, options: Mapping[str, object]) -> None:
    first, other = make_sequence(name, 30, options, 1), make_sequence(name, 30, options, 2)
    drawn = {dense(sequence.links(round_)).tobytes() for sequence in (first, other) for round_ in range(6)}
    # Hops are few and stars have few matchings: some rounds may be alike.
    assert len(drawn) >= (3 if options.get("m") else 9)
    assert first.period is None


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_the_union_holds_whoever_talks_and_nobody_else(name: str, options: Mapping[str, object]) -> None:
    sequence = make_sequence(name, 17, options, 3)
    heard = set()
    for round_ in range(sequence.period or 200):
        links = sequence.links(round_)
        heard.update(canonical_edges(zip(links.receivers.tolist(), links.senders.tolist(), strict=True)))
    union = sequence.union()
    assert heard == set(make_topology("complete", 17).edges if union is None else union.edges)
    assert union is None or union.is_connected


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("one-peer-exponential", {}, 1.0),
        ("equidyn", {}, 1.0),
        ("epidemic", {"s": 6}, 6.0),
        ("epidemic", {"s": 5, "variant": "local"}, 5.0),
        ("epidemic", {}, 6.0),  # ceil(log2 21) = 5 is odd, and so are 21 nodes
        ("epidemic", {"variant": "local"}, 5.0),
        ("matching", {}, 20 / 21),
        ("matching", {"graph": "star"}, 2 / 21),
    ],
)
def test_messages_of_twenty_one_nodes(name: str, options: Mapping[str, object], messages: float) -> None:
    assert make_sequence(name, 21, options).messages() == pytest.approx(messages)


def test_one_peer_exponential_is_exact_for_powers_of_two_alone() -> None:
    left = {}
    for nodes in (2, 4, 8, 16, 32, 20):
        sequence = make_sequence("one-peer-exponential", nodes)
        matrix = np.eye(nodes)
        for round_ in range(sequence.period or 0):
            matrix = dense(sequence.links(round_)) @ matrix
        left[nodes] = rate(matrix)
    assert left.pop(20) == pytest.approx(0.19, abs=0.001)
    assert max(left.values()) < 1e-12


def test_equistatic_mixes_as_measured_with_the_authors_draws() -> None:
    # The authors' code draws with numpy's legacy generator; their 50 first seeds at n = 20, M = 5.
    drawn = (np.random.RandomState(seed).choice(np.arange(1, 20), size=5) for seed in range(50))
    rates = [rate(dense(EquiStatic(20, tuple(hops.tolist())).links(0))) for hops in drawn]
    assert np.mean(rates) == pytest.approx(0.714, abs=0.0005)
    assert min(rates) == pytest.approx(0.520, abs=0.0005)


def test_equistatic_draws_mix_about_as_well() -> None:
    rates = [rate(dense(make_sequence("equistatic", 20, {"m": 5}, seed).links(0))) for seed in range(200)]
    assert np.mean(rates) == pytest.approx(0.70, abs=0.03)


def test_a_hop_drawn_twice_counts_twice() -> None:
    matrix = dense(EquiStatic(5, (1, 1, 3)).links(7))
    assert matrix[0] == pytest.approx([1 / 5, 8 / 15, 0, 4 / 15, 0])


def test_all_hops_together_are_the_exact_average() -> None:
    assert dense(EquiStatic(9, tuple(range(1, 9))).links(0)) == pytest.approx(np.full((9, 9), 1 / 9))


@pytest.mark.parametrize("eta", [0.3, 0.5, 1.0])
def test_equidyn_shrinks_squares_at_its_rate(eta: float) -> None:
    nodes = 24
    wanted = (1 - eta) ** 2 + eta**2 * (1 - 2 / nodes)
    assert mean_square(EquiDyn(nodes, 5, eta=eta), 500) == pytest.approx(wanted, rel=0.05)


def test_undirected_equidyn_joins_pairs_at_one_hop_as_many_as_fit() -> None:
    sequence = EquiDyn(21, 4, undirected=True)
    for round_ in range(20):
        links = sequence.links(round_)
        hops = {min((j - i) % 21, (i - j) % 21) for i, j in zip(links.receivers, links.senders, strict=True)}
        assert len(hops) == 1
        alone = np.flatnonzero(np.diff(links.starts) == 0).tolist()
        assert all((i - j) % 21 not in hops for i in alone for j in alone)
        assert set(links.weights) == {0.5 * (1 - 1 / 21)}


@pytest.mark.parametrize(("nodes", "s"), [(24, 4), (15, 2)])
def test_epidemic_learning_shrinks_squares_as_in_the_paper(nodes: int, s: int) -> None:
    # Lemma of de Vos et al.: α_s of EL-Oracle and of EL-Local.
    oracle = (1 - s / (nodes - 1)) / (s + 1)
    local = (1 - (1 - s / (nodes - 1)) ** nodes) / s - 1 / (nodes - 1)
    assert mean_square(EpidemicOracle(nodes, s, 5), 400) == pytest.approx(oracle, rel=0.06)
    assert mean_square(EpidemicLocal(nodes, s, 5), 400) == pytest.approx(local, rel=0.06)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 29), st.integers(0, 1000))
def test_the_oracle_gives_everyone_s_neighbours_sparse_or_dense(nodes: int, s: int, seed: int) -> None:
    if s < nodes and nodes * s % 2 == 0:
        links = EpidemicOracle(nodes, s, seed).links(0)
        assert set(np.diff(links.starts)) == {s}
        assert (dense(links) == dense(links).T).all()


def test_the_oracle_draws_every_graph() -> None:
    # Six nodes with two neighbours each: 60 hexagons and 10 pairs of triangles.
    sequence = EpidemicOracle(6, 2, 0)
    assert len({dense(sequence.links(round_)).tobytes() for round_ in range(900)}) == 70


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 29), st.integers(0, 1000))
def test_local_sends_to_s_others_and_receivers_average_evenly(nodes: int, s: int, seed: int) -> None:
    if s < nodes:
        links = EpidemicLocal(nodes, s, seed).links(0)
        assert set(np.bincount(links.senders, minlength=nodes)) == {s}
        received = np.diff(links.starts)
        assert links.weights == pytest.approx(1 / (1 + received[links.receivers]))
        assert links.own_weights == pytest.approx(1 / (1 + received))


def test_local_chooses_all_others_alike() -> None:
    sequence = EpidemicLocal(7, 3, 1)
    chosen = sum((dense(sequence.links(round_)) > 0).astype(int) for round_ in range(1000))
    # Each of 42 ordered pairs is chosen with probability 1/2: four standard deviations are 63.
    assert np.abs(chosen[~np.eye(7, dtype=bool)] - 500).max() < 63


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["ring", "tree", "erdos-renyi", "barabasi-albert"]), st.integers(4, 40), st.integers(0, 99))
def test_a_matching_of_a_graph_uses_its_edges_and_leaves_none_free(graph: str, nodes: int, seed: int) -> None:
    edges = make_topology(graph, nodes, seed=seed).edges
    sequence = make_sequence("matching", nodes, {"graph": graph}, seed)
    links = sequence.links(seed)
    joined = set(canonical_edges(zip(links.receivers.tolist(), links.senders.tolist(), strict=True)))
    assert joined <= set(edges)
    taken = {node for edge in joined for node in edge}
    assert len(taken) == 2 * len(joined)
    assert all(i in taken or j in taken for i, j in edges)
    assert set(links.weights) == {0.5}


def test_links_are_sorted_from_arrows_in_any_order() -> None:
    arrows = Arrows(np.array([2, 0, 2]), np.array([1, 2, 0]), np.array([0.25, 0.5, 0.125]))
    links = arrows.links(3)
    assert (links.starts.tolist(), links.senders.tolist()) == ([0, 1, 1, 3], [2, 0, 1])
    assert links.weights.tolist() == [0.5, 0.125, 0.25]
    assert dense(links).tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.125, 0.25, 0.625]]


def test_names_tell_sequences_and_families_apart() -> None:
    assert not SEQUENCES.keys() & TOPOLOGIES.keys()
    assert all(is_sequence(name) for name in SEQUENCES)
    assert not any(is_sequence(name) for name in (*TOPOLOGIES, "abilene", "./ring.json", "zzz"))


@pytest.mark.parametrize(
    ("name", "nodes", "options", "message"),
    [
        ("ring", 8, {}, 'topology "ring" is no sequence of graphs; choose one of: one-peer-exponential, base-k'),
        ("bas-k", 8, {}, 'is no sequence of graphs; did you mean "base-k"'),
        ("base-k", None, {}, 'topology "base-k" needs a number of nodes; give nodes'),
        ("base-k", 1, {}, "1 nodes are too few; give 2 to"),
        ("base-k", MAX_NODES + 1, {}, "too many; give 2 to"),
        ("base-k", 8, {"k": 8}, "k is 8 with 8 nodes; give 1 to 7"),
        ("base-k", 8, {"k": 0}, "k is 0 with 8 nodes; give 1 to 7"),
        ("base-k", 8, {"k": "two"}, "k is 'two'; give a whole number"),
        ("base-k", 100_000, {"k": 60}, "about 3000000 edges; give fewer nodes"),
        ("one-peer-exponential", 8, {"k": 2}, 'has no option "k"; it takes none'),
        ("equistatic", 8, {"m": 0}, "m is 0; give at least 1 hop"),
        ("equidyn", 8, {"m": -1}, "m is -1; give at least 1 hop"),
        ("equidyn", 8, {"eta": 0}, "eta is 0; give a share above 0 and at most 1"),
        ("equidyn", 8, {"eta": 1.5}, "eta is 1.5; give a share above 0 and at most 1"),
        ("equidyn", 8, {"variant": "directd"}, 'variant is "directd"; did you mean "directed"'),
        ("epidemic", 8, {"s": 8}, "s is 8 with 8 nodes; give 1 to 7"),
        ("epidemic", 8, {"s": 0}, "s is 0 with 8 nodes; give 1 to 7"),
        ("epidemic", 9, {"s": 3}, "no graph of 9 nodes has 3 neighbours for each .*; give an even s, an even number"),
        ("epidemic", 8, {"variant": 2}, "variant is 2; give a text"),
        ("epidemic", 100_000, {"s": 30}, "about 3000000 edges; give fewer nodes"),
        ("matching", 10, {"graph": "abilene"}, 'topology "abilene" has 11 nodes, not 10; leave the number of nodes'),
        ("matching", 10, {"graph": "base-k"}, "another graph each round, and one for all rounds is needed here"),
        ("matching", 13, {"graph": "torus"}, 'topology "torus": 13 nodes cannot be laid out'),
    ],
)
def test_mistakes_are_told_in_one_line_with_the_mend(
    name: str, nodes: int | None, options: Mapping[str, object], message: str
) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        make_sequence(name, nodes, options)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_names_are_listed_without_loading_numpy() -> None:
    code = "import gossipfl.topology, sys, json; print(json.dumps([name for name in sys.modules if '.' not in name]))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert not {"numpy", "scipy", "networkx", "torch"} & set(loaded)
