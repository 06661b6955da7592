from __future__ import annotations

import pytest
import torch
from robust.rule_cases import Case, cluster, even

from gossipfl.robust.base import Aggregate


def mix(name: str, case: Case) -> Aggregate:
    return case.rule(name)(case.own, case.received, case.context)


def line(*places: float, f: int = 1) -> Case:
    """The own model at 0 of a line in the plane, neighbours at ``places`` of it; equal weights."""
    return even(torch.zeros(2), [torch.tensor([place, 0.0]) for place in places], f=f)


def accepted(result: Aggregate) -> list[bool]:
    return [v.accepted for v in result.verdicts]


def test_nna_averages_the_nearest_with_itself() -> None:
    result = mix("nna", line(5, 1, 3, -2, f=2))
    assert accepted(result) == [False, True, False, True]
    assert result.vector.tolist() == pytest.approx([(0 + 1 - 2) / 3, 0])
    assert [v.weight for v in result.verdicts] == pytest.approx([0, 1 / 3, 0, 1 / 3])


def test_ios_drops_one_outlier_of_the_mean_after_the_other() -> None:
    """The mean of 0, 1, 1, 1, 1, 9, -6 is 1: 9 goes. The mean of the rest is -1/3: -6 goes."""
    result = mix("ios", line(1, 1, 1, 1, 9, -6, f=2))
    assert accepted(result) == [True, True, True, True, False, False]
    assert result.vector.tolist() == pytest.approx([4 / 5, 0])


def test_ios_renormalises_by_the_own_weight() -> None:
    case = Case(torch.zeros(1), [torch.ones(1), torch.ones(1), torch.full((1,), 7.0)], [0.1, 0.2, 0.1], [1.0] * 3)
    assert mix("ios", case).vector.tolist() == pytest.approx([0.3 / (0.6 + 0.3)])


def test_ios_without_liars_is_the_weighted_mean() -> None:
    own, received = cluster(5)
    case = even(own, received, f=0)
    torch.testing.assert_close(mix("ios", case).vector, mix("mean", case).vector)


def test_faba_never_drops_the_own_model() -> None:
    """However far it is from the neighbours, whose mean does not include it."""
    case = line(100, 101, 99, 150)
    result = mix("faba", case)
    assert accepted(result) == [True, True, True, False]
    assert result.vector.tolist() == pytest.approx([300 / 4, 0])


@pytest.mark.parametrize("name", ["nna", "ios", "faba", "krum", "multi-krum"])
def test_two_colluders_far_away_are_dropped(name: str) -> None:
    own, honest = cluster(7)
    lie = own + 40
    result = mix(name, even(own, [lie, *honest, lie.clone()], f=2))
    assert not result.verdicts[0].accepted
    assert not result.verdicts[-1].accepted
    assert float((result.vector - own).norm()) < 2 * max(float((x - own).norm()) for x in honest)
    assert {v.reason for v in result.verdicts if not v.accepted} == {"farther than others"}


def test_krum_scores_by_the_nearest_of_the_others() -> None:
    """Of 0, 1, 2, 10 each with its two nearest: 1 + 4, 1 + 1, 1 + 4, 64 + 81."""
    result = mix("krum", line(1, 2, 10, f=0))
    assert accepted(result) == [True, False, False]
    assert result.vector.tolist() == [1, 0]
    assert result.verdicts[0].weight == 1


def test_krum_picks_from_the_tighter_cluster() -> None:
    own, honest = cluster(6, spread=0.1)
    _, liars = cluster(2, spread=0.001)
    result = mix("krum", even(own, [*honest, *(x + 9 for x in liars)], f=2))
    assert sum(accepted(result)) <= 1
    assert not any(accepted(result)[6:])


def test_of_equal_krum_scores_the_own_model_wins() -> None:
    result = mix("krum", line(3, 3, 3, -3, -3, -3))
    assert accepted(result) == [False] * 6 or result.vector.tolist() != [0, 0]
    symmetric = mix("krum", even(torch.zeros(2), [torch.tensor(p) for p in ([1.0, 0.0], [1.0, 1.0], [0.0, 1.0])], f=0))
    assert symmetric.vector.tolist() == [0, 0]
    assert not any(accepted(symmetric))


def test_multi_krum_averages_all_but_f() -> None:
    """Of 0, 1, 2, 3, 50 the best four are averaged, the own one among them."""
    result = mix("multi-krum", line(1, 2, 3, 50))
    assert accepted(result) == [True, True, True, False]
    assert result.vector.tolist() == pytest.approx([1.5, 0])


def test_alone_says_that_it_trusts_nobody() -> None:
    own, received = cluster(3)
    result = mix("alone", even(own, received))
    assert torch.equal(result.vector, own)
    assert {v.reason for v in result.verdicts} == {"trusts nobody"}
