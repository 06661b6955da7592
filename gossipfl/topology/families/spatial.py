"""Graphs of sites with places: linked within a radio's range, or each to the sites nearest to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gossipfl.errors import TopologyError
from gossipfl.topology.files.library import find_file, read_sites
from gossipfl.topology.graph import Edge, Position, Topology, canonical_edges
from gossipfl.topology.limits import check_edges
from gossipfl.topology.options import Options

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Points = NDArray[Any]

METRICS = ("plane", "earth")
EARTH_KM = 6371.0088  # mean radius
SPANNED_SITES = 10_000  # up to here the least range that connects all sites is found within seconds


def geometric(nodes: int, options: Options, seed: int) -> Topology:
    """Draw sites in the unit square, or take those of a file, and link all that are within ``range``.

    The default range sqrt(2 ln n / (π n)) covers twice the area from which such graphs are connected; sites of a
    file need one. A draw may be disconnected, the caller redraws.

    Gupta and Kumar, "Critical power for asymptotic connectivity in wireless networks", in Stochastic Analysis,
    Control, Optimization and Applications, 1998.
    """
    if options["sites"] is not None:
        return _of_file("geometric", nodes, options, range_=options["range"])
    range_ = options["range"]
    if range_ is None:
        range_ = math.sqrt(2 * math.log(nodes) / (math.pi * nodes))
    return _drawn("geometric", nodes, options, seed, range_=range_)


def k_nearest(nodes: int, options: Options, seed: int) -> Topology:
    """Draw sites in the unit square, or take those of a file, and link each to the ``k`` nearest, used both ways.

    The default k = ceil(ln n) is twice the 0.5139 ln n from which such graphs are connected for large n. A draw may
    be disconnected, the caller redraws.

    Balister, Bollobás, Sarkar and Walters, "Connectivity of random k-nearest-neighbour graphs", Adv. Appl. Probab.
    37(1), 2005.
    """
    k = options["k"]
    if k is None:
        k = min(nodes - 1, math.ceil(math.log(nodes)))
    if options["sites"] is not None:
        return _of_file("k-nearest", nodes, options, k=k)
    return _drawn("k-nearest", nodes, options, seed, k=k)


def from_sites(
    positions: Sequence[Position],
    *,
    range_: float | None = None,
    k: int | None = None,
    metric: str = "plane",
    labels: Sequence[str] | None = None,
    name: str = "sites",
) -> Topology:
    """Return the connected graph of sites at ``positions``: linked within ``range_``, or each to its ``k`` nearest.

    On the ``plane`` the range has the unit of the positions; on the ``earth`` positions are longitude and latitude in
    degrees and the range is in km along the ground. Raises ``TopologyError``, which tells from where on the sites are
    connected.
    """
    placed = tuple((float(x), float(y)) for x, y in positions)
    points = _points(name, placed, metric)
    if range_ is not None and k is not None:
        raise TopologyError(f'topology "{name}": range and k are both given; leave one of them out')
    edges = _within(name, points, range_, metric) if k is None else _nearest(name, points, k)
    kept = None if labels is None else tuple(labels)
    topology = Topology(name, len(placed), canonical_edges(edges), kept, placed)
    if not topology.is_connected:
        parts = topology.components()
        mend = _mend(points, metric) if k is None else "give a larger k"
        raise TopologyError(
            f'topology "{name}": the sites fall into {len(parts)} parts, the largest of {len(parts[0])} sites; {mend}'
        )
    return topology


def _drawn(
    name: str, nodes: int, options: Options, seed: int, *, range_: float | None = None, k: int | None = None
) -> Topology:
    import numpy as np

    if options["metric"] != "plane":
        raise TopologyError(f'topology "{name}": drawn sites lie on the plane; leave metric out, or give sites')
    points = np.random.default_rng(seed).random((nodes, 2))
    edges = _within(name, points, range_, "plane") if k is None else _nearest(name, points, k)
    return Topology(name, nodes, canonical_edges(edges), positions=tuple((float(x), float(y)) for x, y in points))


def _of_file(name: str, nodes: int, options: Options, *, range_: float | None = None, k: int | None = None) -> Topology:
    path = find_file(options["sites"])
    if path is None:
        raise TopologyError(
            f'topology "{name}": sites "{options["sites"]}" are unknown; name a graph file or a library graph'
        )
    sites = read_sites(path)
    if sites.nodes != nodes:
        raise TopologyError(
            f'topology "{name}": "{options["sites"]}" has {sites.nodes} sites, not {nodes}; set nodes to {sites.nodes}'
        )
    linked = from_sites(
        sites.positions or (), range_=range_, k=k, metric=options["metric"], labels=sites.labels, name=name
    )
    source = f"sites of {path.name}; {sites.source}" if sites.source else f"sites of {path.name}"
    return replace(linked, source=source, repairs=sites.repairs)


def _points(name: str, positions: Sequence[Position], metric: str) -> Points:
    """Return places whose straight-line distances order sites as the metric does: (n, 2), or (n, 3) in km."""
    import numpy as np

    if metric not in METRICS:
        raise TopologyError(f'topology "{name}": metric is "{metric}"; choose one of: {", ".join(METRICS)}')
    if len(positions) < 2:
        raise TopologyError(f'topology "{name}": {len(positions)} sites; give at least two')
    places = np.array(positions, dtype=np.float64)
    if not np.isfinite(places).all():
        raise TopologyError(f'topology "{name}": a position is not finite; give two numbers for each site')
    if metric == "plane":
        return places
    if (np.abs(places) > (180.0, 90.0)).any():
        raise TopologyError(
            f'topology "{name}": a position is no longitude and latitude (-180 to 180, -90 to 90 degrees); '
            "give degrees, or metric = plane"
        )
    longitude, latitude = np.radians(places.T)
    flat = np.cos(latitude)
    return EARTH_KM * np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1)


def _within(name: str, points: Points, range_: float | None, metric: str) -> Iterable[Edge]:
    from scipy.spatial import KDTree

    if range_ is None:
        raise TopologyError(f'topology "{name}" needs a range; {_mend(points, metric)}')
    if not 0 < range_ < math.inf:
        raise TopologyError(f'topology "{name}": range is {range_:g}; {_mend(points, metric)}')
    straight = range_ if metric == "plane" else _chord(range_)
    tree = KDTree(points)
    check_edges(name, (tree.count_neighbors(tree, straight) - len(points)) / 2)
    return ((int(i), int(j)) for i, j in tree.query_pairs(straight, output_type="ndarray"))


def _chord(arc_km: float) -> float:
    """Return the straight line through the earth under an arc, 2 R sin(arc / 2R); no two sites are farther than 2 R."""
    return 2 * EARTH_KM * math.sin(min(arc_km / (2 * EARTH_KM), math.pi / 2))


def _nearest(name: str, points: Points, k: int) -> Iterable[Edge]:
    from scipy.spatial import KDTree

    sites = len(points)
    if not 1 <= k < sites:
        raise TopologyError(f'topology "{name}": k is {k} with {sites} sites; give 1 to {sites - 1}')
    check_edges(name, k * sites)
    # One more than k: a site is found near itself, at any place among sites that share its position.
    _, found = KDTree(points).query(points, k + 1)
    for site, near in enumerate(found.tolist()):
        yield from ((site, other) for other in [other for other in near if other != site][:k])


def _mend(points: Points, metric: str) -> str:
    longest = _longest_step(points) if len(points) <= SPANNED_SITES else 0.0
    if not longest:
        return "give a range above 0, long enough to connect the sites"
    if metric == "earth":
        longest = 2 * EARTH_KM * math.asin(min(1.0, longest / (2 * EARTH_KM)))
    return f"give a range of at least {longest * 1.001:.4g}, from which on the sites are connected"


def _longest_step(points: Points) -> float:
    """Return the longest edge of a shortest spanning tree: the least range that connects all points. O(n²) time.

    Prim, "Shortest connection networks and some generalizations", Bell System Technical Journal 36(6), 1957.
    """
    import numpy as np

    gaps = np.full(len(points), math.inf)
    waiting = np.ones(len(points), dtype=bool)
    site, longest = 0, 0.0
    for _ in range(len(points) - 1):
        waiting[site] = False
        gaps = np.minimum(gaps, np.linalg.norm(points - points[site], axis=1))
        site = int(np.argmin(np.where(waiting, gaps, math.inf)))
        longest = max(longest, float(gaps[site]))
    return longest
