"""Real agents over real libp2p links that lose, double and reorder frames end where they would on a perfect network."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from mosquitto import free_port

from gossipfl.agent import Agent
from gossipfl.compute import ThreadCompute
from gossipfl.config import RunSpec
from gossipfl.records import Event
from gossipfl.testbed.observe import NodeObserver
from gossipfl.testbed.plan import FEDERATION, Plan
from gossipfl.testbed.virtual import run_in_virtual_time
from gossipfl.transports.faults import FaultPlan, FaultyTransport
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.transport import Libp2pTransport

torch.set_num_threads(1)

NODES = 4
TERRIBLE = FaultPlan(drop=0.2, duplicate=0.1, reorder=0.1, delay_s=(0.0, 0.01))
DEADLINE_S = 100.0


def plan(mode: str) -> Plan:
    settings: dict[str, Any] = {
        "nodes": NODES,
        "topology": "ring",
        "transport": "memory",
        "rounds": 4,
        "seed": 3,
        "mode": mode,
        "train": {"local_steps": 3},
        "gossip": {"heartbeat_s": 0.3, "drain_s": 3.0},
    }
    return Plan(RunSpec.model_validate(settings))


async def over_libp2p(shared: Plan, ports: list[int]) -> list[Agent]:
    """Run all agents of a plan in this process, over links that are as bad as ``TERRIBLE``."""
    agents = []
    for node, identity in enumerate(shared.identities):
        others = shared.topology.neighbours(node)
        options = Libp2pOptions(
            federation=FEDERATION,
            listen=(f"/ip4/127.0.0.1/tcp/{ports[node]}",),
            addresses={shared.identities[o].peer_id: (f"/ip4/127.0.0.1/tcp/{ports[o]}",) for o in others},
        )
        learner = shared.learner(node)
        wire = FaultyTransport(Libp2pTransport(identity, shared.peers(node), options), TERRIBLE, seed=node)
        observer = NodeObserver(shared, node, lambda row: None, lambda event: None)
        compute = ThreadCompute(f"node-{node}", inline_short=True)
        agents.append(Agent(shared.core(node, learner), learner, wire, compute, shared.options(), observer))
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for agent in agents:
            tasks.create_task(agent.run())
    return agents


@pytest.mark.timeout(DEADLINE_S + 20)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_agents_end_and_agree(mode: str) -> None:
    shared = plan(mode)
    agents = asyncio.run(over_libp2p(shared, [free_port() for _ in range(NODES)]))
    assert all(agent.transport.counters.by_reason["fault: drop"] > 0 for agent in agents)
    for agent in agents:
        for peer, other in agent.core.followed.items():
            owner = agents[shared.node_of[peer]].core.exchange.own
            assert other.vector is not None
            assert torch.equal(other.vector, owner.vector)
    if mode == "sync":  # nothing depends on what was lost, only on the rounds
        events: list[Event] = []
        clean = run_in_virtual_time(plan(mode), lambda row: None, events.append)
        for agent, perfect in zip(agents, clean.agents, strict=True):
            assert torch.equal(agent.learner.vector, perfect.learner.vector)
