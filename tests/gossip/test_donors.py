"""Whose model a late node starts from, and how it makes itself heard."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Lab

from gossipfl.gossip.donors import CALM_ROUNDS, Restraint, complete, in_turn, lateness
from gossipfl.gossip.replica import Followed


def neighbour(vector: torch.Tensor | None, round_: int = 10, *, version: int = 5, **fields: object) -> Followed:
    other = Followed(0.25, vector, version=version, round=round_, told_round=round_, joined=True, claimed=version)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def at(*values: float) -> torch.Tensor:
    return torch.tensor(values)


class TestLateness:
    @pytest.mark.parametrize(
        ("told", "late"), [([], 0), ([10], 7), ([10, 12], 7), ([10, 12, 30], 9), ([1, 2, 90, 91], 0), ([0, 2], 0)]
    )
    def test_it_is_what_half_of_the_neighbours_say_at_least(self, told: list[int], late: int) -> None:
        followed = {str(i): neighbour(at(0.0), round_) for i, round_ in enumerate(told)}
        assert lateness(followed, 3) == late

    @given(st.lists(st.integers(0, 100), min_size=3, max_size=9), st.data())
    @settings(max_examples=60, deadline=None)
    def test_a_minority_of_liars_cannot_raise_it(self, told: list[int], data: st.DataObject) -> None:
        liars = data.draw(st.integers(0, (len(told) - 1) // 2))
        claims = [10**9] * liars + told[liars:]
        followed = {str(i): neighbour(at(0.0), round_) for i, round_ in enumerate(claims)}
        assert lateness(followed, 0) <= max(told[liars:])

    def test_those_who_left_or_have_not_joined_do_not_count(self) -> None:
        followed = {
            "gone": neighbour(at(0.0), 500, left=True),
            "strange": neighbour(at(0.0), 500, joined=False),
            "here": neighbour(at(0.0), 4),
        }
        assert lateness(followed, 0) == 4


class TestDonors:
    def test_the_one_in_the_middle_comes_first_and_liars_last(self) -> None:
        followed = {
            "a": neighbour(at(1.0, 0.0)),
            "middle": neighbour(at(0.0, 0.0)),
            "b": neighbour(at(-1.0, 0.0)),
            "liar": neighbour(at(100.0, 100.0)),
        }
        order = in_turn(followed)
        assert order[0] == "middle"
        assert order[-1] == "liar"

    @given(st.integers(3, 9), st.integers(0, 2**32), st.data())
    @settings(max_examples=60, deadline=None)
    def test_no_minority_of_liars_gets_ahead_of_the_honest(self, count: int, seed: int, data: st.DataObject) -> None:
        liars = data.draw(st.integers(0, (count - 1) // 2))
        generator = torch.Generator().manual_seed(seed)
        honest = {f"h{i}": neighbour(torch.randn(8, generator=generator)) for i in range(count - liars)}
        lie = torch.full((8,), 1e3) + torch.randn(8, generator=generator)
        order = in_turn({**{f"l{i}": neighbour(lie.clone()) for i in range(liars)}, **honest})
        assert order[0].startswith("h")

    def test_who_has_published_nothing_or_is_refused_is_none(self) -> None:
        followed = {
            "new": neighbour(at(0.0), version=0),
            "refused": neighbour(at(0.0), refused="layout"),
            "unknown": neighbour(None),
            "absurd": neighbour(at(0.0), absurd=True),
        }
        assert in_turn(followed) == []

    def test_it_is_waited_for_those_who_can_be_heard(self) -> None:
        behind = neighbour(None)
        assert not complete({"a": neighbour(at(0.0)), "b": behind})
        behind.lost = True
        assert complete({"a": neighbour(at(0.0)), "b": behind})


class TestRestraint:
    FOLLOWED: ClassVar = {"a": neighbour(at(0.0, 1.0)), "b": neighbour(at(0.0, -1.0)), "c": neighbour(at(0.0, 0.0))}

    def test_a_large_step_is_drawn_back_to_where_the_others_are(self) -> None:
        model = at(30.0, 40.0)
        assert Restraint().hold_back(model, self.FOLLOWED)
        torch.testing.assert_close(model, at(0.6, 0.8))

    def test_a_small_step_is_left_as_it_is(self) -> None:
        model = at(0.3, 0.4)
        restraint = Restraint()
        assert not restraint.hold_back(model, self.FOLLOWED)
        torch.testing.assert_close(model, at(0.3, 0.4))
        assert restraint.calm == 1

    def test_it_ends_when_it_was_not_needed_for_long_enough(self) -> None:
        restraint = Restraint()
        for _ in range(CALM_ROUNDS - 1):
            restraint.hold_back(at(0.1, 0.1), self.FOLLOWED)
        restraint.hold_back(at(9.0, 9.0), self.FOLLOWED)
        assert not restraint.over
        for _ in range(CALM_ROUNDS):
            restraint.hold_back(at(0.1, 0.1), self.FOLLOWED)
        assert restraint.over

    def test_one_neighbour_alone_shows_no_differences(self) -> None:
        model = at(30.0, 40.0)
        assert not Restraint().hold_back(model, {"a": neighbour(at(0.0, 1.0))})
        torch.testing.assert_close(model, at(30.0, 40.0))

    def test_a_minority_of_liars_does_not_draw_it_to_themselves(self) -> None:
        liar = neighbour(at(1e6, 1e6))
        model = at(30.0, 40.0)
        Restraint().hold_back(model, {**self.FOLLOWED, "liar": liar})
        assert float(model.norm()) <= 1.0 + 1e-6


def test_a_core_that_comes_late_goes_on_where_the_others_are() -> None:
    lab = Lab(3, mode="async").start()
    for value in range(5):
        for node in (0, 1):
            lab.publish(node, torch.full((lab.size,), float(value)))
            lab.settle()
            lab.mix(node)
    lab.wait(3.0)
    core = lab.cores[2]
    assert core.lateness == 4
    assert core.may_choose_donor
    (first, *_) = core.donors()
    model = core.copy_of(first)
    assert model is not None
    core.start_from(model)
    assert core.round == 4
    assert core.lateness == 0
