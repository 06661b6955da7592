from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import slow_attacks as slow
import torch
from attack_views import Scene, alone, bells, connect, scenes, tensors, view
from hypothesis import given, settings

from gossipfl.errors import ConfigError
from gossipfl.robust.balance import Balance
from gossipfl.robust.base import Conspiracy, MixContext
from gossipfl.robust.registry import ATTACKS, make_attack, make_rule

CONSPIRACIES = [name for name, made in ATTACKS.items() if made.omniscient]  # type: ignore[attr-defined]
ALL = pytest.mark.parametrize("name", CONSPIRACIES)
RANDOM = {"gaussian-mean", "trim"}
SEARCHING = {"krum-attack", "spectral", "threshold-hugging"}


def conspiracy(name: str, **options: Any) -> Conspiracy:
    made = make_attack(name, options)
    assert hasattr(made, "lies")
    return made


def scale(scene: Scene) -> float:
    return max(1.0, float(scene.models.abs().max()))


def agree(name: str, lies: torch.Tensor, wanted: torch.Tensor) -> None:
    """Sums of other lengths round another way, and then a search may stop one step earlier."""
    tolerance = 2e-2 if name in SEARCHING else 1e-5
    torch.testing.assert_close(lies, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("name", "options", "reference"),
    [
        ("alie", {}, slow.alie),
        ("alie", {"z": -10, "with_target": True}, partial(slow.alie, z=-10.0, with_target=True)),
        ("ipm", {}, slow.ipm),
        ("sign-flip-mean", {}, slow.sign_flip_mean),
        ("min-max", {}, slow.min_max),
        ("min-sum", {}, slow.min_sum),
        ("dissensus", {}, slow.dissensus),
        ("isolation", {}, slow.isolation),
        ("krum-attack", {}, slow.krum_attack),
    ],
)
@given(scene=scenes())
@settings(max_examples=25)
def test_agrees_with_its_paper_target_by_target(
    name: str, options: dict[str, Any], reference: Callable[[Scene, int], np.ndarray], scene: Scene
) -> None:
    lies = conspiracy(name, **options).lies(view(scene, padding=2))
    for told, target in zip(lies, scene.targets, strict=True):
        count = len(scene.lying(target))
        wanted = np.broadcast_to(reference(scene, target), (count, scene.models.shape[1]))
        tolerance = 2e-5 * max(scale(scene), float(np.abs(wanted).max()))
        np.testing.assert_allclose(told[:count].double().numpy(), wanted, rtol=1e-4, atol=tolerance)


@ALL
@given(scene=scenes())
@settings(max_examples=8)
def test_padding_changes_nothing_and_the_view_is_not_written(name: str, scene: Scene) -> None:
    seen, padded = view(scene, make_rule("balance")), view(scene, make_rule("balance"), padding=2)
    before = tensors(padded)
    bare, told = conspiracy(name).lies(seen), conspiracy(name).lies(padded)
    assert told.shape == padded.own.shape
    assert told.dtype == padded.own.dtype
    agree(name, told[padded.byzantine_present], bare[seen.byzantine_present])
    assert bool(told[padded.byzantine_present].isfinite().all())
    for key, value in tensors(padded).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in CONSPIRACIES if name not in RANDOM])
@given(scene=scenes())
@settings(max_examples=8)
def test_one_target_is_told_the_same_alone_as_among_many(name: str, scene: Scene) -> None:
    seen = view(scene, make_rule("balance"), padding=1)
    lies = conspiracy(name).lies(seen)
    for place in range(len(scene.targets)):
        single = conspiracy(name).lies(alone(seen, place))
        there = seen.byzantine_present[place]
        agree(name, lies[place][there], single)


@ALL
def test_the_same_generator_tells_the_same_lies(name: str) -> None:
    scene, rule = bells(), make_rule("balance")
    first, second = (conspiracy(name).lies(view(scene, rule)) for _ in range(2))
    assert torch.equal(first, second)


def test_alie_has_the_quantiles_of_the_table() -> None:
    """Φ⁻¹(3/4) = 0.6745 of 8 neighbours with 2 liars, Φ⁻¹(6/7) = 1.0676 of 7 with 3."""
    for honest, lying, z in ((6, 2, 0.6745), (4, 3, 1.0676)):
        nodes = 1 + honest + lying
        models = torch.randn(nodes, 30, generator=torch.Generator().manual_seed(nodes))
        star = connect(models, {(0, j) for j in range(1, nodes)}, set(range(1 + honest, nodes)))
        told = conspiracy("alie").lies(view(star))[0, 0]
        others = models[1 : 1 + honest]
        torch.testing.assert_close(told, others.mean(0) + z * others.std(0), rtol=1e-4, atol=1e-4)


@given(scene=scenes())
@settings(max_examples=25)
def test_isolation_and_dissensus_of_strength_one_leave_the_metropolis_mean_at_the_own_model(scene: Scene) -> None:
    for attack in (conspiracy("isolation"), conspiracy("dissensus", strength=1)):
        lies = attack.lies(view(scene)).double().numpy()
        for told, i in zip(lies, scene.targets, strict=True):
            own, heard = scene.slow([i])[0], dict(zip(scene.lying(i), told, strict=False))
            step = sum(scene.weight(i, j) * (heard.get(j, scene.slow([j])[0]) - own) for j in scene.neighbours[i])
            np.testing.assert_allclose(step, 0, atol=1e-5 * scale(scene))


def test_gaussian_mean_is_noise_around_the_honest_neighbours() -> None:
    scene = bells(20_000)
    lies = conspiracy("gaussian-mean").lies(view(scene))
    noise = lies[:, 0] - torch.stack([scene.models[scene.honest(i)].mean(0) for i in scene.targets])
    assert float(noise.std()) == pytest.approx(30, rel=0.02)
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.05


@given(scene=scenes())
@settings(max_examples=25)
def test_trim_lies_just_beyond_the_honest_against_the_sign_of_their_sum(scene: Scene) -> None:
    lies = conspiracy("trim").lies(view(scene, padding=1)).double().numpy()
    for told, i in zip(lies, scene.targets, strict=True):
        honest = scene.slow([*scene.honest(i), i])
        sign = np.sign(honest.sum(0))
        edge = np.where(sign > 0, honest.min(0), honest.max(0))
        factors = told[: len(scene.lying(i))] / edge
        inwards = sign * edge > 0
        assert np.all((factors >= np.where(inwards, 0.5, 1) - 1e-5) & (factors <= np.where(inwards, 1, 2) + 1e-5))
        assert np.all(sign * told[: len(factors)] <= sign * edge + 1e-6 * scale(scene))


def test_trim_draws_for_each_liar_and_coordinate() -> None:
    models = torch.ones(6, 500)
    told = conspiracy("trim").lies(view(connect(models, {(0, j) for j in range(1, 6)}, {4, 5})))[0]
    assert float((told[0] - told[1]).abs().max()) > 0.3
    assert float((1 / told).mean()) == pytest.approx(1.5, abs=0.05)


def test_krum_picks_the_lie_and_the_lie_is_not_the_truth() -> None:
    models = torch.randn(9, 30, generator=torch.Generator().manual_seed(4)) * 0.1 + 1
    scene = connect(models, {(i, j) for i in range(9) for j in range(i)}, {6, 7, 8})
    lies = conspiracy("krum-attack").lies(view(scene))
    for told, i in zip(lies, scene.targets, strict=True):
        own = models[i]
        scores = slow.krum_scores([*told.double().numpy(), *scene.slow([*scene.honest(i), i])], 3)
        assert int(np.argmin(scores)) < 3
        assert float((told[0] - own).norm()) > 0.05
        assert torch.equal((told[0] - own).sign(), -torch.ones(30))


def test_conspirators_that_krum_would_not_pick_say_the_truth() -> None:
    # Three at one place win against a lone liar wherever it stands.
    models = torch.stack(
        [torch.ones(4), torch.full((4,), 3.0), torch.full((4,), 3.0), torch.full((4,), 3.0), -torch.ones(4)]
    )
    scene = connect(models, {(0, j) for j in range(1, 5)}, {4})
    assert torch.equal(conspiracy("krum-attack").lies(view(scene))[0, 0], models[4])


def test_sample_duplicating_keeps_to_one_honest_node() -> None:
    scene = bells()
    seen = view(scene)
    first = conspiracy("sample-duplicating").lies(seen)
    torch.rand(7, generator=seen.generator)
    again = conspiracy("sample-duplicating").lies(seen)
    assert torch.equal(first, again)
    copied = {tuple(lie.tolist()) for lie in first.flatten(0, 1)}
    assert len(copied) == 1
    assert copied <= {tuple(scene.models[i].tolist()) for i in range(10) if i not in scene.liars}


def fiedler_parts(scene: Scene) -> np.ndarray:
    """v_i (vᵀ X) of every target, from the eigenvectors of the honest graph."""
    honest = [i for i in range(len(scene.models)) if i not in scene.liars]
    values, vectors = np.linalg.eigh(scene.laplacian())
    assert values[1] < 0.5 * values[2]  # so that the vector is well determined
    v = vectors[:, 1]
    assert len({bool(entry > 0) for entry in v[:4]}) == len({bool(entry > 0) for entry in v[4:]}) == 1
    return np.array([v[honest.index(i)] * (v @ scene.slow(honest)) for i in scene.targets])


def test_spectral_doubles_its_push_as_long_as_the_mean_follows() -> None:
    scene = bells()
    told = conspiracy("spectral").lies(view(scene))[:, 0] - scene.models[scene.targets]
    np.testing.assert_allclose(told.numpy(), (2**15 - 1) * fiedler_parts(scene), rtol=2e-3, atol=1)


def test_spectral_stops_where_balance_would_stop_it() -> None:
    scene, rule = bells(), make_rule("balance")
    lies = conspiracy("spectral").lies(view(scene, rule))[:, 0]
    threshold = rule.radius(3, 20) * scene.models[scene.targets].norm(dim=1)  # type: ignore[attr-defined]
    steps = lies - scene.models[scene.targets]
    assert bool((steps.norm(dim=1) <= threshold * 1.0001).all())
    assert bool((steps.norm(dim=1) >= threshold * 0.95).all())
    parts = torch.from_numpy(fiedler_parts(scene)).float()
    assert float(torch.cosine_similarity(steps, parts).min()) > 0.999


@pytest.mark.parametrize("direction", ["wrong", "apart"])
@given(scene=scenes())
@settings(max_examples=25)
def test_threshold_hugging_is_accepted_by_balance_and_no_step_further(direction: str, scene: Scene) -> None:
    rule = make_rule("balance")
    seen = view(scene, rule)
    told = conspiracy("threshold-hugging", direction=direction).lies(seen)
    for lies, i in zip(told, scene.targets, strict=True):
        own = scene.models[i]
        threshold = rule.radius(3, 20) * float(own.norm())  # type: ignore[attr-defined]
        for lie in lies[: len(scene.lying(i))]:
            assert float((lie - own).norm()) <= threshold
            if direction == "wrong" or scene.honest(i):
                assert float((lie - own).norm()) >= 0.98 * threshold


def test_threshold_hugging_knows_the_two_directions() -> None:
    scene = bells()
    seen, honest = view(scene, make_rule("balance")), [i for i in range(10) if i not in scene.liars]
    for direction, goal in (
        ("wrong", lambda i: -scene.models[honest].mean(0) - scene.models[i]),
        ("apart", lambda i: scene.models[i] - scene.models[scene.honest(i)].mean(0)),
    ):
        told = conspiracy("threshold-hugging", direction=direction).lies(seen)[:, 0]
        for lie, i in zip(told, scene.targets, strict=True):
            assert float(torch.cosine_similarity(lie - scene.models[i], goal(i), dim=0)) > 0.9999


@pytest.mark.parametrize("rule", ["self-clip", "ios", "trimmed-mean"])
def test_threshold_hugging_fits_any_rule(rule: str) -> None:
    """Accepted, unclipped, at every target; and refused or clipped a little further out."""
    scene = bells()
    defence = make_rule(rule, {} if rule == "self-clip" else {"f": "known"})
    seen = view(scene, defence)
    attack = conspiracy("threshold-hugging", closeness=1, evaluations=20)
    lies = attack.lies(seen)[:, 0]
    for further, wanted in ((1.0, True), (1.02, False)):
        for place, i in enumerate(scene.targets):
            own, honest = scene.models[i], scene.honest(i)
            heard = [*scene.models[honest], own + further * (lies[place] - own)]
            weights = [scene.weight(i, j) for j in [*honest, *scene.lying(i)]]
            context = MixContext(weights, [1.0] * len(weights), 3, 20, byzantine=1)
            verdict = defence(own, heard, context).verdicts[-1]
            assert (verdict.accepted and verdict.scale > 0.9999) == wanted


def test_threshold_hugging_makes_krum_pick_the_lie() -> None:
    """Krum takes one of three equal lies: that is enough, and it goes further than the target's own place."""
    models = torch.randn(9, 30, generator=torch.Generator().manual_seed(4)) * 0.1 + 1
    scene = connect(models, {(i, j) for i in range(9) for j in range(i)}, {6, 7, 8})
    lies = conspiracy("threshold-hugging").lies(view(scene, make_rule("krum", {"f": "known"})))
    for told, i in zip(lies, scene.targets, strict=True):
        scores = slow.krum_scores([*told.double().numpy(), *scene.slow([*scene.honest(i), i])], 3)
        assert int(np.argmin(scores)) < 3
        assert float((told[0] - models[i]).norm()) > 0.2


def test_threshold_hugging_of_a_rule_that_takes_all_stops_at_its_limit() -> None:
    scene = bells()
    told = conspiracy("threshold-hugging", limit=4, closeness=1).lies(view(scene))[:, 0]
    own = scene.models[scene.targets]
    torch.testing.assert_close((told - own).norm(dim=1), 4 * own.norm(dim=1), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("name", "most"), [("spectral", 16), ("threshold-hugging", 16)])
def test_rehearsals_are_as_few_as_promised(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []
    mix = Balance.mix
    monkeypatch.setattr(Balance, "mix", lambda rule, hood: played.append(1) or mix(rule, hood))
    conspiracy(name).lies(view(bells(), Balance()))
    assert len(played) == most


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("ipm", {"strength": 0}, "strength = 0 must be greater than 0"),
        ("dissensus", {"strength": math.nan}, "strength = nan must be greater than 0"),
        ("alie", {"z": math.inf}, "z = inf must be a finite number"),
        ("alie", {"with_target": 1}, "with_target = 1 must be true or false"),
        ("spectral", {"evaluations": 1}, "evaluations = 1 must be a whole number from 2 on"),
        ("spectral", {"evaluations": 16.5}, "evaluations = 16.5 must be a whole number from 2 on"),
        ("threshold-hugging", {"closeness": 1.01}, "closeness = 1.01 must be between 0 and 1"),
        ("threshold-hugging", {"direction": "left"}, "direction = left must be one of: wrong, apart"),
        ("threshold-hugging", {"limit": "far"}, "limit = 'far' must be a number"),
        ("isolation", {"strength": 1}, 'has no option "strength"; it has no options'),
    ],
)
def test_impossible_options_are_one_clear_line(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_attack(name, options)
    assert told in str(error.value)
    assert str(error.value).startswith(f'attack "{name}"')
    assert "\n" not in str(error.value)
