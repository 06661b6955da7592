"""The arguments that the commands of ``gossipfl topology`` share, and the graph that they name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossipfl.errors import TopologyError

if TYPE_CHECKING:
    from gossipfl.topology.graph import Topology


def _complete(incomplete: str) -> list[str]:
    from gossipfl.topology import SEQUENCES, TOPOLOGIES
    from gossipfl.topology.files.library import library

    return [name for name in (*TOPOLOGIES, *library(), *SEQUENCES) if name.startswith(incomplete.lower())]


Name = Annotated[
    str,
    typer.Argument(metavar="NAME|FILE", help="A family, a library graph or a graph file.", autocompletion=_complete),
]
Nodes = Annotated[int | None, typer.Option("--nodes", metavar="N", help="Number of nodes; files know theirs.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="An option of the topology, e.g. degree=6. Repeatable."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="S", help="Seed of random families, as a run's.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")]
Picture = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="Draw it too: a .png, .svg or .pdf file.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def resolve(name: str, nodes: int | None, sets: Sequence[str] | None, seed: int) -> Topology:
    """Return the topology that the arguments name; raises ``TopologyError``."""
    from gossipfl.topology import is_sequence, make_topology

    if is_sequence(name):
        raise TopologyError(
            f'topology "{name}" is a sequence of graphs, another each round, and none of them; '
            "only runs and topology analyse take it"
        )
    return make_topology(name, nodes, options(sets or ()), seed)


def options(sets: Iterable[str]) -> dict[str, object]:
    """Return the options that ``--set key=value`` texts hold; raises ``TopologyError``."""
    given: dict[str, object] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise TopologyError(f'--set "{text}" is no option; write --set key=value, e.g. --set degree=6')
        try:
            given[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            given[key.strip()] = value  # a bare word; whether text is allowed is for the topology to say
    return given


def refuse_to_replace(path: Path, force: bool) -> None:
    """Raise ``TopologyError`` where a graph file exists and nobody said ``--force``."""
    if path.exists() and not force:
        raise TopologyError(f'graph file "{path}" exists; choose another name, or give --force to replace it')
