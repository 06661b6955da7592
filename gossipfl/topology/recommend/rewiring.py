"""How to mend a graph: new links and exchanged ones that let gossip mix faster, within limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.analysis.spectra import DENSE_NODES, VECTOR_NODES, fiedler, laplacian_csr, mixing_gap
from gossipfl.topology.graph import Edge, Topology
from gossipfl.topology.recommend.draft import Draft, Limits
from gossipfl.topology.weights import metropolis_links, mixing_csr

TRIED = 8  # of the most promising links or exchanges, how many are measured before one is taken
FEW = 3  # the same for graphs of more than ``VECTOR_NODES`` nodes, where a measurement takes long
REFRESHES = 50  # Fiedler vectors that the links for a Byzantine bound may take
PAIRS = 100_000  # pairs of links among which one search for an exchange looks
FRUITLESS = 3  # searches in a row without a find, after which there are no more
GAIN = 1e-9  # of the spectral gap, below which an exchange is not worth it


Step = tuple[tuple[Edge, ...], tuple[Edge, ...]]
"""Links that go and links that come."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to propose. ``byzantine`` F: 2F + 1 neighbours for each node, that an honest majority be possible whoever F
    lie; ``add``: at most so many new links, None: as many as F needs; ``swap``: at most so many exchanges of two links.
    """

    byzantine: int = 0
    add: int | None = None
    swap: int = 0

    def check(self, topology: Topology, limits: Limits) -> None:
        """Raise ``TopologyError`` for a wish that no graph of so many nodes within the limits can fulfil."""
        for name, value in (("links to add", self.add or 0), ("exchanges", self.swap), ("Byzantine", self.byzantine)):
            if value < 0:
                raise TopologyError(f"{name}: {value} is negative; give at least 0")
        wanted = 2 * self.byzantine + 1
        if not self.byzantine:
            return
        if wanted > topology.nodes - 1:
            raise TopologyError(
                f'topology "{topology.name}": with {self.byzantine} Byzantine each node wants {wanted} neighbours, but '
                f"has {topology.nodes - 1} others; give at most {(topology.nodes - 2) // 2} Byzantine"
            )
        if limits.max_degree is not None and limits.max_degree < wanted:
            raise TopologyError(
                f"with {self.byzantine} Byzantine each node wants {wanted} neighbours, more than the max degree "
                f"{limits.max_degree}; raise it, or give fewer Byzantine"
            )


@dataclass(frozen=True, slots=True)
class Proposal:
    """A graph as it is and as it could be. ``short``: nodes that still have fewer than 2F + 1 neighbours."""

    before: Topology
    after: Topology
    added: tuple[Edge, ...]
    removed: tuple[Edge, ...]
    cost: float | None
    short: tuple[int, ...]


def recommend(topology: Topology, wish: Wish, limits: Limits, seed: int = 0) -> Proposal:
    """Return a proposal for a connected ``topology``: first the links that F calls for, then others, then exchanges.

    Additional links are chosen greedily by the Fiedler vector, of the most promising the one that measures best, and
    the best prefix of them is kept; exchanges are a local search. Both only ever raise the spectral gap of Metropolis
    weights, while links for F may lower it. Work is bounded by numbers of eigenvalues, so that the same ``seed`` gives
    the same proposal. Raises ``TopologyError``.
    """
    if not topology.is_connected:
        raise TopologyError(f'topology "{topology.name}" is not connected; join its parts first')
    wish.check(topology, limits)
    draft = Draft(topology, limits)
    left = math.inf if wish.add is None else wish.add
    raised = _raise_degrees(draft, 2 * wish.byzantine + 1, left) if wish.byzantine else 0
    _add_links(draft, 0 if wish.add is None else wish.add - raised)
    _swap_links(draft, wish.swap, Random(seed))
    short = tuple(
        node for node, degree in enumerate(draft.degrees.tolist()) if wish.byzantine and degree <= 2 * wish.byzantine
    )
    return Proposal(topology, draft.topology(), draft.added, draft.removed, draft.spent, short)


def _raise_degrees(draft: Draft, wanted: int, left: float) -> int:
    """Link nodes with fewer than ``wanted`` neighbours, with at most ``left`` links; return how many it took.

    The node with fewest ways left to get its links comes first, and its partner is one that lacks links too if any can
    be had; of several the one farthest away by the Fiedler vector.
    """
    import numpy as np

    missing = int(np.maximum(wanted - draft.degrees, 0).sum())
    refresh = max(1, math.ceil(missing / REFRESHES))
    taken = 0
    vector: Any = None
    while taken < left:
        lacking = wanted - draft.degrees
        open_ = draft.open_pairs()
        ways = open_.sum(axis=1)
        waiting = np.flatnonzero((lacking > 0) & (ways > 0))
        if not len(waiting):
            break
        if taken % refresh == 0:
            vector = fiedler(laplacian_csr(draft.topology()))[1]
        node = int(waiting[np.argmin((ways - lacking)[waiting])])
        partners = np.flatnonzero(open_[node])
        urgent = lacking[partners] > 0
        partners = partners[urgent] if urgent.any() else partners
        partner = int(partners[np.argmax((vector[partners] - vector[node]) ** 2)])
        draft.exchange((), [(min(node, partner), max(node, partner))])
        taken += 1
    return taken


def _add_links(draft: Draft, number: int) -> None:
    """Add up to ``number`` links one by one, each the best of the promising, as long as it is worth it."""
    log = _Log(draft)
    while len(log.steps) < number and log.take([((), (pair,)) for pair in _promising_links(draft)]):
        pass
    log.keep_best()


def _swap_links(draft: Draft, number: int, generator: Random) -> None:
    """Exchange up to ``number`` times two links for two others between the same nodes, each time for the better."""
    log = _Log(draft)
    fruitless = 0
    while len(log.steps) < number and fruitless < FRUITLESS:
        if log.take(list(_promising_swaps(draft, generator)), only_better=True):
            fruitless = 0
        else:
            # All pairs of a small graph's links were looked at: to look again would find the same.
            fruitless = FRUITLESS if len(draft.links) ** 2 <= PAIRS else fruitless + 1
    log.keep_best()


class _Log:
    """The steps of a search, and after which of them the spectral gap was largest.

    On a graph with symmetries the second eigenvalue is a multiple one, and it takes several links to raise it. So steps
    are judged by the gap first and then by Kemeny's constant Σ 1 / (1 - λᵢ), which tells of all the slow vectors.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.steps: list[Step] = []
        self._merit = _merit(draft.topology())
        self._best = self._merit[0]
        self._kept = 0

    def take(self, steps: Sequence[Step], *, only_better: bool = False) -> bool:
        """Take the best of ``steps``, if any; of those that are ``only_better`` than the graph as it is."""
        measured = [(_merit(_with(self._draft, gone, come)), (gone, come)) for gone, come in steps]
        merit, step = max(measured, key=lambda entry: entry[0], default=(self._merit, None))
        if step is None or (only_better and not _better(merit, self._merit)):
            return False
        self._draft.exchange(*step)
        self.steps.append(step)
        self._merit = merit
        if merit[0] > self._best + GAIN:
            self._best, self._kept = merit[0], len(self.steps)
        return True

    def keep_best(self) -> None:
        """Undo the steps after the one with the largest gap."""
        for gone, come in reversed(self.steps[self._kept :]):
            self._draft.exchange(come, gone)


def _promising_links(draft: Draft) -> list[Edge]:
    """Return the open pairs (i, j) with the largest (vᵢ - vⱼ)², v the Fiedler vector, plain and by Metropolis weights.

    To first order that is by how much a link raises the second smallest eigenvalue.

    Ghosh and Boyd, "Growing well-connected graphs", IEEE Conference on Decision and Control, 2006.
    """
    import numpy as np

    topology = draft.topology()
    first, second = np.nonzero(np.triu(draft.open_pairs()))
    pairs: dict[Edge, None] = {}
    for vector in (fiedler(laplacian_csr(topology))[1], _slowest(topology)):
        order = np.argsort(-((vector[first] - vector[second]) ** 2), kind="stable")[: _tried(topology)]
        pairs |= dict.fromkeys(zip(first[order].tolist(), second[order].tolist(), strict=True))
    return list(pairs)


def _promising_swaps(draft: Draft, generator: Random) -> Iterator[Step]:
    """Yield some exchanges of (a, b), (c, d) for (a, c), (b, d), the best first by first order.

    No degree changes, so no other Metropolis weight does: to first order the gap grows by the new links' w (xᵢ - xⱼ)²
    less the old ones', x the vector of the gap.
    """
    import numpy as np

    topology = draft.topology()
    x = _slowest(topology)
    links = np.asarray(topology.edges, dtype=np.int64)
    one, two = _link_pairs(len(links), generator)
    a, b = links[one].T
    c, d = links[two].T
    lost = metropolis_links(topology) * (x[links[:, 0]] - x[links[:, 1]]) ** 2
    degrees = draft.degrees

    def gain(i: Any, j: Any) -> Any:
        return (x[i] - x[j]) ** 2 / (1 + np.maximum(degrees[i], degrees[j]))

    gone = lost[one] + lost[two]
    gains = np.concatenate([gain(a, c) + gain(b, d) - gone, gain(a, d) + gain(b, c) - gone])
    found = 0
    for place in np.argsort(-gains, kind="stable").tolist():
        if gains[place] <= 0 or found == _tried(topology):
            return
        pair = place % len(one)
        i, j, k, m = (int(node) for node in (*links[one[pair]], *links[two[pair]]))
        ends = ((i, k), (j, m)) if place < len(one) else ((i, m), (j, k))
        come = (_edge(*ends[0]), _edge(*ends[1]))
        old = ((i, j), (k, m))
        if len({i, j, k, m}) == 4 and draft.may_exchange(old, come):
            found += 1
            yield old, come


def _link_pairs(links: int, generator: Random) -> tuple[Any, Any]:
    """Return the numbers of pairs of links: all of a small graph, else ``PAIRS`` drawn ones."""
    import numpy as np

    if links**2 <= PAIRS:
        return np.triu_indices(links, 1)
    drawn = np.random.default_rng(generator.getrandbits(63)).integers(links, size=(2, PAIRS))
    return drawn[0], drawn[1]


def _edge(i: int, j: int) -> Edge:
    return (i, j) if i < j else (j, i)


def _tried(topology: Topology) -> int:
    return TRIED if topology.nodes <= VECTOR_NODES else FEW


def _with(draft: Draft, gone: Iterable[Edge], come: Iterable[Edge]) -> Topology:
    return replace(draft.original, edges=tuple(sorted(set(draft.links).difference(gone).union(come))))


def _merit(topology: Topology) -> tuple[float, float]:
    """Return the spectral gap, to ``GAIN``, and minus Kemeny's constant, where both are larger for the better graph."""
    import numpy as np

    mixing = mixing_csr(topology)
    if topology.nodes > DENSE_NODES:
        return round(mixing_gap(topology, mixing) / GAIN) * GAIN, 0.0
    spectrum = np.linalg.eigvalsh(mixing.toarray())
    gap = 1.0 - max(spectrum[-2], -spectrum[0])
    if gap < GAIN:
        return 0.0, -math.inf  # disconnected
    return round(gap / GAIN) * GAIN, -float(np.sum(1.0 / (1.0 - spectrum[:-1])))


def _better(merit: tuple[float, float], than: tuple[float, float]) -> bool:
    return merit[0] > than[0] or (merit[0] == than[0] and merit[1] > than[1] * (1.0 - GAIN))


def _slowest(topology: Topology) -> Any:
    """Return the vector, (nodes,), that Metropolis weights forget last among those of positive eigenvalue."""
    from scipy.sparse import eye_array

    return fiedler((eye_array(topology.nodes, format="csr") - mixing_csr(topology)).tocsr())[1]
