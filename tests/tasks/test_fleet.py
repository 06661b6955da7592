from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks import fleet as fleets
from gossipfl.tasks.base import Evaluation, Learner, Partition, Shard, TrainOptions, TrainReport
from gossipfl.tasks.batched_fleet import BatchedFleet
from gossipfl.tasks.classification import ClassificationTask
from gossipfl.tasks.fleet import Fleet, LearnerFleet, make_fleet
from gossipfl.tasks.mlp_fleet import Perceptrons
from gossipfl.tasks.models import mlp
from gossipfl.tasks.registry import load_task
from gossipfl.tasks.torch_learner import TorchLearner
from gossipfl.tasks.vmap_fleet import VmappedNetwork
from gossipfl.vector import Layout

SIZES = (40, 5, 33, 32, 1, 64)
MODELS = ("softmax", "softmax-numpy", "mlp", "cnn")
OPTIONS = {
    "sgd": TrainOptions(batch=32, lr=0.1),
    "momentum": TrainOptions(batch=8, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": TrainOptions(batch=32, lr=0.01, optimizer="adamw", weight_decay=0.1),
    "adam": TrainOptions(batch=20, lr=0.003, optimizer="adam", weight_decay=0.1, schedule="inverse-sqrt"),
    "schedule": TrainOptions(batch=32, lr=0.3, weight_decay=0.01, schedule="inverse-sqrt"),
}


def task_of(model: str) -> ClassificationTask:
    task = load_task("digits", {"model": model, **({"hidden": "24,16"} if model == "mlp" else {})})
    assert isinstance(task, ClassificationTask)
    return task


def uneven_shards(model: str = "softmax", *, own_tests: bool = False) -> list[Shard]:
    whole = task_of(model).shards(1, Partition("iid"), 0)[0]
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


def learners_of(model: str, shards: Sequence[Shard], options: TrainOptions) -> list[Learner]:
    task = task_of(model)
    return [task.learner(shard, options, model_seed=3, order_seed=seed) for seed, shard in enumerate(shards)]


def one_by_one(model: str, shards: Sequence[Shard], options: TrainOptions) -> LearnerFleet:
    common = all(shard.test_inputs is shards[0].test_inputs for shard in shards)
    return LearnerFleet(learners_of(model, shards, options), common_test=common)


def at_once(model: str, shards: Sequence[Shard], options: TrainOptions) -> BatchedFleet:
    """As ``make_fleet`` does it; convolutions as it does where there is an accelerator, but on the CPU."""
    if model == "cnn":
        (first,) = learners_of(model, shards[:1], options)
        assert isinstance(first, TorchLearner)
        network = VmappedNetwork(first.module, first.layout, shards[0].inputs.shape[1:])
        return BatchedFleet(network, first.vector.repeat(len(shards), 1), shards, options, range(len(shards)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleets, "BATCHED_FROM", 1)
        fleet = make_fleet(task_of(model), shards, options, model_seed=3, order_seeds=range(len(shards)))
    assert isinstance(fleet, BatchedFleet)
    return fleet


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_training_at_once_takes_the_steps_that_single_learners_take(model: str, options: str) -> None:
    shards = uneven_shards(model)
    batched, single = at_once(model, shards, OPTIONS[options]), one_by_one(model, shards, OPTIONS[options])
    assert torch.equal(batched.vectors, single.vectors)
    for steps in (1, 7, 10):
        losses, expected = batched.train(steps), single.train(steps)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batched.vectors, single.vectors, rtol=1e-4, atol=2e-5)
    apart = torch.linalg.vector_norm(batched.vectors - single.vectors, dim=1)
    assert bool((apart <= 1e-5 * torch.linalg.vector_norm(single.vectors, dim=1)).all())


@pytest.mark.parametrize("own_tests", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_evaluations_agree(model: str, own_tests: bool) -> None:
    shards = uneven_shards(model, own_tests=own_tests)
    batched, single = at_once(model, shards, TrainOptions()), one_by_one(model, shards, TrainOptions())
    batched.train(5)
    single.train(5)
    assert batched.common_test is single.common_test is not own_tests
    assert_alike(batched.evaluate(), single.evaluate())


@pytest.mark.parametrize("model", MODELS)
def test_any_model_can_be_judged_on_a_nodes_data_and_on_the_common_test(model: str) -> None:
    shards = uneven_shards(model)
    batched, single = at_once(model, shards, TrainOptions()), one_by_one(model, shards, TrainOptions())
    single.train(4)
    batched.vectors.copy_(single.vectors)
    nodes = torch.tensor([0, 0, 0, 2, 5, 5])
    candidates = single.vectors[torch.tensor([1, 0, 5, 2, 4, 3])]
    found = batched.losses(candidates, nodes)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, single.losses(candidates, nodes), rtol=1e-5, atol=1e-6)
    assert_alike(batched.evaluate_vectors(candidates), single.evaluate_vectors(candidates))
    assert_alike(single.evaluate_vectors(single.vectors), single.evaluate())
    assert torch.equal(batched.vectors, single.vectors)


@pytest.mark.parametrize("make", [at_once, one_by_one])
@pytest.mark.parametrize("model", ["softmax-numpy", "mlp"])
def test_judging_leaves_training_as_it_was(model: str, make: type) -> None:
    asked, left_alone = (make(model, uneven_shards(model), TrainOptions()) for _ in range(2))
    for _ in range(3):
        asked.losses(asked.vectors, torch.arange(len(SIZES)))
        asked.evaluate_vectors(asked.vectors.mean(0, keepdim=True))
        assert torch.equal(asked.train(3), left_alone.train(3))
    assert torch.equal(asked.vectors, left_alone.vectors)


@pytest.mark.parametrize("make", [at_once, one_by_one])
def test_a_probe_that_is_the_whole_shard_gives_the_mean_over_it(make: type) -> None:
    fleet = make("mlp", uneven_shards("mlp"), TrainOptions())
    shard = uneven_shards("mlp")[2]
    module = mlp(64, [24, 16], 10)
    torch.nn.utils.vector_to_parameters(fleet.vectors[2].clone(), module.parameters())
    mean = torch.nn.functional.cross_entropy(module(torch.from_numpy(shard.inputs)), torch.from_numpy(shard.targets))
    assert fleet.losses(fleet.vectors[2:3], torch.tensor([2])).item() == pytest.approx(mean.item(), rel=1e-5)
    assert fleet.losses(fleet.vectors[:0], torch.tensor([], dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("make", [at_once, one_by_one])
def test_without_a_common_test_one_model_cannot_be_measured(make: type) -> None:
    fleet = make("softmax", uneven_shards(own_tests=True), TrainOptions())
    with pytest.raises(ConfigError, match="data of its own"):
        fleet.evaluate_vectors(fleet.vectors[:1])


@pytest.mark.parametrize("make", [at_once, one_by_one])
def test_writing_to_a_row_changes_that_model(make: type) -> None:
    fleet = make("softmax", uneven_shards(), TrainOptions(lr=1e-9))
    before = fleet.vectors.clone()
    fleet.vectors[2] += 1
    fleet.train(1)
    torch.testing.assert_close(fleet.vectors[2], before[2] + 1)
    torch.testing.assert_close(fleet.vectors[1], before[1])


@pytest.mark.parametrize("model", ["softmax", "mlp"])
def test_diverged_nodes_do_not_disturb_their_group(model: str) -> None:
    shards = uneven_shards(model)
    batched, single = at_once(model, shards, OPTIONS["adam"]), one_by_one(model, shards, OPTIONS["adam"])
    for fleet in (batched, single):
        fleet.vectors[0] = float("nan")
        assert np.isnan(fleet.train(3)[0].item())
    torch.testing.assert_close(batched.vectors[1:], single.vectors[1:], rtol=1e-4, atol=1e-5)
    assert_alike(batched.evaluate()[1:], single.evaluate()[1:])
    assert batched.evaluate()[0].accuracy == single.evaluate()[0].accuracy


@pytest.mark.parametrize(
    ("model", "nodes", "kind"),
    [
        ("softmax", fleets.BATCHED_FROM, BatchedFleet),
        ("softmax-numpy", fleets.BATCHED_FROM, BatchedFleet),
        ("mlp", fleets.BATCHED_FROM, BatchedFleet),
        ("mlp", fleets.BATCHED_FROM - 1, LearnerFleet),
        ("cnn", fleets.BATCHED_FROM, LearnerFleet),
    ],
)
def test_many_perceptrons_are_batched_but_no_convolutions_on_a_cpu(model: str, nodes: int, kind: type) -> None:
    shards = task_of(model).shards(nodes, Partition("iid"), 0)
    assert isinstance(make_fleet(task_of(model), shards, TrainOptions(), model_seed=0, order_seeds=range(nodes)), kind)


def test_few_nodes_run_what_their_agents_run_to_the_bit() -> None:
    shards = uneven_shards("mlp")
    learners = learners_of("mlp", shards, OPTIONS["momentum"])
    fleet = make_fleet(task_of("mlp"), shards, OPTIONS["momentum"], model_seed=3, order_seeds=range(len(shards)))
    losses = fleet.train(9)
    assert losses.tolist() == [learner.train(9).loss for learner in learners]
    assert torch.equal(fleet.vectors, torch.stack([learner.vector for learner in learners]))


@pytest.mark.parametrize(
    ("model", "device", "kind"),
    [("mlp", "meta", Perceptrons), ("cnn", "meta", VmappedNetwork), ("cnn", "cpu", type(None))],
)
def test_an_accelerator_gets_all_plain_layers_at_once(model: str, device: str, kind: type) -> None:
    (learner,) = learners_of(model, uneven_shards(model)[:1], TrainOptions())
    network = fleets._network(task_of(model), learner, uneven_shards(model)[0], TrainOptions(device=device))
    assert isinstance(network, kind)


def test_a_task_of_ones_own_is_never_batched() -> None:
    class Weighted(ClassificationTask):
        pass

    whole = uneven_shards()[0]
    examples = (whole.inputs, whole.targets)
    own = Weighted("own", examples, examples, lambda _: mlp(64, [4], 10))
    nodes = fleets.BATCHED_FROM
    fleet = make_fleet(own, [whole] * nodes, TrainOptions(), model_seed=0, order_seeds=range(nodes))
    assert isinstance(fleet, LearnerFleet)


def test_mistakes_are_found_as_single_learners_find_them() -> None:
    shards = uneven_shards()
    empty = replace(shards[1], inputs=shards[1].inputs[:0], targets=shards[1].targets[:0])
    with pytest.raises(DataError, match="no training data"):
        at_once("softmax", [shards[0], empty], TrainOptions())
    with pytest.raises(ConfigError, match="batch = 0"):
        at_once("softmax", shards, TrainOptions(batch=0))
    with pytest.raises(ConfigError, match='schedule "cosine"'):
        at_once("softmax", shards, TrainOptions(schedule="cosine"))  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_learners_live_in_the_rows_and_share_one_gradient(model: str) -> None:
    shards = uneven_shards(model)
    learners = learners_of(model, shards, TrainOptions())
    fleet = LearnerFleet(learners, common_test=True)
    fleet.train(2)
    gradients = set()
    for learner, row in zip(learners, fleet.vectors, strict=True):
        assert isinstance(learner, TorchLearner)
        assert learner.vector.data_ptr() == row.data_ptr()
        starts = [next(p for p in learner.module.parameters()), learner.vector]
        assert starts[0].data_ptr() == starts[1].data_ptr()
        gradients.add(starts[0].grad.data_ptr())  # type: ignore[union-attr]
    assert len(gradients) == 1


class Elsewhere:
    """A learner that holds its vector somewhere else, and cannot judge: y = w, by descent on (w - mean)²."""

    def __init__(self, target: float) -> None:
        self.vector, self._target = torch.zeros(2), target
        self.layout = Layout(())

    def train(self, steps: int) -> TrainReport:
        for _ in range(steps):
            self.vector -= 0.5 * (self.vector - self._target)
        return TrainReport(float((self.vector - self._target).square().mean()), steps, steps)

    def evaluate(self) -> Evaluation:
        return Evaluation(float(self.vector.mean()))


def test_what_cannot_move_is_copied_from_and_to_its_row() -> None:
    fleet: Fleet = LearnerFleet([Elsewhere(1.0), Elsewhere(2.0)], common_test=False)
    fleet.train(1)
    assert fleet.vectors.tolist() == [[0.5, 0.5], [1.0, 1.0]]
    fleet.vectors[0] = 3.0
    assert [evaluation.loss for evaluation in fleet.evaluate()] == [3.0, 1.0]
    fleet.train(1)
    assert fleet.vectors.tolist() == [[2.0, 2.0], [1.5, 1.5]]
    with pytest.raises(ConfigError, match=r"Elsewhere cannot tell .* method losses"):
        fleet.losses(fleet.vectors, torch.tensor([0, 1]))


@pytest.mark.parametrize("model", ["softmax", "cnn"])
def test_nodes_can_start_apart_each_from_its_own_seed(model: str) -> None:
    shards = uneven_shards(model)
    fleet = make_fleet(
        task_of(model),
        shards,
        TrainOptions(),
        model_seed=3,
        order_seeds=range(len(shards)),
        own_init_seeds=range(100, 100 + len(shards)),
        init_scale=6.0,
    )
    size = fleet.vectors.shape[1]
    for node, row in enumerate(fleet.vectors):
        assert torch.equal(row, 6 * torch.randn(size, generator=torch.Generator().manual_seed(100 + node)))
    assert fleet.train(1).isfinite().all()


def test_shared_statistics_are_not_drawn() -> None:
    whole = uneven_shards()[0]
    examples = (whole.inputs, whole.targets)

    def normed(_: torch.Generator) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 10))

    task = ClassificationTask("normed", examples, examples, normed, buffers="shared")
    with pytest.raises(ConfigError, match='init = "own"'):
        make_fleet(task, [whole], TrainOptions(), model_seed=0, order_seeds=[0], own_init_seeds=[1])


def assert_alike(ours: Sequence[Evaluation], theirs: Sequence[Evaluation]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4, abs=1e-6)
        assert one.accuracy == pytest.approx(other.accuracy, abs=1e-9)
