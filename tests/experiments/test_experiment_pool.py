"""The local engine with workers that do what a test tells them: answer, fail, die, never start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from small_grids import BASE, experiment_of

from gossipfl.errors import GossipflError
from gossipfl.experiments import pool as pool_module
from gossipfl.experiments.executors import Interrupt, Outcome
from gossipfl.experiments.grid import Cell
from gossipfl.experiments.pool import LocalPool

SPEAKS = """
import json, os, signal, sys, pathlib
marks = pathlib.Path({marks!r})
def once(name, times):
    for at in range(times):
        try:
            (marks / f"{{name}}-{{at}}").touch(exist_ok=False)
            return True
        except FileExistsError:
            pass
    return False
{start}
os.write(1, b'{{"ready":true}}\\n')
for line in sys.stdin.buffer:
    job = json.loads(line)
    seed = job["spec"]["seed"]
    {each}
    os.write(1, json.dumps({{"answer": seed, "pid": os.getpid(), "wall_s": {wall_s}}}).encode() + b"\\n")
"""

Speak = Callable[..., None]


@pytest.fixture
def speak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Speak:
    """Return a function that makes workers run a program of their own, with ``each`` job's ``seed`` at hand."""
    marks = tmp_path / "marks"
    marks.mkdir()

    def use(*, each: str = "pass", start: str = "", wall_s: float = 0.001) -> None:
        program = SPEAKS.format(marks=str(marks), start=start, each=each, wall_s=wall_s)
        monkeypatch.setattr(pool_module, "PROGRAM", program)

    return use


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Cell, ...]:
    return experiment_of(tmp_path, "seeds = 40\n" + BASE + "[grid]\nrule = ['mean']\n").grid.cells


def collected(pool: LocalPool, cells: tuple[Cell, ...]) -> list[Outcome]:
    with Interrupt() as interrupt:
        return [outcome for batch in pool.batches(cells, interrupt) for outcome in batch]


def make_pool(tmp_path: Path, workers: int = 2) -> LocalPool:
    return LocalPool(workers, log=tmp_path / "log.txt")


def test_every_cell_has_its_own_answer(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak()
    outcomes = collected(make_pool(tmp_path, 3), cells)
    assert {outcome.cell.hash for outcome in outcomes} == {cell.hash for cell in cells}
    assert all(outcome.result["answer"] == outcome.cell.seed for outcome in outcomes)
    assert all(outcome.attempts == 1 for outcome in outcomes)


def test_no_more_workers_than_cells(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak(each="open(marks / str(os.getpid()), 'w').close()")
    collected(make_pool(tmp_path, 8), cells[:2])
    assert len(list((tmp_path / "marks").iterdir())) == 2


def test_workers_are_handed_long_cells_one_by_one(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak(wall_s=60.0)
    pool = make_pool(tmp_path)
    waiting = iter(cells)
    with Interrupt() as interrupt:
        batches = pool.batches(waiting, interrupt)
        while not next(batches):
            pass
        batches.close()
    assert len(list(waiting)) >= len(cells) - 4


def test_a_cell_whose_process_is_killed_is_tried_again(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak(each="if seed == 7 and once('kill', 2): os.kill(os.getpid(), signal.SIGKILL)")
    outcomes = collected(make_pool(tmp_path), cells)
    assert len(outcomes) == len(cells)
    assert {outcome.cell.seed: outcome.attempts for outcome in outcomes if outcome.attempts > 1} == {7: 3}
    assert all(outcome.error is None and outcome.result["answer"] == outcome.cell.seed for outcome in outcomes)


def test_a_cell_that_kills_every_process_is_given_up(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak(each="if seed in (3, 4): os.kill(os.getpid(), signal.SIGKILL)")
    outcomes = collected(make_pool(tmp_path), cells)
    assert len(outcomes) == len(cells)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert sorted(outcome.cell.seed for outcome in failed) == [3, 4]
    assert {outcome.error for outcome in failed} == {"its process died 3 times, at last by SIGKILL (out of memory?)"}


def test_an_exit_says_its_code(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak(each="os._exit(5)")
    (outcome,) = collected(make_pool(tmp_path), cells[:1])
    assert outcome.error == "its process died 3 times, at last with exit code 5"


def test_workers_that_cannot_start_end_the_experiment(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak(start="raise SystemExit('no torch here')")
    with pytest.raises(
        GossipflError, match=r"no worker can start, the last one ended with exit code 1; .*log\.txt says why"
    ):
        collected(make_pool(tmp_path), cells)
    assert "no torch here" in (tmp_path / "log.txt").read_text()


def test_an_interrupt_loses_nothing_that_was_finished(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    # The answer to seed 5 is in the pipe before the interrupt, the worker then never comes back.
    speak(each="if seed == 6: os.kill(os.getppid(), signal.SIGINT); signal.pause()")
    outcomes = collected(make_pool(tmp_path, 1), cells)
    assert [outcome.cell.seed for outcome in outcomes] == [0, 1, 2, 3, 4, 5]


def test_closing_the_batches_leaves_no_process(speak: Speak, tmp_path: Path, cells: tuple[Cell, ...]) -> None:
    speak()
    with Interrupt() as interrupt:
        batches = make_pool(tmp_path).batches(cells, interrupt)
        outcomes: list[Outcome] = []
        while not outcomes:
            outcomes = list(next(batches))
        batches.close()
    with pytest.raises(ProcessLookupError):
        os.kill(outcomes[0].result["pid"], 0)


def test_a_second_interrupt_is_not_held_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.seen
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
