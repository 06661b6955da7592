"""Bad numbers: validly signed updates that no arithmetic survives, or whose digest is another vector's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, nan
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.codec import settle
from gossipfl.digest import vector_digest
from gossipfl.gossip.replica import KEYFRAME_CODEC
from gossipfl.messages import Kind, Update
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur

if TYPE_CHECKING:
    from torch import Tensor

ONE_IN_MANY: Mapping[str, float] = {"nan": nan, "inf": inf, "-inf": -inf, "beyond": 3e38}
"""What stands in one place of an update that is zero elsewhere; the last is finite, and above all that codecs allow."""
EVERYWHERE: Mapping[str, float] = {"subnormal": 1e-40, "huge": 1e8}
"""What stands in every place: numbers that slow arithmetic down, and numbers that are legal one by one."""
POISONS = (*ONE_IN_MANY, *EVERYWHERE, "digest")


@dataclass(frozen=True, slots=True)
class BadNumbers:
    """Publish, in turn, each of ``POISONS`` in place of an update; every other keyframe is true, so that all go on.

    ``digest``: the update is true, and the digest that goes with it is not. ``huge``: the digest is right, and the
    replica's norm absurd.
    """

    name: ClassVar[str] = "nan"
    forges: ClassVar[bool] = True

    def saboteur(self, cover: Cover) -> Saboteur:
        """Return one that poisons."""
        return _Poisoner(cover)


class _Poisoner(Saboteur):
    def __init__(self, cover: Cover) -> None:
        self._own = cover.core.exchange.own
        self._forge = cover.forge
        self._random = cover.random
        self._before = self._now = self._own.vector.clone()
        self._version = 0
        self._keyframes = 0

    def pass_on(self, parcel: Parcel) -> tuple[Parcel, ...]:
        """Poison all updates, and keyframes but for every other one."""
        letter = self._forge.read(parcel.frame)
        if letter is None or not isinstance(letter.body, Update):
            return (parcel,)
        if letter.kind == Kind.KEYFRAME:
            self._keyframes += 1
            if self._keyframes % 2:
                return (parcel,)
        basis = self._basis(letter.kind, letter.body.version)
        return (replace(parcel, frame=self._forge.rewrite(letter, self._poisoned(letter.body, basis))),)

    def _basis(self, kind: Kind, version: int) -> Tensor:
        """Return what a follower adds the update to, (d,): what the node had published before, or nothing."""
        if kind == Kind.KEYFRAME:
            return torch.zeros_like(self._now)
        if version > self._version:
            self._version, self._before, self._now = version, self._now, self._own.vector.clone()
        return self._before

    def _poisoned(self, update: Update, basis: Tensor) -> Update:
        poison = POISONS[update.version % len(POISONS)]
        if poison == "digest":
            return replace(update, digest=self._own.initial_digest)
        values = torch.full_like(basis, EVERYWHERE.get(poison, 0.0))
        if poison in ONE_IN_MANY:
            values[self._random.randrange(len(values))] = ONE_IN_MANY[poison]
        payload = memoryview(values.numpy().astype("<f4").tobytes())
        reached = settle(basis + values)
        return replace(update, codec=KEYFRAME_CODEC.wire_id, payload=payload, digest=vector_digest(reached))
