"""Public replicas: the one this node publishes, and those of the neighbours that it follows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gossipfl.codec import Codec, make_codec, settle
from gossipfl.digest import vector_digest
from gossipfl.gossip.waits import Lateness
from gossipfl.messages import Update

KEYFRAME_CODEC = make_codec("float32")
"""Keyframes are lossless: a follower must hold the owner's bytes."""


class PublicReplica:
    """What all followers believe this node's model to be.

    ``advance`` moves it by q = C(target - x̂), x̂ <- settle(x̂ + q), with the codec C; what C loses stays in the
    difference between the model and x̂ and rides along in the next delta (error feedback; CHOCO-SGD, Koloskova et al.
    2019). Owner and followers ``settle`` a replica after every sum: keyframes carry neither subnormal elements nor -0,
    so without it a replica could hold what no keyframe can say; and a sum of normal deltas may be subnormal, which
    makes a rule's arithmetic many times slower.
    """

    def __init__(self, initial: Tensor) -> None:
        self.vector = settle(initial.detach().clone())
        self.initial_digest = vector_digest(self.vector)
        self.digest = self.initial_digest
        self.version = 0
        self.round = 0
        self._difference = torch.empty_like(self.vector)

    def advance(self, target: Tensor, codec: Codec, round_: int) -> bytes | memoryview:
        """Move towards ``target`` (d,) and return the payload that moves every follower alike."""
        encoded = codec.encode(torch.sub(target, self.vector, out=self._difference))
        settle(self.vector.add_(encoded.decoded))
        self.version += 1
        self.round = round_
        self.digest = vector_digest(self.vector)
        return encoded.payload

    def restore(self, vector: Tensor, *, version: int, round_: int) -> None:
        """Go on from a replica (d,) that was published before; raises ValueError for another length."""
        if vector.shape != self.vector.shape:
            raise ValueError(f"a replica of {vector.numel()} elements, not {self.vector.numel()}")
        self.vector.copy_(vector)
        self.version, self.round, self.digest = version, round_, vector_digest(self.vector)


@dataclass(slots=True)
class Times:
    """When things last happened between this node and one neighbour, in the shell's seconds."""

    heard: float = float("-inf")
    greeted: float = float("-inf")
    replied: float = float("-inf")
    asked: float = float("-inf")
    ask_gap: float = 0.0
    behind_since: float = float("inf")
    served: float = float("-inf")
    servings: int = 0
    served_version: int = -1
    blocked_since: float = float("inf")
    ack_due: float = float("inf")


@dataclass(slots=True)
class Followed:
    """One neighbour as this node sees it: its replica, the updates that wait, and how it keeps time.

    ``vector`` starts as the common initial model and is None while the neighbour's model is unknown. ``round`` is the
    neighbour's round of the last applied update, ``told_round`` the last one that it has spoken of, ``moved_at`` this
    node's own gossip step at that update. ``claimed`` is the newest version it is known to have published, ``acked``
    the version of *our* replica that it holds, ``confirmed`` the version of its own that this node last acknowledged,
    ``left_at`` the sequence number of its good-bye, ``misses`` how many synchronous rounds in a row have ended without
    it. ``owing``: it has said for too long that it has published what it does not send. ``membership``: the version
    that it last said is in force with it.
    """

    weight: float
    vector: Tensor | None
    digest: bytes = b""
    version: int = 0
    round: int = -1
    told_round: int = -1
    moved_at: int = 0
    incarnation: int = -1
    joined: bool = False
    refused: str | None = None
    left: bool = False
    left_at: int = -1
    lost: bool = False
    absurd: bool = False
    done: bool = False
    waiting: dict[int, Update] = field(default_factory=dict)
    claimed: int = 0
    acked: int = 0
    confirmed: int = 0
    misses: int = 0
    owing: bool = False
    membership: int = 0
    lateness: Lateness = field(default_factory=Lateness)
    times: Times = field(default_factory=Times)

    def restart(self, incarnation: int) -> None:
        """Forget what belonged to an earlier life of the neighbour."""
        if self.incarnation >= 0:
            self.vector = None
        self.incarnation = incarnation
        self.version, self.round, self.told_round = 0, -1, -1
        self.claimed, self.acked, self.confirmed = 0, 0, 0
        self.joined, self.refused = False, None
        self.left, self.left_at, self.absurd, self.done = False, -1, False, False
        self.owing, self.times.behind_since = False, float("inf")
        self.waiting.clear()

    @property
    def speaks(self) -> bool:
        """Whether updates may be exchanged with the neighbour."""
        return self.joined and self.refused is None

    @property
    def alive(self) -> bool:
        """Whether a synchronous round should wait for the neighbour."""
        return self.speaks and not self.lost and not self.left

    @property
    def usable(self) -> bool:
        """Whether the replica may be given to a rule."""
        return self.speaks and self.vector is not None and not self.absurd

    @property
    def behind(self) -> bool:
        """Whether the neighbour has published what this node does not hold."""
        return self.speaks and not self.left and (self.vector is None or self.claimed > self.received)

    @property
    def received(self) -> int:
        """The newest version that this node could reach with what it holds: what it acknowledges."""
        if self.vector is None:
            return 0
        version = self.version
        while version + 1 in self.waiting:
            version += 1
        return version

    def arrived(self, round_: int) -> bool:
        """Tell whether the neighbour's contribution to ``round_`` is here, or will never come since it is further."""
        if self.vector is None:
            return False
        successor = self.waiting.get(self.version + 1)
        return self.round >= round_ or (successor is not None and successor.round >= round_)

    def hold(self, update: Update, room: int) -> bool:
        """Keep an update for its turn; False if it is old or ``room`` others wait already: a keyframe mends that."""
        self.claimed = max(self.claimed, update.version)
        if update.version <= self.version or update.version in self.waiting:
            return False
        if len(self.waiting) >= room:
            return False
        self.waiting[update.version] = update
        return True

    def apply(self, update: Update, codec: Codec, own_step: int, max_norm: float) -> bool:
        """Move the replica by a delta; False if the result is not what the owner holds (a keyframe must mend it).

        Raises CodecError, with the replica unchanged, for a payload that does not decode.
        """
        assert self.vector is not None
        settle(self.vector.add_(codec.decode(update.payload, self.vector.numel())))
        return self._settle(update, own_step, max_norm)

    def adopt(self, keyframe: Update, size: int, own_step: int, max_norm: float) -> bool:
        """Replace the replica by a keyframe; False, with nothing changed, if its digest does not match."""
        vector = KEYFRAME_CODEC.decode(keyframe.payload, size)
        if vector_digest(vector) != keyframe.digest:
            return False
        self.vector = vector
        self.waiting = {v: u for v, u in self.waiting.items() if v > keyframe.version}
        self.claimed = max(self.claimed, keyframe.version)
        return self._settle(keyframe, own_step, max_norm, checked=True)

    def _settle(self, update: Update, own_step: int, max_norm: float, *, checked: bool = False) -> bool:
        assert self.vector is not None
        if not checked and vector_digest(self.vector) != update.digest:
            self.vector = None
            self.waiting.clear()
            return False
        self.version, self.digest = update.version, update.digest
        self.round, self.moved_at = update.round, own_step
        norm = float(torch.linalg.vector_norm(self.vector))
        self.absurd = not norm <= max_norm
        return True
