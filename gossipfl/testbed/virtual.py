"""All agents of a run in one process, in virtual time: as fast as its arithmetic, and the same every time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gossipfl.agent import Agent, AgentResult
from gossipfl.clock import run_virtual
from gossipfl.compute import VirtualCompute
from gossipfl.digest import derive_seed
from gossipfl.testbed.observe import NodeObserver
from gossipfl.testbed.saboteurs.seat import sabotaged
from gossipfl.transports.base import Transport
from gossipfl.transports.faults import Crash, FaultPlan, FaultyTransport, Partition
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from gossipfl.records import Event, NodeRound
    from gossipfl.testbed.plan import Plan


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """A finished run with its agents still at hand, for tests and for measuring consensus."""

    agents: tuple[Agent, ...]
    results: tuple[AgentResult, ...]


def fault_plan(plan: Plan) -> FaultPlan:
    """Return the spec's faults with peer ids in place of node numbers; nodes in no group form one more."""
    faults = plan.spec.faults
    if faults is None:
        return FaultPlan()
    peer_of = [identity.peer_id for identity in plan.identities]
    return FaultPlan(
        drop=faults.drop,
        duplicate=faults.duplicate,
        reorder=faults.reorder,
        corrupt=faults.corrupt,
        delay_s=faults.delay_s,
        partitions=tuple(
            Partition(cut.start_s, cut.end_s, tuple(frozenset(peer_of[node] for node in group) for group in cut.groups))
            for cut in faults.partitions
        ),
        crashes=tuple(
            Crash(peer_of[crash.node], crash.start_s, float("inf") if crash.end_s is None else crash.end_s)
            for crash in faults.crashes
        ),
    )


def run_in_virtual_time(
    plan: Plan, keep_row: Callable[[NodeRound], None], keep_event: Callable[[Event], None]
) -> VirtualRun:
    """Run all agents of ``plan`` over the memory transport; the same plan gives the same run, event for event."""

    async def run() -> VirtualRun:
        network = MemoryNetwork()
        faults = fault_plan(plan)
        agents = tuple(_agent(plan, node, network, faults, keep_row, keep_event) for node in range(plan.spec.nodes))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(agent.run(), name=f"node-{node}") for node, agent in enumerate(agents)]
        return VirtualRun(agents, tuple(task.result() for task in running))

    return run_virtual(run())


def _agent(
    plan: Plan,
    node: int,
    network: MemoryNetwork,
    faults: FaultPlan,
    keep_row: Callable[[NodeRound], None],
    keep_event: Callable[[Event], None],
) -> Agent:
    learner = plan.learner(node)
    transport: Transport = MemoryTransport(network, plan.identities[node].peer_id, plan.peers(node))
    if faults != FaultPlan():
        transport = FaultyTransport(transport, faults, derive_seed(plan.spec.seed, "faults"), origin_s=0.0)
    core = plan.core(node, learner)
    return Agent(
        core,
        learner,
        sabotaged(plan, node, core, transport),
        VirtualCompute(_duration(plan, node)),
        plan.options(),
        NodeObserver(plan, node, keep_row, keep_event),
        plan.liar(node),
    )


def _duration(plan: Plan, node: int) -> Callable[[], float]:
    """Return a node's training time: its own speed within ``spread``, and a tenth of jitter."""
    spec = plan.spec
    generator = random.Random(derive_seed(spec.seed, "speed", node))
    base_s = spec.gossip.step_s * spec.train.local_steps * generator.uniform(1.0, spec.gossip.spread)
    return lambda: base_s * generator.uniform(0.95, 1.05)
