"""From what a file says to a topology: repairs are explicit, counted and reported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from gossipfl.errors import TopologyError
from gossipfl.topology.graph import Position, Topology, canonical_edges
from gossipfl.topology.limits import MAX_EDGES, MAX_LABEL_CHARACTERS, MAX_NODES


@dataclass(slots=True)
class RawGraph:
    """A graph as a file tells it, before any repair.

    ``links`` are ordered pairs of node numbers and may hold loops and parallels. ``labels`` and ``positions``
    have one entry per node where given; an entry of None is missing. ``names`` are what the file calls its
    nodes.
    """

    nodes: int
    links: list[tuple[int, int]]
    names: Sequence[str] | None = None
    labels: Sequence[str | None] | None = None
    positions: Sequence[Position | None] | None = None
    directed: bool = False
    name: str | None = None
    source: str = ""
    repairs: list[str] = field(default_factory=list)


def check_size(where: str, nodes: int, links: int) -> None:
    """Raise ``TopologyError`` where a file holds more nodes or edges than the limits allow."""
    if nodes > MAX_NODES:
        raise TopologyError(f"{where}: more than {MAX_NODES} nodes; split the graph or take a part of it")
    if links > MAX_EDGES:
        raise TopologyError(f"{where}: more than {MAX_EDGES} edges; split the graph or take a part of it")


def repaired(raw: RawGraph, where: str, default_name: str, largest: bool) -> Topology:
    """Return ``raw`` as a connected topology whose ``repairs`` tell everything that was changed.

    ``where`` names the file in messages. A disconnected graph is refused unless ``largest``. Raises
    ``TopologyError``.
    """
    check_size(where, raw.nodes, len(raw.links))
    if raw.nodes < 1:
        raise TopologyError(f"{where}: the graph has no nodes; give at least two joined nodes")
    repairs = list(raw.repairs)
    edges = canonical_edges(raw.links)
    loops = sum(first == second for first, second in raw.links)
    merged = len(raw.links) - loops - len(edges)
    if raw.directed:
        repairs.append(f"directions of {_count(len(raw.links), 'edge')} ignored: gossip uses a link both ways")
    if loops:
        repairs.append(f"{_count(loops, 'self loop')} dropped")
    if merged:
        repairs.append(f"{_count(merged, 'parallel edge')} merged")
    topology = Topology(
        name=_clean(raw.name or "") or default_name,
        nodes=raw.nodes,
        edges=edges,
        labels=_labels(raw, repairs),
        positions=_positions(raw, repairs),
        repairs=tuple(repairs),
        source=_clean(raw.source),
    )
    return _connected(topology, where, largest)


def sites(raw: RawGraph, where: str, default_name: str) -> Topology:
    """Return the nodes of ``raw``, with labels and positions, and no edge. Raises ``TopologyError``."""
    check_size(where, raw.nodes, len(raw.links))
    if raw.positions is None or not all(
        place is not None and all(map(math.isfinite, place)) for place in raw.positions
    ):
        raise TopologyError(f"{where}: not every node has a position; give each its coordinates")
    repairs: list[str] = []
    return Topology(
        name=_clean(raw.name or "") or default_name,
        nodes=raw.nodes,
        edges=(),
        labels=_labels(raw, repairs),
        positions=_positions(raw, repairs),
        repairs=tuple(repairs),
        source=_clean(raw.source),
    )


def _connected(topology: Topology, where: str, largest: bool) -> Topology:
    parts = topology.components()
    if len(parts) > 1 and not largest:
        sizes = ", ".join(str(len(part)) for part in parts[:5]) + (", ..." if len(parts) > 5 else "")
        raise TopologyError(
            f"{where}: the graph falls into {len(parts)} parts (of {sizes} nodes); "
            "join them, or set largest=true to keep the largest part"
        )
    if len(parts) > 1:
        kept = f"largest of {len(parts)} parts kept: {len(parts[0])} of {topology.nodes} nodes"
        topology = topology.induced(parts[0], [kept])
    if topology.nodes < 2:
        raise TopologyError(f"{where}: a single node has nobody to gossip with; give at least two joined nodes")
    return topology


def _labels(raw: RawGraph, repairs: list[str]) -> tuple[str, ...] | None:
    """Return distinct, printable labels; a node without one is called by its name in the file."""
    if raw.labels is None and raw.names is None:
        return None
    names = raw.names or [str(node) for node in range(raw.nodes)]
    given = [_clean(label or "") for label in raw.labels or [""] * raw.nodes]
    missing = sum(not label for label in given)
    if raw.labels is not None and missing:
        repairs.append(f"{_count(missing, 'node')} without a label called by their name in the file")
    labels = [
        label or _clean(name) or f"node {node}" for node, (label, name) in enumerate(zip(given, names, strict=True))
    ]
    times = Counter(labels)
    taken = set(labels)
    numbers: Counter[str] = Counter()
    renamed = 0
    for node, label in enumerate(labels):
        numbers[label] += 1
        if times[label] > 1 and numbers[label] > 1:
            while (fresh := f"{label} ({numbers[label]})") in taken:
                numbers[label] += 1
            labels[node] = fresh
            taken.add(fresh)
            renamed += 1
    if renamed:
        repairs.append(f"{_count(renamed, 'repeated label')} numbered")
    return tuple(labels)


def _positions(raw: RawGraph, repairs: list[str]) -> tuple[Position, ...] | None:
    """Return one position per node; a missing one becomes the mean of the node's placed neighbours."""
    placed = {
        node: position
        for node, position in enumerate(raw.positions or ())
        if position is not None and all(map(math.isfinite, position))
    }
    if not placed:
        return None
    missing = raw.nodes - len(placed)
    if missing:
        repairs.append(f"{_count(missing, 'node')} without coordinates placed amid their neighbours")
    around: dict[int, list[int]] = {}
    for first, second in raw.links:
        around.setdefault(first, []).append(second)
        around.setdefault(second, []).append(first)
    middle = _mean(list(placed.values()))
    waiting = [node for node in range(raw.nodes) if node not in placed]
    while waiting:
        found = {
            node: _mean(near)
            for node in waiting
            if (near := [placed[other] for other in around.get(node, ()) if other in placed])
        }
        # Nodes that no path joins to a placed one go to the middle of the map.
        placed |= found or dict.fromkeys(waiting, middle)
        waiting = [node for node in waiting if node not in placed]
    return tuple(placed[node] for node in range(raw.nodes))


def _mean(points: Sequence[Position]) -> Position:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _clean(text: str) -> str:
    """Return ``text`` on one line and printable: labels end up on terminals and in reports."""
    line = " ".join(text[: 4 * MAX_LABEL_CHARACTERS].split())
    return "".join(letter for letter in line if letter.isprintable())[:MAX_LABEL_CHARACTERS]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
