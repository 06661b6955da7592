"""A real Ray cluster: what it computes is what this machine computes, whoever dies on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import last_line
from small_grids import outcome_free_of_time

from gossipfl.experiments.cell import measure
from gossipfl.experiments.grid import load_experiment
from gossipfl.experiments.ledger import read_records

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]


def test_a_cluster_that_loses_a_worker_and_a_node_gives_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = [sys.executable, "-W", "error", str(Path(__file__).with_name("ray_grid.py")), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=140, check=False)
    assert done.returncode == 0, done.stderr
    told = last_line(done.stdout)
    assert told["workers"] == 2
    assert told["removed"]
    assert told["left"] == 0
    assert len(told["attempts"]) == 16
    assert max(told["attempts"]) > 1  # that of the worker that was killed
    assert "raylet" not in done.stdout + done.stderr
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cells = load_experiment(tmp_path / "small.toml").grid.cells
    records = read_records(tmp_path / "out" / "results.jsonl")
    for cell in cells:
        result = outcome_free_of_time(measure(cell.engine, cell.spec()))
        assert {key: records[cell.hash][key] for key in result} == result
