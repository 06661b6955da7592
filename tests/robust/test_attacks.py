from __future__ import annotations

import math

import pytest
import torch

from gossipfl.errors import ConfigError
from gossipfl.robust.base import AttackView
from gossipfl.robust.registry import ATTACKS, RULES, make_attack, make_rule


def view(size: int = 10_000, seed: int = 5) -> AttackView:
    own = torch.randn(size, generator=torch.Generator().manual_seed(1))
    return AttackView(own, [own + 1], 0, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_lie_has_the_models_shape_and_leaves_the_view_alone(name: str) -> None:
    seen = view()
    before = [seen.own.clone(), seen.replicas[0].clone()]
    lie = make_attack(name).lie(seen)
    assert lie.shape == seen.own.shape
    assert lie.dtype == seen.own.dtype
    assert torch.equal(seen.own, before[0])
    assert torch.equal(seen.replicas[0], before[1])


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_generator_tells_the_same_lie(name: str) -> None:
    attack = make_attack(name)
    assert torch.equal(attack.lie(view()), attack.lie(view()))


def test_sign_flip() -> None:
    seen = view()
    assert torch.equal(make_attack("sign-flip").lie(seen), -seen.own)
    assert torch.equal(make_attack("sign-flip", {"strength": 4}).lie(seen), -4 * seen.own)


def test_gaussian_replaces_the_model_by_noise_of_variance_200() -> None:
    seen = view(200_000)
    lie = make_attack("gaussian").lie(seen)
    assert float(lie.var()) == pytest.approx(200, rel=0.02)
    assert abs(float(lie.mean())) < 0.15
    assert abs(float(torch.corrcoef(torch.stack([lie, seen.own]))[0, 1])) < 0.02
    second = make_attack("gaussian").lie(seen)
    assert not torch.equal(lie, second)
    assert float(make_attack("gaussian", {"strength": 0.5}).lie(view()).std()) == pytest.approx(0.5, rel=0.05)


def test_label_flip_lies_in_its_data_alone() -> None:
    attack, seen = make_attack("label-flip"), view()
    assert attack.poisons_data
    assert torch.equal(attack.lie(seen), seen.own)
    assert not make_attack("sign-flip").poisons_data


@pytest.mark.parametrize("strength", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["sign-flip", "gaussian"])
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    with pytest.raises(ConfigError, match=rf'attack "{name}": strength = .* must be greater than 0'):
        make_attack(name, {"strength": strength})


@pytest.mark.parametrize("name", RULES)
def test_rules_carry_their_names(name: str) -> None:
    assert make_rule(name).name == name


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_carry_their_names(name: str) -> None:
    assert make_attack(name).name == name


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match='rule "median" is unknown; choose one of: mean, balance'):
        make_rule("median")
    with pytest.raises(ConfigError, match='attack "nice" is unknown; choose one of: sign-flip'):
        make_attack("nice")


def test_unknown_options_list_the_known() -> None:
    with pytest.raises(ConfigError, match='rule "balance" has no option "gama"; its options are: gamma, kappa'):
        make_rule("balance", {"gama": 1})
    with pytest.raises(ConfigError, match='rule "mean" has no option "gamma"; it has no options'):
        make_rule("mean", {"gamma": 1})


@pytest.mark.parametrize("value", ["1", True, None, [1]])
def test_options_are_numbers(value: object) -> None:
    with pytest.raises(ConfigError, match=r"gamma = .* must be a number"):
        make_rule("balance", {"gamma": value})
