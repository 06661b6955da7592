"""One page of HTML about an experiment, complete in one file, with its tables and figures."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from gossipfl.errors import ConfigError
from gossipfl.experiments.curves import BY_BYTES, BY_ROUND, CONSENSUS, PANELS, Measure, curves_figure, read_curves
from gossipfl.experiments.export import write_tables
from gossipfl.experiments.folder import SPEC_FILE
from gossipfl.experiments.heat import heat_figure
from gossipfl.experiments.ledger import DONE, FAILED
from gossipfl.experiments.pivot import Pivot, Place, View, pivots
from gossipfl.experiments.printed import NOTHING, cost_text, number
from gossipfl.experiments.progress import duration
from gossipfl.experiments.regret import RegretTable, regret
from gossipfl.experiments.results import MISSING, Results, higher_is_better, setting_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_FILE = "report.html"
FIGURES_FOLDER = "figures"
TABLES = 24
"""Settings of which the page has tables; all of them are in results.csv."""

CURVE_SETTINGS, CURVE_PANELS = 2, 24
"""Most settings of which the page has curves, and most panels of them all; series.parquet has everything."""

LISTED_FAILURES = 20
STYLE = """
td.best { font-weight: 700; }
td small { color: var(--faint); display: block; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
pre { background: #f6f6f6; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; }
"""

Picture = tuple[str, str, bytes]
"""Name, caption, PNG."""


def write_report(results: Results, view: View) -> Path:
    """Write ``report.html``, ``figures/*.png`` and the tables of all cells into the experiment's folder."""
    pictures = list(_pictures(results, view))
    folder = results.path / FIGURES_FOLDER
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for name, _, png in pictures:
        (folder / f"{name}.png").write_bytes(png)
    write_tables(results, results.path)
    page = results.path / PAGE_FILE
    page.write_text(render(results, view, pictures), encoding="utf-8")
    return page


def render(results: Results, view: View, pictures: Sequence[Picture]) -> str:
    """Return the page's HTML; every text that came from a file is escaped."""
    name = escape(results.name)
    css = files("gossipfl.report").joinpath("page.css").read_text(encoding="utf-8") + STYLE
    parts = [
        f"<h1>{name}</h1>",
        f"<p class=path>{escape(str(results.path))}</p>",
        _cards(results),
        *(_regret(found) for found in _regrets(results, view)),
        *(_picture(picture) for picture in pictures),
        *_tables(results, view),
        _failures(results),
        _spec(results.path / SPEC_FILE),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _pictures(results: Results, view: View) -> Iterator[Picture]:
    if not results.count(DONE):
        return
    for metric in view.metrics:
        tables = [table for table in pivots(results, view, metric) if table.places]
        caption = f"{metric}, mean over seeds: {view.rows} down, {view.columns or 'nothing'} across, a map a setting."
        yield f"heat-{metric}", caption, _png(heat_figure(tables))
    measured = Measure(view.metrics[0], view.metrics[0])
    axes = [view.rows] if view.columns is None else [view.rows, view.columns]
    panels = 3 * (min(PANELS, len(results.axes[view.columns])) if view.columns else 1)
    drawn = max(1, min(CURVE_SETTINGS, CURVE_PANELS // panels))
    for at, setting in enumerate(results.settings(axes)[:drawn]):
        for x, y in ((BY_ROUND, measured), (BY_BYTES, measured), (BY_ROUND, CONSENSUS)):
            curves = read_curves(results, view, setting, x, y)
            if curves is not None:
                where = f" ({setting_title(setting)})" if setting else ""
                caption = f"{y.text} against {x.text}{where}: lines are means over seeds."
                yield f"{y.column}-{x.column}-{at}", caption, _png(curves_figure(curves, view.columns))


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # A fixed Software entry keeps the bytes the same for the same results.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": "gossipfl"})
    return buffer.getvalue()


def _picture(picture: Picture) -> str:
    _, caption, png = picture
    data, text = base64.b64encode(png).decode("ascii"), escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _cards(results: Results) -> str:
    done, failed, missing = (results.count(status) for status in (DONE, FAILED, MISSING))
    seconds = sum(record["wall_s"] for record in results.records if record is not None and "wall_s" in record)
    total = len(results.hashes)
    cards = [("cells", f"{done} of {total}", "finished" if done == total else f"{missing} missing, {failed} failed")]
    cards.append(("seeds", str(len(set(results.seeds))), "each setting was repeated with them"))
    cards.append(("work", duration(seconds), "of one process, all finished cells together"))
    cards += [
        (name, str(len(labels)), ", ".join(labels[:6]) + (" ..." if len(labels) > 6 else ""))
        for name, labels in results.axes.items()
    ]
    if results.strange:
        cards.append(("other results", str(results.strange), "of cells that the spec no longer has"))
    shown = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
        for label, value, note in cards
    )
    return f"<dl class=cards>{shown}</dl>"


def _regrets(results: Results, view: View) -> Iterator[RegretTable]:
    for metric in view.metrics:
        try:
            found = regret(results, view.rows, metric, across=view.columns)
        except ConfigError:
            continue  # no cell has this metric yet
        if len(found.total) > 1:
            yield found


def _regret(found: RegretTable) -> str:
    titles = [found.axis, "all", "settings", *found.across_labels, "worst where"]
    rows = []
    for choice, cost in found.total.items():
        by = [cost_text(found.by[choice].get(label), found.metric) for label in found.across_labels]
        cells = [choice, cost_text(cost, found.metric), str(cost.settings), *by, cost.where]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    note = (
        f"What each choice loses against the best one of the same setting, worst / mean. {found.complete} of "
        f"{found.settings} settings have all choices; a choice that lacks some stands at the end."
    )
    return f"<h2>Regret in {escape(found.metric)}</h2><p>{escape(note)}</p>{_table(titles, rows)}"


def _tables(results: Results, view: View) -> Iterator[str]:
    for metric in view.metrics:
        tables = pivots(results, view, metric)
        yield f"<h2>{escape(metric)}</h2><p>Mean ± standard deviation over seeds; beneath, the worst honest node.</p>"
        for table in tables[:TABLES]:
            yield _pivot(table)
        if len(tables) > TABLES:
            yield f"<p>The first {TABLES} of {len(tables)} settings; results.csv has them all.</p>"


def _pivot(table: Pivot) -> str:
    titles = [table.rows, *(label or table.metric for label in table.column_labels)]
    best = {column: _best(table, column) for column in table.column_labels}
    rows = []
    for row in table.row_labels:
        cells = [f"<td>{escape(row)}</td>"]
        for column in table.column_labels:
            mark = ' class="best"' if row in best[column] else ""
            cells.append(f"<td{mark}>{_place(table.places.get((row, column)), table.metric)}</td>")
        rows.append("".join(cells))
    title = f"<h3>{escape(setting_title(table.setting))}</h3>" if table.setting else ""
    return title + _table(titles, rows)


def _best(table: Pivot, column: str) -> set[str]:
    means = {row: place.mean for (row, at), place in table.places.items() if at == column and place.seeds}
    if len(means) < 2:
        return set()
    end = (max if higher_is_better(table.metric) else min)(means.values())
    return {row for row, mean in means.items() if mean == end}


def _place(place: Place | None, metric: str) -> str:
    if place is None or not place.seeds:
        return NOTHING
    spread = "" if math.isnan(place.std) else f" ± {number(place.std, metric)}"
    notes = [] if math.isnan(place.worst) else [number(place.worst, metric)]
    notes += [f"{place.missing} missing"] if place.missing else []
    return f"{number(place.mean, metric)}{spread}<small>{', '.join(notes)}</small>"


def _table(titles: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"


def _failures(results: Results) -> str:
    reasons: Counter[str] = Counter()
    examples: dict[str, Mapping[str, object]] = {}
    for record in results.records:
        if record is not None and record.get("status") == FAILED:
            reasons[record["error"]] += 1
            examples.setdefault(record["error"], record["labels"])
    if not reasons:
        return ""
    rows = []
    for reason, count in reasons.most_common(LISTED_FAILURES):
        example = ", ".join(f"{name} {label}" for name, label in examples[reason].items())
        rows.append(f"<td>{count}</td><td>{escape(reason)}</td><td>{escape(example)}</td>")
    return f"<h2>Failures</h2>{_table(('cells', 'reason', 'for example'), rows)}"


def _spec(path: Path) -> str:
    if not path.exists():
        return ""
    return f"<h2>Spec</h2><pre>{escape(path.read_text(encoding='utf-8'))}</pre>"
