"""``gossipfl topology``: the graphs that a network can gossip on, listed, shown, analysed, mended, drawn, made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gossipfl.cli import recommend
from gossipfl.cli.graph_options import (
    AsJson,
    Force,
    Name,
    Nodes,
    Picture,
    Seed,
    Sets,
    options,
    refuse_to_replace,
    resolve,
)
from gossipfl.cli.measures import graph_measures, print_tables, sequence_measures, some, table
from gossipfl.errors import TopologyError

if TYPE_CHECKING:
    from gossipfl.topology.graph import Topology
    from gossipfl.topology.sequences.schedule import MixingSequence

SHOWN_NODES = 60  # rows of the neighbour table; a terminal holds no more at a glance

app = typer.Typer(
    name="topology",
    help="Graphs to gossip on: families, real networks, your own files.",
    no_args_is_help=True,
)
app.command(epilog=recommend.EXAMPLES)(recommend.recommend)

Byzantine = Annotated[int, typer.Option("--byzantine", metavar="F", help="Tell what F Byzantine nodes could do.")]


@app.command("list", epilog="Example:  gossipfl topology list")
def list_topologies(as_json: AsJson = False) -> None:
    """List families with their options, sequences, and the library of real networks."""
    from gossipfl.topology import SEQUENCES, TOPOLOGIES
    from gossipfl.topology.files.library import library, read_topology

    graphs = {name: read_topology(path) for name, path in library().items()}
    if as_json:
        defaults = {
            kind: {
                name: {key: option.default for key, option in family.options.items()}
                for name, family in registry.items()
            }
            for kind, registry in (("families", TOPOLOGIES), ("sequences", SEQUENCES))
        }
        sizes = {name: {"nodes": graph.nodes, "edges": len(graph.edges)} for name, graph in graphs.items()}
        typer.echo(json.dumps({**defaults, "library": sizes}))
        return
    tables = []
    for kind, registry in (("family", TOPOLOGIES), ("sequence", SEQUENCES)):
        rows = table(kind, "options", "what it is")
        for name, family in registry.items():
            told = ", ".join(
                key if option.default is None else f"{key}={option.default}" for key, option in family.options.items()
            )
            rows.add_row(name, told, family.summary)
        tables.append(rows)
    rows = table("library", "nodes", "edges", "source")
    for name, graph in graphs.items():
        rows.add_row(name, str(graph.nodes), str(len(graph.edges)), graph.source.partition(";")[0])
    print_tables(*tables, rows)


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
    topology = resolve(name, nodes, sets, seed)
    facts = table("", "")
    facts.show_header = False
    for key, value in _facts(topology):
        facts.add_row(key, value)
    rows = table("node", "degree", "neighbours")
    for node in range(min(topology.nodes, SHOWN_NODES)):
        named = str(node) if topology.labels is None else f"{node} {topology.label(node)}"
        around = topology.neighbours(node)
        rows.add_row(named, str(len(around)), some(map(topology.label, around)))
    if topology.nodes > SHOWN_NODES:
        rows.caption = f"{topology.nodes - SHOWN_NODES} more nodes"
    print_tables(facts, rows)


@app.command(
    epilog="Examples:\n\ngossipfl topology analyse geant2012 --byzantine 2 --picture geant.png\n\n"
    "gossipfl topology analyse random-regular --nodes 100 --set degree=6 --json\n\n"
    "gossipfl topology analyse base-k --nodes 20 --set k=2"
)
def analyse(
    name: Name,
    byzantine: Byzantine = 0,
    model_bytes: Annotated[
        int | None, typer.Option("--model-bytes", metavar="B", help="Tell the traffic of updates of B bytes.")
    ] = None,
    rules: Annotated[
        bool, typer.Option("--rules/--no-rules", help="Tell how many liars each rule allows at each node.")
    ] = True,
    nodes: Nodes = None,
    sets: Sets = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    picture: Picture = None,
) -> None:
    """Analyse a topology: mixing rate, reach, weak places. Of a sequence: what is left of differences each round."""
    from gossipfl.topology import is_sequence, make_sequence

    if is_sequence(name):
        _analyse_sequence(make_sequence(name, nodes, options(sets or ()), seed), byzantine, picture, as_json)
        return
    from gossipfl.topology.analysis.graphs import analyse as analysed

    topology = resolve(name, nodes, sets, seed)
    _check_picture(picture)
    report = analysed(topology, byzantine, tolerances=_tolerances() if rules else {}, model_bytes=model_bytes)
    if picture is not None:
        _draw(topology, report["byzantine"], picture)
    if as_json:
        typer.echo(json.dumps(report))
        return
    rows = table("measure", "value", "what it means")
    for row in graph_measures(topology, report):
        rows.add_row(*row)
    print_tables(rows)


@app.command(
    epilog="Examples:\n\ngossipfl topology draw geant2012 -o geant.png\n\n"
    "gossipfl topology draw random-regular --nodes 20 --byzantine 4 -o attacked.svg"
)
def draw(
    name: Name,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Picture to write: .png, .svg or .pdf.")],
    byzantine: Annotated[
        int, typer.Option("--byzantine", metavar="F", help="Mark F Byzantine nodes where they outvote most.")
    ] = 0,
    nodes: Nodes = None,
    sets: Sets = None,
    seed: Seed = 0,
) -> None:
    """Draw a topology: degrees, bridges, articulation points, and where Byzantine nodes would outvote most others."""
    from gossipfl.topology.analysis.graphs import worst_case
    from gossipfl.topology.analysis.placement import check_count

    topology = resolve(name, nodes, sets, seed)
    _check_picture(out)
    check_count(topology, byzantine)
    _draw(topology, worst_case(topology, byzantine) if byzantine else None, out)
    typer.echo(f"{out}: {topology.nodes} nodes, {len(topology.edges)} edges")


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
    force: Force = False,
) -> None:
    """Make a topology and write it to a file (or convert a graph file)."""
    from gossipfl.topology.files.library import write_topology

    topology = resolve(name, nodes, sets, seed)
    refuse_to_replace(out, force)
    write_topology(topology, out)
    typer.echo(f"{out}: {topology.nodes} nodes, {len(topology.edges)} edges")


def _analyse_sequence(sequence: MixingSequence, byzantine: int, picture: Path | None, as_json: bool) -> None:
    from gossipfl.topology.analysis.sequences import analyse_sequence

    if byzantine or picture is not None:
        option = "--byzantine" if byzantine else "--picture"
        raise TopologyError(f'topology "{sequence.name}" is another graph each round; leave {option} out')
    report = analyse_sequence(sequence)
    if as_json:
        typer.echo(json.dumps(report))
        return
    rows = table("measure", "value", "what it means")
    for row in sequence_measures(report):
        rows.add_row(*row)
    print_tables(rows)


def _tolerances() -> Mapping[str, Callable[[int], int | None]]:
    """Return what each rule, with its options as they are by default, allows."""
    from gossipfl.robust.base import KNOWN
    from gossipfl.robust.registry import RULES, make_rule

    made = {}
    for name, rule in RULES.items():
        # How many are allowed does not depend on how many a rule is told to expect, but some want to be told.
        wanted = [field.name for field in fields(cast(Any, rule)) if field.default is MISSING]
        made[name] = make_rule(name, {"f": KNOWN} if "f" in wanted else None).most
    return made


def _check_picture(picture: Path | None) -> None:
    if picture is not None:
        from gossipfl.report.graph import check_picture

        check_picture(picture)


def _draw(topology: Topology, worst: Mapping[str, Any] | None, path: Path) -> None:
    from gossipfl.report.graph import Marks, graph_figure, save_picture

    title = f"{topology.name}: {topology.nodes} nodes, {len(topology.edges)} links"
    marks = Marks()
    if worst is not None:
        marks = Marks(byzantine=worst["majority"]["nodes"], outvoted=worst["majority"]["outvoted"])
        title += f"; {worst['count']} Byzantine outvote {len(marks.outvoted)}"
    save_picture(graph_figure(topology, marks, title), path)


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
