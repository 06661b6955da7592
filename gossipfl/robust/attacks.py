"""Byzantine attacks: what a lying node publishes in place of its own model."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import AttackView


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Publish the own model with its sign turned: ``-strength * own`` (bit flip, Karimireddy et al., ICLR 2022)."""

    strength: float = 1.0
    name: ClassVar[str] = "sign-flip"
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_strength(self.name, self.strength)

    def lie(self, view: AttackView) -> Tensor:
        """Return ``-strength * own``, (d,)."""
        return view.own * -self.strength


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Publish noise ``N(0, strength² I)``, by default of variance 200 (Fang et al., CCS 2024)."""

    strength: float = sqrt(200.0)
    name: ClassVar[str] = "gaussian"
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_strength(self.name, self.strength)

    def lie(self, view: AttackView) -> Tensor:
        """Return fresh noise, (d,), from the view's generator."""
        noise = torch.randn(view.own.shape, generator=view.generator, dtype=view.own.dtype)
        return noise.mul_(self.strength)


@dataclass(frozen=True, slots=True)
class LabelFlip:
    """Train honestly on labels turned round, y -> M-1-y (Fang et al., USENIX Security 2020)."""

    name: ClassVar[str] = "label-flip"
    poisons_data: ClassVar[bool] = True

    def lie(self, view: AttackView) -> Tensor:
        """Return the own model, (d,): the lie is in the data."""
        return view.own


def _check_strength(attack: str, strength: float) -> None:
    if not (strength > 0 and isfinite(strength)):
        raise ConfigError(f'attack "{attack}": strength = {strength} must be greater than 0')
