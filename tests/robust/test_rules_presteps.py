from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from robust.rule_cases import Case, cluster, even
from torch import Tensor

from gossipfl.robust.base import KNOWN, Aggregate
from gossipfl.robust.registry import make_rule
from gossipfl.robust.rules.coordinates import Median
from gossipfl.robust.rules.presteps import Arc, Nnm, Preceded, PreStep
from gossipfl.robust.span import Geometry

# The three vectors that the documentation of ByzFL shows its pre-aggregations on.
ROWS = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]), torch.tensor([7.0, 8.0, 9.0])]


def after(step: PreStep, own: Tensor, received: list[Tensor], f: int) -> Tensor:
    hood = even(own, received).hood()
    shares = step.shares(Geometry.of(hood), torch.tensor(f))
    torch.testing.assert_close(shares.sum(-1), torch.ones(len(received) + 1).double())
    return shares.float() @ torch.stack([own, *received])


def mix(name: str, case: Case) -> Aggregate:
    return case.rule(name)(case.own, case.received, case.context)


def test_nearest_neighbour_mixing_is_that_of_byzfl() -> None:
    mixed = after(Nnm(), ROWS[0], ROWS[1:], 1)
    expected = torch.tensor([[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]])
    torch.testing.assert_close(mixed, expected)


def test_adaptive_clipping_is_that_of_byzfl_around_a_model_at_the_origin() -> None:
    """With the own model's norm of 0 among them, ⌊2/4 · 3⌋ = 1 is clipped, to the norm of the second largest."""
    clipped = after(Arc(), torch.zeros(3), ROWS, 1)
    expected = torch.tensor([[0, 0, 0], [1, 2, 3], [4, 5, 6], [4.41004009, 5.04004582, 5.67005155]])
    torch.testing.assert_close(clipped, expected)


def test_arc_clips_nothing_without_liars() -> None:
    torch.testing.assert_close(after(Arc(), ROWS[0], ROWS[1:], 0), torch.stack(ROWS))


def test_the_own_model_is_mixed_too() -> None:
    """Of 0, 1, 2, 90 with f = 1 all but the last three have the same mean, 1; then the rule keeps the node's own."""
    case = even(torch.zeros(1), [torch.tensor([v]) for v in (1.0, 2.0, 90.0)])
    result = mix("nnm+alone", case)
    assert float(result.vector) == pytest.approx(1.0)
    assert [v.accepted for v in result.verdicts] == [True, True, False]
    assert [v.weight for v in result.verdicts] == pytest.approx([1 / 3, 1 / 3, 0])


def test_the_weights_of_vectors_add_up_through_the_mixing() -> None:
    """The result is the sum of the vectors by the weights that the verdicts tell."""
    own, received = cluster(7)
    case = even(own, [*received, own + 50], f=1)
    for name in ("nnm+mean", "nnm+ios", "nnm+multi-krum", "arc+mean", "arc+ios", "nnm+arc+mean"):
        result = mix(name, case)
        told = sum(v.weight * (x - own) for v, x in zip(result.verdicts, case.received, strict=True))
        torch.testing.assert_close(result.vector, own + told, rtol=1e-4, atol=1e-4)


def test_steps_are_done_in_the_order_of_their_names() -> None:
    arc = Preceded(Arc(), Median(), f=KNOWN)
    assert make_rule("nnm+arc+median", {"f": 2}) == Preceded(Nnm(), arc, f=2)
    own, received = cluster(5)
    case = even(own, [*received, own + 50], f=2)
    assert not torch.allclose(mix("nnm+arc+mean", case).vector, mix("arc+nnm+mean", case).vector)


def test_arc_tells_how_much_it_clipped() -> None:
    case = even(torch.zeros(3), ROWS, f=1)
    result = mix("arc+mean", case)
    assert [v.scale for v in result.verdicts] == pytest.approx([1, 1, 4.41004009 / 7])
    assert [v.reason for v in result.verdicts] == ["", "", "clipped"]
    assert [v.weight for v in result.verdicts] == pytest.approx([0.25, 0.25, 0.25 * 4.41004009 / 7])


@pytest.mark.parametrize(
    ("name", "told"), [("arc+mean", (True, "clipped")), ("arc+ios", (False, "farther than others"))]
)
def test_a_vector_clipped_to_next_to_nothing_is_not_called_rejected(name: str, told: tuple[bool, str]) -> None:
    """It pulls as far as the radius goes, however small a part of it that is."""
    own, honest = cluster(8)
    liar = mix(name, even(own, [*honest, own + 1e9])).verdicts[-1]
    assert (liar.accepted, liar.reason) == told


def test_what_the_mixing_makes_equal_arc_clips_to_nothing() -> None:
    """All but the liar have the same nearest: the largest norm but one is 0, and so is what is left of the lie."""
    own, honest = cluster(8)
    case = even(own, [*honest, own + 1e9])
    liar = mix("nnm+arc+mean", case).verdicts[-1]
    assert (liar.accepted, liar.weight) == (False, 0)
    torch.testing.assert_close(mix("nnm+arc+mean", case).vector, torch.stack([own, *honest]).mean(dim=0))


def test_after_arc_a_mean_is_no_more_at_the_mercy_of_one() -> None:
    own, honest = cluster(8)
    far = max(float((x - own).norm()) for x in honest)
    lied = even(own, [*honest, own + 1e6])
    assert float((mix("arc+mean", lied).vector - own).norm()) <= far
    assert float((mix("mean", lied).vector - own).norm()) > 1e5


def test_krum_after_mixing_gains_from_all() -> None:
    """NNM makes the chosen vector a mean of n - f: less noise than any single one has."""
    own, honest = cluster(9, size=400)
    centre = torch.stack([own, *honest]).mean(dim=0)
    case = even(own, honest, f=2)
    plain, mixed = mix("krum", case), mix("nnm+krum", case)
    assert float((mixed.vector - centre).norm()) < 0.6 * float((plain.vector - centre).norm())


def test_stale_neighbours_scale_the_whole_step() -> None:
    own, received = cluster(6)
    case = even(own, received)
    fresh, stale = mix("nnm+krum", case), mix("nnm+krum", replace(case, freshness=[0.25] * 6))
    torch.testing.assert_close(stale.vector - own, 0.25 * (fresh.vector - own), rtol=1e-4, atol=1e-6)


def test_a_step_passes_on_what_the_rule_asks_for() -> None:
    own, received = cluster(5)
    case = even(own, received)
    assert mix("nnm+ubar", case).verdicts
    assert make_rule("nnm+ubar", {"f": 1}).needs == ("f", "losses")
    assert make_rule("arc+mean", {"f": "known"}).needs == ("f",)


@pytest.mark.parametrize(("name", "most"), [("nnm+krum", 4), ("arc+mean", 5), ("nnm+arc+ios", 3), ("nnm+balance", 5)])
def test_the_condition_is_the_stricter_one(name: str, most: int) -> None:
    """Of ten neighbours. A rule without an f of its own has none, whatever it allows alone."""
    assert make_rule(name, {"f": 1}).most(10) == most
