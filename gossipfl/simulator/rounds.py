"""One synchronous round of a whole network.

With models X and public replicas X̂ (n, d), a codec C and a rule R, all nodes i do

    X_i  <- train(X_i)
    X̂_i <- X̂_i + C(X_i - X̂_i)            a lone liar publishes its lie in place of X_i
    X_i  <- X_i + R(X̂_i, {X̂_j}) - X̂_i     a lone liar mixes around X_i, since its X̂_i is not its model

Conspirators publish honestly and replace what each honest neighbour hears from them by a lie for that neighbour alone.
In synchronous rounds without faults every agent computes the same, up to the rounding of float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gossipfl.codec import Float32, settle
from gossipfl.errors import ConfigError
from gossipfl.robust.network import Links, LinkVerdicts, Published, Told, mix_network
from gossipfl.simulator.byzantine import Byzantine, Conspirators
from gossipfl.simulator.graphs import Graphs
from gossipfl.simulator.recall import Recall

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.codec import Codec
    from gossipfl.robust.base import Rule
    from gossipfl.tasks.base import Evaluation
    from gossipfl.tasks.fleet import Fleet
    from gossipfl.topology import MixingSequence, Topology

Counts = NDArray[np.int64]


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

    ``losses`` (n,): mean training losses; ``links``: who heard whom; ``verdicts``: one entry a link; ``payload_bytes``
    (n,): size of each node's encoded delta, of which every neighbour gets a copy; ``diverged``: nodes that training
    made infinite or NaN and that went back to their public replica. ``train_s`` and ``round_s`` are wall seconds of
    the whole network, all nodes together.
    """

    round: int
    losses: NDArray[np.float64]
    links: Links
    verdicts: LinkVerdicts
    filtered: Filtered
    payload_bytes: Counts
    diverged: tuple[int, ...]
    train_s: float
    round_s: float


class Simulator:
    """Runs synchronous rounds of a network without faults.

    Args:
        graph: Who is whose neighbour, with Metropolis weights; or a graph that changes and brings its weights.
        fleet: The learners; their models are the state X.
        rule: What every node filters and averages with.
        codec: What makes deltas small; replicas hold what receivers decode.
        byzantine: Who lies, and how.
        local_steps: Training steps of a node in a round.
        horizon: Number of rounds T where it is known.
        measures: What else to measure of models (n, d) when they are evaluated: named numbers of each.
        clock: Tells wall seconds for the report's times.
    """

    def __init__(
        self,
        graph: Topology | MixingSequence,
        fleet: Fleet,
        rule: Rule,
        codec: Codec,
        *,
        byzantine: Byzantine | None = None,
        local_steps: int = 10,
        horizon: int | None = None,
        measures: Mapping[str, Callable[[Tensor], Sequence[float]]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.fleet = fleet
        self.replicas = fleet.vectors.clone()
        self.round = 0
        self._graphs = Graphs(graph)
        self._rule, self._codec = rule, codec
        self._byzantine = byzantine or Byzantine()
        self._measures = measures or {}
        self._local_steps, self._horizon, self._clock = local_steps, horizon, clock
        self._check()
        self._initial = {node: fleet.vectors[node].clone() for node in self._byzantine.liars}
        self._mixed = torch.empty_like(self.replicas)
        self._is_byzantine = self._byzantine.mask(len(self.replicas))
        self._recall = Recall(rule, self.replicas, static=self._graphs.static)
        self._generator = self._byzantine.generator()
        self._conspirators: Conspirators | None = None

    @property
    def vectors(self) -> Tensor:
        """All models X, (n, d), live."""
        return self.fleet.vectors

    @property
    def links(self) -> Links:
        """The links of the round to come."""
        return self._graphs.links(self.round)

    @property
    def honest(self) -> NDArray[np.int64]:
        """The honest nodes, ascending."""
        return np.flatnonzero(~self._is_byzantine)

    def step(self) -> RoundReport:
        """Carry out one round."""
        began = self._clock()
        losses = self.fleet.train(self._local_steps)
        diverged = self._mend_diverged()
        trained = self._clock()
        links = self.links
        sizes = self._publish(links)
        verdicts = self._mix(links)
        self.round += 1
        return RoundReport(
            round=self.round - 1,
            losses=losses.numpy(),
            links=links,
            verdicts=verdicts,
            filtered=self._count(links, verdicts),
            payload_bytes=sizes,
            diverged=diverged,
            train_s=trained - began,
            round_s=self._clock() - began,
        )

    def evaluate(self) -> list[Evaluation]:
        """Measure every node's model on its held-out data."""
        evaluations = self.fleet.evaluate()
        for name, measure in self._measures.items():
            numbers = measure(self.vectors)
            evaluations = [
                replace(evaluation, metrics={**evaluation.metrics, name: number})
                for evaluation, number in zip(evaluations, numbers, strict=True)
            ]
        return evaluations

    def evaluate_average(self, among: NDArray[np.int64] | None = None) -> Evaluation | None:
        """Measure the average of the honest nodes' models, or of those of one's choice; None without a common test."""
        if not self.fleet.common_test:
            return None
        models = self.vectors[torch.from_numpy(self.honest if among is None else among)]
        return self.fleet.evaluate_vectors(models.mean(0, keepdim=True))[0]

    def consensus_distance(self, among: NDArray[np.int64] | None = None) -> float:
        """Return sqrt(mean_i ‖x_i - mean_j x_j‖²) over honest nodes, or over nodes of one's choice."""
        models = self.vectors[torch.from_numpy(self.honest if among is None else among)]
        away = models - models.mean(0, dtype=torch.float64).to(models.dtype)
        return float(torch.linalg.vecdot(away, away).double().mean().sqrt())

    def _check(self) -> None:
        count, graphs = len(self.vectors), self._graphs
        if count != graphs.nodes:
            raise ConfigError(f'topology "{graphs.name}" has {graphs.nodes} nodes for {count} learners; match them')
        self._byzantine.check(count)

    def _mend_diverged(self) -> tuple[int, ...]:
        """Put models that are not finite back to what they last published."""
        finite = torch.isfinite(torch.linalg.vector_norm(self.vectors, dim=1))
        if bool(finite.all()):
            return ()
        diverged = torch.nonzero(~finite).flatten().tolist()
        for node in diverged:
            self.vectors[node] = self.replicas[node]
        return tuple(diverged)

    # ------------------------------------------------------------------------------------------ publishing

    def _publish(self, links: Links) -> Counts:
        """Move all public replicas; lies look at what was public before the round."""
        lies = {node: self._lie(node, links) for node in self._byzantine.liars}
        if isinstance(self._codec, Float32):
            return self._publish_dense(lies)
        sizes = np.zeros(len(self.replicas), dtype=np.int64)
        difference = torch.empty_like(self.replicas[0])
        for node, (model, replica) in enumerate(zip(self.vectors, self.replicas, strict=True)):
            torch.sub(lies.get(node, model), replica, out=difference)
            encoded = self._codec.encode(difference.cpu())
            replica.add_(encoded.decoded.to(replica.device))
            sizes[node] = len(encoded.payload)
        return sizes

    def _publish_dense(self, lies: dict[int, Tensor]) -> Counts:
        """Do for all nodes at once what ``Float32`` does for one: the same bits, without making bytes of them."""
        spoken = self.vectors
        if lies:
            spoken = spoken.clone()
            for node, lie in lies.items():
                spoken[node] = lie
        deltas = spoken - self.replicas
        if not bool(torch.isfinite(deltas).all()):
            raise ValueError("a delta holds values that are not finite")
        self.replicas += settle(deltas)
        return np.full(len(self.replicas), self._codec.max_bytes(deltas.shape[1]), dtype=np.int64)

    def _lie(self, node: int, links: Links) -> Tensor:
        neighbours = [self.replicas[int(sender)] for sender in links.senders[links.of(node)]]
        return self._byzantine.lie(node, self.vectors[node], neighbours, self.round, self._initial[node])

    # ------------------------------------------------------------------------------------------ mixing

    def _mix(self, links: Links) -> LinkVerdicts:
        own = self.replicas
        if self._byzantine.liars:
            liars = list(self._byzantine.liars)
            own = own.clone()
            own[liars] = self.vectors[liars]
        told = self._told(links)
        published = self._published(links, told)
        verdicts = mix_network(self._rule, own, published, links, self._mixed, told)
        self._mixed -= own
        self.vectors.add_(self._mixed)
        self._recall.note(links, published, verdicts, self.vectors)
        return verdicts

    def _published(self, links: Links, told: Told) -> Published:
        if self._byzantine.conspiracy is None or not self._byzantine.nodes:
            return Published.replicas(self.replicas, links)
        if self._conspirators is None or self._conspirators.links is not links:
            self._conspirators = Conspirators(self._byzantine, links, self._generator)
        return self._conspirators.published(self.vectors, self.replicas, self._rule, told)

    def _told(self, links: Links) -> Told:
        needs = self._rule.needs
        lying = self._is_byzantine[links.senders]
        return Told(
            round=self.round,
            horizon=self._horizon,
            byzantine=np.bincount(links.receivers[lying], minlength=links.nodes) if "f" in needs else None,
            losses=self.fleet.losses if "losses" in needs else None,
            moved=self._recall.moved(self.vectors),
            previous=self._recall.previous(links),
            memory=self._recall.memory(links),
        )

    def _count(self, links: Links, verdicts: LinkVerdicts) -> Filtered:
        lying = self._is_byzantine[links.senders]

        def of(which: NDArray[np.bool_]) -> Counts:
            return np.bincount(links.receivers[which], minlength=links.nodes)

        yes = verdicts.accepted
        return Filtered(of(yes & ~lying), of(yes & lying), of(~yes & ~lying), of(~yes & lying))
