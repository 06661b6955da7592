"""How many bytes a round of gossip moves."""

from __future__ import annotations

from dataclasses import dataclass

from gossipfl.errors import TopologyError
from gossipfl.topology.graph import Topology


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one round in which each node publishes once: the most that one node moves, and all nodes together.

    Directly a node sends its model to each neighbour; through a broker it sends it once, and the broker hands it on.
    Either way it receives one model from each neighbour. Nothing is counted for framing, resends or keep-alives.
    """

    model_bytes: int
    node_received: int
    node_sent: int
    node_sent_to_broker: int
    all_sent: int
    all_sent_to_broker: int
    broker_sent: int


def traffic(topology: Topology, model_bytes: int) -> Traffic:
    """Return the traffic of a round on ``topology``, for updates of ``model_bytes`` > 0 each."""
    if model_bytes < 1:
        raise TopologyError(f"model bytes is {model_bytes}; give the size of one update, at least 1")
    most, directed = max(topology.degrees), 2 * len(topology.edges)
    return Traffic(
        model_bytes=model_bytes,
        node_received=most * model_bytes,
        node_sent=most * model_bytes,
        node_sent_to_broker=model_bytes,
        all_sent=directed * model_bytes,
        all_sent_to_broker=topology.nodes * model_bytes,
        broker_sent=directed * model_bytes,
    )
