"""The graph type and its mixing weights."""

from __future__ import annotations

import pickle
from math import fsum

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology
from gossipfl.topology.graph import canonical_edges
from gossipfl.topology.weights import metropolis, mixing_csr


@st.composite
def graphs(draw: st.DrawFn) -> Topology:
    """Any simple graph of up to 24 nodes, connected or not."""
    nodes = draw(st.integers(1, 24))
    node = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=60))
    return Topology("any", nodes, canonical_edges(pairs))


@given(graphs())
def test_neighbours_are_symmetric_ascending_and_without_self(graph: Topology) -> None:
    for node in range(graph.nodes):
        around = graph.neighbours(node)
        assert list(around) == sorted(set(around) - {node})
        assert all(node in graph.neighbours(other) for other in around)
        assert graph.degrees[node] == len(around)
    assert sum(graph.degrees) == 2 * len(graph.edges)


@given(graphs())
def test_connectedness_and_parts_agree_with_networkx(graph: Topology) -> None:
    reference = graph.to_networkx()
    assert sorted(reference) == list(range(graph.nodes))
    assert graph.is_connected == nx.is_connected(reference)
    parts = graph.components()
    assert {frozenset(part) for part in parts} == {frozenset(part) for part in nx.connected_components(reference)}
    assert [len(part) for part in parts] == sorted(map(len, parts), reverse=True)


@given(graphs())
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(graph: Topology) -> None:
    weights = metropolis(graph)
    for node in range(graph.nodes):
        around = graph.neighbours(node)
        assert len(weights[node]) == len(around)
        for other, weight in zip(around, weights[node], strict=True):
            assert weight == 1 / (1 + max(graph.degrees[node], graph.degrees[other]))
            assert weight == weights[other][graph.neighbours(other).index(node)]
        assert 1 - fsum(weights[node]) >= 1 / (1 + len(around)) - 1e-12


@given(graphs())
def test_mixing_matrix_holds_the_same_weights(graph: Topology) -> None:
    sparse = mixing_csr(graph)
    matrix = sparse.toarray()
    assert sparse.has_sorted_indices
    assert matrix.shape == (graph.nodes, graph.nodes)
    assert np.array_equal(matrix, matrix.T)
    assert np.allclose(matrix.sum(axis=0), 1, atol=1e-12)
    assert (matrix >= 0).all()
    for node, row in enumerate(metropolis(graph)):
        assert matrix[node, list(graph.neighbours(node))].tolist() == list(row)
    assert np.count_nonzero(matrix - np.diag(matrix.diagonal())) == 2 * len(graph.edges)


@given(graphs(), st.data())
def test_induced_subgraph_keeps_edges_labels_and_order(graph: Topology, data: st.DataObject) -> None:
    keep = data.draw(st.sets(st.integers(0, graph.nodes - 1), min_size=1))
    labelled = Topology("any", graph.nodes, graph.edges, labels=tuple(f"site {n}" for n in range(graph.nodes)))
    part = labelled.induced(keep, ["cut"])
    assert part.labels is not None
    kept = [int(label.removeprefix("site ")) for label in part.labels]
    assert kept == sorted(keep)
    assert {(kept[i], kept[j]) for i, j in part.edges} == {e for e in graph.edges if keep.issuperset(e)}
    assert part.repairs == ("cut",)


def test_it_pickles_and_compares_by_value() -> None:
    path = Topology("path", 3, ((0, 1), (1, 2)), labels=("a", "b", "c"))
    copy = pickle.loads(pickle.dumps(path))
    assert copy == path
    assert hash(copy) == hash(path)
    assert copy.neighbours(1) == (0, 2)
    assert [path.label(0), Topology("bare", 1, ()).label(0)] == ["a", "0"]


@pytest.mark.parametrize(
    ("nodes", "edges", "labels", "message"),
    [
        (0, (), None, "needs at least one"),
        (3, ((1, 0),), None, "not 0 <= i < j < 3"),
        (3, ((0, 0),), None, "not 0 <= i < j < 3"),
        (3, ((0, 3),), None, "not 0 <= i < j < 3"),
        (3, ((0, 1), (0, 1)), None, "not ascending and distinct"),
        (3, ((1, 2), (0, 1)), None, "not ascending and distinct"),
        (3, ((0, 1),), ("a",), "3 nodes but 1 labels"),
    ],
)
def test_what_is_no_simple_graph_is_refused(
    nodes: int, edges: tuple[tuple[int, int], ...], labels: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(TopologyError, match=message):
        Topology("bad", nodes, edges, labels=labels)


def test_weights_of_a_large_sparse_graph_take_sparse_memory() -> None:
    nodes = 10_000
    ring = Topology("ring", nodes, canonical_edges((i, (i + 1) % nodes) for i in range(nodes)))
    assert mixing_csr(ring).nnz == 3 * nodes
    assert set(metropolis(ring)) == {(1 / 3, 1 / 3)}
