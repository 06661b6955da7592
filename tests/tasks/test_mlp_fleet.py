from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from gossipfl.tasks.base import TrainOptions
from gossipfl.tasks.mlp_fleet import PerceptronBench, Perceptrons, cross_entropy, perceptron_sizes
from gossipfl.tasks.models import GreyNet, Softmax, mlp
from gossipfl.vector import flatten

CPU = torch.device("cpu")


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=5),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_a_step_is_that_of_autograd(sizes: list[int], nodes: int, batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    modules = [mlp(sizes[0], sizes[1:-1], sizes[-1]) for _ in range(nodes)]
    flats = [flatten(module) for module in modules]
    for flat in flats:
        flat.vector.copy_(torch.randn(flat.vector.shape, generator=generator))
    models = torch.stack([flat.vector for flat in flats])
    inputs = torch.randn(nodes, batch, sizes[0], generator=generator)
    labels = torch.randint(0, sizes[-1], (nodes, batch), generator=generator)
    shares = torch.rand(nodes, batch, generator=generator)

    bench = PerceptronBench(sizes, models, torch.empty(models.numel()), shares, TrainOptions(lr=1.0))
    bench.load()
    losses = bench.step(inputs, labels)
    bench.store()
    logits = Perceptrons(sizes, CPU).logits(torch.stack([flat.vector for flat in flats]), inputs[0])

    for node, (module, flat) in enumerate(zip(modules, flats, strict=True)):
        loss = (functional.cross_entropy(module(inputs[node]), labels[node], reduction="none") * shares[node]).sum()
        torch.testing.assert_close(logits[node].t(), module(inputs[0]))
        loss.backward()
        torch.testing.assert_close(losses[node], loss.detach())
        torch.testing.assert_close(models[node], flat.vector - flat.gradient, rtol=1e-4, atol=1e-5)


def test_the_loss_of_even_odds_is_the_logarithm_of_the_classes() -> None:
    losses, errors = cross_entropy(torch.zeros(2, 4, 3), torch.zeros(2, 1, 3, dtype=torch.int64), torch.ones(2, 1, 3))
    torch.testing.assert_close(losses, torch.full((2,), 3 * torch.tensor(4.0).log().item()))
    assert errors[0, :, 0].tolist() == pytest.approx([-0.75, 0.25, 0.25, 0.25])


def frozen() -> nn.Sequential:
    module = mlp(3, [4], 2)
    module[0].weight.requires_grad_(False)
    return module


def tied() -> nn.Sequential:
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        (Softmax(5, 3), (5, 3)),
        (mlp(5, [4, 6], 3), (5, 4, 6, 3)),
        (nn.Sequential(nn.Linear(5, 3)), (5, 3)),
        (nn.Sequential(nn.Linear(5, 3, bias=False)), None),
        (nn.Sequential(nn.Linear(5, 3), nn.ReLU()), None),
        (nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2)), None),
        (nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)), None),
        (nn.Sequential(nn.ReLU(), nn.Linear(5, 3), nn.ReLU()), None),
        (GreyNet(nn.Linear(5, 3)), None),
        (nn.Linear(5, 3), None),
        (frozen(), None),
        (tied(), None),
    ],
)
def test_only_plain_perceptrons_are_taken_for_such(module: nn.Module, sizes: tuple[int, ...] | None) -> None:
    assert perceptron_sizes(module, flatten(module).layout) == sizes


def test_large_models_are_trained_in_smaller_groups() -> None:
    small, large = (Perceptrons(sizes, CPU).trained_together(32) for sizes in ((64, 10), (784, 128, 10)))
    assert small == 128
    assert 1 < large < 10
    assert Perceptrons((784, 128, 10), torch.device("meta")).trained_together(32) > 100
