"""Forecasting LTE traffic four ways: each site alone, one pooled model, gossip, and personalised gossip.

    python benchmarks/lte_forecast.py --data FOLDER [--nodes 3 12] [--model mlp|lstm] [--seeds 3] [--out DIR]

FOLDER holds one CSV trace a site (the task lte-traffic). Every node may take ``--steps`` optimiser steps and keeps
the last fifth of its own training rows aside; each way offers a node a checkpoint every ``--every`` steps, and what
counts is the one that forecasts those rows best. The test part, the last fifth of each site's time, chooses nothing.

    alone         half the steps at ``--lr``, then from the best checkpoint half at a lower rate (``--fine``)
    pooled        the same on the windows of all sites, with the steps of all nodes together
    gossip        all steps at ``--lr`` in rounds of ``--every``, mixed by ``--rule`` after each
    personalised  gossip for half the steps, then as alone: half of them locally at the lower rate

Two rows are for orientation: ``persistence`` forecasts the last value, and ``alone in hindsight`` is the checkpoint
that the test part itself would have chosen, which no site could know.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gossipfl.config import RunSpec
from gossipfl.digest import derive_seed
from gossipfl.errors import GossipflError
from gossipfl.records import NodeRound
from gossipfl.tasks.base import Evaluation, Learner, Partition, Shard, TrainReport
from gossipfl.tasks.lte import LteTraffic, score
from gossipfl.tasks.traces import CHANNELS
from gossipfl.testbed.plan import Plan
from gossipfl.testbed.virtual import run_in_virtual_time
from gossipfl.vector import Layout

ALONE = "alone"
STEPS_WHOLE, STEPS_SPAN = 1000, 600
"""Default steps of a node that holds a whole trace, and of one that holds a span of it: more only overfits."""


@dataclass(frozen=True)
class Study:
    """What is compared, and on which budget; ``fine`` is the lower learning rate in units of ``lr``."""

    data: str
    nodes: int
    model: str = "mlp"
    rules: tuple[str, ...] = ("balance", "mean")
    topology: str = "complete"
    steps: int = STEPS_WHOLE
    every: int = 20
    lr: float = 1e-3
    fine: float = 0.1
    batch: int = 64
    shared: float = 0.5
    validation: float = 0.2

    @property
    def first_steps(self) -> int:
        """Steps before the learning rate drops: those that personalised gossip shares."""
        return max(1, round(self.steps * self.shared / self.every)) * self.every

    def plan(self, seed: int, rule: str = "mean", steps: int | None = None) -> StudyPlan:
        """Return the run of one seed: the same shards, initial model and batches for every way."""
        spec = {
            "nodes": self.nodes,
            "topology": self.topology,
            "transport": "memory",
            "task": {"name": "lte-traffic", "path": self.data, "model": self.model, "validation": self.validation},
            "rule": rule,
            "rounds": max(1, (steps or self.steps) // self.every),
            "seed": seed,
            "train": {"local_steps": self.every, "batch": self.batch, "lr": self.lr, "optimizer": "adam"},
            "evaluate_every": 1,
        }
        return StudyPlan(RunSpec.model_validate(spec))


@dataclass(frozen=True)
class StudyPlan(Plan):
    """A plan whose learners keep their best checkpoint."""

    @cached_property
    def lte(self) -> LteTraffic:
        """The task."""
        assert isinstance(self.task, LteTraffic)
        return self.task

    def learner(self, node: int) -> BestKept:
        """Return a node's learner at the common initial model."""
        return self.on(self.shards[node], node)

    def on(self, shard: Shard, *order: int | str, lr_factor: float = 1.0) -> BestKept:
        """Return a learner on ``shard``; ``order`` names its stream of batches."""
        options = self.spec.train.options()
        options = replace(options, lr=options.lr * lr_factor)
        model_seed, order_seed = derive_seed(self.spec.seed, "model"), derive_seed(self.spec.seed, "order", *order)
        learner, judge = (
            self.lte.learner(part, options, model_seed=model_seed, order_seed=order_seed)
            for part in (shard, self.lte.validation(shard))
        )
        return BestKept(learner, judge)


class BestKept:
    """A learner whose every evaluation is a checkpoint; it keeps the one with the lowest validation loss.

    ``judge`` is a learner of the same model, measured on the validation part. ``best`` (d,) was made after
    ``best_steps`` steps; ``hindsight`` is the evaluation that looks best on the test part.
    """

    def __init__(self, learner: Learner, judge: Learner) -> None:
        self._learner, self._judge = learner, judge
        self._steps = 0
        self.best, self.best_steps, self.best_loss = learner.vector.clone(), 0, float("inf")
        self.hindsight: Evaluation | None = None

    @property
    def layout(self) -> Layout:
        """Names and shapes of the vector's parts."""
        return self._learner.layout

    @property
    def vector(self) -> Tensor:
        """The model itself, live."""
        return self._learner.vector

    def train(self, steps: int) -> TrainReport:
        """Take local steps."""
        self._steps += steps
        return self._learner.train(steps)

    def evaluate(self) -> Evaluation:
        """Measure the model on the test part, and keep it where its validation loss is the lowest so far."""
        self._judge.vector.copy_(self.vector)
        loss = self._judge.evaluate().loss
        if loss < self.best_loss:
            self.best, self.best_steps, self.best_loss = self.vector.clone(), self._steps, loss
        test = self._learner.evaluate()
        if self.hindsight is None or test.metrics["nrmse"] < self.hindsight.metrics["nrmse"]:
            self.hindsight = test
        return test

    def descend(self, steps: int, every: int) -> BestKept:
        """Train for ``steps`` with a checkpoint at the start and after every ``every`` steps; return itself."""
        self.evaluate()
        for start in range(0, steps, every):
            self.train(min(every, steps - start))
            self.evaluate()
        return self

    def start_from(self, other: BestKept) -> BestKept:
        """Go on from the best checkpoint of ``other``, whose steps count, and return itself."""
        self.vector.copy_(other.best)
        self._steps = other.best_steps
        return self

    def measure(self) -> Evaluation:
        """Measure the best checkpoint on the test part."""
        return self.start_from(self)._learner.evaluate()


@dataclass(frozen=True)
class Outcome:
    """How one way did at one node; ``steps`` is how many led to its checkpoint, None where that has no meaning."""

    way: str
    seed: int
    site: str
    node: int | None
    steps: int | None
    metrics: dict[str, float]


@dataclass
class Results:
    """Everything that a study measured; ``verdicts`` counts, by rule, what honest nodes said of each other."""

    study: Study
    outcomes: list[Outcome] = field(default_factory=list)
    verdicts: dict[str, Counter[str]] = field(default_factory=dict)

    def names(self, kind: Literal["way", "site"]) -> list[str]:
        """Return the ways or the sites, in the order they were run."""
        return list(dict.fromkeys(getattr(outcome, kind) for outcome in self.outcomes))

    def by_seed(self, way: str, site: str, metric: str = "nrmse") -> list[float]:
        """Return a metric for each seed, averaged over the site's nodes."""
        values: dict[int, list[float]] = {}
        for outcome in self.outcomes:
            if (outcome.way, outcome.site) == (way, site):
                values.setdefault(outcome.seed, []).append(outcome.metrics[metric])
        return [statistics.fmean(nodes) for _, nodes in sorted(values.items())]

    def against_alone(self, way: str, site: str, metric: str = "nrmse") -> list[float]:
        """Return by which share a way is above (+) or below (-) alone, seed by seed."""
        pairs = zip(self.by_seed(way, site, metric), self.by_seed(ALONE, site, metric), strict=True)
        return [mine / alone - 1 for mine, alone in pairs]

    def average_against_alone(self, way: str) -> list[float]:
        """Return ``against_alone`` averaged over sites, seed by seed."""
        sites = [self.against_alone(way, site) for site in self.names("site")]
        return [statistics.fmean(seed) for seed in zip(*sites, strict=True)]


def run(study: Study, seeds: Sequence[int], say: Console) -> Results:
    """Run every way with every seed."""
    results = Results(study, verdicts={rule: Counter() for rule in study.rules})
    for seed in seeds:
        began = time.perf_counter()
        plan = study.plan(seed)
        for outcomes in (_persistence(plan), _alone(study, plan), _pooled(study, plan)):
            results.outcomes += outcomes
        for rule in study.rules:
            results.outcomes += _gossip(study, seed, rule, results.verdicts[rule])
        say.print(f"{study.nodes} nodes, seed {seed}: {time.perf_counter() - began:.0f} s", style="dim")
    return results


def _outcomes(plan: StudyPlan, way: str, kept: Iterable[BestKept]) -> Iterator[Outcome]:
    for node, (shard, learner) in enumerate(zip(plan.shards, kept, strict=True)):
        metrics = dict(learner.measure().metrics)
        yield Outcome(way, plan.spec.seed, shard.info["site"], node, learner.best_steps, metrics)


def _persistence(plan: StudyPlan) -> Iterator[Outcome]:
    for node, shard in enumerate(plan.shards):
        last, targets = (torch.from_numpy(part.copy()) for part in (shard.test_inputs[:, -1], shard.test_targets))
        metrics = dict(score(last[:, : len(CHANNELS)], targets, scaling=shard.info["scaling"]).metrics)
        yield Outcome("persistence", plan.spec.seed, shard.info["site"], node, None, metrics)


def _fine_tuned(study: Study, plan: StudyPlan, node: int, start: BestKept) -> BestKept:
    learner = plan.on(plan.shards[node], node, "fine", lr_factor=study.fine)
    return learner.start_from(start).descend(study.steps - study.first_steps, study.every)


def _alone(study: Study, plan: StudyPlan) -> Iterator[Outcome]:
    first = [plan.learner(node).descend(study.first_steps, study.every) for node in range(study.nodes)]
    both = [_fine_tuned(study, plan, node, start) for node, start in enumerate(first)]
    yield from _outcomes(plan, ALONE, both)
    for node, halves in enumerate(zip(first, both, strict=True)):
        tests = [half.hindsight.metrics for half in halves if half.hindsight is not None]
        metrics = dict(min(tests, key=lambda test: test["nrmse"]))
        yield Outcome("alone in hindsight", plan.spec.seed, plan.shards[node].info["site"], node, None, metrics)


def _pooled(study: Study, plan: StudyPlan) -> Iterator[Outcome]:
    sites = len({shard.info["site"] for shard in plan.shards})
    shard = plan.lte.shards(1, Partition("iid"), 0)[0]
    every = study.every * study.nodes
    first = plan.on(shard, "pooled").descend(study.first_steps * study.nodes, every)
    both = plan.on(shard, "pooled", "fine", lr_factor=study.fine).start_from(first)
    both.descend((study.steps - study.first_steps) * study.nodes, every)
    for whole in plan.lte.shards(sites, Partition("files"), 0):
        metrics = dict(plan.on(whole, "unused").start_from(both).evaluate().metrics)
        yield Outcome("pooled", plan.spec.seed, whole.info["site"], None, both.best_steps, metrics)


def _gossip(study: Study, seed: int, rule: str, verdicts: Counter[str]) -> Iterator[Outcome]:
    def count(row: NodeRound) -> None:
        verdicts.update(accepted=row.accepted_honest, rejected=row.rejected_honest)

    for steps in (study.steps, study.first_steps):
        plan = study.plan(seed, rule, steps)
        agents = run_in_virtual_time(plan, count, lambda event: None).agents
        kept = [agent.learner for agent in agents if isinstance(agent.learner, BestKept)]
        if steps == study.steps:
            yield from _outcomes(plan, f"gossip, {rule}", kept)
        if steps == study.first_steps:
            tuned = [_fine_tuned(study, plan, node, start) for node, start in enumerate(kept)]
            yield from _outcomes(plan, f"personalised, {rule}", tuned)


def overview(results: Results) -> Table:
    """Return NRMSE per way and site, mean and spread over seeds, with the paired difference to alone."""
    table = Table("way", title=f"NRMSE, mean of {len(CHANNELS)} channels; in brackets against alone")
    for site in results.names("site"):
        table.add_column(site, justify="right")
    table.add_column("average", justify="right")
    for way in results.names("way"):
        cells = [
            f"{_spread(results.by_seed(way, site))} ({_percent(results.against_alone(way, site))})"
            for site in results.names("site")
        ]
        table.add_row(way, *cells, _percent(results.average_against_alone(way)))
    return table


def absolute_errors(results: Results) -> Table:
    """Return MAE per way and site against alone, averaged over channels: what bursts weigh less in."""
    table = Table("way", title=f"MAE against alone, mean of {len(CHANNELS)} channels")
    for site in results.names("site"):
        table.add_column(site, justify="right")
    for way in results.names("way"):
        cells = []
        for site in results.names("site"):
            channels = [results.against_alone(way, site, f"mae_{channel}") for channel in CHANNELS]
            cells.append(_percent([statistics.fmean(seed) for seed in zip(*channels, strict=True)]))
        table.add_row(way, *cells)
    return table


def per_channel(results: Results, kind: str) -> Table:
    """Return ``kind`` (nrmse or mae) per way, site and channel, means over nodes and seeds."""
    table = Table("site", "way", title=f"{kind.upper()} per channel{'' if kind == 'nrmse' else ' in its own unit'}")
    for channel in CHANNELS:
        table.add_column(channel, justify="right")
    for site in results.names("site"):
        for way in results.names("way"):
            values = [statistics.fmean(results.by_seed(way, site, f"{kind}_{channel}")) for channel in CHANNELS]
            table.add_row(site, way, *(f"{value:.4g}" for value in values))
        table.add_section()
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.4f} ± {_deviation(values):.4f}"


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):+.1f} ± {100 * _deviation(values):.1f} %"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def save(results: Results, folder: Path) -> None:
    """Write ``lte-N.json`` and ``lte-N.csv``, N the number of nodes."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"lte-{results.study.nodes}"
    report = asdict(results) | {"verdicts": results.verdicts}
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    with stem.with_suffix(".csv").open("w", newline="") as stream:
        metrics = list(dict.fromkeys(name for outcome in results.outcomes for name in outcome.metrics))
        writer = csv.DictWriter(stream, ["way", "seed", "site", "node", "steps", *metrics], restval="")
        writer.writeheader()
        for outcome in results.outcomes:
            row = asdict(outcome)
            writer.writerow(row | row.pop("metrics"))


def arguments() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description="Forecast LTE traffic alone, pooled, by gossip, and personalised.")
    parser.add_argument("--data", required=True, help="folder with one CSV trace a site")
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 12])
    parser.add_argument("--model", choices=("mlp", "lstm"), default="mlp")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rule", nargs="+", default=["balance", "mean"])
    parser.add_argument("--topology", help="default: complete up to four nodes, else random-regular")
    parser.add_argument("--steps", type=int, help=f"default: {STEPS_WHOLE} with 3 nodes, {STEPS_SPAN} with more")
    parser.add_argument("--every", type=int, default=Study.every, help="steps of a round, and between checkpoints")
    parser.add_argument("--lr", type=float, default=Study.lr)
    parser.add_argument("--fine", type=float, default=Study.fine, help="learning rate of the later steps over --lr")
    parser.add_argument("--shared", type=float, default=Study.shared, help="share of the steps before it drops")
    parser.add_argument("--out", type=Path, help="folder for JSON and CSV")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables, and write files where asked."""
    options = arguments().parse_args(words)
    torch.set_num_threads(1)
    console = Console()
    for nodes in options.nodes:
        topology = options.topology or ("complete" if nodes <= 4 else "random-regular")
        steps = options.steps or (STEPS_WHOLE if nodes <= 3 else STEPS_SPAN)
        study = Study(options.data, nodes, options.model, tuple(options.rule), topology, steps, options.every)
        study = replace(study, lr=options.lr, fine=options.fine, shared=options.shared)
        try:
            results = run(study, range(options.seeds), console)
        except GossipflError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        console.print(overview(results), absolute_errors(results))
        console.print(per_channel(results, "nrmse"), per_channel(results, "mae"))
        for rule, heard in results.verdicts.items():
            console.print(f"{rule}: {heard['accepted']} neighbours accepted, {heard['rejected']} rejected, all honest")
        if options.out:
            save(results, options.out)


if __name__ == "__main__":
    main()
