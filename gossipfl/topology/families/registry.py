"""Graph families by name, and the one entry that makes a topology from a name or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gossipfl.digest import derive_seed
from gossipfl.errors import TopologyError
from gossipfl.topology.families import fixed_graphs, random_graphs, spatial
from gossipfl.topology.files.library import find_file, library, read_topology
from gossipfl.topology.graph import Edge, Topology, canonical_edges
from gossipfl.topology.limits import checked_nodes
from gossipfl.topology.options import Option, Options, chosen, near, refuse_unknown, told

REDRAWS = 100  # draws of a random graph before it counts as never connected

Build = Callable[[int, Options, int], Iterable[Edge] | Topology]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of graphs: ``build(nodes, options, seed)`` returns its edges, in any order and direction.

    A family whose nodes have places or names returns the whole topology instead. Only a ``random`` family reads the
    seed. ``least`` is the smallest number of nodes.
    """

    summary: str
    build: Build
    least: int = 2
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    random: bool = False


_SITES: Mapping[str, Option] = MappingProxyType(
    {
        "sites": Option(str, None, "a graph file or library graph whose nodes' positions are taken"),
        "metric": Option(
            str, "plane", "distance: plane, or earth for longitude and latitude, in km", tuple(spatial.METRICS)
        ),
    }
)

TOPOLOGIES: Mapping[str, Family] = MappingProxyType(
    {
        "ring": Family("each node has two neighbours, in a circle", fixed_graphs.ring, least=3),
        "line": Family("a chain", fixed_graphs.line),
        "complete": Family("everyone is everyone's neighbour", fixed_graphs.complete),
        "star": Family("node 0 in the middle", fixed_graphs.star),
        "torus": Family(
            "a grid whose borders are joined, as square as the number of nodes allows",
            fixed_graphs.torus,
            least=4,
            options={"rows": Option(int, None, "number of rows (default: near-square)")},
        ),
        "grid": Family(
            "a rectangular lattice, as square as the number of nodes allows",
            fixed_graphs.grid,
            least=4,
            options={"rows": Option(int, None, "number of rows (default: near-square)")},
        ),
        "hypercube": Family("2^k nodes, joined where their numbers differ in one bit", fixed_graphs.hypercube),
        "tree": Family(
            "a complete tree, filled level by level",
            fixed_graphs.tree,
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
        "exponential": Family("node i is joined to i +- 1, 2, 4, 8, ... around the circle", fixed_graphs.exponential),
        "dumbbell": Family(
            "two cliques of half the nodes each, joined by bridges",
            fixed_graphs.dumbbell,
            least=4,
            options={"bridges": Option(int, 1, "edges between the halves")},
        ),
        "two-castles": Family(
            "two cliques of half the nodes each, every node joined to some of the other side",
            fixed_graphs.two_castles,
            least=4,
            options={"cross": Option(int, 8, "neighbours of each node on the other side")},
        ),
        "equitopo": Family(
            "joined around the circle by hops drawn at random (U-EquiStatic), fast at any size",
            random_graphs.equitopo,
            options={"m": Option(int, None, "hops drawn (default: ceil(log2 n)); at most 2m neighbours")},
            random=True,
        ),
        "geometric": Family(
            "sites within radio range of each other",
            spatial.geometric,
            options={
                "range": Option(float, None, "longest link (default: sqrt(2 ln n / (pi n)) in the unit square)"),
                **_SITES,
            },
            random=True,
        ),
        "k-nearest": Family(
            "each site is joined to the sites nearest to it",
            spatial.k_nearest,
            options={"k": Option(int, None, "nearest sites of each (default: ceil(ln n))"), **_SITES},
            random=True,
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
    refuse_unknown(name_or_file, given, ("largest",))
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
    # Sequences are made of graphs, so that module imports this one.
    from gossipfl.topology.sequences.registry import SEQUENCES

    known = [*TOPOLOGIES, *library()]
    choice = f"choose one of: {', '.join(known)}; or name a graph file"
    if name in SEQUENCES:
        return f'topology "{name}" is another graph each round, and one for all rounds is needed here; {choice}'
    return f'topology "{name}" is unknown; {near(name, [*known, *SEQUENCES])}{choice}'


def _from_family(name: str, family: Family, nodes: int | None, given: Mapping[str, object], seed: int) -> Topology:
    nodes = checked_nodes(name, nodes, family.least)
    values = chosen(name, family.options, given)
    root = derive_seed(seed, "topology")
    for attempt in range(REDRAWS if family.random else 1):
        drawn = family.build(nodes, values, derive_seed(root, attempt) if attempt else root)
        topology = drawn if isinstance(drawn, Topology) else Topology(name, nodes, canonical_edges(drawn))
        if topology.is_connected:
            return topology
    raise TopologyError(
        f'topology "{name}" with {nodes} nodes and {told(values)} was never connected in {REDRAWS} draws; '
        "choose options that make more edges"
    )
