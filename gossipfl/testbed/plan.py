"""What a run's spec means, worked out once: graph, members, data, who is Byzantine, and how a node is built."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from gossipfl.digest import derive_seed, digest
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.weights import metropolis

if TYPE_CHECKING:
    from gossipfl.agent import AgentOptions, Liar
    from gossipfl.config import RunSpec
    from gossipfl.gossip import GossipCore
    from gossipfl.identity import Identity, PeerId
    from gossipfl.membership import Membership
    from gossipfl.robust.base import Attack
    from gossipfl.tasks.base import Learner, Shard, Task

FEDERATION = "testbed"


def node_name(node: int) -> str:
    """Return the name that records use for a node of a testbed."""
    return f"node-{node}"


def choose_byzantine(spec: RunSpec) -> frozenset[int]:
    """Return which nodes are Byzantine: a seeded draw without replacement."""
    generator = random.Random(derive_seed(spec.seed, "byzantine"))
    return frozenset(generator.sample(range(spec.nodes), spec.byzantine))


def build_topology(spec: RunSpec) -> Topology:
    """Return the graph of a run; raises TopologyError where it cannot be made."""
    return make_topology(spec.topology.name, spec.nodes, spec.topology.options, spec.seed)


@dataclass(frozen=True)
class Plan:
    """One run, ready to be built node by node; whatever the nodes share is made once and inherited by forks."""

    spec: RunSpec

    @cached_property
    def topology(self) -> Topology:
        """The graph."""
        return build_topology(self.spec)

    @cached_property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """Metropolis weights, aligned with ``topology.neighbours``."""
        return metropolis(self.topology)

    @cached_property
    def byzantine(self) -> frozenset[int]:
        """The Byzantine nodes."""
        return choose_byzantine(self.spec)

    @cached_property
    def attack(self) -> Attack | None:
        """What the Byzantine nodes do."""
        from gossipfl.robust.registry import make_attack

        attack = self.spec.attack
        return None if attack.name is None else make_attack(attack.name, attack.options)

    @cached_property
    def task(self) -> Task:
        """The task with its data loaded."""
        from gossipfl.tasks.registry import load_task

        return load_task(self.spec.task.name, self.spec.task.options)

    @cached_property
    def shards(self) -> Sequence[Shard]:
        """One shard per node."""
        spec = self.spec
        return self.task.shards(spec.nodes, spec.partition.partition(), derive_seed(spec.seed, "partition"))

    @cached_property
    def identities(self) -> tuple[Identity, ...]:
        """One key per node, derived from the seed: a testbed's keys protect nothing."""
        from gossipfl.identity import Identity

        seed = self.spec.seed
        return tuple(Identity.from_seed(digest(f"{seed}/identity/{node}".encode())) for node in range(self.spec.nodes))

    @cached_property
    def membership(self) -> Membership:
        """All nodes are members."""
        from gossipfl.membership import Membership

        names = {node_name(node): identity.peer_id for node, identity in enumerate(self.identities)}
        return Membership.from_ids(FEDERATION, names)

    @cached_property
    def node_of(self) -> dict[PeerId, int]:
        """Node number by peer id."""
        return {identity.peer_id: node for node, identity in enumerate(self.identities)}

    def peers(self, node: int) -> list[PeerId]:
        """Return the peer ids of a node's neighbours, in ascending order of node number."""
        return [self.identities[other].peer_id for other in self.topology.neighbours(node)]

    def shard(self, node: int) -> Shard:
        """Return what a node trains on: its shard, falsified where its attack poisons data."""
        shard = self.shards[node]
        poisoned = self.attack is not None and self.attack.poisons_data and node in self.byzantine
        return self.task.flip_labels(shard) if poisoned else shard

    def learner(self, node: int) -> Learner:
        """Return a node's learner."""
        spec = self.spec
        return self.task.learner(
            self.shard(node),
            spec.train.options(),
            model_seed=derive_seed(spec.seed, "model"),
            order_seed=derive_seed(spec.seed, "order", node),
        )

    def core(self, node: int, learner: Learner, incarnation: int = 1) -> GossipCore:
        """Return a node's protocol core around the initial model of its learner."""
        from gossipfl.codec import make_codec
        from gossipfl.gossip import GossipCore, Party
        from gossipfl.robust.registry import make_rule

        spec = self.spec
        party = Party(
            identity=self.identities[node],
            membership=self.membership,
            incarnation=incarnation,
            weights=dict(zip(self.peers(node), self.weights[node], strict=True)),
        )
        return GossipCore(
            party,
            learner.layout.digest,
            learner.vector.detach().cpu(),
            make_rule(spec.rule.name, spec.rule.options),
            make_codec(spec.codec.name, spec.codec.options),
            spec.gossip.settings(spec.mode),
            horizon=spec.rounds,
        )

    def options(self) -> AgentOptions:
        """Return how agents work in this run."""
        from gossipfl.agent import AgentOptions

        spec = self.spec
        return AgentOptions(
            local_steps=spec.train.local_steps,
            rounds=spec.rounds,
            evaluates=spec.evaluates,
            mode=spec.mode,
            join_timeout_s=spec.gossip.join_timeout_s,
            drain_s=spec.gossip.drain_s,
            leave_together=True,
            personalise_steps=spec.personalise_steps,
        )

    def liar(self, node: int) -> Liar | None:
        """Return what makes a node Byzantine, or None for an honest one."""
        if self.attack is None or node not in self.byzantine:
            return None
        import torch

        from gossipfl.agent import Liar

        return Liar(self.attack, torch.Generator().manual_seed(derive_seed(self.spec.seed, "attack", node)))

    def check(self) -> None:
        """Build everything that can be wrong, so that mistakes show before anything starts."""
        from gossipfl.codec import make_codec
        from gossipfl.robust.registry import make_rule

        make_rule(self.spec.rule.name, self.spec.rule.options)
        make_codec(self.spec.codec.name, self.spec.codec.options)
        _ = self.attack, self.topology, self.shards

    def share(self) -> None:
        """Make now what every node needs of all the others, before forks would each make it anew."""
        _ = self.weights, self.byzantine, self.membership, self.node_of
