"""Graph families by name, and the one entry that makes a topology from a name or a file."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gossipfl.digest import derive_seed
from gossipfl.errors import TopologyError
from gossipfl.topology import random_graphs
from gossipfl.topology.files import find_file, library, read_topology
from gossipfl.topology.graph import Edge, Topology, canonical_edges
from gossipfl.topology.limits import MAX_NODES, check_edges

REDRAWS = 100  # draws of a random graph before it counts as never connected

Options = Mapping[str, Any]
Build = Callable[[int, Options, int], Iterable[Edge]]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a family: type, default (None: chosen from the number of nodes) and meaning."""

    kind: type[int] | type[float]
    default: int | float | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Family:
    """A family of graphs: ``build(nodes, options, seed)`` returns its edges, in any order and direction.

    Only a ``random`` family reads the seed. ``least`` is the smallest number of nodes.
    """

    summary: str
    build: Build
    least: int = 2
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    random: bool = False


def _ring(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    return ((i, (i + 1) % nodes) for i in range(nodes))


def _line(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    return ((i, i + 1) for i in range(nodes - 1))


def _complete(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    check_edges("complete", nodes * (nodes - 1) / 2)
    return ((i, j) for i in range(nodes) for j in range(i + 1, nodes))


def _star(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    return ((0, leaf) for leaf in range(1, nodes))


def _tree(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    if options["branching"] < 1:
        raise TopologyError(f'topology "tree": branching is {options["branching"]}; give at least 1')
    return ((child, (child - 1) // options["branching"]) for child in range(1, nodes))


def _rows(family: str, nodes: int, rows: int | None) -> int:
    """Return the rows of a rows x columns lattice: the given number, or the one nearest to a square."""
    if rows is not None:
        if rows < 2 or nodes % rows or nodes // rows < 2:
            raise TopologyError(
                f'topology "{family}": {nodes} nodes do not fill {rows} rows of at least 2; '
                "give a divisor of the number of nodes, or leave rows out"
            )
        return rows
    best = _square_divisor(nodes)
    if best < 2:
        # Every even number from 4 on is a product, so a neighbour always works.
        near = [n for n in range(max(4, nodes - 2), nodes + 3) if _square_divisor(n) > 1]
        raise TopologyError(
            f'topology "{family}": {nodes} nodes cannot be laid out in rows (the number is prime); '
            f"nearby numbers that can: {', '.join(map(str, near))}"
        )
    return best


def _square_divisor(nodes: int) -> int:
    """Return the largest divisor of ``nodes`` that is at most its square root."""
    return next(rows for rows in range(math.isqrt(nodes), 0, -1) if nodes % rows == 0)


def _grid(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    columns = nodes // _rows("grid", nodes, options["rows"])
    for node in range(nodes):
        if (node + 1) % columns:
            yield node, node + 1
        if node + columns < nodes:
            yield node, node + columns


def _torus(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    # On a side of two nodes the wrap-around edge is the direct one.
    columns = nodes // _rows("torus", nodes, options["rows"])
    for node in range(nodes):
        row, column = divmod(node, columns)
        yield node, row * columns + (column + 1) % columns
        yield node, (node + columns) % nodes


def _hypercube(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    if nodes & (nodes - 1):
        below = 1 << (nodes.bit_length() - 1)
        raise TopologyError(
            f'topology "hypercube": {nodes} nodes are no power of two; give {below} or {2 * below} nodes'
        )
    return ((i, i ^ (1 << bit)) for i in range(nodes) for bit in range(nodes.bit_length() - 1))


def _exponential(nodes: int, _options: Options, _seed: int) -> Iterable[Edge]:
    # The static exponential graph of Ying et al., "Exponential graph is provably efficient for decentralized
    # deep training" (NeurIPS 2021), with each link used both ways: node i is joined to i +- 2^k (mod n).
    hops = [1 << power for power in range((nodes - 1).bit_length())]
    return ((i, (i + hop) % nodes) for i in range(nodes) for hop in hops)


def _dumbbell(nodes: int, options: Options, _seed: int) -> Iterable[Edge]:
    left, bridges = (nodes + 1) // 2, options["bridges"]
    if not 1 <= bridges <= nodes - left:
        raise TopologyError(
            f'topology "dumbbell": {bridges} bridges between halves of {left} and {nodes - left} nodes; '
            f"give 1 to {nodes - left}"
        )
    check_edges("dumbbell", left * (left - 1))
    for first, last in ((0, left), (left, nodes)):
        yield from ((i, j) for i in range(first, last) for j in range(i + 1, last))
    yield from ((i, left + i) for i in range(bridges))


TOPOLOGIES: Mapping[str, Family] = MappingProxyType(
    {
        "ring": Family("each node has two neighbours, in a circle", _ring, least=3),
        "line": Family("a chain", _line),
        "complete": Family("everyone is everyone's neighbour", _complete),
        "star": Family("node 0 in the middle", _star),
        "torus": Family(
            "a grid whose borders are joined, as square as the number of nodes allows",
            _torus,
            least=4,
            options={"rows": Option(int, None, "number of rows (default: near-square)")},
        ),
        "grid": Family(
            "a rectangular lattice, as square as the number of nodes allows",
            _grid,
            least=4,
            options={"rows": Option(int, None, "number of rows (default: near-square)")},
        ),
        "hypercube": Family("2^k nodes, joined where their numbers differ in one bit", _hypercube),
        "tree": Family(
            "a complete tree, filled level by level",
            _tree,
            options={"branching": Option(int, 2, "children of each node")},
        ),
        "random-regular": Family(
            "drawn uniformly among graphs where all nodes have the same degree",
            random_graphs.random_regular,
            options={"degree": Option(int, 4, "neighbours of each node")},
            random=True,
        ),
        "erdos-renyi": Family(
            "each pair is joined with probability p",
            random_graphs.erdos_renyi,
            options={"p": Option(float, None, "probability of an edge (default: min(1, 2 ln n / n))")},
            random=True,
        ),
        "small-world": Family(
            "a ring lattice with some edges rewired (Watts-Strogatz)",
            random_graphs.small_world,
            least=3,
            options={
                "k": Option(int, 4, "neighbours before rewiring, even"),
                "rewire": Option(float, 0.2, "probability that an edge is rewired"),
            },
            random=True,
        ),
        "barabasi-albert": Family(
            "grown by preferential attachment: few hubs, many leaves",
            random_graphs.barabasi_albert,
            options={"m": Option(int, 2, "edges that each new node brings")},
            random=True,
        ),
        "exponential": Family("node i is joined to i +- 1, 2, 4, 8, ... around the circle", _exponential),
        "dumbbell": Family(
            "two cliques of half the nodes each, joined by bridges",
            _dumbbell,
            least=4,
            options={"bridges": Option(int, 1, "edges between the halves")},
        ),
    }
)


def make_topology(
    name_or_file: str, nodes: int | None = None, options: Mapping[str, object] | None = None, seed: int = 0
) -> Topology:
    """Return the topology of a family, of a graph file, or of the library, always connected.

    ``nodes`` may be None for a file, which knows its own number. ``seed`` is the run's seed: a random family
    is drawn from ``derive_seed(seed, "topology")``, and redrawn from seeds derived from that until it is
    connected. A file takes one option, ``largest`` (bool): keep the largest part of a disconnected graph.
    Raises ``TopologyError``.
    """
    given = {} if options is None else options
    family = TOPOLOGIES.get(name_or_file)
    if family is not None:
        return _from_family(name_or_file, family, nodes, given, seed)
    path = find_file(name_or_file)
    if path is None:
        raise TopologyError(_unknown(name_or_file))
    _refuse_unknown(name_or_file, given, ("largest",))
    largest = given.get("largest", False)
    if not isinstance(largest, bool):
        raise TopologyError(f'topology "{name_or_file}": largest is {largest!r}; give true or false')
    topology = read_topology(path, largest=largest)
    if nodes not in (None, topology.nodes):
        raise TopologyError(
            f'topology "{name_or_file}" has {topology.nodes} nodes, not {nodes}; '
            f"leave the number of nodes out, or set it to {topology.nodes}"
        )
    return topology


def _unknown(name: str) -> str:
    known = [*TOPOLOGIES, *library()]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f'topology "{name}" is unknown; {hint}choose one of: {", ".join(known)}; or name a graph file'


def _refuse_unknown(name: str, given: Mapping[str, object], known: Iterable[str]) -> None:
    unknown = [option for option in given if option not in known]
    if unknown:
        choice = f"choose one of: {', '.join(known)}" if known else "it takes none"
        raise TopologyError(f'topology "{name}" has no option "{unknown[0]}"; {choice}')


def _from_family(name: str, family: Family, nodes: int | None, given: Mapping[str, object], seed: int) -> Topology:
    if nodes is None:
        raise TopologyError(f'topology "{name}" needs a number of nodes; give nodes (at least {family.least})')
    if not family.least <= nodes <= MAX_NODES:
        raise TopologyError(
            f'topology "{name}": {nodes} nodes are too {"few" if nodes < family.least else "many"}; '
            f"give {family.least} to {MAX_NODES}"
        )
    _refuse_unknown(name, given, tuple(family.options))
    chosen = {key: _value(name, key, option, given.get(key)) for key, option in family.options.items()}
    root = derive_seed(seed, "topology")
    for attempt in range(REDRAWS if family.random else 1):
        drawn = family.build(nodes, chosen, derive_seed(root, attempt) if attempt else root)
        topology = Topology(name, nodes, canonical_edges(drawn))
        if topology.is_connected:
            return topology
    raise TopologyError(
        f'topology "{name}" with {nodes} nodes and {_told(chosen)} was never connected in {REDRAWS} draws; '
        "choose options that make more edges"
    )


def _told(options: Options) -> str:
    return ", ".join(f"{key} = {value}" for key, value in options.items())


def _value(name: str, key: str, option: Option, given: object) -> int | float | None:
    if given is None:
        return option.default
    # bool is an int to Python, but "degree = true" is a mistake; an int where a fraction is meant is none.
    if not isinstance(given, bool):
        if option.kind is int and isinstance(given, int):
            return given
        if option.kind is float and isinstance(given, (int, float)) and math.isfinite(given):
            return float(given)
    wanted = "a whole number" if option.kind is int else "a number"
    raise TopologyError(f'topology "{name}": {key} is {given!r}; give {wanted} ({option.meaning})')
