"""Plain graph files: edge lists, and the project's own JSON with its source in the header."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.files.raw import RawGraph, check_size
from gossipfl.topology.graph import Position, Topology

_HEADERS = {("source", "target"), ("from", "to"), ("node1", "node2"), ("a", "b"), ("i", "j"), ("u", "v")}
_KEYS = ("name", "source", "nodes", "edges", "positions", "repairs")


def parse_edge_list(text: str, where: str) -> RawGraph:
    """Return the graph of an edge list: two node names a line, apart by comma, tab or blanks.

    ``#`` and ``%`` begin a comment line; a heading such as ``source,target`` is passed over; further columns
    are ignored and reported. Names that are all whole numbers are ordered by value, others by first
    appearance; 0 .. n - 1 stand for the nodes themselves. Raises ``TopologyError``.
    """
    pairs: list[tuple[str, str]] = []
    wider = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fields = _fields(line)
        if not fields or (not pairs and tuple(name.lower() for name in fields[:2]) in _HEADERS):
            continue
        if len(fields) < 2 or not all(fields[:2]):
            raise TopologyError(f"{where}, line {number}: {line.strip()[:40]!r} is no edge; give two node names")
        wider += len(fields) > 2
        pairs.append((fields[0], fields[1]))
        check_size(where, 0, len(pairs))
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    numeric = all(name.isascii() and name.isdigit() and len(name) < 19 for name in names)
    if numeric:
        names.sort(key=int)
    index = {name: node for node, name in enumerate(names)}
    plain = numeric and names == [str(node) for node in range(len(names))]
    return RawGraph(
        nodes=len(names),
        links=[(index[first], index[second]) for first, second in pairs],
        names=None if plain else names,
        repairs=[f"further columns of {wider} lines ignored (weights are Metropolis)"] if wider else [],
    )


def _fields(line: str) -> list[str]:
    stripped = line.strip()
    if not stripped or stripped[0] in "#%":
        return []
    for delimiter in "\t,;":
        if delimiter in stripped:
            return [field.strip() for field in next(csv.reader([stripped], delimiter=delimiter))]
    return stripped.split()


def format_edge_list(topology: Topology, comma: bool) -> str:
    """Return one line of two node numbers per edge, after comments; labels and positions are not kept."""
    comments = [f"{topology.name}: {topology.nodes} nodes, {len(topology.edges)} edges"]
    comments += [f"source: {topology.source}"] if topology.source else []
    delimiter = "," if comma else " "
    return "".join([*(f"# {comment}\n" for comment in comments), *(f"{i}{delimiter}{j}\n" for i, j in topology.edges)])


def parse_json(text: str, where: str) -> RawGraph:
    """Return the graph of ``{"nodes": [name, ...], "edges": [[a, b], ...]}``.

    ``nodes`` is a list of distinct names or a number of nameless nodes; an edge's ends are names or node
    numbers. Optional: ``name``, ``source``, ``positions`` ([x, y] or null per node), ``repairs``. Raises
    ``TopologyError``.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"{where}: not JSON ({error}); correct the file") from error
    if not isinstance(document, dict) or not {"nodes", "edges"} <= document.keys():
        raise TopologyError(f'{where}: give an object with "nodes" and "edges"')
    unknown = [key for key in document if key not in _KEYS]
    if unknown:
        raise TopologyError(f"{where}: key {unknown[0][:60]!r} is unknown; choose among: {', '.join(_KEYS)}")
    names = _names(document["nodes"], where)
    nodes = document["nodes"] if names is None else len(names)
    edges = document["edges"]
    if not isinstance(edges, list):
        raise TopologyError(f'{where}: "edges" is no list; give [[a, b], ...]')
    check_size(where, nodes, len(edges))
    index = {name: node for node, name in enumerate(names or ())}
    return RawGraph(
        nodes=nodes,
        links=[_link(edge, index, nodes, where) for edge in edges],
        names=names,
        positions=_positions(document.get("positions"), nodes, where),
        name=_text(document, "name", where),
        source=_text(document, "source", where),
        repairs=_sentences(document.get("repairs", []), where),
    )


def _names(nodes: Any, where: str) -> list[str] | None:
    if isinstance(nodes, int) and not isinstance(nodes, bool):
        return None
    if not isinstance(nodes, list) or not all(isinstance(name, str) for name in nodes):
        raise TopologyError(f'{where}: "nodes" is neither a list of names nor a number; give one of them')
    if len(set(nodes)) < len(nodes):
        twice = next(name for name in nodes if nodes.count(name) > 1)
        raise TopologyError(f"{where}: node {twice[:60]!r} is named twice; give each node its own name")
    return nodes


def _link(edge: Any, index: dict[str, int], nodes: int, where: str) -> tuple[int, int]:
    if not isinstance(edge, list) or len(edge) != 2:
        raise TopologyError(f"{where}: edge {json.dumps(edge)[:60]} is no pair; give [a, b]")
    first, second = (_end(end, index, nodes, where) for end in edge)
    return first, second


def _end(end: Any, index: dict[str, int], nodes: int, where: str) -> int:
    if isinstance(end, str) and end in index:
        return index[end]
    if isinstance(end, int) and not isinstance(end, bool) and 0 <= end < nodes:
        return end
    raise TopologyError(f"{where}: an edge ends at {json.dumps(end)[:60]}, which is no node; add it or drop the edge")


def _positions(positions: Any, nodes: int, where: str) -> list[Position | None] | None:
    if positions is None:
        return None
    if not isinstance(positions, list) or len(positions) != nodes:
        raise TopologyError(f'{where}: "positions" is no list of {nodes} entries; give [x, y] or null per node')
    return [None if entry is None else _position(entry, where) for entry in positions]


def _position(entry: Any, where: str) -> Position:
    if isinstance(entry, list) and len(entry) == 2:
        x, y = entry
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in entry):
            try:
                return float(x), float(y)
            except OverflowError:
                pass
    raise TopologyError(f"{where}: position {json.dumps(entry)[:60]} is no [x, y]; give two numbers, or null")


def _text(document: dict[str, Any], key: str, where: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise TopologyError(f'{where}: "{key}" is no text; put it in quotes')
    return value


def _sentences(repairs: Any, where: str) -> list[str]:
    if not isinstance(repairs, list) or not all(isinstance(entry, str) for entry in repairs):
        raise TopologyError(f'{where}: "repairs" is no list of sentences; correct it or leave it out')
    return repairs


def format_json(topology: Topology) -> str:
    """Return ``topology`` in the project's JSON, one entry a line, so that changes read well in a diff."""
    header: dict[str, Any] = {"name": topology.name}
    header |= {"source": topology.source} if topology.source else {}
    header |= {"repairs": list(topology.repairs)} if topology.repairs else {}
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()]
    nodes: Iterable[str] | None = topology.labels
    lines.append(f'  "nodes": {topology.nodes if nodes is None else _array(nodes)}')
    if topology.positions is not None:
        lines.append(f'  "positions": {_array(map(list, topology.positions))}')
    ends = ([topology.label(i), topology.label(j)] if topology.labels else [i, j] for i, j in topology.edges)
    lines.append(f'  "edges": {_array(ends)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _array(entries: Iterable[Any]) -> str:
    lines = [f"    {json.dumps(entry, ensure_ascii=False)}" for entry in entries]
    return "[\n" + ",\n".join(lines) + "\n  ]" if lines else "[]"
