"""A run of the dense simulator, with the records of every other run."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gossipfl.digest import derive_seed, vector_digest
from gossipfl.errors import ConfigError
from gossipfl.records import Event, NodeRound
from gossipfl.summary import RunFacts, summarise
from gossipfl.testbed.plan import Plan, node_name

if TYPE_CHECKING:
    from gossipfl.config import RunSpec
    from gossipfl.records import Progress, RunRecords
    from gossipfl.simulator import RoundReport, Simulator
    from gossipfl.tasks.base import Evaluation

VERDICT_LINES = 100_000
"""Runs with more verdicts than this only count them, link by link."""


def run_simulation(spec: RunSpec, records: RunRecords, progress: Progress) -> dict[str, Any]:
    """Simulate the network that ``spec`` describes and return its summary; records are written as it goes.

    A row's ``round_s`` is the round of the whole network, its ``train_s`` the node's equal share of all training,
    and its bytes are encoded deltas, one copy a neighbour, without the frames that a wire would add. Raises
    ConfigError for what only a wire has: faults and asynchronous rounds.
    """
    if spec.mode != "sync":
        raise ConfigError("mode async: the simulator knows sync rounds only; use testbed run --transport memory")
    if spec.faults is not None:
        raise ConfigError("faults: the simulator has no wire; use testbed run --transport memory")
    plan = Plan(spec)
    records.write_topology(plan.topology)
    plan.check()
    simulation = Simulation(plan, make_simulator(plan), records, progress)
    try:
        simulation.run()
    except KeyboardInterrupt:
        if simulation.simulator.round:
            records.write_summary({**simulation.summary(), "interrupted": True})
        raise
    return simulation.summary()


def make_simulator(plan: Plan) -> Simulator:
    """Return the simulator of a run, seeded as the agents of the same run are."""
    import torch

    from gossipfl.codec import make_codec
    from gossipfl.robust.registry import make_rule
    from gossipfl.simulator import Byzantine, Simulator
    from gossipfl.tasks.fleet import make_fleet

    torch.set_num_threads(1)
    spec = plan.spec
    fleet = make_fleet(
        plan.task,
        [plan.shard(node) for node in range(spec.nodes)],
        spec.train.options(),
        model_seed=derive_seed(spec.seed, "model"),
        order_seeds=[derive_seed(spec.seed, "order", node) for node in range(spec.nodes)],
    )
    return Simulator(
        plan.topology,
        fleet,
        make_rule(spec.rule.name, spec.rule.options),
        make_codec(spec.codec.name, spec.codec.options),
        byzantine=Byzantine(plan.byzantine, plan.attack, spec.seed),
        local_steps=spec.train.local_steps,
        horizon=spec.rounds,
    )


class Simulation:
    """Drives a simulator round by round and writes down what it reports."""

    def __init__(self, plan: Plan, simulator: Simulator, records: RunRecords, progress: Progress) -> None:
        self.simulator = simulator
        self._plan = plan
        self._records = records
        self._progress = progress
        self._began_s = time.monotonic()
        self._startup_s: float | None = None
        self._personalised: Sequence[Evaluation] | None = None
        self._degrees = np.asarray(plan.topology.degrees)
        links = simulator.links
        self._told_singly = len(links.senders) * plan.spec.rounds <= VERDICT_LINES
        self._accepted = np.zeros(len(links.senders), dtype=np.int64)

    def run(self) -> None:
        """Carry out all rounds, and measure the models after a few more local steps where the spec wants that."""
        spec = self._plan.spec
        for round_ in range(spec.rounds):
            report = self.simulator.step()
            evaluations = self.simulator.evaluate() if spec.evaluates(round_) else None
            self._tell_events(report)
            self._tell_rows(report, evaluations)
            self._startup_s = self._startup_s or self._since_command_s()
        if spec.personalise_steps:
            self._personalised = self._personalise(spec.personalise_steps)

    def summary(self) -> dict[str, Any]:
        """Return the summary of the rounds so far, and save per-link counts and, where wanted, vectors."""
        plan, simulator, spec = self._plan, self.simulator, self._plan.spec
        honest = simulator.honest.tolist()
        if not self._told_singly:
            self._count_links()
        facts = RunFacts(
            engine="simulator",
            model_parameters=simulator.vectors.shape[1],
            byzantine=sorted(plan.byzantine),
            topology_name=plan.topology.name,
            topology_edges=len(plan.topology.edges),
            spectral_gap=_spectral_gap(plan),
            wall_s=self._since_command_s(),
            startup_s=self._startup_s,
            cores=os.cpu_count(),
            consensus_distance=simulator.consensus_distance(),
            vector_digests={node: vector_digest(simulator.vectors[node]).hex() for node in honest},
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )
        summary = summarise(spec, facts, self._records.statistics)
        summary["personalised"] = _by_node(self._personalised)
        if spec.keep_vectors:
            vectors = {str(node): vector for node, vector in enumerate(simulator.vectors.numpy())}
            np.savez(self._records.out / "vectors.npz", **vectors)
        return summary

    def _since_command_s(self) -> float:
        started_s = self._records.started_s
        return time.monotonic() - (self._began_s if started_s is None else started_s)

    def _tell_events(self, report: RoundReport) -> None:
        t_s = time.monotonic() - self._began_s
        self._accepted += report.verdicts.accepted
        for node in report.diverged:
            self._tell(Event(t_s, "divergence", node_name(node), {"round": report.round}))
        if not self._told_singly:
            return
        links, verdicts = self.simulator.links, report.verdicts
        for link, accepted in enumerate(verdicts.accepted.tolist()):
            fields = {
                "peer": node_name(int(links.senders[link])),
                "round": report.round,
                "distance": _known(verdicts.distances[link]),
                "threshold": _known(verdicts.thresholds[link]),
            }
            self._tell(Event(t_s, "accept" if accepted else "reject", node_name(int(links.receivers[link])), fields))

    def _tell(self, event: Event) -> None:
        self._records.add_event(event)
        self._progress.on_event(event)

    def _tell_rows(self, report: RoundReport, evaluations: Sequence[Evaluation] | None) -> None:
        t_s = time.monotonic() - self._began_s
        nodes, filtered = len(report.losses), report.filtered
        sent = report.payload_bytes * self._degrees
        links = self.simulator.links
        received = np.bincount(links.receivers, report.payload_bytes[links.senders], nodes)
        for node in range(nodes):
            evaluation = evaluations[node] if evaluations is not None else None
            row = NodeRound(
                node=node,
                name=node_name(node),
                byzantine=node in self._plan.byzantine,
                round=report.round,
                t_s=t_s,
                loss=float(report.losses[node]),
                test_loss=evaluation.loss if evaluation else None,
                test_accuracy=evaluation.accuracy if evaluation else None,
                metrics=evaluation.metrics if evaluation else {},
                accepted_honest=int(filtered.accepted_honest[node]),
                accepted_byzantine=int(filtered.accepted_byzantine[node]),
                rejected_honest=int(filtered.rejected_honest[node]),
                rejected_byzantine=int(filtered.rejected_byzantine[node]),
                bytes_sent=int(sent[node]),
                bytes_received=int(received[node]),
                train_s=report.train_s / nodes,
                round_s=report.round_s,
            )
            self._records.add_round(row)
            self._progress.on_round(row)

    def _count_links(self) -> None:
        links, rounds = self.simulator.links, self.simulator.round
        for receiver, sender, accepted in zip(
            links.receivers.tolist(), links.senders.tolist(), self._accepted.tolist(), strict=True
        ):
            self._records.count_verdicts(node_name(receiver), node_name(sender), accepted, rounds - accepted)

    def _personalise(self, steps: int) -> list[Evaluation]:
        """Measure all models after ``steps`` more local steps, and put them back as they were."""
        fleet = self.simulator.fleet
        kept = fleet.vectors.clone()
        fleet.train(steps)
        evaluations = self.simulator.evaluate()
        fleet.vectors.copy_(kept)
        return evaluations


def _spectral_gap(plan: Plan) -> float | None:
    from gossipfl.topology.spectra import spectral_gap

    return spectral_gap(plan.topology)


def _by_node(evaluations: Sequence[Evaluation] | None) -> Mapping[str, Any] | None:
    if evaluations is None:
        return None
    return {str(node): one.measures() for node, one in enumerate(evaluations)}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
