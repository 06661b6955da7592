"""A run of the dense simulator, with the records of every other run."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from gossipfl.digest import derive_seed, vector_digest
from gossipfl.errors import ConfigError
from gossipfl.records import Event, NodeRound
from gossipfl.summary import RunFacts, summarise
from gossipfl.testbed.plan import Plan, node_name

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.config import RunSpec
    from gossipfl.records import Progress, RunRecords
    from gossipfl.robust.network import Links
    from gossipfl.simulator import RoundReport, Simulator
    from gossipfl.tasks.base import Evaluation, Shard
    from gossipfl.tasks.fleet import Fleet
    from gossipfl.topology.graph import Topology

VERDICT_LINES = 100_000
"""Runs with more verdicts than this only count them, link by link."""


def run_simulation(spec: RunSpec, records: RunRecords, progress: Progress) -> dict[str, Any]:
    """Simulate the network that ``spec`` describes and return its summary; records are written as it goes.

    A row's ``round_s`` is the round of the whole network, its ``train_s`` the node's equal share of all training,
    and its bytes are encoded deltas, one copy a neighbour, without the frames that a wire would add. Raises
    ConfigError for what only a wire has: faults, asynchronous rounds, and attacks on the protocol.
    """
    if spec.mode != "sync":
        raise ConfigError("mode async: the simulator knows sync rounds only; use testbed run --transport memory")
    if spec.faults is not None:
        raise ConfigError("faults: the simulator has no wire; use testbed run --transport memory")
    plan = Plan(spec)
    if plan.sabotage is not None:
        raise ConfigError(f'attack "{spec.attack.name}" is played on the wire; use testbed run')
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
    shards = [plan.shard(node) for node in range(spec.nodes)]
    fleet = make_fleet(
        plan.task,
        shards,
        spec.train.options(),
        model_seed=derive_seed(spec.seed, "model"),
        order_seeds=[derive_seed(spec.seed, "order", node) for node in range(spec.nodes)],
        own_init_seeds=plan.init_seeds,
        init_scale=spec.train.init_scale,
    )
    return Simulator(
        plan.sequence or plan.topology,
        fleet,
        make_rule(spec.rule.name, spec.rule.options),
        make_codec(spec.codec.name, spec.codec.options),
        byzantine=Byzantine(plan.byzantine, plan.attack, spec.seed),
        local_steps=spec.train.local_steps,
        horizon=spec.rounds,
        measures={**_averages(plan, fleet), **_measures(plan, shards)},
    )


def _averages(plan: Plan, fleet: Fleet) -> dict[str, Callable[[Tensor], Sequence[float]]]:
    """Return how accurate the average model of each group of nodes is, the same number for every node."""

    def accuracy(models: Tensor, group: tuple[int, ...]) -> list[float]:
        average = models[list(group)].mean(0, keepdim=True)
        found = fleet.evaluate_vectors(average)[0].accuracy
        return [float("nan") if found is None else found] * len(models)

    return {f"average_{name}": partial(accuracy, group=group) for name, group in plan.spec.averages.items()}


def _measures(plan: Plan, shards: Sequence[Shard]) -> dict[str, Callable[[Tensor], Sequence[float]]]:
    """Return what is measured beside the task's own: how often a backdoor opens."""
    from gossipfl.tasks.base import Trigger
    from gossipfl.tasks.triggered import TriggeredTest

    attack, spec = cast("object", plan.attack), plan.spec
    if not isinstance(attack, Trigger):
        return {}
    seed = derive_seed(spec.seed, "model")
    test = TriggeredTest(plan.task, attack, shards, spec.train.options(), model_seed=seed)
    return {"attack_success": test.success}


class PairTally:
    """Counts, for every two neighbours, how often the one accepted and rejected the other."""

    def __init__(self, topology: Topology) -> None:
        self._nodes = topology.nodes
        edges = np.asarray(topology.edges, dtype=np.int64).reshape(-1, 2)
        both = np.concatenate([edges, edges[:, ::-1]])
        self._pairs = np.sort(both[:, 0] * self._nodes + both[:, 1])
        self._counts = np.zeros((len(self._pairs), 2), dtype=np.int64)

    def add(self, links: Links, accepted: NDArray[np.bool_]) -> None:
        """Count one round's verdicts."""
        places = np.searchsorted(self._pairs, links.receivers * self._nodes + links.senders)
        self._counts[places, np.where(accepted, 0, 1)] += 1

    def counts(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield receiver, sender, times accepted, times rejected."""
        for pair, (accepted, rejected) in zip(self._pairs.tolist(), self._counts.tolist(), strict=True):
            yield *divmod(pair, self._nodes), accepted, rejected


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
        self._told_singly = len(simulator.links.senders) * plan.spec.rounds <= VERDICT_LINES
        self._tally = PairTally(plan.topology)

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
            for receiver, sender, accepted, rejected in self._tally.counts():
                self._records.count_verdicts(node_name(receiver), node_name(sender), accepted, rejected)
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
        for node in report.diverged:
            self._tell(Event(t_s, "divergence", node_name(node), {"round": report.round}))
        links, verdicts = report.links, report.verdicts
        if not self._told_singly:
            self._tally.add(links, verdicts.accepted)
            return
        for link, accepted in enumerate(verdicts.accepted.tolist()):
            fields = {
                "peer": node_name(int(links.senders[link])),
                "round": report.round,
                **verdicts.at(link).fields(),
            }
            self._tell(Event(t_s, "accept" if accepted else "reject", node_name(int(links.receivers[link])), fields))

    def _tell(self, event: Event) -> None:
        self._records.add_event(event)
        self._progress.on_event(event)

    def _tell_rows(self, report: RoundReport, evaluations: Sequence[Evaluation] | None) -> None:
        t_s = time.monotonic() - self._began_s
        nodes, filtered = len(report.losses), report.filtered
        links = report.links
        sent = report.payload_bytes * np.bincount(links.senders, minlength=nodes)
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

    def _personalise(self, steps: int) -> list[Evaluation]:
        """Measure all models after ``steps`` more local steps, and put them back as they were."""
        fleet = self.simulator.fleet
        kept = fleet.vectors.clone()
        fleet.train(steps)
        evaluations = self.simulator.evaluate()
        fleet.vectors.copy_(kept)
        return evaluations


def _spectral_gap(plan: Plan) -> float | None:
    """Return the gap of the graph's Metropolis weights; a graph that changes has none."""
    if plan.sequence is not None:
        return None
    from gossipfl.topology.analysis.spectra import spectral_gap

    return spectral_gap(plan.topology)


def _by_node(evaluations: Sequence[Evaluation] | None) -> Mapping[str, Any] | None:
    if evaluations is None:
        return None
    return {str(node): one.measures() for node, one in enumerate(evaluations)}
