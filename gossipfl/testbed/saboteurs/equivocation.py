"""Equivocation: two truths under one number and one signature, and each neighbour hears the same one for ever."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

import torch

from gossipfl.codec import codec_by_wire_id
from gossipfl.errors import ConfigError
from gossipfl.gossip.replica import KEYFRAME_CODEC, PublicReplica
from gossipfl.messages import Body, Hello, Kind, Status, Update
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur
from gossipfl.testbed.saboteurs.forge import Letter

REMEMBERED = 8
"""Updates of the second truth that are kept for those who ask again."""


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Tell every other neighbour, beginning with the first, of another replica than the rest, under the same numbers:

        x̂' = x̂ + strength ‖x̂‖ u

    with u a random direction of the node's own, ‖u‖ = 1. Digests, heartbeats and keyframes go with either replica, so
    that no follower finds a fault in what it holds.
    """

    strength: float = 1.0
    name: ClassVar[str] = "equivocation"
    forges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.strength > 0 and isfinite(self.strength)):
            raise ConfigError(f'attack "{self.name}": strength = {self.strength} must be greater than 0')

    def saboteur(self, cover: Cover) -> Saboteur:
        """Return one with two faces."""
        return _TwoFaced(cover, self.strength)


class _TwoFaced(Saboteur):
    def __init__(self, cover: Cover, strength: float) -> None:
        self._core = cover.core
        self._forge = cover.forge
        self._deceived = frozenset(cover.neighbours[::2])
        self._twin = PublicReplica(cover.core.exchange.own.vector)
        self._updates: dict[int, Update] = {}
        generator = torch.Generator().manual_seed(cover.random.getrandbits(63))
        direction = torch.randn(self._twin.vector.shape, generator=generator)
        self._offset = direction.mul_(strength / torch.linalg.vector_norm(direction))

    def pass_on(self, parcel: Parcel) -> tuple[Parcel, ...]:
        """Tell the deceived among the recipients the second truth, and the others the first."""
        letter = self._forge.read(parcel.frame)
        return (parcel,) if letter is None else parcel.split(self._deceived, lambda: self._retell(letter))

    def _retell(self, letter: Letter) -> bytes:
        kind, body = self._second_truth(letter.kind, letter.body)
        return self._forge.rewrite(replace(letter, kind=kind), body)

    def _second_truth(self, kind: Kind, body: Body) -> tuple[Kind, Body]:
        twin = self._twin
        match body:
            case Update() if kind == Kind.DELTA and body.version > twin.version:
                return kind, self._advance(body)
            case Update() if kind == Kind.DELTA and body.version in self._updates:
                return kind, replace(self._updates[body.version], acks=body.acks)
            case Update():  # a keyframe, or an update so old that where the twin stands now has to do
                payload = memoryview(KEYFRAME_CODEC.encode(twin.vector).payload)
                return Kind.KEYFRAME, Update(twin.round, twin.version, twin.digest, KEYFRAME_CODEC.wire_id, payload)
            case Hello() | Status():
                return kind, replace(body, version=twin.version, round=twin.round, digest=twin.digest)
            case _:
                return kind, body

    def _advance(self, update: Update) -> Update:
        """Move the twin as the node has just moved, and return the update that takes its followers along."""
        twin, own = self._twin, self._core.exchange.own.vector
        target = torch.add(own, self._offset, alpha=float(torch.linalg.vector_norm(own)))
        payload = memoryview(twin.advance(target, codec_by_wire_id(update.codec), update.round))
        twin.version = update.version  # the node may have published what it had nobody to send to
        second = replace(update, digest=twin.digest, payload=payload)
        self._updates[update.version] = second
        if len(self._updates) > REMEMBERED:
            del self._updates[min(self._updates)]
        return second
