"""Graphs of sites with places, against distances measured pair by pair."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology, from_sites, make_topology
from gossipfl.topology.families import spatial
from gossipfl.topology.graph import Position

CITIES = {"Paris": (2.35, 48.86), "London": (-0.13, 51.51), "Berlin": (13.40, 52.52), "Rome": (12.50, 41.90)}

numbers = st.floats(-1000, 1000, width=32)
places = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12)
# Whole numbers: on the earth, sites a hair apart are one place to float64.
grid_places = st.lists(st.tuples(*[st.integers(-1000, 1000)] * 2), min_size=2, max_size=12, unique=True)
coordinates = st.lists(st.tuples(st.floats(-180, 180), st.floats(-90, 90)), min_size=2, max_size=12)


def haversine_km(first: Position, second: Position) -> float:
    (a, b), (c, d) = ((math.radians(x), math.radians(y)) for x, y in (first, second))
    half = math.sin((d - b) / 2) ** 2 + math.cos(b) * math.cos(d) * math.sin((c - a) / 2) ** 2
    return 2 * 6371.0088 * math.asin(min(1.0, math.sqrt(half)))


def pairs_within(sites: Sequence[Position], limit: float, distance: object) -> set[tuple[int, int]]:
    assert callable(distance)
    pairs = ((i, j) for j in range(len(sites)) for i in range(j))
    return {(i, j) for i, j in pairs if distance(sites[i], sites[j]) <= limit}


def linked(sites: list[Position], **options: object) -> Topology | None:
    """The graph of ``sites``, or None where it is told not to be connected."""
    try:
        return from_sites(sites, **options)
    except TopologyError as error:
        if "the sites fall into" not in str(error):
            raise
        return None


@settings(max_examples=60, deadline=None)
@given(places, st.floats(1, 3000, width=32))
def test_within_range_is_what_distances_say(sites: list[Position], limit: float) -> None:
    near = pairs_within(sites, limit * (1 - 1e-9), math.dist)
    far = pairs_within(sites, limit * (1 + 1e-9), math.dist)
    graph = linked(sites, range_=limit)
    if graph is None:
        return
    assert near <= set(graph.edges) <= far
    assert graph.positions == tuple(sites)


@settings(max_examples=60, deadline=None)
@given(coordinates, st.floats(1, 20_100))
def test_range_on_the_earth_is_along_the_ground(sites: list[Position], limit: float) -> None:
    # A metre of slack: sines of small angles cost digits in both forms.
    near, far = pairs_within(sites, limit - 0.001, haversine_km), pairs_within(sites, limit + 0.001, haversine_km)
    graph = linked(sites, range_=limit, metric="earth")
    if graph is None:
        return
    assert near <= set(graph.edges) <= far


def test_cities_within_1200_km() -> None:
    graph = from_sites(list(CITIES.values()), range_=1200, metric="earth", labels=tuple(CITIES), name="cities")
    joined = {frozenset((graph.label(i), graph.label(j))) for i, j in graph.edges}
    # Great circles: Paris - London 344 km, - Berlin 878, - Rome 1106; London - Berlin 931; Berlin - Rome 1182.
    assert joined == {
        frozenset(pair)
        for pair in [
            ("Paris", "London"),
            ("Paris", "Berlin"),
            ("Paris", "Rome"),
            ("London", "Berlin"),
            ("Berlin", "Rome"),
        ]
    }


@settings(max_examples=60, deadline=None)
@given(places, st.integers(1, 11))
def test_each_site_is_joined_to_as_near_ones_as_there_are(sites: list[Position], k: int) -> None:
    if k >= len(sites):
        with pytest.raises(TopologyError, match=f"k is {k} with {len(sites)} sites; give 1 to {len(sites) - 1}"):
            from_sites(sites, k=k)
        return
    graph = linked(sites, k=k)
    if graph is None:
        return
    reach = [sorted(math.dist(site, other) for other in sites)[k] for site in sites]
    for i in range(len(sites)):
        joined = graph.neighbours(i)
        assert len(joined) >= k
        # Whoever is nearer than the k-th nearest is joined; a longer link is within the other's reach.
        assert {
            j for j in range(len(sites)) if j != i and math.dist(sites[i], sites[j]) < reach[i] * (1 - 1e-9)
        } <= set(joined)
        assert all(math.dist(sites[i], sites[j]) <= max(reach[i], reach[j]) * (1 + 1e-9) for j in joined)


def test_sites_at_one_place_are_joined_to_each_other_not_to_themselves() -> None:
    graph = from_sites([(0.0, 0.0)] * 5, k=2)
    assert all(len(graph.neighbours(node)) >= 2 for node in range(5))


@settings(max_examples=30, deadline=None)
@given(grid_places, st.sampled_from(["plane", "earth"]))
def test_a_range_too_short_is_mended_by_the_one_that_is_told(sites: list[Position], metric: str) -> None:
    if metric == "earth":
        sites = [(x * 0.18, y * 0.09) for x, y in sites]
    with pytest.raises(TopologyError, match="needs a range; give a range of at least") as caught:
        from_sites(sites, metric=metric)
    told = re.search(r"at least (\S+),", str(caught.value))
    assert told is not None
    least = float(told[1])
    assert from_sites(sites, range_=least, metric=metric).is_connected
    with pytest.raises(TopologyError, match="the sites fall into"):
        from_sites(sites, range_=least * 0.99, metric=metric)


def test_a_thousand_sites_are_connected_by_the_default_range_and_number() -> None:
    # With twice the area and twice the number that connectedness needs, seeds seldom matter.
    for seed in range(5):
        graph = make_topology("geometric", 1000, seed=seed)
        longest = max(math.dist(graph.positions[i], graph.positions[j]) for i, j in graph.edges)
        assert longest <= math.sqrt(2 * math.log(1000) / (math.pi * 1000))
        assert min(make_topology("k-nearest", 1000, seed=seed).degrees) >= 7


def test_both_families_draw_the_same_sites_within_the_unit_square() -> None:
    first = make_topology("geometric", 50, {"range": 0.6}, seed=3)
    second = make_topology("k-nearest", 50, {"k": 8}, seed=3)
    assert first.positions == second.positions
    assert all(0 <= x < 1 and 0 <= y < 1 for x, y in first.positions or ())


def test_sites_of_the_library_are_linked_anew() -> None:
    original, graph = make_topology("geant2012"), make_topology("k-nearest", 40, {"sites": "geant2012", "k": 3})
    assert (graph.name, graph.labels, graph.positions) == ("k-nearest", original.labels, original.positions)
    assert graph.source.startswith("sites of geant2012.json; Geant2012.graphml")
    assert graph.edges == from_sites(original.positions or (), k=3).edges != original.edges
    assert graph == make_topology("k-nearest", 40, {"sites": "geant2012", "k": 3}, seed=9)


def test_a_file_of_sites_needs_no_edges(tmp_path: Path) -> None:
    path = tmp_path / "sites.json"
    path.write_text(
        '{"nodes": ["Paris", "London", "Berlin"], "edges": [], "positions": [[2.4, 48.9], [-0.1, 51.5], [13.4, 52.5]]}'
    )
    graph = make_topology("geometric", 3, {"sites": str(path), "range": 900, "metric": "earth"})
    assert graph.edges == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("name", "nodes", "options", "message"),
    [
        ("geometric", 40, {}, "needs a range; give a range of at least 206.2, from which on the sites are connected"),
        ("geometric", 40, {"range": 100}, r"the sites fall into \d+ parts, the largest of \d+ sites; give a range of"),
        ("k-nearest", 40, {"k": 1}, "the sites fall into 11 parts, the largest of 7 sites; give a larger k"),
        ("k-nearest", 39, {}, '"geant2012" has 40 sites, not 39; set nodes to 40'),
        ("k-nearest", 40, {"metric": "earth"}, "a position is no longitude and latitude .*; give degrees, or metric"),
        ("k-nearest", 40, {"sites": "nowhere"}, 'sites "nowhere" are unknown; name a graph file or a library graph'),
    ],
)
def test_mistakes_with_sites_are_told(name: str, nodes: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        make_topology(name, nodes, {"sites": "geant2012", **options})
    assert "\n" not in str(caught.value)


def test_mistakes_of_callers_are_told() -> None:
    for sites, options, message in (
        ([(0.0, 0.0)], {"k": 1}, "1 sites; give at least two"),
        ([(0.0, 0.0), (math.nan, 1.0)], {"k": 1}, "a position is not finite; give two numbers"),
        ([(0.0, 0.0), (1.0, 1.0)], {"k": 1, "range_": 2.0}, "range and k are both given; leave one of them out"),
        ([(0.0, 0.0), (1.0, 1.0)], {"range_": math.inf}, "range is inf; give a range of at least 1.416"),
        ([(0.0, 0.0), (0.0, 0.0)], {"range_": 0.0}, "range is 0; give a range above 0"),
        ([(0.0, 0.0), (1.0, 1.0)], {"k": 1, "metric": "moon"}, 'metric is "moon"; choose one of: plane, earth'),
        ([(0.0, 0.0), (1.0, 1.0)], {"k": 1, "labels": ("a",)}, "2 nodes but 1 labels; give one per node"),
    ):
        with pytest.raises(TopologyError, match=message):
            from_sites(sites, **options)


def test_sites_beyond_the_limit_are_not_spanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatial, "SPANNED_SITES", 1)
    with pytest.raises(TopologyError, match="give a range above 0, long enough to connect the sites"):
        from_sites([(0.0, 0.0), (1.0, 1.0)], range_=0.5)
