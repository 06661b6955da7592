from __future__ import annotations

import math

import pytest
import torch
from robust.rule_cases import cluster, even, sketch_matrix

from gossipfl.errors import ConfigError
from gossipfl.robust.registry import make_rule
from gossipfl.robust.rules.sketch import Sketchguard


def test_every_coordinate_goes_to_one_bucket_with_a_sign() -> None:
    matrix = sketch_matrix(30)
    assert matrix.shape == (30, 30)
    assert (abs(matrix).sum(axis=0) == 1).all()
    assert {-1.0, 1.0} <= set(matrix.flatten().tolist())


def test_a_sketch_keeps_the_length_on_average() -> None:
    """E ‖s(x)‖² = ‖x‖² over the seeds; the deviation falls with the width."""
    vector = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    ratios = [float(Sketchguard(width=200, seed=s).sketch(vector).norm() / vector.norm()) ** 2 for s in range(60)]
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.05)
    assert all(0.6 < ratio < 1.5 for ratio in ratios)
    assert Sketchguard(width=200).sketch(vector).shape == (200,)
    assert Sketchguard().sketch(vector[:70]).shape == (70,)


def test_the_same_seed_is_the_same_sketch() -> None:
    vector = torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sketchguard(seed=3).sketch(vector), Sketchguard(seed=3).sketch(vector))
    assert not torch.equal(Sketchguard(seed=3).sketch(vector), Sketchguard(seed=4).sketch(vector))


def test_it_decides_as_balance_does_where_the_matter_is_clear() -> None:
    own, received = cluster(6, size=4000)
    case = even(own, [*received, own * -1, own + 9])
    ours = make_rule("sketchguard")(own, case.received, case.context)
    balance = make_rule("balance")(own, case.received, case.context)
    assert [v.accepted for v in ours.verdicts] == [v.accepted for v in balance.verdicts] == [True] * 6 + [False] * 2
    torch.testing.assert_close(ours.vector, balance.vector)
    for mine, whole in zip(ours.verdicts[:6], balance.verdicts, strict=False):
        assert mine.distance == pytest.approx(whole.distance, rel=0.15)


def test_nobody_near_keeps_the_own_model() -> None:
    """No neighbour is let in for being the least far."""
    own, _ = cluster(0)
    case = even(own, [own * 3, -own])
    result = make_rule("sketchguard")(own, case.received, case.context)
    assert torch.equal(result.vector, own)
    assert [v.reason for v in result.verdicts] == ["farther than the threshold"] * 2


def test_who_knows_the_seed_can_hide_a_lie() -> None:
    """The price of short sketches: two coordinates of one bucket cancel, however large they are."""
    own = torch.ones(2000)
    buckets = Sketchguard().sketch(torch.eye(2000)).T
    first, second = torch.nonzero(buckets[0]).flatten()[:2].tolist() if buckets[0].any() else (0, 0)
    lie = own.clone()
    lie[first] += 1e4
    lie[second] -= 1e4 * float(buckets[0, first] * buckets[0, second])
    case = even(own, [lie])
    assert make_rule("sketchguard")(own, [lie], case.context).verdicts[0].accepted
    assert not make_rule("balance")(own, [lie], case.context).verdicts[0].accepted


@pytest.mark.parametrize(
    ("option", "value"),
    [("gamma", 0), ("kappa", -1), ("alpha", 1.5), ("width", 0), ("width", 2.5), ("seed", -1), ("gamma", math.inf)],
)
def test_impossible_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f'rule "sketchguard": {option} = {value}'):
        make_rule("sketchguard", {option: value})
