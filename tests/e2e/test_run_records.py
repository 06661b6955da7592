"""What a run leaves behind, and that the same run leaves the same."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, call, last_line, started
from mosquitto import free_port, make_certificates, mosquitto_program, password_lines, running_mosquitto

from gossipfl.records import RunData, load_run

SMALL = ("--nodes", "5", "--topology", "ring", "--rounds", "4", "--set", "task.model=softmax")
ATTACKED = [*SMALL, "--byzantine", "1", "--attack", "sign-flip"]

CONTRACT = {
    "schema": int,
    "engine": str,
    "transport": (str, type(None)),
    "task": str,
    "model_parameters": int,
    "nodes": int,
    "byzantine": list,
    "topology": dict,
    "rule": str,
    "attack": (str, type(None)),
    "codec": str,
    "mode": str,
    "rounds": int,
    "seed": int,
    "wall_s": float,
    "startup_s": float,
    "round_s_median": float,
    "train_s_median": float,
    "train_cpu_s_median": (float, type(None)),
    "cores": int,
    "bytes_sent_per_node_per_round": float,
    "accuracy": dict,
    "loss": dict,
    "consensus_distance": float,
    "filter": dict,
    "faults": list,
    "vector_digest": dict,
    "peak_rss_bytes": int,
    "version": str,
}
EXTRAS = {
    "dropped",
    "fault_counts",
    "metrics",
    "personalised",
    "private_bytes_per_node_median",
    "pss_bytes_nodes",
    "rounds_done",
}


def run(capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> tuple[RunData, str]:
    """Run in this process, in virtual time or as matrices, and return the records and stdout."""
    code, printed, told = call(capsys, *arguments, "--out", str(out))
    assert code == 0, told
    return load_run(out), printed


def check_contract(summary: dict[str, Any], extras: set[str]) -> None:
    assert set(CONTRACT) <= set(summary)
    assert set(summary) - set(CONTRACT) <= extras
    for key, kind in CONTRACT.items():
        assert isinstance(summary[key], kind), key
    assert set(summary["topology"]) == {"name", "edges", "spectral_gap"}
    assert set(summary["accuracy"]) == set(summary["loss"]) == {"mean", "min", "max", "per_node"}
    assert set(summary["filter"]) == {
        "honest_accepted",
        "honest_rejected",
        "byzantine_accepted",
        "byzantine_rejected",
    }


def check_files(records: RunData, out: Path) -> None:
    summary = records.summary
    liar = summary["byzantine"][0]
    honest = [str(node) for node in range(5) if node != liar]
    assert sorted(summary["vector_digest"]) == sorted(summary["accuracy"]["per_node"]) == honest
    assert summary["vector_digest"] != {}
    assert sum(summary["filter"].values()) == 4 * 2 * 4
    assert summary["filter"]["byzantine_rejected"] > 0
    rows = records.rounds.to_pylist()
    assert sorted((row["node"], row["round"]) for row in rows) == [(node, t) for node in range(5) for t in range(4)]
    assert {row["node"] for row in rows if row["byzantine"]} == {liar}
    kinds = Counter(event["event"] for event in records.events())
    assert kinds["accept"] + kinds["reject"] == 5 * 2 * 4
    verdict = next(event for event in records.events() if event["event"] == "reject")
    assert set(verdict) == {"t", "node", "event", "peer", "round", "distance", "threshold", "reason"}
    assert verdict["distance"] > verdict["threshold"]
    assert records.spec["nodes"] == records.topology["nodes"] == 5
    assert len(records.topology["edges"]) == 5
    page = (out / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "sign-flip" in page


@pytest.mark.parametrize("engine", [("testbed", "run", "--transport", "memory"), ("simulate",)])
def test_a_run_in_this_process_leaves_all_records(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: tuple[str, ...]
) -> None:
    records, printed = run(capsys, tmp_path / "out", *engine, *ATTACKED, "--json")
    assert last_line(printed) == records.summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    check_contract(dict(records.summary), EXTRAS)
    check_files(records, tmp_path / "out")


@pytest.mark.processes
@pytest.mark.parametrize("transport", ["mqtt", "libp2p"])
def test_a_run_of_processes_leaves_all_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], transport: str
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [*COMMAND, "testbed", "run", "--transport", transport, *ATTACKED, "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=45,
    )
    records = load_run(out)
    assert last_line(done.stdout) == records.summary
    summary = dict(records.summary)
    check_contract(summary, EXTRAS)
    check_files(records, out)
    assert (summary["transport"], summary["faults"]) == (transport, [])
    assert summary["train_cpu_s_median"] > 0
    assert 0 < summary["startup_s"] <= summary["wall_s"]
    assert 0 < summary["private_bytes_per_node_median"] < summary["peak_rss_bytes"]
    in_virtual_time, _ = run(capsys, tmp_path / "virtual", "testbed", "run", "--transport", "memory", *ATTACKED)
    assert summary["vector_digest"] == in_virtual_time.summary["vector_digest"]
    assert summary["filter"] == in_virtual_time.summary["filter"]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_same_seed_is_the_same_run_in_virtual_time(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str
) -> None:
    options = ["testbed", "run", "--transport", "memory", *ATTACKED, "--mode", mode, "--no-report"]
    options += ["--set", "gossip.spread=3", "--set", "faults.drop=0.1", "--set", "faults.delay_s=[0.001, 0.02]"]
    first, _ = run(capsys, tmp_path / "first", *options, "--seed", "7")
    again, _ = run(capsys, tmp_path / "again", *options, "--seed", "7")
    other, _ = run(capsys, tmp_path / "other", *options, "--seed", "8")
    told = [(tmp_path / name / "events.jsonl").read_bytes() for name in ("first", "again", "other")]
    assert told[0] == told[1] != told[2]
    assert first.rounds.equals(again.rounds)
    assert first.summary["vector_digest"] == again.summary["vector_digest"]
    assert not set(first.summary["vector_digest"].values()) & set(other.summary["vector_digest"].values())


def test_a_graph_file_brings_its_nodes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    graph = tmp_path / "seven.edges"
    graph.write_text("".join(f"{node} {(node + 1) % 7}\n" for node in range(7)))
    options = ("--topology", str(graph), "--byzantine", "6", "--attack", "gaussian", "--set", "task.model=softmax")
    records, _ = run(capsys, tmp_path / "out", "simulate", *options, "--rounds", "1", "--no-report")
    assert (records.summary["nodes"], records.spec["nodes"], records.topology["nodes"]) == (7, 7, 7)
    assert len(records.summary["byzantine"]) == 6


@pytest.mark.parametrize("engine", [("testbed", "run", "--transport", "memory"), ("simulate",)])
def test_more_nodes_than_examples_draw_with_replacement(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: tuple[str, ...]
) -> None:
    options = "--nodes 6 --topology ring --rounds 2 --set task.model=softmax --set partition.samples=20 --no-report"
    records, _ = run(capsys, tmp_path / "out", *engine, *options.split())
    assert records.spec["partition"]["samples"] == 20
    assert records.summary["rounds_done"] == 2


def over_a_broker(out: Path, *pairs: str) -> RunData:
    sets = [word for pair in pairs for word in ("--set", pair)]
    with started(out, *SMALL, *sets) as command:
        code, _, told = command.finish()
    assert code == 0, told
    run = command.run()
    assert run.summary["rounds_done"] == 4
    assert run.summary["faults"] == []
    return run


@pytest.mark.processes
def test_the_own_broker_takes_a_port_and_a_password(tmp_path: Path) -> None:
    port = free_port()
    run = over_a_broker(tmp_path / "out", f"broker.port={port}", "broker.username=site", "broker.password=s-e-c-r-e-t")
    assert {event["detail"] for event in run.events() if event["event"] == "link-up"} == {f"127.0.0.1:{port}"}
    assert all(b"s-e-c-r-e-t" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


@pytest.mark.processes
@pytest.mark.mosquitto
def test_a_private_mosquitto_is_started(tmp_path: Path) -> None:
    mosquitto_program()
    run = over_a_broker(tmp_path / "out", "broker.kind=mosquitto")
    (address,) = {event["detail"] for event in run.events() if event["event"] == "link-up"}
    assert address.startswith("127.0.0.1:")


@pytest.mark.processes
@pytest.mark.mosquitto
def test_a_named_broker_is_used_with_password_and_tls(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "certificates")
    lines = [*password_lines(tmp_path, {"site": "right"}), *files.lines()]
    with running_mosquitto(tmp_path, lines) as (port, _):
        run = over_a_broker(
            tmp_path / "out",
            "broker.host=127.0.0.1",
            f"broker.port={port}",
            "broker.username=site",
            "broker.password=right",
            f"broker.tls.ca={files.ca}",
        )
    assert {event["detail"] for event in run.events() if event["event"] == "link-up"} == {f"127.0.0.1:{port}"}
