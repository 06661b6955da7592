"""Conspiracies that try their lies on the very rule that defends the targets, and tell the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch

from gossipfl.robust.attacks import bounds
from gossipfl.robust.attacks.crowd import Crowd, by_all
from gossipfl.robust.attacks.rehearsal import Rehearsal

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import ConspiracyView

Direction = Literal["wrong", "apart"]

LEAST = 1e-6
"""The smallest radius that is searched, as a part of the largest."""

SCAN, SCAN_STEP = 6, 0.25
"""Radii that are tried first, and what each is of the next larger one."""


@dataclass(frozen=True, slots=True)
class Spectral:
    """Keep apart what the graph connects worst (Gaucher et al., ICML 2025).

        lie = x_i + c v_i (vᵀ X)        v the Fiedler vector of the honest graph, X the honest models (h, d)

    pushes target i further along the component that honest gossip damps most slowly. The scale c >= 0 of each target
    is searched with ``evaluations`` trials of the defence: doubled as long as the result gets further from what it is
    with c = 0, which for gossip is the honest step x_i + Σ_{honest j} W_ij (x_j - x_i), then halved in.
    """

    evaluations: int = 16
    name: ClassVar[str] = "spectral"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.whole(self.name, "evaluations", self.evaluations, 2)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        direction, rehearsal = _fiedler_part(view), Rehearsal(view)
        harmless = rehearsal.play(view.target).vector

        def harm(scale: Tensor) -> Tensor:
            away = rehearsal.play(_along(view, scale, direction)).vector - harmless
            squares: Tensor = torch.linalg.vecdot(away, away)
            return squares.double()

        scale = _maximise(harm, torch.empty_like(direction[..., 0], dtype=torch.float64), self.evaluations)
        return by_all(view, _along(view, scale, direction))


@dataclass(frozen=True, slots=True)
class ThresholdHugging:
    """The furthest lie that the defence still takes for honest, in the worst direction: adaptive, receiver by receiver.

        lie = x_i + closeness r_i u_i

    r_i is the largest radius at which the rule, among the target's honest neighbours, takes the lie unclipped from as
    many conspirators as it would if they said x_i itself: all, unless it is a rule that picks. It is found by
    ``evaluations`` trials of the rule itself, so that it fits any rule; one that accepts everything is told ``limit``
    times the target's scale, the larger of ‖x_i‖ and max_j ‖x_j - x_i‖.

    ``direction`` of u_i: ``wrong`` towards the negative of the honest nodes' mean model, so that all targets are drawn
    to one wrong model; ``apart`` away from the mean of the target's honest neighbours, against the step of honest
    gossip. The worst case for distance filters such as BALANCE, whose own adaptive attack is not known to us.
    """

    closeness: float = 0.99
    limit: float = 10.0
    direction: Direction = "wrong"
    evaluations: int = 16
    name: ClassVar[str] = "threshold-hugging"
    omniscient: ClassVar[bool] = True
    poisons_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.between(self.name, "closeness", self.closeness, 0, 1)
        bounds.positive(self.name, "limit", self.limit)
        bounds.choice(self.name, "direction", self.direction, get_args(Direction))
        bounds.whole(self.name, "evaluations", self.evaluations, SCAN + 2)

    def lies(self, view: ConspiracyView) -> Tensor:
        """Return the lies, (..., b, d)."""
        direction, rehearsal = self._direction(view), Rehearsal(view)
        welcome = rehearsal.taken(view.target).clamp_min(1)

        def accepts(radius: Tensor) -> Tensor:
            return rehearsal.taken(_along(view, radius, direction)) >= welcome

        radius = _furthest(accepts, self.limit * _scale(view), self.evaluations - 1)
        return by_all(view, _along(view, self.closeness * radius, direction))

    def _direction(self, view: ConspiracyView) -> Tensor:
        """Return u, (..., d); 0 where the model to go to, or to go away from, is the target's own."""
        if self.direction == "apart":
            steps = view.target - Crowd.around(view, target=False).mean
        else:
            steps = -view.everyone[view.is_honest].mean(0) - view.target
        return torch.nn.functional.normalize(steps, dim=-1, eps=torch.finfo(steps.dtype).tiny)


def _along(view: ConspiracyView, size: Tensor, direction: Tensor) -> Tensor:
    """Return x_i + size direction, (..., d), for sizes (...) and directions (..., d)."""
    return torch.addcmul(view.target, direction, size.to(direction.dtype).unsqueeze(-1))


def _fiedler_part(view: ConspiracyView) -> Tensor:
    """Return v_i (vᵀ X) of each target, (..., d)."""
    vectors = torch.linalg.eigh(view.laplacian.double()).eigenvectors
    honest = view.everyone[view.is_honest]
    fiedler = vectors[:, min(1, len(honest) - 1)].to(honest)
    number = view.is_honest.cumsum(0) - 1
    part: Tensor = fiedler[number[view.targets]].unsqueeze(-1) * (fiedler @ honest)
    return part


def _scale(view: ConspiracyView) -> Tensor:
    """Return the larger of ‖x_i‖ and max_j ‖x_j - x_i‖ over honest neighbours j, (...) float64."""
    crowd = Crowd.around(view, target=True)
    reach = torch.linalg.vector_norm(crowd.models - view.target.unsqueeze(-2), dim=-1)
    reach = torch.where(crowd.present, reach, 0.0).amax(-1)
    return torch.maximum(torch.linalg.vector_norm(view.target, dim=-1), reach).double()


def _furthest(accepts: Callable[[Tensor], Tensor], most: Tensor, evaluations: int) -> Tensor:
    """Return a radius in [LEAST most, most] that is accepted and can hardly be larger, (...).

    ``accepts`` maps radii (...) to booleans (...). ``SCAN`` steps down from ``most``, since what a rule that compares
    its neighbours accepts need not be one interval, are followed by bisection of the logarithm.
    """
    low, high = LEAST * most, most * SCAN_STEP ** (SCAN - 1)
    for step in reversed(range(SCAN)):
        radius = most * SCAN_STEP**step
        taken = accepts(radius)
        low = torch.where(taken, radius, low)
        high = torch.where(taken, (radius / SCAN_STEP).clamp_max(most), high)
    for _ in range(evaluations - SCAN):
        middle = (low * high).sqrt()
        taken = accepts(middle)
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    return low


def _maximise(harm: Callable[[Tensor], Tensor], like: Tensor, evaluations: int) -> Tensor:
    """Return x >= 0 (...) where ``harm``, 0 at 0, is large: steps double while it grows, then halve.

    ``harm`` maps x (...) to float64 (...); ``like`` has their shape.
    """
    best, most = torch.zeros_like(like), torch.zeros_like(like)
    step, growing = torch.ones_like(like), torch.ones_like(like, dtype=torch.bool)
    for _ in range(evaluations - 1):
        step = torch.where(growing, step, step / 2)
        trial = harm(best + step)
        better = trial > most
        growing &= better
        best, most = torch.where(better, best + step, best), torch.where(better, trial, most)
        step = torch.where(growing, 2 * step, step)
    return best
