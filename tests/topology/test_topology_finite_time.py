"""Base-(k+1) graphs: exact agreement after a known number of rounds, for any number of nodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.topology import make_sequence
from gossipfl.topology.sequences.finite_time import BaseGraph, HyperHypercube, SimpleBase, averaging
from gossipfl.topology.sequences.schedule import MixingSequence

pairs_of_nodes_and_k = st.integers(2, 90).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, min(n - 1, 9))))


def after_one_period(sequence: MixingSequence) -> np.ndarray:
    matrix = np.eye(sequence.nodes)
    for round_ in range(sequence.period):
        matrix = sequence.links(round_).matrix() @ matrix
    return matrix


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_all_nodes_have_the_average_after_one_period(k: int) -> None:
    for nodes in range(k + 1, 31):
        error = np.abs(after_one_period(make_sequence("base-k", nodes, {"k": k})) - 1 / nodes).max()
        assert error < 1e-12, nodes


@settings(max_examples=40, deadline=None)
@given(pairs_of_nodes_and_k)
def test_every_round_is_symmetric_doubly_stochastic_and_has_at_most_k_neighbours(case: tuple[int, int]) -> None:
    nodes, k = case
    sequence = BaseGraph(nodes, k)
    assert np.abs(after_one_period(sequence) - 1 / nodes).max() < 1e-12
    for round_ in range(sequence.period):
        links = sequence.links(round_)
        matrix = links.matrix().toarray()
        assert np.diff(links.starts).max() <= k
        assert matrix.min() >= 0
        assert (matrix == matrix.T).all()
        assert matrix.sum(axis=0) == pytest.approx(np.ones(nodes))


@pytest.mark.parametrize(("k", "period", "messages"), [(1, 7, 6.0), (2, 5, 6.0), (3, 4, 9.4), (4, 2, 7.0)])
def test_twenty_nodes_take_as_many_rounds_and_messages_as_the_authors_code(
    k: int, period: int, messages: float
) -> None:
    sequence = make_sequence("base-k", 20, {"k": k})
    assert sequence.period == period
    assert sequence.messages() * period == pytest.approx(messages)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5000), st.integers(1, 12))
def test_the_period_keeps_the_bound_of_the_paper(nodes: int, k: int) -> None:
    if k < nodes:
        assert BaseGraph(nodes, k).period <= 2 * math.log(nodes, k + 1) + 2 + 1e-9


def test_teams_save_a_round_where_the_number_has_small_factors() -> None:
    # By digits alone, 6 = 4 + 2: 2 rounds within the four, 1 to meet, 2 within the four again. Teams of three: 3 and 1.
    assert SimpleBase(6, 1).rounds == 5
    assert BaseGraph(6, 1).period == 4


def test_powers_and_products_take_as_few_rounds_as_they_have_factors() -> None:
    assert [BaseGraph(nodes, 1).period for nodes in (2, 4, 8, 64)] == [1, 2, 3, 6]
    assert [BaseGraph(nodes, 4).period for nodes in (5, 20, 25, 24)] == [1, 2, 2, 3]
    assert BaseGraph(30, 29).period == 1


@pytest.mark.parametrize("most", [2, 3, 6, 10, 13])
def test_hyper_hypercubes_have_the_fewest_factors_there_are(most: int) -> None:
    fewest = [math.inf, 0.0]
    for nodes in range(2, 400):
        fewest.append(1 + min((fewest[nodes // f] for f in range(2, most + 1) if nodes % f == 0), default=math.inf))
        found = averaging(nodes, most - 1)
        assert isinstance(found, HyperHypercube) == math.isfinite(fewest[nodes])
        if isinstance(found, HyperHypercube):
            assert math.prod(found.factors) == nodes
            assert max(found.factors) <= most
            assert found.rounds == fewest[nodes]


def test_ten_thousand_nodes_agree() -> None:
    sequence = BaseGraph(10_007, 2)
    models = np.random.default_rng(0).standard_normal(sequence.nodes)
    mixed = models
    for round_ in range(sequence.period):
        mixed = sequence.links(round_).matrix() @ mixed
    assert mixed == pytest.approx(np.full(sequence.nodes, models.mean()))
