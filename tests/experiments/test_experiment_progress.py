from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from small_grids import BASE, GRID, experiment_of, made_up

from gossipfl.experiments import estimate as estimate_module
from gossipfl.experiments.estimate import estimate
from gossipfl.experiments.executors import Outcome
from gossipfl.experiments.grid import Cell
from gossipfl.experiments.progress import LiveBar, PlainLines, watch
from gossipfl.experiments.run import Tally


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Cell, ...]:
    return experiment_of(tmp_path, "seeds = 25\n" + BASE + GRID).grid.cells


def outcomes_of(cells: tuple[Cell, ...], error: str | None = None) -> list[Outcome]:
    return [Outcome(cell, 1, {"error": error} if error else made_up(cell)) for cell in cells]


def test_plain_lines_tell_pace_failures_and_the_end(cells: tuple[Cell, ...]) -> None:
    now, file = [100.0], io.StringIO()
    lines, tally = PlainLines(file, lambda: now[0]), Tally(100, 0, 100)

    def tell(at_s: float, done: int, failed: int = 0) -> list[str]:
        file.seek(0)
        file.truncate()
        now[0] = 100.0 + at_s
        tally.done += done
        tally.failed += failed
        new = outcomes_of(cells[:done]) + outcomes_of(cells[:failed], "no luck")
        lines.on_batch(new, tally, 2)
        return file.getvalue().splitlines()

    assert tell(8, 0) == []
    assert tell(10, 10) == ["10 of 100 cells, 2 workers"]  # how long workers took to start says nothing
    assert tell(14, 30) == []
    assert tell(20, 0) == ["40 of 100 cells, 3 a second, 20 s left, 2 workers"]
    assert tell(21, 0, 1) == ["failed: mean, none, any, seed 0: no luck"]
    assert tell(22, 59) == ["100 of 100 cells, 1 failed, 7.5 a second, 0 s left, 2 workers"]


def test_a_bar_shows_the_same_and_leaves_nothing(cells: tuple[Cell, ...]) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    with LiveBar(console, lambda: 0.0) as bar:
        bar.on_batch([], Tally(100, 0, 100), 2)
        bar.on_batch(outcomes_of(cells[:1], "no luck"), Tally(100, 0, 100, 3, 1), 2)
    shown = file.getvalue()
    assert "starting workers" in shown
    assert "4 of 100 cells, 1 failed" in shown
    assert "no luck" in shown


def test_the_display_suits_where_it_goes(cells: tuple[Cell, ...]) -> None:
    file = io.StringIO()
    for quiet in (True, False):
        with watch(quiet=quiet, console=Console(file=file)) as watcher:
            watcher.on_batch(outcomes_of(cells[:1]), Tally(1, 0, 1, 1), 1)
        assert bool(file.getvalue()) is not quiet


@pytest.mark.parametrize(("rounds", "every"), [(40, 2), (400, 20), (1, 1), (41, 3)])
def test_an_estimate_goes_on_as_the_probe_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, every: int
) -> None:
    now, started = [0.0], []

    def takes_time(_engine: str, spec: object) -> None:
        done = spec.rounds  # type: ignore[attr-defined]
        started.append(done)
        now[0] += 1.0 + 0.5 * done + 2.0 * (done // every)

    monkeypatch.setattr(estimate_module, "measure", takes_time)
    base = BASE.replace("rounds = 2", f"rounds = {rounds}")
    cells = experiment_of(tmp_path, "seeds = 2\n" + base + GRID).grid.cells
    told = estimate(cells, 4, now=lambda: now[0])
    assert told.cell_s == pytest.approx(1.0 + 0.5 * rounds + 2.0 * rounds / every)
    assert told.total_s == pytest.approx(told.cell_s * len(cells) / 4)
    assert max(started) <= max(2 * every, 1)
