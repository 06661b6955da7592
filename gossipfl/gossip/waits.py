"""How long to wait for a neighbour: a smoothed mean and deviation of its lateness, as TCP does for round trips."""

from __future__ import annotations

from dataclasses import dataclass

MEAN_GAIN = 1 / 8
DEVIATION_GAIN = 1 / 4
DEVIATIONS = 6


@dataclass(slots=True)
class Lateness:
    """Smoothed lateness of one neighbour's updates after this node's own publication, in seconds.

    mean += (x - mean) / 8, deviation += (|x - mean| - deviation) / 4 (RFC 6298); the wait is mean + 6 deviations,
    wider than TCP's four because leaving a neighbour out of a round costs more than waiting a little.
    """

    mean: float | None = None
    deviation: float = 0.0

    def add(self, late_s: float) -> None:
        """Take one measurement; early arrivals count as 0."""
        sample = max(0.0, late_s)
        if self.mean is None:
            self.mean, self.deviation = sample, sample / 2
            return
        self.deviation += DEVIATION_GAIN * (abs(sample - self.mean) - self.deviation)
        self.mean += MEAN_GAIN * (sample - self.mean)

    def wait_s(self, at_least: float, at_most: float) -> float:
        """Return how long to wait: the estimate within the given limits, ``at_most`` while nothing is known."""
        if self.mean is None:
            return at_most
        return min(max(self.mean + DEVIATIONS * self.deviation, at_least), at_most)
