"""Rules for a whole network at once: one gossip step of all nodes as arithmetic on matrices.

Each function gives what its rule gives node by node, up to the order of additions. Temporaries are bounded by
``CHUNK_ELEMENTS``, whatever the size of the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossipfl.robust.balance import Balance
from gossipfl.robust.base import MixContext, Rule
from gossipfl.robust.mean import Mean

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = 1 << 18
"""Elements of a temporary: differences along as many links as fit in it are handled at a time."""

LONG_VECTOR = 1 << 14
"""From this many elements on, a rule's own way through one node's vectors is as fast as matrices of whole vectors."""

BATCHED_FROM = 64
"""Nodes from which on a step is done at once; fewer run the rule itself, so that they agree with agents bit for bit."""

FLOAT_MAX = float(np.finfo(np.float64).max)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Links:
    """The directed links j -> i of a network, by receiver i and then by sender j, both ascending.

    Links ``starts[i]`` to ``starts[i + 1]`` lead to node i; ``senders`` (e,) are their other ends and ``weights`` (e,)
    the mixing weights W_ij.
    """

    starts: Integers
    senders: Integers
    weights: Floats

    @property
    def nodes(self) -> int:
        """Number of nodes n."""
        return len(self.starts) - 1

    @cached_property
    def receivers(self) -> Integers:
        """The node that each link leads to, (e,)."""
        return np.repeat(np.arange(self.nodes), np.diff(self.starts))

    def of(self, node: int) -> slice:
        """Return the links that lead to ``node``."""
        return slice(int(self.starts[node]), int(self.starts[node + 1]))


@dataclass(frozen=True)
class LinkVerdicts:
    """What all nodes decided in one step, one entry a link, in the order of ``Links``.

    ``weights`` is what each sender got; ``distances`` and ``thresholds`` are NaN where the rule has none. A rejected
    link's distance may be a lower bound.
    """

    accepted: NDArray[np.bool_]
    weights: Floats
    distances: Floats
    thresholds: Floats


def mix_network(
    rule: Rule, own: Tensor, replicas: Tensor, links: Links, out: Tensor, *, round_: int, horizon: int | None
) -> LinkVerdicts:
    """Write Rule(own_i, {replicas_j : j -> i}) to row i of ``out`` for all nodes i.

    ``own``, ``replicas`` and ``out`` are (n, d) float32 on the CPU; ``own`` and ``replicas`` may be one tensor, ``out``
    must not overlap them. All links are fresh. Rules without a form of their own here run node by node.
    """
    if links.nodes >= BATCHED_FROM and own.shape[1] < LONG_VECTOR:
        if isinstance(rule, Mean):
            return _mean(own, replicas, links, out)
        if isinstance(rule, Balance):
            return _balance(rule, own, replicas, links, out, rule.radius(round_, horizon))
    return mix_each(rule, own, replicas, links, out, round_=round_, horizon=horizon)


def mix_each(
    rule: Rule, own: Tensor, replicas: Tensor, links: Links, out: Tensor, *, round_: int, horizon: int | None
) -> LinkVerdicts:
    """Do what ``mix_network`` does by calling the rule for one node after the other."""
    count = len(links.senders)
    verdicts = LinkVerdicts(
        np.zeros(count, dtype=np.bool_), np.zeros(count), np.full(count, np.nan), np.full(count, np.nan)
    )
    for node in range(links.nodes):
        span = links.of(node)
        received = [replicas[int(sender)] for sender in links.senders[span]]
        context = MixContext(links.weights[span].tolist(), [1.0] * len(received), round_, horizon)
        result = rule(own[node], received, context, out[node])
        for link, verdict in enumerate(result.verdicts, start=span.start):
            verdicts.accepted[link], verdicts.weights[link] = verdict.accepted, verdict.weight
            verdicts.distances[link] = np.nan if verdict.distance is None else verdict.distance
            verdicts.thresholds[link] = np.nan if verdict.threshold is None else verdict.threshold
    return verdicts


def _mean(own: Tensor, replicas: Tensor, links: Links, out: Tensor) -> LinkVerdicts:
    """out = (1 - W 1) own + W replicas with the sparse W (n, n): work and memory grow with the links, not with n²."""
    weights = links.weights.astype(np.float32)
    received = _sparse(weights, links.senders, links.starts, links.nodes)
    own_weights = 1.0 - np.bincount(links.receivers, links.weights, links.nodes)
    width = max(1, CHUNK_ELEMENTS // links.nodes)
    for low in range(0, own.shape[1], width):
        columns = slice(low, low + width)
        block = out.numpy()[:, columns]
        np.multiply(own.numpy()[:, columns], own_weights[:, None].astype(np.float32), out=block)
        block += received @ replicas.numpy()[:, columns]
    unknown = np.full(len(links.senders), np.nan)
    return LinkVerdicts(np.ones(len(links.senders), dtype=np.bool_), links.weights.copy(), unknown, unknown)


def _balance(rule: Balance, own: Tensor, replicas: Tensor, links: Links, out: Tensor, radius: float) -> LinkVerdicts:
    """BALANCE along all links: differences of a few nodes' links at a time, then one sparse sum of the near ones."""
    models, public, mixed = own.numpy(), replicas.numpy(), out.numpy()
    limits = np.minimum(radius * radius * _squares(models), FLOAT_MAX)
    squares = np.empty(len(links.senders))
    pull = 1.0 - rule.alpha
    weights = np.zeros(len(links.senders))
    for first, last in _chunks(links, models.shape[1]):
        span = slice(int(links.starts[first]), int(links.starts[last]))
        receivers = links.receivers[span]
        with np.errstate(all="ignore"):  # a lie may overflow: its distance is then infinite, and it is dropped
            differences = public[links.senders[span]]
            differences -= models[receivers]
            squares[span] = _squares(differences)
        near = np.flatnonzero(squares[span] <= limits[receivers])
        counts = np.bincount(receivers[near] - first, minlength=last - first)
        share = (pull / np.maximum(counts, 1)).astype(np.float32)
        weights[span][near] = (pull / np.maximum(counts, 1))[receivers[near] - first]
        starts = np.concatenate(([0], np.cumsum(counts)))
        total = _sparse(np.ones(len(near), np.float32), near, starts, len(differences)) @ differences
        total *= share[:, None]
        np.add(models[first:last], total, out=mixed[first:last])
    thresholds = np.sqrt(limits)[links.receivers]
    return LinkVerdicts(squares <= limits[links.receivers], weights, np.sqrt(squares), thresholds)


def _sparse(values: NDArray[np.float32], columns: Integers, starts: Integers, width: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((values, columns, starts), shape=(len(starts) - 1, width))


def _squares(rows: NDArray[np.float32]) -> Floats:
    """‖row‖² of each row (float32 products, float64 result)."""
    squares: NDArray[np.float32] = np.einsum("ij,ij->i", rows, rows)
    return squares.astype(np.float64)


def _chunks(links: Links, size: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of nodes whose links' vectors fit in a temporary; a node with more links than that comes alone."""
    limit = max(1, CHUNK_ELEMENTS // size)
    first = 0
    while first < links.nodes:
        last = int(np.searchsorted(links.starts, links.starts[first] + limit, side="right")) - 1
        last = min(max(last, first + 1), links.nodes)
        yield first, last
        first = last
