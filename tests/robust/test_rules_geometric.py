from __future__ import annotations

import math

import pytest
import torch
from robust.rule_cases import Case, cluster, even
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.robust.registry import make_rule


def median(own: Tensor, received: list[Tensor], **options: object) -> Tensor:
    case: Case = even(own, received)
    return make_rule("geometric-median", options)(own, received, case.context).vector


def test_three_corners_of_a_triangle_meet_in_its_fermat_point() -> None:
    """Of (0, 0), (1, 0), (0, 1): x = y = (3 - √3)/6, where all sides are seen at 120 degrees."""
    point = median(torch.zeros(2), [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    assert point.tolist() == pytest.approx([(3 - math.sqrt(3)) / 6] * 2, abs=1e-5)


def test_the_pulls_of_all_cancel() -> None:
    """Where the sum of distances is least, the unit vectors to all points sum to 0."""
    own, received = cluster(8, size=20)
    point = median(own, [*received[:-2], received[-2] + 30, received[-1] - 3]).double()
    points = [own, *received[:-2], received[-2] + 30, received[-1] - 3]
    pulls = [(x.double() - point) / (x.double() - point).norm() for x in points]
    assert float(torch.stack(pulls).sum(dim=0).norm()) < 1e-3


def test_a_majority_that_agrees_has_its_way() -> None:
    own, received = cluster(2)
    place = own + 1
    torch.testing.assert_close(median(own, [*received, place, place, place, place]), place, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lie", [1e3, 1e9, 1e15])
def test_a_minority_far_away_is_held_by_its_direction_alone(lie: float) -> None:
    own, honest = cluster(6)
    held = median(own, [*honest, own + lie, own + lie])
    torch.testing.assert_close(held, median(own, [*honest, own + 1e6, own + 1e6]), rtol=1e-3, atol=2e-2)
    assert float((held - own).norm()) < 2 * max(float((x - own).norm()) for x in honest)


def test_the_number_of_steps_is_bounded() -> None:
    """0, 1, 3, 9 have the median distances 3, 2, 3, 8; their inverses weigh the start, then one step is taken."""
    places = [0.0, 1.0, 3.0, 9.0]
    start = (1 / 2 + 3 / 3 + 9 / 8) / (1 / 3 + 1 / 2 + 1 / 3 + 1 / 8)
    weights = [1 / abs(place - start) for place in places]
    expected = sum(w * place for w, place in zip(weights, places, strict=True)) / sum(weights)
    own, *others = (torch.tensor([place]) for place in places)
    assert float(median(own, others, iterations=1)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"nu": 0}, "nu = 0 must be greater than 0"), ({"iterations": 0}, "iterations = 0"), ({"iterations": 2.5}, "2.5")],
)
def test_impossible_options_are_refused(options: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make_rule("geometric-median", options)
