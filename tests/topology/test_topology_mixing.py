"""Mixing times against powers taken one by one and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis.mixing import mixing_time, rounds, rounds_of_every_node
from gossipfl.topology.analysis.spectra import effective_resistance, spectral_gap
from gossipfl.topology.weights import mixing_csr

names = st.sampled_from(["ring", "line", "star", "complete", "erdos-renyi", "tree", "barabasi-albert"])


def slow_rounds(graph: Topology, share: float) -> tuple[int, int]:
    """Rounds until the norm, and until the largest total variation distance, is at most the share."""
    mixing = mixing_csr(graph).toarray()
    power, found = np.eye(graph.nodes), [0, 0]
    for t in range(1, 100_000):
        power = power @ mixing
        away = power - 1 / graph.nodes
        for k, left in enumerate((np.linalg.norm(away, 2), 0.5 * np.abs(away).sum(axis=1).max())):
            if not found[k] and left <= share + 1e-12:
                found[k] = t
        if all(found):
            break
    return found[0], found[1]


@settings(max_examples=40, deadline=None)
@given(names, st.integers(3, 12), st.integers(0, 99), st.sampled_from([1 / math.e, 0.1, 0.01]))
def test_mixing_times_agree_with_one_round_at_a_time(name: str, nodes: int, seed: int, share: float) -> None:
    graph = make_topology(name, nodes, seed=seed)
    time = mixing_time(graph, share, 1 - spectral_gap(graph))
    assert (time.rounds, time.every_node) == slow_rounds(graph, share)


def test_a_complete_graph_agrees_at_once_and_parts_never() -> None:
    complete = make_topology("complete", 9)
    assert mixing_time(complete, 0.01, 1 - spectral_gap(complete)) == mixing_time(complete, 0.01, 0.0)
    assert mixing_time(complete, 0.01, 0.0).rounds == 1
    parts = Topology("parts", 4, ((0, 1), (2, 3)))
    time = mixing_time(parts, 0.01, 1 - spectral_gap(parts))
    assert (time.rounds, time.every_node) == (None, None)


def test_whole_powers_are_not_rounded_up() -> None:
    assert [rounds(0.5, 0.5**t) for t in (1, 2, 5, 10)] == [1, 2, 5, 10]
    assert rounds(0.1, 0.01) == 2


def test_a_long_line_takes_few_products_of_matrices() -> None:
    # Thousands of rounds; by one product each this would take minutes.
    line = make_topology("line", 60)
    found = rounds_of_every_node(line, 0.01)
    mixing = mixing_csr(line).toarray()
    left = [0.5 * np.abs(np.linalg.matrix_power(mixing, t) - 1 / 60).sum(axis=1).max() for t in (found - 1, found)]
    assert left[1] <= 0.01 < left[0]


@pytest.mark.parametrize(
    ("name", "nodes", "resistance"),
    [("line", 10, 165.0), ("complete", 10, 9.0), ("ring", 10, 82.5), ("star", 10, 81.0)],
)
def test_effective_resistance_is_known_for_simple_graphs(name: str, nodes: int, resistance: float) -> None:
    # Line (n³ - n)/6, complete n - 1, ring (n³ - n)/12, star (n - 1)²: Klein and Randić, 1993.
    assert effective_resistance(make_topology(name, nodes)) == pytest.approx(resistance)


def test_effective_resistance_is_unknown_for_parts() -> None:
    assert effective_resistance(Topology("parts", 4, ((0, 1), (2, 3)))) is None
