"""One node's rule at work: what it is told in each round, and what it remembers of each neighbour."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.base import KNOWN, Aggregate, MixContext, Rule

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.gossip.replica import Followed
    from gossipfl.identity import PeerId


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a node knows that a rule may ask for beside the vectors.

    ``horizon``: the number of rounds T, where known. ``byzantine``: who truly is Byzantine, in a study that tells.
    ``losses``: the loss of each of some models (d,) on data of the node's own.
    """

    horizon: int | None = None
    byzantine: Collection[PeerId] | None = None
    losses: Callable[[Sequence[Tensor]], Sequence[float]] | None = None


def check_needs(rule: Rule, knowledge: Knowledge) -> None:
    """Raise ConfigError where ``rule`` asks for what nobody here knows."""
    if getattr(rule, "f", None) == KNOWN and knowledge.byzantine is None:
        raise ConfigError(f'rule "{rule.name}": f = "{KNOWN}" is for studies that know who lies; give a number')
    if "losses" in rule.needs and knowledge.losses is None:
        raise ConfigError(f'rule "{rule.name}" judges models by their loss, which this task\'s learner cannot tell')


class Mixer:
    """Applies a rule round after round, from the ``initial`` model (d,) on.

    Raises ConfigError where the rule's needs are not met.
    """

    def __init__(self, rule: Rule, knowledge: Knowledge, initial: Tensor) -> None:
        check_needs(rule, knowledge)
        self._initial = initial.clone() if "previous" in rule.needs else None
        self._rule, self._knowledge = rule, knowledge
        self._memory: dict[PeerId, Tensor] = {}
        self._previous: dict[PeerId, Tensor] = {}
        self._model: Tensor | None = None
        self.start_from(initial)

    def state(self) -> dict[str, Tensor]:
        """Return copies of what is remembered, by name."""
        kept = {f"memory/{peer}": memory.clone() for peer, memory in self._memory.items()}
        kept |= {f"previous/{peer}": vector.clone() for peer, vector in self._previous.items()}
        return kept if self._model is None else {**kept, "start": self._model.clone()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what ``state`` returned."""
        parts = [(*name.partition("/")[::2], tensor) for name, tensor in tensors.items()]
        self._memory = {peer: tensor for kind, peer, tensor in parts if kind == "memory"}
        self._previous = {peer: tensor for kind, peer, tensor in parts if kind == "previous"}
        if self._previous:
            self._initial = None
        if "start" in tensors:
            self.start_from(tensors["start"])

    def keep_only(self, peers: Collection[PeerId]) -> None:
        """Forget all neighbours but ``peers``."""
        self._memory = {peer: kept for peer, kept in self._memory.items() if peer in peers}
        self._previous = {peer: kept for peer, kept in self._previous.items() if peer in peers}

    def start_from(self, model: Tensor) -> None:
        """Take note of the model (d,) that the coming round's training starts from."""
        if "moved" not in self._rule.needs:
            return
        if self._model is None:
            self._model = model.clone()
        else:
            self._model.copy_(model)

    def moved(self, model: Tensor) -> float | None:
        """Return how far training has moved ``model`` (d,), where the rule asks."""
        return None if self._model is None else float(torch.linalg.vector_norm(model - self._model))

    def mix(
        self,
        own: Tensor,
        chosen: Mapping[PeerId, Followed],
        freshness: Sequence[float],
        *,
        round_: int,
        moved: float | None,
        out: Tensor,
    ) -> Aggregate:
        """Write the rule's result for ``own`` (d,) and the replicas of ``chosen`` to ``out`` (d,)."""
        received = [other.vector for other in chosen.values() if other.vector is not None]
        context = MixContext(
            weights=[other.weight for other in chosen.values()],
            freshness=freshness,
            round=round_,
            horizon=self._knowledge.horizon,
            byzantine=self._byzantine(chosen),
            losses=self._knowledge.losses,
            moved=moved,
            previous=self._before(chosen, received),
            memory=self._remembered(chosen),
        )
        aggregate = self._rule(own, received, context, out=out)
        if aggregate.memory is not None:
            self._memory.update(zip(chosen, aggregate.memory, strict=True))
        return aggregate

    def _byzantine(self, chosen: Mapping[PeerId, Followed]) -> int | None:
        known = self._knowledge.byzantine
        return None if known is None else sum(peer in known for peer in chosen)

    def _before(self, chosen: Mapping[PeerId, Followed], received: Sequence[Tensor]) -> list[Tensor] | None:
        """Return what was received the last time, and keep a copy of what is now.

        Before the first time that was the initial model; who joins later has not moved.
        """
        if "previous" not in self._rule.needs:
            return None
        before = [
            self._previous.get(peer, vector if self._initial is None else self._initial)
            for peer, vector in zip(chosen, received, strict=True)
        ]
        self._initial = None
        self._previous |= {peer: vector.clone() for peer, vector in zip(chosen, received, strict=True)}
        return before

    def _remembered(self, chosen: Mapping[PeerId, Followed]) -> Tensor | None:
        if not self._rule.memory or not chosen:
            return None
        nothing = torch.full((self._rule.memory,), torch.nan, dtype=torch.float64)
        return torch.stack([self._memory.get(peer, nothing) for peer in chosen])
