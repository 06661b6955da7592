"""A run's title and its most telling numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gossipfl.report.series import Rows
from gossipfl.summary import quantity

if TYPE_CHECKING:
    from gossipfl.records import RunData

Card = tuple[str, str, str]
"""Label, value, and a note beneath."""


def byzantine_nodes(run: RunData) -> frozenset[int]:
    """Return the Byzantine nodes, from the rows where an unfinished run has no summary."""
    if "byzantine" in run.summary:
        return frozenset(run.summary["byzantine"])
    return frozenset(int(node) for node in Rows(run.rounds).group(byzantine=True).nodes())


def title(run: RunData) -> str:
    """Return one line that says what the run was."""
    spec = run.spec
    if not spec:
        return f"Run {run.path.name}"
    attack = (spec.get("attack") or {}).get("name")
    parts = [f"{spec['task']['name']} with {spec['rule']['name']}"]
    if attack:
        parts.append(f"{spec['byzantine']} of {spec['nodes']} nodes Byzantine ({attack})")
    else:
        parts.append(f"{spec['nodes']} nodes, none Byzantine")
    return ", ".join([*parts, spec["topology"]["name"], spec["mode"]])


def headline(run: RunData) -> list[Card]:
    """Return the cards at the top of the page; what the run does not know has no card."""
    summary = run.summary
    if not summary:
        return [("status", "unfinished", "the run left no summary")]
    cards = [*_results(summary), *_rounds(summary), *_filter(summary)]
    topology = summary.get("topology") or {}
    if topology.get("spectral_gap") is not None:
        note = f"{topology.get('name')}, {topology.get('edges')} edges"
        cards.append(("spectral gap", f"{topology['spectral_gap']:.3f}", note))
    if summary.get("consensus_distance") is not None:
        cards.append(
            ("consensus distance", f"{summary['consensus_distance']:.3g}", "between honest models, at the end")
        )
    sent = summary.get("bytes_sent_per_node_per_round")
    if sent is not None:
        cards.append(("sent", quantity(sent, "B"), f"per node and round, {summary['codec']}"))
    if summary.get("pss_bytes_nodes") is not None:
        private = quantity(summary["private_bytes_per_node_median"], "B")
        cards.append(("memory", quantity(summary["pss_bytes_nodes"], "B"), f"in all nodes; {private} a node's own"))
    elif summary.get("peak_rss_bytes") is not None:
        cards.append(("memory", quantity(summary["peak_rss_bytes"], "B"), "at the peak, shared pages once a process"))
    if summary.get("model_parameters") is not None:
        cards.append(("model", f"{summary['model_parameters']:,}", "parameters"))
    return cards


def _results(summary: Mapping[str, Any]) -> list[Card]:
    named = {"test accuracy": summary.get("accuracy"), "test loss": summary.get("loss")}
    named.update(summary.get("metrics") or {})
    return [
        (name, f"{spread['mean']:.3f}", f"{spread['min']:.3f} to {spread['max']:.3f} over honest nodes")
        for name, spread in named.items()
        if spread
    ]


def _rounds(summary: Mapping[str, Any]) -> list[Card]:
    note = f"{summary['mode']}, over {summary['transport']}" if summary.get("transport") else summary["mode"]
    if summary.get("interrupted"):
        note = f"interrupted; {note}"
    cards = [("rounds", f"{summary['rounds_done']} of {summary['rounds']}", note)]
    if summary.get("wall_s") is not None:
        startup = summary.get("startup_s")
        begun = f"{startup:.1f} s to the first round" if startup is not None else ""
        cards.append(("wall time", f"{summary['wall_s']:.1f} s", begun))
    if summary.get("round_s_median") is not None:
        train = summary.get("train_s_median")
        note = f"median; training alone {train:.3g} s" if train is not None else "median"
        cards.append(("round", f"{summary['round_s_median']:.3g} s", note))
    return cards


def _filter(summary: Mapping[str, Any]) -> list[Card]:
    cards: list[Card] = []
    verdicts = summary.get("filter") or {}
    for kind, name in (("byzantine", "Byzantine models rejected"), ("honest", "honest models rejected")):
        rejected = verdicts.get(f"{kind}_rejected", 0)
        total = rejected + verdicts.get(f"{kind}_accepted", 0)
        if total:
            cards.append((name, f"{rejected / total:.1%}", f"{rejected} of {total} that honest nodes received"))
    return cards
