from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from robust.rule_cases import Case, cases, cluster, even
from torch import Tensor

from gossipfl.robust.base import Aggregate
from gossipfl.robust.rules.coordinates import ascending

BOTH = pytest.mark.parametrize("name", ["median", "trimmed-mean"])


def mix(name: str, case: Case) -> Aggregate:
    return case.rule(name)(case.own, case.received, case.context)


def rows(*values: list[float]) -> list[Tensor]:
    return [torch.tensor(row) for row in values]


@pytest.mark.parametrize("count", [*range(1, 20), 33, 64])
def test_the_sorting_network_sorts(count: int) -> None:
    numbers = torch.randint(9, (3, count, 40), generator=torch.Generator().manual_seed(count)).float()
    assert torch.equal(ascending(numbers), numbers.sort(dim=-2).values)


def test_each_coordinate_is_trimmed_by_itself() -> None:
    """Of the neighbours' values the middle ones are 2 and 4; the own value stays, even at the end."""
    case = even(torch.tensor([0.0, 9.0]), rows([1.0, 5.0], [2.0, 1.0], [3.0, 4.0]))
    result = mix("trimmed-mean", case)
    assert result.vector.tolist() == pytest.approx([(0 + 2) / 2, (9 + 4) / 2])
    assert [v.weight for v in result.verdicts] == pytest.approx([0, 0.25, 0.25])
    assert result.verdicts[0].reason == "farther than others in every coordinate"


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    case = even(torch.tensor([0.0, 0.0]), rows([1.0, 6.0], [3.0, 4.0], [9.0, 2.0]))
    result = mix("median", case)
    assert result.vector.tolist() == pytest.approx([2, 3])
    assert [v.weight for v in result.verdicts] == pytest.approx([0.25, 0.5, 0.25])


@BOTH
@given(case=cases(fresh=True))
@settings(max_examples=30, deadline=None)
def test_every_coordinate_is_within_the_range_of_those_seen(name: str, case: Case) -> None:
    everybody = torch.stack([case.own, *case.received])
    vector = mix(name, case).vector
    slack = 1e-5 * everybody.abs().max()
    assert bool((vector >= everybody.min(dim=0).values - slack).all())
    assert bool((vector <= everybody.max(dim=0).values + slack).all())


@BOTH
@pytest.mark.parametrize("lie", [1e3, -1e3, 1e15])
def test_a_minority_cannot_leave_the_honest_range(name: str, lie: float) -> None:
    own, honest = cluster(6)
    everybody = torch.stack([own, *honest])
    result = mix(name, even(own, [*honest, own + lie, own + lie], f=2))
    assert bool((result.vector >= everybody.min(dim=0).values - 1e-4).all())
    assert bool((result.vector <= everybody.max(dim=0).values + 1e-4).all())
    assert [v.accepted for v in result.verdicts[6:]] == [False, False]


def test_without_liars_the_trimmed_mean_is_the_plain_mean() -> None:
    own, received = cluster(4)
    result = mix("trimmed-mean", even(own, received, f=0))
    torch.testing.assert_close(result.vector, torch.stack([own, *received]).mean(dim=0))
    assert [v.weight for v in result.verdicts] == pytest.approx([0.2] * 4)


@BOTH
def test_stale_neighbours_scale_the_whole_step_by_their_share(name: str) -> None:
    """All weight is the second neighbour's, so its freshness alone counts."""
    own = torch.tensor([0.0])
    received = rows([1.0], [2.0], [3.0], [2.0])
    case = even(own, received)
    stale = Case(own, received, case.weights, [0.1, 0.5, 0.1, 0.5], f=1)
    fresh, aged = mix(name, case), mix(name, stale)
    factor = sum(v.weight * f for v, f in zip(fresh.verdicts, stale.freshness, strict=True))
    factor /= sum(v.weight for v in fresh.verdicts)
    assert float(aged.vector) == pytest.approx(float(fresh.vector) * factor)
