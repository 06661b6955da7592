"""How long a synchronous round waits for one neighbour."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.gossip.waits import Lateness


def test_an_unknown_neighbour_is_waited_for_as_long_as_allowed() -> None:
    assert Lateness().wait_s(5, 60) == 60


@given(st.lists(st.floats(-1e3, 1e6), min_size=1, max_size=50))
def test_the_wait_stays_within_its_limits(samples: list[float]) -> None:
    lateness = Lateness()
    for sample in samples:
        lateness.add(sample)
        assert 5 <= lateness.wait_s(5, 60) <= 60
        assert lateness.mean is not None
        assert math.isfinite(lateness.mean)
        assert lateness.deviation >= 0


def test_a_steady_neighbour_is_soon_waited_for_little_more_than_its_mean() -> None:
    lateness = Lateness()
    for _ in range(60):
        lateness.add(2.0)
    assert lateness.wait_s(0.1, 60) == pytest.approx(2.0, rel=1e-3)


def test_early_arrivals_count_as_no_lateness() -> None:
    lateness = Lateness()
    lateness.add(-5.0)
    assert lateness.mean == 0.0


def test_one_late_update_widens_the_wait_beyond_it() -> None:
    lateness = Lateness()
    for _ in range(60):
        lateness.add(1.0)
    lateness.add(5.0)
    assert lateness.wait_s(0.1, 60) > 5.0
