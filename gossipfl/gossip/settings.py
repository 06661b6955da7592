"""What a core is told once: who it is, whom it follows, and its time limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gossipfl.errors import ConfigError
from gossipfl.identity import Identity, PeerId
from gossipfl.membership import Membership

MAX_NEIGHBOURS = 1000
"""A status acknowledges all of them in one small message."""


@dataclass(frozen=True, slots=True)
class Party:
    """This node in its federation.

    ``incarnation`` grows at each start of the node. ``weights`` maps each neighbour to the mixing weight W_ij, in the
    order in which rules see the neighbours (ascending node number, the same everywhere).
    """

    identity: Identity
    membership: Membership
    incarnation: int
    weights: Mapping[PeerId, float]

    def __post_init__(self) -> None:
        strangers = [peer for peer in self.weights if peer not in self.membership.members]
        if strangers:
            raise ConfigError(f"neighbour {strangers[0]} is not a member of the federation; add it to the members")
        if len(self.weights) > MAX_NEIGHBOURS:
            raise ConfigError(
                f"a node has at most {MAX_NEIGHBOURS} neighbours, not {len(self.weights)}; thin the graph"
            )
        if self.identity.peer_id in self.weights:
            raise ConfigError("a node cannot be its own neighbour; remove it from its neighbours")


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Limits of the protocol; times in seconds.

    A synchronous round waits for a live neighbour until ``deadline_s`` at first, later until the mean lateness plus
    six deviations, never less than ``deadline_min_s``; whoever misses one round after another is waited for half as
    long each time. A neighbour unheard for ``liveness_s`` is not waited for, nor one that has said ``deadline_min_s``
    ago that it has published what it still does not send, nor one that is muted. While this node's own link is down, a
    synchronous node holds its round for at most ``outage_s``.
    ``window_bytes`` is the credit: how much a neighbour may leave unacknowledged before no more is sent to it, and
    ``patience_s`` how long an asynchronous node defers its publication for such a neighbour. A neighbour whose update
    is later than usual is asked for it, at first after ``nudge_s``.
    """

    mode: Literal["sync", "async"] = "sync"
    deadline_s: float = 60.0
    deadline_min_s: float = 5.0
    heartbeat_s: float = 1.0
    liveness_s: float = 10.0
    outage_s: float = 60.0
    ack_delay_s: float = 0.5
    nudge_s: float = 2.0
    nudge_min_s: float = 0.2
    resync_s: float = 0.25
    resync_max_s: float = 5.0
    window_bytes: int = 4 << 20
    patience_s: float = 5.0
    staleness_exponent: float = 0.5
    max_staleness: int = 50
    max_norm: float = 1e9
