"""Carry out one run with real agents: in virtual time (memory) or as processes (mqtt, libp2p)."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn

from gossipfl.errors import GossipflError, TransportUnavailable
from gossipfl.heap import keep_freed_pages
from gossipfl.records import Event, NodeRound
from gossipfl.summary import RunFacts, summarise
from gossipfl.testbed.plan import Plan

if TYPE_CHECKING:
    import numpy as np

    from gossipfl.config import RunSpec
    from gossipfl.records import Progress, RunRecords
    from gossipfl.testbed.supervisor import Child, Supervisor
    from gossipfl.testbed.wires import Wire


class _Keeper:
    """Gives rows and events to the records and to whoever watches; notes when all nodes had their first round."""

    def __init__(self, plan: Plan, records: RunRecords, progress: Progress) -> None:
        self._nodes = plan.spec.nodes
        self._records = records
        self._progress = progress
        self._began: set[int] = set()
        self.started_s = time.monotonic() if records.started_s is None else records.started_s
        self.startup_s: float | None = None
        self.lost: set[int] = set()

    def row(self, row: NodeRound) -> None:
        self._records.add_round(row)
        self._progress.on_round(row)
        if self.startup_s is None:
            self._began.add(row.node)
            if len(self._began) == self._nodes:
                self.startup_s = self.elapsed_s()

    def event(self, event: Event) -> None:
        self._records.add_event(event)
        self._progress.on_event(event)

    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s


def run_testbed(spec: RunSpec, records: RunRecords, progress: Progress) -> dict[str, Any]:
    """Run the network that ``spec`` describes and return its summary; records are written as it goes."""
    plan = Plan(spec)
    records.write_topology(plan.topology)  # the cheapest check comes first: it loads nothing
    keeper = _Keeper(plan, records, progress)
    if spec.transport == "memory":
        return _run_virtual(plan, records, keeper)
    return _run_processes(plan, records, keeper)


def prepare(plan: Plan) -> None:
    """Find every mistake, load the data, and let torch load all that a training step needs, once for all nodes."""
    from gossipfl.testbed.saboteurs.seat import check_reach

    _one_thread()
    keep_freed_pages()
    plan.check()
    plan.check_agents()
    plan.share()
    learner = plan.learner(0)
    learner.train(1)  # what torch or a user's task loads at its first step, forks then share
    learner.evaluate()
    plan.core(0, learner)
    check_reach(plan, learner.layout.size)


def _one_thread() -> None:
    """One torch thread per node: the nodes themselves keep the cores busy."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)


def _run_virtual(plan: Plan, records: RunRecords, keeper: _Keeper) -> dict[str, Any]:
    from gossipfl.testbed.observe import told_at_the_end
    from gossipfl.testbed.virtual import run_in_virtual_time

    prepare(plan)
    try:
        run = run_in_virtual_time(plan, keeper.row, keeper.event)
    except KeyboardInterrupt:
        records.write_summary({**_finish(plan, records, keeper, {}, {}, _peak_rss_bytes()), "interrupted": True})
        raise
    vectors = {node: agent.learner.vector.detach().cpu().numpy() for node, agent in enumerate(run.agents)}
    ends = {node: told_at_the_end(result) for node, result in enumerate(run.results)}
    return _finish(plan, records, keeper, vectors, ends, _peak_rss_bytes())


def _peak_rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_processes(plan: Plan, records: RunRecords, keeper: _Keeper) -> dict[str, Any]:
    from gossipfl.testbed.wires import open_wire

    with open_wire(plan) as wire:
        wire.check()
        prepare(plan)
        wire.share()
        supervisor = asyncio.run(_supervise(plan, wire, keeper))
    vectors, ends = _gather(supervisor.children)
    keeper.lost = {child.node for child in supervisor.children if child.node not in ends}
    if not ends and not supervisor.interrupted:
        _raise_common_failure(supervisor.children)
    peaks = [end["peak_rss_bytes"] for end in ends.values()]
    summary = _finish(plan, records, keeper, vectors, ends, _peak_rss_bytes() + sum(peaks))
    if supervisor.interrupted:
        records.write_summary({**summary, "interrupted": True})
        raise KeyboardInterrupt
    return summary


async def _supervise(plan: Plan, wire: Wire, keeper: _Keeper) -> Supervisor:
    from gossipfl.testbed.supervisor import Supervisor

    supervisor = Supervisor(plan, wire.transport, keeper.row, keeper.event)
    keeping = asyncio.create_task(wire.keep(supervisor.tell), name="wire")
    try:
        await supervisor.run()
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
    return supervisor


def _raise_common_failure(children: list[Child]) -> NoReturn:
    """Where no node came to its end the run has failed, and the first node's reason is told for all."""
    told = next((child.end for child in children if child.end is not None), None)
    if told is None:
        raise GossipflError(f"all {len(children)} nodes died before their end; see events.jsonl of the run")
    text = f"{told['error']} (no node came to its end)"
    raise TransportUnavailable(text) if told["kind"] == "TransportUnavailable" else GossipflError(text)


def _gather(children: list[Child]) -> tuple[dict[int, np.ndarray], dict[int, dict[str, Any]]]:
    import numpy as np

    ends = {child.node: child.end for child in children if child.end is not None and "error" not in child.end}
    vectors = {
        node: np.frombuffer(end["vector"], dtype="<f4") for node, end in ends.items() if end["vector"] is not None
    }
    return vectors, ends


def _finish(
    plan: Plan,
    records: RunRecords,
    keeper: _Keeper,
    vectors: Mapping[int, np.ndarray],
    ends: Mapping[int, Mapping[str, Any]],
    peak_rss_bytes: int,
) -> dict[str, Any]:
    from gossipfl.topology.analysis.spectra import spectral_gap

    spec = plan.spec
    honest = [node for node in range(spec.nodes) if node not in plan.byzantine]
    facts = RunFacts(
        engine="testbed",
        transport=spec.transport,
        model_parameters=next((vector.size for vector in vectors.values()), None),
        byzantine=sorted(plan.byzantine),
        topology_name=plan.topology.name,
        topology_edges=len(plan.topology.edges),
        spectral_gap=spectral_gap(plan.topology),
        wall_s=keeper.elapsed_s(),
        startup_s=keeper.startup_s,
        cores=os.cpu_count(),
        consensus_distance=_consensus_distance([vectors[node] for node in honest if node in vectors]),
        vector_digests={node: ends[node]["digest"] for node in honest if node in ends},
        peak_rss_bytes=peak_rss_bytes,
        lost=keeper.lost,
    )
    summary = summarise(spec, facts, records.statistics)
    private = [end["private_bytes"] for end in ends.values() if "private_bytes" in end]
    proportional = [end["pss_bytes"] for end in ends.values() if "pss_bytes" in end]
    summary["private_bytes_per_node_median"] = int(median(private)) if private else None
    summary["pss_bytes_nodes"] = sum(proportional) if proportional else None
    summary["personalised"] = (
        {str(node): end["personalised"] for node, end in ends.items()}
        if any(end.get("personalised") for end in ends.values())
        else None
    )
    summary["dropped"] = _total_dropped(ends)
    if spec.keep_vectors:
        _keep_vectors(records, vectors)
    records.write_summary(summary)
    return summary


def _total_dropped(ends: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for end in ends.values():
        for reason, count in end["dropped"].items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))


def _consensus_distance(vectors: list[np.ndarray]) -> float | None:
    """Return sqrt(mean_i ||x_i - mean_j x_j||^2), or None where there are no vectors."""
    if not vectors:
        return None
    import numpy as np

    mean = np.mean(vectors, axis=0, dtype=np.float64)
    return float(np.sqrt(np.mean([np.sum((vector - mean) ** 2, dtype=np.float64) for vector in vectors])))


def _keep_vectors(records: RunRecords, vectors: Mapping[int, np.ndarray]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {str(node): vector for node, vector in vectors.items()}
    np.savez(records.out / "vectors.npz", **arrays)
