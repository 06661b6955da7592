"""The figures of a run: how it learnt, what was filtered, and the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gossipfl.report.series import Band, Rows, by_round, by_time, totals_by_round

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey.
HONEST = "#0072B2"
BYZANTINE = "#D55E00"
ACCEPTED = "#56B4E9"
REJECTED = "#A02C00"
INK = "#222222"
FAINT = "#8a8a8a"

STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the report's own style, whatever a user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast(Any, STYLE))
        yield


def learning_figure(rows: Rows, time_label: str) -> Figure:
    """Draw training loss and test result, over rounds and over time, honest against Byzantine nodes."""
    measures = [("loss", "Training loss", "mean loss")]
    if rows.known("test_accuracy"):
        measures.insert(0, ("test_accuracy", "Test accuracy", "correct"))
    elif rows.known("test_loss"):
        measures.insert(0, ("test_loss", "Test loss", "mean loss"))
    groups = [("honest", HONEST, rows.group(byzantine=False)), ("Byzantine", BYZANTINE, rows.group(byzantine=True))]
    with style():
        figure = Figure(figsize=(10, 3.1 * len(measures)), layout="constrained")
        grid = figure.subplots(len(measures), 2, squeeze=False, sharey="row", sharex="col")
        for (name, title, unit), (left, right) in zip(measures, grid, strict=True):
            for label, colour, group in groups:
                _draw_band(left, by_round(group, name), label, colour)
                _draw_band(right, by_time(group, name), label, colour, steps=True)
            left.set(title=f"{title} by round", ylabel=unit)
            right.set(title=f"{title} over time")
            left.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            left.set_xlim(0.5, rows.column("round").max(initial=0) + 1.5)
            if name == "test_accuracy":
                left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        grid[-1, 0].set_xlabel("round")
        grid[-1, 1].set_xlabel(time_label)
        if grid[0, 0].get_legend_handles_labels()[1]:
            grid[0, 0].legend(loc="best")
    return figure


def filter_figure(rows: Rows) -> Figure:
    """Draw, round by round, how many neighbours honest nodes accepted and rejected, by what these truly are."""
    honest = rows.group(byzantine=False)
    rounds = np.unique(honest.column("round"))
    with style():
        figure = Figure(figsize=(10, 2.9), layout="constrained")
        for axes, kind in zip(figure.subplots(1, 2), ("honest", "byzantine"), strict=True):
            accepted = totals_by_round(honest, f"accepted_{kind}", rounds)
            rejected = totals_by_round(honest, f"rejected_{kind}", rounds)
            _draw_verdicts(axes, rounds + 1, accepted, rejected)
            name = kind if kind == "honest" else "Byzantine"
            axes.set(title=f"What honest nodes made of {name} neighbours", xlabel="round")
        figure.axes[0].set_ylabel("verdicts in the round")
    return figure


def _draw_band(axes: Axes, band: Band, label: str, colour: str, *, steps: bool = False) -> None:
    if not band:
        return
    dashes = "-" if colour == HONEST else (0, (5, 1.5))
    marker = "o" if band.x.size == 1 else None
    draw_style = "steps-post" if steps else "default"
    axes.fill_between(
        band.x, band.low, band.high, step="post" if steps else None, color=colour, alpha=0.18, linewidth=0
    )
    text = f"{label} nodes: mean, least to greatest"
    axes.plot(band.x, band.mean, color=colour, ls=dashes, marker=marker, drawstyle=draw_style, label=text)


def _draw_verdicts(axes: Axes, rounds: Any, accepted: Any, rejected: Any) -> None:
    if not (accepted + rejected).any():
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=FAINT)
        axes.set(xticks=[], yticks=[])
        return
    edges = np.append(rounds - 0.5, rounds[-1] + 0.5)
    total = accepted + rejected
    axes.stairs(accepted, edges, fill=True, color=ACCEPTED, label=f"accepted ({int(accepted.sum())})")
    axes.stairs(total, edges, baseline=accepted, fill=True, color=REJECTED, label=f"rejected ({int(rejected.sum())})")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, total.max() * 1.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="upper right", ncols=2)
