"""The links of a simulated network, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gossipfl.robust.network import Links
from gossipfl.topology.graph import Topology
from gossipfl.topology.weights import metropolis

if TYPE_CHECKING:
    from gossipfl.topology import MixingSequence


def links_of(topology: Topology) -> Links:
    """Return the links of a graph with Metropolis weights."""
    weights = metropolis(topology)
    return Links(
        starts=np.concatenate(([0], np.cumsum(topology.degrees, dtype=np.int64))),
        senders=np.fromiter((j for i in range(topology.nodes) for j in topology.neighbours(i)), dtype=np.int64),
        weights=np.fromiter((weight for row in weights for weight in row), dtype=np.float64),
    )


class Graphs:
    """The links of every round, made once where they repeat."""

    def __init__(self, graph: Topology | MixingSequence) -> None:
        self.name, self.nodes = graph.name, graph.nodes
        self._changing = None if isinstance(graph, Topology) else graph
        self._made = {0: links_of(graph)} if isinstance(graph, Topology) else {}

    @property
    def static(self) -> bool:
        """Whether all rounds have the same links."""
        return self._changing is None

    def links(self, round_: int) -> Links:
        """Return the links of one round; the same object where they are the same."""
        if self._changing is None:
            return self._made[0]
        period = self._changing.period
        place = round_ if period is None else round_ % period
        if place not in self._made:
            drawn = self._changing.links(round_)
            if period is None:
                self._made.clear()
            self._made[place] = Links(drawn.starts, drawn.senders, drawn.weights)
        return self._made[place]
