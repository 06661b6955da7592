"""``gossipfl topology``: the graphs that a network can gossip on, listed, shown, analysed, made."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipfl.errors import TopologyError

if TYPE_CHECKING:
    from rich.table import Table

    from gossipfl.topology.graph import Topology

SHOWN_NODES = 60  # rows of the neighbour table; a terminal holds no more at a glance
SHOWN_ENTRIES = 12

app = typer.Typer(
    name="topology",
    help="Graphs to gossip on: families, real networks, your own files.",
    no_args_is_help=True,
)


def _complete(incomplete: str) -> list[str]:
    from gossipfl.topology import TOPOLOGIES
    from gossipfl.topology.files import library

    return [name for name in (*TOPOLOGIES, *library()) if name.startswith(incomplete.lower())]


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


@app.command("list", epilog="Example:  gossipfl topology list")
def list_topologies(as_json: AsJson = False) -> None:
    """List families with their options, and the library of real networks."""
    from gossipfl.topology import TOPOLOGIES
    from gossipfl.topology.files import library, read_topology

    graphs = [read_topology(path) for path in library().values()]
    if as_json:
        families = {
            name: {key: option.default for key, option in family.options.items()} for name, family in TOPOLOGIES.items()
        }
        sizes = {
            name: {"nodes": graph.nodes, "edges": len(graph.edges)}
            for name, graph in zip(library(), graphs, strict=True)
        }
        typer.echo(json.dumps({"families": families, "library": sizes}))
        return
    families_table = _table("family", "options", "what it is")
    for name, family in TOPOLOGIES.items():
        options = ", ".join(
            key if option.default is None else f"{key}={option.default}" for key, option in family.options.items()
        )
        families_table.add_row(name, options, family.summary)
    library_table = _table("library", "nodes", "edges", "source")
    for name, graph in zip(library(), graphs, strict=True):
        library_table.add_row(name, str(graph.nodes), str(len(graph.edges)), graph.source.partition(";")[0])
    _print(families_table, library_table)


@app.command(
    epilog="Examples:\n\ngossipfl topology show geant2012\n\ngossipfl topology show ring --nodes 8\n\n"
    "gossipfl topology show ./sites.graphml --set largest=true"
)
def show(
    name: Name,
    nodes: Nodes = None,
    sets: Sets = None,
    seed: Seed = 0,
) -> None:
    """Show a topology: its size, what was repaired, and each node's neighbours."""
    topology = _resolve(name, nodes, sets, seed)
    facts = _table("", "")
    facts.show_header = False
    for key, value in _facts(topology):
        facts.add_row(key, value)
    rows = _table("node", "degree", "neighbours")
    for node in range(min(topology.nodes, SHOWN_NODES)):
        named = str(node) if topology.labels is None else f"{node} {topology.label(node)}"
        around = topology.neighbours(node)
        rows.add_row(named, str(len(around)), _some(map(topology.label, around)))
    if topology.nodes > SHOWN_NODES:
        rows.caption = f"{topology.nodes - SHOWN_NODES} more nodes"
    _print(facts, rows)


@app.command(
    epilog="Examples:\n\ngossipfl topology analyse geant2012 --byzantine 2\n\n"
    "gossipfl topology analyse random-regular --nodes 100 --set degree=6 --json"
)
def analyse(
    name: Name,
    byzantine: Annotated[
        int, typer.Option("--byzantine", metavar="F", help="Tell what F Byzantine nodes could do.")
    ] = 0,
    nodes: Nodes = None,
    sets: Sets = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Analyse a topology: mixing rate, reach, weak places."""
    from gossipfl.topology.analysis import analyse as analysed

    topology = _resolve(name, nodes, sets, seed)
    report = analysed(topology, byzantine)
    if as_json:
        typer.echo(json.dumps(report))
        return
    table = _table("measure", "value", "what it means")
    for measure, value, meaning in _measures(topology, report):
        table.add_row(measure, value, meaning)
    _print(table)


@app.command(
    epilog="Examples:\n\ngossipfl topology generate torus --nodes 24 -o torus.json\n\n"
    "gossipfl topology generate erdos-renyi --nodes 50 --set p=0.2 --seed 7 -o random.graphml"
)
def generate(
    name: Name,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE", help="File to write: .json, .graphml, .edges, .txt or .csv."),
    ],
    nodes: Nodes = None,
    sets: Sets = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Make a topology and write it to a file (or convert a graph file)."""
    from gossipfl.topology.files import write_topology

    topology = _resolve(name, nodes, sets, seed)
    if out.exists() and not force:
        raise TopologyError(f'graph file "{out}" exists; choose another name, or give --force to replace it')
    write_topology(topology, out)
    typer.echo(f"{out}: {topology.nodes} nodes, {len(topology.edges)} edges")


def _resolve(name: str, nodes: int | None, sets: Sequence[str] | None, seed: int) -> Topology:
    from gossipfl.topology import make_topology

    return make_topology(name, nodes, _options(sets or ()), seed)


def _options(sets: Iterable[str]) -> dict[str, object]:
    options: dict[str, object] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise TopologyError(f'--set "{text}" is no option; write --set key=value, e.g. --set degree=6')
        try:
            options[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key.strip()] = value  # a bare word; whether text is allowed is for the topology to say
    return options


def _facts(topology: Topology) -> list[tuple[str, str]]:
    degrees = topology.degrees
    mean = sum(degrees) / topology.nodes
    facts = [
        ("name", topology.name),
        ("nodes", str(topology.nodes)),
        ("edges", str(len(topology.edges))),
        ("degree", f"{min(degrees)} to {max(degrees)}, mean {mean:.2f}"),
    ]
    facts += [("source", topology.source)] if topology.source else []
    return facts + [("repaired", repair) for repair in topology.repairs]


def _measures(topology: Topology, report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    degree = report["degree"]
    links = [f"{topology.label(i)} - {topology.label(j)}" for i, j in report["bridges"]]
    rows = [
        ("name", report["name"], ""),
        *(("repaired", repair, "") for repair in report["repairs"]),
        ("nodes", str(report["nodes"]), ""),
        ("edges", str(report["edges"]), ""),
        ("degree", f"{degree['min']} to {degree['max']}, mean {degree['mean']:.2f}", "neighbours of a node"),
        ("diameter", str(report["diameter"]), "hops between the farthest nodes"),
        ("spectral gap", f"{report['spectral_gap']:.4g}", "of the Metropolis matrix; larger mixes faster"),
        ("sigma 2", f"{report['sigma_2']:.4g}", "shrinkage of differences per round"),
        ("algebraic connectivity", f"{report['algebraic_connectivity']:.4g}", "larger is harder to split"),
        ("articulation points", _counted(map(topology.label, report["articulation_points"])), "each one's loss splits"),
        ("bridges", _counted(links), "each one's loss splits"),
    ]
    return rows if report["byzantine"] is None else rows + _worst_case(topology, report["byzantine"])


def _worst_case(topology: Topology, worst: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    connected = {True: "yes", False: "no", None: "unknown"}[worst["honest_part_connected"]]
    connectivity = worst["vertex_connectivity"]
    return [
        ("Byzantine", f"{worst['count']} ({worst['share']:.0%})", "in the worst places"),
        ("vertex connectivity", "unknown" if connectivity is None else str(connectivity), "nodes to lose to split"),
        ("honest part connected", connected, "wherever they sit"),
        ("outvoted", _counted(map(topology.label, worst["outvoted"])), "half or more neighbours may lie"),
        ("surrounded", _counted(map(topology.label, worst["surrounded"])), "all neighbours may lie"),
    ]


def _counted(entries: Iterable[str]) -> str:
    listed = list(entries)
    return f"{len(listed)}: {_some(listed)}" if listed else "0"


def _some(entries: Iterable[str]) -> str:
    listed = list(entries)
    more = f", and {len(listed) - SHOWN_ENTRIES} more" if len(listed) > SHOWN_ENTRIES else ""
    return ", ".join(listed[:SHOWN_ENTRIES]) + more


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(*tables: Table) -> None:
    from rich.console import Console

    # Labels come from files: what looks like markup in them is text.
    console = Console(markup=False, highlight=False)
    for table in tables:
        console.print(table)
