"""The rule and attack seams: functions of tensors, no wire, no clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gossipfl.robust.hood import Hood, Mixed

Need = Literal["f", "losses", "moved", "previous"]
"""What a rule must be told beside the vectors: a bound on the Byzantine neighbours, the loss of any model on the
node's own data, how far training has moved the node's model, or what the neighbours had published before."""

KNOWN = "known"
"""As a rule's ``f``: each node is told the true number of its Byzantine neighbours, as studies do."""


@dataclass(frozen=True, slots=True)
class MixContext:
    """What a rule may know beside the vectors.

    ``weights``: the mixing weight W_ij of each received vector (own weight is 1 - sum). ``freshness``: a factor in
    (0, 1] per received vector, 1 in synchronous rounds; weight that staleness takes away returns to the node itself.
    ``round`` counts from 0; ``horizon`` is the known number of rounds T, or None where a run never ends.

    The rest is for rules that ask for it: ``byzantine``, how many of the received are Byzantine (``f = "known"``);
    ``losses``, the loss of each of some models on data of the node's own; ``moved``, ‖own - the model before this
    round's training‖; ``previous``, what each neighbour's replica was the round before; ``memory`` (k, m), what the
    rule itself left in ``Aggregate.memory`` the round before, NaN for a neighbour that it has not met.
    """

    weights: Sequence[float]
    freshness: Sequence[float]
    round: int
    horizon: int | None = None
    byzantine: int | None = None
    losses: Callable[[Sequence[Tensor]], Sequence[float]] | None = None
    moved: float | None = None
    previous: Sequence[Tensor] | None = None
    memory: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule decided about one received vector; ``distance`` and ``threshold`` where the rule has them.

    ``scale`` below 1: the vector was drawn towards the own one, by so much, before it was averaged. ``reason`` says why
    a vector was rejected or clipped, where the rule has more than one. A rejected vector's ``distance`` may be a lower
    bound: a rule may stop measuring once the threshold is passed.
    """

    accepted: bool
    weight: float
    distance: float | None = None
    threshold: float | None = None
    scale: float = 1.0
    reason: str = ""

    def fields(self) -> dict[str, float | str | None]:
        """Return what an event tells of it beside whether it was accepted."""
        told: dict[str, float | str | None] = {"distance": self.distance, "threshold": self.threshold}
        if self.scale < 1:
            told["scale"] = self.scale
        if self.reason:
            told["reason"] = self.reason
        return told


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A rule's result: the mixed ``vector`` (d,), one verdict per received vector, and what it wants to remember."""

    vector: Tensor
    verdicts: tuple[Verdict, ...]
    memory: Tensor | None = None


class Rule(Protocol):
    """An aggregation rule.

    For one node ``own`` is (d,), ``received`` a sequence of k vectors (d,) (k may be 0: the result is then ``own``);
    ``mix`` is the same for many nodes at once. The inputs are never written.
    """

    @property
    def name(self) -> str:
        """The name that ``make_rule`` makes it by."""
        ...

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it must be told."""
        ...

    @property
    def memory(self) -> int:
        """How many numbers it remembers of each neighbour from round to round."""
        ...

    def most(self, neighbours: int) -> int | None:
        """Return the most Byzantine ones among so many neighbours that its condition allows; None: no condition."""
        ...

    def mix(self, hood: Hood) -> Mixed:
        """Mix the neighbourhoods of one or many nodes."""
        ...

    def __call__(
        self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor | None = None
    ) -> Aggregate:
        """Mix ``own`` with what was ``received``; ``out`` (d,) takes the result, and must not overlap an input."""
        ...


@dataclass(frozen=True, slots=True)
class AttackView:
    """All that a lone attacker may look at: its own honestly trained model and the public replicas it holds.

    ``own`` (d,); ``replicas``: what its neighbours had published when the round began; ``round`` from 0;
    ``generator``: the attacker's only source of randomness; ``initial`` (d,): the model that all nodes started from.
    """

    own: Tensor
    replicas: Sequence[Tensor]
    round: int
    generator: torch.Generator
    initial: Tensor | None = None


@runtime_checkable
class Attack(Protocol):
    """A Byzantine node's lie: the vector that it publishes, to all alike, in place of its own model.

    An attack that lies in its data, too or alone, is also a ``Poison``.
    """

    @property
    def name(self) -> str:
        """The name it has in ``ATTACKS``."""
        ...

    @property
    def omniscient(self) -> bool:
        """False: it sees what any agent sees."""
        ...

    @property
    def publishes_own(self) -> bool:
        """Whether ``lie`` returns the own model: the lie is in the training data alone."""
        ...

    def lie(self, view: AttackView) -> Tensor:
        """Return the vector (d,) to publish; the view's vectors are not written."""
        ...


@dataclass(frozen=True, slots=True)
class ConspiracyView:
    """All that conspirators who see the whole network may look at, for one honest target or many (dimensions ...).

    Of each target: ``target`` (..., d), its model after this round's training; ``honest`` (..., h, d), the models that
    its honest neighbours publish in this round, with mixing weights ``honest_weights`` (..., h); ``own`` (..., b, d),
    the honestly trained models of its Byzantine neighbours, with ``byzantine_weights`` (..., b). Rows beyond a
    target's number of neighbours are padding: ``honest_present`` (..., h) and ``byzantine_present`` (..., b) are False
    there, and weights 0. ``everyone`` (n, d): all models after training, honest where ``is_honest`` (n,);
    ``targets`` (...): the targets' numbers; ``senders`` (..., b): the Byzantine neighbours' numbers; ``laplacian``
    (h, h): of the honest part of the graph, weighted by W, over the honest nodes ascending. ``rule`` is the defence;
    ``losses`` judges models (..., c, d) by the targets' own data, ``moved`` (...) is how far training moved the
    targets, and ``memory`` (..., h + b, m) what the rule remembers of the honest, then of the Byzantine neighbours,
    where the rule is told so.
    """

    target: Tensor
    honest: Tensor
    honest_present: Tensor
    honest_weights: Tensor
    own: Tensor
    byzantine_present: Tensor
    byzantine_weights: Tensor
    everyone: Tensor
    is_honest: Tensor
    targets: Tensor
    senders: Tensor
    laplacian: Tensor
    rule: Rule
    round: int
    horizon: int | None
    generator: torch.Generator
    losses: Callable[[Tensor], Tensor] | None = None
    moved: Tensor | None = None
    memory: Tensor | None = None


@runtime_checkable
class Conspiracy(Protocol):
    """Byzantine nodes that see everything, know each other, and tell each neighbour another lie.

    No single public replica can carry that: only the dense simulator plays it.
    """

    @property
    def name(self) -> str:
        """The name it has in ``ATTACKS``."""
        ...

    @property
    def omniscient(self) -> bool:
        """True: only the simulator plays it."""
        ...

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return what each target's Byzantine neighbours tell it, (..., b, d); the view is not written."""
        ...
