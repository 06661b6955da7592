"""BALANCE: average only with neighbours that are near one's own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.base import Aggregate, MixContext, Need, Verdict
from gossipfl.robust.hood import Mixed, finite_part
from gossipfl.robust.sweep import filtered_mean

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.hood import Hood


@dataclass(frozen=True, slots=True)
class Balance:
    """BALANCE (Fang et al., CCS 2024, arXiv 2406.10416): distance filter around one's own model, then mean.

        S   = {j : ‖own - x_j‖ <= γ exp(-κ λ(t)) ‖own‖}
        out = α own + (1 - α) mean_{j in S} x_j,    own where S is empty

    With freshness f_j < 1 a neighbour's pull shrinks and the rest stays with the node:
    out = own + (1 - α)/|S| Σ_{j in S} f_j (x_j - own), the same for f_j = 1. The rule assumes that all nodes start
    from one model; independent starts lie further apart than the threshold.

    ``λ(t) = t/T`` grows from 0 to 1 over the horizon T. Where no horizon is known, as in a daemon that never ends,
    ``λ(t) = 1 - exp(-t/τ)`` with τ = ``horizonless`` rounds: it has the slope of a run of T = τ rounds at the
    start, then bends and tends to 1, so that the threshold closes like the paper's and rests at its final value.
    """

    gamma: float = 0.3
    kappa: float = 1.0
    alpha: float = 0.5
    horizonless: float = 1000.0
    name: ClassVar[str] = "balance"
    needs: ClassVar[tuple[Need, ...]] = ()
    memory: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for option, value, allowed, needs in (
            ("gamma", self.gamma, self.gamma > 0, "greater than 0"),
            ("kappa", self.kappa, self.kappa >= 0, "0 or greater"),
            ("alpha", self.alpha, 0 <= self.alpha <= 1, "between 0 and 1"),
            ("horizonless", self.horizonless, self.horizonless > 0, "greater than 0"),
        ):
            if not (allowed and isfinite(value)):
                raise ConfigError(f'rule "balance": {option} = {value} must be {needs}')

    def most(self, neighbours: int) -> int | None:
        """Return None: whom it accepts depends on distances, not on numbers."""
        del neighbours
        return None

    def mix(self, hood: Hood) -> Mixed:
        """Mix many nodes at once."""
        differences, counts = finite_part(hood)
        distances = torch.linalg.vector_norm(differences, dim=-1).double()
        limit = self.radius(hood.round, hood.horizon) * torch.linalg.vector_norm(hood.own, dim=-1).double()
        near = counts & (distances <= limit.unsqueeze(-1))
        weights = near * hood.freshness * ((1.0 - self.alpha) / near.sum(-1, keepdim=True).clamp_min(1))
        steps = (weights.to(hood.own.dtype).unsqueeze(-2) @ differences).squeeze(-2)
        distances = torch.where(counts, distances, torch.inf)
        return Mixed(hood.own + steps, near, weights, distances, limit.unsqueeze(-1).expand(near.shape))

    def __call__(
        self, own: Tensor, received: Sequence[Tensor], context: MixContext, out: Tensor | None = None
    ) -> Aggregate:
        """Return the mean of the near ones, with each one's distance (of the rejected: a lower bound)."""
        if len(context.freshness) != len(received):
            raise ValueError(f"{len(received)} vectors with {len(context.freshness)} freshness factors")
        vector = torch.empty_like(own) if out is None else out
        radius, pull = self.radius(context.round, context.horizon), 1.0 - self.alpha
        sweep = filtered_mean(own, received, context.freshness, radius=radius, pull=pull, out=vector)
        weights = [0.0] * len(received)
        for j in sweep.accepted:
            weights[j] = pull * context.freshness[j] / len(sweep.accepted)
        near = frozenset(sweep.accepted)
        verdicts = tuple(
            Verdict(j in near, weight, distance, sweep.threshold)
            for j, (weight, distance) in enumerate(zip(weights, sweep.distances, strict=True))
        )
        return Aggregate(vector, verdicts)

    def radius(self, round_: int, horizon: int | None) -> float:
        """Return γ exp(-κ λ(t)), the threshold in units of the node's own norm, at round ``round_``."""
        if horizon is None:
            progress = 1.0 - exp(-round_ / self.horizonless)
        else:
            progress = min(round_ / horizon, 1.0) if horizon > 0 else 0.0
        return self.gamma * exp(-self.kappa * progress)
