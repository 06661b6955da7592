from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from robust.rule_cases import Case, even
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.robust.base import Aggregate, MixContext
from gossipfl.robust.registry import make_rule

OWN = torch.tensor([1.0, 0.0])


def neighbours(*angles_and_radii: tuple[float, float]) -> list[Tensor]:
    return [OWN + r * torch.tensor([math.cos(a), math.sin(a)]) for a, r in angles_and_radii]


def ubar(case: Case, told: MixContext | None = None, **options: object) -> Aggregate:
    return make_rule("ubar", options)(case.own, case.received, told or case.context)


def accepted(result: Aggregate) -> list[bool]:
    return [v.accepted for v in result.verdicts]


# The target is 1 to the right of OWN: neighbours on the right are better than OWN, those on the left worse.
CASE = replace(
    even(OWN, neighbours((0, 0.3), (math.pi, 0.1), (0, 0.2), (0, 0.9), (math.pi, 2.0))),
    target=torch.tensor([2.0, 0.0]),
)


def test_it_averages_the_near_ones_that_are_better_than_itself() -> None:
    """Of five, rho = 0.6 short-lists the three nearest, of which one is worse."""
    result = ubar(CASE, rho=0.6)
    assert accepted(result) == [True, False, True, False, False]
    assert result.vector.tolist() == pytest.approx([1 + 0.5 * 0.25, 0])
    assert [v.reason for v in result.verdicts] == ["", "worse on the own data", "", *["farther than others"] * 2]


def test_f_short_lists_all_but_f() -> None:
    assert accepted(ubar(CASE, f=1)) == [True, False, True, True, False]
    assert accepted(ubar(replace(CASE, f=3), f="known")) == [False, False, True, False, False]


def test_where_all_near_ones_are_worse_it_takes_the_best_of_them() -> None:
    case = replace(even(OWN, neighbours((math.pi, 0.1), (math.pi, 0.2), (0, 5.0))), target=torch.tensor([1.5, 0.0]))
    result = ubar(case, rho=0.7)
    assert accepted(result) == [True, False, False]
    assert result.vector.tolist() == pytest.approx([0.95, 0])


@pytest.mark.parametrize("own_loss", [1.0, math.nan, math.inf])
def test_a_model_without_a_loss_is_never_taken(own_loss: float) -> None:
    context = MixContext([0.5], [1.0], 0, losses=lambda models: [own_loss, math.nan][: len(models)])
    result = make_rule("ubar")(OWN, [OWN + 0.1], context)
    assert torch.equal(result.vector, OWN)
    assert not result.verdicts[0].accepted


def test_only_the_short_listed_are_tried() -> None:
    tried: list[int] = []

    def losses(models: Sequence[Tensor]) -> list[float]:
        tried.append(len(models))
        return [0.0] * len(models)

    ubar(CASE, replace(CASE.context, losses=losses), rho=0.4)
    assert tried == [1 + 2]


def test_at_least_one_neighbour_is_tried() -> None:
    assert sum(accepted(ubar(CASE, rho=0.01))) == 1


def test_what_it_needs_depends_on_f() -> None:
    assert make_rule("ubar").needs == ("losses",)
    assert make_rule("ubar", {"f": 2}).needs == ("f", "losses")


@pytest.mark.parametrize(("options", "most"), [({}, 6), ({"rho": 1}, 0), ({"rho": 0.05}, 9), ({"f": 2}, 9)])
def test_the_short_listed_must_be_honest_and_with_f_one_of_them(options: dict[str, float], most: int) -> None:
    assert make_rule("ubar", options).most(10) == most


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"rho": 0.4, "f": 1}, "rho and f say the same"),
        ({"rho": 0}, "rho = 0 must be greater than 0 and at most 1"),
        ({"rho": 1.1}, "rho = 1.1"),
        ({"alpha": 2}, "alpha = 2 must be between 0 and 1"),
        ({"f": -1}, "f = -1 must be a whole number"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_rule("ubar", options)


def test_without_losses_it_says_so() -> None:
    with pytest.raises(ValueError, match="ubar was not told the losses"):
        make_rule("ubar")(OWN, [OWN], MixContext([0.5], [1.0], 0))
