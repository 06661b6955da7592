from __future__ import annotations

import math
from dataclasses import replace

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


def along_axes(*distances: float, moved: float = FAR, weights: list[float] | None = None) -> Case:
    """Neighbours at these distances from 0, each in a direction of its own; all edges weigh the same unless told."""
    received = [distance * torch.eye(len(distances))[j] for j, distance in enumerate(distances)]
    share = 1 / (len(distances) + 1)
    case = Case(torch.zeros(len(distances)), received, weights or [share] * len(distances), [1.0] * len(distances))
    return replace(case, moved=moved)


def scales(result: Aggregate) -> list[float]:
    return [v.scale if v.accepted else 0.0 for v in result.verdicts]


def test_neighbours_that_agree_are_averaged_with_their_mixing_weights() -> None:
    own, received = cluster(6, size=2000)
    case = replace(even(own, received), moved=FAR)
    result = mix(case)
    torch.testing.assert_close(result.vector, make_rule("mean")(own, received, case.context).vector)
    assert all(v.accepted and v.scale == 1 and not v.reason for v in result.verdicts)


def test_beyond_the_peers_radius_a_neighbour_pulls_less_and_beyond_twice_of_it_not_at_all() -> None:
    """The median is 4: the radius 5, and 10 is twice of it."""
    result = mix(along_axes(3.9, 4, 4, 5, 7.5, 10.1, 4))
    assert scales(result) == pytest.approx([1, 1, 1, 1, 1 / 3, 0, 1])
    assert [v.reason for v in result.verdicts] == ["", "", "", "", "clipped", "farther than others", ""]
    assert {v.threshold for v in result.verdicts} == {10.0}
    lost = (2 / 3 + 1) / 8
    assert result.verdicts[0].weight == pytest.approx(1 / 8 / (1 - lost))


def test_what_the_peers_radius_takes_away_is_shared_by_all() -> None:
    """Were the liars not there, the weights would be those."""
    own, received = cluster(4)
    case = replace(even(own, [*received, own + 100, own - 100]), moved=FAR)
    weights = [v.weight for v in mix(case).verdicts]
    assert weights == pytest.approx([1 / 5] * 4 + [0, 0])


def test_what_the_pace_takes_away_stays_with_the_node() -> None:
    """A reach of 8 * 0.5 = 4 at equal weights: 6 is half way down, 9 is beyond."""
    result = mix(along_axes(4, 6, 6, 6, 9, moved=0.5))
    assert scales(result) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])
    assert [v.reason for v in result.verdicts] == ["", *["clipped"] * 3, "farther than the threshold"]
    peers = 1 - (1 - (2 * 7.5 - 9) / 9) / 6
    assert [v.weight for v in result.verdicts] == pytest.approx([s / 6 / peers for s in (1, 1 / 3, 1 / 3, 1 / 3, 0)])


def test_of_two_neighbours_neither_is_judged_by_itself_alone() -> None:
    assert scales(mix(along_axes(1, 1.6))) == pytest.approx([1, 1])
    assert scales(mix(along_axes(1, 100))) == pytest.approx([1, (2 * 1.25 * 50.5 - 100) / 100])
    assert scales(mix(along_axes(100.0))) == [1]


def test_a_heavy_edge_reaches_less_far() -> None:
    """Where lies would pull most: at W = 1/2 of two neighbours, 8 m / (3/2)."""
    result = mix(along_axes(6, 6, moved=1.0, weights=[0.5, 0.1]))
    assert scales(result) == pytest.approx([(2 * 8 / 1.5 - 6) / 6, 1])


@given(case=cases(fresh=True), strength=st.sampled_from([0.1, 1.0, 1e3, 1e12]))
@settings(max_examples=100, deadline=None)
def test_nobody_moves_a_node_farther_than_twice_its_reach_over_the_neighbourhood(case: Case, strength: float) -> None:
    case = replace(case, received=[strength * x for x in case.received], memory=None)
    result = mix(case)
    for verdict, vector in zip(result.verdicts, case.received, strict=True):
        pull = verdict.weight * float((vector - case.own).double().norm())
        assert pull <= 2 * 8 * case.moved / (len(case.received) + 1) * (1 + 1e-5)


@given(distance=st.floats(0.01, 100), moved=st.floats(0.01, 10))
@settings(max_examples=100, deadline=None)
def test_a_lie_does_best_at_the_radius_and_a_larger_one_is_no_larger_influence(distance: float, moved: float) -> None:
    def pull(distance: float) -> float:
        return float(mix(along_axes(1, 1, 1, 1, distance, moved=moved)).vector[-1])

    best = pull(min(1.25, 8 * moved))
    assert pull(distance) <= best * (1 + 1e-5)
    assert pull(200) == 0


def test_the_pace_is_remembered_and_decays() -> None:
    rule, case = make_rule("pace"), along_axes(1, 1, 1)
    paces: list[float] = []
    memory: Tensor | None = None
    for moved in (1.0, 0.1, 0.1, 2.0, 0.0):
        memory = rule(case.own, case.received, replace(case, moved=moved, memory=memory).context).memory
        assert memory is not None
        assert memory.shape == (3, 1)
        paces.append(float(memory.max()))
    assert paces == pytest.approx([1.0, 0.9, 0.81, 2.0, 1.8])


def test_a_neighbour_newly_met_takes_no_memory_away() -> None:
    case = replace(along_axes(1, 1, 1, moved=0.1), memory=torch.tensor([[math.nan], [1.0], [1.0]]).double())
    result = mix(case)
    assert result.memory is not None
    assert result.memory.flatten().tolist() == pytest.approx([0.9] * 3)


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
        ({"spread": 0.9}, "spread = 0.9 must be 1 or greater"),
        ({"reach": 0}, "reach = 0 must be greater than 0"),
        ({"reach": math.inf}, "reach = inf must be greater than 0"),
        ({"decay": 1.0}, "decay = 1.0 must be from 0 to less than 1"),
    ],
)
def test_refuses_options_out_of_range(options: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_rule("pace", options)
