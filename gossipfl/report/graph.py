"""Pictures of a topology: where it is weak, and what a proposal would change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from gossipfl.errors import ConfigError
from gossipfl.report.figures import BYZANTINE, FAINT, INK, style
from gossipfl.topology.analysis.graphs import articulation_points, bridges
from gossipfl.topology.draw import layout
from gossipfl.topology.graph import Edge, Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINK = "#b9bec4"
BRIDGE = "#E69F00"
NEW = "#009E73"
DEGREE = LinearSegmentedColormap.from_list("degree", ["#9fd3f5", "#0072B2", "#0b2f52"])
"""From few neighbours (light) to many (dark): one hue of Okabe and Ito's palette, ordered in grey too."""

NUMBERED_NODES = 64
NAMED_NODES = 48
ENDINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, slots=True)
class Marks:
    """What a picture points out beside degrees, bridges and articulation points.

    ``byzantine`` nodes; honest nodes that are ``outvoted``; links that are ``new``, and such as are ``gone`` and are
    drawn all the same.
    """

    byzantine: Collection[int] = ()
    outvoted: Collection[int] = ()
    new: Collection[Edge] = ()
    gone: Collection[Edge] = ()


def graph_figure(topology: Topology, marks: Marks, title: str) -> Figure:
    """Draw one graph."""
    points = _points(topology)
    with style():
        figure = Figure(figsize=_size(points, 1), layout="constrained")
        axes = figure.subplots()
        scale = Normalize(min(topology.degrees), max(topology.degrees))
        _draw(axes, topology, marks, points, scale)
        axes.set_title(title)
        _explain(figure, [axes], scale, _keys([topology], [marks]))
    return figure


def change_figure(before: Topology, after: Topology, marks: tuple[Marks, Marks], titles: tuple[str, str]) -> Figure:
    """Draw a graph as it is and as it could be, side by side, each node at the same place in both."""
    points = _points(before)
    degrees = (*before.degrees, *after.degrees)
    with style():
        figure = Figure(figsize=_size(points, 2), layout="constrained")
        panels = figure.subplots(1, 2)
        scale = Normalize(min(degrees), max(degrees))
        for axes, topology, marked, title in zip(panels, (before, after), marks, titles, strict=True):
            _draw(axes, topology, marked, points, scale)
            axes.set_title(title)
        _explain(figure, list(panels), scale, _keys([before, after], marks))
    return figure


def check_picture(path: Path) -> None:
    """Raise ``ConfigError`` where a picture's file has an ending that none is written in."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f'picture "{path}": ending "{path.suffix}" is unknown; choose one of: {", ".join(ENDINGS)}')


def save_picture(figure: Figure, path: Path) -> None:
    """Write ``figure`` in the format that the file's ending names; raises ``ConfigError``."""
    check_picture(path)
    # Neither a date nor random ids: the same picture is the same file.
    metadata: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    with style():
        import matplotlib as mpl

        mpl.rcParams["svg.hashsalt"] = "gossipfl"
        try:
            figure.savefig(path, metadata=metadata)
        except OSError as error:
            raise ConfigError(f'picture "{path}" cannot be written ({error.strerror}); check the path') from error


def _points(topology: Topology) -> Any:
    points = layout(topology)
    return np.array([points[node] for node in range(topology.nodes)])


def _size(points: Any, panels: int) -> tuple[float, float]:
    """Return a figure's size in inches: as wide or high as the graph, within reason."""
    wide, high = np.ptp(points, axis=0)
    ratio = float(np.clip(high / max(wide, 1e-9), 0.55, 1.15))
    width = 6.6 if panels == 1 else 5.6
    # The colour bar stands beside the panels, title and legend above and below.
    return panels * width + 0.8, width * ratio + 0.9


def _draw(axes: Axes, topology: Topology, marks: Marks, points: Any, scale: Normalize) -> None:
    # Large graphs are drawn finer; the factor is 1 up to about 16 nodes.
    fine = min(1.0, (16 / topology.nodes) ** 0.4)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.margins(0.08)
    weak = set(bridges(topology)) - set(marks.new)
    plain = [edge for edge in topology.edges if edge not in weak and edge not in set(marks.new)]
    for edges, colour, width, dashes in (
        (plain, LINK, 1.3, "-"),
        (sorted(weak), BRIDGE, 2.6, "-"),
        (sorted(marks.gone), BYZANTINE, 1.6, (0, (3, 2))),
        (sorted(marks.new), NEW, 2.8, "-"),
    ):
        segments = [(points[i], points[j]) for i, j in edges]
        axes.add_collection(
            LineCollection(segments, colors=colour, linewidths=width * max(fine, 0.4), linestyles=[dashes], zorder=1)
        )
    _draw_nodes(axes, topology, marks, points, scale, fine)
    _draw_text(axes, topology, marks, points, scale, fine)


def _draw_nodes(axes: Axes, topology: Topology, marks: Marks, points: Any, scale: Normalize, fine: float) -> None:
    cutting = set(articulation_points(topology))
    sizes = _areas(topology, fine)
    for node in range(topology.nodes):
        byzantine = node in marks.byzantine
        outline = BYZANTINE if node in marks.outvoted else INK if node in cutting else "white"
        axes.scatter(
            points[node, 0],
            points[node, 1],
            s=sizes[node] * (1.1 if byzantine else 1.0),
            color=BYZANTINE if byzantine else DEGREE(scale(topology.degrees[node])),
            marker="D" if byzantine else "o",
            edgecolors=outline,
            linewidths=(1.0 if outline == "white" else 2.4) * max(fine, 0.4),
            zorder=3 if byzantine else 2,
        )


def _areas(topology: Topology, fine: float) -> Any:
    """Return each node's area in square points: it grows with the degree, but hubs stay within bounds."""
    degrees = np.array(topology.degrees)
    return 260 * fine**2 * np.clip(degrees / max(float(np.median(degrees)), 1.0), 0.6, 3.0) ** 0.7


def _draw_text(axes: Axes, topology: Topology, marks: Marks, points: Any, scale: Normalize, fine: float) -> None:
    if topology.nodes > NUMBERED_NODES:
        return
    named = topology.labels is not None and topology.nodes <= NAMED_NODES
    radii = np.sqrt(_areas(topology, fine)) / 2
    for node in range(topology.nodes):
        dark = node in marks.byzantine or scale(topology.degrees[node]) > 0.3
        number: dict[str, Any] = {"color": "white" if dark else INK, "size": 8.5 * max(fine, 0.65), "zorder": 4}
        axes.annotate(str(node), points[node], ha="center", va="center_baseline", **number)
        if named:
            axes.annotate(
                topology.label(node),
                points[node],
                xytext=(0, -radii[node] - (4 if node in marks.byzantine else 2)),
                textcoords="offset points",
                ha="center",
                va="top",
                size=7.5 * max(fine, 0.7),
                color=INK,
                path_effects=[withStroke(linewidth=2.2, foreground="white")],
                zorder=5,
            )


def _keys(topologies: Sequence[Topology], marks: Sequence[Marks]) -> list[Line2D]:
    """Return the legend's entries: of those that occur in any of the panels."""
    weak = any(set(bridges(topology)) - set(marked.new) for topology, marked in zip(topologies, marks, strict=True))
    cutting = any(articulation_points(topology) for topology in topologies)

    def line(label: str, colour: str, **style_: Any) -> Line2D:
        return Line2D([], [], color=colour, label=label, **style_)

    def dot(label: str, colour: str, edge: str, marker: str = "o") -> Line2D:
        shape: Mapping[str, Any] = {"ls": "", "marker": marker, "ms": 8, "mew": 2.0, "mec": edge, "mfc": colour}
        return Line2D([], [], label=label, **shape)

    entries = [
        (weak, line("bridge: its loss splits", BRIDGE, lw=2.6)),
        (any(marked.new for marked in marks), line("new link", NEW, lw=2.8)),
        (any(marked.gone for marked in marks), line("link taken out", BYZANTINE, lw=1.6, ls=(0, (3, 2)))),
        (cutting, dot("articulation point: its loss splits", "#c9d6e2", INK)),
        (any(marked.byzantine for marked in marks), dot("Byzantine", BYZANTINE, "white", "D")),
        (any(marked.outvoted for marked in marks), dot("outvoted by them", "#c9d6e2", BYZANTINE)),
    ]
    return [entry for occurs, entry in entries if occurs]


def _explain(figure: Figure, panels: list[Axes], scale: Normalize, keys: list[Line2D]) -> None:
    from matplotlib.cm import ScalarMappable

    if keys:
        figure.legend(handles=keys, loc="outside lower center", ncols=3)
    if scale.vmax == scale.vmin:
        return  # all nodes have as many neighbours
    bar = figure.colorbar(ScalarMappable(scale, DEGREE), ax=panels, shrink=0.4, aspect=20, pad=0.01)
    bar.set_label("neighbours", color=FAINT)
    bar.locator = MaxNLocator(integer=True, nbins=5)
    bar.update_ticks()
    bar.outline.set_visible(False)
