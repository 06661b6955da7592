from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robust.rule_cases import Case, cases, cluster, even
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.robust.base import Aggregate
from gossipfl.robust.registry import make_rule

FAR = 1e6
"""A pace that sets no limit here."""


def mix(case: Case, **options: float) -> Aggregate:
    return make_rule("pace", options)(case.own, case.received, case.context)


def along_axes(*distances: float, moved: float = FAR, trusted: float = math.nan) -> Case:
    """Neighbours at these distances from 0, each in a direction of its own; all met before, if ``trusted`` is told."""
    received = [distance * torch.eye(len(distances))[j] for j, distance in enumerate(distances)]
    shares = [1 / (len(distances) + 1)] * len(distances)
    memory = torch.tensor([[0.0, trusted]] * len(distances)).double()
    case = Case(torch.zeros(len(distances)), received, shares, [1.0] * len(distances), memory=memory)
    return replace(case, moved=moved)


def scales(result: Aggregate) -> list[float]:
    return [v.scale if v.accepted else 0.0 for v in result.verdicts]


def test_neighbours_that_agree_are_averaged_with_equal_shares() -> None:
    own, received = cluster(6, size=2000)
    case = replace(even(own, received), moved=FAR)
    result = mix(case)
    torch.testing.assert_close(result.vector, torch.stack([own, *received]).mean(0))
    assert all(v.accepted and v.scale == 1 and not v.reason for v in result.verdicts)


def test_strangers_are_let_in_within_a_quarter_more_than_the_median() -> None:
    result = mix(along_axes(3.9, 4, 4, 4.99, 5.01, 4, 1e9))
    assert scales(result) == [1, 1, 1, 1, 0, 1, 0]
    assert [v.reason for v in result.verdicts][4:] == ["farther than others", "", "farther than others"]
    assert {v.threshold for v in result.verdicts} == {5.0}
    assert result.verdicts[0].weight == pytest.approx(1 / 6)


def test_who_was_let_in_may_stay_farther_away_but_pulls_from_no_farther_than_before() -> None:
    result = mix(along_axes(4, 4, 4, 7.9, 8.1, 4, 4, trusted=1.0))
    assert scales(result) == pytest.approx([1, 1, 1, 5 / 7.9, 0, 1, 1])
    assert [v.reason for v in result.verdicts][3:5] == ["clipped", "farther than others"]
    assert {v.threshold for v in result.verdicts} == {8.0}
    assert result.verdicts[0].weight == pytest.approx(1 / 7)
    assert scales(mix(along_axes(4, 4, 4, 7.9, 8.1, 4, 4, trusted=0.0))) == [1, 1, 1, 0, 0, 1, 1]


def test_trust_is_lost_and_earned_again_round_by_round() -> None:
    rule, memory, seen = make_rule("pace"), None, []
    for distance in (1.9, 1.2, 1.9, 2.1, 1.9, 1.2):
        case = replace(along_axes(1, 1, 1, distance), memory=memory)
        result = rule(case.own, case.received, case.context)
        memory = result.memory
        seen.append(result.verdicts[3].accepted)
    assert seen == [False, True, True, False, False, True]


def test_what_those_outside_would_have_had_is_shared_by_all() -> None:
    own, received = cluster(4)
    case = replace(even(own, [*received, own + 100, own - 100]), moved=FAR)
    assert [v.weight for v in mix(case).verdicts] == pytest.approx([1 / 5] * 4 + [0, 0])


def test_what_the_pace_takes_away_stays_with_the_node() -> None:
    """A reach of 6 * 0.5 = 3: 4.5 is half way down, 6.1 is beyond."""
    result = mix(along_axes(3, 4.5, 4.5, 4.5, 6.1, moved=0.5, trusted=1.0))
    slow = [1, 1 / 3, 1 / 3, 1 / 3, 0]
    assert scales(result) == pytest.approx(slow)
    assert [v.reason for v in result.verdicts] == ["", *["clipped"] * 3, "farther than the threshold"]
    assert [v.weight for v in result.verdicts] == pytest.approx([s / 6 for s in slow])


def test_of_two_neighbours_neither_is_judged_by_itself_alone() -> None:
    assert scales(mix(along_axes(1, 1.6))) == [1, 1]
    assert scales(mix(along_axes(1, 1.7))) == [1, 0]
    assert scales(mix(along_axes(100.0))) == [1]


@given(case=cases(fresh=True), strength=st.sampled_from([0.1, 1.0, 1e3, 1e12]))
@settings(max_examples=100, deadline=None)
def test_nobody_moves_a_node_farther_than_its_reach_over_half_the_neighbourhood(case: Case, strength: float) -> None:
    case = replace(case, received=[strength * x for x in case.received])
    result = mix(case)
    count, middle = len(case.received), 0.0
    if count:
        middle = float(np.median([float((x - case.own).double().norm()) for x in case.received]))
    pace = case.moved
    if result.memory is not None:
        pace = float(result.memory[0, 0])
    for verdict, vector in zip(result.verdicts, case.received, strict=True):
        pull = verdict.weight * float((vector - case.own).double().norm())
        assert pull <= min(1.25 * middle, 6 * pace) / (1 + count / 2) * (1 + 1e-5)


@given(distance=st.floats(0.01, 100), moved=st.floats(0.01, 10))
@settings(max_examples=100, deadline=None)
def test_a_larger_lie_is_no_larger_influence(distance: float, moved: float) -> None:
    def pull(distance: float) -> float:
        return float(mix(along_axes(1, 1, 1, 1, distance, moved=moved, trusted=1.0)).vector[-1])

    best = pull(min(1.25, 6 * moved))
    assert pull(distance) <= best * (1 + 1e-5)
    assert pull(200) == 0


def test_the_pace_is_remembered_and_decays() -> None:
    rule, case = make_rule("pace"), along_axes(1, 1, 1)
    paces: list[float] = []
    memory: Tensor | None = None
    for moved in (1.0, 0.1, 0.1, 2.0, 0.0):
        memory = rule(case.own, case.received, replace(case, moved=moved, memory=memory).context).memory
        assert memory is not None
        assert memory.shape == (3, 2)
        paces.append(float(memory[:, 0].max()))
    assert paces == pytest.approx([1.0, 0.9, 0.81, 2.0, 1.8])


def test_a_neighbour_newly_met_takes_no_memory_away() -> None:
    memory = torch.tensor([[math.nan, math.nan], [1.0, 1.0], [1.0, 1.0]]).double()
    result = mix(replace(along_axes(1, 1, 1, moved=0.1), memory=memory))
    assert result.memory is not None
    assert result.memory.tolist() == [[pytest.approx(0.9), 1.0]] * 3


def test_a_neighbour_that_was_away_does_not_bring_an_old_pace_back() -> None:
    memory = torch.tensor([[0.2, 1.0], [50.0, 1.0], [0.2, 1.0]]).double()
    result = mix(replace(along_axes(1, 1, 1, moved=0.1), memory=memory))
    assert result.memory is not None
    assert result.memory[:, 0].tolist() == pytest.approx([0.18] * 3)


def test_who_has_never_moved_trusts_nobody() -> None:
    result = mix(along_axes(1, 1, 1, moved=0.0))
    assert torch.equal(result.vector, torch.zeros(3))
    assert {v.reason for v in result.verdicts} == {"farther than the threshold"}


def test_it_must_be_told_how_far_training_moved() -> None:
    case = along_axes(1, 1)
    with pytest.raises(ValueError, match="was not told how far"):
        make_rule("pace")(case.own, case.received, replace(case.context, moved=None))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"enter": 0.9}, "enter = 0.9 must be 1 or greater"),
        ({"enter": 2, "leave": 1.5}, "leave = 1.5 must be at least enter = 2"),
        ({"reach": 0}, "reach = 0 must be greater than 0"),
        ({"reach": math.inf}, "reach = inf must be greater than 0"),
        ({"decay": 1.0}, "decay = 1.0 must be from 0 to less than 1"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_rule("pace", options)
