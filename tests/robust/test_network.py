from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robust.rule_cases import rule_for

from gossipfl.robust import network
from gossipfl.robust.balance import Balance
from gossipfl.robust.base import MixContext
from gossipfl.robust.network import Links, Published, Told, mix_each, mix_network
from gossipfl.robust.registry import RULES

ALL_RULES = pytest.mark.parametrize("name", RULES)


def make_links(nodes: int, pairs: set[tuple[int, int]]) -> Links:
    """Symmetric links with Metropolis weights."""
    neighbours = [sorted({j for i, j in pairs if i == n} | {i for i, j in pairs if j == n}) for n in range(nodes)]
    degrees = [len(row) for row in neighbours]
    return Links(
        starts=np.cumsum([0, *degrees]),
        senders=np.array([j for row in neighbours for j in row], dtype=np.int64),
        weights=np.array([1 / (1 + max(degrees[i], degrees[j])) for i, row in enumerate(neighbours) for j in row]),
    )


@st.composite
def networks(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Links]:
    """Models, public replicas (some of them lies) and links; some nodes may have no neighbour."""
    nodes, size = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    possible = [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
    pairs = set(draw(st.lists(st.sampled_from(possible), max_size=30))) if possible else set()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    centre = torch.randn(size, generator=generator) + 2
    own = centre + 0.1 * torch.randn(nodes, size, generator=generator)
    replicas = own.clone()
    for liar in draw(st.sets(st.integers(0, nodes - 1), max_size=3)):
        replicas[liar] *= -1
    return own, replicas, make_links(nodes, pairs)


def told_everything(own: torch.Tensor, links: Links, horizon: int | None) -> Told:
    """All that any rule may ask for."""
    return Told(
        round=3,
        horizon=horizon,
        byzantine=np.ones(links.nodes, dtype=np.int64),
        losses=lambda models, nodes: (models - own[nodes] * 1.01).square().sum(-1).double(),
        moved=torch.full((links.nodes,), 0.3, dtype=torch.float64),
        previous=Published.replicas(own * 0.99, links),
    )


@ALL_RULES
@given(
    case=networks(),
    chunk=st.sampled_from([1, 64, 1 << 18]),
    sparse_from=st.sampled_from([1, 99]),
    long_from=st.sampled_from([1, 99]),
    horizon=st.none() | st.just(20),
)
@settings(max_examples=15, deadline=None)
def test_the_network_at_once_is_the_rule_node_by_node(
    name: str,
    case: tuple[torch.Tensor, torch.Tensor, Links],
    chunk: int,
    sparse_from: int,
    long_from: int,
    horizon: int | None,
) -> None:
    own, replicas, links = case
    before = own.clone(), replicas.clone()
    rule = rule_for(name)
    public, told = Published.replicas(replicas, links), told_everything(own, links, horizon)
    at_once, one_by_one = torch.empty_like(own), torch.empty_like(own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "BATCHED_FROM", 1)
        patch.setattr(network, "SPARSE_FROM", sparse_from)
        patch.setattr(network, "CHUNK_ELEMENTS", chunk)
        patch.setattr(network, "LONG_VECTOR", long_from)
        patch.setattr(network, "LYING_FROM", long_from)
        verdicts = mix_network(rule, own, public, links, at_once, told)
    expected = mix_each(rule, own, public, links, one_by_one, told)
    # Weiszfeld's iteration goes slowly where its end is near one of the vectors, and stops where the last bits say.
    slack = 5e-3 if name == "geometric-median" else 0.0
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5 + slack, atol=1e-6 + slack)
    assert verdicts.accepted.tolist() == expected.accepted.tolist()
    np.testing.assert_allclose(verdicts.weights, expected.weights, rtol=1e-6 + slack, atol=slack)
    np.testing.assert_allclose(verdicts.thresholds, expected.thresholds, rtol=1e-5)
    # Short vectors are one block, so that even a rejected vector's distance is whole.
    np.testing.assert_allclose(verdicts.distances, expected.distances, rtol=1e-4, atol=1e-6)
    assert torch.equal(own, before[0])
    assert torch.equal(replicas, before[1])


@pytest.mark.parametrize("name", ["mean", "balance", "pace", "ios", "geometric-median"])
def test_long_vectors_have_the_bits_of_the_rule_itself(name: str) -> None:
    nodes, size = network.SPARSE_FROM, network.LONG_VECTOR
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(nodes, size, generator=generator) * 0.05 + 1
    links = make_links(nodes, {(i, (i + 1) % nodes) for i in range(nodes)})
    mixed = torch.empty_like(own)
    told = Told(0, 10, byzantine=np.zeros(nodes, dtype=np.int64), moved=torch.ones(nodes, dtype=torch.float64))
    mix_network(rule_for(name), own, Published.replicas(own, links), links, mixed, told)
    for node in (0, nodes // 2):
        span = links.of(node)
        context = MixContext(links.weights[span].tolist(), [1.0, 1.0], 0, 10, byzantine=0, moved=1.0)
        alone = rule_for(name)(own[node], [own[j] for j in links.senders[span]], context)
        assert torch.equal(mixed[node], alone.vector)


def test_a_replica_that_is_not_finite_is_rejected_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "BATCHED_FROM", 1)
    monkeypatch.setattr(network, "SPARSE_FROM", 1)
    own = torch.ones(4, 6)
    replicas = own * torch.tensor([1.0, 1.01, 1.02, 1.0])[:, None]
    replicas[3, 2] = float("nan")
    out = torch.empty_like(own)
    links = make_links(4, {(0, 1), (0, 2), (0, 3)})
    verdicts = mix_network(Balance(), own, Published.replicas(replicas, links), links, out, Told(0, 10))
    assert verdicts.accepted[links.of(0)].tolist() == [True, True, False]
    torch.testing.assert_close(out[0], torch.full((6,), 1 + 0.5 * 0.015))
    assert bool(out.isfinite().all())


@ALL_RULES
def test_memory_grows_with_links_not_with_nodes_squared(name: str) -> None:
    nodes = 20_000
    links = Links(
        starts=np.arange(0, 2 * nodes + 1, 2),
        senders=np.sort(np.stack([np.arange(-1, nodes - 1), np.arange(1, nodes + 1)], 1) % nodes, axis=1).ravel(),
        weights=np.full(2 * nodes, 1 / 3),
    )
    models, out = torch.ones(nodes, 8), torch.empty(nodes, 8)
    tracemalloc.start()
    try:
        mix_network(
            rule_for(name), models, Published.replicas(models, links), links, out, told_everything(models, links, 10)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # a dense matrix of mixing weights would be 1.6 GB
    torch.testing.assert_close(out, models)
