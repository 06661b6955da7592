from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl.cli.progress import Silence
from gossipfl.config import RunSpec, load_spec
from gossipfl.errors import ConfigError
from gossipfl.records import RunData, RunRecords, load_run
from gossipfl.testbed import simulated
from gossipfl.testbed.run import run_testbed
from gossipfl.testbed.simulated import run_simulation

SMALL = {"nodes": 6, "topology": "ring", "rounds": 3, "seed": 3}


def spec_of(*sets: str, **flags: Any) -> RunSpec:
    return load_spec(None, {**SMALL, **flags}, ["task.model=softmax", "train.local_steps=3", *sets])


def simulate(spec: RunSpec, out: Path) -> RunData:
    with RunRecords(out) as records:
        records.write_summary(run_simulation(spec, records, Silence()))
    return load_run(out)


@pytest.mark.parametrize("rule", ["mean", "balance"])
@pytest.mark.parametrize("attack", [None, "sign-flip"])
def test_it_ends_where_the_agents_end(tmp_path: Path, rule: str, attack: str | None) -> None:
    spec = spec_of("keep_vectors=true", rule=rule, attack=attack, byzantine=1 if attack else 0, transport="memory")
    simulated_run = simulate(spec, tmp_path / "simulated")
    with RunRecords(tmp_path / "agents") as records:
        records.write_summary(run_testbed(spec, records, Silence()))
    agents_run = load_run(tmp_path / "agents")
    with (
        np.load(tmp_path / "simulated" / "vectors.npz") as ours,
        np.load(tmp_path / "agents" / "vectors.npz") as theirs,
    ):
        assert sorted(ours) == sorted(theirs) == [str(node) for node in range(6)]
        for node in ours:
            assert np.linalg.norm(ours[node] - theirs[node]) <= 1e-5 * np.linalg.norm(theirs[node])
    for key in ("filter", "byzantine", "topology", "rounds_done", "model_parameters"):
        assert simulated_run.summary[key] == agents_run.summary[key]
    assert simulated_run.topology == agents_run.topology
    assert simulated_run.summary["accuracy"]["mean"] == pytest.approx(agents_run.summary["accuracy"]["mean"])


def test_the_summary_knows_what_a_simulator_can_know(tmp_path: Path) -> None:
    summary = simulate(spec_of("personalise_steps=2"), tmp_path / "out").summary
    assert (summary["engine"], summary["transport"]) == ("simulator", None)
    assert summary["train_cpu_s_median"] is None
    assert summary["round_s_median"] > summary["train_s_median"] > 0
    # Each of two neighbours gets a copy of 650 float32 values with a little around them.
    assert 2 * 2600 <= summary["bytes_sent_per_node_per_round"] < 2 * 2700
    assert sorted(summary["personalised"]) == [str(node) for node in range(6)]
    assert sorted(summary["vector_digest"]) == [str(node) for node in range(6)]


def test_measuring_personalised_models_changes_no_model(tmp_path: Path) -> None:
    plain = simulate(spec_of(), tmp_path / "plain").summary
    personal = simulate(spec_of("personalise_steps=5"), tmp_path / "personal").summary
    assert personal["vector_digest"] == plain["vector_digest"]
    assert plain["personalised"] is None


def test_many_verdicts_are_counted_without_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(byzantine=1, attack="gaussian")
    told = simulate(spec, tmp_path / "told")
    monkeypatch.setattr(simulated, "VERDICT_LINES", 1)
    counted = simulate(spec, tmp_path / "counted")
    assert len(list(told.events())) == 6 * 2 * 3
    assert list(counted.events()) == []
    assert counted.topology["verdicts"] == told.topology["verdicts"]
    assert sum(rejected for *_, rejected in counted.topology["verdicts"]) > 0


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (spec_of(mode="async"), "mode async: the simulator knows sync rounds only"),
        (spec_of("faults.drop=0.5", transport="memory"), "faults: the simulator has no wire"),
        (spec_of(rule="balence"), "balence"),
        (spec_of(attack="gausian", byzantine=1), "gausian"),
        (spec_of(codec="flaot32"), "flaot32"),
    ],
)
def test_what_cannot_be_simulated_is_a_mistake(tmp_path: Path, spec: RunSpec, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        simulate(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_simulation_keeps_its_rounds(tmp_path: Path) -> None:
    class Impatient(Silence):
        def on_round(self, row: Any) -> None:
            if row.round == 1 and row.node == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RunRecords(tmp_path / "out") as records:
        run_simulation(spec_of(), records, Impatient())
    run = load_run(tmp_path / "out")
    assert run.summary["interrupted"]
    assert run.summary["rounds_done"] == 2
    assert run.rounds.num_rows == 12
