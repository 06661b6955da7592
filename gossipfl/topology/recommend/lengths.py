"""How long the links of a graph with positions are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.families.spatial import EARTH_KM, METRICS
from gossipfl.topology.graph import Topology

CHOICES = ("auto", *METRICS)


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures links: on the ``plane`` in the positions' own unit, on the ``earth`` in km along a great circle."""

    metric: str
    positions: Any

    @property
    def unit(self) -> str:
        """What lengths are told in."""
        return "km" if self.metric == "earth" else "units of the file"

    def lengths(self, first: Any, second: Any) -> Any:
        """Return the distance from each node of ``first`` to that of ``second``, float64; the arrays broadcast."""
        import numpy as np

        start, end = self.positions[first], self.positions[second]
        if self.metric == "plane":
            return np.hypot(*np.moveaxis(end - start, -1, 0))
        # The haversine formula, which is accurate for near sites too.
        (east, north), (to_east, to_north) = np.moveaxis(np.radians(start), -1, 0), np.moveaxis(np.radians(end), -1, 0)
        half = np.sin((to_north - north) / 2) ** 2
        half = half + np.cos(north) * np.cos(to_north) * np.sin((to_east - east) / 2) ** 2
        return 2 * EARTH_KM * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0)))


def ruler(topology: Topology, metric: str = "auto") -> Ruler:
    """Return what measures the links of ``topology``; raises ``TopologyError`` where it has no positions.

    ``auto`` takes positions for longitude and latitude in degrees if all are within -180 to 180 and -90 to 90 and some
    are outside the unit square, in which drawn sites lie.
    """
    import numpy as np

    if metric not in CHOICES:
        raise TopologyError(f'metric "{metric}" is unknown; choose one of: {", ".join(CHOICES)}')
    if topology.positions is None:
        raise TopologyError(f'topology "{topology.name}" has no positions to measure links by; give a file that has')
    positions = np.asarray(topology.positions, dtype=np.float64)
    degrees = bool((np.abs(positions) <= (180.0, 90.0)).all())
    if metric == "earth" and not degrees:
        raise TopologyError(
            f'topology "{topology.name}": a position is no longitude and latitude (-180 to 180, -90 to 90 degrees); '
            "choose the metric plane"
        )
    if metric == "auto":
        metric = "earth" if degrees and bool((np.abs(positions) > 1.0).any()) else "plane"
    return Ruler(metric, positions)
