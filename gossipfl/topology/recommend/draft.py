"""A graph that is being rewired, within limits on degree, links, length and cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from gossipfl.errors import TopologyError
from gossipfl.topology.files.costs import Costs
from gossipfl.topology.graph import Edge, Topology
from gossipfl.topology.recommend.lengths import ruler

MAX_NODES = 2000  # matrices of all pairs are kept


@dataclass(frozen=True, slots=True)
class Limits:
    """What new links must keep to; None: no limit. Links that are there already may stay whatever they are.

    ``max_degree``: neighbours of a node that gets a new link. ``max_links``: of the whole graph. ``max_length``: of a
    new link, by ``metric`` (``lengths.ruler``). ``costs``: which pairs may be linked, and at what cost; without them a
    link costs its length. ``budget``: what the new links may cost in all.
    """

    max_degree: int | None = None
    max_links: int | None = None
    max_length: float | None = None
    costs: Costs | None = None
    budget: float | None = None
    metric: str = "auto"

    def check(self, topology: Topology) -> None:
        """Raise ``TopologyError`` for a limit that cannot be kept or means nothing."""
        if topology.nodes > MAX_NODES:
            raise TopologyError(
                f'topology "{topology.name}" has {topology.nodes} nodes; links are proposed for at most {MAX_NODES}; '
                "take a part of it"
            )
        if self.max_degree is not None and self.max_degree < 1:
            raise TopologyError(f"max degree is {self.max_degree}; give at least 1")
        if self.max_links is not None and self.max_links < len(topology.edges):
            raise TopologyError(
                f'max links is {self.max_links}, but topology "{topology.name}" has {len(topology.edges)} links; '
                f"give at least {len(topology.edges)}"
            )
        for name, value in (("max length", self.max_length), ("budget", self.budget)):
            if value is not None and not value > 0:
                raise TopologyError(f"{name} is {value:g}; give more than 0")


class Draft:
    """The links as they are now, and which others the limits still allow."""

    def __init__(self, topology: Topology, limits: Limits) -> None:
        import numpy as np

        limits.check(topology)
        self.original = topology
        self.limits = limits
        self._links = set(topology.edges)
        self._linked = np.eye(topology.nodes, dtype=bool)
        for i, j in topology.edges:
            self._linked[i, j] = self._linked[j, i] = True
        self._allowed, self._cost = _possible(topology, limits)

    @property
    def degrees(self) -> Any:
        """Number of neighbours of each node, (nodes,)."""
        return self._linked.sum(axis=1) - 1

    @property
    def links(self) -> tuple[Edge, ...]:
        """The links, ascending."""
        return tuple(sorted(self._links))

    @property
    def added(self) -> tuple[Edge, ...]:
        """The links that the original graph does not have."""
        return tuple(sorted(self._links.difference(self.original.edges)))

    @property
    def removed(self) -> tuple[Edge, ...]:
        """The original links that are gone."""
        return tuple(sorted(set(self.original.edges) - self._links))

    @property
    def spent(self) -> float | None:
        """What the new links cost; None where links have neither cost nor length."""
        return None if self._cost is None else float(sum(self._cost[i, j] for i, j in self.added))

    def open_pairs(self) -> Any:
        """Return which pairs may be linked now, (nodes, nodes), symmetric."""
        import numpy as np

        if self.limits.max_links is not None and len(self._links) >= self.limits.max_links:
            return np.zeros_like(self._linked)
        open_ = self._allowed & ~self._linked
        if self.limits.max_degree is not None:
            room = self.degrees < self.limits.max_degree
            open_ &= room[:, None] & room
        if self.limits.budget is not None and self._cost is not None:
            open_ &= self._cost <= self.limits.budget - (self.spent or 0.0)
        return open_

    def may_exchange(self, gone: Iterable[Edge], come: Iterable[Edge]) -> bool:
        """Tell whether the links ``come`` may take the place of ``gone`` where no node's degree changes."""
        before, come = self.spent or 0.0, tuple(come)
        if not all(self._allowed[pair] and not self._linked[pair] for pair in come):
            return False
        if self.limits.budget is None or self._cost is None:
            return True
        original = set(self.original.edges)
        change = sum(self._cost[pair] for pair in come if pair not in original)
        change -= sum(self._cost[pair] for pair in gone if pair not in original)
        return bool(before + change <= self.limits.budget)

    def exchange(self, gone: Iterable[Edge], come: Iterable[Edge]) -> None:
        """Take out the links ``gone`` and put in the links ``come``."""
        for pairs, linked in ((gone, False), (come, True)):
            for i, j in pairs:
                self._linked[i, j] = self._linked[j, i] = linked
                (self._links.add if linked else self._links.discard)((i, j))

    def topology(self) -> Topology:
        """Return the graph as it is now, with what was changed among its repairs."""
        added, removed = len(self.added), len(self.removed)
        if not added and not removed:
            return self.original
        change = f"recommended: {_count(added)} added, {_count(removed)} removed"
        return replace(self.original, edges=self.links, repairs=(*self.original.repairs, change))


def _count(links: int) -> str:
    return f"{links} link" if links == 1 else f"{links} links"


def _possible(topology: Topology, limits: Limits) -> tuple[Any, Any]:
    """Return which pairs may ever be linked, (nodes, nodes) bool, and what each would cost, or None."""
    import numpy as np

    allowed = ~np.eye(topology.nodes, dtype=bool)
    lengths = None
    if _measured(topology, limits):
        nodes = np.arange(topology.nodes)
        lengths = ruler(topology, limits.metric).lengths(nodes[:, None], nodes)
        if limits.max_length is not None:
            allowed &= lengths <= limits.max_length
    if limits.costs is None:
        return allowed, lengths
    cost = np.full(allowed.shape, np.inf)
    for (i, j), value in limits.costs.items():
        cost[i, j] = cost[j, i] = value
    return allowed & np.isfinite(cost), cost


def _measured(topology: Topology, limits: Limits) -> bool:
    needed = limits.max_length is not None or (limits.budget is not None and limits.costs is None)
    return needed or topology.positions is not None
