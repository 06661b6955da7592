"""Figures whose panels are placed in inches.

A layout engine would measure every text of every panel, which takes longer than to draw them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 10.0
"""Width of a figure on the page."""

CHARACTER = 0.078
"""About the width of a character of a label."""


def sheet(width: float, height: float) -> Figure:
    """Return an empty figure."""
    return Figure(figsize=(width, height))


def panel(figure: Figure, left: float, top: float, width: float, height: float, **shared: Any) -> Axes:
    """Add axes whose upper left corner is ``left`` and ``top`` from that of the figure."""
    whole, tall = figure.get_size_inches()
    axes: Axes = figure.add_axes((left / whole, 1 - (top + height) / tall, width / whole, height / tall), **shared)
    return axes


def text_width(labels: Any) -> float:
    """Return about the width of the longest label."""
    return CHARACTER * max(map(len, labels), default=0)
