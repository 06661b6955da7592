"""Rules for a whole network at once: one gossip step of all nodes as arithmetic on matrices.

Every rule's ``mix`` takes many nodes at a time, with their neighbours padded to a common number. The mean and BALANCE
have sparse forms of their own, which need no padding. All give what the rule gives node by node, up to the order of
additions. Temporaries are bounded by ``CHUNK_ELEMENTS``, whatever the size of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from gossipfl.robust.balance import Balance
from gossipfl.robust.base import MixContext, Rule, Verdict
from gossipfl.robust.hood import Hood, Mixed
from gossipfl.robust.mean import Mean
from gossipfl.robust.span import GramRule, Neighbourhood

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Elements of a temporary: vectors along as many links as fit in it are handled at a time."""

LONG_VECTOR = 1 << 14
"""From this many elements on, the mean's and BALANCE's own way through one node's vectors is as fast as matrices."""

LYING_FROM = 6_000
"""As ``LONG_VECTOR``, for rules that see the Gram matrix alone and decide for many nodes at once (``mix_lying``)."""

BATCHED_FROM = 10
"""Nodes from which on a step is done at once; fewer run the rule itself, so that they agree with agents bit for bit."""

SPARSE_FROM = 64
"""Nodes from which on the mean and BALANCE take their sparse forms; padding costs small networks less."""

FLOAT_MAX = float(np.finfo(np.float64).max)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
NetworkLosses = Callable[["Tensor", "Tensor"], "Tensor"]
"""Maps models (m, d) and the nodes (m,) whose data judges them to losses (m,)."""


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

    @cached_property
    def by_degree(self) -> Integers:
        """The nodes, by number of links that lead to them: neighbours in this order need little padding."""
        return np.argsort(np.diff(self.starts), kind="stable")

    def of(self, node: int) -> slice:
        """Return the links that lead to ``node``."""
        return slice(int(self.starts[node]), int(self.starts[node + 1]))

    def padded(self, nodes: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        """Return the links to each of ``nodes``, (m, k), and which of them are there; padding repeats a link."""
        first, counts = self.starts[nodes], self.starts[nodes + 1] - self.starts[nodes]
        places = np.arange(int(counts.max(initial=0)))
        present = places < counts[:, None]
        return np.where(present, first[:, None] + places, np.minimum(first, len(self.senders) - 1)[:, None]), present


@dataclass(frozen=True)
class Published:
    """What travels along the links: row ``sources[l]`` of ``rows`` (m, d) along link l.

    The first n rows are the public replicas; behind them come lies that are told along single links.
    """

    rows: Tensor
    sources: Integers

    @classmethod
    def replicas(cls, replicas: Tensor, links: Links) -> Self:
        """Every node says the same to all: its replica, a row of (n, d)."""
        return cls(replicas, links.senders)

    @classmethod
    def with_lies(cls, replicas: Tensor, links: Links, lied: Integers, lies: Tensor) -> Self:
        """As ``replicas``, but along the links ``lied`` (l,) what is in ``lies`` (l, d)."""
        sources = links.senders.copy()
        sources[lied] = len(replicas) + np.arange(len(lied))
        return cls(torch.cat([replicas, lies]), sources)

    def along(self, links: Integers) -> Tensor:
        """Return the vectors along ``links`` (...), (..., d)."""
        return self.rows[torch.from_numpy(self.sources[links])]


@dataclass(frozen=True)
class Told:
    """What the nodes are told beside the vectors; see ``MixContext``.

    ``byzantine`` (n,): how many Byzantine neighbours each has; ``moved`` (n,) float64; ``memory`` (e, m): what the rule
    remembers of each link.
    """

    round: int = 0
    horizon: int | None = None
    byzantine: Integers | None = None
    losses: NetworkLosses | None = None
    moved: Tensor | None = None
    previous: Published | None = None
    memory: Tensor | None = None


@dataclass(frozen=True)
class LinkVerdicts:
    """What all nodes decided in one step, one entry a link, in the order of ``Links``.

    ``weights`` is what each sender got; ``distances`` and ``thresholds`` are NaN where the rule has none; ``scales``
    below 1 tell of clipping; ``reasons`` count into ``texts``. A rejected link's distance may be a lower bound.
    """

    accepted: NDArray[np.bool_]
    weights: Floats
    distances: Floats
    thresholds: Floats
    scales: Floats
    reasons: Integers
    texts: tuple[str, ...] = ("",)
    memory: Tensor | None = field(default=None, compare=False)

    @classmethod
    def unknown(cls, count: int, texts: tuple[str, ...] = ("",), memory: Tensor | None = None) -> Self:
        """Return verdicts to be filled in."""
        nothing = np.full(count, np.nan)
        accepted, reasons = np.zeros(count, np.bool_), np.zeros(count, np.int64)
        return cls(accepted, np.zeros(count), nothing, nothing.copy(), np.ones(count), reasons, texts, memory)

    def at(self, link: int) -> Verdict:
        """Return one link's verdict."""
        return Verdict(
            bool(self.accepted[link]),
            float(self.weights[link]),
            _known(self.distances[link]),
            _known(self.thresholds[link]),
            float(self.scales[link]),
            self.texts[self.reasons[link]],
        )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def mix_network(rule: Rule, own: Tensor, published: Published, links: Links, out: Tensor, told: Told) -> LinkVerdicts:
    """Write Rule(own_i, what reaches i) to row i of ``out`` for all nodes i.

    ``own`` and ``out`` are (n, d) float32 on one device; ``published.rows`` may be ``own``, ``out`` must not overlap
    them. All links are fresh.
    """
    if links.nodes < BATCHED_FROM:
        return mix_each(rule, own, published, links, out, told)
    if own.device.type == "cpu" and own.shape[1] >= LYING_FROM and isinstance(rule, GramRule):
        return mix_lying(rule, own, published, links, out, told)
    if not isinstance(rule, Mean | Balance) or own.device.type != "cpu":
        return mix_padded(rule, own, published, links, out, told)
    small = links.nodes < SPARSE_FROM
    # Of all rules the mean alone lets a model blow up, and then a codec's rounding shows any other order of additions.
    if own.shape[1] >= LONG_VECTOR or (small and isinstance(rule, Mean)):
        return mix_each(rule, own, published, links, out, told)
    if small:
        return mix_padded(rule, own, published, links, out, told)
    if isinstance(rule, Mean):
        return _mean(own, published, links, out)
    return _balance(rule, own, published, links, out, rule.radius(told.round, told.horizon))


def mix_each(rule: Rule, own: Tensor, published: Published, links: Links, out: Tensor, told: Told) -> LinkVerdicts:
    """Do what ``mix_network`` does by calling the rule for one node after the other."""
    texts = tuple(getattr(rule, "REASONS", ("",)))
    code = {text: number for number, text in enumerate(texts)}
    verdicts = LinkVerdicts.unknown(len(links.senders), texts, _memory(rule, links))
    for node in range(links.nodes):
        span = links.of(node)
        here = range(span.start, span.stop)
        received = [published.rows[int(source)] for source in published.sources[span]]
        result = rule(own[node], received, _context(told, links, node), out[node])
        for link, verdict in zip(here, result.verdicts, strict=True):
            verdicts.accepted[link], verdicts.weights[link] = verdict.accepted, verdict.weight
            verdicts.distances[link] = np.nan if verdict.distance is None else verdict.distance
            verdicts.thresholds[link] = np.nan if verdict.threshold is None else verdict.threshold
            verdicts.scales[link], verdicts.reasons[link] = verdict.scale, code[verdict.reason]
        if verdicts.memory is not None and result.memory is not None:
            verdicts.memory[span] = result.memory
    return verdicts


def _context(told: Told, links: Links, node: int) -> MixContext:
    span = links.of(node)
    judge, previous = told.losses, told.previous
    return MixContext(
        weights=links.weights[span].tolist(),
        freshness=[1.0] * (span.stop - span.start),
        round=told.round,
        horizon=told.horizon,
        byzantine=None if told.byzantine is None else int(told.byzantine[node]),
        losses=None
        if judge is None
        else lambda models: judge(torch.stack(list(models)), torch.full((len(models),), node)).tolist(),
        moved=None if told.moved is None else float(told.moved[node]),
        previous=None if previous is None else list(previous.along(np.arange(span.start, span.stop)).unbind(0)),
        memory=None if told.memory is None else told.memory[span],
    )


def mix_padded(rule: Rule, own: Tensor, published: Published, links: Links, out: Tensor, told: Told) -> LinkVerdicts:
    """Do what ``mix_network`` does by giving the rule many nodes at a time."""
    texts = tuple(getattr(rule, "REASONS", ("",)))
    verdicts = LinkVerdicts.unknown(len(links.senders), texts, _memory(rule, links))
    for nodes in _batches(links, own.shape[1]):
        places, present = links.padded(nodes)
        if not places.shape[1]:
            out[torch.from_numpy(nodes)] = own[torch.from_numpy(nodes)]
            continue
        mixed = rule.mix(_hood(own, published, links, told, nodes, places, present))
        out[torch.from_numpy(nodes)] = mixed.vector
        _note(verdicts, mixed, places[present], torch.from_numpy(present))
    return verdicts


def mix_lying(rule: GramRule, own: Tensor, published: Published, links: Links, out: Tensor, told: Told) -> LinkVerdicts:
    """Do what ``mix_network`` does without copying any vector: the rule decides for many nodes at a time."""
    verdicts = LinkVerdicts.unknown(len(links.senders), rule.REASONS, _memory(rule, links))
    most = int(np.diff(links.starts).max(initial=0))
    nothing = own.new_empty(links.nodes, 0), Published(published.rows[:, :0], published.sources)
    for nodes in _batches(links, max(most, 1)):
        places, present = links.padded(nodes)
        if not places.shape[1]:
            out[torch.from_numpy(nodes)] = own[torch.from_numpy(nodes)]
            continue
        hood = _hood(*nothing, links, told, nodes, places, present)
        mixed = rule.mix_lying(hood, [_neighbourhood(own, published, links, out, int(node)) for node in nodes])
        _note(verdicts, mixed, places[present], torch.from_numpy(present))
    return verdicts


def _neighbourhood(own: Tensor, published: Published, links: Links, out: Tensor, node: int) -> Neighbourhood:
    received = [published.rows[int(source)] for source in published.sources[links.of(node)]]
    return Neighbourhood(own[node], received, out[node])


def _memory(rule: Rule, links: Links) -> Tensor | None:
    if not rule.memory:
        return None
    return torch.full((len(links.senders), rule.memory), torch.nan, dtype=torch.float64)


def _hood(
    own: Tensor,
    published: Published,
    links: Links,
    told: Told,
    nodes: Integers,
    places: Integers,
    present: NDArray[np.bool_],
) -> Hood:
    device, index = own.device, torch.from_numpy(nodes)
    here = torch.from_numpy(present).to(device)
    weights = torch.from_numpy(np.where(present, links.weights[places], 0.0)).to(device)
    judge = told.losses

    def losses(models: Tensor) -> Tensor:
        assert judge is not None
        each = index.unsqueeze(-1).expand(models.shape[:-1])
        return judge(models.flatten(0, -2), each.flatten()).view(models.shape[:-1])

    return Hood(
        own=own[index],
        received=published.along(places),
        present=here,
        weights=weights,
        freshness=torch.ones_like(weights),
        round=told.round,
        horizon=told.horizon,
        byzantine=None if told.byzantine is None else torch.from_numpy(told.byzantine[nodes]).to(device),
        losses=None if judge is None else losses,
        moved=None if told.moved is None else told.moved[index],
        previous=None if told.previous is None else told.previous.along(places),
        memory=None if told.memory is None else told.memory[torch.from_numpy(places)],
    )


def _note(verdicts: LinkVerdicts, mixed: Mixed, links: Integers, present: Tensor) -> None:
    """Write one batch's verdicts to their ``links``, those of the places that are ``present``."""
    for into, values in (
        (verdicts.accepted, mixed.accepted),
        (verdicts.weights, mixed.weight),
        (verdicts.distances, mixed.distance),
        (verdicts.thresholds, mixed.threshold),
        (verdicts.scales, mixed.scale),
        (verdicts.reasons, mixed.reason),
    ):
        if values is not None:
            into[links] = values.cpu()[present].numpy()
    if verdicts.memory is not None and mixed.memory is not None:
        verdicts.memory[torch.from_numpy(links)] = mixed.memory.cpu()[present]


def _mean(own: Tensor, published: Published, links: Links, out: Tensor) -> LinkVerdicts:
    """out = (1 - W 1) own + W x with the sparse W (n, m): work and memory grow with the links, not with n²."""
    weights = links.weights.astype(np.float32)
    received = _sparse(weights, published.sources, links.starts, len(published.rows))
    own_weights = 1.0 - np.bincount(links.receivers, links.weights, links.nodes)
    width = max(1, CHUNK_ELEMENTS // len(published.rows))
    for low in range(0, own.shape[1], width):
        columns = slice(low, low + width)
        block = out.numpy()[:, columns]
        np.multiply(own.numpy()[:, columns], own_weights[:, None].astype(np.float32), out=block)
        block += received @ published.rows.numpy()[:, columns]
    verdicts = LinkVerdicts.unknown(len(links.senders))
    verdicts.accepted[:], verdicts.weights[:] = True, links.weights
    return verdicts


def _balance(
    rule: Balance, own: Tensor, published: Published, links: Links, out: Tensor, radius: float
) -> LinkVerdicts:
    """BALANCE along all links: differences of a few nodes' links at a time, then one sparse sum of the near ones."""
    models, public, mixed = own.numpy(), published.rows.numpy(), out.numpy()
    limits = np.minimum(radius * radius * _squares(models), FLOAT_MAX)
    squares = np.empty(len(links.senders))
    pull = 1.0 - rule.alpha
    verdicts = LinkVerdicts.unknown(len(links.senders))
    for first, last in _chunks(links, models.shape[1]):
        span = slice(int(links.starts[first]), int(links.starts[last]))
        receivers = links.receivers[span]
        with np.errstate(all="ignore"):  # a lie may overflow: its distance is then infinite, and it is dropped
            differences = public[published.sources[span]]
            differences -= models[receivers]
            squares[span] = _squares(differences)
        near = np.flatnonzero(squares[span] <= limits[receivers])
        counts = np.bincount(receivers[near] - first, minlength=last - first)
        share = (pull / np.maximum(counts, 1)).astype(np.float32)
        verdicts.weights[span][near] = (pull / np.maximum(counts, 1))[receivers[near] - first]
        starts = np.concatenate(([0], np.cumsum(counts)))
        total = _sparse(np.ones(len(near), np.float32), near, starts, len(differences)) @ differences
        total *= share[:, None]
        np.add(models[first:last], total, out=mixed[first:last])
    verdicts.accepted[:] = squares <= limits[links.receivers]
    verdicts.distances[:], verdicts.thresholds[:] = np.sqrt(squares), np.sqrt(limits)[links.receivers]
    return verdicts


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


def _batches(links: Links, size: int) -> Iterator[Integers]:
    """Yield nodes, fewest neighbours first, whose padded vectors fit in a temporary."""
    order = links.by_degree
    counts = np.maximum(np.diff(links.starts)[order], 1)
    limit = max(1, CHUNK_ELEMENTS // size)
    first = 0
    while first < len(order):
        # The last node of a batch has the most neighbours; all are padded to it.
        padded = counts[first:] * np.arange(1, len(order) - first + 1)
        last = first + max(1, int(np.searchsorted(padded, limit, side="right")))
        yield order[first:last]
        first = last
