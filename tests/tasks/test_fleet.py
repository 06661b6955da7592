from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks import fleet as fleets
from gossipfl.tasks.base import Partition, Shard, TrainOptions
from gossipfl.tasks.fleet import Fleet, LearnerFleet, make_fleet
from gossipfl.tasks.registry import load_task
from gossipfl.tasks.softmax_fleet import SoftmaxFleet

SIZES = (40, 5, 33, 32, 1, 64)


def uneven_shards(*, own_tests: bool = False) -> list[Shard]:
    whole = load_task("digits", {"model": "softmax"}).shards(1, Partition("iid"), 0)[0]
    shards, start = [], 0
    for size in SIZES:
        part = slice(start, start + size)
        shards.append(Shard(whole.inputs[part], whole.targets[part], whole.test_inputs, whole.test_targets))
        start += size
    if own_tests:
        shards = [
            replace(s, test_inputs=s.test_inputs[: 9 + n], test_targets=s.test_targets[: 9 + n])
            for n, s in enumerate(shards)
        ]
    return shards


def both(model: str, shards: list[Shard], options: TrainOptions) -> tuple[Fleet, Fleet]:
    """The batched fleet and the same learners one by one."""
    task = load_task("digits", {"model": model})
    with pytest.MonkeyPatch.context() as patch:
        made = []
        for threshold in (1, 10**9):
            patch.setattr(fleets, "BATCHED_FROM", threshold)
            made.append(make_fleet(task, shards, options, model_seed=3, order_seeds=range(len(shards))))
    assert isinstance(made[0], SoftmaxFleet)
    assert isinstance(made[1], LearnerFleet)
    return made[0], made[1]


@pytest.mark.parametrize("model", ["softmax", "softmax-numpy"])
@pytest.mark.parametrize(
    "options",
    [
        TrainOptions(batch=32, lr=0.1),
        TrainOptions(batch=8, lr=0.05, momentum=0.9, weight_decay=0.01),
        TrainOptions(batch=32, lr=0.01, optimizer="adamw", weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "adamw"],
)
def test_batched_training_takes_the_steps_that_single_learners_take(model: str, options: TrainOptions) -> None:
    batched, single = both(model, uneven_shards(), options)
    assert torch.equal(batched.vectors, single.vectors)
    for steps in (1, 7, 10):
        losses, expected = batched.train(steps), single.train(steps)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batched.vectors, single.vectors, rtol=1e-4, atol=2e-5)


def test_groups_and_gathering_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossipfl.tasks import softmax_fleet

    whole, _ = both("softmax", uneven_shards(), TrainOptions())
    monkeypatch.setattr(softmax_fleet, "GROUP_NODES", 4)
    monkeypatch.setattr(softmax_fleet, "GATHER_BYTES", 1)
    pieces, _ = both("softmax", uneven_shards(), TrainOptions())
    torch.testing.assert_close(pieces.train(9), whole.train(9), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pieces.vectors, whole.vectors, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_tests", [False, True])
def test_evaluations_agree(own_tests: bool) -> None:
    batched, single = both("softmax", uneven_shards(own_tests=own_tests), TrainOptions())
    batched.train(5)
    single.train(5)
    for ours, theirs in zip(batched.evaluate(), single.evaluate(), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.accuracy == pytest.approx(theirs.accuracy, abs=1e-9)


@pytest.mark.parametrize("batched", [True, False])
def test_writing_to_a_row_changes_that_model(batched: bool) -> None:
    fleet = both("softmax", uneven_shards(), TrainOptions(lr=1e-9))[0 if batched else 1]
    before = fleet.vectors.clone()
    fleet.vectors[2] += 1
    fleet.train(1)
    torch.testing.assert_close(fleet.vectors[2], before[2] + 1)
    torch.testing.assert_close(fleet.vectors[1], before[1])


def test_only_softmax_regression_is_batched() -> None:
    task = load_task("digits", {"model": "mlp"})
    shards = task.shards(fleets.BATCHED_FROM, Partition("iid"), 0)
    made = make_fleet(task, shards, TrainOptions(), model_seed=0, order_seeds=range(len(shards)))
    assert isinstance(made, LearnerFleet)


def test_mistakes_are_found_as_single_learners_find_them() -> None:
    shards = uneven_shards()
    empty = replace(shards[1], inputs=shards[1].inputs[:0], targets=shards[1].targets[:0])
    with pytest.raises(DataError, match="no training data"):
        both("softmax", [shards[0], empty], TrainOptions())
    with pytest.raises(ConfigError, match="batch = 0"):
        both("softmax", shards, TrainOptions(batch=0))


def test_diverged_nodes_do_not_disturb_their_group() -> None:
    batched, single = both("softmax", uneven_shards(), TrainOptions())
    for fleet in (batched, single):
        fleet.vectors[0] = float("nan")
        losses = fleet.train(3)
        assert np.isnan(losses[0].item())
    torch.testing.assert_close(batched.vectors[1:], single.vectors[1:], rtol=1e-4, atol=1e-5)
