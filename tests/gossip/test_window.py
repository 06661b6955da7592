"""The replay window against a model that remembers everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gossipfl.gossip.window import SPAN, ReplayWindow

near = st.integers(0, 40)
far = st.integers(0, 5 * SPAN)
messages = st.lists(st.tuples(st.integers(0, 3), near | far), max_size=200)


class Remembering:
    """Accepts what a ReplayWindow must accept, by its definition."""

    def __init__(self) -> None:
        self.incarnation = -1
        self.seen: set[int] = set()

    def is_new(self, incarnation: int, sequence: int) -> bool:
        if incarnation != self.incarnation:
            return incarnation > self.incarnation
        return sequence not in self.seen and sequence > max(self.seen) - SPAN

    def mark(self, incarnation: int, sequence: int) -> None:
        if incarnation > self.incarnation:
            self.incarnation, self.seen = incarnation, set()
        self.seen.add(sequence)


@given(messages)
def test_agrees_with_a_set(stream: list[tuple[int, int]]) -> None:
    window, model = ReplayWindow(), Remembering()
    for message in stream:
        new = window.is_new(*message)
        assert new == model.is_new(*message)
        if new:
            window.mark(*message)
            model.mark(*message)
            assert not window.is_new(*message)
        assert window.seen < 1 << SPAN


@given(messages, st.integers(0, 3), near | far)
def test_after_close_past_only_higher_numbers_pass(stream: list[tuple[int, int]], life: int, sequence: int) -> None:
    window = ReplayWindow()
    for message in stream:
        if window.is_new(*message):
            window.mark(*message)
    window.close_past()
    higher = (life, sequence) > (window.incarnation, window.highest)
    assert window.is_new(life, sequence) == higher


def test_a_jump_beyond_the_span_forgets_the_old_ones_and_still_refuses_them() -> None:
    window = ReplayWindow()
    window.mark(1, 5)
    window.mark(1, 5 + SPAN)
    assert not window.is_new(1, 5)
    assert window.is_new(1, 6)
    window.mark(1, 2**62)
    assert window.seen == 1
    assert not window.is_new(1, 6)
    assert window.is_new(1, 2**62 - SPAN + 1)
    assert not window.is_new(1, 2**62 - SPAN)
