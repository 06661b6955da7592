from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gossipfl.config import load_spec
from gossipfl.errors import ConfigError, DataError
from gossipfl.records import (
    CHUNK_ROWS,
    RECORD_FILES,
    Event,
    NodeRound,
    RunRecords,
    default_out,
    load_run,
    write_json,
)
from gossipfl.summary import MAX_FAULTS, RunFacts, RunStatistics, quantity, summarise
from gossipfl.topology import Topology


def row(node: int = 0, round_: int = 0, **values: Any) -> NodeRound:
    given: dict[str, Any] = {"name": f"node-{node}", "byzantine": False, "t_s": float(round_), "loss": 0.5}
    return NodeRound(node=node, round=round_, **{**given, **values})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def test_what_is_written_is_read_back(out: Path) -> None:
    spec = load_spec(None, {"nodes": 3})
    with RunRecords(out) as records:
        records.write_spec(spec)
        records.write_topology(Topology("line", 3, ((0, 1), (1, 2)), positions=((0, 0), (1, 0), (2, 0))))
        records.add_event(Event(0.5, "reject", "node-0", {"peer": "node-1", "distance": 2.0, "threshold": 1.0}))
        records.add_event(Event(0.6, "accept", "node-0", {"peer": "node-1"}))
        records.add_event(Event(0.7, "reject", "node-0", {"peer": "node-1"}))
        records.add_round(row(0, 0, test_accuracy=0.9, bytes_sent=10))
        records.add_round(row(1, 0, loss=None, metrics={"nrmse": 0.25}))
        records.write_summary({"schema": 1})
    run = load_run(out)
    assert run.summary == {"schema": 1}
    assert run.spec == spec.as_dict()
    assert run.topology["edges"] == [[0, 1], [1, 2]]
    assert run.topology["positions"] == [[0, 0], [1, 0], [2, 0]]
    assert run.topology["verdicts"] == [["node-0", "node-1", 1, 2]]
    assert [event["event"] for event in run.events()] == ["reject", "accept", "reject"]
    assert next(run.events()) == {
        "t": 0.5,
        "node": "node-0",
        "event": "reject",
        "peer": "node-1",
        "distance": 2.0,
        "threshold": 1.0,
    }
    assert run.rounds.column("test_accuracy").to_pylist() == [0.9, None]
    assert run.rounds.column("loss").to_pylist() == [0.5, None]
    assert run.rounds.column("bytes_sent").to_pylist() == [10, None]
    assert run.rounds.column("metric_nrmse").to_pylist() == [None, 0.25]


def test_metrics_that_appear_late_get_a_column(out: Path) -> None:
    with RunRecords(out) as records:
        for round_ in range(CHUNK_ROWS + 1):
            records.add_round(row(0, round_, metrics={"mae": 1.0} if round_ == CHUNK_ROWS else {}))
    rounds = load_run(out).rounds
    assert rounds.num_rows == CHUNK_ROWS + 1
    assert rounds.column("metric_mae").null_count == CHUNK_ROWS
    assert rounds.column("round").to_pylist()[-1] == CHUNK_ROWS


def test_a_run_that_fails_keeps_its_rounds(out: Path) -> None:
    def fail() -> None:
        with RunRecords(out) as records:
            records.add_round(row())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    run = load_run(out)
    assert run.rounds.num_rows == 1
    assert run.summary == {}


def test_a_run_that_fails_before_its_first_round_leaves_nothing(out: Path) -> None:
    with RunRecords(out) as records:
        records.write_spec(load_spec(None, {}))
        records.add_event(Event(0.0, "died", "node-0"))
    assert not out.exists()


def test_a_folder_of_ones_own_is_not_removed(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    with RunRecords(out):
        pass
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_an_earlier_run_is_not_overwritten(out: Path) -> None:
    with RunRecords(out) as records:
        records.add_round(row())
    with pytest.raises(ConfigError, match="holds an earlier run; add --force"):
        RunRecords(out)
    assert load_run(out).rounds.num_rows == 1


def test_force_replaces_an_earlier_run_when_the_new_one_begins(out: Path) -> None:
    with RunRecords(out) as records:
        records.add_round(row())
        records.write_summary({"schema": 1})
    with RunRecords(out, force=True) as records:
        records.write_spec(load_spec(None, {}))
    assert load_run(out).summary == {"schema": 1}  # the second failed before its first round
    with RunRecords(out, force=True) as records:
        for round_ in range(3):
            records.add_round(row(0, round_))
    run = load_run(out)
    assert (run.rounds.num_rows, run.summary) == (3, {})


def test_a_folder_that_cannot_be_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be a folder"):
        RunRecords(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be a folder"):
        RunRecords(tmp_path / "file" / "below")


def test_closed_records_take_nothing_more(out: Path) -> None:
    records = RunRecords(out)
    records.add_round(row())
    records.close()
    records.close()
    with pytest.raises(ValueError, match="closed"):
        records.add_round(row())


def test_large_networks_count_verdicts_without_lines(out: Path) -> None:
    with RunRecords(out) as records:
        records.write_topology(Topology("line", 2, ((0, 1),)))
        records.add_round(row())
        records.add_event(Event(1.0, "accept", "node-0", {"peer": "node-1"}))
        records.count_verdicts("node-0", "node-1", 4, 5)
    run = load_run(out)
    assert len(list(run.events())) == 1
    assert run.topology["verdicts"] == [["node-0", "node-1", 5, 5]]


def test_events_reach_the_file_while_the_run_goes_on(out: Path) -> None:
    with RunRecords(out) as records:
        records.add_event(Event(0.0, "join", "node-0"))
        records.add_event(Event(2.0, "join", "node-1"))
        assert len((out / "events.jsonl").read_text().splitlines()) == 2
        records.add_round(row())


def test_numbers_that_are_not_finite_are_null(out: Path) -> None:
    event = Event(0.0, "reject", "node-0", {"distance": float("inf"), "all": [float("nan"), 1.0]})
    assert json.loads(event.as_json()) == {
        "t": 0.0,
        "node": "node-0",
        "event": "reject",
        "distance": None,
        "all": [None, 1.0],
    }
    out.mkdir(parents=True)
    write_json(out / "x.json", {"a": float("-inf"), 1: (2.0,)})
    assert json.loads((out / "x.json").read_text()) == {"a": None, "1": [2.0]}
    assert [path.name for path in out.iterdir()] == ["x.json"]


def test_a_line_cut_off_by_a_crash_is_left_out(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "events.jsonl").write_text('{"event":"join"}\n{"eve')
    assert [event["event"] for event in load_run(out).events()] == ["join"]
    (out / "events.jsonl").write_text('{"event":"join"}\nnonsense\n{}\n')
    with pytest.raises(DataError, match="no JSON"):
        list(load_run(out).events())


@pytest.mark.parametrize("name", [name for name in RECORD_FILES if name != "events.jsonl"])
def test_broken_records_are_named(out: Path, name: str) -> None:
    out.mkdir(parents=True)
    (out / name).write_bytes(b"\xff[broken")
    with pytest.raises(DataError, match=name) as caught:
        load_run(out)
    assert "\n" not in str(caught.value)


def test_a_folder_without_records_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        load_run(tmp_path)
    with pytest.raises(DataError, match="holds no records"):
        load_run(tmp_path / "nowhere")


def test_default_folders_never_collide(tmp_path: Path) -> None:
    spec, now = load_spec(None, {}), datetime(2026, 1, 2, 3, 4, 5)
    first = default_out(spec, now, tmp_path)
    assert first.name == "20260102-030405-digits-pace-8"
    first.mkdir()
    second = default_out(spec, now, tmp_path)
    second.mkdir()
    assert len({first, second, default_out(spec, now, tmp_path)}) == 3


CONTRACT = [
    "schema",
    "engine",
    "transport",
    "task",
    "model_parameters",
    "nodes",
    "byzantine",
    "topology",
    "rule",
    "attack",
    "codec",
    "mode",
    "rounds",
    "seed",
    "wall_s",
    "startup_s",
    "round_s_median",
    "train_s_median",
    "train_cpu_s_median",
    "cores",
    "bytes_sent_per_node_per_round",
    "accuracy",
    "loss",
    "consensus_distance",
    "filter",
    "faults",
    "vector_digest",
    "peak_rss_bytes",
    "version",
]


def test_a_summary_has_the_keys_of_the_contract_and_null_for_the_unknown() -> None:
    summary = summarise(load_spec(None, {}), RunFacts("simulator"), RunStatistics())
    assert set(CONTRACT) <= set(summary)
    assert set(summary["topology"]) == {"name", "edges", "spectral_gap"}
    unknown = [
        "transport",
        "model_parameters",
        "wall_s",
        "startup_s",
        "round_s_median",
        "train_s_median",
        "train_cpu_s_median",
        "cores",
        "bytes_sent_per_node_per_round",
        "accuracy",
        "loss",
        "consensus_distance",
        "peak_rss_bytes",
    ]
    assert {name: summary[name] for name in unknown} == dict.fromkeys(unknown)
    json.dumps(summary, allow_nan=False)


def test_results_are_those_of_honest_nodes_that_finished() -> None:
    statistics = RunStatistics()
    for node, accuracy in enumerate((0.8, 0.9, 0.1, 0.5)):
        statistics.add_round(row(node, 0, byzantine=node == 2, test_accuracy=0.2, test_loss=3.0))
        statistics.add_round(row(node, 1, byzantine=node == 2, test_accuracy=accuracy, test_loss=1.0))
        if node != 3:
            statistics.add_round(row(node, 2, byzantine=node == 2))
    summary = summarise(load_spec(None, {}), RunFacts("testbed", byzantine=[2], lost=[3]), statistics)
    assert summary["accuracy"]["per_node"] == {"0": 0.8, "1": 0.9}
    assert summary["accuracy"]["mean"] == pytest.approx(0.85)
    assert (summary["accuracy"]["min"], summary["accuracy"]["max"]) == (0.8, 0.9)
    assert summary["loss"]["mean"] == 1.0
    assert summary["rounds_done"] == 3


def test_medians_bytes_and_verdicts() -> None:
    statistics = RunStatistics()
    for node, seconds in enumerate((1.0, 2.0, 9.0)):
        statistics.add_round(
            row(
                node,
                round_s=seconds,
                train_s=seconds / 2,
                bytes_sent=100 * node,
                byzantine=node == 2,
                accepted_honest=1,
                rejected_byzantine=2,
                rejected_honest=3,
            )
        )
    assert statistics.median("round_s") == 2.0
    assert statistics.median("train_s") == 1.0
    assert statistics.median("train_cpu_s") is None
    assert statistics.bytes_sent_per_node_per_round == 100.0
    # Only what honest nodes decided counts.
    assert statistics.verdicts == {
        "honest_accepted": 2,
        "honest_rejected": 6,
        "byzantine_accepted": 0,
        "byzantine_rejected": 4,
    }


def test_faults_are_listed_up_to_a_limit_and_all_counted() -> None:
    statistics = RunStatistics()
    for number in range(MAX_FAULTS + 7):
        statistics.add_event(Event(float(number), "died", f"node-{number}", {"signal": "SIGKILL"}))
        statistics.add_event(Event(float(number), "accept", "node-0"))
    summary = summarise(load_spec(None, {}), RunFacts("testbed"), statistics)
    assert summary["faults"][0] == {"t": 0.0, "node": "node-0", "event": "died", "signal": "SIGKILL"}
    assert len(summary["faults"]) == MAX_FAULTS
    assert summary["fault_counts"] == {"died": MAX_FAULTS + 7}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (814_600, "815 kB"), (999_700, "1 MB"), (4.12e8, "412 MB"), (3e15, "3e+03 TB")],
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value, "B") == text
