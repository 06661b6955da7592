from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.base import Attack, AttackView
from gossipfl.robust.registry import ATTACKS, RULES, make_attack, make_rule

LONE = [name for name, made in ATTACKS.items() if not made.omniscient]  # type: ignore[attr-defined]
ALL_LONE = pytest.mark.parametrize("name", LONE)


def view(size: int = 10_000, seed: int = 5, round_: int = 0) -> AttackView:
    own = torch.randn(size, generator=torch.Generator().manual_seed(1))
    replicas = [own + 1, own - 3, own * 2]
    return AttackView(own, replicas, round_, torch.Generator().manual_seed(seed), own * 0.5)


def lone(name: str, **options: Any) -> Attack:
    made = make_attack(name, options)
    assert hasattr(made, "lie")
    return made


@ALL_LONE
@pytest.mark.parametrize("round_", [0, 15])
def test_a_lie_has_the_models_shape_and_leaves_the_view_alone(name: str, round_: int) -> None:
    seen = view(round_=round_)
    vectors = [seen.own, *seen.replicas, seen.initial]
    before = [vector.clone() for vector in vectors]
    lie = lone(name).lie(seen)
    assert lie.shape == seen.own.shape
    assert lie.dtype == seen.own.dtype
    assert bool(lie.isfinite().all())
    assert all(torch.equal(vector, old) for vector, old in zip(vectors, before, strict=True))


@ALL_LONE
def test_the_same_generator_tells_the_same_lie(name: str) -> None:
    attack = lone(name)
    assert torch.equal(attack.lie(view(round_=15)), attack.lie(view(round_=15)))


@ALL_LONE
def test_a_node_without_neighbours_lies_all_the_same(name: str) -> None:
    seen = replace(view(), replicas=[])
    assert lone(name).lie(seen).shape == seen.own.shape


@ALL_LONE
def test_whoever_publishes_its_own_model_does_so(name: str) -> None:
    attack, seen = lone(name), view(round_=15)
    assert torch.equal(attack.lie(seen), seen.own) == attack.publishes_own  # type: ignore[attr-defined]
    assert attack.publishes_own <= attack.poisons_data  # type: ignore[attr-defined]


def test_sign_flip() -> None:
    seen = view()
    assert torch.equal(lone("sign-flip").lie(seen), -seen.own)
    assert torch.equal(lone("sign-flip", strength=4).lie(seen), -4 * seen.own)


def test_gaussian_replaces_the_model_by_noise_of_variance_200() -> None:
    seen = view(200_000)
    lie = lone("gaussian").lie(seen)
    assert float(lie.var()) == pytest.approx(200, rel=0.02)
    assert abs(float(lie.mean())) < 0.15
    assert abs(float(torch.corrcoef(torch.stack([lie, seen.own]))[0, 1])) < 0.02
    second = lone("gaussian").lie(seen)
    assert not torch.equal(lie, second)
    assert float(lone("gaussian", strength=0.5).lie(view()).std()) == pytest.approx(0.5, rel=0.05)


def test_slow_drift_starts_at_the_own_model_and_goes_one_way_at_its_pace() -> None:
    attack = lone("slow-drift", pace=0.02)
    assert torch.equal(attack.lie(view()), view().own)
    steps = [attack.lie(view(round_=t)) - view().own for t in (1, 2, 30)]
    for t, step in zip((1, 2, 30), steps, strict=True):
        assert float(step.norm() / view().own.norm()) == pytest.approx(0.02 * t, rel=1e-4)
        assert float(torch.cosine_similarity(step, steps[0], dim=0)) == pytest.approx(1, abs=1e-4)


def test_drifting_attackers_go_the_same_way_and_other_seeds_another() -> None:
    way = [
        lone("slow-drift", seed=seed).lie(view(seed=own, round_=50)) - view().own
        for seed, own in ((0, 1), (0, 2), (1, 1))
    ]
    assert torch.equal(way[0], way[1])
    assert abs(float(torch.cosine_similarity(way[0], way[2], dim=0))) < 0.05


def test_on_off_is_honest_and_lies_in_turns() -> None:
    attack = lone("on-off", honest=3, lying=2, strength=2)
    own = view().own
    for round_ in range(11):
        lie = attack.lie(view(round_=round_))
        assert torch.equal(lie, own if round_ % 5 < 3 else -2 * own)


def test_sybils_stand_together_as_far_from_the_start_as_honest_training_has_come() -> None:
    seen = view()
    assert seen.initial is not None
    lies = [lone("sybil").lie(view(seed=seed)) for seed in range(10, 14)]
    trained = float((seen.own - seen.initial).norm())
    for lie in lies:
        assert float((lie - seen.initial).norm()) == pytest.approx(trained, rel=0.01)
        assert abs(float(torch.cosine_similarity(lie - seen.initial, seen.own, dim=0))) < 0.05
    apart = [float((a - b).norm()) for a in lies for b in lies if a is not b]
    assert 0.01 * trained < min(apart) <= max(apart) < 0.02 * trained
    assert torch.equal(lone("sybil", spread=0).lie(view(seed=1)), lone("sybil", spread=0).lie(view(seed=2)))


def test_sybils_need_the_common_start() -> None:
    with pytest.raises(ValueError, match="the common initial model"):
        lone("sybil").lie(replace(view(), initial=None))


def test_a_duplicate_keeps_to_one_neighbour() -> None:
    copied = set()
    for seed in range(12):
        seen = view(seed=seed)
        first = lone("duplicate").lie(seen)
        torch.rand(3, generator=seen.generator)
        assert torch.equal(first, lone("duplicate").lie(seen))
        copied.add(next(j for j, replica in enumerate(seen.replicas) if torch.equal(replica, first)))
    assert copied == {0, 1, 2}


def test_a_boosted_backdoor_replaces_the_mean_of_what_it_sees() -> None:
    """The mean of as many neighbours as the boost, with the lie among them, is the attacker's model."""
    seen = view()
    lie = lone("backdoor", boost=4).lie(seen)
    torch.testing.assert_close((3 * torch.stack(list(seen.replicas)).mean(0) + lie) / 4, seen.own)
    assert torch.equal(lone("backdoor").lie(seen), seen.own)


@pytest.mark.parametrize("strength", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["sign-flip", "gaussian", "on-off", "sybil", "feature-noise"])
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    with pytest.raises(ConfigError, match=rf'attack "{name}": strength = .* must be greater than 0'):
        make_attack(name, {"strength": strength})


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("slow-drift", {"pace": 0}, "pace = 0 must be greater than 0"),
        ("slow-drift", {"seed": 1.5}, "seed = 1.5 must be a whole number from 0 on"),
        ("on-off", {"honest": 0}, "honest = 0 must be a whole number from 1 on"),
        ("on-off", {"lying": True}, "lying = True must be a number"),
        ("sybil", {"spread": -0.1}, "spread = -0.1 must be between 0 and 1"),
        ("backdoor", {"share": 1.1}, "share = 1.1 must be between 0 and 1"),
        ("backdoor", {"share": math.nan}, "share = nan must be between 0 and 1"),
        ("backdoor", {"boost": 0}, "boost = 0 must be greater than 0"),
        ("backdoor", {"target": -1}, "target = -1 must be a whole number from 0 on"),
        ("duplicate", {"strength": 1}, 'has no option "strength"; it has no options'),
    ],
)
def test_impossible_options_are_one_clear_line(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_attack(name, options)
    assert told in str(error.value)
    assert str(error.value).startswith(f'attack "{name}"')
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_carry_their_names_and_say_whether_they_see_all(name: str) -> None:
    made = make_attack(name)
    assert made.name == name
    assert made.omniscient == hasattr(made, "lies") != hasattr(made, "lie")  # type: ignore[union-attr]
    assert hasattr(made, "poison") == made.poisons_data  # type: ignore[union-attr]


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match=r'rule "nice" is unknown; .*choose one of: mean, .*balance'):
        make_rule("nice")
    with pytest.raises(ConfigError, match=r'attack "nice" is unknown; .*choose one of: sign-flip, .*alie'):
        make_attack("nice")
    with pytest.raises(ConfigError, match=r'attack "alle" is unknown; did you mean "alie"\?'):
        make_attack("alle")


def test_unknown_options_list_the_known() -> None:
    with pytest.raises(ConfigError, match='rule "balance" has no option "gama"; its options are: gamma, kappa'):
        make_rule("balance", {"gama": 1})
    with pytest.raises(ConfigError, match='rule "mean" has no option "gamma"; it has no options'):
        make_rule("mean", {"gamma": 1})
    with pytest.raises(
        ConfigError, match='attack "on-off" has no option "on"; its options are: honest, lying, strength'
    ):
        make_attack("on-off", {"on": 3})


@pytest.mark.parametrize("value", ["1", True, None, [1]])
def test_options_are_numbers(value: object) -> None:
    with pytest.raises(ConfigError, match=r"gamma = .* must be a number"):
        make_rule("balance", {"gamma": value})
    with pytest.raises(ConfigError, match=r"pace = .* must be a number"):
        make_attack("slow-drift", {"pace": value})


def test_the_rules_are_there() -> None:
    assert {"mean", "balance"} <= set(RULES)
