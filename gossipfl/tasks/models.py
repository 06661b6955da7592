"""Networks of the built-in tasks, and how a model is made from a seed alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gossipfl.errors import ConfigError

ModelFactory = Callable[[torch.Generator], nn.Module]
"""Makes a module on the CPU; the generator is for draws that torch's own layer constructors do not make."""

_DRAWING = threading.Lock()


def build(model: ModelFactory, seed: int) -> nn.Module:
    """Make a module from ``seed`` alone: the same seed gives the same parameters.

    torch's layers take their initial values from the process's default generator and offer no argument for
    another, so that generator is seeded here and put back afterwards; the lock keeps two threads from
    sharing it meanwhile.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return model(torch.Generator().manual_seed(seed))


class Softmax(nn.Module):
    """Softmax regression: logits = W x + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits (n, outputs) of ``rows`` (n, inputs)."""
        logits: Tensor = self.linear(rows)
        return logits


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Return a perceptron with ReLU between its layers; ``rows`` are (n, inputs)."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


class GreyNet(nn.Sequential):
    """Layers for grey images (n, 1, height, width), which are told to be laid out channels last.

    For one channel that is a matter of strides alone, but convolutions and pooling then keep that order for all that
    follows, which takes a third less time on a CPU. Pooling stands before ReLU here: it gives the same, and leaves ReLU
    a quarter of the values.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, outputs)."""
        count, _, height, width = images.shape
        values = images.reshape(count, height, width, 1).permute(0, 3, 1, 2)
        for layer in self:
            values = layer(values)
        return values


class Dropout(nn.Module):
    """Sets each value to 0 with probability ``share`` while it trains, and scales the rest by 1 / (1 - share).

    (Srivastava et al., 2014). Torch's own draws from the process's default generator; this one from ``generator``, on
    the CPU, so that runs repeat: a learner seeds it. The generator's state is part of ``state_dict``.
    """

    def __init__(self, share: float, generator: torch.Generator) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"dropout of {share} leaves nothing to learn from; use a share in [0, 1)")
        super().__init__()
        self._share, self._generator = share, generator

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values`` of any shape, dropped while in training mode."""
        if not self.training:
            return values
        kept = torch.empty_like(values, device="cpu").bernoulli_(1 - self._share, generator=self._generator)
        return values * kept.div_(1 - self._share).to(values.device)

    def seed(self, seed: int) -> None:
        """Draw by ``seed`` from now on."""
        self._generator.manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        """Return the generator's state."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Put the generator in a state."""
        self._generator.set_state(state)


def small_cnn(outputs: int) -> nn.Sequential:
    """Return a net for 8x8 grey images (n, 1, 8, 8): two pooled 3x3 convolutions and one layer."""
    return GreyNet(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, outputs),
    )


def balance_cnn(outputs: int) -> nn.Sequential:
    """Return the CNN of the BALANCE study (Fang et al., 2024): (n, 1, 28, 28) in, 139,960 parameters."""
    return GreyNet(
        nn.Conv2d(1, 30, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(30, 50, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(50 * 5 * 5, 100),
        nn.ReLU(),
        nn.Linear(100, outputs),
    )


def dropout_cnn(outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Return the CNN of the ClippedGossip study (He et al., 2022): (n, 1, 28, 28) in, 1,199,882 parameters."""
    return GreyNet(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        Dropout(0.25, generator),
        nn.Flatten(),
        nn.Linear(64 * 12 * 12, 128),
        nn.ReLU(),
        Dropout(0.5, generator),
        nn.Linear(128, outputs),
    )


def narrow_cnn(outputs: int) -> nn.Sequential:
    """Return a narrow LeNet-5 (LeCun et al., 1998): (n, 1, 28, 28) in, 11,978 parameters."""
    return GreyNet(
        nn.Conv2d(1, 8, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )


class MlpForecast(nn.Module):
    """Forecast of the next sample: the last one plus what a perceptron makes of the whole window.

    The first ``outputs`` columns of a window (n, length, columns) are the ones forecast, in the same scale.
    Learning the change leaves the sites with more in common than learning levels, and starts near the
    persistence forecast.
    """

    def __init__(self, length: int, columns: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.change = mlp(length * columns, hidden, outputs)
        self._outputs = outputs

    def forward(self, windows: Tensor) -> Tensor:
        """Return forecasts (n, outputs)."""
        forecast: Tensor = windows[:, -1, : self._outputs] + self.change(windows.flatten(1))
        return forecast


class LstmForecast(nn.Module):
    """As ``MlpForecast``, with a long short-term memory (Hochreiter and Schmidhuber, 1997)."""

    def __init__(self, columns: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.memory = nn.LSTM(columns, hidden, batch_first=True)
        self.change = nn.Linear(hidden, outputs)
        self._outputs = outputs

    def forward(self, windows: Tensor) -> Tensor:
        """Return forecasts (n, outputs)."""
        states, _ = self.memory(windows)
        forecast: Tensor = windows[:, -1, : self._outputs] + self.change(states[:, -1])
        return forecast


def widths(value: object, *, option: str = "hidden") -> tuple[int, ...]:
    """Read layer widths from a configuration: 128, [128, 64] or "128,64"; raises ConfigError."""
    items: Sequence[object]
    if isinstance(value, str):
        items = [part.strip() for part in value.split(",")]
    elif isinstance(value, Sequence):
        items = value
    else:
        items = [value]
    result: list[int] = []
    for item in items:
        text = str(item)
        if isinstance(item, bool) or not (text.isascii() and text.isdecimal()) or not 0 < int(text) <= 1 << 20:
            raise ConfigError(f'{option} = {value!r} is no list of layer widths; write 128 or "128,64"')
        result.append(int(text))
    if not result:
        raise ConfigError(f'{option} = {value!r} names no layer; write 128 or "128,64", or choose model = softmax')
    return tuple(result)
