from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from gossipfl.errors import ConfigError, DataError, LayoutError
from gossipfl.tasks.base import Judge, Learner, Movable, Partition, Shard, TrainOptions
from gossipfl.tasks.classification import ClassificationTask, NumpySoftmaxTask, score
from gossipfl.tasks.models import Dropout, Softmax, build, mlp, widths
from gossipfl.tasks.numpy_learner import NumpySoftmax
from gossipfl.tasks.torch_learner import TorchLearner
from gossipfl.vector import Entry, Layout

FEATURES, CLASSES = 6, 3
OPTIONS = TrainOptions(batch=8, lr=0.2)


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    return (rng.normal(size=(count, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[labels]).astype(np.float32), labels


def softmax_task(kind: type[ClassificationTask] = ClassificationTask) -> ClassificationTask:
    return kind("toy", examples(90, 1), examples(40, 2), lambda _: Softmax(FEATURES, CLASSES))


def deep_task() -> ClassificationTask:
    return ClassificationTask("toy", examples(90, 1), examples(40, 2), lambda _: mlp(FEATURES, [5], CLASSES))


def make(task: ClassificationTask, options: TrainOptions = OPTIONS, *, order: int = 3, model: int = 4) -> Learner:
    return task.learner(task.shards(1, Partition(), 0)[0], options, model_seed=model, order_seed=order)


LEARNERS = {"torch": deep_task, "numpy": lambda: softmax_task(NumpySoftmaxTask)}


@pytest.mark.parametrize("kind", LEARNERS)
def test_learners_keep_the_seam(kind: str) -> None:
    learner = make(LEARNERS[kind]())
    assert isinstance(learner, Learner)
    assert learner.vector.shape == (learner.layout.size,)
    assert learner.vector.dtype == torch.float32
    before = learner.evaluate()
    address = learner.vector.data_ptr()
    report = learner.train(60)
    after = learner.evaluate()
    assert (report.steps, report.samples) == (60, 480)
    assert after.loss < before.loss
    assert after.accuracy is not None
    assert after.accuracy > 0.6
    assert learner.vector.data_ptr() == address
    learner.vector.zero_()
    assert learner.evaluate().loss == pytest.approx(math.log(CLASSES), rel=1e-5)


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_vector_depends_on_the_model_seed_alone(kind: str) -> None:
    task = LEARNERS[kind]()
    state = torch.random.get_rng_state()
    one, other, different = make(task, order=1), make(task, order=2), make(task, model=5)
    assert torch.equal(one.vector, other.vector)
    assert not torch.equal(one.vector, different.vector)
    assert torch.equal(torch.random.get_rng_state(), state)
    one.train(5)
    other.train(5)
    assert not torch.equal(one.vector, other.vector)


@pytest.mark.parametrize("kind", LEARNERS)
def test_splitting_calls_changes_nothing(kind: str) -> None:
    task = LEARNERS[kind]()
    one, many = make(task), make(task)
    one.train(23)
    for steps in (1, 0, 12, 10):
        many.train(steps)
    assert torch.equal(one.vector, many.vector)


def dropout_task() -> ClassificationTask:
    def model(generator: torch.Generator) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 20), nn.ReLU(), Dropout(0.5, generator), nn.Linear(20, CLASSES))

    return ClassificationTask("toy", examples(90, 1), examples(40, 2), model)


@pytest.mark.parametrize("schedule", ["constant", "inverse-sqrt"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", [*LEARNERS, "dropout"])
def test_a_restored_learner_goes_on_bit_for_bit(kind: str, optimizer: str, schedule: str) -> None:
    options = TrainOptions(batch=8, lr=0.01, optimizer=optimizer, momentum=0.9, schedule=schedule)  # type: ignore[arg-type]
    task = dropout_task() if kind == "dropout" else LEARNERS[kind]()
    first, second = make(task, options), make(task, options, order=77, model=78)
    assert isinstance(first, (TorchLearner, NumpySoftmax))
    assert isinstance(second, (TorchLearner, NumpySoftmax))
    first.train(13)
    saved = first.state()
    first.train(9)
    second.restore(saved)
    second.train(9)
    assert torch.equal(first.vector, second.vector)


def test_dropout_is_driven_by_the_order_seed() -> None:
    one, same, other = make(dropout_task()), make(dropout_task()), make(dropout_task(), order=4)
    with torch.random.fork_rng(devices=[]):
        for seed, learner in enumerate((one, same, other)):
            torch.random.manual_seed(seed)
            learner.train(4)
    assert torch.equal(one.vector, same.vector)
    assert not torch.equal(one.vector, other.vector)
    assert one.evaluate() == same.evaluate()


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_schedule_shrinks_steps(kind: str) -> None:
    """A gradient does not depend on the learning rate, so neither do the first step and the ratio of single steps."""
    lengths = []
    for schedule in ("constant", "inverse-sqrt"):
        learner = make(LEARNERS[kind](), TrainOptions(batch=90, lr=1e-3, schedule=schedule))  # type: ignore[arg-type]
        moved = []
        for _ in range(9):
            before = learner.vector.clone()
            learner.train(1)
            moved.append(float((learner.vector - before).norm()))
        lengths.append(moved)
    ratios = [shrunk / full for full, shrunk in zip(*lengths, strict=True)]
    assert ratios == pytest.approx([1 / math.sqrt(step + 1) for step in range(9)], rel=0.02)


@pytest.mark.parametrize("kind", LEARNERS)
def test_any_model_is_judged_on_a_fixed_probe(kind: str) -> None:
    task = LEARNERS[kind]()
    learner, other = make(task), make(task)
    assert isinstance(learner, Judge)
    other.train(30)
    before = learner.vector.clone()
    found = learner.losses([learner.vector, other.vector, learner.vector])
    whole = task.shards(1, Partition(), 0)[0]  # 90 examples: the probe is all of them
    everything = replace(whole, test_inputs=whole.inputs, test_targets=whole.targets)
    twin = task.learner(everything, OPTIONS, model_seed=4, order_seed=3)
    expected = [twin.evaluate().loss]
    twin.vector.copy_(other.vector)
    expected.append(twin.evaluate().loss)
    assert found == pytest.approx([*expected, expected[0]], rel=1e-5)
    assert torch.equal(learner.vector, before)
    learner.train(30)
    assert torch.equal(learner.vector, other.vector)


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_learner_goes_on_in_other_memory(kind: str) -> None:
    task = LEARNERS[kind]()
    moved, stayed = make(task), make(task)
    moved.train(3)
    stayed.train(3)
    vector, gradient = torch.full((2, moved.layout.size), 7.0)
    assert isinstance(moved, Movable)
    moved.move_to(vector, gradient)
    assert moved.vector.data_ptr() == vector.data_ptr()
    assert moved.train(5) == stayed.train(5)
    assert torch.equal(vector, stayed.vector)
    assert moved.evaluate() == stayed.evaluate()
    vector.zero_()
    assert moved.evaluate().loss == pytest.approx(math.log(CLASSES), rel=1e-5)


@pytest.mark.parametrize("kind", LEARNERS)
def test_divergence_shows_in_the_reports(kind: str) -> None:
    learner = make(LEARNERS[kind](), replace(OPTIONS, lr=3e38))
    report = learner.train(30)
    assert not math.isfinite(report.loss)
    assert not math.isfinite(learner.evaluate().loss)


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_batch_is_never_larger_than_the_shard(kind: str) -> None:
    assert make(LEARNERS[kind](), replace(OPTIONS, batch=1000)).train(2).samples == 180


@pytest.mark.parametrize("kind", LEARNERS)
def test_impossible_options_are_refused(kind: str) -> None:
    task = LEARNERS[kind]()
    for options, message in (
        (replace(OPTIONS, device="warp"), 'device "warp"'),
        (replace(OPTIONS, device="cuda:99"), 'device "cuda:99"'),
        (replace(OPTIONS, batch=0), "batch = 0"),
        (replace(OPTIONS, lr=-1.0), "lr = -1.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(task, options)
    whole = task.shards(1, Partition(), 0)[0]
    empty = replace(whole, inputs=whole.inputs[:0], targets=whole.targets[:0])
    with pytest.raises(DataError, match="no training data"):
        task.learner(empty, OPTIONS, model_seed=0, order_seed=0)
    with pytest.raises(DataError, match="training inputs but 1 targets"):
        task.learner(replace(whole, targets=whole.targets[:1]), OPTIONS, model_seed=0, order_seed=0)


def test_numpy_and_torch_softmax_take_the_same_steps() -> None:
    torch_learner, numpy_learner = make(softmax_task()), make(softmax_task(NumpySoftmaxTask))
    assert torch_learner.layout.digest == numpy_learner.layout.digest
    assert torch.equal(torch_learner.vector, numpy_learner.vector)
    one, other = torch_learner.train(40), numpy_learner.train(40)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    torch.testing.assert_close(torch_learner.vector, numpy_learner.vector, rtol=1e-4, atol=1e-6)
    assert torch_learner.evaluate().loss == pytest.approx(numpy_learner.evaluate().loss, rel=1e-5)
    assert torch_learner.evaluate().accuracy == numpy_learner.evaluate().accuracy


def test_the_numpy_gradient_is_that_of_autograd() -> None:
    inputs, labels = examples(30, 8)
    learner = make(softmax_task(NumpySoftmaxTask))
    assert isinstance(learner, NumpySoftmax)
    start = learner.vector.clone().requires_grad_()
    weights, bias = start[: FEATURES * CLASSES].view(CLASSES, FEATURES), start[FEATURES * CLASSES :]
    loss = functional.cross_entropy(torch.from_numpy(inputs) @ weights.T + bias, torch.from_numpy(labels))
    loss.backward()
    assert learner.gradient(inputs, labels) == pytest.approx(loss.item(), rel=1e-5)
    assert start.grad is not None
    lr_one = NumpySoftmax(
        learner.layout,
        learner.vector.numpy(),
        Shard(inputs, labels, inputs, labels),
        TrainOptions(batch=30, lr=1.0),
        order_seed=0,
    )
    lr_one.train(1)
    torch.testing.assert_close(learner.vector - lr_one.vector, start.grad, rtol=1e-4, atol=1e-6)


def test_numpy_softmax_refuses_another_layout() -> None:
    layout = Layout((Entry("w", (3, 6)), Entry("b", (4,))))
    whole = softmax_task().shards(1, Partition(), 0)[0]
    with pytest.raises(LayoutError, match=r"\[\(3, 6\), \(4,\)\]"):
        NumpySoftmax(layout, np.zeros(22, np.float32), whole, OPTIONS, order_seed=0)


def test_the_torch_step_is_gradient_descent() -> None:
    task = deep_task()
    learner = make(task, TrainOptions(batch=90, lr=0.5))
    reference = build(lambda _: mlp(FEATURES, [5], CLASSES), 4)
    whole = task.shards(1, Partition(), 0)[0]
    loss = functional.cross_entropy(reference(torch.from_numpy(whole.inputs)), torch.from_numpy(whole.targets))
    loss.backward()
    expected = torch.cat([(p - 0.5 * p.grad).detach().flatten() for p in reference.parameters() if p.grad is not None])
    report = learner.train(1)
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(learner.vector, expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_are_local_unless_shared() -> None:
    def normed(_: torch.Generator) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, CLASSES))

    sizes = {}
    for buffers in ("local", "shared"):
        task = ClassificationTask("toy", examples(90, 1), examples(40, 2), normed, buffers=buffers)  # type: ignore[arg-type]
        learner = make(task)
        assert isinstance(learner, TorchLearner)
        vector, gradient = torch.zeros(2, learner.layout.size)
        learner.move_to(vector, gradient)
        learner.train(10)
        mean = learner.module[1].running_mean  # type: ignore[index, union-attr]
        assert bool((mean != 0).any())
        assert bool((vector[-8:-4] == mean).all()) == (buffers == "shared")
        sizes[buffers] = learner.layout.size
    assert sizes["shared"] == sizes["local"] + 8


def test_a_double_model_is_a_users_mistake() -> None:
    task = ClassificationTask(
        "toy", examples(9, 1), examples(9, 2), lambda _: nn.Linear(FEATURES, CLASSES, dtype=torch.float64)
    )
    with pytest.raises(ConfigError, match=r'model of task "toy".*float64'):
        make(task)


def test_label_flip_mirrors_training_labels_alone() -> None:
    task = deep_task()
    whole = task.shards(1, Partition(), 0)[0]
    flipped = task.flip_labels(whole)
    assert np.array_equal(flipped.targets, CLASSES - 1 - whole.targets)
    assert np.array_equal(flipped.test_targets, whole.test_targets)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(2, int)), "one label per input"),
        ((np.zeros((0, 2)), np.zeros(0, int)), "one label per input"),
        ((np.zeros((2, 2)), np.zeros(2)), "integers from 0 up"),
        ((np.zeros((2, 2)), np.array([0, -1])), "integers from 0 up"),
        ((np.full((2, 2), np.inf), np.array([0, 1])), "not finite"),
    ],
)
def test_examples_that_make_no_sense_are_refused(train: tuple[np.ndarray, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ClassificationTask("toy", train, examples(4, 1), lambda _: Softmax(2, 2))


def test_read_only_arrays_can_be_learnt_from() -> None:
    inputs, labels = examples(20, 1)
    inputs.flags.writeable = False
    task = ClassificationTask("toy", (inputs, labels), (inputs, labels), lambda _: Softmax(FEATURES, CLASSES))
    read_only = task.shards(1, Partition(), 0)[0]
    frozen = read_only.inputs.view()
    frozen.flags.writeable = False
    shard = replace(read_only, inputs=frozen)
    assert math.isfinite(task.learner(shard, OPTIONS, model_seed=0, order_seed=0).train(2).loss)


def test_scores() -> None:
    result = score(torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]]), torch.tensor([0, 1, 0]))
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.loss == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("value", ["", "a", "0", "-3", "1,,2", [], [0], True, 1.5, None, "9" * 30])
def test_widths_that_make_no_sense_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="hidden = "):
        widths(value)


@pytest.mark.parametrize("value", ["128,64", "128, 64", [128, 64], (128, "64")])
def test_widths_are_read_from_what_configurations_hold(value: object) -> None:
    assert widths(value) == (128, 64)
