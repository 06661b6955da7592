"""f liars that collude, against rules that were told f."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robust.rule_cases import BOUNDED, COMPOSED, cluster, even, rule_for
from robust.slow_rules import holds
from torch import Tensor

TOLD_F = [name for name in BOUNDED if name not in COMPOSED] + ["nnm+krum", "arc+mean", "nnm+arc+median"]


def lies(kind: str, own: Tensor, honest: list[Tensor], count: int, strength: float) -> list[Tensor]:
    centre, spread = torch.stack(honest).mean(dim=0), torch.stack(honest).std(dim=0)
    match kind:
        case "together":
            lie = own + strength
        case "opposite":
            lie = -strength * centre
        case "little":
            lie = centre - 1.5 * spread
        case _:
            lie = own + strength * (own - centre)
    return [lie.clone() for _ in range(count)]


@pytest.mark.parametrize("name", [*TOLD_F, "median", "geometric-median"])
@given(
    kind=st.sampled_from(["together", "opposite", "little", "apart"]),
    strength=st.sampled_from([1.0, 10.0, 1e3, 1e9]),
    seed=st.integers(0, 1000),
    f=st.integers(0, 3),
)
@settings(max_examples=20, deadline=None)
def test_f_liars_do_not_take_a_node_away_from_the_honest(
    name: str, kind: str, strength: float, seed: int, f: int
) -> None:
    """The result is no farther from the own model than a few times the farthest honest neighbour."""
    own, honest = cluster(next(k for k in range(40) if holds(name, k + f, f) and k >= 3), size=30, seed=seed)
    case = even(own, [*lies(kind, own, honest, f, strength), *honest], f=f)
    result = rule_for(name, f)(own, case.received, case.context)
    assert float((result.vector - own).norm()) <= 3 * max(float((x - own).norm()) for x in honest)


def test_without_a_defence_they_do() -> None:
    own, honest = cluster(6, size=30)
    case = even(own, [*honest, own + 1e3])
    assert float((rule_for("mean")(own, case.received, case.context).vector - own).norm()) > 100
