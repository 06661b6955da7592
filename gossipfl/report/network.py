"""The graph of a run, with what was rejected on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from gossipfl.report.figures import BYZANTINE, HONEST, style
from gossipfl.topology.draw import layout
from gossipfl.topology.graph import Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELLED_NODES = 64
"""Networks of more nodes are drawn without node labels."""

REJECTION = LinearSegmentedColormap.from_list("rejection", ["#d9d9d9", "#e69f00", "#a02c00"])
"""From never (light grey) to always (dark red): also darker in grey."""


@dataclass(frozen=True, slots=True)
class Network:
    """A run's graph: who is Byzantine, and ``rejected[i, j]``, the share of rounds in which i rejected j."""

    topology: Topology
    byzantine: Collection[int]
    rejected: Mapping[tuple[int, int], float]

    @classmethod
    def from_records(cls, topology: Mapping[str, Any], byzantine: Collection[int]) -> Network:
        """Return the network that ``topology.json`` describes."""
        number = {name: node for node, name in enumerate(topology["names"])}
        positions, labels = topology.get("positions"), topology.get("labels")
        graph = Topology(
            name=topology["name"],
            nodes=topology["nodes"],
            edges=tuple((i, j) for i, j in topology["edges"]),
            positions=tuple((x, y) for x, y in positions) if positions else None,
            labels=tuple(labels) if labels else None,
        )
        shares = {
            (number[node], number[peer]): rejected / (accepted + rejected)
            for node, peer, accepted, rejected in topology.get("verdicts", ())
            if node in number and peer in number
        }
        return cls(graph, frozenset(byzantine), shares)


def network_figure(network: Network) -> Figure:
    """Draw the graph; the half of an edge next to a node is coloured by how often that node rejected the other."""
    points = layout(network.topology)
    where = np.array([points[node] for node in range(network.topology.nodes)])
    # Large networks are drawn finer; the factor is 1 up to about 16 nodes.
    fine = min(1.0, (16 / network.topology.nodes) ** 0.4)
    with style():
        figure = Figure(figsize=(7.2, 6.2), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.margins(0.06)
        axes.set_title(f"{network.topology.name}: {network.topology.nodes} nodes, {len(network.topology.edges)} edges")
        halves = _draw_edges(axes, network, where, fine)
        _draw_nodes(axes, network, where, fine)
        bar = figure.colorbar(halves, ax=axes, shrink=0.55, pad=0.01, format="{x:.0%}")
        bar.set_label("how often the nearer node rejected the other")
        bar.outline.set_visible(False)
        legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
        for handle in legend.legend_handles:
            cast(PathCollection, handle).set_sizes([60.0])
    return figure


def _draw_edges(axes: Axes, network: Network, where: Any, fine: float) -> LineCollection:
    directions = [pair for i, j in network.topology.edges for pair in ((i, j), (j, i))]
    shares = np.array([network.rejected.get(pair, 0.0) for pair in directions])
    # The most rejected halves are drawn last, on top of the rest.
    order = np.argsort(shares, kind="stable")
    segments = [(where[i], (where[i] + where[j]) / 2) for i, j in (directions[place] for place in order)]
    halves = LineCollection(
        segments,
        cmap=REJECTION,
        array=shares[order],
        linewidths=(1.0 + 2.2 * shares[order]) * max(fine, 0.35),
        capstyle="butt",
        zorder=1,
        rasterized=True,
    )
    halves.set_clim(0.0, 1.0)
    axes.add_collection(halves)
    return halves


def _draw_nodes(axes: Axes, network: Network, where: Any, fine: float) -> None:
    nodes = range(network.topology.nodes)
    groups = (
        ("honest", HONEST, "o", [node for node in nodes if node not in network.byzantine]),
        ("Byzantine", BYZANTINE, "D", [node for node in nodes if node in network.byzantine]),
    )
    for label, colour, marker, members in groups:
        if members:
            x, y = where[members].T
            size = 340 * fine**2
            axes.scatter(x, y, s=size, c=colour, marker=marker, label=label, edgecolors="white", zorder=2)
    if network.topology.nodes <= LABELLED_NODES:
        text: dict[str, Any] = {
            "ha": "center",
            "va": "center_baseline",
            "color": "white",
            "size": 9 * max(fine, 0.6),
            "zorder": 3,
        }
        for node in nodes:
            axes.annotate(str(node), where[node], **text)
