from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robust.rule_cases import Case, cases, cluster, even, rule_for
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.robust.base import Aggregate
from gossipfl.robust.registry import make_rule

CLIPPING = ["adaptive-clip", "cs-plus", "rtc"]


def along_axes(*distances: float, f: int = 1, weights: list[float] | None = None) -> Case:
    """Neighbours at these distances from 0, each in a direction of its own; weights of 1/4 unless told."""
    size = len(distances)
    received = [distance * torch.eye(size)[j] for j, distance in enumerate(distances)]
    return Case(torch.zeros(size), received, weights or [0.25] * size, [1.0] * size, f=f)


def mix(name: str, case: Case, **options: object) -> Aggregate:
    rule = make_rule(name, options) if options else case.rule(name)
    return rule(case.own, case.received, case.context)


def steps(result: Aggregate) -> list[float]:
    """How far the result moved in each neighbour's direction, in units of their weight of 1/4."""
    return (4 * result.vector).tolist()


@given(case=cases(), tau=st.floats(0.01, 10), strength=st.sampled_from([1.0, 1e3, 1e15]))
@settings(max_examples=50, deadline=None)
def test_nobody_moves_a_self_clipping_node_farther_than_tau_times_its_weight(
    case: Case, tau: float, strength: float
) -> None:
    case = replace(case, received=[strength * x for x in case.received])
    result = mix("self-clip", case, tau=tau)
    moved = float((result.vector - case.own).double().norm())
    assert moved <= tau * sum(case.weights) * (1 + 1e-5) + 1e-5


def test_within_the_radius_self_clip_is_the_weighted_mean() -> None:
    own, received = cluster(6)
    case = even(own, received)
    result = mix("self-clip", case, tau=10)
    torch.testing.assert_close(result.vector, mix("mean", case).vector)
    assert all(v.scale == 1 and not v.reason for v in result.verdicts)


def test_a_clipped_vector_is_drawn_to_the_radius() -> None:
    result = mix("self-clip", along_axes(0.5, 4.0), tau=1)
    assert steps(result) == pytest.approx([0.5, 1.0])
    assert [v.scale for v in result.verdicts] == [1.0, 0.25]
    assert [v.reason for v in result.verdicts] == ["", "clipped"]
    assert [v.threshold for v in result.verdicts] == [1.0, 1.0]
    assert [v.weight for v in result.verdicts] == [0.25, 0.0625]


def test_the_adaptive_radius_is_the_root_of_the_nearer_ones_spread_over_the_liars_weight() -> None:
    """delta = 1/4 and τ² = (3²/4 + 4²/4) / delta = 5²; the third is outside."""
    result = mix("adaptive-clip", along_axes(3, 4, 100))
    assert steps(result) == pytest.approx([3, 4, 5])
    assert result.verdicts[0].threshold == pytest.approx(5)


def test_remove_then_clip_removes_what_adaptive_clipping_would_keep() -> None:
    result = mix("rtc", along_axes(3, 4, 100))
    assert steps(result) == pytest.approx([3, 4, 0])
    assert [v.accepted for v in result.verdicts] == [True, True, False]
    assert result.verdicts[2].reason == "farther than others"


def test_remove_then_clip_clips_to_its_radius_itself() -> None:
    """Not to its square over the distance: with W = (.3, .05, .05, .05, .3), delta = .3 and the last is removed."""
    case = along_axes(1, 1, 1, 8, 50, weights=[0.3, 0.05, 0.05, 0.05, 0.3])
    result = mix("rtc", case)
    radius = math.sqrt((0.3 + 0.05 + 0.05 + 0.05 * 64) / 0.3)
    assert result.verdicts[3].threshold == pytest.approx(radius)
    assert float(result.vector[3]) == pytest.approx(0.05 * radius)
    assert result.verdicts[3].scale == pytest.approx(radius / 8)
    assert not result.verdicts[4].accepted


def test_cs_plus_clips_twice_f_to_the_next_distance() -> None:
    result = mix("cs-plus", along_axes(60, 2, 1, 3, 50))
    assert steps(result) == pytest.approx([3, 2, 1, 3, 3])
    assert {v.threshold for v in result.verdicts} == {3.0}


def test_cs_plus_trusts_nobody_where_liars_may_hold_half_the_weight() -> None:
    result = mix("cs-plus", along_axes(1, 2, 3, weights=[0.5, 0.1, 0.1]))
    assert result.vector.tolist() == [0, 0, 0]
    assert not any(v.accepted for v in result.verdicts)


@pytest.mark.parametrize("name", CLIPPING)
def test_without_liars_they_are_the_weighted_mean(name: str) -> None:
    own, received = cluster(6)
    case = even(own, received, f=0)
    torch.testing.assert_close(mix(name, case).vector, mix("mean", case).vector)


@pytest.mark.parametrize("name", CLIPPING)
def test_how_far_a_liar_goes_beyond_the_radius_does_not_matter(name: str) -> None:
    own, received = cluster(6)

    def against(lie: Tensor) -> Tensor:
        return mix(name, even(own, [*received, own + lie])).vector

    lie = torch.ones_like(own)
    torch.testing.assert_close(against(1e3 * lie), against(1e6 * lie), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tau", [0, -1, math.inf, math.nan])
def test_impossible_radii_are_refused(tau: float) -> None:
    with pytest.raises(ConfigError, match=r'rule "self-clip": tau = .* must be greater than 0'):
        make_rule("self-clip", {"tau": tau})


def test_weights_that_only_rounding_tells_apart_are_equal() -> None:
    """0.1 + 0.1 + 0.1 > 0.3: without slack, the third farthest would stay."""
    case = along_axes(1, 1, 1, 1, 9, 9, 9, f=3, weights=[0.1] * 7)
    assert [v.accepted for v in rule_for("rtc", 3)(case.own, case.received, case.context).verdicts] == [True] * 4 + [
        False
    ] * 3
