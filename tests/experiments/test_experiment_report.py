"""Reports of made-up results, against numbers worked out by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import call, last_line
from small_grids import experiment_of, made_up_of

from gossipfl.errors import ConfigError, DataError
from gossipfl.experiments import page as page_module
from gossipfl.experiments import printed
from gossipfl.experiments.executors import Outcome
from gossipfl.experiments.folder import write_index
from gossipfl.experiments.grid import ANY, Cell
from gossipfl.experiments.ledger import Ledger, record_of
from gossipfl.experiments.pivot import View, choose_view, pivots
from gossipfl.experiments.printed import number, regret_table
from gossipfl.experiments.progress import duration
from gossipfl.experiments.regret import regret
from gossipfl.experiments.results import Results, load_results

TEXT = """
name = "by-hand"
seeds = 2
[grid]
rule = ["mean", "balance", "median"]
attack = ["none", "gaussian"]
byzantine = [1, 2]
"""
# accuracy of seed 0 by rule, attack, byzantine; seed 1 has 0.02 more
ACCURACY = {
    ("mean", "none", ANY): 0.90,
    ("balance", "none", ANY): 0.86,
    ("median", "none", ANY): 0.80,
    ("mean", "gaussian", "1"): 0.20,
    ("balance", "gaussian", "1"): 0.84,
    ("median", "gaussian", "1"): 0.82,
    ("mean", "gaussian", "2"): 0.10,
    ("balance", "gaussian", "2"): 0.50,
    ("median", "gaussian", "2"): 0.70,
}
Make = Callable[..., Results]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep reports from drawing pictures, which takes seconds."""
    monkeypatch.setattr(page_module, "_pictures", lambda *_: iter(()))


def known(cell: Cell) -> dict[str, Any] | None:
    return made_up_of(ACCURACY[cell.labels] + 0.02 * cell.seed)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that writes an experiment with the results that it is told, None for a missing one."""

    def write(result: Callable[[Cell], dict[str, Any] | None] = known, text: str = TEXT) -> Results:
        experiment, out = experiment_of(tmp_path, text), tmp_path / "out"
        out.mkdir(exist_ok=True)
        write_index(out, experiment)
        told = [(cell, result(cell)) for cell in experiment.grid.cells]
        outcomes = [Outcome(cell, 1, one) for cell, one in told if one is not None]
        with Ledger(out / "results.jsonl") as ledger:
            ledger.append([record_of(outcome, experiment.grid) for outcome in outcomes])
        return load_results(out)

    return write


def without(*missing: tuple[str, ...], seeds: tuple[int, ...] = (0, 1)) -> Callable[[Cell], dict[str, Any] | None]:
    return lambda cell: None if cell.labels in missing and cell.seed in seeds else known(cell)


def test_tables_hold_means_deviations_and_the_worst_node(make: Make) -> None:
    results = make()
    one, two = pivots(results, choose_view(results), "accuracy")
    assert (one.setting, two.setting) == ((("byzantine", "1"),), (("byzantine", "2"),))
    assert (one.rows, one.columns) == ("rule", "attack")
    assert one.row_labels == ["mean", "balance", "median"]
    assert one.column_labels == ["none", "gaussian"]
    place = one.places["mean", "gaussian"]
    assert place.mean == pytest.approx(0.21)
    assert place.std == pytest.approx(0.02 / math.sqrt(2))
    assert place.worst == pytest.approx(0.10)
    assert (place.seeds, place.missing) == (2, 0)
    # what has no attack belongs to every number of attackers
    assert one.places["median", "none"] == two.places["median", "none"]
    assert two.places["median", "gaussian"].mean == pytest.approx(0.71)


def test_a_loss_is_worst_where_it_is_greatest(make: Make) -> None:
    results = make()
    place = pivots(results, choose_view(results, metrics=["loss"]), "loss")[0].places["mean", "none"]
    assert (place.mean, place.worst) == (pytest.approx(0.09), 1.0)


def test_any_axis_can_be_down_or_across(make: Make) -> None:
    results = make()
    view = choose_view(results, "byzantine", "rule")
    tables = {table.setting: table for table in pivots(results, view, "accuracy")}
    assert set(tables) == {(("attack", "none"),), (("attack", "gaussian"),)}
    table = tables[("attack", "gaussian"),]
    assert table.row_labels == ["1", "2"]
    assert table.places["2", "balance"].mean == pytest.approx(0.51)
    assert tables[("attack", "none"),].row_labels == [ANY]


def test_the_experiment_says_which_tables_it_wants(make: Make) -> None:
    results = make(text=TEXT + '[report]\nrows = "attack"\ncolumns = "byzantine"\nmetrics = ["loss", "accuracy_min"]\n')
    assert choose_view(results) == View("attack", "byzantine", ("loss", "accuracy_min"))
    assert choose_view(results, "rule", metrics=["accuracy"]) == View("rule", "byzantine", ("accuracy",))
    with pytest.raises(ConfigError, match='"rules" is no axis of by-hand; did you mean "rule"'):
        choose_view(results, "rules")
    with pytest.raises(ConfigError, match='no cell has the metric "acuracy"; did you mean "accuracy"'):
        choose_view(results, metrics=["acuracy"])


def test_regret_by_hand(make: Make) -> None:
    table = regret(make())
    # best: mean 0.91 without attack; balance 0.85 against one; median 0.71 against two attackers
    expected = {
        "median": (0.10, (0.10 + 0.02 + 0.00) / 3, {"none": 0.10, "gaussian": 0.02}),
        "balance": (0.20, (0.04 + 0.00 + 0.20) / 3, {"none": 0.04, "gaussian": 0.20}),
        "mean": (0.64, (0.00 + 0.64 + 0.60) / 3, {"none": 0.00, "gaussian": 0.64}),
    }
    assert list(table.total) == list(expected)
    for rule, (worst, mean, by) in expected.items():
        assert table.total[rule].worst == pytest.approx(worst)
        assert table.total[rule].mean == pytest.approx(mean)
        assert {label: cost.worst for label, cost in table.by[rule].items()} == pytest.approx(by)
    assert table.by["mean"]["gaussian"].mean == pytest.approx(0.62)
    assert table.total["mean"].where == "attack gaussian, byzantine 1"
    assert (table.complete, table.settings, table.across_labels) == (3, 3, ("none", "gaussian"))


def test_regret_in_a_loss_is_what_there_is_too_much_of(make: Make) -> None:
    table = regret(make(), metric="loss", across=None)
    assert table.total["balance"].worst == pytest.approx(0.20)
    assert table.by["balance"] == {}


def test_regret_compares_over_the_seeds_that_all_have_finished(make: Make) -> None:
    gone = ("balance", "gaussian", "2")
    table = regret(make(without(gone, seeds=(1,))))
    # seed 0 alone in that setting: 0.70 - 0.50, and 0.70 - 0.10 for mean
    assert table.total["balance"].worst == pytest.approx(0.20)
    assert table.by["mean"]["gaussian"].mean == pytest.approx((0.64 + 0.60) / 2)
    assert table.complete == 3


def test_a_choice_that_lacks_a_setting_comes_last(make: Make) -> None:
    gone = ("median", "none", ANY)
    table = regret(make(without(gone)))
    assert table.total["median"].worst == pytest.approx(0.02)
    assert list(table.total) == ["balance", "mean", "median"]
    assert {rule: cost.settings for rule, cost in table.total.items()} == {"balance": 3, "mean": 3, "median": 2}
    assert (table.complete, table.settings) == (2, 3)


def test_regret_of_another_axis(make: Make) -> None:
    table = regret(make(), "byzantine", across="rule")
    # only the attacked settings have both; the two attackers cost what one does not
    assert table.total["1"].worst == 0
    assert table.total["2"].worst == pytest.approx(0.34)
    assert table.by["2"]["mean"].worst == pytest.approx(0.10)
    with pytest.raises(ConfigError, match="is no axis"):
        regret(make(), "nodes")


@pytest.mark.usefixtures("undrawn")
def test_files_hold_a_row_a_cell(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    gone = ("mean", "none", ANY)

    def result(cell: Cell) -> dict[str, Any] | None:
        if cell.labels == gone:
            return None if cell.seed else {"error": "no luck", "wall_s": 0.1}
        return known(cell)

    results = make(result)
    assert call(capsys, "experiment", "report", str(results.path))[0] == 0
    table = pq.read_table(results.path / "results.parquet").to_pylist()
    assert len(table) == 18
    assert [row["status"] for row in table].count("done") == 16
    failed = next(row for row in table if row["status"] == "failed")
    assert (failed["rule"], failed["error"], failed["accuracy"]) == ("mean", "no luck", None)
    row = next(row for row in table if (row["rule"], row["byzantine"], row["seed"]) == ("balance", "2", 1))
    assert row["accuracy"] == pytest.approx(0.52)
    assert (row["worst_node"], row["honest_rejected"], row["byzantine_accepted"]) == (3, 0.1, 0.25)
    with (results.path / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["hash"] for row in rows] == list(results.hashes)
    assert [float(row["accuracy"]) if row["accuracy"] else None for row in rows] == [row["accuracy"] for row in table]
    series = pq.read_table(results.path / "series.parquet").to_pylist()
    assert len(series) == 2 * 16
    assert {"hash", "seed", "rule", "attack", "byzantine", "round", "bytes", "accuracy"} <= set(series[0])


def test_the_page_is_complete_in_itself_and_escapes(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.replace('"median"', '{ name = "median", label = "<b>median" }').replace("# accuracy", "")
    results = make(lambda cell: made_up_of(0.5 + 0.01 * len(cell.labels[0])), text=text)
    code, printed, _ = call(capsys, "experiment", "report", str(results.path))
    page = (results.path / "report.html").read_text(encoding="utf-8")
    assert code == 0
    assert str(results.path / "report.html") in printed.replace("\n", "")
    assert "<b>median" not in page
    assert "&lt;b&gt;median" in page
    assert len(re.findall(r'src="data:image/png;base64,', page)) == 1 + 2 * 3
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert len(list((results.path / "figures").glob("*.png"))) == 7
    assert "18 of 18" in page
    assert "Regret in accuracy" in page


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_experiment_says_what_is_missing(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    half = make(lambda cell: known(cell) if cell.seed == 0 and cell.labels[0] != "median" else None)
    code, printed, _ = call(capsys, "experiment", "report", str(half.path))
    assert code == 0
    assert "by-hand: 6 of 18 cells, 12 missing" in printed
    assert "0.840 (0.740)" in printed
    nothing = make(lambda _: None, text=TEXT.replace("seeds = 2", "seeds = [8, 9]"))
    code, printed, _ = call(capsys, "experiment", "report", str(nothing.path), "--json")
    assert code == 0
    assert last_line(printed)["cells"] == {"missing": 18}
    page = (nothing.path / "report.html").read_text(encoding="utf-8")
    assert "6<small>of cells that the spec no longer has" in page


@pytest.mark.usefixtures("undrawn")
def test_a_regret_table_with_more_columns_than_a_terminal_has_leaves_them_to_the_page(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = regret(make())
    assert [column.header for column in regret_table(found).columns][-2:] == ["attack none", "attack gaussian"]
    monkeypatch.setattr(printed, "MOST_ACROSS", 1)
    table = regret_table(found)
    assert [column.header for column in table.columns] == ["rule", "worst", "mean", "settings"]
    assert table.caption == "the worst of each attack: see the page"


def test_regret_is_printed_and_told_in_json(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(make().path)
    code, printed, _ = call(capsys, "experiment", "report", path, "--regret")
    assert code == 0
    row = next(line for line in printed.splitlines() if line.strip().startswith("balance"))
    assert row.split() == ["balance", "0.200", "0.080", "3", "0.040", "0.200"]
    code, printed, told = call(capsys, "experiment", "report", path, "--json")
    tree = json.loads(printed)
    assert list(tree["regret"][0]["total"]) == ["median", "balance", "mean"]
    assert tree["tables"][0]["places"][0]["rule"] == "mean"
    assert "by-hand: 18 of 18 cells" in told


def test_a_folder_without_an_experiment_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, line = call(capsys, "experiment", "report", str(tmp_path))
    assert code == 2
    assert "holds no experiment" in line
    (tmp_path / "cells.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"cells\.jsonl: cannot be read: .*--resume writes it again"):
        load_results(tmp_path)


def test_one_axis_is_enough_for_a_table(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    results = make(lambda cell: made_up_of(0.5 + 0.1 * cell.spec().rounds), text="[grid]\nrounds = [1, 2]\n")
    code, printed, _ = call(capsys, "experiment", "report", str(results.path))
    assert code == 0
    assert "0.600" in printed
    (table,) = pivots(results, choose_view(results), "accuracy")
    assert (table.columns, table.column_labels, table.places["2", ""].mean) == (None, [""], pytest.approx(0.7))
    assert math.isnan(table.places["2", ""].std)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (95, "1 min 35 s"), (7260, "2 h 1 min")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_are_as_long_as_they_need_to_be() -> None:
    assert number(0.98765, "accuracy_min") == "0.988"
    assert number(123456.789, "bytes_per_node_per_round") == "1.235e+05"
    assert number(math.nan, "loss") == "–"
