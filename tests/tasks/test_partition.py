from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import DataError
from gossipfl.tasks import partition as p
from gossipfl.tasks.base import Partition


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labels(count: int = 2000, classes: int = 10, seed: int = 9) -> np.ndarray:
    return rng(seed).integers(0, classes, count)


COVERING = {
    "iid": p.iid,
    "dirichlet": partial(p.dirichlet, alpha=0.5),
    "dirichlet-even": partial(p.dirichlet_even, alpha=0.5),
    "label-groups": partial(p.label_groups, h=0.5),
    "shards": p.shards,
}


@pytest.mark.parametrize("name", COVERING)
@given(nodes=st.integers(10, 25), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_every_example_goes_to_one_node(name: str, nodes: int, seed: int) -> None:
    deal: Callable[..., p.Indices] = COVERING[name]
    data = labels()
    shares = deal(data, nodes, rng(seed))
    assert len(shares) == nodes
    assert min(len(share) for share in shares) >= 1
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(data)))
    again = deal(data, nodes, rng(seed))
    assert all(np.array_equal(one, other) for one, other in zip(shares, again, strict=True))
    assert all((np.diff(share) > 0).all() for share in shares)


def test_iid_shares_are_even() -> None:
    sizes = [len(share) for share in p.iid(labels(1003), 10, rng())]
    assert max(sizes) - min(sizes) <= 1


def test_dirichlet_shares_get_less_even_with_smaller_alpha() -> None:
    data = labels()

    def skew(alpha: float) -> float:
        shares = p.dirichlet(data, 10, rng(1), alpha=alpha)
        counts = np.array([np.bincount(data[share], minlength=10) / len(share) for share in shares])
        return float(counts.max(axis=1).mean())

    assert skew(100.0) < 0.2 < 0.4 < skew(0.1)


def test_even_dirichlet_shares_are_even_in_size_and_skewed_in_classes() -> None:
    data = labels(1437)
    shares = p.dirichlet_even(data, 61, rng(1), alpha=0.1)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    tops = [np.bincount(data[share]).max() / len(share) for share in shares]
    assert np.median(tops) > 0.6
    even = p.dirichlet_even(data, 61, rng(1), alpha=1000.0)
    assert np.median([np.bincount(data[share]).max() / len(share) for share in even]) < 0.35
    with pytest.raises(DataError, match="no concentration"):
        p.dirichlet_even(data, 4, rng(), alpha=-1.0)


def test_dirichlet_gives_up_in_one_line() -> None:
    with pytest.raises(DataError, match=r"dirichlet with alpha = 0\.001 .* larger alpha"):
        p.dirichlet(labels(), 100, rng(), alpha=0.001)
    with pytest.raises(DataError, match="no concentration"):
        p.dirichlet(labels(), 4, rng(), alpha=0.0)


def test_label_groups_have_the_stated_bias() -> None:
    data = labels(40_000)
    shares = p.label_groups(data, 20, rng(), h=0.8)
    owner = np.empty(len(data), dtype=int)
    for node, share in enumerate(shares):
        owner[share] = node
    assert abs(float((owner % 10 == data).mean()) - 0.8) < 0.01
    others = np.bincount(owner[(owner % 10 != data) & (data == 3)] % 10, minlength=10) / (data == 3).sum()
    assert np.allclose(np.delete(others, 3), 0.2 / 9, atol=0.01)


def test_label_groups_work_with_fewer_nodes_than_classes() -> None:
    data = labels()
    shares = p.label_groups(data, 4, rng(), h=1.0)
    assert all(set(data[share] % 4) == {node} for node, share in enumerate(shares))
    assert len(p.label_groups(data, 1, rng(), h=0.3)[0]) == len(data)


def test_label_groups_refuse_what_is_no_probability() -> None:
    with pytest.raises(DataError, match=r"h = 1\.5"):
        p.label_groups(labels(), 10, rng(), h=1.5)


def test_shards_hold_one_class_each() -> None:
    data = labels()
    shares = p.shards(data, 12, rng())
    assert [set(data[share].tolist()) for share in shares] == [{node % 10} for node in range(12)]
    with pytest.raises(DataError, match="class 0 has 1 examples for the 2 nodes"):
        p.shards(np.array([0, 1, 1]), 3, rng())


def test_impossible_splits_are_refused() -> None:
    with pytest.raises(DataError, match="one file per site"):
        p.split(labels(), 3, Partition("files"), rng())
    with pytest.raises(DataError, match="unknown"):
        p.split(labels(), 3, Partition("odd"), rng())  # type: ignore[arg-type]
    with pytest.raises(DataError, match="5 examples cannot be dealt to 6 nodes"):
        p.split(labels(5), 6, Partition("iid"), rng())
    with pytest.raises(DataError, match="0 nodes"):
        p.split(labels(5), 0, Partition("iid"), rng())


@pytest.mark.parametrize("name", ["auto", "iid", "dirichlet", "label-groups", "shards"])
def test_split_dispatches_by_name(name: str) -> None:
    data = labels()
    chosen = p.split(data, 10, Partition(name), rng(4))  # type: ignore[arg-type]
    deal: Callable[..., p.Indices] = {
        "auto": p.iid,
        "iid": p.iid,
        "dirichlet": partial(p.dirichlet, alpha=0.5),
        "label-groups": partial(p.label_groups, h=0.8),
        "shards": p.shards,
    }[name]
    assert all(np.array_equal(a, b) for a, b in zip(chosen, deal(data, 10, rng(4)), strict=True))


def test_samples_are_drawn_with_replacement_for_more_nodes_than_examples() -> None:
    shares = p.split(labels(50), 200, Partition("iid", samples=20), rng(4))
    assert [len(share) for share in shares] == [20] * 200
    assert all(share.min() >= 0 and share.max() < 50 for share in shares)
    assert len(np.unique(np.concatenate(shares))) == 50
    assert any(len(np.unique(share)) < 20 for share in shares)
    again = p.split(labels(50), 200, Partition("auto", samples=20), rng(4))
    assert all(np.array_equal(one, other) for one, other in zip(shares, again, strict=True))
    with pytest.raises(DataError, match="deals each example once"):
        p.split(labels(50), 5, Partition("dirichlet", samples=20), rng())
    with pytest.raises(DataError, match="use at least 1"):
        p.split(labels(50), 5, Partition(samples=0), rng())
