"""Things that happen to processes, done to real ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from command_line import Command, gone, started, until
from mosquitto import mosquitto_program

pytestmark = pytest.mark.processes

RING = ("--nodes", "5", "--topology", "ring", "--set", "task.model=softmax", "--set", "train.local_steps=2")
QUICK_TO_NOTICE = ("--set", "gossip.heartbeat_s=0.3", "--set", "gossip.liveness_s=2.0")
WIRES = ("mqtt", "libp2p")
WITHOUT_END = ("--rounds", "1000000", "--set", "evaluate_every=100")


def over(wire: str, *arguments: str) -> tuple[str, ...]:
    return ("--transport", wire, *RING, *arguments)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_others_go_on_when_a_node_is_killed(tmp_path: Path, mode: str, wire: str) -> None:
    with started(tmp_path / "out", *over(wire, *QUICK_TO_NOTICE, "--mode", mode, "--rounds", "100")) as command:
        command.await_first_round()
        os.kill(command.node("node-3"), signal.SIGKILL)
        code, printed, _ = command.finish()
    assert code == 0
    assert "1 died" in printed
    assert [(event["node"], event["signal"]) for event in command.events("died")] == [("node-3", "SIGKILL")]
    # Its neighbours have lost a link of theirs, and nobody lost one to a neighbour that came to its end.
    lost = sorted((event["node"], event["peer"]) for event in command.events("link-down"))
    assert lost == ([] if wire == "mqtt" else [("node-2", "node-3"), ("node-4", "node-3")])
    summary = command.run().summary
    assert [fault["event"] for fault in summary["faults"] if fault["node"] == "node-3"] == ["died"]
    assert summary["rounds_done"] == 100
    for of_nodes in (summary["vector_digest"], summary["accuracy"]["per_node"]):
        assert sorted(of_nodes) == ["0", "1", "2", "4"]


def _all_gone(command: Command) -> bool:
    return not command.children and gone(command.process.pid)


@pytest.mark.parametrize("wire", WIRES)
def test_an_interrupt_saves_the_run(tmp_path: Path, wire: str) -> None:
    with started(tmp_path / "out", *over(wire, *WITHOUT_END)) as command:
        command.await_first_round()
        command.interrupt()
        code, printed, _ = command.finish()
        assert _all_gone(command)
    assert code == 130
    assert "interrupted" in printed
    run = command.run()
    assert run.summary["interrupted"]
    assert run.summary["rounds_done"] >= 1
    assert sorted(run.summary["vector_digest"]) == ["0", "1", "2", "3", "4"]
    assert run.summary["faults"] == []
    assert set(run.rounds["node"].to_pylist()) == set(range(5))


def test_an_interrupt_saves_a_run_in_virtual_time(tmp_path: Path) -> None:
    with started(tmp_path / "out", *RING, *WITHOUT_END, "--transport", "memory") as command:
        command.await_first_round()
        command.interrupt()
        code, printed, told = command.finish()
    assert (code, "interrupted" in printed, "Traceback" in told) == (130, True, False)
    run = command.run()
    assert run.summary["interrupted"]
    assert run.summary["rounds_done"] >= 1
    assert run.summary["accuracy"] is None or run.summary["accuracy"]["mean"] > 0


@pytest.mark.parametrize("wire", WIRES)
def test_a_run_whose_nodes_all_die_has_failed(tmp_path: Path, wire: str) -> None:
    with started(tmp_path / "out", *over(wire, *WITHOUT_END)) as command:
        command.await_first_round()
        for pid, name in command.children.items():
            if name.startswith("node-"):
                os.kill(pid, signal.SIGKILL)
        code, _, told = command.finish()
    assert code == 1
    assert told.splitlines()[-1].startswith("gossipfl: error: all 5 nodes died")
    assert len(command.events("died")) == 5


@pytest.mark.parametrize("wire", WIRES)
def test_a_second_interrupt_kills(tmp_path: Path, wire: str) -> None:
    with started(tmp_path / "out", *over(wire, *WITHOUT_END, "--set", "gossip.drain_s=2")) as command:
        command.await_first_round()
        stuck = command.node("node-2")
        os.kill(stuck, signal.SIGSTOP)  # it cannot hear the first one
        command.interrupt()
        others = {pid for pid, name in command.children.items() if name.startswith("node-")} - {stuck}
        until(lambda: all(gone(pid) for pid in others), "the other nodes to leave")
        assert not gone(stuck)
        command.interrupt()
        code, _, _ = command.finish()
        assert _all_gone(command)
    assert code == 130
    assert [(event["node"], event["signal"]) for event in command.events("died")] == [("node-2", "SIGKILL")]
    assert sorted(command.run().summary["vector_digest"]) == ["0", "1", "3", "4"]


@pytest.mark.parametrize(
    ("wire", "kind", "processes"),
    [
        ("mqtt", "embedded", 6),
        pytest.param("mqtt", "mosquitto", 6, marks=pytest.mark.mosquitto),
        ("libp2p", "embedded", 5),
    ],
)
def test_nothing_outlives_a_testbed_that_is_killed(tmp_path: Path, wire: str, kind: str, processes: int) -> None:
    if kind == "mosquitto":
        mosquitto_program()
    options = over(wire, *WITHOUT_END, "--set", f"broker.kind={kind}")
    # A test that kills the testbed keeps it from tidying up, so what it leaves is left in the test's own folder.
    with started(tmp_path / "out", *options, TMPDIR=str(tmp_path)) as command:
        command.await_first_round()
        children = command.children
        assert len(children) == processes
        command.process.kill()
        until(lambda: all(gone(pid) for pid in children), "all processes to end")


def test_a_node_that_hangs_loses_its_links_and_gets_them_back(tmp_path: Path) -> None:
    limits = ("--set", "libp2p.ping_s=0.2", "--set", "libp2p.dead_s=0.6", "--set", "gossip.liveness_s=20")
    with started(tmp_path / "out", *over("libp2p", *limits, "--rounds", "100", "--mode", "sync")) as command:
        command.await_first_round()
        stuck = command.node("node-3")
        os.kill(stuck, signal.SIGSTOP)
        await_lines(command, "node-2: link-down", "node-4: link-down")
        os.kill(stuck, signal.SIGCONT)
        code, _, told = command.finish()
    assert code == 0, told
    for neighbour in ("node-2", "node-4"):
        ups = [event for event in command.events("link-up") if (event["node"], event["peer"]) == (neighbour, "node-3")]
        assert len(ups) == 2
    summary = command.run().summary
    assert (summary["rounds_done"], len(summary["vector_digest"])) == (100, 5)
    assert set(summary["fault_counts"]) == {"link-down"}


def await_lines(command: Command, *texts: str) -> None:
    """Return when the command has told each of these, in any order."""
    assert command.process.stderr is not None
    awaited = set(texts)
    for line in command.process.stderr:
        awaited -= {text for text in awaited if text in line}
        if not awaited:
            return
    pytest.fail(f"ended with {command.process.wait()} before it told: {', '.join(awaited)}")


@pytest.mark.parametrize("kind", ["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def test_a_broker_that_dies_is_started_again_and_no_node_is(tmp_path: Path, kind: str) -> None:
    if kind == "mosquitto":
        mosquitto_program()
    with started(
        tmp_path / "out", *RING, "--rounds", "100", "--set", f"broker.kind={kind}", "--mode", "sync"
    ) as command:
        command.await_first_round()
        broker = command.broker
        os.kill(broker, signal.SIGKILL)
        until(lambda: gone(broker), "the broker to die")
        code, printed, _ = command.finish()
    assert code == 0
    assert "1 broker_restarted" in printed
    assert [event["exit_status"] for event in command.events("broker_restarted")] == [-signal.SIGKILL]
    assert command.events("died") == []
    assert {event["node"] for event in command.events("link-down")} == {f"node-{node}" for node in range(5)}
    summary = command.run().summary
    assert summary["rounds_done"] == 100
    assert len(summary["vector_digest"]) == 5
