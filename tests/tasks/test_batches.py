from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.tasks.batches import PROBE_SAMPLES, BatchOrder, StackedOrders, probe_rows

CPU = torch.device("cpu")


def test_the_batch_order_is_epochs_of_permutations() -> None:
    order = BatchOrder(7, 1)
    stream = torch.cat([order.take(count) for count in (3, 9, 1, 8)])
    assert all(sorted(stream[start : start + 7].tolist()) == list(range(7)) for start in (0, 7, 14))
    assert torch.equal(stream, BatchOrder(7, 1).take(21))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 40))
def test_nodes_side_by_side_draw_what_each_would_draw(sizes: list[int], batch: int, steps: int) -> None:
    starts = [sum(sizes[:node]) for node in range(len(sizes))]
    stacked = StackedOrders(starts, sizes, batch, range(len(sizes)), CPU)
    alone = [BatchOrder(size, seed) for seed, size in enumerate(sizes)]
    shape = (len(sizes), min(batch, max(sizes)))
    assert stacked.shares.shape == shape
    torch.testing.assert_close(stacked.shares.sum(1), torch.ones(len(sizes)))
    for _ in range(steps):
        rows = stacked.take().view(shape)
        for node, (start, size, order) in enumerate(zip(starts, sizes, alone, strict=True)):
            count = min(batch, size)
            assert torch.equal(rows[node, :count], start + order.take(count))
            assert bool(((rows[node] >= start) & (rows[node] < start + size)).all())
            assert bool((stacked.shares[node, count:] == 0).all())


@given(st.integers(1, 1000), st.integers(0, 2**62))
def test_a_probe_is_drawn_once_without_repetition(samples: int, seed: int) -> None:
    rows = probe_rows(samples, seed)
    assert torch.equal(rows, probe_rows(samples, seed))
    assert len(set(rows.tolist())) == len(rows) == min(samples, PROBE_SAMPLES)
    assert 0 <= int(rows.min()) <= int(rows.max()) < samples


def test_a_probe_is_no_piece_of_the_batch_order() -> None:
    assert not torch.equal(probe_rows(500, 3), BatchOrder(500, 3).take(PROBE_SAMPLES))
