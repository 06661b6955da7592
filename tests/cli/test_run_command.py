from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer

from gossipfl.cli import main
from gossipfl.cli.run import Output, execute, process_started_s, run_command
from gossipfl.config import RunSpec, load_spec
from gossipfl.entry import run_app
from gossipfl.errors import ConfigError, GossipflError, TransportUnavailable
from gossipfl.records import NodeRound, Progress, RunRecords, load_run
from gossipfl.summary import RunFacts, summarise


def engine(spec: RunSpec, records: RunRecords, progress: Progress) -> Mapping[str, Any]:
    """Make up a run of a node."""
    for round_ in range(spec.rounds):
        row = NodeRound(0, "node-0", False, round_, float(round_), 1.0, test_accuracy=0.5, accepted_honest=2)
        records.add_round(row)
        progress.on_round(row)
    return summarise(spec, RunFacts("testbed", wall_s=2.0, startup_s=1.0), records.statistics)


def call(capsys: pytest.CaptureFixture[str], *arguments: str, using: Any = engine) -> tuple[int, str, str]:
    app = typer.Typer()
    app.command("run")(run_command(using, "Run."))
    app.command("other")(lambda: None)
    with pytest.raises(SystemExit) as end:
        run_app(app, "gossipfl", ["run", *arguments])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_options_reach_the_spec_and_records_the_folder(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    options = (
        "--nodes 6 --topology ring --transport memory --task mnist --rule mean --attack gaussian --byzantine 2 "
        "--rounds 3 --mode async --codec int8 --seed 7 --set attack.strength=5 --set train.lr=0.5 --no-report"
    )
    code, printed, _ = call(capsys, *options.split(), "--out", str(out))
    assert code == 0
    run = load_run(out)
    assert (
        run.spec
        == load_spec(
            None,
            {
                "nodes": 6,
                "topology": "ring",
                "transport": "memory",
                "task": "mnist",
                "rule": "mean",
                "attack": "gaussian",
                "byzantine": 2,
                "rounds": 3,
                "mode": "async",
                "codec": "int8",
                "seed": 7,
            },
            ["attack.strength=5", "train.lr=0.5"],
        ).as_dict()
    )
    assert run.summary["rounds_done"] == 3
    assert "mnist, mean against gaussian" in printed
    assert not (out / "report.html").exists()


def test_a_spec_file_is_read_and_the_report_written(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    spec = out.with_suffix(".toml")
    spec.write_text("rounds = 4\nnodes = 3\n")
    code, printed, _ = call(capsys, str(spec), "--nodes", "5", "--out", str(out))
    assert code == 0
    run = load_run(out)
    assert (run.spec["rounds"], run.spec["nodes"]) == (4, 5)
    assert printed.endswith(f" {out / 'report.html'}\n")
    assert (out / "report.html").exists()


def test_json_is_the_last_line_of_stdout(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    code, printed, told = call(capsys, "--json", "--no-report", "--out", str(out))
    assert code == 0
    assert json.loads(printed.splitlines()[-1]) == json.loads((out / "summary.json").read_text())
    assert len(printed.splitlines()) == 1
    assert "test accuracy" in told


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    assert call(capsys, "--quiet", "--no-report", "--out", str(out)) == (0, "", "")


def test_without_a_folder_one_is_made_below_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call(capsys, "--no-report")
    call(capsys, "--no-report")
    assert len(list((tmp_path / "runs").glob("*-digits-pace-8*"))) == 2


def test_a_finished_run_is_kept_unless_forced(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    call(capsys, "--no-report", "--seed", "1", "--out", str(out))
    code, _, told = call(capsys, "--no-report", "--seed", "2", "--out", str(out))
    assert code == 2
    assert told.count("\n") == 1
    assert "add --force" in told
    assert load_run(out).summary["seed"] == 1
    assert call(capsys, "--no-report", "--seed", "2", "--out", str(out), "--force")[0] == 0
    assert load_run(out).summary["seed"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--nodes", "x"], "Invalid value for '--nodes'"),
        (["--nodes"], "--nodes"),
        (["--bogus"], "--bogus"),
        (["nowhere.toml"], "nowhere.toml: no such file"),
        (["--nodes", "0"], "--nodes: must be at least 1, not 0"),
        (["--set", "rule"], "write it as key=value"),
        (["--attack", "gaussian"], "add --byzantine K"),
    ],
)
def test_a_mistake_is_one_line_and_two(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    code, printed, line = call(capsys, *arguments)
    assert (code, printed) == (2, "")
    assert line.startswith("gossipfl: error: ")
    assert line.count("\n") == 1
    assert told in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError('rule "balence" is unknown'), 2),
        (TransportUnavailable("no broker at localhost:1883"), 2),
        (GossipflError("a node failed\nfor a reason"), 1),
    ],
)
def test_what_an_engine_refuses_is_told_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], out: Path, error: Exception, code: int
) -> None:
    def refuse(*_: object) -> Mapping[str, Any]:
        raise error

    got, printed, told = call(capsys, "--out", str(out), using=refuse)
    assert (got, printed) == (code, "")
    assert told == f"gossipfl: error: {' '.join(str(error).split())}\n"
    assert not out.exists()


def test_a_defect_keeps_its_traceback(out: Path) -> None:
    def break_down(*_: object) -> Mapping[str, Any]:
        raise ZeroDivisionError

    app = typer.Typer()
    app.command()(run_command(break_down, "Run."))
    with pytest.raises(ZeroDivisionError):
        run_app(app, "gossipfl", ["--out", str(out)])


def test_an_interrupted_run_keeps_what_it_has(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    def interrupted(spec: RunSpec, records: RunRecords, progress: Progress) -> Mapping[str, Any]:
        engine(spec, records, progress)
        raise KeyboardInterrupt

    assert call(capsys, "--out", str(out), "--quiet", using=interrupted)[0] == 130
    assert load_run(out).rounds.num_rows == 40


def test_an_interrupted_run_with_a_summary_is_reported(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    def interrupted(spec: RunSpec, records: RunRecords, progress: Progress) -> Mapping[str, Any]:
        records.write_summary(engine(spec, records, progress))
        raise KeyboardInterrupt

    code, printed, _ = call(capsys, "--out", str(out), using=interrupted)
    assert code == 130
    assert "test accuracy" in printed
    assert (out / "report.html").exists()


def test_a_report_that_cannot_be_drawn_does_not_lose_the_run(
    capsys: pytest.CaptureFixture[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gossipfl.report.write_report", full)
    code, printed, told = call(capsys, "--out", str(out))
    assert code == 0
    assert "test accuracy" in printed
    assert "warning: no report: [Errno 28] No space left on device" in told


def test_an_engine_is_told_when_the_process_started(out: Path) -> None:
    seen: list[float | None] = []

    def note(spec: RunSpec, records: RunRecords, progress: Progress) -> Mapping[str, Any]:
        seen.append(records.started_s)
        return engine(spec, records, progress)

    execute(note, load_spec(None, {}), Output(out=out, force=False, json=False, quiet=True, report=False))
    assert seen[0] is not None
    # The kernel counts in hundredths of a second.
    assert seen[0] == pytest.approx(process_started_s(), abs=0.02)
    assert seen[0] < time.monotonic()


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gossipfl", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("gossipfl ")


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (["--help"], 0, "testbed"),
        ([], 2, "testbed"),
        (["testbed"], 2, "run"),
        (["testbed", "run", "--help"], 0, "gossipfl testbed run --nodes 8"),
        (["simulate", "--help"], 0, "gossipfl simulate --nodes 100"),
        (["report", "--help"], 0, "DIR"),
    ],
)
def test_help(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    shown: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gossipfl", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == code
    assert shown in printed.out
    assert "error" not in printed.err


def test_the_names_of_transports_are_completed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gossipfl"],
        env={**os.environ, "_GOSSIPFL_COMPLETE": "complete_bash", "COMP_CWORD": "4"}
        | {"COMP_WORDS": "gossipfl testbed run --transport m"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["memory", "mqtt"]


def test_report_draws_again(capsys: pytest.CaptureFixture[str], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call(capsys, "--out", str(out), "--no-report")
    monkeypatch.setattr(sys, "argv", ["gossipfl", "report", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out == f"{out / 'report.html'}\n"


def test_the_command_line_loads_nothing_heavy() -> None:
    program = (
        "import sys, gossipfl.cli, gossipfl.cli.progress\n"
        "heavy = 'torch numpy pyarrow matplotlib networkx sklearn scipy pandas trio libp2p'\n"
        "print(sorted(set(heavy.split()) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
