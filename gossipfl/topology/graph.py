"""The graph that a network gossips on: undirected, without loops or parallel edges."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gossipfl.errors import TopologyError

if TYPE_CHECKING:
    import networkx as nx

Edge = tuple[int, int]
Position = tuple[float, float]


def canonical_edges(pairs: Iterable[tuple[int, int]]) -> tuple[Edge, ...]:
    """Return undirected ``pairs`` as sorted, distinct edges (i, j) with i < j, without self loops."""
    return tuple(sorted({(i, j) if i < j else (j, i) for i, j in pairs if i != j}))


@dataclass(frozen=True, slots=True)
class Topology:
    """An undirected simple graph over the nodes 0 .. ``nodes`` - 1.

    ``edges``: pairs (i, j) with i < j, ascending and distinct (``canonical_edges`` makes them so). ``labels``
    and ``positions`` (x to the right, y upwards, any unit) have one entry per node or are None. ``repairs``:
    what was changed while a file was read, one plain sentence each. ``source``: where the graph comes from.
    Memory is O(nodes + edges). Raises ``TopologyError`` for a graph that is none.
    """

    name: str
    nodes: int
    edges: tuple[Edge, ...]
    labels: tuple[str, ...] | None = None
    positions: tuple[Position, ...] | None = None
    repairs: tuple[str, ...] = ()
    source: str = ""
    _neighbours: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    _degrees: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        adjacency: list[list[int]] = [[] for _ in range(self.nodes)]
        # Edges ascend, so every list fills in ascending order: first the smaller neighbours, then the larger.
        for i, j in self.edges:
            adjacency[j].append(i)
        for i, j in self.edges:
            adjacency[i].append(j)
        object.__setattr__(self, "_neighbours", tuple(map(tuple, adjacency)))
        object.__setattr__(self, "_degrees", tuple(map(len, adjacency)))

    def _check(self) -> None:
        if self.nodes < 1:
            raise TopologyError(f'topology "{self.name}" has {self.nodes} nodes; it needs at least one')
        for i, j in self.edges:
            if not 0 <= i < j < self.nodes:
                raise TopologyError(
                    f'topology "{self.name}": edge ({i}, {j}) is not 0 <= i < j < {self.nodes}; '
                    "pass edges through canonical_edges"
                )
        if any(first >= second for first, second in pairwise(self.edges)):
            raise TopologyError(
                f'topology "{self.name}": edges are not ascending and distinct; pass them through canonical_edges'
            )
        for what, entries in (("labels", self.labels), ("positions", self.positions)):
            if entries is not None and len(entries) != self.nodes:
                raise TopologyError(
                    f'topology "{self.name}" has {self.nodes} nodes but {len(entries)} {what}; give one per node'
                )

    def neighbours(self, node: int) -> tuple[int, ...]:
        """Return the neighbours of ``node``, ascending."""
        return self._neighbours[node]

    @property
    def degrees(self) -> tuple[int, ...]:
        """Number of neighbours of each node."""
        return self._degrees

    @property
    def is_connected(self) -> bool:
        """Whether a path joins every pair of nodes; one search, O(nodes + edges)."""
        return len(self._reachable(0)) == self.nodes

    def label(self, node: int) -> str:
        """Return the node's label, or its number where the graph has no labels."""
        return str(node) if self.labels is None else self.labels[node]

    def components(self) -> tuple[tuple[int, ...], ...]:
        """Return the connected parts, largest first, then by smallest node; each part ascending."""
        parts: list[tuple[int, ...]] = []
        seen: set[int] = set()
        for node in range(self.nodes):
            if node not in seen:
                part = self._reachable(node)
                seen |= part
                parts.append(tuple(sorted(part)))
        return tuple(sorted(parts, key=lambda part: (-len(part), part[0])))

    def _reachable(self, start: int) -> set[int]:
        seen = {start}
        frontier = deque([start])
        while frontier:
            for neighbour in self._neighbours[frontier.popleft()]:
                if neighbour not in seen:
                    seen.add(neighbour)
                    frontier.append(neighbour)
        return seen

    def induced(self, keep: Iterable[int], repairs: Iterable[str] = ()) -> Topology:
        """Return the subgraph on the nodes ``keep``, renumbered in their order, with ``repairs`` added."""
        kept = sorted(set(keep))
        index = {node: position for position, node in enumerate(kept)}
        return Topology(
            name=self.name,
            nodes=len(kept),
            edges=tuple((index[i], index[j]) for i, j in self.edges if i in index and j in index),
            labels=None if self.labels is None else tuple(self.labels[node] for node in kept),
            positions=None if self.positions is None else tuple(self.positions[node] for node in kept),
            repairs=(*self.repairs, *repairs),
            source=self.source,
        )

    def to_networkx(self) -> nx.Graph[Any]:
        """Return a new ``networkx.Graph`` on the nodes 0 .. ``nodes`` - 1."""
        import networkx as nx

        graph = nx.Graph(name=self.name)
        graph.add_nodes_from(range(self.nodes))
        graph.add_edges_from(self.edges)
        return graph
