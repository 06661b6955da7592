"""The rule and attack seams: functions of tensors, no wire, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MixContext:
    """What a rule may know beside the vectors.

    ``weights``: the mixing weight W_ij of each received vector (own weight is 1 - sum). ``freshness``: a factor in
    (0, 1] per received vector, 1 in synchronous rounds; weight that staleness takes away returns to the node itself.
    ``round`` counts from 0; ``horizon`` is the known number of rounds T, or None where a run never ends.
    """

    weights: Sequence[float]
    freshness: Sequence[float]
    round: int
    horizon: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule decided about one received vector; ``distance`` and ``threshold`` where the rule has them.

    A rejected vector's ``distance`` may be a lower bound: a rule may stop measuring once the threshold is passed.
    """

    accepted: bool
    weight: float
    distance: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A rule's result: the mixed ``vector`` (d,) and one verdict per received vector, in order."""

    vector: Tensor
    verdicts: tuple[Verdict, ...]


class Rule(Protocol):
    """An aggregation rule for one node.

    ``own`` is (d,), ``received`` a sequence of k vectors (d,) (k may be 0: the result is then ``own``). The inputs are
    never written. ``out`` (d,) receives the result where given.
    """

    @property
    def name(self) -> str:
        """The name it has in ``RULES``."""
        ...

    def __call__(
        self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor | None = None
    ) -> Aggregate:
        """Mix ``own`` with what was ``received``; ``out`` must not overlap an input."""
        ...


@dataclass(frozen=True, slots=True)
class AttackView:
    """All that an attacker may look at: its own honestly trained model and the public replicas it holds.

    ``own`` (d,); ``replicas``: what its neighbours had published when the round began; ``round`` from 0;
    ``generator``: the attacker's only source of randomness.
    """

    own: Tensor
    replicas: Sequence[Tensor]
    round: int
    generator: torch.Generator


class Attack(Protocol):
    """A Byzantine node's lie: the vector that it publishes in place of its own model.

    ``poisons_data`` is true for attacks that train honestly on falsified data (``Task.flip_labels``); their
    ``lie`` returns ``view.own``.
    """

    @property
    def name(self) -> str:
        """The name it has in ``ATTACKS``."""
        ...

    @property
    def poisons_data(self) -> bool:
        """Whether the lie is in the training data."""
        ...

    def lie(self, view: AttackView) -> Tensor:
        """Return the vector (d,) to publish; the view's vectors are not written."""
        ...
