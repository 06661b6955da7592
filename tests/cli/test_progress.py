from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from gossipfl.cli.outcome import outcome_lines
from gossipfl.cli.progress import LINE_S, LiveTable, PlainLines, Standing, node_table, watch
from gossipfl.config import RunSpec, load_spec
from gossipfl.records import Event, NodeRound
from gossipfl.summary import RunFacts, RunStatistics, summarise


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def row(node: int, round_: int, accuracy: float | None = None, *, byzantine: bool = False) -> NodeRound:
    return NodeRound(
        node,
        f"node-{node}",
        byzantine,
        round_,
        float(round_),
        1.0 / (round_ + 1),
        test_accuracy=accuracy,
        accepted_honest=2,
        rejected_byzantine=1,
    )


@pytest.fixture
def spec() -> RunSpec:
    return load_spec(None, {"nodes": 3, "rounds": 10, "byzantine": 1, "attack": "gaussian"})


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_network_stands_where_its_slowest_node_does(spec: RunSpec) -> None:
    standing = Standing(spec)
    standing.on_round(row(0, 0, 0.5))
    standing.on_round(row(1, 0, 0.7))
    assert standing.rounds_done == 0  # node 2 has not been heard of
    standing.on_round(row(2, 4, 0.1, byzantine=True))
    standing.on_round(row(0, 1))
    assert standing.rounds_done == 1
    assert standing.line() == ("round 1/10  loss 0.7500  test accuracy 0.600 (0.500 to 0.700)  accepted 6, rejected 3")


def test_plain_lines_tell_the_first_round_the_last_and_some_between(spec: RunSpec) -> None:
    file, clock = io.StringIO(), Clock()
    lines = PlainLines(spec, file, clock)
    for round_ in range(10):
        clock.now_s += LINE_S / 4
        for node in range(3):
            lines.on_round(row(node, round_, 0.5, byzantine=node == 2))
    rounds = [line.split()[1] for line in file.getvalue().splitlines()]
    assert rounds == ["1/10", "4/10", "8/10", "10/10"]


def test_plain_lines_tell_a_fault_at_once(spec: RunSpec) -> None:
    file = io.StringIO()
    lines = PlainLines(spec, file, Clock())
    lines.on_event(Event(1.25, "accept", "node-0", {"peer": "node-1"}))
    lines.on_event(Event(1.25, "died", "node-0", {"signal": "SIGKILL"}))
    assert file.getvalue() == "1.2 s: node-0: died: signal SIGKILL\n"


def test_a_table_has_a_row_per_node(spec: RunSpec) -> None:
    standing = Standing(spec)
    for node in range(3):
        standing.on_round(row(node, 0, 0.5 if node else None, byzantine=node == 2))
    console = terminal()
    console.print(node_table(standing))
    lines = shown(console).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["node-0", "1/10", "1.0000", "–", "–", "2", "1"]
    assert lines[3].split() == ["node-2", "Byzantine", "1/10", "1.0000", "–", "0.500", "2", "1"]


def test_a_live_table_shows_the_latest_and_starts_no_thread(spec: RunSpec) -> None:
    console, clock = terminal(), Clock()
    threads = threading.active_count()
    with LiveTable(spec, console, clock) as table:
        assert threading.active_count() == threads
        table.on_round(row(0, 0))
        table.on_round(row(1, 6))
        assert "7/10" not in shown(console)  # too soon after the last drawing
        clock.now_s += 1
        table.on_round(row(1, 7))
        assert "8/10" in shown(console)
        table.on_event(Event(3.0, "died", "node-2"))
        assert "3.0 s: node-2: died" in shown(console)


def test_large_networks_are_shown_together() -> None:
    console, clock = terminal(), Clock()
    with LiveTable(load_spec(None, {"nodes": 128, "rounds": 5}), console, clock) as table:
        for node in range(128):
            clock.now_s += 1
            table.on_round(row(node, 0, 0.5))
    assert "round 1/5  loss 1.0000  test accuracy 0.500" in shown(console)
    assert "node-5" not in shown(console)


def test_what_is_watched_depends_on_the_terminal(spec: RunSpec) -> None:
    plain = Console(file=io.StringIO(), force_terminal=False)
    with watch(spec, quiet=False, console=plain) as progress:
        assert isinstance(progress, PlainLines)
    with watch(spec, quiet=False, console=terminal()) as progress:
        assert isinstance(progress, LiveTable)
    silent = terminal()
    with watch(spec, quiet=True, console=silent) as progress:
        progress.on_event(Event(0.0, "died", "node-0"))
        progress.on_round(row(0, 0))
    assert shown(silent) == ""


def test_an_outcome_leaves_out_what_is_unknown(spec: RunSpec) -> None:
    lines = dict(outcome_lines(summarise(spec, RunFacts("simulator"), RunStatistics())))
    assert lines["rounds"] == "0 of 10"
    assert set(lines) == {"run", "rounds", "filter"}


def test_an_outcome_tells_results_filter_traffic_and_faults(spec: RunSpec) -> None:
    statistics = RunStatistics()
    statistics.add_event(Event(0.0, "died", "node-0"))
    statistics.add_round(
        NodeRound(
            0, "node-0", False, 0, 0.0, 1.0, 0.25, 0.9, {"nrmse": 0.5}, 3, 1, 2, 4, bytes_sent=81_460, round_s=0.3
        )
    )
    facts = RunFacts("testbed", "mqtt", byzantine=[1], topology_name="ring", wall_s=3.0, peak_rss_bytes=5 * 10**8)
    lines = dict(outcome_lines({**summarise(spec, facts, statistics), "interrupted": True}))
    assert lines == {
        "status": "interrupted",
        "run": "digits, pace against gaussian, 3 nodes (1 Byzantine) on ring, sync",
        "test accuracy": "0.900  (0.900 to 0.900 over honest nodes)",
        "test loss": "0.2500  (0.2500 to 0.2500 over honest nodes)",
        "nrmse": "0.5000  (0.5000 to 0.5000)",
        "rounds": "1 of 10 in 3.0 s  (0.3 s a round)",
        "filter": "honest: 3 accepted, 2 rejected;  Byzantine: 1 accepted, 4 rejected",
        "traffic": "81.5 kB sent per node and round",
        "memory": "500 MB at the peak, shared pages once a process",
        "faults": "1 died",
    }


def test_a_node_that_died_is_not_waited_for(spec: RunSpec) -> None:
    standing = Standing(spec)
    for node in range(3):
        standing.on_round(row(node, 0))
    for round_ in (1, 2):
        standing.on_round(row(0, round_))
        standing.on_round(row(1, round_))
    assert standing.rounds_done == 1
    standing.on_event(Event(3.0, "died", "node-2"))
    standing.on_event(Event(3.0, "died", "node-2"))
    assert standing.rounds_done == 3
    standing.on_round(row(2, 1))  # what it still had to say
    assert standing.rounds_done == 3
