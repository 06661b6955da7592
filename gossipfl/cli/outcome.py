"""A finished run's summary, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from gossipfl.summary import quantity

TITLE_WIDTH = 13
"""Least width of the titles."""


def print_outcome(summary: Mapping[str, Any], out: Path, page: Path | None, file: TextIO) -> None:
    """Print the summary to ``file``, with the places of the records and the report page."""
    console = Console(file=file, highlight=False)
    places = [("records", str(out))] + ([("report", str(page))] if page is not None else [])
    lines = [*outcome_lines(summary), *places]
    width = max(TITLE_WIDTH, *(len(title) for title, _ in lines)) + 2
    for title, text in lines:
        # Lines are never folded here, so that a path can be copied in one piece.
        console.print(Text.assemble((f"{title:<{width}}", "dim"), text), soft_wrap=True)


def outcome_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a summary as pairs of title and text; what the run cannot know is left out."""
    lines = [("run", _title(summary))]
    for key, digits in (("accuracy", 3), ("loss", 4)):
        spread = summary.get(key)
        if spread:
            span = f"{spread['min']:.{digits}f} to {spread['max']:.{digits}f}"
            lines.append((f"test {key}", f"{spread['mean']:.{digits}f}  ({span} over honest nodes)"))
    for name, spread in (summary.get("metrics") or {}).items():
        if spread:
            lines.append((name, f"{_number(spread['mean'])}  ({_number(spread['min'])} to {_number(spread['max'])})"))
    personalised = _personalised(summary)
    if personalised:
        lines.append(("personalised", personalised))
    lines.append(("rounds", _rounds(summary)))
    verdicts = summary.get("filter")
    if verdicts:
        lines.append(("filter", _filter(verdicts)))
    sent = summary.get("bytes_sent_per_node_per_round")
    if sent is not None:
        lines.append(("traffic", f"{quantity(sent, 'B')} sent per node and round"))
    if summary.get("pss_bytes_nodes") is not None:
        private = quantity(summary["private_bytes_per_node_median"], "B")
        lines.append(
            ("memory", f"{quantity(summary['pss_bytes_nodes'], 'B')} in all node processes, {private} of a node's own")
        )
    elif summary.get("peak_rss_bytes") is not None:
        lines.append(("memory", f"{quantity(summary['peak_rss_bytes'], 'B')} at the peak, shared pages once a process"))
    if summary.get("interrupted"):
        lines.append(("status", "interrupted"))
    counts = summary.get("fault_counts") or {}
    if counts:
        lines.append(("faults", ", ".join(f"{count} {name}" for name, count in counts.items())))
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _personalised(summary: Mapping[str, Any]) -> str:
    """Return the honest nodes' means after their last local steps; per-channel metrics (``nrmse_up``) are left out."""
    attackers = {str(node) for node in summary["byzantine"]}
    ends = [end for node, end in (summary.get("personalised") or {}).items() if end and node not in attackers]
    names = [
        name for name in (ends[0] if ends else {}) if "_" not in name and all(end.get(name) is not None for end in ends)
    ]
    return ", ".join(f"{name} {_number(fmean(end[name] for end in ends))}" for name in names)


def _title(summary: Mapping[str, Any]) -> str:
    topology = summary["topology"]
    attackers = len(summary["byzantine"])
    against = f" against {summary['attack']}" if summary["attack"] else ""
    nodes = f"{summary['nodes']} nodes" + (f" ({attackers} Byzantine)" if attackers else "")
    return f"{summary['task']}, {summary['rule']}{against}, {nodes} on {topology['name']}, {summary['mode']}"


def _rounds(summary: Mapping[str, Any]) -> str:
    done = f"{summary['rounds_done']} of {summary['rounds']}"
    if summary["wall_s"] is None:
        return done
    times = [f"{summary[key]:.3g} s {words}" for key, words in _TIMES if summary.get(key) is not None]
    return f"{done} in {summary['wall_s']:.1f} s" + (f"  ({', '.join(times)})" if times else "")


_TIMES = (("startup_s", "to the first"), ("round_s_median", "a round"), ("train_s_median", "of it training"))


def _filter(verdicts: Mapping[str, int]) -> str:
    honest = f"honest: {verdicts['honest_accepted']} accepted, {verdicts['honest_rejected']} rejected"
    if not verdicts["byzantine_accepted"] + verdicts["byzantine_rejected"]:
        return honest
    return f"{honest};  Byzantine: {verdicts['byzantine_accepted']} accepted, {verdicts['byzantine_rejected']} rejected"
