"""``gossipfl topology recommend``: how to mend a graph, within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipfl.cli.graph_options import AsJson, Force, Name, Nodes, Picture, Sets, refuse_to_replace, resolve
from gossipfl.cli.measures import counted, print_tables, proposal_measures, table

if TYPE_CHECKING:
    from gossipfl.topology.graph import Edge, Topology
    from gossipfl.topology.recommend.draft import Limits
    from gossipfl.topology.recommend.rewiring import Proposal

EXAMPLES = (
    "Examples:\n\ngossipfl topology recommend geant2012 --add 3 --picture mended.png\n\n"
    "gossipfl topology recommend geant2012 --byzantine 1 --max-degree 8 -o mended.json\n\n"
    "gossipfl topology recommend torus --nodes 64 --swap 20 --json"
)


def recommend(
    name: Name,
    add: Annotated[
        int | None,
        typer.Option("--add", metavar="K", help="At most K new links (default: as many as --byzantine calls for)."),
    ] = None,
    swap: Annotated[
        int, typer.Option("--swap", metavar="K", help="At most K times exchange two links for two others.")
    ] = 0,
    byzantine: Annotated[
        int, typer.Option("--byzantine", metavar="F", help="Give each node 2F + 1 neighbours, so that F cannot win.")
    ] = 0,
    max_degree: Annotated[
        int | None, typer.Option("--max-degree", metavar="D", help="No new link for nodes with D neighbours.")
    ] = None,
    max_links: Annotated[int | None, typer.Option("--max-links", metavar="L", help="Links in all.")] = None,
    max_length: Annotated[
        float | None, typer.Option("--max-length", metavar="X", help="Length of a new link, by the nodes' positions.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option("--metric", metavar="M", help="plane; earth: degrees and km; auto: earth if they look like it."),
    ] = "auto",
    costs: Annotated[
        Path | None,
        typer.Option("--costs", metavar="FILE", help="Which links can be had, line by line: from, to, cost."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="X", help="Cost of all new links; without --costs, length.")
    ] = None,
    nodes: Nodes = None,
    sets: Sets = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Seed of random families and of the search.")] = 0,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the mended graph to a file.")
    ] = None,
    force: Force = False,
    picture: Picture = None,
) -> None:
    """Propose new links, exchanges of links, and the fastest mixing weights, and tell what they are worth."""
    from gossipfl.topology.files.costs import read_costs
    from gossipfl.topology.recommend.comparison import comparison
    from gossipfl.topology.recommend.draft import Limits
    from gossipfl.topology.recommend.rewiring import Wish
    from gossipfl.topology.recommend.rewiring import recommend as recommended

    topology = resolve(name, nodes, sets, seed)
    if out is not None:
        refuse_to_replace(out, force)
    if picture is not None:
        from gossipfl.report.graph import check_picture

        check_picture(picture)
    limits = Limits(
        max_degree=max_degree,
        max_links=max_links,
        max_length=max_length,
        costs=None if costs is None else read_costs(costs, topology),
        budget=budget,
        metric=metric,
    )
    proposal = recommended(topology, Wish(byzantine=byzantine, add=add, swap=swap), limits, seed)
    report = comparison(proposal)
    _write(proposal, report, out, picture)
    if as_json:
        typer.echo(json.dumps(report))
    else:
        _print(proposal, report, limits, byzantine)


def _write(proposal: Proposal, report: dict[str, Any], out: Path | None, picture: Path | None) -> None:
    if out is not None:
        from gossipfl.topology.files.library import write_topology

        write_topology(proposal.after, out)
    if picture is not None:
        from gossipfl.report.graph import Marks, change_figure, save_picture

        gaps = [report[side]["spectral_gap"]["metropolis"] for side in ("before", "after")]
        titles = (f"{proposal.before.name} now: gap {gaps[0]:.3g}", f"as recommended: gap {gaps[1]:.3g}")
        marks = (Marks(), Marks(new=proposal.added, gone=proposal.removed))
        save_picture(change_figure(proposal.before, proposal.after, marks, titles), picture)


def _print(proposal: Proposal, report: dict[str, Any], limits: Limits, byzantine: int) -> None:
    facts = table("", "")
    facts.show_header = False
    facts.add_row("new links", counted(_told(proposal.after, proposal.added)))
    facts.add_row("links taken out", counted(_told(proposal.before, proposal.removed)))
    if proposal.cost is not None and proposal.added:
        facts.add_row("cost of new links", _cost(proposal, limits))
    if byzantine:
        short = counted(map(proposal.after.label, proposal.short))
        facts.add_row(f"below {2 * byzantine + 1} neighbours", short)
    rows = table("measure", "now", "as recommended")
    for row in proposal_measures(report):
        rows.add_row(*row)
    print_tables(facts, rows)


def _told(topology: Topology, edges: tuple[Edge, ...]) -> list[str]:
    return [f"{topology.label(i)} - {topology.label(j)}" for i, j in edges]


def _cost(proposal: Proposal, limits: Limits) -> str:
    from gossipfl.topology.recommend.lengths import ruler

    if limits.costs is not None:
        return f"{proposal.cost:.4g}"
    measure = ruler(proposal.before, limits.metric)
    how = " along great circles: positions read as degrees" if measure.metric == "earth" else ""
    return f"{proposal.cost:.4g} {measure.unit}{how}"
