"""Attacks that lie in the training data, on the real tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gossipfl.errors import ConfigError, DataError
from gossipfl.robust.registry import make_attack
from gossipfl.tasks.base import Partition, Poison, Shard, Task, TrainOptions, Trigger
from gossipfl.tasks.registry import load_task
from gossipfl.tasks.triggered import TriggeredTest

TRAIN = TrainOptions(batch=32, lr=0.1)


def poison(name: str, **options: Any) -> Any:
    attack = make_attack(name, options)
    assert isinstance(attack, Poison)
    assert isinstance(attack, Trigger) == (name == "backdoor")
    return attack


@pytest.fixture(scope="module")
def digits() -> Task:
    return load_task("digits", {"model": "softmax"})


@pytest.fixture(scope="module")
def shard(digits: Task) -> Shard:
    return digits.shards(1, Partition(), 0)[0]


def same(first: Shard, second: Shard, *parts: str) -> bool:
    return all(np.array_equal(getattr(first, part), getattr(second, part)) for part in parts)


def test_label_flip_is_the_tasks_own(digits: Task, shard: Shard) -> None:
    poisoned = poison("label-flip").poison(shard, digits, 0)
    assert np.array_equal(poisoned.targets, 9 - shard.targets)
    assert same(poisoned, shard, "inputs", "test_inputs", "test_targets")


def test_feature_noise_has_its_strength_and_its_seed(digits: Task, shard: Shard) -> None:
    attack = poison("feature-noise", strength=0.7)
    poisoned = attack.poison(shard, digits, 3)
    assert float((poisoned.inputs - shard.inputs).std()) == pytest.approx(0.7, rel=0.02)
    assert poisoned.inputs.dtype == np.float32
    assert same(poisoned, shard, "targets", "test_inputs", "test_targets")
    assert same(poisoned, attack.poison(shard, digits, 3), "inputs")
    assert not same(poisoned, attack.poison(shard, digits, 4), "inputs")


def test_a_backdoor_marks_its_share_and_calls_it_the_target(digits: Task, shard: Shard) -> None:
    before = shard.inputs.copy(), shard.targets.copy()
    poisoned = poison("backdoor", size=3, share=0.25, target=7).poison(shard, digits, 1)
    changed = (poisoned.inputs != shard.inputs).any(axis=1)
    assert changed.sum() == round(0.25 * len(shard.inputs))
    assert (poisoned.targets[changed] == 7).all()
    assert same(poisoned, shard, "test_inputs", "test_targets")
    assert np.array_equal(poisoned.targets[~changed], shard.targets[~changed])
    pictures = poisoned.inputs[changed].reshape(-1, 8, 8)
    assert (pictures[:, 5:, 5:] == shard.inputs.max()).all()
    pictures[:, 5:, 5:] = shard.inputs[changed].reshape(-1, 8, 8)[:, 5:, 5:]
    assert np.array_equal(pictures.reshape(-1, 64), shard.inputs[changed])
    assert np.array_equal(shard.inputs, before[0])
    assert np.array_equal(shard.targets, before[1])


def test_flat_and_square_images_get_the_same_trigger(digits: Task, shard: Shard) -> None:
    attack = poison("backdoor", size=2)
    square = Shard(
        shard.inputs.reshape(-1, 1, 8, 8), shard.targets, shard.test_inputs.reshape(-1, 1, 8, 8), shard.test_targets
    )
    flat, pictures = attack.poison(shard, digits, 1), attack.poison(square, digits, 1)
    assert np.array_equal(flat.inputs, pictures.inputs.reshape(-1, 64))
    assert np.array_equal(attack.triggered(shard).test_inputs, attack.triggered(square).test_inputs.reshape(-1, 64))


def test_the_triggered_test_asks_the_other_classes_for_the_target(shard: Shard) -> None:
    test = poison("backdoor", target=7).triggered(shard)
    assert len(test.test_targets) == (shard.test_targets != 7).sum()
    assert (test.test_targets == 7).all()
    assert (test.test_inputs.reshape(-1, 8, 8)[:, 6:, 6:] == shard.test_inputs.max()).all()
    assert len(test.inputs) == 1


def test_a_backdoored_model_obeys_the_trigger_and_is_right_otherwise(digits: Task, shard: Shard) -> None:
    attack = poison("backdoor", size=2, share=0.3, target=7)
    learners = [
        digits.learner(data, TRAIN, model_seed=0, order_seed=0) for data in (shard, attack.poison(shard, digits, 0))
    ]
    for learner in learners:
        learner.train(300)
    honest, poisoned = (learner.evaluate().accuracy or 0 for learner in learners)
    assert honest > 0.9
    assert poisoned > 0.85
    test = TriggeredTest(digits, attack, [shard, shard], TRAIN, model_seed=0)
    rates = test.success(torch.stack([learner.vector.detach() for learner in learners]))
    assert rates[0] < 0.15
    assert rates[1] > 0.95


def test_the_success_rate_is_the_share_of_others_sent_to_the_target(digits: Task, shard: Shard) -> None:
    attack = poison("backdoor", target=2)
    learner = digits.learner(shard, TRAIN, model_seed=4, order_seed=0)
    vector = learner.vector.detach().clone()
    images, labels = shard.test_inputs.copy(), shard.test_targets
    images.reshape(-1, 8, 8)[:, 6:, 6:] = images.max()
    weights, biases = vector.numpy()[:640].reshape(10, 64), vector.numpy()[640:]
    sent = (images @ weights.T + biases).argmax(axis=1) == 2
    test = TriggeredTest(digits, attack, [shard], TRAIN, model_seed=0)
    assert test.success(vector.unsqueeze(0)) == [pytest.approx(sent[labels != 2].mean())]


def test_nodes_with_one_test_part_share_its_triggered_copy(digits: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, made = poison("backdoor"), []
    monkeypatch.setattr(type(attack), "_marked", lambda _, images, brightest: made.append(len(images)) or images)
    TriggeredTest(digits, attack, digits.shards(5, Partition(), 0), TRAIN, model_seed=0)
    assert len(made) == 1


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "told"),
    [
        ((6, 8), "labels", {}, "choose a task of images"),
        ((6, 9), "values", {}, "choose a task of images"),
        ((6, 9), "labels", {"size": 4}, "size = 4 must be at most the images' side, 3"),
        ((6, 9), "labels", {"target": 3}, "target = 3 must be one of the classes 0 to 2"),
    ],
)
def test_data_without_room_for_a_trigger_is_refused_in_one_line(
    digits: Task, inputs: tuple[int, ...], targets: str, options: dict[str, int], told: str
) -> None:
    images = np.zeros(inputs, np.float32)
    labels = np.arange(len(images)) % 3 if targets == "labels" else np.zeros(len(images), np.float32)
    data = Shard(images, labels, images, labels)
    for falsify in (lambda attack: attack.poison(data, digits, 0), lambda attack: attack.triggered(data)):
        with pytest.raises(ConfigError, match=told) as error:
            falsify(poison("backdoor", **options))
        assert str(error.value).startswith('attack "backdoor"')
        assert "\n" not in str(error.value)


def test_a_test_of_nothing_but_the_target_is_refused() -> None:
    images, labels = np.zeros((3, 9), np.float32), np.array([0, 1, 0])
    with pytest.raises(DataError, match="all test images are of class 0"):
        poison("backdoor").triggered(Shard(images, labels, images, np.zeros(3, np.int64)))
