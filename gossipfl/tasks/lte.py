"""LTE traffic: each site forecasts its own next two minutes from its last ten samples.

The traces are those of three sites in Barcelona that Perifanis et al. (2023) study, or any with the same
columns. A site's last fifth of time is its test part, the same for every node of that site; the rest is its
training part. With the option ``validation`` a node keeps the last share of its own training rows aside, to
choose by it when to stop without a look at the test part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gossipfl.errors import ConfigError, DataError
from gossipfl.tasks.base import Evaluation, Learner, Partition, Shard, TrainOptions
from gossipfl.tasks.models import LstmForecast, MlpForecast, ModelFactory, build, widths
from gossipfl.tasks.torch_learner import TorchLearner
from gossipfl.tasks.traces import CHANNELS, COLUMNS, find_traces, read_trace
from gossipfl.tasks.windows import LENGTH, Measured, Scaling

TEST_SHARE = 0.2
LEAST_WINDOWS = 10
"""Complete windows that each part must have at least."""

Windows = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Inputs (n, LENGTH, c) and targets (n, 5), scaled."""


def load(
    *,
    path: str = "",
    model: str = "mlp",
    hidden: object = None,
    inputs: str = "channels",
    sites: object = (),
    validation: object = 0.0,
) -> LteTraffic:
    """Return the task over the CSV traces in the folder ``path``.

    ``validation`` in [0, 1) is the share of a node's training rows, its last ones, that it does not train on.
    Raises ConfigError for an unknown option value, DataError for a folder or trace that cannot be used.
    """
    if not path:
        raise ConfigError("lte-traffic needs path = a folder with CSV traces, one site a file")
    if inputs not in ("channels", "all"):
        raise ConfigError(f'lte-traffic inputs "{inputs}" is unknown; choose one of: channels, all')
    share = _share(validation)
    columns = COLUMNS if inputs == "all" else CHANNELS
    factory = _model(model, hidden, len(columns))
    names = list(sites) if isinstance(sites, (list, tuple)) else str(sites).split(",")
    paths = find_traces(Path(path).expanduser(), [str(name).strip() for name in names if str(name).strip()])
    return LteTraffic([Site.read(file, columns) for file in paths], factory, share)


def _share(validation: object) -> float:
    if isinstance(validation, bool) or not isinstance(validation, (int, float)) or not 0 <= validation < 1:
        raise ConfigError(f"lte-traffic validation = {validation!r} is no share of rows; use a number in [0, 1)")
    return float(validation)


def _model(name: str, hidden: object, columns: int) -> ModelFactory:
    match name:
        case "mlp":
            sizes = widths(64 if hidden is None else hidden)
            return lambda _: MlpForecast(LENGTH, columns, sizes, len(CHANNELS))
        case "lstm":
            sizes = widths(32 if hidden is None else hidden)
            if len(sizes) != 1:
                raise ConfigError(f"lte-traffic hidden = {hidden!r}: lstm has one layer; give one width")
            return lambda _: LstmForecast(columns, sizes[0], len(CHANNELS))
        case _:
            raise ConfigError(f'lte-traffic model "{name}" is unknown; choose one of: mlp, lstm')


@dataclass(frozen=True, slots=True)
class Site:
    """One site's measurements; rows [0, ``boundary``) are its training part."""

    name: str
    path: Path
    measured: Measured
    boundary: int

    @classmethod
    def read(cls, path: Path, columns: tuple[str, ...]) -> Site:
        """Read one trace."""
        measured = Measured.of(read_trace(path, columns))
        return cls(path.stem, path, measured, int(len(measured) * (1 - TEST_SHARE)))

    def shard(self, start: int, stop: int, validation: float) -> Shard:
        """Return the shard of a node that holds rows [start, stop) of the training part.

        The scaling is fitted on those rows alone: nothing else of the site is known to the node before the
        test. The last ``validation`` of them, a share, give no training windows.
        """
        own = self.measured.rows(start, stop)
        scaling = Scaling.fit(own.values, own.columns)
        kept = stop - round(validation * (stop - start))
        training = self._windows("training", self.measured.rows(start, kept), scaling)
        held_out = self._held_out("test", (self.boundary, len(self.measured)), scaling)
        info = {"site": self.name, "rows": (start, stop), "scaling": scaling.channels(len(held_out[0]))}
        if validation:
            aside = self._held_out("validation", (kept, stop), scaling)
            info["validation"] = Shard(*training, *aside, info | {"scaling": scaling.channels(len(aside[0]))})
        return Shard(*training, *held_out, info)

    def _held_out(self, part: str, rows: tuple[int, int], scaling: Scaling) -> Windows:
        # The first of these windows look back into the rows before: at forecasting time those are known.
        return self._windows(part, self.measured.rows(max(0, rows[0] - LENGTH), rows[1]), scaling)

    def _windows(self, part: str, measured: Measured, scaling: Scaling) -> Windows:
        windows = measured.windows(scaling)
        if len(windows[0]) < LEAST_WINDOWS:
            raise DataError(
                f"{self.path} gives {len(windows[0])} complete {part} windows in {len(measured)} rows; "
                f"at least {LEAST_WINDOWS} are needed: use a longer trace or fewer nodes"
            )
        return windows


class LteTraffic:
    """Forecasts of ``CHANNELS`` by mean squared error on scaled values.

    ``evaluate`` reports, per channel and in original units, ``mae_C`` = mean |p - y| and ``nrmse_C`` =
    sqrt(mean (p - y)^2) / mean y over the site's test part (the normalisation of Perifanis et al., 2023),
    and ``nrmse``, their mean over the channels. A channel whose mean is zero has no NRMSE and is left out.
    """

    name = "lte-traffic"

    def __init__(self, sites: Sequence[Site], model: ModelFactory, validation: float = 0.0) -> None:
        self._sites = tuple(sites)
        self._model = model
        self._validation = validation

    def shards(self, nodes: int, partition: Partition, seed: int) -> Sequence[Shard]:
        """Give each node a site, or with more nodes than sites a contiguous span of a site's training part.

        Spans are equally long; the longest traces take the nodes that remain. ``iid`` pools the windows of
        all sites, each scaled by its own site, and deals them at random; every node is then measured on all
        sites' test parts (one node: the model that a central server would train). Other partitions need
        labels: DataError.
        """
        if partition.samples is not None:
            raise DataError("partition samples draws single examples, and traces are spans of time; leave it out")
        match partition.name:
            case "auto" | "files":
                return self._spans(nodes)
            case "iid":
                return self._pooled(nodes, np.random.default_rng(seed))
            case _:
                raise DataError(
                    f'partition "{partition.name}" needs labels, which lte-traffic has not; choose one of: files, iid'
                )

    def learner(self, shard: Shard, options: TrainOptions, *, model_seed: int, order_seed: int) -> Learner:
        """Return a learner whose initial vector depends on ``model_seed`` alone."""
        return TorchLearner(
            build(self._model, model_seed),
            shard,
            options,
            loss=functional.mse_loss,
            scorer=partial(score, scaling=shard.info["scaling"]),
            order_seed=order_seed,
        )

    def validation(self, shard: Shard) -> Shard:
        """Return the shard with its validation part where its test part was.

        A learner made of it is measured on what its node may look at while it chooses. Raises ConfigError where
        the task holds none out.
        """
        if not self._validation:
            raise ConfigError("lte-traffic holds out no validation part; set validation, e.g. validation = 0.2")
        held_out: Shard = shard.info["validation"]
        return held_out

    def flip_labels(self, shard: Shard) -> Shard:
        """Return the shard with training targets mirrored at the mean (z -> -z); the test part stays true."""
        return replace(shard, targets=-shard.targets)

    def _spans(self, nodes: int) -> list[Shard]:
        files = len(self._sites)
        if nodes < files:
            raise DataError(
                f"{files} traces cannot be held by {nodes} nodes one each; use at least {files} nodes, "
                "or choose traces with the task's option sites"
            )
        longest = sorted(range(files), key=lambda index: (-self._sites[index].boundary, index))
        counts = [nodes // files + (longest.index(index) < nodes % files) for index in range(files)]
        return [
            site.shard(int(start), int(stop), self._validation)
            for site, count in zip(self._sites, counts, strict=True)
            for start, stop in pairwise(np.linspace(0, site.boundary, count + 1).round())
        ]

    def _pooled(self, nodes: int, rng: np.random.Generator) -> list[Shard]:
        wholes = [site.shard(0, site.boundary, self._validation) for site in self._sites]
        inputs, targets = (np.concatenate([getattr(whole, part) for whole in wholes]) for part in ("inputs", "targets"))
        if not 1 <= nodes <= len(inputs):
            raise DataError(f"{len(inputs)} windows cannot be dealt to {nodes} nodes; use fewer nodes")
        aside = _measured_together([self.validation(whole) for whole in wholes]) if self._validation else None
        test = _measured_together(wholes)
        shards = []
        for part in (np.sort(share) for share in np.array_split(rng.permutation(len(inputs)), nodes)):
            shard = replace(test, inputs=inputs[part], targets=targets[part])
            if aside is not None:
                held_out = replace(aside, inputs=shard.inputs, targets=shard.targets)
                shard = replace(shard, info={**shard.info, "validation": held_out})
            shards.append(shard)
        return shards


def _measured_together(shards: Sequence[Shard]) -> Shard:
    """Join the test parts of ``shards``, each scaled by its own site; the training part is the first one's."""
    scalings: list[Scaling] = [shard.info["scaling"] for shard in shards]
    scaling = Scaling(
        scalings[0].volume,
        np.concatenate([scaling.offset for scaling in scalings]),
        np.concatenate([scaling.deviation for scaling in scalings]),
    )
    return replace(
        shards[0],
        test_inputs=np.concatenate([shard.test_inputs for shard in shards]),
        test_targets=np.concatenate([shard.test_targets for shard in shards]),
        info={"site": "+".join(shard.info["site"] for shard in shards), "scaling": scaling},
    )


def score(outputs: Tensor, targets: Tensor, *, scaling: Scaling) -> Evaluation:
    """Mean squared error of scaled ``outputs`` (n, 5), and the errors per channel in original units."""
    loss = functional.mse_loss(outputs, targets).item()
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged model shows in the metrics, not as a warning
        forecast, truth = (scaling.backward(part.double().cpu().numpy()) for part in (outputs, targets))
        error = forecast - truth
        mae, rmse, mean = np.abs(error).mean(axis=0), np.sqrt((error**2).mean(axis=0)), truth.mean(axis=0)
    nrmse = {f"nrmse_{name}": float(rmse[i] / mean[i]) for i, name in enumerate(CHANNELS) if mean[i] > 0}
    metrics = nrmse | {f"mae_{name}": float(mae[i]) for i, name in enumerate(CHANNELS)}
    if nrmse:
        metrics["nrmse"] = sum(nrmse.values()) / len(nrmse)
    return Evaluation(loss=loss, metrics=metrics)
