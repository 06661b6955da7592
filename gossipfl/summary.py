"""``summary.json``: one run in numbers. What a run cannot know is null, never invented."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from gossipfl import __version__

if TYPE_CHECKING:
    from gossipfl.config import RunSpec
    from gossipfl.records import Event, NodeRound

SCHEMA = 1

FAULT_EVENTS = frozenset(
    {
        "broker_restarted",
        "died",
        "divergence",
        "initial_model_differs",
        "join_timeout",
        "link-down",
        "neighbour_lost",
        "neighbour_refused",
        "peer_muted",
    }
)
"""Events that a summary lists under ``faults``; what lossy links make routine (a resync, a miss) is none."""

MAX_FAULTS = 200
"""Most faults that a summary lists one by one; ``fault_counts`` counts all of them."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the engine knows of a run besides its rounds and events; None where it cannot know.

    ``topology_edges`` counts edges; ``startup_s`` is the time from the command's start to the first round;
    ``vector_digests`` maps each honest node to the hex digest of its final vector; ``consensus_distance`` is
    sqrt(mean_i ||x_i - mean_j x_j||^2) over honest nodes; ``peak_rss_bytes`` sums all processes; ``lost``
    nodes did not finish, and their last evaluations are left out of the results.
    """

    engine: str
    transport: str | None = None
    model_parameters: int | None = None
    byzantine: Sequence[int] = ()
    topology_name: str | None = None
    topology_edges: int | None = None
    spectral_gap: float | None = None
    wall_s: float | None = None
    startup_s: float | None = None
    cores: int | None = None
    consensus_distance: float | None = None
    vector_digests: Mapping[int, str] = field(default_factory=dict)
    peak_rss_bytes: int | None = None
    lost: Collection[int] = ()


class RunStatistics:
    """Everything a summary needs of a run's rounds and events, gathered as they come."""

    def __init__(self) -> None:
        self.last_evaluation: dict[int, NodeRound] = {}
        self.rounds_done: dict[int, int] = {}
        self.faults: list[dict[str, Any]] = []
        self.fault_counts: dict[str, int] = {}
        self.verdicts = dict.fromkeys(
            ("honest_accepted", "honest_rejected", "byzantine_accepted", "byzantine_rejected"), 0
        )
        self._times = {name: array("d") for name in ("round_s", "train_s", "train_cpu_s")}
        self._bytes_sent = 0
        self._bytes_rows = 0

    def add_event(self, event: Event) -> None:
        """Note an event if it is a fault."""
        if event.event in FAULT_EVENTS:
            self.fault_counts[event.event] = self.fault_counts.get(event.event, 0) + 1
            if len(self.faults) < MAX_FAULTS:
                self.faults.append({"t": event.t_s, "node": event.node, "event": event.event, **event.fields})

    def add_round(self, row: NodeRound) -> None:
        """Add a node's round."""
        self.rounds_done[row.node] = max(self.rounds_done.get(row.node, 0), row.round + 1)
        for name, values in self._times.items():
            value = getattr(row, name)
            if value is not None:
                values.append(value)
        if row.bytes_sent is not None:
            self._bytes_sent += row.bytes_sent
            self._bytes_rows += 1
        if row.byzantine:
            return
        self.verdicts["honest_accepted"] += row.accepted_honest
        self.verdicts["honest_rejected"] += row.rejected_honest
        self.verdicts["byzantine_accepted"] += row.accepted_byzantine
        self.verdicts["byzantine_rejected"] += row.rejected_byzantine
        if row.test_loss is not None or row.test_accuracy is not None:
            self.last_evaluation[row.node] = row

    def rounds_done_by_all(self, lost: Collection[int] = ()) -> int:
        """Return the number of rounds that every node but the ``lost`` ones has done."""
        return min((done for node, done in self.rounds_done.items() if node not in lost), default=0)

    def median(self, name: str) -> float | None:
        """Return the median of ``round_s``, ``train_s`` or ``train_cpu_s`` over nodes and rounds."""
        return median(self._times[name]) if self._times[name] else None

    @property
    def bytes_sent_per_node_per_round(self) -> float | None:
        """Mean over all nodes and rounds for which bytes were counted."""
        return self._bytes_sent / self._bytes_rows if self._bytes_rows else None

    def results(self, lost: Collection[int] = ()) -> dict[str, Any]:
        """Return ``loss``, ``accuracy`` and the ``metrics``, each as a spread over honest nodes or None."""
        rows = {node: row for node, row in sorted(self.last_evaluation.items()) if node not in lost}
        names = dict.fromkeys(name for row in rows.values() for name in row.metrics)

        def of_metric(name: str) -> dict[str, Any] | None:
            return _spread({node: row.metrics.get(name) for node, row in rows.items()})

        return {
            "accuracy": _spread({node: row.test_accuracy for node, row in rows.items()}),
            "loss": _spread({node: row.test_loss for node, row in rows.items()}),
            "metrics": {name: _spread({node: row.metrics.get(name) for node, row in rows.items()}) for name in names},
        }


def summarise(spec: RunSpec, facts: RunFacts, statistics: RunStatistics) -> dict[str, Any]:
    """Return the contents of ``summary.json``."""
    return {
        "schema": SCHEMA,
        "engine": facts.engine,
        "transport": facts.transport,
        "task": spec.task.name,
        "model_parameters": facts.model_parameters,
        "nodes": spec.nodes,
        "byzantine": sorted(facts.byzantine),
        "topology": {
            "name": facts.topology_name or spec.topology.name,
            "edges": facts.topology_edges,
            "spectral_gap": facts.spectral_gap,
        },
        "rule": spec.rule.name,
        "attack": spec.attack.name,
        "codec": spec.codec.name,
        "mode": spec.mode,
        "rounds": spec.rounds,
        "rounds_done": statistics.rounds_done_by_all(facts.lost),
        "seed": spec.seed,
        "wall_s": facts.wall_s,
        "startup_s": facts.startup_s,
        "round_s_median": statistics.median("round_s"),
        "train_s_median": statistics.median("train_s"),
        "train_cpu_s_median": statistics.median("train_cpu_s"),
        "cores": facts.cores,
        "bytes_sent_per_node_per_round": statistics.bytes_sent_per_node_per_round,
        **statistics.results(facts.lost),
        "consensus_distance": facts.consensus_distance,
        "filter": dict(statistics.verdicts),
        "faults": list(statistics.faults),
        "fault_counts": dict(statistics.fault_counts),
        "vector_digest": {str(node): text for node, text in sorted(facts.vector_digests.items())},
        "peak_rss_bytes": facts.peak_rss_bytes,
        "version": __version__,
    }


def quantity(value: float, unit: str) -> str:
    """Return a quantity with a decimal prefix: ``quantity(814_600, "B")`` is ``815 kB``."""
    for prefix in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} T{unit}"


def _spread(values: Mapping[int, float | None]) -> dict[str, Any] | None:
    known = [value for value in values.values() if value is not None]
    if not known:
        return None
    per_node = {str(node): value for node, value in values.items()}
    return {"mean": fmean(known), "min": min(known), "max": max(known), "per_node": per_node}
