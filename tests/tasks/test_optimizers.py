from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from gossipfl.errors import ConfigError
from gossipfl.tasks.base import TrainOptions
from gossipfl.tasks.optimizers import make_optimizer

Reference = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (TrainOptions(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            TrainOptions(lr=0.1, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
        (
            TrainOptions(optimizer="adam", lr=0.01, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        ),
        (
            TrainOptions(optimizer="adamw", lr=0.01, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        ),
    ],
    ids=["sgd", "sgd-momentum-decay", "adam-decay", "adamw"],
)
def test_steps_equal_those_of_torch(options: TrainOptions, reference: Reference) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(50, generator=generator)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    mine, other = make_optimizer(options, ours), reference([theirs])
    for _ in range(20):
        gradient = torch.randn(50, generator=generator)
        theirs.grad = gradient.clone()
        other.step()
        mine.step(ours, gradient)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TrainOptions(optimizer="rmsprop"), 'optimizer "rmsprop" is unknown'),  # type: ignore[arg-type]
        (TrainOptions(lr=0.0), "lr = 0.0"),
        (TrainOptions(lr=float("nan")), "lr = nan"),
        (TrainOptions(momentum=1.0), "momentum = 1.0"),
        (TrainOptions(weight_decay=-1.0), "weight_decay = -1.0"),
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
        "from gossipfl.tasks.registry import load_task\n"
        "task = load_task('digits')\n"
        "for name in ('sgd', 'adam', 'adamw'):\n"
        "    options = TrainOptions(optimizer=name, momentum=0.5)\n"
        "    learner = task.learner(task.shards(1, Partition(), 0)[0], options, model_seed=0, order_seed=0)\n"
        "    learner.train(2)\n"
        "    learner.evaluate()\n"
        "print('torch._dynamo' in sys.modules, 'sympy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
