"""LTE traffic: each site forecasts its own next two minutes from its last ten samples.

The traces are those of three sites in Barcelona that Perifanis et al. (2023) study, or any with the same
columns. A site's last fifth of time is its test part, the same for every node of that site; the rest is its
training part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
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
"""Complete windows that a training part and a test part must have at least."""


def load(
    *,
    path: str = "",
    model: str = "mlp",
    hidden: object = None,
    inputs: str = "channels",
    sites: object = (),
) -> LteTraffic:
    """Return the task over the CSV traces in the folder ``path``.

    Raises ConfigError for an unknown option value, DataError for a folder or trace that cannot be used.
    """
    if not path:
        raise ConfigError("lte-traffic needs path = a folder with CSV traces, one site a file")
    if inputs not in ("channels", "all"):
        raise ConfigError(f'lte-traffic inputs "{inputs}" is unknown; choose one of: channels, all')
    columns = COLUMNS if inputs == "all" else CHANNELS
    factory = _model(model, hidden, len(columns))
    names = list(sites) if isinstance(sites, (list, tuple)) else str(sites).split(",")
    paths = find_traces(Path(path).expanduser(), [str(name).strip() for name in names if str(name).strip()])
    return LteTraffic([Site.read(file, columns) for file in paths], factory)


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

    def shard(self, start: int, stop: int) -> Shard:
        """Return the shard of a node that holds rows [start, stop) of the training part.

        The scaling is fitted on those rows alone: nothing else of the site is known to the node before the
        test.
        """
        own = self.measured.rows(start, stop)
        scaling = Scaling.fit(own.values, own.columns)
        # The first test windows look back into the training part: at forecasting time those samples are known.
        held_out = self.measured.rows(max(0, self.boundary - LENGTH), len(self.measured))
        training, test = own.windows(scaling), held_out.windows(scaling)
        for part, rows, windows in (("training", own, training), ("test", held_out, test)):
            if len(windows[0]) < LEAST_WINDOWS:
                raise DataError(
                    f"{self.path} gives {len(windows[0])} complete {part} windows in {len(rows)} rows; "
                    f"at least {LEAST_WINDOWS} are needed: use a longer trace or fewer nodes"
                )
        info = {"site": self.name, "rows": (start, stop), "scaling": scaling.channels(len(test[0]))}
        return Shard(*training, *test, info)


class LteTraffic:
    """Forecasts of ``CHANNELS`` by mean squared error on scaled values.

    ``evaluate`` reports, per channel and in original units, ``mae_C`` = mean |p - y| and ``nrmse_C`` =
    sqrt(mean (p - y)^2) / mean y over the site's test part (the normalisation of Perifanis et al., 2023),
    and ``nrmse``, their mean over the channels. A channel whose mean is zero has no NRMSE and is left out.
    """

    name = "lte-traffic"

    def __init__(self, sites: Sequence[Site], model: ModelFactory) -> None:
        self._sites = tuple(sites)
        self._model = model

    def shards(self, nodes: int, partition: Partition, seed: int) -> Sequence[Shard]:
        """Give each node a site, or with more nodes than sites a contiguous span of a site's training part.

        Spans are equally long; the longest traces take the nodes that remain. ``iid`` pools the windows of
        all sites, each scaled by its own site, and deals them at random; every node is then measured on all
        sites' test parts (one node: the model that a central server would train). Other partitions need
        labels: DataError.
        """
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
            site.shard(int(start), int(stop))
            for site, count in zip(self._sites, counts, strict=True)
            for start, stop in pairwise(np.linspace(0, site.boundary, count + 1).round())
        ]

    def _pooled(self, nodes: int, rng: np.random.Generator) -> list[Shard]:
        wholes = [site.shard(0, site.boundary) for site in self._sites]
        inputs, targets, test_inputs, test_targets = (
            np.concatenate([getattr(whole, part) for whole in wholes])
            for part in ("inputs", "targets", "test_inputs", "test_targets")
        )
        if not 1 <= nodes <= len(inputs):
            raise DataError(f"{len(inputs)} windows cannot be dealt to {nodes} nodes; use fewer nodes")
        scalings: list[Scaling] = [whole.info["scaling"] for whole in wholes]
        scaling = Scaling(
            scalings[0].volume,
            np.concatenate([scaling.offset for scaling in scalings]),
            np.concatenate([scaling.deviation for scaling in scalings]),
        )
        info = {"site": "+".join(site.name for site in self._sites), "scaling": scaling}
        return [
            Shard(inputs[part], targets[part], test_inputs, test_targets, info)
            for part in (np.sort(share) for share in np.array_split(rng.permutation(len(inputs)), nodes))
        ]


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
