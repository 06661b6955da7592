"""GraphML: the dialect of the Topology Zoo (with yEd's drawing data) read, a plain subset written.

Brandes, Eiglsperger, Herman, Himsolt and Marshall, "GraphML progress report", Graph Drawing 2001.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape, quoteattr

from gossipfl.errors import TopologyError
from gossipfl.topology.files.raw import RawGraph, check_size
from gossipfl.topology.graph import Position, Topology

_DECLARATION = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_DEPTH = 64  # elements within elements; the Topology Zoo needs 7


def parse_graphml(text: str, where: str) -> RawGraph:
    """Return the graph of GraphML ``text``; ``where`` names the file in messages.

    A document type or entity declaration is refused before anything is parsed; only one flat graph of nodes
    and two-ended edges is accepted. Raises ``TopologyError``.
    """
    if _DECLARATION.search(text):
        raise TopologyError(f"{where}: document type and entity declarations are refused; remove them")
    graph, attributes = _graph_element(text, where)
    elements = _by_id(graph, where)
    number = {name: index for index, name in enumerate(elements)}
    facts = [_Facts(element, attributes) for element in elements.values()]
    labels = [fact.label for fact in facts]
    positions = [fact.position for fact in facts]
    data = dict(_data(graph, attributes))
    return RawGraph(
        nodes=len(elements),
        links=list(_links(graph, number, where)),
        names=list(elements),
        labels=labels if any(labels) else None,
        positions=positions if any(positions) else None,
        directed=_directed(graph),
        name=data.get("name") or data.get("network"),
        source=data.get("source", ""),
        repairs=[text for text in data.get("repairs", "").split("\n") if text],
    )


def _graph_element(text: str, where: str) -> tuple[ET.Element, dict[str, str]]:
    """Return the file's one graph and the map from key ids to lower-case attribute names."""
    try:
        root = _root(text, where)
    except ET.ParseError as error:
        raise TopologyError(f"{where}: not well-formed XML ({error}); export the graph as GraphML again") from error
    graphs = [] if root is None else [child for child in root if _local(child) == "graph"]
    if root is None or _local(root) != "graphml" or len(graphs) != 1:
        raise TopologyError(f"{where}: {len(graphs)} graphs found; give a GraphML file that holds one graph")
    for kind in ("hyperedge", "graph"):
        if any(_local(element) == kind and element is not graphs[0] for element in graphs[0].iter()):
            raise TopologyError(f"{where}: the graph holds a {kind} within; flatten it to nodes and edges")
    keys = (child for child in root if _local(child) == "key")
    return graphs[0], {key.get("id", ""): key.get("attr.name", "").lower() for key in keys}


def _root(text: str, where: str) -> ET.Element | None:
    """Parse piece by piece, so that the depth and the counts are bounded while the tree grows."""
    parser: Any = ET.XMLPullParser(("start", "end"))
    root: ET.Element | None = None
    depth = nodes = edges = 0
    for begin in range(0, len(text), 1 << 16):
        parser.feed(text[begin : begin + (1 << 16)])
        for event, element in parser.read_events():
            root = element if root is None else root
            depth += 1 if event == "start" else -1
            nodes += event == "start" and _local(element) == "node"
            edges += event == "start" and _local(element) == "edge"
            if depth > _DEPTH:
                raise TopologyError(f"{where}: deeper than {_DEPTH} elements; flatten the graph")
        check_size(where, nodes, edges)
    parser.close()
    return root


def _local(element: ET.Element) -> str:
    """Return the tag without its namespace, which exporters spell in several ways."""
    return element.tag.rpartition("}")[2]


def _by_id(graph: ET.Element, where: str) -> dict[str, ET.Element]:
    found: dict[str, ET.Element] = {}
    for element in graph:
        if _local(element) == "node":
            name = element.get("id")
            if name is None or name in found:
                raise TopologyError(
                    f"{where}: node id {str(name)[:60]!r} is missing or used twice; give each node its own id"
                )
            found[name] = element
    return found


def _links(graph: ET.Element, number: dict[str, int], where: str) -> Iterator[tuple[int, int]]:
    for element in graph:
        if _local(element) == "edge":
            ends = element.get("source", ""), element.get("target", "")
            for end in ends:
                if end not in number:
                    raise TopologyError(
                        f"{where}: an edge ends at {end[:60]!r}, which is no node; add it or drop the edge"
                    )
            yield number[ends[0]], number[ends[1]]


def _directed(graph: ET.Element) -> bool:
    default = graph.get("edgedefault") == "directed"
    edges = [element for element in graph if _local(element) == "edge"]
    return any(edge.get("directed", str(default)).lower() == "true" for edge in edges)


def _data(element: ET.Element, attributes: dict[str, str]) -> Iterator[tuple[str, str]]:
    for child in element:
        if _local(child) == "data" and (name := attributes.get(child.get("key", ""), "")):
            yield name, (child.text or "").strip()


class _Facts:
    """What a node element says: attributes of its own first, else what yEd drew."""

    def __init__(self, element: ET.Element, attributes: dict[str, str]) -> None:
        data = dict(_data(element, attributes))
        self.label = data.get("label") or self._drawn_label(element)
        self.position = (
            self._pair(data.get("longitude"), data.get("latitude"))
            or self._pair(data.get("x"), data.get("y"))
            or self._drawn_position(element)
        )

    @staticmethod
    def _drawn_label(element: ET.Element) -> str | None:
        return next((found.text for found in element.iter() if _local(found) == "NodeLabel"), None)

    @classmethod
    def _drawn_position(cls, element: ET.Element) -> Position | None:
        drawn = next((found for found in element.iter() if _local(found) == "Geometry"), None)
        pair = None if drawn is None else cls._pair(drawn.get("x"), drawn.get("y"))
        return None if pair is None else (pair[0], -pair[1])  # a screen's y grows downwards

    @staticmethod
    def _pair(x: str | None, y: str | None) -> Position | None:
        try:
            return None if x is None or y is None else (float(x), float(y))
        except ValueError:
            return None


def format_graphml(topology: Topology) -> str:
    """Return ``topology`` as GraphML that ``parse_graphml`` and common graph tools read."""
    graph_data = [
        ("name", topology.name),
        ("source", topology.source),
        ("repairs", "\n".join(topology.repairs)),
    ]
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        *(f'  <key id="{key}" for="graph" attr.name="{key}" attr.type="string"/>' for key, _ in graph_data),
        '  <key id="label" for="node" attr.name="label" attr.type="string"/>',
        '  <key id="x" for="node" attr.name="x" attr.type="double"/>',
        '  <key id="y" for="node" attr.name="y" attr.type="double"/>',
        '  <graph edgedefault="undirected">',
        *(f'    <data key="{key}">{escape(value)}</data>' for key, value in graph_data if value),
        *(_node_line(topology, node) for node in range(topology.nodes)),
        *(f'    <edge source="{i}" target="{j}"/>' for i, j in topology.edges),
        "  </graph>",
        "</graphml>",
    ]
    return "\n".join(lines) + "\n"


def _node_line(topology: Topology, node: int) -> str:
    data = ""
    if topology.labels is not None:
        data += f'<data key="label">{escape(topology.labels[node])}</data>'
    if topology.positions is not None:
        x, y = topology.positions[node]
        data += f'<data key="x">{x!r}</data><data key="y">{y!r}</data>'
    return f"    <node id={quoteattr(str(node))}>{data}</node>"
