"""docs/experiments.md keeps its word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import call
from small_grids import Inline, Unseen, experiment_of, made_up

from gossipfl.cli import app
from gossipfl.experiments.checks import check_cells
from gossipfl.experiments.document import Document, ReportSpec
from gossipfl.experiments.folder import claimed
from gossipfl.experiments.ledger import read_records
from gossipfl.experiments.run import run_experiment

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_its_examples_are_sound(tmp_path: Path) -> None:
    small, everything = (experiment_of(tmp_path, text) for text in blocks("toml"))
    assert len(small.grid.cells) == 63
    check_cells(small)
    check_cells(everything)
    assert everything.document.name == "everything"
    # 2 settings x 2 rates x 3 rules x (1 + 2 x 2); exclude takes (3 attackers, median) and (ring, gaussian, seed 2)
    combinations = 2 * 2 * 3 * 5 - 2 * 2 * 2
    assert len(everything.grid.cells) == 3 * combinations - 2 * (3 * 2 - 1) + 3 * 2


def test_it_explains_every_key_option_and_record(tmp_path: Path) -> None:
    keys = blocks("toml")[1]
    for name in [*Document.model_fields, *ReportSpec.model_fields]:
        assert re.search(rf"^\[*{name}\b", keys, re.MULTILINE), name
    gossipfl: Any = typer.main.get_command(app)
    command = gossipfl.commands["experiment"].commands["run"]
    for option in command.params[1:]:
        if option.name != "help":
            assert option.opts[0] in PAGE, option.name
    experiment = experiment_of(tmp_path, blocks("toml")[0])
    with claimed(tmp_path / "out", resume=False):
        run_experiment(experiment, tmp_path / "out", Inline(made_up), Unseen(), limit=1)
    (record,) = read_records(tmp_path / "out" / "results.jsonl").values()
    for name in [*record, *record["series"]]:
        assert f"`{name}`" in PAGE, name


def test_its_program_prints_what_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = experiment_of(tmp_path, blocks("toml")[0])
    with claimed(Path("runs/rules"), resume=False):
        run_experiment(experiment, Path("runs/rules"), Inline(made_up), Unseen())
    (program,) = blocks("python")
    exec(compile(program, "docs/experiments.md", "exec"), {})
    shown = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    monkeypatch.setattr("gossipfl.experiments.page._pictures", lambda *_: iter(()))
    _, printed, _ = call(capsys, "experiment", "report", "runs/rules", "--regret")
    assert len(shown) == 3
    for rule, worst, mean in shown:
        assert re.search(rf"^ {rule} +{worst} +{mean} ", printed, re.MULTILINE)
