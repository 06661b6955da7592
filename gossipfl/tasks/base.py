"""The task seam: what a site learns, from which data, and what the agent may ask of a learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from gossipfl.vector import Layout


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What one call of ``Learner.train`` did: mean ``loss`` over its steps, and how many ``samples`` it read."""

    loss: float
    steps: int
    samples: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model does on held-out data: mean ``loss``, ``accuracy`` for classifiers, named ``metrics``."""

    loss: float
    accuracy: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def measures(self) -> dict[str, float | None]:
        """Return everything measured, by name, as records hold it."""
        return {"loss": self.loss, "accuracy": self.accuracy, **self.metrics}


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a learner takes its local steps.

    ``batch`` samples a step, ``optimizer`` one of sgd, adam, adamw; ``momentum`` is read by sgd alone.
    """

    batch: int = 32
    lr: float = 0.1
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    device: str = "cpu"


@runtime_checkable
class Learner(Protocol):
    """One site's model with its data.

    ``vector`` is the model itself, a live float32 tensor of shape (d,): reading it sees the current
    parameters, writing into it in place changes them. ``layout`` names its parts. A learner is used by one
    thread at a time, and draws its batches from a generator it was given.
    """

    @property
    def layout(self) -> Layout:
        """Names and shapes of the vector's parts."""
        ...

    @property
    def vector(self) -> Tensor:
        """The model itself, live, of shape (d,)."""
        ...

    def train(self, steps: int) -> TrainReport:
        """Take ``steps`` local steps on the site's own training data."""
        ...

    def evaluate(self) -> Evaluation:
        """Measure the current model on held-out data."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One node's share of a task: training and test arrays, and what the task wants to remember of it.

    ``inputs`` has shape (n, ...), ``targets`` (n,) integer labels or (n, k) float values. ``info`` holds what the
    task needs later (an lte-traffic shard keeps its scaler and the site's name there).
    """

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    info: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A model, data and a loss.

    ``shards`` splits the data over ``nodes``; ``learner`` makes the learner of one shard. All learners made with
    the same ``model_seed`` start from the same vector. ``order_seed`` drives batches alone.
    """

    name: str

    def shards(self, nodes: int, partition: Partition, seed: int) -> Sequence[Shard]:
        """Split the data; raises DataError where the split is impossible."""
        ...

    def learner(self, shard: Shard, options: TrainOptions, *, model_seed: int, order_seed: int) -> Learner:
        """Return the learner of one shard; raises ConfigError where the options do not fit."""
        ...

    def flip_labels(self, shard: Shard) -> Shard:
        """Return the shard as the label-flip attack trains on it (classes: y -> M-1-y; values: mirrored)."""
        ...


@dataclass(frozen=True, slots=True)
class Partition:
    """How training data is split over nodes.

    ``iid``; ``dirichlet`` with concentration ``alpha``; ``label-groups`` with bias ``h`` (an example of label y goes to
    group y with probability h, to each other group with (1-h)/(M-1)); ``shards`` (one label per node); ``files`` (one
    file per node; more nodes than files: contiguous spans of time). ``auto`` is the task's own choice.

    Each example goes to one node, unless ``samples`` is given: then every node draws so many, with replacement, from
    all of them (iid only). Networks with more nodes than examples need that; it says nothing about learning from more
    data.
    """

    name: Literal["auto", "iid", "dirichlet", "label-groups", "shards", "files"] = "auto"
    alpha: float = 0.5
    h: float = 0.8
    samples: int | None = None
