from __future__ import annotations

import math

import pytest
import torch

from gossipfl.errors import ConfigError
from gossipfl.robust import sweep
from gossipfl.robust.balance import Balance
from gossipfl.robust.base import MixContext


def context(count: int, *, round_: int = 0, horizon: int | None = 100) -> MixContext:
    return MixContext([0.1] * count, [1.0] * count, round_, horizon)


def near(own: torch.Tensor, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [own + 0.05 * torch.randn(own.shape, generator=generator) for _ in range(count)]


def test_the_threshold_closes_from_gamma_to_gamma_over_e() -> None:
    rule = Balance()
    assert rule.radius(0, 2000) == pytest.approx(0.3)
    assert rule.radius(1000, 2000) == pytest.approx(0.3 * math.exp(-0.5))
    assert rule.radius(2000, 2000) == pytest.approx(0.3 / math.e)
    assert rule.radius(9999, 2000) == pytest.approx(0.3 / math.e)


def test_without_a_horizon_it_starts_with_the_same_slope_and_ends_at_the_same_value() -> None:
    rule = Balance(horizonless=500)
    known = [rule.radius(t, 500) for t in range(3)]
    unknown = [rule.radius(t, None) for t in range(3)]
    assert unknown[0] == known[0]
    assert unknown[1] - unknown[0] == pytest.approx(known[1] - known[0], rel=5e-3)
    assert rule.radius(10**9, None) == pytest.approx(rule.radius(500, 500))
    values = [rule.radius(t, None) for t in range(0, 5000, 100)]
    assert values == sorted(values, reverse=True)


def test_the_boundary_is_inside() -> None:
    own = torch.tensor([1.0, 0.0])
    rule = Balance(gamma=0.5)
    inside, outside = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.5001])
    verdicts = rule(own, [inside, outside], context(2)).verdicts
    assert [v.accepted for v in verdicts] == [True, False]
    assert verdicts[0].threshold == pytest.approx(0.5)
    assert verdicts[0].distance == pytest.approx(0.5)
    assert verdicts[0].weight == 0.5
    assert verdicts[1].weight == 0.0


def test_nobody_near_keeps_the_own_model() -> None:
    own = torch.randn(100, generator=torch.Generator().manual_seed(0))
    result = Balance()(own, [-own, own * 9], context(2))
    assert torch.equal(result.vector, own)
    assert [v.accepted for v in result.verdicts] == [False, False]


def test_agreeing_neighbours_change_no_bit() -> None:
    own = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Balance()(own, [own.clone() for _ in range(3)], context(3)).vector, own)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_vector_that_is_not_finite_is_rejected_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, value: float, place: int
) -> None:
    monkeypatch.setattr(sweep, "BLOCK", 16)
    own = torch.randn(64, generator=torch.Generator().manual_seed(0))
    good = near(own, 3)
    bad = own.clone()
    bad[place] = value
    result = Balance()(own, [good[0], bad, *good[1:]], context(4))
    assert [v.accepted for v in result.verdicts] == [True, False, True, True]
    assert torch.equal(result.vector, Balance()(own, good, context(3)).vector)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_own_model_that_is_not_finite_accepts_nobody(value: float) -> None:
    own = torch.ones(8)
    own[3] = value
    result = Balance()(own, [torch.ones(8), own.clone()], context(2))
    assert [v.accepted for v in result.verdicts] == [False, False]
    assert torch.equal(result.vector.nan_to_num(), own.nan_to_num())


@pytest.mark.parametrize("late_from", [0, 100, 499])
def test_rejections_leave_the_bits_of_a_run_without_the_rejected(
    monkeypatch: pytest.MonkeyPatch, late_from: int
) -> None:
    """Liars that show themselves at the start, midway and in the last block cost work, never bits."""
    monkeypatch.setattr(sweep, "BLOCK", 32)
    own = torch.randn(500, generator=torch.Generator().manual_seed(0))
    good = near(own, 4)
    liar = own.clone()
    liar[late_from:] -= 40
    half = own.clone()
    half[200:] *= -1
    expected = Balance()(own, good, context(4)).vector
    mixed = [liar, good[0], good[1], half, good[2], liar, good[3]]
    result = Balance()(own, mixed, context(7))
    assert torch.equal(result.vector, expected)
    assert [v.accepted for v in result.verdicts] == [False, True, True, False, True, False, True]
    for verdict, vector in zip(result.verdicts, mixed, strict=True):
        true = float((vector - own).double().norm())
        if verdict.accepted:
            assert verdict.distance == pytest.approx(true, rel=1e-5)
        else:
            assert verdict.distance is not None
            assert verdict.threshold is not None
            assert verdict.threshold < verdict.distance <= true * (1 + 1e-5)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(sweep, "BLOCK", 32)
    own = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    liar = own.clone()
    liar[900:] += 20
    received = [*near(own, 3), liar, -own]
    one = Balance()(own, received, context(5))
    monkeypatch.setattr(sweep, "PARALLEL_ELEMENTS", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    many = Balance()(own, received, context(5))
    assert torch.equal(one.vector, many.vector)
    assert [v.accepted for v in many.verdicts] == [True, True, True, False, False]


def test_stale_neighbours_pull_less() -> None:
    own, ahead = torch.ones(10), torch.full((10,), 1.1)
    stale = MixContext([0.5, 0.5], [0.5, 0.25], 0, 10)
    result = Balance(alpha=0.4)(own, [ahead, ahead], stale)
    assert torch.allclose(result.vector, own + 0.6 / 2 * (0.5 + 0.25) * 0.1)
    assert [v.weight for v in result.verdicts] == pytest.approx([0.15, 0.075])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": 0.0}, "gamma = 0.0 must be greater than 0"),
        ({"gamma": float("nan")}, "gamma"),
        ({"kappa": -1.0}, "kappa = -1.0 must be 0 or greater"),
        ({"alpha": 1.5}, "alpha = 1.5 must be between 0 and 1"),
        ({"horizonless": 0.0}, "horizonless"),
        ({"gamma": float("inf")}, "gamma"),
    ],
)
def test_impossible_parameters_are_refused_in_one_line(options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        Balance(**options)
    assert "\n" not in str(caught.value)
