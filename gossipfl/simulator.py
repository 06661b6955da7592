"""The dense simulator: a whole network as matrices, and the oracle for the distributed agents.

With models X and public replicas X̂ (n, d), a codec C and a rule R, one synchronous round of all nodes i is

    X_i  <- train(X_i)
    X̂_i <- X̂_i + C(X_i - X̂_i)            a liar publishes its lie in place of X_i
    X_i  <- X_i + R(X̂_i, {X̂_j}) - X̂_i     a liar mixes around X_i, since its X̂_i is not its model

In synchronous rounds without faults every agent computes the same, up to the rounding of float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError
from gossipfl.robust.base import Attack, AttackView, Rule
from gossipfl.robust.network import Links, LinkVerdicts, mix_network
from gossipfl.topology.weights import metropolis

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.codec import Codec
    from gossipfl.tasks.base import Evaluation
    from gossipfl.tasks.fleet import Fleet
    from gossipfl.topology.graph import Topology

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Byzantine:
    """Which ``nodes`` are Byzantine and what their ``attack`` is.

    Each liar draws from a generator of its own, seeded from the run's ``seed``. Attacks that poison data publish
    honestly here: the fleet holds the falsified shards.
    """

    nodes: Collection[int] = frozenset()
    attack: Attack | None = None
    seed: int = 0
    _generators: dict[int, torch.Generator] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.nodes and self.attack is None:
            raise ConfigError(f"{len(self.nodes)} Byzantine nodes have no attack; name one")
        for node in sorted(self.nodes):
            if self.attack is not None and not self.attack.poisons_data:
                seed = derive_seed(self.seed, "attack", node)
                self._generators[node] = torch.Generator().manual_seed(seed)

    @property
    def liars(self) -> tuple[int, ...]:
        """The nodes that publish a lie, ascending."""
        return tuple(self._generators)

    def lie(self, node: int, own: Tensor, replicas: list[Tensor], round_: int) -> Tensor:
        """Return what the liar ``node`` publishes in place of its model ``own`` (d,)."""
        assert self.attack is not None
        return self.attack.lie(AttackView(own, replicas, round_, self._generators[node]))


@dataclass(frozen=True)
class Filtered:
    """How many neighbours each node accepted and rejected, by what they truly are; each (n,)."""

    accepted_honest: Counts
    accepted_byzantine: Counts
    rejected_honest: Counts
    rejected_byzantine: Counts


@dataclass(frozen=True)
class RoundReport:
    """One round of the whole network.

    ``losses`` (n,): mean training losses; ``verdicts``: one entry a directed link, in the order of
    ``Simulator.links``; ``payload_bytes`` (n,): size of each node's encoded delta, of which every neighbour gets a
    copy; ``diverged``: nodes that training made infinite or NaN and that went back to their public replica.
    ``train_s`` and ``round_s`` are wall seconds of the whole network, all nodes together.
    """

    round: int
    losses: NDArray[np.float64]
    verdicts: LinkVerdicts
    filtered: Filtered
    payload_bytes: Counts
    diverged: tuple[int, ...]
    train_s: float
    round_s: float


class Simulator:
    """Runs synchronous rounds of a network without faults.

    Args:
        topology: Who is whose neighbour; mixing weights are Metropolis.
        fleet: The learners; their models are the state X and must be equal at the start.
        rule: What every node filters and averages with.
        codec: What makes deltas small; replicas hold what receivers decode.
        byzantine: Who lies, and how.
        local_steps: Training steps of a node in a round.
        horizon: Number of rounds T where it is known.
        clock: Tells wall seconds for the report's times.
    """

    def __init__(
        self,
        topology: Topology,
        fleet: Fleet,
        rule: Rule,
        codec: Codec,
        *,
        byzantine: Byzantine | None = None,
        local_steps: int = 10,
        horizon: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.fleet = fleet
        self.replicas = fleet.vectors.clone()
        self.links = _links(topology)
        self.round = 0
        self._rule, self._codec = rule, codec
        self._byzantine = byzantine or Byzantine()
        self._local_steps, self._horizon, self._clock = local_steps, horizon, clock
        self._mixed = torch.empty_like(self.replicas)
        self._check(topology)

    @property
    def vectors(self) -> Tensor:
        """All models X, (n, d), live."""
        return self.fleet.vectors

    @property
    def honest(self) -> NDArray[np.int64]:
        """The honest nodes, ascending."""
        return np.flatnonzero(~self._is_byzantine())

    def step(self) -> RoundReport:
        """Carry out one round."""
        began = self._clock()
        losses = self.fleet.train(self._local_steps)
        diverged = self._mend_diverged()
        trained = self._clock()
        sizes = self._publish()
        verdicts = self._mix()
        self.round += 1
        return RoundReport(
            round=self.round - 1,
            losses=losses.numpy(),
            verdicts=verdicts,
            filtered=self._count(verdicts),
            payload_bytes=sizes,
            diverged=diverged,
            train_s=trained - began,
            round_s=self._clock() - began,
        )

    def evaluate(self) -> list[Evaluation]:
        """Measure every node's model on its held-out data."""
        return self.fleet.evaluate()

    def consensus_distance(self) -> float:
        """Return sqrt(mean_i ‖x_i - mean_j x_j‖²) over honest nodes."""
        models = self.vectors.numpy()[self.honest]
        centre = models.mean(axis=0, dtype=np.float64)
        return float(np.sqrt(np.mean([np.sum(np.square(model - centre)) for model in models])))

    def _check(self, topology: Topology) -> None:
        count = self.vectors.shape[0]
        if count != topology.nodes:
            raise ConfigError(f'topology "{topology.name}" has {topology.nodes} nodes for {count} learners; match them')
        if any(not 0 <= node < count for node in self._byzantine.nodes):
            raise ConfigError(f"Byzantine nodes {sorted(self._byzantine.nodes)} are not all among 0..{count - 1}")
        if not bool((self.vectors == self.vectors[0]).all()):
            raise ConfigError("the learners start from different models; make them all with one model seed")

    def _mend_diverged(self) -> tuple[int, ...]:
        """Put models that are not finite back to what they last published."""
        finite = torch.isfinite(torch.linalg.vector_norm(self.vectors, dim=1))
        diverged = torch.nonzero(~finite).flatten().tolist()
        for node in diverged:
            self.vectors[node] = self.replicas[node]
        return tuple(diverged)

    def _publish(self) -> Counts:
        """Move all public replicas; lies look at what was public before the round."""
        lies = {node: self._lie(node) for node in self._byzantine.liars}
        sizes = np.zeros(len(self.replicas), dtype=np.int64)
        difference = torch.empty_like(self.replicas[0])
        for node, (model, replica) in enumerate(zip(self.vectors, self.replicas, strict=True)):
            torch.sub(lies.get(node, model), replica, out=difference)
            encoded = self._codec.encode(difference)
            replica.add_(encoded.decoded)
            sizes[node] = len(encoded.payload)
        return sizes

    def _lie(self, node: int) -> Tensor:
        neighbours = [self.replicas[int(sender)] for sender in self.links.senders[self.links.of(node)]]
        return self._byzantine.lie(node, self.vectors[node], neighbours, self.round)

    def _mix(self) -> LinkVerdicts:
        own = self.replicas
        if self._byzantine.liars:
            liars = list(self._byzantine.liars)
            own = own.clone()
            own[liars] = self.vectors[liars]
        verdicts = mix_network(
            self._rule, own, self.replicas, self.links, self._mixed, round_=self.round, horizon=self._horizon
        )
        self._mixed -= own
        self.vectors.add_(self._mixed)
        return verdicts

    def _is_byzantine(self) -> NDArray[np.bool_]:
        mask = np.zeros(len(self.replicas), dtype=np.bool_)
        mask[sorted(self._byzantine.nodes)] = True
        return mask

    def _count(self, verdicts: LinkVerdicts) -> Filtered:
        lying = self._is_byzantine()[self.links.senders]

        def of(which: NDArray[np.bool_]) -> Counts:
            return np.bincount(self.links.receivers[which], minlength=self.links.nodes)

        yes = verdicts.accepted
        return Filtered(of(yes & ~lying), of(yes & lying), of(~yes & ~lying), of(~yes & lying))


def _links(topology: Topology) -> Links:
    weights = metropolis(topology)
    return Links(
        starts=np.concatenate(([0], np.cumsum(topology.degrees, dtype=np.int64))),
        senders=np.fromiter((j for i in range(topology.nodes) for j in topology.neighbours(i)), dtype=np.int64),
        weights=np.fromiter((weight for row in weights for weight in row), dtype=np.float64),
    )
