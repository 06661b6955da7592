from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks.base import Learner, Partition, TrainOptions
from gossipfl.tasks.registry import TASKS, load_task

FACTORIES = """
import numpy as np
from torch import nn
from gossipfl.tasks.classification import ClassificationTask

inputs = np.arange(40, dtype=np.float32).reshape(20, 2) / 40
labels = np.arange(20) % 2

def make(width=3, depth=1):
    layers = nn.Sequential
    return ClassificationTask("mine", (inputs, labels), (inputs, labels),
                              lambda _: nn.Sequential(nn.Linear(2, width), nn.Linear(width, 2)))

def wrong():
    return 7

def broken():
    import no_such_dependency

class Holder:
    make = staticmethod(make)

value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"user_tasks_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_every_task_states_its_options() -> None:
    assert set(TASKS) == {"digits", "mnist", "lte-traffic"}
    assert all(entry.summary and all(entry.options.values()) for entry in TASKS.values())


def test_importing_the_registry_loads_neither_torch_nor_sklearn() -> None:
    program = "import sys, gossipfl.tasks.registry; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, r'task "digit" is unknown; choose one of: digits, mnist, lte-traffic'),
        ("digits", {"modle": "mlp"}, r'task digits has no option "modle"; it has: model, hidden'),
        ("digits", {"model": "tree"}, r'digits model "tree" is unknown'),
        ("digits", {"model": 5}, r"model = 5 is no text"),
        ("digits", {"hidden": {"a": 1}}, r"hidden = .* is no list"),
        ("digits", {"hidden": "wide"}, r"hidden = 'wide'"),
        ("mnist", {"path": 5}, r"path = 5 is no text"),
    ],
)
def test_wrong_names_and_options_are_told_in_one_line(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(name, options)
    assert "\n" not in str(caught.value)


def test_a_users_task_is_loaded(module: str) -> None:
    task = load_task(f"{module}:make", {"width": 4})
    assert task.name == "mine"
    shards = task.shards(4, Partition(), 1)
    learner = task.learner(shards[0], TrainOptions(batch=2), model_seed=1, order_seed=2)
    assert learner.layout.size == 2 * 4 + 4 + 4 * 2 + 2
    assert math.isfinite(learner.train(3).loss)
    assert load_task(f"{module}:Holder.make").name == "mine"


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("absent", {}, r'has no callable "absent"'),
        ("value", {}, r'has no callable "value"'),
        ("make", {"height": 1}, r"does not take these options: .*height"),
        ("wrong", {}, r"returned a int without shards, learner, flip_labels"),
        ("not valid", {}, r"is no package\.module:factory"),
        ("", {}, r"is no package\.module:factory"),
    ],
)
def test_wrong_factories_are_told_in_one_line(
    module: str, attribute: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(f"{module}:{attribute}", options)
    assert "\n" not in str(caught.value)


def test_a_missing_module_is_told(module: str) -> None:
    with pytest.raises(ConfigError, match="no module named no_such_package"):
        load_task("no_such_package.tasks:make")
    with pytest.raises(ConfigError, match="no module named no_such_dependency"):
        load_task(f"{module}_broken:make")


def test_a_users_own_error_is_told_with_its_line(module: str) -> None:
    with pytest.raises(ConfigError, match=r"failed: ModuleNotFoundError: .*no_such_dependency.* \(.*\.py, line \d+\)"):
        load_task(f"{module}:broken")


@pytest.mark.parametrize("model", ["mlp", "softmax", "softmax-numpy", "cnn"])
def test_every_digits_model_learns(model: str) -> None:
    task = load_task("digits", {"model": model})
    shard = task.shards(1, Partition(), 0)[0]
    assert (len(shard.inputs), len(shard.test_inputs)) == (1438, 359)
    learner: Learner = task.learner(shard, TrainOptions(), model_seed=0, order_seed=0)
    learner.train(200)
    accuracy = learner.evaluate().accuracy
    assert accuracy is not None
    assert accuracy > 0.9


def test_one_node_with_all_digits_reaches_95_percent_with_default_options() -> None:
    task = load_task("digits")
    learner = task.learner(task.shards(1, Partition(), 0)[0], TrainOptions(), model_seed=1, order_seed=2)
    learner.train(500)
    accuracy = learner.evaluate().accuracy
    assert accuracy is not None
    assert accuracy >= 0.95


def test_digits_are_dealt_without_overlap_and_tested_alike() -> None:
    task = load_task("digits")
    shards = task.shards(8, Partition("label-groups", h=0.5), 3)
    assert sum(len(shard.inputs) for shard in shards) == 1438
    assert all(shard.test_inputs is shards[0].test_inputs for shard in shards)
    with pytest.raises(DataError, match="one file per site"):
        task.shards(8, Partition("files"), 3)


def test_digits_are_scikit_learns_own_and_load_nothing_of_it() -> None:
    program = (
        "import sys\n"
        "from gossipfl.tasks import digits\n"
        "pixels, labels = digits._images()\n"
        "assert 'sklearn' not in sys.modules\n"
        "from sklearn.datasets import load_digits\n"
        "source = load_digits()\n"
        "assert (pixels == source.data).all() and (labels == source.target).all()\n"
        "digits.find_spec = lambda name: None\n"
        "assert (digits._images()[0] == pixels).all()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
