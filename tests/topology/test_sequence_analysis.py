"""What is left of differences under sequences of graphs, against published figures."""

from __future__ import annotations

import json

import pytest

from gossipfl.errors import TopologyError
from gossipfl.topology import make_sequence
from gossipfl.topology.analysis.sequences import analyse_sequence


@pytest.mark.parametrize(("k", "period"), [(1, 7), (2, 5), (3, 4), (4, 2)])
def test_base_graphs_are_exact_after_a_period(k: int, period: int) -> None:
    report = analyse_sequence(make_sequence("base-k", 20, {"k": k}))
    assert (report["period"], report["exact_after"]) == (period, period)
    assert report["mixing"][1]["rounds"] == period


def test_one_peer_exponential_is_exact_for_powers_of_two_only() -> None:
    assert analyse_sequence(make_sequence("one-peer-exponential", 16))["exact_after"] == 4
    report = analyse_sequence(make_sequence("one-peer-exponential", 20))
    assert report["residual"][4] == pytest.approx(0.19, abs=0.005)
    assert report["exact_after"] is None
    assert report["messages"] == 1.0


def test_a_sequence_of_one_matrix_shrinks_by_its_second_singular_value() -> None:
    report = analyse_sequence(make_sequence("equistatic", 20, seed=1))
    left = report["residual"]
    assert left[3] == pytest.approx(left[0] ** 4)  # circulant matrices are normal


def test_sequence_analysis_is_plain_json_and_knows_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    report = analyse_sequence(make_sequence("epidemic", 12, {"variant": "local"}))
    assert json.loads(json.dumps(report)) == report
    assert report["doubly_stochastic"] is False
    assert report["pairs"] == 66
    monkeypatch.setattr("gossipfl.topology.analysis.sequences.MAX_NODES", 10)
    with pytest.raises(TopologyError, match="is analysed for at most 10; give fewer"):
        analyse_sequence(make_sequence("epidemic", 12))
