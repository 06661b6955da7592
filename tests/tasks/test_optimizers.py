from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import pytest
import torch

from gossipfl.errors import ConfigError
from gossipfl.tasks.base import TrainOptions
from gossipfl.tasks.optimizers import Optimizer, make_optimizer

Reference = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

REFERENCES: dict[str, tuple[TrainOptions, Reference]] = {
    "sgd": (TrainOptions(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd-decay": (
        TrainOptions(lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    ),
    "sgd-momentum-decay": (
        TrainOptions(lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam-decay": (
        TrainOptions(optimizer="adam", lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    ),
    "adamw": (
        TrainOptions(optimizer="adamw", lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
}


def step(optimizer: Optimizer, parameters: torch.Tensor, gradient: torch.Tensor, *, accumulated: bool) -> None:
    if not accumulated:
        optimizer.step(parameters, gradient)
        return
    into = optimizer.accumulator(parameters)
    torch.add(into.tensor * into.keep, gradient, alpha=into.scale, out=into.tensor)
    optimizer.finish(parameters)


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("schedule", ["constant", "inverse-sqrt"])
@pytest.mark.parametrize("name", REFERENCES)
def test_steps_equal_those_of_torch(name: str, schedule: str, accumulated: bool) -> None:
    options, reference = REFERENCES[name]
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(50, generator=generator)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    mine, other = make_optimizer(replace(options, schedule=schedule), ours), reference([theirs])  # type: ignore[arg-type]
    factor = (lambda _: 1.0) if schedule == "constant" else (lambda t: 1 / sqrt(t + 1))
    decreasing = torch.optim.lr_scheduler.LambdaLR(other, factor)
    for _ in range(20):
        gradient = torch.randn(50, generator=generator)
        theirs.grad = gradient.clone()
        other.step()
        decreasing.step()
        step(mine, ours, gradient, accumulated=accumulated)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "keep", "scale"),
    [
        ("sgd", 1.0, -0.1),
        ("sgd-decay", 1 - 0.1 * 0.1, -0.1),
        ("sgd-momentum-decay", 0.9, 1.0),
        ("adam-decay", 0.0, 1.0),
        ("adamw", 0.0, 1.0),
    ],
)
def test_gradients_go_straight_to_where_they_are_needed(name: str, keep: float, scale: float) -> None:
    parameters = torch.ones(5)
    into = make_optimizer(REFERENCES[name][0], parameters).accumulator(parameters)
    assert (into.keep, into.scale) == pytest.approx((keep, scale))
    assert (into.tensor is parameters) == (name in {"sgd", "sgd-decay"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrainOptions(optimizer="rmsprop"), 'optimizer "rmsprop" is unknown'),  # type: ignore[arg-type]
        (TrainOptions(lr=0.0), "lr = 0.0"),
        (TrainOptions(lr=float("nan")), "lr = nan"),
        (TrainOptions(momentum=1.0), "momentum = 1.0"),
        (TrainOptions(weight_decay=-1.0), "weight_decay = -1.0"),
        (TrainOptions(schedule="cosine"), 'schedule "cosine" is unknown'),  # type: ignore[arg-type]
    ],
)
def test_impossible_options_are_refused(options: TrainOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_optimizer(options, torch.zeros(2))


def test_training_never_loads_torchs_compiler() -> None:
    """It would cost each process seconds of start-up and a hundred megabytes."""
    program = (
        "import sys\n"
        "from gossipfl.tasks.base import Partition, TrainOptions\n"
        "from gossipfl.tasks.fleet import make_fleet\n"
        "from gossipfl.tasks.registry import load_task\n"
        "import torch\n"
        "task = load_task('digits')\n"
        "for name in ('sgd', 'adam', 'adamw'):\n"
        "    options = TrainOptions(optimizer=name, momentum=0.5)\n"
        "    learner = task.learner(task.shards(1, Partition(), 0)[0], options, model_seed=0, order_seed=0)\n"
        "    learner.train(2)\n"
        "    learner.evaluate()\n"
        "    shards = task.shards(3, Partition('iid'), 0)\n"
        "    fleet = make_fleet(task, shards, options, model_seed=0, order_seeds=range(3))\n"
        "    fleet.train(2)\n"
        "    fleet.losses(fleet.vectors, torch.arange(3))\n"
        "    fleet.evaluate()\n"
        "print('torch._dynamo' in sys.modules, 'sympy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
