"""Sequences of graphs by name, another graph each round, and the one entry that makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType

from gossipfl.digest import derive_seed
from gossipfl.errors import TopologyError
from gossipfl.topology.families.random_graphs import hops_drawn, hops_wanted
from gossipfl.topology.families.registry import make_topology
from gossipfl.topology.limits import checked_nodes
from gossipfl.topology.options import Option, Options, chosen, near
from gossipfl.topology.sequences.schedule import MixingSequence, RoundLinks

__all__ = ["SEQUENCES", "MixingSequence", "RoundLinks", "SequenceFamily", "is_sequence", "make_sequence"]


@dataclass(frozen=True, slots=True)
class SequenceFamily:
    """A family of sequences: ``build(nodes, options, seed)`` makes one from a run's seed.

    ``least`` is the smallest number of nodes.
    """

    summary: str
    build: Callable[[int, Options, int], MixingSequence]
    least: int = 2
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))


def _root(seed: int) -> int:
    return derive_seed(seed, "topology")


# The modules that make round links load numpy, which a list of names can do without.


def _one_peer_exponential(nodes: int, _options: Options, _seed: int) -> MixingSequence:
    from gossipfl.topology.sequences.pairwise import OnePeerExponential

    return OnePeerExponential(nodes)


def _base_k(nodes: int, options: Options, _seed: int) -> MixingSequence:
    from gossipfl.topology.sequences.finite_time import BaseGraph

    return BaseGraph(nodes, options["k"])


def _equistatic(nodes: int, options: Options, seed: int) -> MixingSequence:
    from gossipfl.topology.sequences.equi import EquiStatic

    return EquiStatic(nodes, _connecting_hops(nodes, hops_wanted("equistatic", nodes, options["m"]), seed))


def _equidyn(nodes: int, options: Options, seed: int) -> MixingSequence:
    from gossipfl.topology.sequences.equi import EquiDyn

    m, eta = options["m"], options["eta"]
    if not 0 < eta <= 1:
        raise TopologyError(f'topology "equidyn": eta is {eta:g}; give a share above 0 and at most 1')
    hops = () if m is None else _connecting_hops(nodes, hops_wanted("equidyn", nodes, m), seed)
    return EquiDyn(nodes, _root(seed), hops, eta, undirected=options["variant"] == "undirected")


def _connecting_hops(nodes: int, m: int, seed: int) -> tuple[int, ...]:
    """Draw ``m`` hops, again until no number but 1 divides all of them and ``nodes``: until they reach every node.

    A single hop does with probability φ(n) / (n - 1), more than one in five for any n up to the limit.
    """
    draws = (hops_drawn(nodes, m, derive_seed(_root(seed), "hops", attempt)) for attempt in count())
    return next(hops for hops in draws if math.gcd(nodes, *hops) == 1)


def _epidemic(nodes: int, options: Options, seed: int) -> MixingSequence:
    from gossipfl.topology.sequences.epidemic import EpidemicLocal, EpidemicOracle, fanout

    variant = options["variant"]
    s = fanout(nodes, options["s"], variant)
    return (EpidemicOracle if variant == "oracle" else EpidemicLocal)(nodes, s, _root(seed))


def _matching(nodes: int, options: Options, seed: int) -> MixingSequence:
    from gossipfl.topology.sequences.pairwise import Matching

    graph = options["graph"]
    return Matching(nodes, _root(seed), None if graph is None else make_topology(graph, nodes, None, seed))


SEQUENCES: Mapping[str, SequenceFamily] = MappingProxyType(
    {
        "one-peer-exponential": SequenceFamily(
            "each node hears the one 1, 2, 4, 8, ... places on, in turn", _one_peer_exponential
        ),
        "base-k": SequenceFamily(
            "at most k neighbours a round; all nodes have the exact average after each period",
            _base_k,
            options={"k": Option(int, 1, "most neighbours of a node in a round")},
        ),
        "equistatic": SequenceFamily(
            "each node hears those at hops drawn at random; directed, the same in every round",
            _equistatic,
            options={"m": Option(int, None, "hops drawn (default: ceil(log2 n))")},
        ),
        "equidyn": SequenceFamily(
            "each node hears the one at a hop that is drawn each round",
            _equidyn,
            options={
                "m": Option(int, None, "hops to draw from, themselves drawn once (default: all)"),
                "eta": Option(float, 0.5, "share of the hop in the average"),
                "variant": Option(
                    str, "directed", "directed, or undirected: pairs at that hop", ("directed", "undirected")
                ),
            },
        ),
        "epidemic": SequenceFamily(
            "each node's model goes to s others drawn each round, and uniform averages are taken",
            _epidemic,
            options={
                "s": Option(int, None, "others that a model goes to (default: ceil(log2 n), made even for oracle)"),
                "variant": Option(
                    str, "oracle", "oracle: a random graph of equal degrees; local: own choice", ("oracle", "local")
                ),
            },
        ),
        "matching": SequenceFamily(
            "pairs drawn each round average, as many as fit side by side",
            _matching,
            options={"graph": Option(str, None, "a family, library graph or file whose edges pair (default: any two)")},
        ),
    }
)


def is_sequence(name: str) -> bool:
    """Tell whether ``name`` is a sequence, for ``make_sequence``; other names are for ``make_topology``."""
    return name in SEQUENCES


def make_sequence(
    name: str, nodes: int | None = None, options: Mapping[str, object] | None = None, seed: int = 0
) -> MixingSequence:
    """Return the sequence ``name``. ``seed`` is the run's seed, of which ``derive_seed(seed, "topology")`` is used.

    Raises ``TopologyError``.
    """
    family = SEQUENCES.get(name)
    if family is None:
        raise TopologyError(
            f'topology "{name}" is no sequence of graphs; {near(name, SEQUENCES)}choose one of: {", ".join(SEQUENCES)}'
        )
    nodes = checked_nodes(name, nodes, family.least)
    return family.build(nodes, chosen(name, family.options, {} if options is None else options), seed)
