from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from small_grids import BASE, GRID, experiment_of, outcome_free_of_time

from gossipfl.config import RunSpec, load_spec
from gossipfl.experiments import cell as cell_module
from gossipfl.experiments.cell import Job, carry_out, measure
from gossipfl.experiments.checks import Checked, check_cells
from gossipfl.experiments.measures import Measures, spread
from gossipfl.records import load_run
from gossipfl.tasks.base import Evaluation

ATTACKED = {"nodes": 6, "topology": "ring", "rounds": 3, "attack": "gaussian", "byzantine": 1, "transport": "memory"}
SMALL = ("task.model=softmax", "train.local_steps=1", "train.batch=8")


def spec_of(**flags: Any) -> RunSpec:
    return load_spec(None, {**ATTACKED, **flags}, SMALL)


@pytest.mark.parametrize("rule", ["mean", "balance"])
def test_light_results_are_those_of_the_full_records(tmp_path: Path, rule: str) -> None:
    spec = spec_of(rule=rule)
    light, full = measure("simulate", spec), measure("simulate", spec, tmp_path / "full")
    distances = light["series"].pop("consensus_distance")
    assert full["series"].pop("consensus_distance") == [None, None, distances[-1]]
    assert light == full
    summary = load_run(tmp_path / "full").summary
    per_node = list(summary["accuracy"]["per_node"].values())
    assert light["accuracy"] == {
        "mean": fmean(per_node),
        "min": min(per_node),
        "max": max(per_node),
        "std": pstdev(per_node),
    }
    assert light["loss"]["max"] == summary["loss"]["max"]
    assert light["filter"] == summary["filter"]
    assert light["consensus_distance"] == summary["consensus_distance"]
    assert light["bytes_per_node_per_round"] == summary["bytes_sent_per_node_per_round"]
    worst = min(summary["accuracy"]["per_node"], key=lambda node: summary["accuracy"]["per_node"][node])
    assert light["worst"]["node"] == int(worst)


def test_agents_end_where_matrices_end() -> None:
    simulated, real = measure("simulate", spec_of()), measure("testbed", spec_of())
    assert real["accuracy"] == pytest.approx(simulated["accuracy"])
    assert real["filter"] == simulated["filter"]
    assert real["bytes_per_node_per_round"] > simulated["bytes_per_node_per_round"]  # frames and signatures
    assert real["series"]["round"] == simulated["series"]["round"] == [1, 2, 3]


def test_what_agents_can_play_passes_the_checks(tmp_path: Path) -> None:
    grid = GRID.replace("sign-flip", "silence")
    experiment = experiment_of(tmp_path, 'engine = "testbed"\n' + BASE + "transport = 'memory'\n" + grid)
    assert check_cells(experiment) == Checked(plans=4, built=4)
    assert check_cells(experiment, budget_s=-1.0) == Checked(plans=4, built=1)


def test_the_series_ends_with_the_result() -> None:
    result = measure("simulate", spec_of(rounds=45))
    series = result["series"]
    assert series["round"] == [*range(3, 46, 3)]
    assert series["accuracy"][-1] == pytest.approx(result["accuracy"]["mean"], rel=1e-5)
    assert series["accuracy_min"][-1] == pytest.approx(result["accuracy"]["min"], rel=1e-5)
    assert series["bytes"][-1] == pytest.approx(45 * result["bytes_per_node_per_round"], rel=1e-5)


def test_a_data_set_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossipfl.tasks import registry

    loads = []
    load = registry.load_task
    monkeypatch.setattr(registry, "load_task", lambda *given: loads.append(given) or load(*given))
    cell_module._task.cache_clear()
    first = measure("simulate", spec_of())
    measure("simulate", spec_of(rule="mean"))
    assert measure("simulate", spec_of()) == first
    assert len(loads) == 1
    cell_module._task.cache_clear()


def test_what_goes_wrong_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    known = carry_out(Job("simulate", {**spec_of().as_dict(), "rule": "meen"}))
    assert known["error"].startswith('rule "meen" is unknown')
    unfit = carry_out(Job("simulate", {**spec_of().as_dict(), "mode": "async"}))
    assert unfit["error"] == 'mode async needs engine = "testbed"; the simulator knows sync rounds only'
    monkeypatch.setattr(cell_module, "_simulate", lambda spec: [spec].pop(1))
    defect = carry_out(Job("simulate", spec_of().as_dict()))
    assert defect["error"] == "IndexError: pop index out of range"
    assert "Traceback" in defect["trace"]
    assert defect["wall_s"] >= 0


def test_a_job_is_told_in_json_and_gives_the_same(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, BASE + GRID)
    cell = experiment.grid.cells[1]
    answer = carry_out(Job(cell.engine, cell.spec().model_dump(mode="json")))
    assert outcome_free_of_time(answer) == measure(cell.engine, cell.spec())


def test_a_task_without_accuracy_is_ranked_by_its_loss() -> None:
    measures = Measures(rounds=1, sent_bytes=10.0)
    ends = {2: Evaluation(0.5, metrics={"nrmse": 0.1}), 5: Evaluation(0.75, metrics={"nrmse": 0.3})}
    measures.evaluated(ends, 0.25)
    result = measures.result()
    assert result["accuracy"] is None
    assert result["worst"] == {"node": 5, "accuracy": None, "loss": 0.75}
    assert result["metrics"]["nrmse"] == {"mean": 0.2, "min": 0.1, "max": 0.3, "std": pytest.approx(0.1)}
    assert result["series"] == {
        "round": [1],
        "bytes": [10.0],
        "consensus_distance": [0.25],
        "loss": [0.625],
        "nrmse": [0.2],
    }


def test_a_spread_over_what_is_not_all_known_is_unknown() -> None:
    assert spread([0.5, None]) is None
    assert spread([]) is None
    assert spread([0.5, 1.0]) == {"mean": 0.75, "min": 0.5, "max": 1.0, "std": 0.25}
