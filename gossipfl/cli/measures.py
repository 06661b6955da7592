"""The tables that ``gossipfl topology`` prints: measures of a graph, of a sequence, and of a proposal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from gossipfl.topology.graph import Topology

SHOWN_ENTRIES = 12

Rows = list[tuple[str, str, str]]
"""Measure, value, and what it means."""


def graph_measures(topology: Topology, report: Mapping[str, Any]) -> Rows:
    """Return the rows that tell what ``analysis.analyse`` found."""
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
        *_mixing(report["mixing"]),
        ("algebraic connectivity", f"{report['algebraic_connectivity']:.4g}", "larger is harder to split"),
        ("effective resistance", _number(report["effective_resistance"]), "less is more ways round a lost link"),
        ("articulation points", counted(map(topology.label, report["articulation_points"])), "each one's loss splits"),
        ("bridges", counted(links), "each one's loss splits"),
        *_robustness(report["robustness"]),
        *_tolerance(topology, report["tolerance"]),
    ]
    if report["traffic"] is not None:
        rows += _traffic(report["traffic"])
    return rows if report["byzantine"] is None else rows + _worst_case(topology, report["byzantine"])


def sequence_measures(report: Mapping[str, Any]) -> Rows:
    """Return the rows that tell what ``sequence_analysis.analyse_sequence`` found."""
    exact, period = report["exact_after"], report["period"]
    shown = ", ".join(f"{left:.3g}" for left in report["residual"][:SHOWN_ENTRIES])
    return [
        ("name", report["name"], ""),
        ("nodes", str(report["nodes"]), ""),
        ("period", "endless" if period is None else str(period), "rounds until the graphs repeat"),
        ("messages", f"{report['messages']:.3g}", "models that a node sends in a round"),
        ("pairs", str(report["pairs"]), "that ever talk"),
        ("mean kept", "yes" if report["doubly_stochastic"] else "no", "whether no model weighs more in the end"),
        ("left", shown + (", ..." if len(report["residual"]) > SHOWN_ENTRIES else ""), "of differences, by round"),
        *(
            (f"rounds to {_share(entry['share'])}", _known(entry["rounds"]), "of the differences, from the worst start")
            for entry in report["mixing"]
        ),
        ("exact after", "never" if exact is None else f"{exact} rounds", "all nodes hold the mean"),
    ]


def proposal_measures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return rows of measure, value before and value after of what ``comparison.comparison`` found."""
    sides = report["before"], report["after"]

    def row(measure: str, told: Callable[[Any], str], *path: str) -> tuple[str, str, str]:
        first, second = (told(reduce(getitem, path, side)) for side in sides)
        return measure, first, second

    ways = [(name, name.replace("-", " ")) for name in report["weights"]]
    return [
        row("links", str, "edges"),
        row("least degree", str, "degree", "min"),
        row("most degree", str, "degree", "max"),
        *(row(f"spectral gap, {told}", _number, "spectral_gap", name) for name, told in ways),
        *(row(f"rounds to 1 %, {told}", _known, "rounds", name) for name, told in ways),
        row("algebraic connectivity", _number, "algebraic_connectivity"),
        row("bridges", str, "bridges"),
        row("articulation points", str, "articulation_points"),
        row("r-robust, r", _between, "robustness"),
    ]


def counted(entries: Iterable[str]) -> str:
    """Return how many ``entries`` there are, and the first of them."""
    listed = list(entries)
    return f"{len(listed)}: {some(listed)}" if listed else "0"


def some(entries: Iterable[str]) -> str:
    """Return the first of ``entries``, and how many more there are."""
    listed = list(entries)
    more = f", and {len(listed) - SHOWN_ENTRIES} more" if len(listed) > SHOWN_ENTRIES else ""
    return ", ".join(listed[:SHOWN_ENTRIES]) + more


def table(*columns: str) -> Table:
    """Return an empty table with these ``columns``."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_tables(*tables: Table) -> None:
    """Print ``tables`` one below the other."""
    from rich.console import Console

    # Labels come from files: what looks like markup in them is text.
    console = Console(markup=False, highlight=False)
    for one in tables:
        console.print(one)


def _mixing(times: Iterable[Mapping[str, Any]]) -> Rows:
    rows = []
    for time in times:
        every = "" if time["every_node"] is None else f"; at every node {time['every_node']}"
        rows.append(
            (f"rounds to {_share(time['share'])}", f"{_known(time['rounds'])}{every}", "of the differences, at worst")
        )
    return rows


def _robustness(report: Mapping[str, Any]) -> Rows:
    r = {"least": report["least"], "most": report["most"]}
    total = {"least": report["total_least"], "most": report["total_most"]}
    exact = "exact" if r["least"] == r["most"] else f"bounds, by {report['method']}"
    return [
        ("r-robust, r", f"{_between(r)} ({exact})", "trimming agrees if at most (r - 1)/2 around each node lie"),
        ("liars in all", _between(total), "most F with (F+1, F+1)-robust: trimming agrees wherever they sit"),
    ]


def _tolerance(topology: Topology, report: Mapping[str, Any]) -> Rows:
    """Return one row for all rules that allow the same numbers at the same nodes."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, tolerance in report.items():
        if tolerance is not None:
            alike.setdefault(tuple(tolerance["per_node"]), []).append(name)
    rows = []
    for per_node, names in sorted(alike.items(), reverse=True):
        without = counted(topology.label(node) for node, number in enumerate(per_node) if number < 1)
        least, most = max(0, min(per_node)), max(0, *per_node)
        rows.append(
            (
                "allowed",
                f"{least} to {most}; none at {without}",
                f"liars next to a node: {', '.join(names)}",
            )
        )
    return rows


def _traffic(report: Mapping[str, Any]) -> Rows:
    told = {key: _bytes(value) for key, value in report.items()}
    return [
        ("node receives", told["node_received"], "most, in a round"),
        ("node sends", f"{told['node_sent']}; to a broker {told['node_sent_to_broker']}", "most, in a round"),
        ("all send", f"{told['all_sent']}; to a broker {told['all_sent_to_broker']}", "in a round"),
        ("broker sends", told["broker_sent"], "in a round, if there is one"),
    ]


def _worst_case(topology: Topology, worst: Mapping[str, Any]) -> Rows:
    connected = {True: "yes", False: "no", None: "unknown"}[worst["honest_part_connected"]]
    majority, cut = worst["majority"], worst["cut"]
    return [
        ("Byzantine", f"{worst['count']} ({worst['share']:.0%})", "in the worst places"),
        ("vertex connectivity", _known(worst["vertex_connectivity"], "unknown"), "nodes to lose to split"),
        ("honest part connected", connected, "wherever they sit"),
        ("outvoted", counted(map(topology.label, worst["outvoted"])), "half or more neighbours may lie"),
        ("surrounded", counted(map(topology.label, worst["surrounded"])), "all neighbours may lie"),
        ("worst for majorities", some(map(topology.label, majority["nodes"])), _proof(majority["exact"])),
        ("there outvoted", counted(map(topology.label, majority["outvoted"])), "all at once"),
        ("worst for reach", some(map(topology.label, cut["nodes"])), _proof(cut["exact"])),
        ("there cut off", str(cut["cut_off"]), "honest nodes outside the largest honest part"),
    ]


def _proof(exact: bool) -> str:
    return "of all placements" if exact else "of those that a search found"


def _between(bounds: Mapping[str, int]) -> str:
    least, most = bounds["least"], bounds["most"]
    return str(least) if least == most else f"{least} to {most}"


def _known(number: int | None, otherwise: str = "never") -> str:
    return otherwise if number is None else str(number)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _share(share: float) -> str:
    return "1/e" if math.isclose(share, 1 / math.e) else f"{share:.0%}".replace("%", " %")


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} B"
