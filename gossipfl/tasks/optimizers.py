"""Optimisers that step flat vectors in place, one model's or those of many models at once.

They do what the ones of ``torch.optim`` do. Those import torch's compiler at their first step (seconds of
start-up and about a hundred megabytes for each process) and loop over parameter groups; one vector needs
neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.tasks.base import TrainOptions

SCHEDULES: Mapping[str, Callable[[int], float]] = {
    "constant": lambda _: 1.0,
    "inverse-sqrt": lambda steps: 1 / sqrt(steps + 1),
}
"""What the learning rate is multiplied with after so many steps."""


@dataclass(frozen=True, slots=True)
class Accumulator:
    """Where a step's gradient g is to be added: ``tensor`` <- ``keep`` * tensor + ``scale`` * g.

    Matrix products can add to what is there, so whoever computes g by one need not store it first. With ``keep`` = 0
    what is there counts for nothing, even if it is not a number.
    """

    tensor: Tensor
    keep: float
    scale: float


class Optimizer(Protocol):
    """Steps ``parameters`` in place along a gradient of the same shape; ``state`` is its memory, live.

    A step is ``step``, or ``accumulator``, adding the gradient there, and ``finish``.
    """

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        ...

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Take one step; ``gradient`` may be overwritten."""
        ...

    def accumulator(self, parameters: Tensor) -> Accumulator:
        """Return where this step's gradient goes; the tensor is the same at every step."""
        ...

    def finish(self, parameters: Tensor) -> None:
        """End the step whose gradient has been added to the accumulator."""
        ...


class Sgd:
    """Stochastic gradient descent: m <- mu m + (g + wd x), x <- x - lr m (mu = 0: x <- x - lr (g + wd x))."""

    def __init__(self, options: TrainOptions, like: Tensor) -> None:
        self._lr, self._momentum, self._decay = options.lr, options.momentum, options.weight_decay
        self._velocity = torch.zeros_like(like) if options.momentum else None
        self._schedule = SCHEDULES[options.schedule]
        self._steps = None if options.schedule == "constant" else torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        """The velocity m, where momentum is used, and the steps taken, where the learning rate depends on them."""
        both = {"velocity": self._velocity, "steps": self._steps}
        return {name: tensor for name, tensor in both.items() if tensor is not None}

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        into = self.accumulator(parameters)
        if into.keep != 1:
            into.tensor.mul_(into.keep)
        into.tensor.add_(gradient, alpha=into.scale)
        self.finish(parameters)

    def accumulator(self, parameters: Tensor) -> Accumulator:
        """Return the velocity, or without momentum the parameters themselves."""
        if self._velocity is not None:
            return Accumulator(self._velocity, self._momentum, 1.0)
        rate = self._rate()
        return Accumulator(parameters, 1.0 - rate * self._decay, -rate)

    def finish(self, parameters: Tensor) -> None:
        """Move the parameters along the velocity."""
        if self._velocity is not None:
            if self._decay:
                self._velocity.add_(parameters, alpha=self._decay)
            parameters.add_(self._velocity, alpha=-self._rate())
        if self._steps is not None:
            self._steps += 1

    def _rate(self) -> float:
        return self._lr if self._steps is None else self._lr * self._schedule(int(self._steps))


class Adam:
    """Adam (Kingma and Ba, 2015), and with decoupled decay AdamW (Loshchilov and Hutter, 2019).

    m <- b1 m + (1-b1) g, v <- b2 v + (1-b2) g^2, x <- x - lr m^ / (sqrt(v^) + eps) with m^ = m / (1-b1^t) and
    v^ = v / (1-b2^t). Decay adds wd x to g, or scales x by (1 - lr wd) when decoupled.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, options: TrainOptions, like: Tensor) -> None:
        self._lr, self._decay, self._decoupled = options.lr, options.weight_decay, options.optimizer == "adamw"
        self._schedule = SCHEDULES[options.schedule]
        self._mean, self._square, self._scratch = (torch.zeros_like(like) for _ in range(3))
        self._steps = torch.zeros((), dtype=torch.int64)
        self._gradient: Tensor | None = None

    @property
    def state(self) -> dict[str, Tensor]:
        """Both moments and the number of steps taken."""
        return {"mean": self._mean, "square": self._square, "steps": self._steps}

    def step(self, parameters: Tensor, gradient: Tensor) -> None:
        """Take one step."""
        rate = self._lr * self._schedule(int(self._steps))
        if self._decay and self._decoupled:
            parameters.mul_(1 - rate * self._decay)
        elif self._decay:
            gradient.add_(parameters, alpha=self._decay)
        self._steps += 1
        count = int(self._steps)
        self._mean.lerp_(gradient, 1 - self.BETA1)
        self._square.mul_(self.BETA2).addcmul_(gradient, gradient, value=1 - self.BETA2)
        torch.sqrt(self._square, out=self._scratch)
        self._scratch.div_(sqrt(1 - self.BETA2**count)).add_(self.EPSILON)
        parameters.addcdiv_(self._mean, self._scratch, value=-rate / (1 - self.BETA1**count))

    def accumulator(self, parameters: Tensor) -> Accumulator:
        """Return a buffer for the gradient, which both moments need whole."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(parameters)
        return Accumulator(self._gradient, 0.0, 1.0)

    def finish(self, parameters: Tensor) -> None:
        """Take the step along the gradient in the buffer."""
        assert self._gradient is not None
        self.step(parameters, self._gradient)


def make_optimizer(options: TrainOptions, like: Tensor) -> Optimizer:
    """Return the optimiser that ``options`` names, with memory shaped as ``like``; raises ConfigError."""
    if not options.lr > 0:
        raise ConfigError(f"lr = {options.lr} cannot train; use a number above 0")
    if options.weight_decay < 0 or not 0 <= options.momentum < 1:
        raise ConfigError(
            f"weight_decay = {options.weight_decay}, momentum = {options.momentum} cannot be used; "
            "weight_decay is at least 0, momentum in [0, 1)"
        )
    if options.schedule not in SCHEDULES:
        raise ConfigError(f'schedule "{options.schedule}" is unknown; choose one of: {", ".join(SCHEDULES)}')
    if options.optimizer == "sgd":
        return Sgd(options, like)
    if options.optimizer in ("adam", "adamw"):
        return Adam(options, like)
    raise ConfigError(f'optimizer "{options.optimizer}" is unknown; choose one of: sgd, adam, adamw')
