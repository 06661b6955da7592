"""One page of HTML about a run, complete in one file: it opens offline, prints, and can be sent by mail."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossipfl.records import load_run
from gossipfl.report.figures import filter_figure, learning_figure
from gossipfl.report.headline import byzantine_nodes, headline, title
from gossipfl.report.network import Network, network_figure
from gossipfl.report.nodes import node_columns, node_rows
from gossipfl.report.series import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gossipfl.records import RunData

REPORT_FILE = "report.html"
FIGURES_FOLDER = "figures"
DRAWN_NODES = 400
"""The graph of a larger network is not drawn: it would be one grey disc."""

LISTED_NODES = 500
"""Of larger networks, only so many nodes are listed."""

CAPTIONS = {
    "learning": "How the models did on held-out data, and their training loss. A line is the mean over nodes, the band "
    "reaches from the least to the greatest. Byzantine nodes are measured on the private model that they keep, not on "
    "the lies that they publish.",
    "filter": "How many neighbours honest nodes accepted and rejected in each round, split by what the neighbour truly "
    "is. The nodes themselves do not know it.",
    "network": "The graph. The half of an edge next to a node shows how often that node rejected the neighbour at the "
    "other end.",
}


def write_report(directory: Path) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into the folder of a run's records and return the page's path.

    Raises DataError where the folder holds no readable records.
    """
    run = load_run(directory)
    pictures = {name: _png(figure) for name, figure in _figures(run)}
    folder = directory / FIGURES_FOLDER
    if pictures:
        folder.mkdir(exist_ok=True)
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    page = directory / REPORT_FILE
    page.write_text(render_page(run, pictures), encoding="utf-8")
    return page


def render_page(run: RunData, pictures: Mapping[str, bytes]) -> str:
    """Return the page's HTML; every text that came from outside is escaped."""
    name = escape(title(run))
    css = files("gossipfl.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(
        part
        for part in (
            f"<h1>{name}</h1>",
            f"<p class=path>{escape(str(run.path))}</p>",
            _cards(headline(run)),
            *(_picture(kind, png) for kind, png in pictures.items()),
            _faults(run),
            _nodes(run),
            _settings(run.spec),
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _figures(run: RunData) -> Iterator[tuple[str, Figure]]:
    rows = Rows(run.rounds)
    if run.rounds.num_rows:
        virtual = run.summary.get("transport") == "memory"
        yield "learning", learning_figure(rows, "virtual time (s)" if virtual else "time (s)")
        yield "filter", filter_figure(rows)
    if 0 < run.topology.get("nodes", 0) <= DRAWN_NODES:
        yield "network", network_figure(Network.from_records(run.topology, byzantine_nodes(run)))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # A fixed Software entry keeps the bytes the same for the same records.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": "gossipfl"})
    return buffer.getvalue()


def _picture(kind: str, png: bytes) -> str:
    data = base64.b64encode(png).decode("ascii")
    caption = escape(CAPTIONS[kind])
    return (
        f'<figure class="{kind}"><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _cards(cards: Sequence[tuple[str, str, str]]) -> str:
    shown = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for label, value, note in cards
    )
    return f"<dl class=cards>{shown}</dl>"


def _faults(run: RunData) -> str:
    faults = run.summary.get("faults") or []
    if not faults:
        return "<h2>Faults</h2><p>None.</p>"
    rows = [
        (
            f"{fault.get('t', 0):.1f} s",
            str(fault.get("node") or "run"),
            str(fault.get("event")),
            ", ".join(f"{key} {value}" for key, value in fault.items() if key not in {"t", "node", "event"}),
        )
        for fault in faults
    ]
    counts = run.summary.get("fault_counts") or {}
    total = sum(counts.values())
    more = f"<p>The first {len(faults)} of {total} are listed.</p>" if total > len(faults) else ""
    return f"<h2>Faults</h2>{_table(('time', 'node', 'event', 'details'), rows, text=4)}{more}"


def _nodes(run: RunData) -> str:
    rows = node_rows(run)
    if not rows:
        return ""
    columns = node_columns(rows)
    shown = [[column.cell(row) for column in columns] for row in rows[:LISTED_NODES]]
    note = "" if len(rows) <= LISTED_NODES else f"<p>The first {LISTED_NODES} of {len(rows)} nodes.</p>"
    marks = ["byzantine" if row["byzantine"] else "" for row in rows[:LISTED_NODES]]
    return f"<h2>Nodes</h2>{_table([column.title for column in columns], shown, text=2, marks=marks)}{note}"


def _settings(spec: Mapping[str, Any]) -> str:
    if not spec:
        return ""
    rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in _flat(spec)]
    return f"<h2>Settings</h2><div class=settings>{_table(('key', 'value'), rows, text=2)}</div>"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, value


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, text: int, marks: Sequence[str] = ()) -> str:
    """Return a table whose first ``text`` columns hold words, and the others numbers."""
    kinds = ["" if place < text else " class=number" for place in range(len(titles))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, titles, strict=True))
    lines = []
    for place, row in enumerate(rows):
        mark = f' class="{marks[place]}"' if marks and marks[place] else ""
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{mark}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
