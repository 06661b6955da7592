"""Neighbourhoods to try rules on, and options to make every rule with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from robust.slow_rules import CONDITIONS, Scene
from torch import Tensor

from gossipfl.robust.base import KNOWN, MixContext, Rule
from gossipfl.robust.hood import Hood
from gossipfl.robust.registry import RULES, make_rule
from gossipfl.robust.rules.sketch import Sketchguard

COMPOSED = ("nnm+krum", "arc+mean", "nnm+median", "arc+balance", "arc+trimmed-mean", "nnm+multi-krum")
NAMES = (*RULES, *COMPOSED)


def needs_f(name: str) -> bool:
    return "+" in name or name in CONDITIONS


BOUNDED = tuple(filter(needs_f, NAMES))


def rule_for(name: str, f: int | str = 1) -> Rule:
    """Make any rule; ``f`` for those that need it."""
    return make_rule(name, {"f": f} if needs_f(name) else {})


def quadratic(target: Tensor) -> Callable[[Tensor], Tensor]:
    """A loss that any model can be judged by: its squared distance to ``target`` (..., d)."""
    return lambda models: (models.double() - target.unsqueeze(-2).double()).square().sum(-1)


@dataclass(frozen=True)
class Case:
    """A node, what reached it, and what it may be told; ``f`` is how many may lie, told as a number or as known."""

    own: Tensor
    received: Sequence[Tensor]
    weights: Sequence[float]
    freshness: Sequence[float]
    f: int = 1
    known: bool = False
    round: int = 0
    horizon: int | None = None
    target: Tensor | None = None
    previous: Sequence[Tensor] | None = None
    memory: Tensor | None = None
    moved: float = 1.0

    @property
    def context(self) -> MixContext:
        losses = None
        if (target := self.target) is not None:
            losses = lambda models: quadratic(target)(torch.stack(list(models))).tolist()  # noqa: E731 - one place
        return MixContext(
            self.weights,
            self.freshness,
            self.round,
            self.horizon,
            byzantine=self.f,
            losses=losses,
            moved=self.moved,
            previous=self.previous,
            memory=self.memory,
        )

    @property
    def scene(self) -> Scene:
        target = None if self.target is None else self.target.double().numpy()

        def loss(model: np.ndarray) -> float:
            assert target is not None
            return float(np.sum((model - target) ** 2))

        return Scene(
            self.own.double().numpy(),
            [x.double().numpy() for x in self.received],
            list(self.weights),
            list(self.freshness),
            self.f,
            self.round,
            self.horizon,
            loss,
            None if self.previous is None else [x.double().numpy() for x in self.previous],
            None if self.memory is None else self.memory.tolist(),
            lambda model: sketch_matrix(self.own.numel()) @ model,
            self.moved,
        )

    def rule(self, name: str) -> Rule:
        return rule_for(name, KNOWN if self.known else self.f)

    def ordered(self, order: Sequence[int]) -> Case:
        return replace(
            self,
            received=[self.received[i] for i in order],
            weights=[self.weights[i] for i in order],
            freshness=[self.freshness[i] for i in order],
            previous=None if self.previous is None else [self.previous[i] for i in order],
            memory=None if self.memory is None else self.memory[list(order)],
        )

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Case:
        """All vectors changed in the same way; what is remembered of them stays."""
        return replace(
            self,
            own=change(self.own),
            received=[change(x) for x in self.received],
            target=None if self.target is None else change(self.target),
            previous=None if self.previous is None else [change(x) for x in self.previous],
        )

    def hood(self, places: int | None = None) -> Hood:
        """The case with room for ``places`` neighbours; the rest is padding of the worst kind."""
        count = len(self.received)
        places = count if places is None else places
        garbage = torch.full((places - count, self.own.numel()), torch.nan)
        rest = [7.0] * (places - count)
        memory = None
        if self.memory is not None:
            memory = torch.cat([self.memory, torch.full((places - count, self.memory.shape[1]), 3.0).double()])
        return Hood(
            own=self.own,
            received=torch.cat([torch.stack(list(self.received)), garbage]),
            present=torch.arange(places) < count,
            weights=torch.tensor([*self.weights, *rest], dtype=torch.float64),
            freshness=torch.tensor([*self.freshness, *rest], dtype=torch.float64),
            round=self.round,
            horizon=self.horizon,
            byzantine=torch.tensor(self.f),
            losses=None if self.target is None else quadratic(self.target),
            moved=torch.tensor(self.moved, dtype=torch.float64),
            previous=None if self.previous is None else torch.cat([torch.stack(list(self.previous)), garbage]),
            memory=memory,
        )


@lru_cache(maxsize=128)
def sketch_matrix(size: int) -> np.ndarray:
    """The Count-Sketch of ``sketchguard`` as a matrix (buckets, size): a sketch is linear."""
    return Sketchguard().sketch(torch.eye(size)).T.double().numpy()


def cluster(count: int, size: int = 50, seed: int = 0, spread: float = 0.1) -> tuple[Tensor, list[Tensor]]:
    """A model and its neighbours' around it, each coordinate ``spread`` apart."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(size, generator=generator) + 3
    return own, [own + spread * torch.randn(size, generator=generator) for _ in range(count)]


def even(own: Tensor, received: Sequence[Tensor], **told: object) -> Case:
    """A case with equal weights, all fresh."""
    count = len(received)
    return Case(own, received, [1 / (count + 1)] * count, [1.0] * count, target=own + 1, **told)


def make_case(seed: int, size: int, count: int, *, fresh: bool = False, round_: int | None = None) -> Case:
    """A node in a cluster of neighbours, some of them far away; models that moved since the last round."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def numbers(low: float, high: float) -> list[float]:
        return (low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)).tolist()

    def one_of(choices: Sequence[Any]) -> Any:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    own = noise(size) + 3
    received = [own + one_of((0.01, 0.2, 1.0, 30.0)) * noise(size) for _ in range(count)]
    previous = [x + 0.1 * noise(size) for x in received]
    memory = None
    if count and one_of((True, False)):
        now = torch.tensor([[float((x - p).norm()), turned(x, p)] for x, p in zip(received, previous, strict=True)])
        memory = (now.repeat(1, 2) * (1 + 0.3 * noise(count, 4))).double()
    return Case(
        own=own,
        received=received,
        weights=numbers(0, 1 / (count + 1)) if one_of((True, False)) else [1 / (count + 1)] * count,
        freshness=[1.0] * count if fresh else numbers(0.01, 1),
        f=one_of((0, 1, 1, 2, 2)),
        known=one_of((True, False)),
        round=one_of(range(100)) if round_ is None else round_,
        horizon=one_of((None, 1, 40, 100)),
        target=own + noise(size),
        previous=previous,
        memory=memory,
        moved=one_of((0.01, 0.3, 2.0)),
    )


def cases(
    *,
    fresh: bool = False,
    counts: tuple[int, int] = (0, 8),
    sizes: tuple[int, int] = (2, 40),
    round_: int | None = None,
) -> st.SearchStrategy[Case]:
    drawn = st.integers(0, 2**32), st.integers(*sizes), st.integers(*counts)
    return st.builds(make_case, *drawn, fresh=st.just(fresh), round_=st.just(round_))


def turned(a: Tensor, b: Tensor) -> float:
    return 1 - float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
