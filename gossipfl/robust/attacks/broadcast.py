"""Lone attacks: one lie to all neighbours alike, from nothing but what any node knows."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.attacks import bounds, draws

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import AttackView


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Publish the own model with its sign turned: ``-strength * own`` (bit flip, Karimireddy et al., ICLR 2022)."""

    strength: float = 1.0
    name: ClassVar[str] = "sign-flip"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = False
    publishes_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def lie(self, view: AttackView) -> Tensor:
        """Return ``-strength * own``, (d,)."""
        return view.own * -self.strength


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Publish noise ``N(0, strength² I)``, by default of variance 200 (Fang et al., CCS 2024)."""

    strength: float = sqrt(200.0)
    name: ClassVar[str] = "gaussian"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = False
    publishes_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def lie(self, view: AttackView) -> Tensor:
        """Return fresh noise, (d,), from the view's generator."""
        return draws.normal(view.own, view.generator).mul_(self.strength)


@dataclass(frozen=True, slots=True)
class SlowDrift:
    """Wander off a little more each round: the boiling frog (Rubinstein et al., IMC 2009), on models.

        lie = own + t pace ‖own‖ u        at round t, u the unit vector of ``seed``

    It starts as the honest model and moves by the fraction ``pace`` of its own norm a round, all attackers in the same
    direction, so that no round looks different from the one before.
    """

    pace: float = 0.01
    seed: int = 0
    name: ClassVar[str] = "slow-drift"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = False
    publishes_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "pace", self.pace)
        bounds.whole(self.name, "seed", self.seed, 0)

    def lie(self, view: AttackView) -> Tensor:
        """Return the own model, drifted, (d,)."""
        step = view.round * self.pace * float(torch.linalg.vector_norm(view.own))
        return view.own + draws.direction(self.seed, view.own).mul_(step)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Earn trust, then spend it (Sun, Han and Liu, IEEE Communications Magazine 46(2), 2008).

    For ``honest`` rounds it publishes its own model, for ``lying`` rounds the sign flip with ``strength``, in turns.
    """

    honest: int = 10
    lying: int = 10
    strength: float = 1.0
    name: ClassVar[str] = "on-off"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = False
    publishes_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.whole(self.name, "honest", self.honest, 1)
        bounds.whole(self.name, "lying", self.lying, 1)
        bounds.positive(self.name, "strength", self.strength)

    def lie(self, view: AttackView) -> Tensor:
        """Return the own model or its negative, (d,), by the round's place in the cycle."""
        if view.round % (self.honest + self.lying) < self.honest:
            return view.own
        return view.own * -self.strength


@dataclass(frozen=True, slots=True)
class Sybil:
    """Stand together around one wrong model: a block of attackers nearer to each other than honest nodes are.

        lie = initial + strength ‖own - initial‖ (u + spread n),        u the unit vector of ``seed``, E ‖n‖² = 1

    The wrong model is as far from the common start as honest training has come (for ``strength`` 1), in a direction
    that has nothing to do with the data. Sybils that act alike: Fung et al., RAID 2020.
    """

    strength: float = 1.0
    spread: float = 0.01
    seed: int = 0
    name: ClassVar[str] = "sybil"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = False
    publishes_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)
        bounds.between(self.name, "spread", self.spread, 0, 1)
        bounds.whole(self.name, "seed", self.seed, 0)

    def lie(self, view: AttackView) -> Tensor:
        """Return the wrong model, (d,); raises ValueError for a view without ``initial``."""
        if view.initial is None:
            raise ValueError('attack "sybil" starts from the common initial model; the view has none')
        noise = draws.normal(view.own, view.generator).mul_(self.spread / sqrt(view.own.numel()))
        length = self.strength * float(torch.linalg.vector_norm(view.own - view.initial))
        return view.initial + noise.add_(draws.direction(self.seed, view.own)).mul_(length)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Publish what one neighbour has published: its data counts double (Wu, Chen and Ling, IEEE TSP 71, 2023).

    Each attacker keeps to one neighbour, drawn by its generator's seed. ``sample-duplicating`` is the conspiracy.
    """

    name: ClassVar[str] = "duplicate"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = False
    publishes_own: ClassVar[bool] = False

    def lie(self, view: AttackView) -> Tensor:
        """Return a neighbour's last public replica, (d,); the own model where it has none."""
        if not view.replicas:
            return view.own
        return view.replicas[draws.constant(view.generator, len(view.replicas))]
