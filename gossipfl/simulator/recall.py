"""What rules remember from one round to the next, kept along a network's links."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gossipfl.robust.network import Published

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Rule
    from gossipfl.robust.network import Links, LinkVerdicts


class Recall:
    """Keeps, for rules that ask, what was published the round before and what the rule itself left of each link.

    In a ``static`` graph links are the same links. Where it changes, what is known of a pair of nodes is found by
    their numbers, and lies told along single links are not remembered as published.
    """

    def __init__(self, rule: Rule, replicas: Tensor, *, static: bool) -> None:
        self._numbers, self._nodes, self._static = rule.memory, len(replicas), static
        self._rows = replicas.clone() if "previous" in rule.needs else None
        self._models = replicas.clone() if "moved" in rule.needs else None
        self._published: Published | None = None
        self._memory: Tensor | None = None
        self._pairs: dict[int, Tensor] = {}

    def moved(self, models: Tensor) -> Tensor | None:
        """Return how far training has moved each of ``models`` (n, d) since the last mixing, (n,) float64."""
        return None if self._models is None else torch.linalg.vector_norm(models - self._models, dim=1).double()

    def previous(self, links: Links) -> Published | None:
        """Return what was published the round before, as it comes along ``links``."""
        if self._rows is None:
            return None
        if self._static and self._published is not None:
            return self._published
        return Published.replicas(self._rows[: self._nodes], links)

    def memory(self, links: Links) -> Tensor | None:
        """Return what the rule left of each of ``links``, (e, m), NaN where nothing."""
        if self._static or not self._numbers:
            return self._memory
        nothing = torch.full((self._numbers,), torch.nan, dtype=torch.float64)
        return torch.stack([self._pairs.get(pair, nothing) for pair in self._numbers_of(links)])

    def note(self, links: Links, published: Published, verdicts: LinkVerdicts, models: Tensor) -> None:
        """Remember a round that ended with ``models`` (n, d)."""
        if self._models is not None:
            self._models.copy_(models)
        if self._rows is not None:
            self._rows = published.rows.clone()
            self._published = Published(self._rows, published.sources)
        if verdicts.memory is None:
            return
        if self._static:
            self._memory = verdicts.memory
        else:
            self._pairs.update(zip(self._numbers_of(links), verdicts.memory, strict=True))

    def _numbers_of(self, links: Links) -> list[int]:
        numbers: list[int] = (links.receivers * self._nodes + links.senders).tolist()
        return numbers
