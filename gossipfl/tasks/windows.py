"""Windows of a trace: ten samples in, the next one out, scaled by what a node's own training part shows.

Real traces have blanks. Three rules deal with them, none of which looks ahead in time:

1. A row that counts no user and has no mean coding scheme says that nothing was measured: its zeros are no
   values.
2. A blank among the inputs is filled with the last value before it, for at most LONGEST_FILL rows. (A coding
   scheme is blank where nobody sent in those two minutes; the last one known is the natural guess.)
3. A window is left out where a value to be forecast is blank, an input still is, or a step in time is longer
   than PERIOD_S. What is learnt and measured is therefore always something that was observed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipfl.tasks.traces import CHANNELS, Trace

Floats = NDArray[np.float64]

LENGTH = 10
"""Samples that a forecast sees."""

PERIOD_S = 120.0
"""Time from one sample to the next; a longer step is a gap."""

LONGEST_FILL = 5
"""Blank rows in a row that are filled: half a window."""

VOLUMES = frozenset(("down", "up", "rb_down", "rb_up"))
"""Columns with heavy tails, where busy minutes carry ten times the median.

They are scaled after a cube root, which brings sums of bursts close to normal (Wilson and Hilferty, 1931) and, other
than a logarithm, does not blow up the difference between nothing and little.
"""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Per column z = (f(x) - offset) / deviation, with f the cube root where ``volume``, else the identity.

    ``volume`` has shape (c,), ``offset`` and ``deviation`` too, or (n, c) with a row per example.
    """

    volume: NDArray[np.bool_]
    offset: Floats
    deviation: Floats

    @classmethod
    def fit(cls, values: Floats, columns: tuple[str, ...]) -> Scaling:
        """Fit to the cells of ``values`` (n, c) that are not NaN; a constant column has deviation 1."""
        volume = np.array([column in VOLUMES for column in columns])
        shaped = np.where(volume, np.cbrt(values), values)
        known = ~np.isnan(shaped)
        count = np.maximum(known.sum(axis=0), 1)
        offset = np.where(known, shaped, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(known, shaped - offset, 0) ** 2).sum(axis=0) / count)
        return cls(volume, offset, np.where(deviation > 1e-9 * np.abs(offset), deviation, 1.0))

    def forward(self, values: Floats) -> Floats:
        """Return ``values`` (n, c) scaled; NaN stays NaN."""
        scaled: Floats = (np.where(self.volume, np.cbrt(values), values) - self.offset) / self.deviation
        return scaled

    def backward(self, scaled: Floats) -> Floats:
        """Return scaled values in original units; none is below zero, since no channel can be."""
        shaped = np.maximum(scaled * self.deviation + self.offset, 0)
        units: Floats = np.where(self.volume, shaped**3, shaped)
        return units

    def channels(self, rows: int) -> Scaling:
        """Return the scaling of the forecast channels alone, repeated for ``rows`` examples."""
        width = len(CHANNELS)
        offset, deviation = (np.tile(part[:width], (rows, 1)) for part in (self.offset, self.deviation))
        return Scaling(self.volume[:width], offset, deviation)


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of a trace with what was not measured as NaN: ``seconds`` (n,), ``values`` (n, c)."""

    columns: tuple[str, ...]
    seconds: Floats
    values: Floats

    @classmethod
    def of(cls, trace: Trace) -> Measured:
        """Apply the first rule of this module to a whole trace."""
        users, schemes = (trace.columns.index(name) for name in ("rnti_count", "mcs_down"))
        idle = (trace.values[:, users] == 0) & np.isnan(trace.values[:, schemes])
        return cls(trace.columns, trace.seconds, np.where(idle[:, None], np.nan, trace.values))

    def __len__(self) -> int:
        return len(self.seconds)

    def rows(self, start: int, stop: int) -> Measured:
        """Return rows [start, stop) alone; what lies before is then unknown to fills and windows."""
        return Measured(self.columns, self.seconds[start:stop], self.values[start:stop])

    def windows(self, scaling: Scaling) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return all complete windows, scaled: inputs (n, LENGTH, c) and targets (n, 5)."""
        if len(self) <= LENGTH:
            width = len(self.columns)
            return np.empty((0, LENGTH, width), np.float32), np.empty((0, len(CHANNELS)), np.float32)
        inputs = scaling.forward(self._filled())
        targets = scaling.forward(self.values)[LENGTH:, : len(CHANNELS)]
        windows = np.lib.stride_tricks.sliding_window_view(inputs[:-1], LENGTH, axis=0).swapaxes(1, 2)
        steady = np.lib.stride_tricks.sliding_window_view(np.diff(self.seconds) <= PERIOD_S, LENGTH)
        whole = steady.all(axis=1) & np.isfinite(windows).all(axis=(1, 2)) & np.isfinite(targets).all(axis=1)
        return windows[whole].astype(np.float32), targets[whole].astype(np.float32)

    def _filled(self) -> Floats:
        """Fill short runs of blanks with the last value before them, never across a gap in time."""
        index = np.arange(len(self))[:, None]
        segment_start = np.where(np.diff(self.seconds, prepend=self.seconds[:1]) > PERIOD_S, index[:, 0], 0)
        floor = np.maximum.accumulate(segment_start)[:, None]
        last = np.maximum.accumulate(np.where(np.isnan(self.values), -1, index), axis=0)
        known = (last >= floor) & (index - last <= LONGEST_FILL)
        return np.where(known, np.take_along_axis(self.values, np.maximum(last, 0), axis=0), np.nan)
