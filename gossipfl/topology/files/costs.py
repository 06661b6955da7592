"""What links would cost, from a file: ``from, to, cost`` line by line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from gossipfl.errors import TopologyError
from gossipfl.topology.graph import Edge, Topology
from gossipfl.topology.limits import MAX_FILE_BYTES

Costs = Mapping[Edge, float]
"""The cost of each pair (i, j), i < j, that may be linked; other pairs may not."""


def read_costs(path: str | Path, topology: Topology) -> Costs:
    """Return the costs that a file gives for links of ``topology``.

    One link a line: two nodes, each by its label or its number, and a cost of at least 0, separated by commas. Lines
    that are empty or begin with # are left out. Raises ``TopologyError``.
    """
    path = Path(path)
    where = f'costs "{path}"'
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TopologyError(f"{where} are larger than {MAX_FILE_BYTES} bytes; leave out links that cannot be")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TopologyError(f"{where} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise TopologyError(f"{where} are not UTF-8 text (byte {error.start}); convert them to UTF-8") from error
    numbers = {str(node): node for node in range(topology.nodes)}
    numbers |= {topology.label(node): node for node in range(topology.nodes)}
    costs: dict[Edge, float] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            pair, cost = _entry(line, numbers, f"{where}, line {number}")
            costs[pair] = cost
    return costs


def _entry(line: str, numbers: Mapping[str, int], where: str) -> tuple[Edge, float]:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 3:
        raise TopologyError(f"{where} has {len(fields)} fields; write from, to, cost")
    for name in fields[:2]:
        if name not in numbers:
            raise TopologyError(f'{where}: "{name[:60]}" is no node; give a label or a number of the topology')
    first, second = numbers[fields[0]], numbers[fields[1]]
    if first == second:
        raise TopologyError(f"{where} links a node to itself; give two nodes")
    try:
        cost = float(fields[2])
    except ValueError:
        cost = math.nan
    if not 0 <= cost < math.inf:
        raise TopologyError(f'{where}: cost "{fields[2][:60]}" is no number of at least 0; give one')
    return (min(first, second), max(first, second)), cost
