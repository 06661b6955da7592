from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.report.series import Rows, by_round, by_time, totals_by_round


def rows(*entries: tuple[int, int, float, float | None]) -> Rows:
    node, round_, t_s, loss = zip(*entries, strict=True) if entries else ((), (), (), ())
    table = {"node": node, "round": round_, "t_s": t_s, "loss": loss, "byzantine": [n == 1 for n in node]}
    types = {
        "node": pa.int64(),
        "round": pa.int64(),
        "t_s": pa.float64(),
        "loss": pa.float64(),
        "byzantine": pa.bool_(),
    }
    return Rows(pa.table(table, schema=pa.schema(list(types.items()))))


def test_a_round_spans_its_nodes_whatever_the_order_of_rows() -> None:
    band = by_round(rows((1, 1, 9.0, 5.0), (0, 0, 0.0, 1.0), (1, 0, 0.0, 3.0), (0, 1, 1.0, None)), "loss")
    assert band.x.tolist() == [1, 2]
    assert band.mean.tolist() == [2.0, 5.0]
    assert (band.low.tolist(), band.high.tolist()) == ([1.0, 5.0], [3.0, 5.0])


def test_over_time_a_node_holds_its_latest_value() -> None:
    band = by_time(rows((0, 0, 0.0, 4.0), (0, 1, 2.0, 2.0), (1, 0, 1.0, 8.0), (1, 1, 3.0, 6.0)), "loss", points=5)
    assert band.x.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert band.mean.tolist() == [6.0, 6.0, 5.0, 5.0, 4.0]
    assert band.low.tolist() == [4.0, 4.0, 2.0, 2.0, 2.0]
    assert band.high.tolist() == [8.0, 8.0, 8.0, 8.0, 6.0]


def test_one_moment_is_one_point() -> None:
    assert by_time(rows((0, 0, 1.0, 4.0), (1, 0, 1.0, 2.0)), "loss").mean.tolist() == [3.0]


@pytest.mark.parametrize("of", [by_round, by_time])
def test_nothing_known_is_no_band(of: object) -> None:
    assert callable(of)
    assert not of(rows(), "loss")
    assert not of(rows((0, 0, 0.0, None)), "loss")
    assert not of(rows((0, 0, 0.0, 1.0)), "no_such_column")


def test_groups() -> None:
    both = rows((0, 0, 0.0, 1.0), (1, 0, 0.0, 2.0))
    assert both.group(byzantine=False).nodes().tolist() == [0]
    assert both.group(byzantine=True).column("loss").tolist() == [2.0]
    assert both.known("loss")
    assert not both.known("no_such_column")


def test_totals_fill_the_rounds_that_a_group_missed() -> None:
    totals = totals_by_round(rows((0, 0, 0.0, 1.0), (0, 2, 0.0, 2.0), (1, 2, 0.0, None)), "loss", np.arange(3.0))
    assert totals.tolist() == [1.0, 0.0, 2.0]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(0, 6),
            st.floats(0, 1e3, allow_nan=False),
            st.none() | st.floats(-1e3, 1e3, allow_nan=False),
        ),
        max_size=40,
    )
)
def test_a_mean_lies_within_its_band(entries: list[tuple[int, int, float, float | None]]) -> None:
    given_rows = rows(*entries)
    for band in (by_round(given_rows, "loss"), by_time(given_rows, "loss", points=7)):
        assert (band.low <= band.mean + 1e-9).all()
        assert (band.mean <= band.high + 1e-9).all()
        assert (np.diff(band.x) > 0).all()
        assert bool(band) == any(loss is not None for *_, loss in entries)
