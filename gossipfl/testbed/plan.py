"""What a run's spec means, worked out once: graph, members, data, who is Byzantine, and how a node is built."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, cast

from gossipfl.digest import derive_seed, digest
from gossipfl.errors import ConfigError, TopologyError
from gossipfl.settings import choose
from gossipfl.topology import Topology, is_sequence, make_sequence, make_topology
from gossipfl.topology.weights import metropolis

if TYPE_CHECKING:
    from gossipfl.agent import AgentOptions, Liar
    from gossipfl.config import RunSpec
    from gossipfl.gossip import GossipCore
    from gossipfl.identity import Identity, PeerId
    from gossipfl.membership import Membership
    from gossipfl.robust.base import Attack, Conspiracy, Rule
    from gossipfl.tasks.base import Learner, Shard, Task
    from gossipfl.testbed.saboteurs.base import Sabotage
    from gossipfl.topology import MixingSequence

FEDERATION = "testbed"


def node_name(node: int) -> str:
    """Return the name that records use for a node of a testbed."""
    return f"node-{node}"


def choose_byzantine(spec: RunSpec, topology: Topology) -> frozenset[int]:
    """Return which nodes are Byzantine: those that the spec lists, or as many as it says in places of its choice.

    A ``random`` placement is a seeded draw without replacement; raises ConfigError for a placement that is unknown.
    """
    placement, seed = spec.placement, derive_seed(spec.seed, "byzantine")
    if not isinstance(placement, str):
        return frozenset(placement)
    if placement == "random" or not spec.byzantine:
        return frozenset(random.Random(seed).sample(range(spec.nodes), spec.byzantine))
    from gossipfl.topology.analysis.placement import PLACEMENTS

    if placement not in PLACEMENTS:
        raise ConfigError(f'placement "{placement}" is unknown{choose(placement, PLACEMENTS)}; or list the nodes')
    return frozenset(PLACEMENTS[placement](topology, spec.byzantine, seed))


def build_topology(spec: RunSpec) -> Topology:
    """Return the graph of a run; of one that changes from round to round, all links that can ever be.

    Raises TopologyError where it cannot be made.
    """
    name, options = spec.topology.name, spec.topology.options
    if is_sequence(name):
        union = make_sequence(name, spec.nodes, options, spec.seed).union()
        return make_topology("complete", spec.nodes) if union is None else union
    return make_topology(name, spec.nodes, options, spec.seed)


def check_feasible(rule: Rule, topology: Topology) -> None:
    """Raise ConfigError where ``rule`` was given an f that its own condition does not allow at some node."""
    f = getattr(rule, "f", None)
    if not isinstance(f, int):
        return
    for node, degree in enumerate(topology.degrees):
        most = rule.most(degree)
        if most is not None and f > most:
            raise ConfigError(
                f'rule "{rule.name}": f = {f}, but node {node} has {degree} neighbours, which allow '
                f'{f"at most {most}" if most >= 0 else "no f at all"}; give less, or f = "known"'
            )


@dataclass(frozen=True)
class Plan:
    """One run, ready to be built node by node; whatever the nodes share is made once and inherited by forks."""

    spec: RunSpec

    @cached_property
    def topology(self) -> Topology:
        """The graph."""
        return build_topology(self.spec)

    @cached_property
    def sequence(self) -> MixingSequence | None:
        """The graph of each round, where it changes from round to round."""
        topology = self.spec.topology
        if not is_sequence(topology.name):
            return None
        return make_sequence(topology.name, self.spec.nodes, topology.options, self.spec.seed)

    @cached_property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """Metropolis weights, aligned with ``topology.neighbours``."""
        return metropolis(self.topology)

    @cached_property
    def byzantine(self) -> frozenset[int]:
        """The Byzantine nodes."""
        return choose_byzantine(self.spec, self.topology)

    @property
    def attack(self) -> Attack | Conspiracy | None:
        """What the Byzantine nodes publish; None also where they publish the truth and sabotage the protocol."""
        from gossipfl.testbed.saboteurs.base import Sabotage

        made = self._any_attack
        return None if isinstance(made, Sabotage) else made

    @property
    def sabotage(self) -> Sabotage | None:
        """What the Byzantine nodes do to the protocol, where their attack is of that kind."""
        from gossipfl.testbed.saboteurs.base import Sabotage

        made = self._any_attack
        return made if isinstance(made, Sabotage) else None

    @cached_property
    def _any_attack(self) -> Attack | Conspiracy | Sabotage | None:
        from gossipfl.testbed.saboteurs.registry import make_any_attack

        attack = self.spec.attack
        return None if attack.name is None else make_any_attack(attack.name, attack.options)

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
        from gossipfl.tasks.base import Poison

        shard, attack = self.shards[node], cast("object", self.attack)
        if node not in self.byzantine or not isinstance(attack, Poison):
            return shard
        return attack.poison(shard, self.task, derive_seed(self.spec.seed, "poison", node))

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
        from gossipfl.gossip import GossipCore, Knowledge, Party
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
            knowledge=Knowledge(
                horizon=spec.rounds,
                byzantine={self.identities[liar].peer_id for liar in self.byzantine},
                losses=getattr(learner, "losses", None),
            ),
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
        from gossipfl.robust.base import Attack

        assert isinstance(self.attack, Attack)
        return Liar(self.attack, torch.Generator().manual_seed(derive_seed(self.spec.seed, "attack", node)))

    def check(self) -> None:
        """Build everything that can be wrong, so that mistakes show before anything starts."""
        from gossipfl.codec import make_codec
        from gossipfl.robust.registry import make_rule

        rule = make_rule(self.spec.rule.name, self.spec.rule.options)
        if self.sequence is None:
            check_feasible(rule, self.topology)
        make_codec(self.spec.codec.name, self.spec.codec.options)
        _ = self.attack, self.sabotage, self.byzantine, self.shards

    @property
    def init_seeds(self) -> list[int] | None:
        """What each node draws its own first model from; None where all start from one."""
        if self.spec.train.init == "common":
            return None
        return [derive_seed(self.spec.seed, "init", node) for node in range(self.spec.nodes)]

    def check_agents(self) -> None:
        """Raise ConfigError or TopologyError for what only the simulator can play."""
        if self.sequence is not None:
            raise TopologyError(
                f'topology "{self.sequence.name}" is another graph in each round, which agents do not follow; '
                "use simulate"
            )
        if self.spec.averages:
            raise ConfigError("averages: no agent sees the models of others; use simulate")
        if self.init_seeds is not None:
            raise ConfigError('train.init = "own": agents start from one model, which they check; use simulate')
        if self.attack is not None and self.attack.omniscient:
            raise ConfigError(
                f'attack "{self.spec.attack.name}" sees all models and tells each neighbour another lie, '
                "which no agent can; use simulate"
            )

    def share(self) -> None:
        """Make now what every node needs of all the others, before forks would each make it anew."""
        _ = self.weights, self.byzantine, self.membership, self.node_of
