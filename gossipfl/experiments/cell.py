"""One cell carried out: the only place where experiments touch the engines."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError, GossipflError
from gossipfl.experiments.document import Engine
from gossipfl.experiments.measures import Measures
from gossipfl.records import Event, NodeRound, RunData, RunRecords, finite, load_run
from gossipfl.tasks.base import Evaluation
from gossipfl.testbed.plan import Plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gossipfl.simulator import RoundReport
    from gossipfl.tasks.base import Task

KEPT_TASKS = 4
"""Data sets that a process keeps loaded, the least recently used leaves first."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told of a cell: its engine, its spec as JSON values, and where full records go, if anywhere."""

    engine: Engine
    spec: Mapping[str, Any]
    out: str | None = None


def carry_out(job: Job) -> dict[str, Any]:
    """Return the results of a cell, or why there are none: one line as ``error``, and the ``trace``.

    Whatever goes wrong in a cell is its result; only the end of the process is not.
    """
    began_s = time.perf_counter()
    try:
        spec = RunSpec.model_validate(job.spec)
        result = measure(job.engine, spec, None if job.out is None else Path(job.out))
    except Exception as error:  # noqa: BLE001 - the other cells of the experiment go on
        told = str(error) if isinstance(error, GossipflError) else f"{type(error).__name__}: {error}"
        result = {"error": " ".join(told.split()), "trace": traceback.format_exc()}
    return {**result, "wall_s": time.perf_counter() - began_s}


def measure(engine: Engine, spec: RunSpec, out: Path | None = None) -> dict[str, Any]:
    """Carry out a run and return its results; with ``out``, it also leaves the records of any other run there."""
    if engine == "simulate" and out is None:
        measures = _simulate(spec)
    elif out is None:
        with TemporaryDirectory(prefix="gossipfl-cell-") as folder:
            measures = _recorded(engine, spec, Path(folder))
    else:
        measures = _recorded(engine, spec, out)
    result: dict[str, Any] = finite(measures.result())
    return result


def check_engine(engine: Engine, spec: RunSpec) -> None:
    """Raise ConfigError where a run needs what its engine does not have."""
    if engine == "simulate" and spec.mode != "sync":
        raise ConfigError(f'mode {spec.mode} needs engine = "testbed"; the simulator knows sync rounds only')
    if engine == "simulate" and spec.faults is not None:
        raise ConfigError('faults need engine = "testbed" and transport = "memory"; the simulator has no wire')


def check_part(part: Literal["rule", "attack", "codec"], spec: RunSpec) -> None:
    """Make one part of a run by its name and options; raises ConfigError for what its registry does not know."""
    from gossipfl.codec import make_codec
    from gossipfl.robust.registry import make_rule

    match part:
        case "rule":
            make_rule(spec.rule.name, spec.rule.options)
        case "codec":
            make_codec(spec.codec.name, spec.codec.options)
        case "attack":
            _ = Plan(spec).attack


def check_plan(engine: Engine, plan: Plan) -> None:
    """Build everything of a run that can be wrong; raises UsageError, also for what its engine cannot play."""
    if engine == "testbed":
        plan.check_agents()
    elif plan.sabotage is not None:
        raise ConfigError(f'attack "{plan.spec.attack.name}" is played on the wire; it needs engine = "testbed"')
    plan.check()


def make_plan(spec: RunSpec) -> Plan:
    """Return the plan of a run, with the task that an earlier run in this process has loaded."""
    plan = Plan(spec)
    # Where a cached property keeps its value: the plan would otherwise read the data set again for every cell.
    vars(plan)["task"] = _task(spec.task.name, json.dumps(spec.task.options, sort_keys=True))
    return plan


@lru_cache(maxsize=KEPT_TASKS)
def _task(name: str, options: str) -> Task:
    from gossipfl.tasks.registry import load_task

    return load_task(name, json.loads(options))


def _simulate(spec: RunSpec) -> Measures:
    from gossipfl.testbed.simulated import make_simulator

    check_engine("simulate", spec)
    plan = make_plan(spec)
    check_plan("simulate", plan)
    simulator = make_simulator(plan)
    honest = simulator.honest
    measures = Measures()
    for round_ in range(spec.rounds):
        _count(measures, simulator.step(), honest)
        if spec.evaluates(round_):
            evaluations = simulator.evaluate()
            final = {int(node): evaluations[node] for node in honest}
            measures.evaluated(final, simulator.consensus_distance())
    return measures


def _count(measures: Measures, report: RoundReport, honest: NDArray[np.int64]) -> None:
    """Add a round's verdicts and bytes, a copy of a node's delta for each neighbour that hears it."""
    verdicts, filtered = measures.verdicts, report.filtered
    verdicts.honest_accepted += int(filtered.accepted_honest[honest].sum())
    verdicts.honest_rejected += int(filtered.rejected_honest[honest].sum())
    verdicts.byzantine_accepted += int(filtered.accepted_byzantine[honest].sum())
    verdicts.byzantine_rejected += int(filtered.rejected_byzantine[honest].sum())
    measures.sent_bytes += float(report.payload_bytes[report.links.senders].sum()) / len(report.payload_bytes)
    measures.rounds = report.round + 1


def _recorded(engine: Engine, spec: RunSpec, out: Path) -> Measures:
    """Carry out the run as the commands do, with records in ``out``, and take the results from these."""
    from gossipfl.testbed.run import run_testbed
    from gossipfl.testbed.simulated import run_simulation

    carry = run_simulation if engine == "simulate" else run_testbed
    with RunRecords(out, force=True) as records:
        records.write_spec(spec)
        records.write_summary(carry(spec, records, _Unwatched()))
    return _from_records(load_run(out))


def _from_records(run: RunData) -> Measures:
    measures = Measures()
    for name, count in run.summary["filter"].items():
        setattr(measures.verdicts, name, count)
    last = run.summary["consensus_distance"]
    rows = sorted(run.rounds.to_pylist(), key=lambda row: (row["round"], row["node"]))
    nodes = len({row["node"] for row in rows})
    for round_, group in _by_round(rows):
        measures.rounds = round_ + 1
        measures.sent_bytes += sum(row["bytes_sent"] or 0 for row in group) / nodes
        final = {row["node"]: _evaluation(row) for row in group if not row["byzantine"] and _is_evaluated(row)}
        if final:
            measures.evaluated(final, last if round_ == rows[-1]["round"] else None)
    return measures


def _by_round(rows: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["round"], []).append(row)
    yield from groups.items()


def _is_evaluated(row: Mapping[str, Any]) -> bool:
    return row["test_loss"] is not None or row["test_accuracy"] is not None


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    prefix = "metric_"
    metrics = {name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix)}
    return Evaluation(row["test_loss"], row["test_accuracy"], metrics)


class _Unwatched:
    """A run's progress, seen by nobody."""

    def on_event(self, event: Event) -> None:
        """See an event."""

    def on_round(self, row: NodeRound) -> None:
        """See a node's finished round."""
