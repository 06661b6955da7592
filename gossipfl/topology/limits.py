"""How large a graph may be: bounds that keep a wrong number or a hostile file from taking the machine."""

from __future__ import annotations

from gossipfl.errors import TopologyError

MAX_NODES = 100_000
MAX_EDGES = 2_000_000
MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_LABEL_CHARACTERS = 200


def check_edges(family: str, edges: float) -> None:
    """Refuse a graph of too many ``edges``, counted or expected, before it is made."""
    if edges > MAX_EDGES:
        raise TopologyError(
            f'topology "{family}" would have about {edges:.0f} edges; give fewer nodes or a sparser graph, '
            f"at most {MAX_EDGES} edges"
        )


def checked_nodes(name: str, nodes: int | None, least: int) -> int:
    """Return the number of nodes of the graph ``name``; raise ``TopologyError`` where it is missing or infeasible."""
    if nodes is None:
        raise TopologyError(f'topology "{name}" needs a number of nodes; give nodes (at least {least})')
    if not least <= nodes <= MAX_NODES:
        wrong = "few" if nodes < least else "many"
        raise TopologyError(f'topology "{name}": {nodes} nodes are too {wrong}; give {least} to {MAX_NODES}')
    return nodes
