"""What a defence would make of a lie, before the lie is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gossipfl.robust.hood import Hood

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import ConspiracyView
    from gossipfl.robust.hood import Mixed

UNCLIPPED = 1 - 1e-6
"""A scale from here on is no clipping."""


class Rehearsal:
    """Plays the rule of ``view`` at all its targets, among their honest neighbours and conspirators of one voice.

    The rule is told what the view knows: the true number of liars, the targets' losses, how far they moved, what the
    rule remembers. A rule that follows what each neighbour publishes meets them as if for the first time, and as if
    none of them had moved: what a liar published before went along single links, and no view holds it.
    """

    def __init__(self, view: ConspiracyView) -> None:
        present = torch.cat([view.honest_present, view.byzantine_present], -1)
        heard = torch.cat([view.honest, view.own], -2)
        own = view.target.unsqueeze(-2)
        self._received = torch.where(present.unsqueeze(-1), heard, own)
        self._lying = view.byzantine_present
        self._honest = view.honest.shape[-2]
        weights = torch.cat([view.honest_weights, view.byzantine_weights], -1)
        self._rule = view.rule
        follows = "previous" in view.rule.needs
        self._hood = Hood(
            own=view.target,
            received=self._received,
            present=present,
            weights=torch.where(present, weights, 0.0),
            freshness=torch.ones_like(weights),
            round=view.round,
            horizon=view.horizon,
            byzantine=view.byzantine_present.sum(-1),
            losses=view.losses,
            moved=view.moved,
            previous=self._received if follows else None,
            memory=None if follows else view.memory,
        )

    def play(self, lie: Tensor) -> Mixed:
        """Return what the rule makes of one lie per target (..., d)."""
        spoken = torch.where(self._lying.unsqueeze(-1), lie.unsqueeze(-2), self._hood.own.unsqueeze(-2))
        self._received[..., self._honest :, :] = spoken
        return self._rule.mix(self._hood)

    def taken(self, lie: Tensor) -> Tensor:
        """Return from how many conspirators the rule takes one lie per target (..., d), unclipped, (...)."""
        mixed = self.play(lie)
        taken = mixed.accepted if mixed.scale is None else mixed.accepted & (mixed.scale >= UNCLIPPED)
        return (taken[..., self._honest :] & self._lying).sum(-1)
