"""r-robustness against the definition itself, over all pairs of sets, and known graphs."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis import robustness
from gossipfl.topology.analysis.robustness import bounds, by_integer_program, by_subsets
from gossipfl.topology.analysis.robustness import robustness as robustness_of
from gossipfl.topology.graph import canonical_edges

connected = st.tuples(st.sampled_from(["erdos-renyi", "barabasi-albert", "complete", "ring"]), st.integers(4, 7))


def is_robust(graph: Topology, r: int, s: int) -> bool:
    """The definition of LeBlanc et al., word by word."""
    around = [set(graph.neighbours(node)) for node in range(graph.nodes)]
    sets = [set(c) for size in range(1, graph.nodes) for c in combinations(range(graph.nodes), size)]
    reached = [sum(len(around[node] - one) >= r for node in one) for one in sets]
    return all(
        reached[a] == len(sets[a]) or reached[b] == len(sets[b]) or reached[a] + reached[b] >= s
        for a in range(len(sets))
        for b in range(a)
        if not sets[a] & sets[b]
    )


def largest(graph: Topology) -> tuple[int, int]:
    r = max(r for r in range(-(-graph.nodes // 2) + 1) if r == 0 or is_robust(graph, r, 1))
    total = max(f for f in range(graph.nodes - 1) if is_robust(graph, f + 1, f + 1))
    return r, total


PETERSEN = Topology(
    "petersen",
    10,
    canonical_edges(
        [
            *((i, (i + 1) % 5) for i in range(5)),
            *((i, i + 5) for i in range(5)),
            *((5 + i, 5 + (i + 2) % 5) for i in range(5)),
        ]
    ),
)


@settings(max_examples=25, deadline=None)
@given(connected, st.integers(0, 99))
def test_robustness_is_the_definition(family: tuple[str, int], seed: int) -> None:
    graph = make_topology(*family, seed=seed)
    r, total = largest(graph)
    assert by_subsets(graph) == (r, total)
    assert by_integer_program(graph) == (r, r)
    least, most = bounds(graph)
    assert least <= r <= most


@pytest.mark.parametrize(
    ("graph", "r", "total"),
    [
        (make_topology("complete", 7), 4, 3),  # ceil(n/2); n > 2F
        (make_topology("complete", 8), 4, 3),
        (make_topology("ring", 12), 1, 0),
        (make_topology("star", 9), 1, 0),
        (make_topology("hypercube", 16), 1, 0),  # two halves, each node with one neighbour in the other
        (PETERSEN, 1, 0),  # two pentagons, likewise
        (Topology("one", 1, ()), 1, 0),
        (make_topology("line", 2), 1, 0),
    ],
    ids=lambda value: value.name if isinstance(value, Topology) else None,
)
def test_robustness_of_known_graphs(graph: Topology, r: int, total: int) -> None:
    found = robustness_of(graph)
    assert (found.least, found.most, found.total_least, found.total_most) == (r, r, total, total)
    assert found.exact


def test_preferential_attachment_to_a_complete_core_keeps_its_robustness() -> None:
    # LeBlanc et al., theorem 5: a new node with at least r links into an r-robust graph leaves it r-robust.
    core = [(i, j) for i, j in combinations(range(7), 2)]
    grown = core + [(new, old) for new in range(7, 14) for old in (new - 7, new - 5, new - 3, new - 1)]
    assert robustness_of(Topology("grown", 14, canonical_edges(grown))).least >= 4


@pytest.mark.parametrize(("name", "nodes"), [("random-regular", 24), ("geant2012", None), ("dumbbell", 30)])
def test_beyond_all_subsets_the_integer_program_narrows_the_bounds(name: str, nodes: int | None) -> None:
    graph = make_topology(name, nodes, seed=2)
    assert graph.nodes > robustness.SUBSET_NODES
    found = robustness_of(graph)
    least, most = bounds(graph)
    assert least <= found.least <= found.most <= most
    assert found.exact
    assert found.local <= found.total_least <= found.total_most < found.most + (found.most == 0)


@settings(max_examples=10, deadline=None)
@given(st.integers(8, 10), st.integers(0, 99))
def test_bounds_by_each_method_hold_the_exact_number(nodes: int, seed: int) -> None:
    graph = make_topology("erdos-renyi", nodes, {"p": 0.6}, seed=seed)
    exact = robustness_of(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness, "SUBSET_NODES", 0)
        for method, limit in (("integer program", 64), ("bounds", 0)):
            patch.setattr(robustness, "PROGRAM_NODES", limit)
            found = robustness_of(graph)
            assert found.method in (method, "bounds")
            assert found.least <= exact.least <= found.most
            assert found.total_least <= exact.total_least <= found.total_most


def test_parts_are_not_robust_at_all() -> None:
    found = robustness_of(Topology("parts", 4, ((0, 1), (2, 3))))
    assert (found.least, found.most, found.local) == (0, 0, 0)
