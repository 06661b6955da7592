"""What every aggregation rule must do, checked for all rules in the registry and for some after pre-steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from robust.rule_cases import BOUNDED, NAMES, Case, cases, cluster, even, quadratic, rule_for
from robust.slow_rules import holds, mix_slowly, remembered
from torch import Tensor

from gossipfl.robust import mean, sweep
from gossipfl.robust.base import MixContext
from gossipfl.robust.hood import Hood
from gossipfl.robust.rules import coordinates

NOT_TRANSLATED = {
    "balance": "its threshold is relative to the norm of the own model",
    "arc+balance": "as balance",
    "sketchguard": "as balance",
    "wfagg": "it compares the directions of models",
}
NOT_SCALED = {
    "self-clip": "its radius is in the units of the models",
}
TRUSTS_ALL = {"mean": "it averages whatever it is given"}
NEVER_MIXES = {"alone"}
IN_ORDER = {"balance", "pace"}
"""Rules that daemons run add neighbour after neighbour; a matrix product adds in the processor's order."""

ALL_RULES = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Many blocks in short vectors, so that every seam between blocks is crossed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "BLOCK", 16)
        patch.setattr(mean, "BLOCK", 16)
        patch.setattr(sweep, "GRAM_ELEMENTS", 32)
        patch.setattr(coordinates, "BLOCK_ELEMENTS", 32)
        patch.setattr(coordinates, "LEAST_COLUMNS", 3)
        yield


def close(actual: Tensor, expected: np.ndarray | Tensor, case: Case) -> None:
    scale = max([1.0, *(float(v.abs().max()) for v in [case.own, *case.received])])
    np.testing.assert_allclose(actual.numpy(), np.asarray(expected), rtol=2e-5, atol=3e-6 * scale)


def clear_cut(name: str, case: Case) -> bool:
    """Whether the decision stands when every vector moves by a hair, so that rounding cannot turn it."""
    if name == "wfagg" and len(case.received) == 2:
        return False  # they are equally far from their median
    generator = torch.Generator().manual_seed(0)
    hair = [torch.randn(x.shape, generator=generator) * (x - case.own).norm() * 1e-4 for x in case.received]
    moved = replace(case, received=[x + h / h.norm().clamp_min(1e-4) for x, h in zip(case.received, hair, strict=True)])
    return mix_slowly(name, case.scene).accepted == mix_slowly(name, moved.scene).accepted


@ALL_RULES
@given(case=cases())
@settings(max_examples=25, deadline=None)
def test_agrees_with_its_paper_written_slowly_in_float64(name: str, case: Case) -> None:
    assume(clear_cut(name, case))
    result = case.rule(name)(case.own, case.received, case.context)
    expected = mix_slowly(name, case.scene)
    close(result.vector, expected.vector, case)
    assert [v.accepted for v in result.verdicts] == expected.accepted
    np.testing.assert_allclose([v.weight for v in result.verdicts], expected.weights, rtol=1e-3, atol=1e-6)
    if result.memory is not None:
        np.testing.assert_allclose(result.memory.numpy(), remembered(name, case.scene), rtol=1e-3, atol=1e-6)


@ALL_RULES
@given(rows=st.lists(cases(sizes=(9, 9), counts=(1, 7), round_=5), min_size=2, max_size=4))
@settings(max_examples=10, deadline=None)
def test_many_nodes_at_once_are_the_nodes_one_by_one(name: str, rows: list[Case]) -> None:
    """Whatever stands in the padding."""
    rows = [replace(row, f=rows[0].f, known=rows[0].known, horizon=7, memory=None) for row in rows]
    assume(all(clear_cut(name, row) for row in rows))
    rule = rows[0].rule(name)
    mixed = rule.mix(stacked(rows))
    for i, row in enumerate(rows):
        alone = rule(row.own, row.received, row.context)
        count = len(row.received)
        close(mixed.vector[i], alone.vector, row)
        assert mixed.accepted[i].tolist() == [v.accepted for v in alone.verdicts] + [False] * (8 - count)
        weights = [v.weight for v in alone.verdicts] + [0.0] * (8 - count)
        np.testing.assert_allclose(mixed.weight[i].numpy(), weights, rtol=1e-5, atol=1e-6)
        if mixed.reason is not None:
            reasons = [rule.REASONS[code] for code in mixed.reason[i, :count].tolist()]
            assert reasons == [v.reason for v in alone.verdicts]
        if mixed.memory is not None:
            np.testing.assert_allclose(mixed.memory[i, :count], alone.memory, rtol=1e-5, atol=1e-7)


def stacked(rows: list[Case], places: int = 8) -> Hood:
    hoods = [row.hood(places) for row in rows]

    def all_of(what: str) -> Tensor:
        return torch.stack([getattr(hood, what) for hood in hoods])

    return replace(
        hoods[0],
        **{what: all_of(what) for what in ("own", "received", "present", "weights", "freshness", "byzantine", "moved")},
        previous=all_of("previous"),
        losses=quadratic(torch.stack([row.target for row in rows])),
    )


@ALL_RULES
@given(case=cases(), data=st.data())
@settings(max_examples=10, deadline=None)
def test_does_not_depend_on_the_order_of_neighbours(name: str, case: Case, data: st.DataObject) -> None:
    assume(clear_cut(name, case))
    order = data.draw(st.permutations(range(len(case.received))))
    other = case.ordered(order)
    plain = case.rule(name)(case.own, case.received, case.context)
    permuted = case.rule(name)(other.own, other.received, other.context)
    close(permuted.vector, plain.vector, case)
    assert [v.accepted for v in permuted.verdicts] == [plain.verdicts[i].accepted for i in order]
    assert [v.weight for v in permuted.verdicts] == pytest.approx([plain.verdicts[i].weight for i in order], abs=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_SCALED])
@given(case=cases(), scale=st.sampled_from([-4.0, 0.25, 2.0]))
@settings(max_examples=10, deadline=None)
def test_scales_with_its_inputs(name: str, case: Case, scale: float) -> None:
    assume(clear_cut(name, case))
    other = replace(case.mapped(lambda x: x * scale), moved=case.moved * abs(scale))
    if case.memory is not None:  # distances grow, angles do not
        other = replace(other, memory=case.memory * torch.tensor([abs(scale), 1.0]).double().repeat(2))
    plain = case.rule(name)(case.own, case.received, case.context)
    scaled = case.rule(name)(other.own, other.received, other.context)
    close(scaled.vector / scale, plain.vector, case)
    assert [v.accepted for v in scaled.verdicts] == [v.accepted for v in plain.verdicts]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_TRANSLATED])
@given(case=cases(), shift=st.floats(-10, 10))
@settings(max_examples=10, deadline=None)
def test_moves_with_its_inputs(name: str, case: Case, shift: float) -> None:
    assume(clear_cut(name, case))
    other = case.mapped(lambda x: x + shift)
    plain = case.rule(name)(case.own, case.received, case.context)
    moved = case.rule(name)(other.own, other.received, other.context)
    np.testing.assert_allclose((moved.vector - shift).numpy(), plain.vector.numpy(), rtol=1e-4, atol=1e-3)


@ALL_RULES
@given(case=cases())
@settings(max_examples=10, deadline=None)
def test_never_writes_its_inputs_and_honours_out(name: str, case: Case) -> None:
    inputs = [case.own, *case.received, *(case.previous or ()), *([] if case.memory is None else [case.memory])]
    before = [v.clone() for v in inputs]
    fresh = case.rule(name)(case.own, case.received, case.context)
    out = torch.full_like(case.own, float("nan"))
    given_out = case.rule(name)(case.own, case.received, case.context, out)
    assert given_out.vector is out
    assert torch.equal(out, fresh.vector)
    assert given_out.verdicts == fresh.verdicts
    for vector, old in zip(inputs, before, strict=True):
        assert torch.equal(vector, old)
        assert fresh.vector.data_ptr() != vector.data_ptr()


@ALL_RULES
def test_alone_it_keeps_its_own_model(name: str) -> None:
    own = torch.randn(50, generator=torch.Generator().manual_seed(1))
    result = rule_for(name)(own, [], MixContext([], [], 0, None))
    assert torch.equal(result.vector, own)
    assert result.vector.data_ptr() != own.data_ptr()
    assert result.verdicts == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {*TRUSTS_ALL, "arc+mean"}])
def test_agreeing_neighbours_change_no_bit(name: str) -> None:
    own, _ = cluster(0, size=500)
    case = even(own, [own.clone() for _ in range(6)])
    assert torch.equal(case.rule(name)(case.own, case.received, case.context).vector, own)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRUSTS_ALL])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_vector_that_is_not_finite_is_rejected_and_leaves_no_trace(name: str, value: float) -> None:
    """It has shown itself: what is left is mixed as if one liar fewer had been feared."""
    own, good = cluster(7)
    bad = own.clone()
    bad[17] = value
    spoilt = even(own, [*good[:3], bad, *good[3:]], f=2)
    spoilt = replace(spoilt, previous=[x + 0.01 for x in spoilt.received])
    clean = replace(spoilt.ordered([0, 1, 2, 4, 5, 6, 7]), f=1)
    expected = clean.rule(name)(own, clean.received, clean.context)
    result = spoilt.rule(name)(own, spoilt.received, spoilt.context)
    if name in IN_ORDER:
        assert torch.equal(result.vector, expected.vector)
    torch.testing.assert_close(result.vector, expected.vector, rtol=1e-6, atol=1e-6)
    verdicts = list(result.verdicts)
    shown = verdicts.pop(3)
    assert not shown.accepted
    assert shown.weight == 0
    assert [v.accepted for v in verdicts] == [v.accepted for v in expected.verdicts]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in TRUSTS_ALL])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_own_model_that_is_not_finite_is_kept(name: str, value: float) -> None:
    own, received = cluster(6)
    own[3] = value
    case = even(own, received)
    result = case.rule(name)(own, received, case.context)
    assert torch.equal(result.vector.nan_to_num(), own.nan_to_num())
    assert not any(v.accepted for v in result.verdicts)


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("known", [False, True])
def test_more_liars_than_its_condition_allows_and_it_keeps_its_own_model(name: str, known: bool) -> None:
    """And allows as many as it says: the condition is written out once more in slow_rules."""
    for count in range(1, 10):
        own, received = cluster(count, size=5)
        for f in range(count + 1):
            case = even(own, received, f=f, known=known)
            rule = case.rule(name)
            assert (f <= rule.most(count)) == holds(name, count, f)
            if not holds(name, count, f):
                result = rule(own, received, case.context)
                assert torch.equal(result.vector, own)
                assert {v.reason for v in result.verdicts} == {"too few neighbours for f"}
                assert not any(v.accepted or v.weight for v in result.verdicts)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_liar_that_shows_itself_does_not_cut_the_node_off(name: str) -> None:
    """f liars are just allowed; without those that are not finite, the condition still holds."""
    rule = rule_for(name, f := 2)
    count = next(k for k in range(30) if holds(name, k, f))
    own, received = cluster(count)
    received[0] = torch.full_like(own, math.nan)
    case = even(own, received, f=f)
    reasons = [v.reason for v in rule(own, received, case.context).verdicts]
    assert "too few neighbours for f" not in reasons


@ALL_RULES
@given(case=cases(fresh=True), data=st.data())
@settings(max_examples=10, deadline=None)
def test_staleness_returns_weight_to_the_node(name: str, case: Case, data: st.DataObject) -> None:
    """Less fresh neighbours pull less; what remains stays with the node, so the result nears its own model."""
    steps = sorted(data.draw(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=2)), reverse=True)
    distances, weights = [], []
    for factor in (1.0, *steps):
        aged = replace(case, freshness=[factor] * len(case.received))
        result = case.rule(name)(case.own, case.received, aged.context)
        distances.append(float((result.vector - case.own).double().norm()))
        weights.append(sum(v.weight for v in result.verdicts))
    assert all(b <= a * (1 + 1e-5) + 1e-4 for a, b in pairwise(distances))
    assert weights[1] == pytest.approx(weights[0] * steps[0])


@ALL_RULES
@given(case=cases())
@settings(max_examples=10, deadline=None)
def test_weights_are_positive_where_accepted_and_sum_to_at_most_one(name: str, case: Case) -> None:
    verdicts = case.rule(name)(case.own, case.received, case.context).verdicts
    assert all((v.weight > 0) == v.accepted for v in verdicts)
    assert sum(v.weight for v in verdicts) <= 1 + 1e-6
    assert all(0 < v.scale <= 1 for v in verdicts if v.accepted)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEVER_MIXES])
def test_among_friends_it_does_not_stay_alone(name: str) -> None:
    own, received = cluster(9, size=400)
    own = own + 0.2  # farther from them than they are from one another: none for Krum to keep
    case = even(own, received)
    result = case.rule(name)(own, received, case.context)
    assert any(v.accepted for v in result.verdicts)
    assert not torch.equal(result.vector, own)


@ALL_RULES
@pytest.mark.parametrize("missing", ["weights", "freshness"])
def test_refuses_a_context_of_another_length(name: str, missing: str) -> None:
    own = torch.ones(4)
    context = MixContext([] if missing == "weights" else [0.5], [] if missing == "freshness" else [1.0], 0)
    if (name, missing) == ("balance", "weights"):  # it has no use for them
        return
    with pytest.raises(ValueError, match=r"freshness|shorter|longer"):
        rule_for(name)(own, [own], context)
