"""Neighbourhoods: what rules see and return, for one node or for many at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.base import KNOWN, Aggregate, MixContext, Need, Verdict
from gossipfl.robust.reasons import REASONS

if TYPE_CHECKING:
    from torch import Tensor

Losses = Callable[["Tensor"], "Tensor"]
"""Maps candidate models (..., c, d) of the nodes at hand to their losses (..., c) on each node's own data."""


@dataclass(frozen=True, slots=True)
class Hood:
    """One node with its neighbours, or many nodes with as many places for neighbours (leading dimensions ...).

    ``own`` (..., d); ``received`` (..., k, d); ``present`` (..., k): False where a node has fewer neighbours than k;
    what is there is padding and means nothing. ``weights``, ``freshness`` (..., k) and the other fields are those of
    ``MixContext``, with ``byzantine`` (...) whole numbers, ``moved`` (...), ``previous`` (..., k, d) and ``memory``
    (..., k, m).
    """

    own: Tensor
    received: Tensor
    present: Tensor
    weights: Tensor
    freshness: Tensor
    round: int = 0
    horizon: int | None = None
    byzantine: Tensor | None = None
    losses: Losses | None = None
    moved: Tensor | None = None
    previous: Tensor | None = None
    memory: Tensor | None = None

    @property
    def count(self) -> Tensor:
        """Number of neighbours that are there, (...)."""
        return self.present.sum(-1)


@dataclass(frozen=True, slots=True)
class Mixed:
    """What a rule made of a ``Hood``: the ``vector`` (..., d), and for each neighbour (..., k) what it decided.

    ``weight`` is what x_j - own was multiplied with, ``scale`` included (for rules that are no weighted sum, the
    neighbour's share of the result); 0 where not accepted. ``distance`` and ``threshold`` are NaN where the rule has
    none. ``reason`` counts into the rule's ``REASONS``; 0 is no reason. Padding is not accepted.
    """

    vector: Tensor
    accepted: Tensor
    weight: Tensor
    distance: Tensor | None = None
    threshold: Tensor | None = None
    scale: Tensor | None = None
    reason: Tensor | None = None
    memory: Tensor | None = None


class TensorRule(ABC):
    """A rule that is written for many nodes at once; for one node its vectors are stacked.

    Implementations treat vectors that are not finite, or so large that their distance is not, as absent
    (``finite_part``): they are rejected before anything is computed from them, whatever the rule.
    """

    REASONS: ClassVar[tuple[str, ...]] = REASONS

    @property
    @abstractmethod
    def name(self) -> str:
        """The name that ``make_rule`` makes it by."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told."""
        return ()

    @property
    def memory(self) -> int:
        """How many numbers it remembers of each neighbour from round to round."""
        return 0

    @abstractmethod
    def mix(self, hood: Hood) -> Mixed:
        """Mix the neighbourhoods of one or many nodes."""

    def most(self, neighbours: int) -> int | None:
        """Return the most Byzantine ones among so many neighbours that its condition allows; None: no condition."""
        del neighbours
        return None

    def __call__(
        self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor | None = None
    ) -> Aggregate:
        """Mix one node's vectors."""
        count = len(received)
        if not count == len(context.weights) == len(context.freshness):
            raise ValueError(
                f"{count} vectors with {len(context.weights)} weights and {len(context.freshness)} freshness factors"
            )
        vector = torch.empty_like(own) if out is None else out
        if not received:
            vector.copy_(own)
            return Aggregate(vector, ())
        mixed = self.mix_one(own, received, context, vector)
        return Aggregate(vector, verdicts_of(mixed, self.REASONS), mixed.memory)

    def mix_one(self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor) -> Mixed:
        """Mix one node's vectors, of which there are some, into ``out`` (d,)."""
        mixed = self.mix(hood_of(own, torch.stack(list(received)), context))
        out.copy_(mixed.vector)
        return mixed


def finite_part(hood: Hood) -> tuple[Tensor, Tensor]:
    """Return the differences x_j - own (..., k, d) and where x_j counts, (..., k): there, finite, and not too far.

    Differences that do not count are 0, so that they are harmless in sums.
    """
    differences = hood.received - hood.own.unsqueeze(-2)
    squares = torch.linalg.vecdot(differences, differences)
    counts = hood.present & torch.isfinite(squares)
    if not bool(counts.all()):
        differences = torch.where(counts.unsqueeze(-1), differences, 0.0)
    return differences, counts


def hood_of(own: Tensor, received: Tensor, context: MixContext) -> Hood:
    """Return one node's neighbourhood; ``received`` is (k, d)."""
    return Hood(
        own=own,
        received=received,
        present=torch.ones(len(received), dtype=torch.bool),
        weights=torch.tensor(context.weights, dtype=torch.float64),
        freshness=torch.tensor(context.freshness, dtype=torch.float64),
        round=context.round,
        horizon=context.horizon,
        byzantine=None if context.byzantine is None else torch.tensor(context.byzantine),
        losses=None if context.losses is None else _losses(context.losses),
        moved=None if context.moved is None else torch.tensor(context.moved, dtype=torch.float64),
        previous=None if context.previous is None else torch.stack(list(context.previous)),
        memory=context.memory,
    )


def _losses(losses: Callable[[Sequence[Tensor]], Sequence[float]]) -> Losses:
    return lambda models: torch.tensor(losses(list(models.unbind(0))), dtype=torch.float64)


def verdicts_of(mixed: Mixed, reasons: Sequence[str]) -> tuple[Verdict, ...]:
    """Return one node's decisions, a verdict a neighbour."""
    accepted, weights = mixed.accepted.tolist(), mixed.weight.tolist()
    count = len(accepted)
    distances, thresholds = _known(mixed.distance, count), _known(mixed.threshold, count)
    scales = [1.0] * count if mixed.scale is None else mixed.scale.tolist()
    codes = [0] * count if mixed.reason is None else mixed.reason.tolist()
    rows = zip(accepted, weights, distances, thresholds, scales, (reasons[code] for code in codes), strict=True)
    return tuple(Verdict(*row) for row in rows)


def _known(values: Tensor | None, count: int) -> list[float | None]:
    if values is None:
        return [None] * count
    return [None if value != value else value for value in values.tolist()]


@dataclass(frozen=True)
class Bounded(TensorRule):
    """A rule that must be told ``f``, how many of a node's neighbours may be Byzantine.

    ``f`` is one number for all nodes, or ``"known"``: each node is told the truth (``MixContext.byzantine``). A node
    with fewer neighbours than the rule's condition asks for trusts nobody in that round and keeps its own model.
    """

    f: int | str = field(kw_only=True)

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told: ``f``."""
        return ("f",)

    def __post_init__(self) -> None:
        """Refuse an ``f`` that is no count."""
        check_count(self.name, self.f)

    @abstractmethod
    def most(self, neighbours: int) -> int:
        """Return the most Byzantine ones among so many neighbours that the rule withstands; below 0: not even none."""

    def bound(self, hood: Hood, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return f of each node, (...), and where the rule's condition holds, (...) bool; f is 0 where it does not.

        ``counts`` (..., k): the neighbours that count, as in ``finite_part``; see ``at_large``.
        """
        f, count = at_large(self.name, self.f, hood, counts), counts.sum(-1)
        most = torch.tensor([self.most(k) for k in range(counts.shape[-1] + 1)], device=count.device)
        feasible = f <= most[count]
        return torch.where(feasible, f, 0), feasible


def check_count(rule: str, f: int | str) -> None:
    """Raise ConfigError where ``f`` is neither a count nor ``"known"``."""
    if f != KNOWN and (isinstance(f, bool) or not isinstance(f, int) or f < 0):
        raise ConfigError(f'rule "{rule}": f = {f!r} must be a whole number from 0 on, or "{KNOWN}"')


def at_large(rule: str, f: int | str, hood: Hood, counts: Tensor) -> Tensor:
    """Return how many Byzantine ones there are at most, (...), among each node's neighbours that ``counts`` (..., k).

    Those that are there but do not count have shown themselves, and are not among them any more. Otherwise one liar
    that sends a NaN could break a rule's condition, and cut the node off with it.
    """
    if f != KNOWN:
        most = torch.full_like(hood.count, int(f))
    elif hood.byzantine is None:
        raise ValueError(f'rule "{rule}" has f = "{KNOWN}" and was not told the truth')
    else:
        most = hood.byzantine.to(hood.count.dtype)
    return (most - (hood.count - counts.sum(-1))).clamp_min(0)
