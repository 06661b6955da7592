"""The logic of the LTE study, on small synthetic traces."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from gossipfl.tasks.base import Evaluation, TrainReport
from gossipfl.tasks.traces import CHANNELS, COLUMNS

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "lte_forecast.py"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("lte_forecast", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    torch.set_num_threads(1)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lte_forecast"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["lte_forecast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces")
    for seed, name in enumerate(("A", "B")):
        write_trace(path / f"{name}.csv", 400, seed)
    return path


def write_trace(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wave = 1.5 + np.sin(np.arange(rows) / 20)
    lines = [",".join(("time", *COLUMNS))]
    for row in range(rows):
        moment = datetime(2018, 3, 28) + timedelta(minutes=2 * row)
        values = wave[row] * rng.gamma(20, 0.05, len(COLUMNS)) * 100
        lines.append(",".join((str(moment), *(f"{value:.3f}" for value in values))))
    path.write_text("\n".join(lines) + "\n")


def small(study: ModuleType, folder: Path, **changes: object) -> Any:
    options = {"data": str(folder), "nodes": 2, "rules": ("mean",), "steps": 40, "every": 10, "lr": 3e-3, **changes}
    return study.Study(**options)


class Script:
    """A learner whose checkpoints have given losses, on validation or on the test part."""

    def __init__(self, losses: list[float]) -> None:
        self.vector = torch.zeros(2)
        self._losses = losses

    def train(self, steps: int) -> TrainReport:
        self.vector += 1
        return TrainReport(loss=0.0, steps=steps, samples=steps)

    def evaluate(self) -> Evaluation:
        loss = self._losses[int(self.vector[0])]
        return Evaluation(loss=loss, metrics={"nrmse": loss})


def test_the_checkpoint_is_chosen_by_validation_and_never_by_test(study: ModuleType) -> None:
    kept = study.BestKept(Script([9.0, 1.0, 5.0, 7.0]), Script([4.0, 3.0, 2.0, 6.0])).descend(25, 10)
    assert (kept.best.tolist(), kept.best_steps, kept.best_loss) == ([2.0, 2.0], 20, 2.0)
    assert kept.hindsight.loss == 1.0
    assert kept.measure().loss == 5.0


def test_a_fine_tuning_that_never_helps_keeps_its_start(study: ModuleType) -> None:
    first = study.BestKept(Script([3.0, 2.0, 1.0]), Script([3.0, 2.0, 5.0])).descend(20, 10)
    kept = study.BestKept(Script([9.0, 1.0, 0.0, 0.0]), Script([9.0, 1.0, 2.0, float("nan")]))
    kept.start_from(first).descend(20, 10)
    assert (kept.best.tolist(), kept.best_steps, kept.best_loss) == ([1.0, 1.0], 10, 1.0)
    assert kept.start_from(kept).vector.tolist() == [1.0, 1.0]


def test_fine_tuning_counts_the_steps_that_led_to_its_start(study: ModuleType) -> None:
    first = study.BestKept(Script([3.0, 2.0]), Script([3.0, 2.0])).descend(10, 10)
    kept = study.BestKept(Script([9.0, 1.0, 0.0]), Script([9.0, 1.0, 0.5])).start_from(first).descend(5, 10)
    assert (kept.best.tolist(), kept.best_steps) == ([2.0, 2.0], 15)


def test_every_way_is_measured_at_every_site(study: ModuleType, folder: Path) -> None:
    results = study.run(small(study, folder), [0, 1], Console(quiet=True))
    assert results.names("way") == [
        "persistence",
        "alone",
        "alone in hindsight",
        "pooled",
        "gossip, mean",
        "personalised, mean",
    ]
    assert results.names("site") == ["A", "B"]
    for way in results.names("way"):
        for site in results.names("site"):
            assert len(results.by_seed(way, site)) == 2
            assert np.isfinite(results.by_seed(way, site)).all()
    assert min(results.by_seed("alone", "A")) < results.by_seed("persistence", "A")[0]
    pairs = zip(results.by_seed("alone in hindsight", "A"), results.by_seed("alone", "A"), strict=True)
    assert all(best <= chosen for best, chosen in pairs)
    assert results.against_alone("alone", "A") == [0.0, 0.0]
    # both seeds, two runs of 4 and 2 rounds, two nodes with one neighbour each
    assert results.verdicts["mean"] == {"accepted": 24, "rejected": 0}


def test_the_same_seed_gives_the_same_figures(study: ModuleType, folder: Path) -> None:
    first, second = (study.run(small(study, folder), [3], Console(quiet=True)) for _ in range(2))
    assert first.outcomes == second.outcomes


def test_all_ways_share_initial_model_and_first_half(study: ModuleType, folder: Path) -> None:
    plans = [small(study, folder).plan(5, rule, steps) for rule, steps in (("mean", 40), ("balance", 20))]
    learners = [plan.learner(0) for plan in plans]
    for learner in learners:
        learner.train(10)
    assert torch.equal(learners[0].vector, learners[1].vector)
    pooled = plans[0].on(plans[0].shards[0], "pooled")
    assert torch.equal(pooled.vector, plans[0].learner(1).vector)


def test_the_test_part_of_every_node_of_a_site_is_the_same(study: ModuleType, folder: Path) -> None:
    plan = small(study, folder, nodes=4).plan(0)
    first, second = plan.shards[:2]
    truth = [shard.info["scaling"].backward(shard.test_targets.astype(float)) for shard in (first, second)]
    np.testing.assert_allclose(truth[0], truth[1], rtol=1e-4)


def test_shares_of_the_budget_are_whole_rounds(study: ModuleType, folder: Path) -> None:
    assert [small(study, folder, shared=shared).first_steps for shared in (0.0, 0.3, 0.5, 0.9)] == [10, 10, 20, 40]


def test_differences_to_alone_are_paired_by_seed(study: ModuleType) -> None:
    results = study.Results(study.Study("", 3))
    for way, factor in (("alone", 1.0), ("gossip, mean", 0.9)):
        for seed, level in ((0, 1.0), (1, 2.0)):
            for site, node, add in (("A", 0, 0.0), ("A", 1, 0.5), ("B", 2, 0.0)):
                error = factor * (level + add)
                results.outcomes.append(study.Outcome(way, seed, site, node, 0, {"nrmse": error}))
    assert results.by_seed("alone", "A") == [1.25, 2.25]
    assert results.against_alone("gossip, mean", "A") == pytest.approx([-0.1, -0.1])
    assert results.average_against_alone("gossip, mean") == pytest.approx([-0.1, -0.1])


def test_the_command_prints_tables_and_writes_files(
    study: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(folder), "--nodes", "2", "--seeds", "1", "--steps", "20", "--every", "10"]
    study.main([*words, "--rule", "balance", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "personalised" in printed
    assert "balance: 6 neighbours accepted, 0 rejected" in printed.replace("\n", " ")
    report = json.loads((tmp_path / "out" / "lte-2.json").read_text())
    assert report["study"]["steps"] == 20
    assert report["verdicts"] == {"balance": {"accepted": 6, "rejected": 0}}
    with (tmp_path / "out" / "lte-2.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(report["outcomes"]) == 6 * 2
    assert {f"mae_{channel}" for channel in CHANNELS} <= set(rows[0])


def test_a_mistake_is_told_in_one_line(study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        study.main(["--data", str(tmp_path / "absent")])
    assert left.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "is no folder" in message
