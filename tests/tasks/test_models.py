from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gossipfl.errors import ConfigError
from gossipfl.tasks.models import Dropout, GreyNet, balance_cnn, dropout_cnn, narrow_cnn, small_cnn


def as_written_in_the_paper(net: GreyNet) -> nn.Sequential:
    """The same layers with ReLU before pooling, in torch's own order of memory."""
    layers = list(net)
    for place in range(len(layers) - 1):
        if isinstance(layers[place], nn.MaxPool2d) and isinstance(layers[place + 1], nn.ReLU):
            layers[place], layers[place + 1] = layers[place + 1], layers[place]
    return nn.Sequential(*layers)


def gradient(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    net.zero_grad()
    functional.cross_entropy(net(images), labels).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize(("net", "side"), [(small_cnn(10), 8), (balance_cnn(10), 28), (narrow_cnn(10), 28)])
def test_pooling_before_relu_and_channels_last_change_nothing(net: GreyNet, side: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, side, side, generator=generator)
    labels = torch.randint(0, 10, (6,), generator=generator)
    paper = as_written_in_the_paper(net)
    torch.testing.assert_close(net(images), paper(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(net, images, labels), gradient(paper, images, labels), rtol=1e-3, atol=1e-5)


def test_the_clipped_gossip_net_is_the_published_one() -> None:
    net = dropout_cnn(10, torch.Generator())
    assert [type(part) for part in as_written_in_the_paper(net)] == [
        *(nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d, Dropout),
        *(nn.Flatten, nn.Linear, nn.ReLU, Dropout, nn.Linear),
    ]
    assert sum(p.numel() for p in net.parameters()) == 320 + 18_496 + 1_179_776 + 1_290


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    drop = Dropout(0.25, torch.Generator().manual_seed(2))
    values = drop(torch.ones(200, 200))
    assert float((values == 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(values.mean()) == pytest.approx(1.0, abs=0.02)
    assert sorted(values.unique().tolist()) == pytest.approx([0, 4 / 3])
    drop.eval()
    assert torch.equal(drop(values), values)


def test_dropout_draws_from_its_own_generator_alone() -> None:
    state = torch.random.get_rng_state()
    drop = Dropout(0.5, torch.Generator().manual_seed(5))
    first = [drop(torch.ones(40)) for _ in range(3)]
    assert torch.equal(torch.random.get_rng_state(), state)
    drop.seed(5)
    assert all(torch.equal(drop(torch.ones(40)), one) for one in first)
    assert not torch.equal(first[0], first[1])


def test_dropout_passes_gradients_where_it_passed_values() -> None:
    values = torch.ones(50, requires_grad=True)
    dropped = Dropout(0.5, torch.Generator().manual_seed(5))(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, dropped.detach())


def test_dropout_goes_on_from_its_state() -> None:
    one, other = (Dropout(0.5, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    one(torch.ones(9))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(torch.ones(99)), other(torch.ones(99)))


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_dropout_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="dropout of"):
        Dropout(share, torch.Generator())
