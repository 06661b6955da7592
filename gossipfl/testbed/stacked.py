"""Many small networks simulated side by side, as one: arithmetic on few nodes costs mostly the calls.

Nodes of different networks have no links in common, and every draw comes from a generator of its own network or node,
so each network does what it would do alone, up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from gossipfl.digest import derive_seed, digest
from gossipfl.robust.registry import make_rule
from gossipfl.simulator import Byzantine, Simulator, Stack
from gossipfl.tasks.batched_fleet import BatchedFleet
from gossipfl.tasks.fleet import make_fleet, start_apart
from gossipfl.topology.graph import Topology

if TYPE_CHECKING:
    from gossipfl.config import RunSpec
    from gossipfl.simulator import RoundReport
    from gossipfl.testbed.plan import Plan

SHARED = ("task", "rule", "rounds", "mode", "codec", "train", "evaluate_every", "personalise_steps", "faults")
"""What networks must have in common to be simulated as one."""


def stack_key(spec: RunSpec) -> str:
    """Return what specs have in common that can be stacked."""
    return digest(spec.model_dump_json(include=set(SHARED)).encode()).hex()


class StackedRun:
    """Several networks as one simulator, and each one's part of what it reports."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        from gossipfl.codec import make_codec

        torch.set_num_threads(1)
        first = plans[0].spec
        sizes = [plan.spec.nodes for plan in plans]
        self._ends = list(accumulate(sizes, initial=0))
        shards = [plan.shard(node) for plan in plans for node in range(plan.spec.nodes)]
        self.fleet = make_fleet(
            plans[0].task,
            shards,
            first.train.options(),
            model_seed=derive_seed(first.seed, "model"),
            order_seeds=[derive_seed(p.spec.seed, "order", node) for p in plans for node in range(p.spec.nodes)],
        )
        for number, plan in enumerate(plans):
            self._start(number, plan)
        self.simulator = Simulator(
            _side_by_side([plan.topology for plan in plans]),
            self.fleet,
            make_rule(first.rule.name, first.rule.options),
            make_codec(first.codec.name, first.codec.options),
            byzantine=Stack([Byzantine(plan.byzantine, plan.attack, plan.spec.seed) for plan in plans], sizes),
            local_steps=first.train.local_steps,
            horizon=first.rounds,
        )

    def _start(self, number: int, plan: Plan) -> None:
        part = self.fleet.vectors[self.nodes(number)]
        part[:] = plan.learner(0).vector.detach().cpu()
        for row, seed in zip(part, plan.init_seeds or (), strict=False):
            start_apart(row, seed, plan.spec.train.init_scale)

    @property
    def batched(self) -> bool:
        """Whether the task's networks are computed many at once; if not, a stack gains little."""
        return isinstance(self.fleet, BatchedFleet)

    def nodes(self, number: int) -> slice:
        """Return the nodes of one network."""
        return slice(self._ends[number], self._ends[number + 1])

    def honest(self, number: int) -> NDArray[np.int64]:
        """Return the honest nodes of one network, by their numbers in the whole."""
        part, honest = self.nodes(number), self.simulator.honest
        chosen: NDArray[np.int64] = honest[(honest >= part.start) & (honest < part.stop)]
        return chosen

    def bytes_sent(self, number: int, report: RoundReport) -> float:
        """Return the payload bytes that a node of one network sent in a round, on average."""
        part, links = self.nodes(number), report.links
        span = slice(int(links.starts[part.start]), int(links.starts[part.stop]))
        return float(report.payload_bytes[links.senders[span]].sum() / (part.stop - part.start))


def _side_by_side(topologies: Sequence[Topology]) -> Topology:
    firsts = accumulate((topology.nodes for topology in topologies), initial=0)
    edges = [(f + i, f + j) for f, topology in zip(firsts, topologies, strict=False) for i, j in topology.edges]
    return Topology("side by side", sum(topology.nodes for topology in topologies), tuple(edges))
