"""How far a backdoor has come: models measured on triggered copies of their nodes' test data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gossipfl.tasks.fleet import make_fleet

if TYPE_CHECKING:
    from torch import Tensor

    from gossipfl.tasks.base import Shard, Task, TrainOptions, Trigger


class TriggeredTest:
    """The test that an attack with a trigger sets: how many of the others' samples it turns into its own.

    ``shards`` are the nodes' own; their triggered test parts are made once, and shared where the test parts are.
    Raises ConfigError and DataError as ``trigger`` does.
    """

    def __init__(
        self, task: Task, trigger: Trigger, shards: Sequence[Shard], options: TrainOptions, *, model_seed: int
    ) -> None:
        self._fleet = make_fleet(
            task, _triggered(trigger, shards), options, model_seed=model_seed, order_seeds=[0] * len(shards)
        )

    def success(self, vectors: Tensor) -> list[float]:
        """Return each model's attack success rate for models (n, d), one a shard.

        It is the share of triggered test samples of other classes that the model sends to the attack's target.
        """
        self._fleet.vectors.copy_(vectors)
        rates = (evaluation.accuracy for evaluation in self._fleet.evaluate())
        return [float("nan") if rate is None else rate for rate in rates]


def _triggered(trigger: Trigger, shards: Sequence[Shard]) -> list[Shard]:
    made: dict[tuple[int, int], Shard] = {}
    tests = []
    for shard in shards:
        key = id(shard.test_inputs), id(shard.test_targets)
        if key not in made:
            made[key] = trigger.triggered(shard)
        tests.append(replace(made[key], info=shard.info))
    return tests
