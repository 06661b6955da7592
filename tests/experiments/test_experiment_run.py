"""Running, being killed, going on: whatever happens on the way, the results are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import COMMAND, call, gone, last_line, until
from small_grids import BASE, GRID, Inline, Unseen, experiment_of, made_up, outcome_free_of_time, reference

from gossipfl.errors import ConfigError, DataError
from gossipfl.experiments.folder import claimed, read_index
from gossipfl.experiments.grid import Cell, Experiment
from gossipfl.experiments.ledger import SYNC_S, Ledger, read_records
from gossipfl.experiments.run import Tally, run_experiment


def carry_out(experiment: Experiment, out: Path, executor: Inline, limit: int | None = None) -> Tally:
    with claimed(out, resume=True):
        return run_experiment(experiment, out, executor, Unseen(), limit=limit)


def results_in(out: Path) -> dict[str, dict[str, Any]]:
    """Return the results by hash, without what identifies the cell."""
    identity = {"schema", "hash", "status", "labels", "seed", "engine", "spec"}
    return {
        hash_: {key: value for key, value in outcome_free_of_time(dict(record)).items() if key not in identity}
        for hash_, record in read_records(out / "results.jsonl").items()
    }


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_the_whole_command_killed_and_resumed_gives_what_an_undisturbed_run_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = experiment_of(tmp_path, "seeds = 3\n" + BASE + GRID)
    out = tmp_path / "out"
    arguments = ["experiment", "run", str(experiment.path), "--out", str(out), "--workers", "1", "--resume"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    results = out / "results.jsonl"
    until(lambda: results.exists() and results.read_bytes().count(b"\n") >= 2, "two results")
    (worker,) = children_of(process.pid)
    process.kill()
    process.wait()
    until(lambda: gone(worker), "the worker to go with its parent")
    kept = results_in(out)
    with results.open("ab") as file:
        file.write(b'{"hash":"cut off in the mid')
    code, printed, _ = call(capsys, *arguments, "--json")
    assert code == 0
    told = last_line(printed)
    assert (told["cells"], told["before"], told["done"], told["left"]) == (12, len(kept), 12 - len(kept), 0)
    assert results_in(out) == reference(experiment)
    assert len(results.read_bytes().splitlines()) == 12


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            tail = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(tail[1]) == pid:
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment_loses_no_finished_cell(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    experiment = experiment_of(tmp_path, "seeds = 20\n" + BASE + GRID)
    out = tmp_path / "out"
    finished = 0
    for _ in range(3):
        last, torn = chance.randrange(1, 25), chance.randrange(0, 60)
        kill_after(experiment, out, last, torn)
        finished += last
        assert len(results_in(out)) == finished
    assert carry_out(experiment, out, Inline(made_up)).left == 0
    assert results_in(out) == {cell.hash: outcome_free_of_time(made_up(cell)) for cell in experiment.grid.cells}


def kill_after(experiment: Experiment, out: Path, finished: int, torn: int) -> None:
    """Let a process finish some cells, begin to write the next one's line, and be killed at its ``torn``-th byte."""
    begun: list[str] = []

    def dies(cell: Cell) -> None:
        begun.append(cell.hash)
        if len(begun) > finished:
            with (out / "results.jsonl").open("ab", buffering=0) as file:
                file.write(json.dumps({"schema": 1, "hash": cell.hash, "status": "done"}).encode()[:torn])
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        try:
            carry_out(experiment, out, Inline(made_up, dies))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def test_resuming_runs_only_what_has_no_results_and_failed_cells_again(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "seeds = 2\n" + BASE + GRID)
    begun: list[str] = []

    def fails_at_seed_1(cell: Cell) -> dict[str, Any]:
        return {"error": "no luck", "trace": "Traceback: here\n"} if cell.seed == 1 else made_up(cell)

    out = tmp_path / "out"
    first = carry_out(experiment, out, Inline(fails_at_seed_1, lambda cell: begun.append(cell.hash)), limit=5)
    assert (first.planned, first.done, first.failed, first.left) == (5, 4, 1, 4)
    assert "no luck\nTraceback: here" in (out / "log.txt").read_text()
    begun.clear()
    second = carry_out(experiment, out, Inline(made_up, lambda cell: begun.append(cell.hash)))
    assert (second.before, second.planned, second.done, second.left) == (4, 4, 4, 0)
    assert begun == [cell.hash for cell in experiment.grid.cells[4:]]
    records = read_records(out / "results.jsonl")
    assert {record["status"] for record in records.values()} == {"done"}
    assert "trace" not in (out / "results.jsonl").read_text()
    third = carry_out(experiment, out, Inline(made_up, lambda cell: begun.append(cell.hash)))
    assert (third.planned, len(begun)) == (0, 4)


def test_another_spec_in_the_same_folder_adds_its_cells(tmp_path: Path) -> None:
    out = tmp_path / "out"
    carry_out(experiment_of(tmp_path, BASE + GRID), out, Inline(made_up))
    larger = experiment_of(tmp_path, BASE + GRID.replace('"mean"', '"mean", "median"'))
    tally = carry_out(larger, out, Inline(made_up))
    assert (tally.before, tally.done) == (4, 2)
    index = read_index(out)
    assert index.axes["rule"] == ("mean", "median", "balance")
    assert len(index.cells) == 6
    assert (out / "spec.toml").read_text() == larger.text


def test_a_folder_with_an_experiment_is_kept_unless_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, out = experiment_of(tmp_path), tmp_path / "out"
    carry_out(experiment, out, Inline(made_up), limit=1)
    code, _, line = call(capsys, "experiment", "run", str(experiment.path), "--out", str(out))
    assert code == 2
    assert line.count("\n") == 1
    assert "holds an experiment; add --resume to go on with it" in line


def test_two_runs_do_not_write_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, out = experiment_of(tmp_path), tmp_path / "out"
    with claimed(out, resume=False):
        arguments = ("experiment", "run", str(experiment.path), "--out", str(out), "--resume")
        code, _, line = call(capsys, *arguments)
        assert code == 2
        assert f"process {os.getpid()} writes there now" in line
    holder = os.fork()
    if holder == 0:
        with claimed(out, resume=True):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    with claimed(out, resume=True):  # the lock of a process that was killed is gone with it
        pass


def test_what_the_ledger_writes_is_whole_and_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now, syncs = tmp_path / "results.jsonl", [0.0], []
    path.write_bytes(b'{"hash":"a","status":"failed"}\n{"hash":"b","status":"done"}\n{"hash":"c","sta')
    monkeypatch.setattr(os, "fsync", lambda _: syncs.append(now[0]))
    with Ledger(path, lambda: now[0]) as ledger:
        for at in range(7):
            now[0] = at * SYNC_S / 4
            ledger.append([{"hash": "a", "status": "done", "at": at}])
        assert syncs == [SYNC_S]
        ledger.append([])
        now[0] = 10 * SYNC_S
        ledger.append([])
        assert syncs == [SYNC_S, 10 * SYNC_S]
    assert syncs == [SYNC_S, 10 * SYNC_S]  # nothing new to write down at the end
    assert read_records(path) == {
        "a": {"hash": "a", "status": "done", "at": 6},
        "b": {"hash": "b", "status": "done"},
    }


@pytest.mark.parametrize("tail", [b"", b"x" * 200_000, b"\0" * 70_000])
def test_a_tail_of_any_length_is_cut(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "results.jsonl"
    for whole in (b"", b'{"hash":"a"}\n'):
        path.write_bytes(whole + tail)
        with Ledger(path):
            pass
        assert path.read_bytes() == whole


def test_a_broken_line_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"hash":"a"}\nnothing\n{"hash":"b"}\n')
    with pytest.raises(DataError, match=r"line 2 is no result: b'nothing.*delete that line"):
        read_records(path)


def test_an_interrupt_ends_between_two_cells(tmp_path: Path) -> None:
    experiment, out = experiment_of(tmp_path, "seeds = 4\n" + BASE + GRID), tmp_path / "out"

    def interrupts_at_the_fifth(cell: Cell) -> None:
        if cell is experiment.grid.cells[4]:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        carry_out(experiment, out, Inline(made_up, interrupts_at_the_fifth))
    assert len(read_records(out / "results.jsonl")) == 5
    assert carry_out(experiment, out, Inline(made_up)).left == 0


def test_a_failed_cell_is_told_by_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = sys.modules["gossipfl.cli.experiment"]  # its package has an app of that name
    experiment, out = experiment_of(tmp_path), tmp_path / "out"
    bad = experiment.grid.cells[2].hash
    executor = Inline(lambda cell: {"error": "no luck"} if cell.hash == bad else made_up(cell))
    monkeypatch.setattr(command, "_executor", lambda *_: executor)
    arguments = ("experiment", "run", str(experiment.path), "--out", str(out), "--json")
    code, printed, told = call(capsys, *arguments)
    assert code == 1
    assert json.loads(printed) == {
        "out": str(out),
        "cells": 4,
        "before": 0,
        "planned": 4,
        "done": 3,
        "failed": 1,
        "left": 1,
    }
    assert "failed: balance, none, any, seed 0: no luck" in told
    executor = Inline(made_up)
    code, printed, _ = call(capsys, *arguments, "--resume")
    assert (code, last_line(printed)["left"]) == (0, 0)


def test_a_dry_run_counts_estimates_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, out = experiment_of(tmp_path, "seeds = 50\n" + BASE + GRID), tmp_path / "out"
    code, printed, _ = call(
        capsys, "experiment", "run", str(experiment.path), "--out", str(out), "--dry-run", "--json", "--workers", "2"
    )
    assert code == 0
    told = last_line(printed)
    assert (told["cells"], told["seeds"], told["merged"]) == (200, 50, 0)
    assert told["checked"] == {"plans": 4, "built": 4}
    assert told["estimate"]["total_s"] == pytest.approx(told["estimate"]["cell_s"] * 200 / 2)
    assert not out.exists()


def test_full_records_are_kept_where_they_are_wanted(tmp_path: Path) -> None:
    from gossipfl.experiments.cell import Job
    from gossipfl.experiments.cell import carry_out as carry_out_job
    from gossipfl.experiments.executors import job_of

    cell = experiment_of(tmp_path, 'records = "full"\n' + BASE + GRID).grid.cells[0]
    job = job_of(cell, str(tmp_path / "runs"))
    assert job == Job("simulate", cell.spec().model_dump(mode="json"), f"{tmp_path}/runs/{cell.hash}")
    carry_out_job(job)
    assert (tmp_path / "runs" / cell.hash / "summary.json").exists()


def test_a_lock_that_cannot_be_made_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), claimed(tmp_path / "file" / "out", resume=False):
        pass
