"""Optimisers that step one flat vector in place.

They do what the ones of ``torch.optim`` do. Those import torch's compiler at their first step (seconds of
start-up and about a hundred megabytes for each process) and loop over parameter groups; one vector needs
neither.
"""

from __future__ import annotations

from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.tasks.base import TrainOptions


class Optimizer(Protocol):
    """Steps ``parameters`` (p,) in place along ``gradient`` (p,); ``state`` is its memory, live."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        ...

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Take one step; ``gradient`` may be overwritten."""
        ...


class Sgd:
    """Stochastic gradient descent: m <- mu m + (g + wd x), x <- x - lr m (mu = 0: x <- x - lr (g + wd x))."""

    def __init__(self, lr: float, momentum: float, weight_decay: float, like: Tensor) -> None:
        self._lr, self._momentum, self._decay = lr, momentum, weight_decay
        self._velocity = torch.zeros_like(like) if momentum else None

    @property
    def state(self) -> dict[str, Tensor]:
        """The velocity m (p,), where momentum is used."""
        return {} if self._velocity is None else {"velocity": self._velocity}

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        if self._decay:
            gradient.add_(parameters, alpha=self._decay)
        if self._velocity is not None:
            gradient = self._velocity.mul_(self._momentum).add_(gradient)
        parameters.add_(gradient, alpha=-self._lr)


class Adam:
    """Adam (Kingma and Ba, 2015), and with ``decoupled`` decay AdamW (Loshchilov and Hutter, 2019).

    m <- b1 m + (1-b1) g, v <- b2 v + (1-b2) g^2, x <- x - lr m^ / (sqrt(v^) + eps) with m^ = m / (1-b1^t) and
    v^ = v / (1-b2^t). Decay adds wd x to g, or scales x by (1 - lr wd) when decoupled.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, lr: float, weight_decay: float, decoupled: bool, like: Tensor) -> None:
        self._lr, self._decay, self._decoupled = lr, weight_decay, decoupled
        self._mean, self._square, self._scratch = (torch.zeros_like(like) for _ in range(3))
        self._steps = torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        """Both moments (p,) and the number of steps taken."""
        return {"mean": self._mean, "square": self._square, "steps": self._steps}

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        if self._decay and self._decoupled:
            parameters.mul_(1 - self._lr * self._decay)
        elif self._decay:
            gradient.add_(parameters, alpha=self._decay)
        self._steps += 1
        count = int(self._steps)
        self._mean.lerp_(gradient, 1 - self.BETA1)
        self._square.mul_(self.BETA2).addcmul_(gradient, gradient, value=1 - self.BETA2)
        torch.sqrt(self._square, out=self._scratch)
        self._scratch.div_(sqrt(1 - self.BETA2**count)).add_(self.EPSILON)
        parameters.addcdiv_(self._mean, self._scratch, value=-self._lr / (1 - self.BETA1**count))


def make_optimizer(options: TrainOptions, like: Tensor) -> Optimizer:
    """Return the optimiser that ``options`` names, with memory shaped as ``like`` (p,)."""
    if not options.lr > 0:
        raise ConfigError(f"lr = {options.lr} cannot train; use a number above 0")
    if options.weight_decay < 0 or not 0 <= options.momentum < 1:
        raise ConfigError(
            f"weight_decay = {options.weight_decay}, momentum = {options.momentum} cannot be used; "
            "weight_decay is at least 0, momentum in [0, 1)"
        )
    if options.optimizer == "sgd":
        return Sgd(options.lr, options.momentum, options.weight_decay, like)
    if options.optimizer in ("adam", "adamw"):
        return Adam(options.lr, options.weight_decay, options.optimizer == "adamw", like)
    raise ConfigError(f'optimizer "{options.optimizer}" is unknown; choose one of: sgd, adam, adamw')
