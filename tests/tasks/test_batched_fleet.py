from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.tasks import batched_fleet, mlp_fleet
from gossipfl.tasks.base import Partition, Shard, TrainOptions
from gossipfl.tasks.batched_fleet import BatchedFleet, count_hits
from gossipfl.tasks.classification import ClassificationTask
from gossipfl.tasks.fleet import make_fleet
from gossipfl.tasks.registry import load_task

NODES = 10


def fleet_of(options: TrainOptions) -> BatchedFleet:
    task = load_task("digits", {"model": "mlp", "hidden": 12})
    assert isinstance(task, ClassificationTask)
    whole = task.shards(1, Partition("iid"), 0)[0]
    parts = [slice(start, start + 8 * (1 + start % 5)) for start in range(NODES)]
    shards = [Shard(whole.inputs[p], whole.targets[p], whole.test_inputs, whole.test_targets) for p in parts]
    fleet = make_fleet(task, shards, options, model_seed=1, order_seeds=range(NODES))
    assert isinstance(fleet, BatchedFleet)
    return fleet


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_groups_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    options = TrainOptions(momentum=0.5)
    whole = fleet_of(options)
    monkeypatch.setattr(mlp_fleet, "GROUP_NODES", group)
    pieces = fleet_of(options)
    for steps in (9, 20):
        torch.testing.assert_close(pieces.train(steps), whole.train(steps), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pieces.vectors, whole.vectors, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(batched_fleet, "EVALUATION_ROWS", 50)
    monkeypatch.setattr(mlp_fleet, "JUDGED_BYTES", 4 * 50 * 12 * group)
    for ours, theirs in zip(pieces.evaluate(), whole.evaluate(), strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.accuracy == theirs.accuracy


def test_training_in_one_call_or_in_many_is_the_same() -> None:
    one, many = fleet_of(TrainOptions()), fleet_of(TrainOptions())
    one.train(23)
    for steps in (1, 0, 12, 10):
        losses = many.train(steps)
        assert losses.shape == (NODES,)
        assert bool(losses.isnan().all()) == (steps == 0)
    assert torch.equal(one.vectors, many.vectors)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 2.0, float("nan")]), min_size=3, max_size=3), min_size=1))
def test_hits_are_those_of_argmax_with_ties_and_without_numbers(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows).t().expand(2, -1, -1)
    labels = torch.arange(len(rows)) % 3
    expected = int((torch.tensor(rows).argmax(1) == labels).sum())
    assert count_hits(logits, labels.expand(2, 1, -1)).tolist() == [expected] * 2
