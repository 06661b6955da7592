"""What every aggregation rule must do, checked for all rules in the registry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossipfl.robust import mean, sweep
from gossipfl.robust.base import MixContext
from gossipfl.robust.registry import RULES, make_rule

TRANSLATION_INVARIANT = {"mean"}
ALL_RULES = pytest.mark.parametrize("name", RULES)


@dataclass(frozen=True)
class Case:
    own: Tensor
    received: list[Tensor]
    context: MixContext


@st.composite
def cases(draw: st.DrawFn, freshness: float | None = None) -> Case:
    """A node in a cluster of neighbours, some of them far away."""
    size = draw(st.integers(1, 70))
    count = draw(st.integers(0, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    own = torch.randn(size, generator=generator) + 3
    spreads = draw(st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0, 30.0]), min_size=count, max_size=count))
    received = [own + spread * torch.randn(size, generator=generator) for spread in spreads]
    weights = [float(w) / (count + 1) for w in torch.rand(count, generator=generator)]
    factor = st.floats(0.01, 1.0) if freshness is None else st.just(freshness)
    factors = draw(st.lists(factor, min_size=count, max_size=count))
    horizon = draw(st.none() | st.integers(1, 100))
    return Case(own, received, MixContext(weights, factors, draw(st.integers(0, 99)), horizon))


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Iterator[None]:
    """Many blocks in short vectors, so that every seam between blocks is crossed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "BLOCK", 16)
        patch.setattr(mean, "BLOCK", 16)
        yield


def naive(name: str, case: Case) -> tuple[np.ndarray, list[bool]]:
    """The rule's equation written out slowly in float64."""
    own = case.own.double().numpy()
    received = [vector.double().numpy() for vector in case.received]
    fresh = case.context.freshness
    if name == "mean":
        out = own.copy()
        for w, f, x in zip(case.context.weights, fresh, received, strict=True):
            out += w * f * (x - own)
        return out, [True] * len(received)
    assert name == "balance", f"write the slow form of {name} here"
    t, horizon = case.context.round, case.context.horizon
    progress = 1 - math.exp(-t / 1000) if horizon is None else min(t / horizon, 1)
    threshold = 0.3 * math.exp(-progress) * np.linalg.norm(own)
    near = [bool(np.linalg.norm(own - x) <= threshold) for x in received]
    pulls = [f * (x - own) for f, x, is_near in zip(fresh, received, near, strict=True) if is_near]
    return own + 0.5 * np.mean(pulls, axis=0) if pulls else own, near


def close(actual: Tensor, expected: np.ndarray | Tensor, case: Case) -> None:
    scale = max([1.0, *(float(v.abs().max()) for v in [case.own, *case.received])])
    np.testing.assert_allclose(actual.numpy(), np.asarray(expected), rtol=2e-5, atol=2e-6 * scale)


def reorder(values: Sequence, order: Sequence[int]) -> list:
    return [values[i] for i in order]


@ALL_RULES
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_agrees_with_its_equation_in_float64(name: str, case: Case) -> None:
    result = make_rule(name)(case.own, case.received, case.context)
    expected, near = naive(name, case)
    close(result.vector, expected, case)
    assert [v.accepted for v in result.verdicts] == near


@ALL_RULES
@given(case=cases(), data=st.data())
@settings(max_examples=30, deadline=None)
def test_does_not_depend_on_the_order_of_neighbours(name: str, case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(case.received))))
    context = MixContext(
        reorder(case.context.weights, order),
        reorder(case.context.freshness, order),
        case.context.round,
        case.context.horizon,
    )
    plain = make_rule(name)(case.own, case.received, case.context)
    permuted = make_rule(name)(case.own, reorder(case.received, order), context)
    close(permuted.vector, plain.vector, case)
    assert [v.accepted for v in permuted.verdicts] == reorder([v.accepted for v in plain.verdicts], order)
    assert [v.weight for v in permuted.verdicts] == pytest.approx(reorder([v.weight for v in plain.verdicts], order))


@ALL_RULES
@given(case=cases(), scale=st.sampled_from([-4.0, 0.25, 2.0]))
@settings(max_examples=30, deadline=None)
def test_scales_with_its_inputs(name: str, case: Case, scale: float) -> None:
    plain = make_rule(name)(case.own, case.received, case.context)
    scaled = make_rule(name)(case.own * scale, [x * scale for x in case.received], case.context)
    close(scaled.vector / scale, plain.vector, case)
    assert [v.accepted for v in scaled.verdicts] == [v.accepted for v in plain.verdicts]


@pytest.mark.parametrize("name", sorted(TRANSLATION_INVARIANT & set(RULES)))
@given(case=cases(), shift=st.floats(-10, 10))
@settings(max_examples=30, deadline=None)
def test_moves_with_its_inputs(name: str, case: Case, shift: float) -> None:
    plain = make_rule(name)(case.own, case.received, case.context)
    moved = make_rule(name)(case.own + shift, [x + shift for x in case.received], case.context)
    np.testing.assert_allclose((moved.vector - shift).numpy(), plain.vector.numpy(), rtol=1e-4, atol=3e-4)


@ALL_RULES
@given(case=cases())
@settings(max_examples=20, deadline=None)
def test_never_writes_its_inputs_and_honours_out(name: str, case: Case) -> None:
    before = [v.clone() for v in [case.own, *case.received]]
    fresh = make_rule(name)(case.own, case.received, case.context)
    out = torch.full_like(case.own, float("nan"))
    given_out = make_rule(name)(case.own, case.received, case.context, out)
    assert given_out.vector is out
    assert torch.equal(out, fresh.vector)
    assert given_out.verdicts == fresh.verdicts
    for vector, old in zip([case.own, *case.received], before, strict=True):
        assert torch.equal(vector, old)
        assert fresh.vector.data_ptr() != vector.data_ptr()


@ALL_RULES
def test_alone_it_keeps_its_own_model(name: str) -> None:
    own = torch.randn(50, generator=torch.Generator().manual_seed(1))
    result = make_rule(name)(own, [], MixContext([], [], 0, None))
    assert torch.equal(result.vector, own)
    assert result.vector.data_ptr() != own.data_ptr()
    assert result.verdicts == ()


@ALL_RULES
@given(case=cases(freshness=1.0), data=st.data())
@settings(max_examples=30, deadline=None)
def test_staleness_returns_weight_to_the_node(name: str, case: Case, data: st.DataObject) -> None:
    """Less fresh neighbours pull less; what remains stays with the node, so the result nears its own model."""
    steps = sorted(data.draw(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=2)), reverse=True)
    distances, weights = [], []
    for factor in (1.0, *steps):
        context = MixContext(
            case.context.weights, [factor] * len(case.received), case.context.round, case.context.horizon
        )
        result = make_rule(name)(case.own, case.received, context)
        distances.append(float((result.vector - case.own).double().norm()))
        weights.append(sum(v.weight for v in result.verdicts))
    assert all(b <= a * (1 + 1e-5) + 1e-4 for a, b in pairwise(distances))
    assert weights[1] == pytest.approx(weights[0] * steps[0])


@ALL_RULES
def test_weights_sum_to_at_most_one(name: str) -> None:
    own = torch.ones(20)
    context = MixContext([0.25, 0.25, 0.25], [1.0, 0.5, 1.0], 3, 10)
    result = make_rule(name)(own, [own * 1.01, own * 0.99, own * -1], context)
    assert all(v.weight >= 0 for v in result.verdicts)
    assert 0 < sum(v.weight for v in result.verdicts) <= 1


@pytest.mark.parametrize(("name", "missing"), [("mean", "weights"), ("mean", "freshness"), ("balance", "freshness")])
def test_refuses_a_context_of_another_length(name: str, missing: str) -> None:
    own = torch.ones(4)
    context = MixContext([] if missing == "weights" else [0.5], [] if missing == "freshness" else [1.0], 0)
    with pytest.raises(ValueError, match=r"freshness|shorter|longer"):
        make_rule(name)(own, [own], context)
