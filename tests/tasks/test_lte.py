from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks.base import Partition, TrainOptions
from gossipfl.tasks.lte import LteTraffic, score
from gossipfl.tasks.registry import load_task
from gossipfl.tasks.traces import CHANNELS, COLUMNS, read_trace
from gossipfl.tasks.windows import LENGTH, Measured, Scaling

START = datetime(2018, 3, 28, 15, 56)


def table(rows: int, seed: int = 0) -> np.ndarray:
    """A day's rhythm with bursts, in the units of the real traces."""
    rng = np.random.default_rng(seed)
    wave = 1.2 + np.sin(np.arange(rows) / 40)
    values = {
        "down": 1e8 * wave * rng.gamma(4, 0.25, rows),
        "up": 1e6 * rng.gamma(0.5, 2, rows),
        "rnti_count": np.round(5000 * wave),
        "mcs_down": 12 + 2 * wave + rng.normal(0, 0.2, rows),
        "mcs_up": 14 + rng.normal(0, 1, rows),
    }
    return np.stack([values.get(name, np.full(rows, 0.5)) for name in COLUMNS], axis=1)


def write_trace(
    path: Path, values: np.ndarray, columns: tuple[str, ...] = COLUMNS, times: list[datetime] | None = None
) -> list[list[str]]:
    """Write a trace; NaN becomes a blank cell. Return the cells, header first."""
    moments = times or [START + timedelta(minutes=2 * row) for row in range(len(values))]
    cells = [["time", *columns]]
    for moment, row in zip(moments, values, strict=True):
        cells.append([str(moment), *("" if np.isnan(value) else repr(float(value)) for value in row)])
    path.write_text("\n".join(",".join(row) for row in cells) + "\n")
    return cells


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, rows) in enumerate((("A", 300), ("B", 200), ("C", 400))):
        write_trace(tmp_path / f"{name}.csv", table(rows, seed))
    return tmp_path


def load_lte(path: Path, **options: object) -> LteTraffic:
    task = load_task("lte-traffic", {"path": str(path), **options})
    assert isinstance(task, LteTraffic)
    return task


def test_each_file_is_a_site_and_its_last_fifth_is_held_out(folder: Path) -> None:
    shards = load_task("lte-traffic", {"path": str(folder)}).shards(3, Partition(), 0)
    assert [shard.info["site"] for shard in shards] == ["A", "B", "C"]
    assert [shard.inputs.shape for shard in shards] == [
        (240 - LENGTH, 10, 5),
        (160 - LENGTH, 10, 5),
        (320 - LENGTH, 10, 5),
    ]
    assert [shard.test_targets.shape for shard in shards] == [(60, 5), (40, 5), (80, 5)]


def test_windows_hold_ten_samples_and_the_next(folder: Path) -> None:
    values = table(300, 0)[:, :5]
    shard = load_task("lte-traffic", {"path": str(folder)}).shards(3, Partition(), 0)[0]
    scaled = Scaling.fit(values[:240], CHANNELS).forward(values)
    np.testing.assert_allclose(shard.inputs[7], scaled[7:17], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shard.targets[7], scaled[17], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shard.test_inputs[0], scaled[230:240], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shard.test_targets[-1], scaled[299], rtol=1e-5, atol=1e-6)


def test_scaling_sees_the_nodes_own_training_rows_alone(tmp_path: Path) -> None:
    values = table(300)
    write_trace(tmp_path / "A.csv", values)
    before = load_task("lte-traffic", {"path": str(tmp_path)}).shards(1, Partition(), 0)[0]
    values[240:, :5] *= 1.5
    write_trace(tmp_path / "A.csv", values)
    after = load_task("lte-traffic", {"path": str(tmp_path)}).shards(1, Partition(), 0)[0]
    assert np.array_equal(before.inputs, after.inputs)
    assert not np.array_equal(before.test_targets, after.test_targets)
    assert abs(before.targets.mean()) < 0.1


def test_scaling_goes_there_and_back() -> None:
    values = table(50)[:, :5]
    scaling = Scaling.fit(values, CHANNELS)
    np.testing.assert_allclose(scaling.backward(scaling.forward(values)), values, rtol=1e-9)
    np.testing.assert_allclose(scaling.forward(values).std(axis=0), 1, rtol=1e-9)
    constant = Scaling.fit(np.full((4, 5), 3.0), CHANNELS)
    assert np.array_equal(constant.forward(np.full((1, 5), 3.0)), np.zeros((1, 5)))
    assert (constant.backward(np.full((1, 5), -99.0)) == 0).all()


def measured(values: np.ndarray, seconds: np.ndarray | None = None) -> Measured:
    return Measured(CHANNELS, np.arange(len(values)) * 120.0 if seconds is None else seconds, values)


def units() -> Scaling:
    return Scaling(np.zeros(5, bool), np.zeros(5), np.ones(5))


@pytest.mark.parametrize("nodes", [3, 7])
def test_the_last_rows_of_a_node_are_held_out_for_its_choices(folder: Path, nodes: int) -> None:
    task = load_lte(folder)
    apart = load_lte(folder, validation=0.25)
    for whole, shard in zip(task.shards(nodes, Partition(), 0), apart.shards(nodes, Partition(), 0), strict=True):
        held_out = apart.validation(shard)
        start, stop = shard.info["rows"]
        aside = round(0.25 * (stop - start))
        assert (len(shard.inputs), len(held_out.test_inputs)) == (stop - start - aside - LENGTH, aside)
        # The scaling and the test part do not depend on it, and together the parts are what there was.
        assert np.array_equal(np.concatenate([shard.targets, held_out.test_targets]), whole.targets)
        assert np.array_equal(np.concatenate([shard.inputs, held_out.test_inputs]), whole.inputs)
        assert np.array_equal(shard.test_inputs, whole.test_inputs)
        assert held_out.inputs is shard.inputs
        assert len(held_out.info["scaling"].offset) == aside


def test_pooled_shards_are_validated_on_all_sites(folder: Path) -> None:
    task = load_lte(folder, validation=0.2)
    alone = [task.validation(shard) for shard in task.shards(3, Partition(), 0)]
    for shard in task.shards(2, Partition("iid"), 5):
        held_out = task.validation(shard)
        assert np.array_equal(held_out.test_targets, np.concatenate([part.test_targets for part in alone]))
        assert held_out.inputs is shard.inputs
        assert held_out.info["site"] == "A+B+C"


def test_a_learner_is_measured_on_the_validation_part(folder: Path) -> None:
    task = load_lte(folder, validation=0.2)
    shard = task.shards(3, Partition(), 0)[0]
    losses = {
        task.learner(part, TrainOptions(), model_seed=0, order_seed=0).evaluate().loss
        for part in (shard, task.validation(shard))
    }
    assert len(losses) == 2
    assert all(np.isfinite(loss) for loss in losses)


def test_impossible_validation_shares_are_refused(folder: Path) -> None:
    for share in (1.0, -0.1, "a fifth", True):
        with pytest.raises(ConfigError, match="validation = "):
            load_lte(folder, validation=share)
    with pytest.raises(DataError, match=r"A\.csv gives 2 complete validation windows"):
        load_lte(folder, validation=0.01).shards(3, Partition(), 0)
    task = load_lte(folder)
    with pytest.raises(ConfigError, match=r"set validation, e\.g\. validation = 0\.2"):
        task.validation(task.shards(3, Partition(), 0)[0])


def test_short_blanks_are_filled_forward_and_their_targets_left_out() -> None:
    values = np.arange(40 * 5, dtype=float).reshape(40, 5) + 1
    values[20:23, 4] = np.nan
    inputs, targets = measured(values).windows(units())
    assert len(targets) == 30 - 3
    position = list(targets[:, 0]).index(values[23, 0])
    assert inputs[position, -3:, 4].tolist() == [values[19, 4]] * 3
    assert inputs[position, -3:, 3].tolist() == values[20:23, 3].tolist()


def test_long_blanks_break_windows() -> None:
    values = np.ones((60, 5))
    values[20:26, 4] = np.nan
    # targets 20..25 are blank; row 25 is the sixth blank in a row and stays one: targets 26..35 would see it
    assert len(measured(values).windows(units())[1]) == 50 - 16


def test_blanks_at_the_start_have_nothing_to_be_filled_with() -> None:
    values = np.ones((30, 5))
    values[0, 2] = np.nan
    assert len(measured(values).windows(units())[1]) == 20 - 1


def test_no_window_and_no_fill_reaches_across_a_gap_in_time() -> None:
    values = np.ones((40, 5))
    values[20, 4] = np.nan
    seconds = np.arange(40) * 120.0
    seconds[20:] += 60
    # before: targets 10..19; after: rows 20.. stand alone, row 20 is blank with nothing before it: targets 31..39
    assert len(measured(values, seconds).windows(units())[1]) == 10 + 9


def test_rows_without_any_user_are_no_measurement(tmp_path: Path) -> None:
    values = table(300)
    values[100:130] = np.nan
    values[100:130, :3] = 0
    write_trace(tmp_path / "A.csv", values)
    trace = Measured.of(read_trace(tmp_path / "A.csv", CHANNELS))
    assert np.isnan(trace.values[100:130]).all()
    shard = load_task("lte-traffic", {"path": str(tmp_path)}).shards(1, Partition(), 0)[0]
    assert len(shard.inputs) == (100 - LENGTH) + (110 - LENGTH)
    assert np.isfinite(shard.inputs).all()


def test_more_nodes_than_files_get_equal_spans_of_the_training_part(folder: Path) -> None:
    shards = load_task("lte-traffic", {"path": str(folder)}).shards(7, Partition("files"), 0)
    assert [(shard.info["site"], shard.info["rows"]) for shard in shards] == [
        ("A", (0, 120)),
        ("A", (120, 240)),
        ("B", (0, 80)),
        ("B", (80, 160)),
        ("C", (0, 107)),
        ("C", (107, 213)),
        ("C", (213, 320)),
    ]
    assert [len(shard.inputs) for shard in shards[:2]] == [110, 110]
    truth = [shard.info["scaling"].backward(shard.test_targets) for shard in shards[:2]]
    np.testing.assert_allclose(truth[0], truth[1], rtol=1e-4)


def test_pooled_windows_are_dealt_and_measured_in_their_sites_units(folder: Path) -> None:
    task = load_task("lte-traffic", {"path": str(folder)})
    alone = task.shards(3, Partition(), 0)
    pooled = task.shards(2, Partition("iid"), 5)
    assert sum(len(shard.inputs) for shard in pooled) == sum(len(shard.inputs) for shard in alone)
    expected = np.concatenate([shard.info["scaling"].backward(shard.test_targets) for shard in alone])
    np.testing.assert_allclose(pooled[0].info["scaling"].backward(pooled[0].test_targets), expected)


@pytest.mark.parametrize("name", ["dirichlet", "label-groups", "shards"])
def test_partitions_by_label_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="needs labels"):
        load_task("lte-traffic", {"path": str(folder)}).shards(3, Partition(name), 0)  # type: ignore[arg-type]


def test_impossible_numbers_of_nodes_are_refused(folder: Path) -> None:
    task = load_task("lte-traffic", {"path": str(folder)})
    with pytest.raises(DataError, match="3 traces cannot be held by 2 nodes"):
        task.shards(2, Partition(), 0)
    with pytest.raises(DataError, match=r"A\.csv gives \d complete training windows"):
        task.shards(90, Partition(), 0)
    with pytest.raises(DataError, match="cannot be dealt"):
        task.shards(10_000, Partition("iid"), 0)


@pytest.mark.parametrize("options", [{"model": "mlp"}, {"model": "lstm"}, {"model": "mlp", "inputs": "all"}])
def test_forecasts_beat_persistence_where_there_is_noise(folder: Path, options: dict[str, object]) -> None:
    task = load_task("lte-traffic", {"path": str(folder), "sites": "C", **options})
    shard = task.shards(1, Partition(), 0)[0]
    learner = task.learner(shard, TrainOptions(batch=64, lr=3e-3, optimizer="adam"), model_seed=0, order_seed=0)
    learner.train(150)
    result = learner.evaluate()
    scaling = shard.info["scaling"]
    persistence = score(
        torch.from_numpy(shard.test_inputs[:, -1, :5].copy()), torch.from_numpy(shard.test_targets), scaling=scaling
    )
    assert set(result.metrics) == {"nrmse"} | {f"{kind}_{name}" for kind in ("nrmse", "mae") for name in CHANNELS}
    assert result.accuracy is None
    assert result.metrics["nrmse"] < 0.9 * persistence.metrics["nrmse"]
    assert result.loss < persistence.loss


def test_errors_are_in_original_units() -> None:
    scaling = Scaling(np.zeros(5, bool), np.full((2, 5), 10.0), np.full((2, 5), 2.0))
    result = score(torch.tensor([[1.0] * 5, [-1.0] * 5]), torch.tensor([[0.0] * 5, [0.0] * 5]), scaling=scaling)
    assert result.loss == 1.0
    assert result.metrics["mae_down"] == pytest.approx(2.0)
    assert result.metrics["nrmse_up"] == pytest.approx(0.2)
    assert result.metrics["nrmse"] == pytest.approx(0.2)


def test_a_silent_channel_has_no_nrmse_and_a_diverged_model_no_finite_one() -> None:
    scaling = Scaling(np.zeros(5, bool), np.zeros((1, 5)), np.ones((1, 5)))
    silent = score(torch.zeros(1, 5), torch.zeros(1, 5), scaling=scaling).metrics
    assert set(silent) == {f"mae_{name}" for name in CHANNELS}
    diverged = score(torch.full((1, 5), float("nan")), torch.ones(1, 5), scaling=scaling)
    assert not np.isfinite(diverged.loss)
    assert not np.isfinite(diverged.metrics["nrmse"])


def test_flipped_targets_are_mirrored_at_the_mean(folder: Path) -> None:
    task = load_task("lte-traffic", {"path": str(folder)})
    shard = task.shards(3, Partition(), 0)[0]
    flipped = task.flip_labels(shard)
    assert np.array_equal(flipped.targets, -shard.targets)
    assert flipped.test_targets is shard.test_targets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "needs path"),
        ({"model": "gru"}, 'model "gru" is unknown'),
        ({"inputs": "some"}, 'inputs "some" is unknown'),
        ({"model": "lstm", "hidden": "8,8"}, "give one width"),
    ],
)
def test_impossible_options_are_refused(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task("lte-traffic", {"path": str(folder), **options})


def test_missing_traces_are_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        load_task("lte-traffic", {"path": str(tmp_path / "absent")})
    with pytest.raises(DataError, match=r'no trace "D\.csv"; it has: A, B, C'):
        load_task("lte-traffic", {"path": str(folder), "sites": ["A", "D"]})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.csv file"):
        load_task("lte-traffic", {"path": str(tmp_path / "empty")})


def set_cell(line: int, column: str, text: str) -> Callable[[list[list[str]]], None]:
    def edit(cells: list[list[str]]) -> None:
        cells[line - 1][cells[0].index(column)] = text

    return edit


def drop_column(cells: list[list[str]]) -> None:
    place = cells[0].index("mcs_up")
    for row in cells:
        del row[place]


def twice(cells: list[list[str]]) -> None:
    cells[0][-1] = "down"


def shorten(cells: list[list[str]]) -> None:
    del cells[8][5:]


def nearly_empty(cells: list[list[str]]) -> None:
    del cells[20:]


def empty(cells: list[list[str]]) -> None:
    cells.clear()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_cell(5, "up", "inf"), r'A\.csv line 5, column "up": \'inf\' is no finite number'),
        (set_cell(5, "up", "nan"), r'line 5, column "up"'),
        (set_cell(5, "up", "-3"), r'line 5, column "up"'),
        (set_cell(5, "mcs_up", "1e300"), r'line 5, column "mcs_up"'),
        (set_cell(7, "mcs_down", "high"), r"line 7, column \"mcs_down\": 'high'"),
        (set_cell(7, "time", "noon"), r"line 7, column \"time\": 'noon' is no time"),
        (set_cell(7, "time", "2018-03-28 15:56:00"), r'line 7, column "time": .* is not after'),
        (drop_column, r'line 1 has no column "mcs_up"'),
        (twice, r'line 1 has more than one column "down"'),
        (shorten, r"line 9 has 5 cells, the header has 12"),
        (nearly_empty, r"A\.csv gives \d complete training windows"),
        (empty, r'line 1 has no column "time"'),
    ],
)
def test_broken_traces_are_told_in_one_line(
    tmp_path: Path, edit: Callable[[list[list[str]]], None], message: str
) -> None:
    path = tmp_path / "A.csv"
    cells = write_trace(path, table(60))
    edit(cells)
    path.write_text("\n".join(",".join(row) for row in cells))
    with pytest.raises(DataError, match=message) as caught:
        load_task("lte-traffic", {"path": str(tmp_path)}).shards(1, Partition(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'time,"down\n', b'time,down\n"a"b,1\n'])
def test_bytes_that_are_no_csv_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "A.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"A\.csv cannot be read as CSV text in UTF-8|has no column"):
        read_trace(tmp_path / "A.csv", CHANNELS)


def test_a_trace_with_time_zones_byte_order_mark_and_blank_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "A.csv"
    cells = write_trace(path, table(60)[:, :5], CHANNELS)
    for row in cells[1:]:
        row[0] += "+02:00"
    path.write_text("\ufeff" + "\n\n".join(",".join(row) for row in cells), encoding="utf-8")
    assert read_trace(path, CHANNELS).values.shape == (60, 5)
