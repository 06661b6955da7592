from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from robust.rule_cases import Case, cluster, even
from torch import Tensor

from gossipfl.errors import ConfigError
from gossipfl.robust.base import Aggregate
from gossipfl.robust.registry import make_rule


def mix(case: Case, **options: object) -> Aggregate:
    return make_rule("wfagg", {"f": case.f, **options})(case.own, case.received, case.context)


def moving(count: int, *, f: int = 1) -> tuple[Case, Tensor]:
    """Neighbours that take a step of length 1 in every round, and the memory of two such rounds."""
    own, before = cluster(count, size=200)
    direction = torch.nn.functional.normalize(torch.randn(200, generator=torch.Generator().manual_seed(9)), dim=0)
    case = replace(even(own, [x + direction for x in before], f=f), previous=before)
    first = mix(case).memory
    assert first is not None
    # Two rounds that spread around what is usual: mean as now, standard deviation a tenth of it.
    now = first[:, :2]
    return case, torch.cat([now * 1.07, now * 0.93], dim=1)


def test_whom_all_three_filters_pass_weighs_more_than_whom_two_pass() -> None:
    case, memory = moving(5)
    memory[2, :] = torch.nan
    case = replace(case, memory=memory)
    weights = [v.weight for v in mix(case).verdicts]
    assert max(weights) == pytest.approx(1.25 * min(w for w in weights if w > 0))
    assert sum(weights) == pytest.approx(0.5)


def test_without_a_history_distance_and_cosine_decide() -> None:
    """k - f - 1 pass each of the two, and both are needed."""
    case, _ = moving(7, f=2)
    accepted = [v.accepted for v in mix(case).verdicts]
    assert 1 <= sum(accepted) <= 4
    assert {v.reason for v in mix(case).verdicts if not v.accepted} == {"passed too few filters"}


def test_a_liar_far_away_fails_though_it_points_the_right_way() -> None:
    own, honest = cluster(6, size=200)
    lie = 50 * torch.stack(honest).mean(dim=0)
    verdicts = mix(even(own, [lie, *honest])).verdicts
    assert not verdicts[0].accepted
    assert any(v.accepted for v in verdicts)


def test_one_that_suddenly_moves_otherwise_fails_the_filter_of_time() -> None:
    case, memory = moving(6)
    steady = mix(replace(case, memory=memory))
    jump = [*case.previous]
    jump[0] = case.received[0] + 3 * (case.previous[0] - case.received[0])
    jumped = mix(replace(case, memory=memory, previous=jump))
    assert jumped.verdicts[0].weight < steady.verdicts[0].weight or not steady.verdicts[0].accepted
    assert [v.accepted for v in jumped.verdicts[1:]] == [v.accepted for v in steady.verdicts[1:]]


def test_it_remembers_the_newest_first_and_forgets_the_oldest() -> None:
    case, memory = moving(4)
    after = mix(replace(case, memory=memory)).memory
    assert after is not None
    assert after.shape == (4, 4)
    assert after[:, 0] == pytest.approx([1.0] * 4, rel=1e-4)
    assert torch.equal(after[:, 2:], memory[:, :2])
    longer = mix(replace(case, memory=None), window=5).memory
    assert longer is not None
    assert longer.shape == (4, 10)
    assert bool(longer[:, 2:].isnan().all())


def test_a_node_that_trusts_nobody_in_a_round_goes_on_remembering() -> None:
    case, memory = moving(3, f=3)
    result = mix(replace(case, memory=memory))
    assert not any(v.accepted for v in result.verdicts)
    assert result.memory is not None
    assert torch.equal(result.memory[:, 2:], memory[:, :2])


@pytest.mark.parametrize(("option", "value"), [("alpha", 1.5), ("window", 1), ("window", 2.5)])
def test_impossible_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f'rule "wfagg": {option} = {value} must be'):
        make_rule("wfagg", {"f": 1, option: value})
