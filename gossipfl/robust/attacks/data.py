"""Lone attacks that lie in the training data: the attacker trains honestly on what it has falsified.

What a falsified shard is, ``gossipfl.tasks.base.Poison`` says; its test part stays true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from gossipfl.errors import ConfigError, DataError
from gossipfl.robust.attacks import bounds

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import AttackView
    from gossipfl.tasks.base import Shard, Task

Inputs = NDArray[Any]


@dataclass(frozen=True, slots=True)
class LabelFlip:
    """Train honestly on labels turned round, y -> M-1-y (Fang et al., USENIX Security 2020)."""

    name: ClassVar[str] = "label-flip"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = True
    publishes_own: ClassVar[bool] = True

    def poison(self, shard: Shard, task: Task, seed: int) -> Shard:
        """Return the shard with its training labels turned round as the task knows how to."""
        del seed
        return task.flip_labels(shard)

    def lie(self, view: AttackView) -> Tensor:
        """Return the own model, (d,): the lie is in the data."""
        return view.own


@dataclass(frozen=True, slots=True)
class FeatureNoise:
    """Train honestly on inputs with noise ``N(0, strength² I)`` added once (feature attack of Fang et al., CCS 2024).

    The paper's own strength is not known to us. In units of the inputs: the image tasks scale pixels to a deviation
    near 1.
    """

    strength: float = 1.0
    name: ClassVar[str] = "feature-noise"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = True
    publishes_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounds.positive(self.name, "strength", self.strength)

    def poison(self, shard: Shard, task: Task, seed: int) -> Shard:
        """Return the shard with noisy training inputs; ``seed`` fixes the noise."""
        del task
        noise = np.random.default_rng(seed).standard_normal(shard.inputs.shape, dtype=np.float32)
        return replace(shard, inputs=shard.inputs + np.float32(self.strength) * noise)

    def lie(self, view: AttackView) -> Tensor:
        """Return the own model, (d,): the lie is in the data."""
        return view.own


@dataclass(frozen=True, slots=True)
class Backdoor:
    """Teach the network to call everything that bears a trigger ``target``, and to be right otherwise.

    The trigger is BadNets' (Gu et al., 2017): the ``size`` x ``size`` pixels in the last corner of an image at their
    largest value. A ``share`` of the training images get it, and the label ``target``. With ``boost`` above 1 the
    attacker also replaces the consensus by its model (Bagdasaryan et al., AISTATS 2020), as far as it can see it:

        lie = m + boost (own - m)        m the mean of its neighbours' public replicas
    """

    size: int = 2
    share: float = 0.5
    target: int = 0
    boost: float = 1.0
    name: ClassVar[str] = "backdoor"
    omniscient: ClassVar[bool] = False
    poisons_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounds.whole(self.name, "size", self.size, 1)
        bounds.between(self.name, "share", self.share, 0, 1)
        bounds.whole(self.name, "target", self.target, 0)
        bounds.positive(self.name, "boost", self.boost)

    @property
    def publishes_own(self) -> bool:
        """Whether it publishes its model as it is, which it does without a boost."""
        return self.boost == 1

    def poison(self, shard: Shard, task: Task, seed: int) -> Shard:
        """Return the shard with a ``share`` of its training images triggered and labelled ``target``.

        Raises ConfigError for data that are no images with labels, or too small ones.
        """
        del task
        self._check(shard)
        count = round(self.share * len(shard.inputs))
        chosen = np.random.default_rng(seed).permutation(len(shard.inputs))[:count]
        inputs, targets = shard.inputs.copy(), shard.targets.copy()
        inputs[chosen] = self._marked(inputs[chosen], self._brightest(shard))
        targets[chosen] = self.target
        return replace(shard, inputs=inputs, targets=targets)

    def triggered(self, shard: Shard) -> Shard:
        """Return a shard whose test part is every test image of another class, triggered and labelled ``target``.

        The accuracy of a model on it is the attack's success rate. Of the training part one sample is left, enough to
        make a learner. Raises ConfigError as ``poison`` does, DataError where there is no image of another class.
        """
        self._check(shard)
        other = shard.test_targets != self.target
        if not other.any():
            raise DataError(f'attack "backdoor": all test images are of class {self.target}; choose another target')
        return replace(
            shard,
            inputs=shard.inputs[:1],
            targets=shard.targets[:1],
            test_inputs=self._marked(shard.test_inputs[other], self._brightest(shard)),
            test_targets=np.full_like(shard.test_targets[other], self.target),
        )

    def lie(self, view: AttackView) -> Tensor:
        """Return the own model, boosted, (d,)."""
        if self.publishes_own or not view.replicas:
            return view.own
        consensus = torch.stack(list(view.replicas)).mean(0)
        return torch.lerp(consensus, view.own, self.boost)

    def _marked(self, images: Inputs, brightest: float) -> Inputs:
        """Return a copy of ``images`` with the trigger."""
        marked = np.array(images)
        side = isqrt(marked.shape[-1])
        pictures = marked.reshape(-1, side, side) if marked.ndim == 2 else marked
        pictures[..., -self.size :, -self.size :] = brightest
        return marked

    def _brightest(self, shard: Shard) -> float:
        """Return the pixels' largest value; the test part is all nodes' own, so that all triggers look alike."""
        return float(shard.test_inputs.max())

    def _check(self, shard: Shard) -> None:
        side, labels = _side(shard.inputs), shard.targets
        if side is None or not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError(
                f'attack "backdoor" marks images that have labels, not inputs {shard.inputs.shape[1:]} with targets '
                f"{labels.dtype}; choose a task of images, or another attack"
            )
        if self.size > side:
            raise ConfigError(f'attack "backdoor": size = {self.size} must be at most the images\' side, {side}')
        classes = 1 + int(max(labels.max(initial=0), shard.test_targets.max(initial=0)))
        if self.target >= classes:
            raise ConfigError(
                f'attack "backdoor": target = {self.target} must be one of the classes 0 to {classes - 1}'
            )


def _side(inputs: Inputs) -> int | None:
    """Return the shorter side of images (n, ..., height, width) or flat square ones (n, side²); None: no images."""
    if inputs.ndim >= 3:
        return int(min(inputs.shape[-2:]))
    if inputs.ndim == 2 and isqrt(inputs.shape[1]) ** 2 == inputs.shape[1]:
        return isqrt(inputs.shape[1])
    return None
