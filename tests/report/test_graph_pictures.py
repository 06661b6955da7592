"""Pictures of topologies: what they show, and that they are the same file each time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gossipfl.errors import ConfigError
from gossipfl.report.figures import BYZANTINE
from gossipfl.report.graph import BRIDGE, LINK, NEW, Marks, change_figure, graph_figure, save_picture
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis.graphs import bridges


def links(figure: Figure, panel: int = 0) -> dict[str, int]:
    """How many links of each colour a panel shows."""
    drawn = [one for one in figure.axes[panel].collections if isinstance(one, LineCollection)]
    return {to_hex(one.get_colors()[0]): len(one.get_segments()) for one in drawn if one.get_segments()}


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_bridges_byzantine_and_outvoted_nodes_are_marked_and_explained() -> None:
    graph = make_topology("geant2012")
    figure = graph_figure(graph, Marks(byzantine=(2, 10), outvoted=(0, 1)), "title")
    assert links(figure) == {LINK: 53, BRIDGE.lower(): 8}
    nodes = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    assert len(nodes) == 40
    faces = [to_hex(one.get_facecolor()[0]) for one in nodes]
    edges = [to_hex(one.get_edgecolor()[0]) for one in nodes]
    assert [node for node, face in enumerate(faces) if face == BYZANTINE.lower()] == [2, 10]
    assert [node for node, edge in enumerate(edges) if edge == BYZANTINE.lower()] == [0, 1]
    assert len(labels(figure)) == 4
    assert figure.axes[0].get_title(loc="left") == "title"


def test_a_proposal_shows_new_links_and_those_taken_out() -> None:
    before = make_topology("dumbbell", 10)
    after = Topology("dumbbell", 10, tuple(sorted({*before.edges, (1, 6)} - {(2, 3)})))
    marks = (Marks(), Marks(new=[(1, 6)], gone=[(2, 3)]))
    figure = change_figure(before, after, marks, ("now", "then"))
    assert links(figure, 0) == {LINK: len(before.edges) - 1, BRIDGE.lower(): len(bridges(before))}
    assert links(figure, 1) == {LINK: len(after.edges) - 1, NEW.lower(): 1, BYZANTINE.lower(): 1}
    assert "new link" in labels(figure)
    assert "link taken out" in labels(figure)


def test_small_graphs_have_numbers_and_names_and_large_ones_neither() -> None:
    assert {"0", "Seattle"} <= set(texts(graph_figure(make_topology("abilene"), Marks(), "")))
    assert texts(graph_figure(make_topology("ring", 8), Marks(), "")) == [str(node) for node in range(8)]
    assert not texts(graph_figure(make_topology("uscarrier"), Marks(), ""))


def test_what_does_not_occur_is_not_explained() -> None:
    figure = graph_figure(make_topology("ring", 8), Marks(), "")
    assert not figure.legends
    assert len(figure.axes) == 1  # no colour bar: all nodes have as many neighbours


@pytest.mark.parametrize("graph", [Topology("one", 1, ()), make_topology("line", 2)], ids=lambda graph: graph.name)
def test_the_smallest_graphs_can_be_drawn(graph: Topology, tmp_path: Path) -> None:
    save_picture(graph_figure(graph, Marks(), "small"), tmp_path / "small.png")
    assert (tmp_path / "small.png").stat().st_size > 1000


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_picture_is_the_same_file_whatever_the_users_style(ending: str, tmp_path: Path) -> None:
    graph = make_topology("abilene")
    paths = [tmp_path / f"{name}{ending}" for name in ("first", "second")]
    save_picture(graph_figure(graph, Marks(), "Abilene"), paths[0])
    with mpl.rc_context({"savefig.dpi": 30, "figure.facecolor": "red"}):
        save_picture(graph_figure(graph, Marks(), "Abilene"), paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_pictures_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    figure = graph_figure(make_topology("ring", 4), Marks(), "")
    with pytest.raises(ConfigError, match=r'ending ".bmp" is unknown; choose one of: .png, .svg, .pdf'):
        save_picture(figure, tmp_path / "ring.bmp")
    with pytest.raises(ConfigError, match="cannot be written"):
        save_picture(figure, tmp_path / "none" / "ring.png")
