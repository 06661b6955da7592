from __future__ import annotations

import pytest
import torch
from torch import nn

from gossipfl.tasks.models import LstmForecast, Softmax, balance_cnn, dropout_cnn, mlp, narrow_cnn, small_cnn
from gossipfl.tasks.vmap_fleet import VmappedNetwork, can_be_mapped
from gossipfl.vector import flatten


@pytest.mark.parametrize(
    ("module", "can"),
    [
        (balance_cnn(10), True),
        (narrow_cnn(10), True),
        (mlp(4, [3], 2), True),
        (Softmax(4, 2), True),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), False),
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), False),
        (dropout_cnn(10, torch.Generator()), False),
        (LstmForecast(3, 4, 2), False),
    ],
)
def test_what_draws_or_keeps_statistics_is_not_mapped(module: nn.Module, can: bool) -> None:
    assert can_be_mapped(module) is can


def test_mapped_logits_are_those_of_each_model() -> None:
    modules = [small_cnn(10) for _ in range(3)]
    flats = [flatten(module) for module in modules]
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = VmappedNetwork(modules[0], flats[0].layout, (1, 8, 8))
    logits = network.logits(torch.stack([flat.vector for flat in flats]), images.flatten(1))
    assert logits.shape == (3, 10, 5)
    for module, found in zip(modules, logits, strict=True):
        torch.testing.assert_close(found.t(), module(images).detach())
