"""Graph files: round trips, explicit repairs, refusals, the library."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossipfl.errors import TopologyError
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.analysis.spectra import spectral_gap
from gossipfl.topology.files import library as files
from gossipfl.topology.files.graphml import parse_graphml
from gossipfl.topology.files.library import READERS, WRITERS, library, read_sites, read_topology, write_topology
from gossipfl.topology.files.tables import parse_edge_list, parse_json

ZOO = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:y="http://www.yworks.com/xml/graphml">
  <key attr.name="Network" attr.type="string" for="graph" id="g0" />
  <key attr.name="Longitude" attr.type="double" for="node" id="d1" />
  <key attr.name="Latitude" attr.type="double" for="node" id="d2" />
  <key attr.name="label" attr.type="string" for="node" id="d3" />
  <key for="node" id="d4" yfiles.type="nodegraphics" />
  <graph edgedefault="{default}">
    <data key="g0">Tiny   Net</data>
    {body}
  </graph>
</graphml>
"""


def zoo(folder: Path, body: str, default: str = "undirected") -> Path:
    path = folder / "tiny.graphml"
    path.write_text(ZOO.format(body=body, default=default), encoding="utf-8")
    return path


def node(name: str, data: str = "") -> str:
    return f'<node id="{name}">{data}</node>'


def edge(first: str, second: str, more: str = "") -> str:
    return f'<edge source="{first}" target="{second}" {more}/>'


TRIANGLE = node("a") + node("b") + node("c") + edge("a", "b") + edge("b", "c") + edge("a", "c")


@pytest.fixture
def full() -> Topology:
    """Every field filled, with letters that the formats must escape."""
    return Topology(
        name="four & more",
        nodes=4,
        edges=((0, 1), (0, 3), (1, 2), (2, 3)),
        labels=("Zürich", 'a "b" <c>', "Köln, DE", "7"),
        positions=((0.1, -2.5), (1e-9, 3.0), (4.0, 1 / 3), (0.0, 0.0)),
        repairs=("1 self loop dropped", "2 parallel edges merged"),
        source="drawn by hand",
    )


@pytest.mark.parametrize("ending", [".json", ".graphml"])
def test_full_formats_give_back_what_was_written(tmp_path: Path, full: Topology, ending: str) -> None:
    path = tmp_path / f"four{ending}"
    write_topology(full, path)
    assert read_topology(path) == full


@pytest.mark.parametrize("ending", [".edges", ".txt", ".csv"])
def test_edge_lists_give_back_nodes_and_edges(tmp_path: Path, full: Topology, ending: str) -> None:
    path = tmp_path / f"four{ending}"
    write_topology(full, path)
    assert read_topology(path) == Topology("four", full.nodes, full.edges)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WRITERS)), st.integers(5, 30), st.integers(0, 100))
def test_generated_graphs_survive_every_format(tmp_path: Path, ending: str, nodes: int, seed: int) -> None:
    graph = make_topology("erdos-renyi", nodes, seed=seed)
    path = tmp_path / f"drawn{ending}"
    write_topology(graph, path)
    again = read_topology(path)
    assert (again.nodes, again.edges, again.repairs) == (graph.nodes, graph.edges, ())


def test_zoo_labels_and_geographic_coordinates_are_read(tmp_path: Path) -> None:
    place = '<data key="d1">8.5</data><data key="d2">47.4</data><data key="d3">Zürich</data>'
    other = '<data key="d1">7.6</data><data key="d2">47.6</data><data key="d3"> Basel </data>'
    graph = read_topology(zoo(tmp_path, node("0", place) + node("1", other) + edge("0", "1")))
    assert graph == Topology("Tiny Net", 2, ((0, 1),), ("Zürich", "Basel"), ((8.5, 47.4), (7.6, 47.6)))


def test_drawn_labels_and_geometry_are_the_fallback_with_y_upwards(tmp_path: Path) -> None:
    drawn = (
        '<data key="d4"><y:ShapeNode><y:Geometry x="{x}" y="{y}"/><y:NodeLabel>{name}</y:NodeLabel>'
        "</y:ShapeNode></data>"
    )
    body = node("0", drawn.format(x=1, y=2, name="Up")) + node("1", drawn.format(x=1, y=9, name="Down"))
    graph = read_topology(zoo(tmp_path, body + edge("0", "1")))
    assert (graph.labels, graph.positions) == (("Up", "Down"), ((1.0, -2.0), (1.0, -9.0)))


def test_directions_loops_and_parallel_edges_are_repaired_and_told(tmp_path: Path) -> None:
    body = TRIANGLE + edge("b", "a") + edge("a", "b") + edge("c", "c")
    graph = read_topology(zoo(tmp_path, body, "directed"))
    assert graph.edges == ((0, 1), (0, 2), (1, 2))
    assert graph.repairs == (
        "directions of 6 edges ignored: gossip uses a link both ways",
        "1 self loop dropped",
        "2 parallel edges merged",
    )


def test_a_single_directed_edge_is_told(tmp_path: Path) -> None:
    body = node("a") + node("b") + edge("a", "b", 'directed="true"')
    assert "directions" in read_topology(zoo(tmp_path, body)).repairs[0]


def test_a_clean_file_needs_no_repair(tmp_path: Path) -> None:
    graph = read_topology(zoo(tmp_path, TRIANGLE))
    assert graph.repairs == ()
    assert graph.labels == ("a", "b", "c")
    assert graph.positions is None


def test_missing_coordinates_are_filled_from_neighbours_and_told(tmp_path: Path) -> None:
    west = '<data key="d1">0</data><data key="d2">2</data>'
    east = '<data key="d1">4</data><data key="d2">0</data>'
    wrong = '<data key="d1">nan</data><data key="d2">1</data>'
    chain = edge("w", "m") + edge("m", "e") + edge("e", "x")
    graph = read_topology(zoo(tmp_path, node("w", west) + node("m") + node("e", east) + node("x", wrong) + chain))
    assert graph.positions == ((0.0, 2.0), (2.0, 1.0), (4.0, 0.0), (4.0, 0.0))
    assert graph.repairs == ("2 nodes without coordinates placed amid their neighbours",)


def test_missing_and_repeated_labels_are_numbered_and_told(tmp_path: Path) -> None:
    names = ["Rome", "Rome (2)", "Rome", "", "Rome"]
    body = "".join(node(f"n{i}", f'<data key="d3">{name}</data>') for i, name in enumerate(names))
    graph = read_topology(zoo(tmp_path, body + "".join(edge(f"n{i}", f"n{i + 1}") for i in range(4))))
    assert graph.labels == ("Rome", "Rome (2)", "Rome (3)", "n3", "Rome (4)")
    assert graph.repairs == (
        "1 node without a label called by their name in the file",
        "2 repeated labels numbered",
    )


def test_labels_become_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(
        json.dumps({"nodes": ["New\nYork", "\x1b[31mred", "\t", "x" * 500], "edges": [[0, 1], [1, 2], [2, 3]]})
    )
    labels = read_topology(path).labels
    assert labels == ("New York", "[31mred", "node 2", "x" * 200)


def test_disconnected_graphs_are_refused_or_cut_on_request(tmp_path: Path) -> None:
    path = zoo(tmp_path, node("alone") + TRIANGLE + node("p") + node("q") + edge("p", "q"))
    with pytest.raises(TopologyError, match=r"falls into 3 parts \(of 3, 2, 1 nodes\); .* largest=true"):
        make_topology(str(path))
    graph = make_topology(str(path), 3, {"largest": True})
    assert (graph.labels, graph.edges) == (("a", "b", "c"), ((0, 1), (0, 2), (1, 2)))
    assert graph.repairs == ("largest of 3 parts kept: 3 of 6 nodes",)


def test_options_and_node_count_of_a_file_are_checked(tmp_path: Path) -> None:
    path = str(zoo(tmp_path, TRIANGLE))
    for options, nodes, message in (
        ({"largest": "yes"}, None, "largest is 'yes'; give true or false"),
        ({"degree": 3}, None, 'no option "degree"; choose one of: largest'),
        ({}, 4, "has 3 nodes, not 4; leave the number of nodes out, or set it to 3"),
    ):
        with pytest.raises(TopologyError, match=message):
            make_topology(path, nodes, options)


@pytest.mark.parametrize(
    "prologue",
    [
        "<!DOCTYPE graphml>",
        '<!doctype graphml [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE graphml SYSTEM "file:///etc/passwd">',
        '<!ENTITY % remote SYSTEM "http://localhost/">',
    ],
)
def test_document_types_and_entities_are_refused_before_parsing(tmp_path: Path, prologue: str) -> None:
    path = tmp_path / "hostile.graphml"
    text = ZOO.format(default="undirected", body=TRIANGLE)
    path.write_text(text.replace("<graphml", f"{prologue}<graphml", 1), encoding="utf-8")
    with pytest.raises(TopologyError, match="declarations are refused; remove them"):
        read_topology(path)


def test_an_encoding_cannot_hide_a_document_type(tmp_path: Path) -> None:
    path = tmp_path / "hidden.graphml"
    hidden = '<!DOCTYPE graphml [<!ENTITY a "a">]><graphml/>'
    for encoding in ("utf-16", "utf-16-le", "utf-7"):
        path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>{hidden}'.encode(encoding))
        with pytest.raises(TopologyError):
            read_topology(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (node("a") + node("a"), "node id 'a' is missing or used twice"),
        ("<node/>", "node id 'None' is missing"),
        (node("a") + edge("a", "z"), "ends at 'z', which is no node"),
        (node("a", '<graph edgedefault="directed"/>'), "holds a graph within; flatten"),
        (TRIANGLE + "<hyperedge/>", "holds a hyperedge within; flatten"),
        ("", "the graph has no nodes"),
        (node("a"), "nobody to gossip with"),
        ("</graph>", "not well-formed XML"),
        ("<d>" * 100 + "</d>" * 100, "deeper than 64 elements"),
        ("<d>" * 200_000, "deeper than 64 elements"),
    ],
)
def test_broken_graphml_is_told_in_one_line(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        read_topology(zoo(tmp_path, body))
    assert "\n" not in str(caught.value)
    assert "tiny.graphml" in str(caught.value)


@pytest.mark.parametrize("text", ["", "plain text", "<svg/>", "<graphml/>", "<graphml><graph/><graph/></graphml>"])
def test_xml_that_holds_no_single_graph_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.graphml"
    path.write_text(text)
    with pytest.raises(TopologyError, match=r"graphs found|well-formed"):
        read_topology(path)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("# a comment\n% another\n\n0 1\n1 2\n2 0\n", None),
        ("source,target\n0,1\n1,2\n0,2\n", None),
        ("10\t2\n2\t7\n7\t10\n", ("2", "7", "10")),
        ("b a\na c\nc b\n", ("b", "a", "c")),
        ('"San Jose, CA",Oslo\nOslo,Rome\nRome,"San Jose, CA"\n', ("San Jose, CA", "Oslo", "Rome")),
        ("New York\tOslo\nOslo\tRome\nRome\tNew York\n", ("New York", "Oslo", "Rome")),
    ],
)
def test_edge_lists_of_many_makes_are_read(tmp_path: Path, text: str, labels: tuple[str, ...] | None) -> None:
    path = tmp_path / "list.csv"
    path.write_text("\ufeff" + text, encoding="utf-8")
    graph = read_topology(path)
    assert (graph.edges, graph.labels, graph.repairs) == (((0, 1), (0, 2), (1, 2)), labels, ())


def test_weights_in_an_edge_list_are_ignored_and_told(tmp_path: Path) -> None:
    path = tmp_path / "weighted.edges"
    path.write_text("0 1 0.5\n1 2 0.25\n")
    assert read_topology(path).repairs == ("further columns of 2 lines ignored (weights are Metropolis)",)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"nodes": ' + "9" * 5000 + "}", "not JSON"),
        ("[]", 'give an object with "nodes" and "edges"'),
        ({"nodes": 2}, 'give an object with "nodes" and "edges"'),
        ({"nodes": 2, "edges": [[0, 1]], "weights": []}, "key 'weights' is unknown; choose among: name, source"),
        ({"nodes": True, "edges": []}, "neither a list of names nor a number"),
        ({"nodes": [1, 2], "edges": []}, "neither a list of names nor a number"),
        ({"nodes": ["a", "a"], "edges": []}, "node 'a' is named twice"),
        ({"nodes": 10**9, "edges": []}, "more than 100000 nodes"),
        ({"nodes": -1, "edges": []}, "has no nodes"),
        ({"nodes": 2, "edges": {}}, '"edges" is no list'),
        ({"nodes": 2, "edges": [[0]]}, r"edge \[0\] is no pair"),
        ({"nodes": 2, "edges": [[0, 2]]}, "ends at 2, which is no node"),
        ({"nodes": 2, "edges": [[0, -1]]}, "ends at -1, which is no node"),
        ({"nodes": 2, "edges": [[0, True]]}, "ends at true, which is no node"),
        ({"nodes": ["a", "b"], "edges": [["a", "c"]]}, 'ends at "c", which is no node'),
        ({"nodes": 2, "edges": [[0, 1]], "positions": [[0, 1]]}, "no list of 2 entries"),
        ({"nodes": 2, "edges": [[0, 1]], "positions": [[0, "1"], None]}, "give two numbers, or null"),
        ({"nodes": 2, "edges": [[0, 1]], "positions": [[0, 10**400], None]}, "give two numbers, or null"),
        ({"nodes": 2, "edges": [[0, 1]], "name": 3}, '"name" is no text'),
        ({"nodes": 2, "edges": [[0, 1]], "repairs": "none"}, '"repairs" is no list of sentences'),
    ],
)
def test_broken_json_is_told_in_one_line(tmp_path: Path, document: object, message: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(TopologyError, match=message) as caught:
        read_topology(path)
    assert "\n" not in str(caught.value)


def test_missing_unknown_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "graph.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.csv").write_bytes("Zürich,Köln\n".encode("latin-1"))
    (tmp_path / "one.csv").write_text("a\n")
    for name, message in (
        ("absent.json", "cannot be read .No such file or directory.; check the path"),
        ("folder.json", "cannot be read"),
        ("graph.png", 'ending ".png" is unknown; choose one of: .graphml, .json'),
        ("latin.csv", r"is not UTF-8 text \(byte 1\); convert it"),
        ("one.csv", "line 1: 'a' is no edge; give two node names"),
    ):
        with pytest.raises(TopologyError, match=message):
            make_topology(str(tmp_path / name))


def test_size_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 64)
    path = tmp_path / "long.edges"
    path.write_text("0 1\n" * 16)
    assert read_topology(path).edges == ((0, 1),)
    path.write_text("0 1\n" * 17)
    with pytest.raises(TopologyError, match="larger than 64 bytes"):
        read_topology(path)


def test_writing_needs_a_known_ending_and_a_folder(tmp_path: Path, full: Topology) -> None:
    with pytest.raises(TopologyError, match=r'ending ".dot" is unknown; choose one of: .graphml'):
        write_topology(full, tmp_path / "four.dot")
    with pytest.raises(TopologyError, match="cannot be written"):
        write_topology(full, tmp_path / "absent" / "four.json")


@settings(max_examples=200)
@given(st.sampled_from([parse_graphml, parse_json, parse_edge_list]), st.text(max_size=200))
def test_any_text_is_a_graph_or_a_topology_error(parse: files.Parse, text: str) -> None:
    with suppress(TopologyError):
        raw = parse(text, "here")
        assert all(0 <= end < raw.nodes for link in raw.links for end in link)


@settings(max_examples=200)
@given(st.integers(0, 2**31), st.integers(0, 255))
def test_a_changed_byte_in_graphml_is_a_graph_or_a_topology_error(place: int, value: int) -> None:
    content = bytearray(ZOO.format(default="directed", body=TRIANGLE).encode())
    content[place % len(content)] = value
    with suppress(TopologyError):
        raw = parse_graphml(content.decode(errors="replace"), "here")
        assert all(0 <= end < raw.nodes for link in raw.links for end in link)


def test_the_library_names_its_sources_and_is_clean() -> None:
    assert {"abilene", "bteurope", "deutschetelekom", "garr201201", "geant2012", "sinet"} <= library().keys()
    for name, path in library().items():
        graph = make_topology(name)
        assert graph.is_connected
        assert graph.name.lower() == name == path.stem
        assert "Knight" in graph.source
        assert graph.labels is not None
        assert graph.positions is not None


def test_the_largest_library_graph_says_what_was_repaired() -> None:
    graph = make_topology("uscarrier")
    assert (graph.nodes, len(graph.edges)) == (158, 189)
    assert graph.repairs[1:] == (
        "6 nodes without a label called by their name in the file",
        "6 repeated labels numbered",
    )


def test_the_readme_of_the_library_tells_sizes_as_they_are() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in (library()["abilene"].parent / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    told = {row[1].strip("`"): [float(cell) for cell in row[3:7]] for row in rows}
    for name in library():
        graph = make_topology(name)
        mean, gap = 2 * len(graph.edges) / graph.nodes, spectral_gap(graph)
        assert told.pop(name) == [graph.nodes, len(graph.edges), round(mean, 2), round(gap, 4)], name
    assert told == {}


def test_sites_are_read_without_edges_and_need_positions(tmp_path: Path, full: Topology) -> None:
    path = tmp_path / "four.json"
    write_topology(full, path)
    sites = read_sites(path)
    assert (sites.edges, sites.labels, sites.positions) == ((), full.labels, full.positions)
    path.write_text('{"nodes": 2, "edges": [], "positions": [[0, 1], null]}')
    with pytest.raises(TopologyError, match=r'four.json": not every node has a position; give each its coordinates'):
        read_sites(path)
    path.write_text('{"nodes": 2, "edges": [[0, 1]]}')
    with pytest.raises(TopologyError, match="not every node has a position"):
        read_sites(path)


def test_library_names_ignore_case_and_files_win_by_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_topology("Abilene") == make_topology("abilene")
    assert (make_topology("abilene").nodes, len(make_topology("abilene").edges)) == (11, 14)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abilene.edges").write_text("0 1\n1 2\n")
    assert make_topology("abilene.edges").nodes == 3


def test_a_wheel_finds_the_library_beside_its_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "gossipfl" / "topology"
    module = package / "files" / "library.py"
    (package / "library").mkdir(parents=True)
    (package / "library" / "mine.json").write_text('{"nodes": 2, "edges": [[0, 1]]}')
    monkeypatch.setattr(files, "__file__", str(module))
    assert make_topology("mine").nodes == 2
    assert list(library()) == ["mine"]


def test_every_readable_ending_is_writable() -> None:
    assert READERS.keys() == WRITERS.keys()
