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

    ``batch`` samples a step, ``optimizer`` one of sgd, adam, adamw; ``momentum`` is read by sgd alone. ``schedule``:
    the learning rate is ``lr`` at every step, or lr / sqrt(t + 1) after t steps.
    """

    batch: int = 32
    lr: float = 0.1
    schedule: Literal["constant", "inverse-sqrt"] = "constant"
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


@runtime_checkable
class Resumable(Protocol):
    """A learner that a restarted site goes on with where it was: optimiser, batches and all."""

    def state(self) -> dict[str, Any]:
        """Return copies of what it needs for that: tensors, in nested dictionaries with text for keys."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``, in place: the vector stays the same tensor."""
        ...


def learner_state(learner: Learner) -> dict[str, Any]:
    """Return what is kept of a learner over a restart: of one that is not ``Resumable``, its model."""
    return learner.state() if isinstance(learner, Resumable) else {"vector": learner.vector.detach().cpu().clone()}


def restore_learner(learner: Learner, state: dict[str, Any]) -> None:
    """Go on from what ``learner_state`` returned."""
    if isinstance(learner, Resumable):
        learner.restore(state)
    else:
        learner.vector.copy_(state["vector"])


@runtime_checkable
class Judge(Protocol):
    """A learner that can also tell how any model does on its site's data, as some rules ask."""

    def losses(self, vectors: Sequence[Tensor]) -> list[float]:
        """Return the mean loss of each of ``vectors`` (d,) on a fixed probe of the site's training data.

        The probe is drawn once, by the order seed. Neither the learner's own model nor its batches change.
        """
        ...


@runtime_checkable
class Movable(Protocol):
    """A learner whose model can live in memory that somebody else owns."""

    def move_to(self, vector: Tensor, gradient: Tensor) -> None:
        """Keep the model in ``vector`` (d,) from now on, and gradients, while training, in ``gradient`` (d,).

        Both are contiguous float32 on the CPU; ``vector`` takes over the model, ``gradient`` is scratch.
        """
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
    the same ``model_seed`` start from the same vector. ``order_seed`` drives what a node draws while it trains: its
    batches, and the units that dropout drops.
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


@runtime_checkable
class Poison(Protocol):
    """An attack that lies in its training data."""

    def poison(self, shard: Shard, task: Task, seed: int) -> Shard:
        """Return the shard as the attacker trains on it, its test part unchanged; ``seed`` fixes what is random.

        Raises ConfigError for data that it cannot falsify.
        """
        ...


@runtime_checkable
class Trigger(Protocol):
    """An attack that teaches models to answer a trigger."""

    def triggered(self, shard: Shard) -> Shard:
        """Return a shard on whose test part a model's accuracy is the attack's success rate.

        Its training part is no more than a learner needs.
        """
        ...


@dataclass(frozen=True, slots=True)
class Partition:
    """How training data is split over nodes.

    ``iid``; ``dirichlet`` with concentration ``alpha``, or ``dirichlet-even``, where all nodes have as many examples;
    ``label-groups`` with bias ``h`` (an example of label y goes to group y with probability h, to each other group with
    (1-h)/(M-1)); ``shards`` (one label per node); ``files`` (one file per node; more nodes than files: contiguous spans
    of time). ``auto`` is the task's own choice.

    Each example goes to one node, unless ``samples`` is given: then every node draws so many, with replacement, from
    all of them (iid only). Networks with more nodes than examples need that; it says nothing about learning from more
    data.
    """

    name: Literal["auto", "iid", "dirichlet", "dirichlet-even", "label-groups", "shards", "files"] = "auto"
    alpha: float = 0.5
    h: float = 0.8
    samples: int | None = None
