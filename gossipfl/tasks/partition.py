"""Partitioners: how the examples of one labelled data set are dealt to nodes.

Every function returns one ascending index array per node, disjoint but for ``bootstrap``, and draws from ``rng``
alone. A split that cannot be made raises DataError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import DataError
from gossipfl.tasks.base import Partition

Labels = NDArray[Any]
Indices = list[NDArray[np.int64]]

REDRAWS = 200
"""How often a random split that leaves a node with too little is drawn again."""

FEW = 10
"""Least examples of a node in a random split, or a quarter of an even share if that is less."""


def split(labels: Labels, nodes: int, partition: Partition, rng: np.random.Generator) -> Indices:
    """Deal examples with integer ``labels`` (n,) to ``nodes`` as ``partition`` says; ``auto`` is iid here."""
    if nodes < 1:
        raise DataError(f"{nodes} nodes cannot share a data set; use at least 1")
    if partition.samples is not None:
        return bootstrap(labels, nodes, rng, partition)
    if len(labels) < nodes:
        raise DataError(
            f"{len(labels)} examples cannot be dealt to {nodes} nodes; "
            "use fewer nodes, or partition.samples to draw with replacement"
        )
    match partition.name:
        case "auto" | "iid":
            return iid(labels, nodes, rng)
        case "dirichlet":
            return dirichlet(labels, nodes, rng, alpha=partition.alpha)
        case "dirichlet-even":
            return dirichlet_even(labels, nodes, rng, alpha=partition.alpha)
        case "label-groups":
            return label_groups(labels, nodes, rng, h=partition.h)
        case "shards":
            return shards(labels, nodes, rng)
        case "files":
            raise DataError(
                'partition "files" needs a task with one file per site; '
                "choose one of: iid, dirichlet, dirichlet-even, label-groups, shards"
            )
        case unknown:
            raise DataError(
                f'partition "{unknown}" is unknown; '
                "choose one of: auto, iid, dirichlet, dirichlet-even, label-groups, shards, files"
            )


def iid(labels: Labels, nodes: int, rng: np.random.Generator) -> Indices:
    """Deal shuffled examples evenly: share sizes differ by at most one."""
    return [np.sort(share) for share in np.array_split(rng.permutation(len(labels)), nodes)]


def bootstrap(labels: Labels, nodes: int, rng: np.random.Generator, partition: Partition) -> Indices:
    """Draw ``partition.samples`` examples for each node, all alike and with replacement: shares overlap."""
    samples = partition.samples
    if samples is None or samples < 1:
        raise DataError(f"partition samples = {samples} leaves nothing to train on; use at least 1")
    if partition.name not in ("auto", "iid"):
        raise DataError(f'partition "{partition.name}" deals each example once; leave samples out, or choose iid')
    return [np.sort(rng.integers(0, len(labels), size=samples)) for _ in range(nodes)]


def dirichlet(labels: Labels, nodes: int, rng: np.random.Generator, *, alpha: float) -> Indices:
    """Cut each class in proportions drawn from Dirichlet(alpha, ..., alpha) (Hsu et al., 2019).

    Small ``alpha`` gives each node few classes. Drawn again, up to REDRAWS times, while a node has too
    little.
    """
    _check_alpha(alpha)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def draw() -> Indices:
        pieces: list[list[NDArray[np.int64]]] = [[] for _ in range(nodes)]
        for members in classes:
            shares = rng.dirichlet(np.full(nodes, alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for node, piece in enumerate(np.split(rng.permutation(members), cuts)):
                pieces[node].append(piece)
        return [np.sort(np.concatenate(parts)) for parts in pieces]

    return _drawn(draw, len(labels), nodes, f"dirichlet with alpha = {alpha}", "a larger alpha")


def dirichlet_even(labels: Labels, nodes: int, rng: np.random.Generator, *, alpha: float) -> Indices:
    """Give all nodes as many examples, each of a class mix of its own q ~ Dirichlet(alpha, ..., alpha).

    Nodes take turns in random order and draw without replacement (Hsu et al., 2019, section 3); a class that is used
    up leaves its share to the others. Works for any number of nodes, where ``dirichlet`` leaves some with next to
    nothing.
    """
    _check_alpha(alpha)
    pools = [list(rng.permutation(np.flatnonzero(labels == label))) for label in np.unique(labels)]
    sizes = [len(part) for part in np.array_split(np.arange(len(labels)), nodes)]
    result: Indices = [np.empty(0, dtype=np.int64)] * nodes
    for node in rng.permutation(nodes):
        mix = rng.dirichlet(np.full(len(pools), alpha))
        taken: list[int] = []
        while len(taken) < sizes[node]:
            left = np.array([len(pool) for pool in pools])
            wanted = np.where(left > 0, mix, 0.0)
            wanted = wanted if wanted.sum() > 0 else left.astype(float)
            counts = np.minimum(rng.multinomial(sizes[node] - len(taken), wanted / wanted.sum()), left)
            for pool, count in zip(pools, counts, strict=True):
                taken += [pool.pop() for _ in range(count)]
        result[node] = np.sort(np.array(taken, dtype=np.int64))
    return result


def _check_alpha(alpha: float) -> None:
    if not (alpha > 0 and np.isfinite(alpha)):
        raise DataError(f"dirichlet alpha = {alpha} is no concentration; use a finite number above 0")


def label_groups(labels: Labels, nodes: int, rng: np.random.Generator, *, h: float) -> Indices:
    """Send an example of class y to group y with probability h, else elsewhere (Fang et al., 2020).

    Node i belongs to group i mod G, where G is the number of classes M, or ``nodes`` if that is less (class
    y then belongs to group y mod G). Each other group gets the example with probability (1-h)/(G-1), each
    node of a group is equally likely; h = 1/G is iid. Drawn again, up to REDRAWS times, while a node has
    too little.
    """
    if not 0 <= h <= 1:
        raise DataError(f"label-groups h = {h} is no probability; use a number in [0, 1]")
    classes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    groups = min(int(classes.max()) + 1, nodes)
    members = np.bincount(np.arange(nodes) % groups)

    def draw() -> Indices:
        home = classes % groups
        away = (home + rng.integers(1, max(groups, 2), size=len(home))) % groups
        group = np.where(rng.random(len(home)) < h, home, away)
        node = group + groups * rng.integers(0, members[group])
        return [np.flatnonzero(node == index) for index in range(nodes)]

    return _drawn(draw, len(labels), nodes, f"label-groups with h = {h}", "a smaller h")


def shards(labels: Labels, nodes: int, rng: np.random.Generator) -> Indices:
    """Give node i examples of one class only, class i mod M; nodes with the same class share it evenly.

    With fewer nodes than classes, the classes past the last node are held by nobody.
    """
    classes = np.unique(labels)
    result: Indices = [np.empty(0, dtype=np.int64)] * nodes
    for position, label in enumerate(classes[:nodes]):
        owners = range(position, nodes, len(classes))
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < len(owners):
            raise DataError(
                f"class {label} has {len(members)} examples for the {len(owners)} nodes that shards gives it to; "
                "use fewer nodes"
            )
        for node, share in zip(owners, np.array_split(members, len(owners)), strict=True):
            result[node] = np.sort(share)
    return result


def _drawn(draw: Callable[[], Indices], samples: int, nodes: int, what: str, mend: str) -> Indices:
    """Return the first draw that leaves no node with too little."""
    enough = max(1, min(FEW, samples // (4 * nodes)))
    for _ in range(REDRAWS):
        shares = draw()
        if min(len(share) for share in shares) >= enough:
            return shares
    raise DataError(
        f"{what} left a node with under {enough} examples in each of {REDRAWS} draws; "
        f"use {mend} or fewer than {nodes} nodes"
    )
