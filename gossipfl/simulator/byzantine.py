"""Who lies in a simulated network, and what the liars may see."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gossipfl.codec import MAX_MAGNITUDE
from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError
from gossipfl.robust.base import Attack, AttackView, Conspiracy, ConspiracyView
from gossipfl.robust.network import Published

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.robust.base import Rule
    from gossipfl.robust.network import Integers, Links, Told


@dataclass(frozen=True)
class Byzantine:
    """Which ``nodes`` are Byzantine and what their ``attack`` is.

    A lone liar draws from a generator of its own, conspirators from one that they share, seeded from the run's
    ``seed``. Attacks that poison data publish honestly here: the fleet holds the falsified shards.
    """

    nodes: Collection[int] = frozenset()
    attack: Attack | Conspiracy | None = None
    seed: int = 0
    _lone: Attack | None = field(init=False, repr=False, default=None)
    _generators: dict[int, torch.Generator] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.nodes and self.attack is None:
            raise ConfigError(f"{len(self.nodes)} Byzantine nodes have no attack; name one")
        if not isinstance(self.attack, Attack):
            return
        object.__setattr__(self, "_lone", self.attack)  # asking what a protocol is takes longer than most lies
        if self.attack.publishes_own:
            return
        for node in sorted(self.nodes):
            seed = derive_seed(self.seed, "attack", node)
            self._generators[node] = torch.Generator().manual_seed(seed)

    @property
    def conspiracy(self) -> Conspiracy | None:
        """The attack, where the attackers see everything and act together."""
        return self.attack if isinstance(self.attack, Conspiracy) else None

    def generator(self) -> torch.Generator:
        """Return a new generator for conspirators."""
        return torch.Generator().manual_seed(derive_seed(self.seed, "attack"))

    @property
    def liars(self) -> tuple[int, ...]:
        """The nodes that publish a lie to all alike, ascending."""
        return tuple(self._generators)

    def lie(self, node: int, own: Tensor, replicas: list[Tensor], round_: int, initial: Tensor) -> Tensor:
        """Return what the liar ``node`` publishes in place of its model ``own`` (d,)."""
        attack = self._lone
        assert attack is not None
        return attack.lie(AttackView(own, replicas, round_, self._generators[node], initial))

    def mask(self, nodes: int) -> NDArray[np.bool_]:
        """Return who is Byzantine, (n,)."""
        mask = np.zeros(nodes, dtype=np.bool_)
        mask[sorted(self.nodes)] = True
        return mask

    def check(self, count: int) -> None:
        """Raise ConfigError where a Byzantine node is none of ``count``."""
        if any(not 0 <= node < count for node in self.nodes):
            raise ConfigError(f"Byzantine nodes {sorted(self.nodes)} are not all among 0..{count - 1}")


class Conspirators:
    """Plays a conspiracy along the links of one graph: everything that does not change from round to round is ready."""

    def __init__(self, byzantine: Byzantine, links: Links, generator: torch.Generator) -> None:
        assert byzantine.conspiracy is not None
        self._conspiracy, self._generator = byzantine.conspiracy, generator
        self.links = links
        self._is_byzantine = byzantine.mask(links.nodes)
        lying = self._is_byzantine[links.senders]
        told = np.bincount(links.receivers[lying], minlength=links.nodes)
        self._targets = np.flatnonzero((told > 0) & ~self._is_byzantine)
        self._honest, self._honest_there = _pick(links, self._targets, ~lying)
        self._lied, self._lied_there = _pick(links, self._targets, lying)
        self._heard = torch.from_numpy(np.concatenate([self._honest, self._lied], axis=1))
        self._laplacian = _laplacian(links, ~self._is_byzantine)

    def published(self, models: Tensor, replicas: Tensor, rule: Rule, told: Told) -> Published:
        """Return what travels along the links: replicas (n, d), and finite lies in their place where one is told.

        ``models`` (n, d) are those after training.
        """
        links, is_byzantine = self.links, torch.from_numpy(self._is_byzantine)
        targets, senders = torch.from_numpy(self._targets), torch.from_numpy(links.senders[self._lied])
        lied_there = torch.from_numpy(self._lied_there)
        view = ConspiracyView(
            target=replicas[targets],
            honest=replicas[torch.from_numpy(links.senders[self._honest])],
            honest_present=torch.from_numpy(self._honest_there),
            honest_weights=torch.from_numpy(np.where(self._honest_there, links.weights[self._honest], 0.0)),
            own=models[senders],
            byzantine_present=lied_there,
            byzantine_weights=torch.from_numpy(np.where(self._lied_there, links.weights[self._lied], 0.0)),
            everyone=torch.where(is_byzantine.unsqueeze(-1), models, replicas),
            is_honest=~is_byzantine,
            targets=targets,
            senders=senders,
            laplacian=self._laplacian,
            rule=rule,
            round=told.round,
            horizon=told.horizon,
            generator=self._generator,
            losses=self._losses(told),
            moved=None if told.moved is None else told.moved[targets],
            memory=None if told.memory is None else told.memory[self._heard],
        )
        lies = self._conspiracy.lies(view)[lied_there]
        # What no codec could carry no attacker can send.
        lies = torch.nan_to_num(lies, nan=0.0).clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE)
        return Published.with_lies(replicas, links, self._lied[self._lied_there], lies)

    def _losses(self, told: Told) -> Callable[[Tensor], Tensor] | None:
        judge, nodes = told.losses, torch.from_numpy(self._targets)
        if judge is None:
            return None

        def losses(candidates: Tensor) -> Tensor:
            each = nodes.unsqueeze(-1).expand(candidates.shape[:-1])
            return judge(candidates.flatten(0, -2), each.flatten()).view(candidates.shape[:-1])

        return losses


def _pick(links: Links, targets: Integers, wanted: NDArray[np.bool_]) -> tuple[Integers, NDArray[np.bool_]]:
    """Return the ``wanted`` (e,) links to each target, (t, k), and which of them are there; padding repeats a link."""
    rows = [np.flatnonzero(wanted[links.of(int(node))]) + links.starts[node] for node in targets]
    width = max((len(row) for row in rows), default=0)
    there = np.array([np.arange(width) < len(row) for row in rows], dtype=np.bool_).reshape(len(rows), width)
    places = np.zeros(there.shape, dtype=np.int64)
    for place, row in zip(places, rows, strict=True):
        place[: len(row)] = row
    return places, there


def _laplacian(links: Links, honest: NDArray[np.bool_]) -> Tensor:
    """Return D - W of the honest part of the graph, W made symmetric, (h, h) float64."""
    number = np.cumsum(honest) - 1
    inside = honest[links.receivers] & honest[links.senders]
    weights = np.zeros((int(honest.sum()),) * 2)
    weights[number[links.receivers[inside]], number[links.senders[inside]]] = links.weights[inside]
    weights = (weights + weights.T) / 2
    return torch.from_numpy(np.diag(weights.sum(1)) - weights)
