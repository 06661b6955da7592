"""What Prometheus is told: mostly what the daemon knows already, read when it is asked for.

Other parts of the daemon add figures of their own with ``Metrics.contribute``. Every label has few values: neighbours
are members, phases, states, events and reasons are words of the program; where words could come from elsewhere, the
first ``MAX_WORDS`` are told one by one and the others as one.
"""

from __future__ import annotations

import logging
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)

if TYPE_CHECKING:
    from gossipfl.agent import RoundReport
    from gossipfl.gossip import Report
    from gossipfl.identity import PeerId
    from gossipfl_node.status import Standing

DURATIONS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Buckets of rounds and training: a small model on a fast machine to an hour of training at a slow site."""
PHASES = ("starting", "waiting for the broker", "joining", "running", "stopping")
NEIGHBOUR_STATES = ("never heard", "greeting", "joined", "left", "lost", "refused", "muted")
MAX_WORDS = 64
OTHER_WORDS = "other"
FRESH_S = 1.0
"""How long one rendering serves everybody who asks for its format: whoever asks all day costs no more than that."""
OPENMETRICS = "application/openmetrics-text"

TEXTS = {
    "gossipfl_build": "Versions of the program.",
    "gossipfl_site": "Who this site is.",
    "gossipfl_start_time_seconds": "When the daemon started, in Unix time.",
    "gossipfl_incarnation": "Number of this start of the daemon.",
    "gossipfl_model_parameters": "Size of the model.",
    "gossipfl_phase": "What the daemon is doing.",
    "gossipfl_events": "What happened, by kind.",
    "gossipfl_journal_lost_events": "Events that cannot be written to the disk now.",
    "gossipfl_scrape_failures": "Parts of the daemon that had no figures to give, or none that could be told.",
    "gossipfl_round": "The round in hand.",
    "gossipfl_rounds": "Rounds finished since the daemon started.",
    "gossipfl_rounds_deferred": "Those of them that ended without a gossip step.",
    "gossipfl_round_seconds": "Duration of rounds.",
    "gossipfl_last_round_age_seconds": "Time since a round ended.",
    "gossipfl_training_seconds": "Duration of local training in each round.",
    "gossipfl_training_steps": "Local training steps taken.",
    "gossipfl_training_samples": "Samples read by local training.",
    "gossipfl_training_loss": "Mean loss of the last round's training.",
    "gossipfl_test_round": "The round after which the model was last measured.",
    "gossipfl_test_loss": "Loss on held-out data.",
    "gossipfl_test_accuracy_ratio": "Accuracy on held-out data.",
    "gossipfl_test_metric": "The task's own measures on held-out data.",
    "gossipfl_neighbour_state": "How a neighbour stands.",
    "gossipfl_neighbour_last_heard_age_seconds": "Time since a neighbour was heard.",
    "gossipfl_neighbour_round": "A neighbour's round of its last update here.",
    "gossipfl_neighbour_staleness_rounds": "Age of a neighbour's replica, in own rounds.",
    "gossipfl_neighbour_behind": "Whether a neighbour has published what is not here.",
    "gossipfl_neighbour_weight_ratio": "Mixing weight of a neighbour.",
    "gossipfl_neighbour_verdicts": "Verdicts on a neighbour's model.",
    "gossipfl_neighbour_accepted": "Whether the last verdict on a neighbour accepted its model.",
    "gossipfl_neighbour_distance": "Distance of a neighbour's model at the last verdict.",
    "gossipfl_neighbour_threshold": "Distance beyond which the last verdict would have been a rejection.",
    "gossipfl_neighbour_missed": "Rounds in which a neighbour that was counted on gave nothing.",
    "gossipfl_neighbour_offences": "Signed offences of a neighbour against the protocol.",
    "gossipfl_neighbour_mutes": "How often a neighbour was muted.",
    "gossipfl_neighbour_events": "What happened with a neighbour, by kind.",
    "gossipfl_neighbour_link_up": "Whether the link to a neighbour is up, where there is no broker.",
    "gossipfl_link_up": "Whether the broker is reached or, where there is none, any neighbour.",
    "gossipfl_reconnects": "Links that came back.",
    "gossipfl_traffic_frames": "Frames on the wire.",
    "gossipfl_traffic_bytes": "Bytes on the wire.",
    "gossipfl_dropped": "Frames dropped, and connections that the transport refused, by reason.",
}
"""All that the daemon tells by itself; the names of counters end with ``_total`` besides, those of facts with
``_info``."""

log = logging.getLogger(__name__)

_NAME = re.compile(r"gossipfl_[a-z0-9_]+")
_LABEL = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("_info", "_bucket", "_count", "_sum", "_created")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number from another part of the daemon.

    ``name`` begins with gossipfl_ and ends with its base unit (``_seconds``, ``_bytes``, ``_ratio``) where it has one;
    with ``_total`` it is a counter. ``labels`` must have few values. ``text`` says in one line what it is.
    """

    name: str
    text: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


Source = Callable[[], Iterable[Figure]]
"""Asked at each scrape, on the thread of whoever scrapes; should not take long."""


class Metrics:
    """All metrics of one daemon, in a registry of their own; also an observer of its agent.

    Args:
        standing: What the daemon knows.
        phase: What the daemon is doing now.
        clock: The agent's clock.
        fresh_s: How long a rendering is served again.
    """

    def __init__(
        self,
        standing: Standing,
        phase: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        fresh_s: float = FRESH_S,
    ) -> None:
        self.registry = CollectorRegistry()
        self._standing = standing
        self._phase = phase
        self._clock = clock
        self._fresh_s = fresh_s
        self._pages: dict[str, tuple[float, str, bytes]] = {}
        self._sources: dict[str, Source] = {}
        self._failures: Counter[str] = Counter()
        self._totals: Counter[str] = Counter()
        self._missed: Counter[PeerId] = Counter()
        self._events: Counter[tuple[PeerId, str]] = Counter()
        self._round_s = self._histogram("gossipfl_round_seconds")
        self._train_s = self._histogram("gossipfl_training_seconds")
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    # ------------------------------------------------------------------------------------------ what comes in

    def contribute(self, name: str, source: Source) -> None:
        """Ask ``source`` for figures at each scrape; one that fails is counted under ``name`` and left out."""
        self._sources[name] = source

    def on_round(self, report: RoundReport) -> None:
        """Take note of a finished round."""
        self._round_s.observe(report.round_s)
        self._train_s.observe(report.train_s)
        self._totals["rounds"] += 1
        self._totals["training_steps"] += report.training.steps
        self._totals["training_samples"] += report.training.samples
        if report.mixing is None:
            self._totals["rounds_deferred"] += 1
        else:
            self._missed.update(report.mixing.missed)

    def on_event(self, t_s: float, report: Report) -> None:
        """Take note of something that happened with a neighbour; the ledger counts all events."""
        del t_s
        if report.peer is not None and report.peer in self._standing.core.followed:
            self._events[report.peer, report.event] += 1

    def _histogram(self, name: str) -> Histogram:
        return Histogram(name, TEXTS[name], buckets=DURATIONS_S, registry=self.registry)

    # ------------------------------------------------------------------------------------------ what goes out

    def page(self, accept: str = "") -> tuple[str, bytes]:
        """Return content type and text in the best format that ``accept`` (of an HTTP request) names."""
        try:
            _, chosen = choose_encoder(accept)
        except TypeError:  # of a version such as 1.x, which the library compares with a number
            chosen = ""
        # The format's two names, whatever versions and escapings were asked for: no request makes a third rendering.
        kind = OPENMETRICS if chosen.startswith(OPENMETRICS) else ""
        now = self._clock()
        made_at, content_type, text = self._pages.get(kind, (float("-inf"), "", b""))
        if now >= made_at + self._fresh_s:
            encoder, content_type = choose_encoder(kind)
            text = encoder(self.registry)
            self._pages[kind] = now, content_type, text
        return content_type, text

    def collect(self) -> Iterator[Metric]:
        """Yield everything but the histograms: the registry asks at each scrape."""
        document = self._standing.document(self._phase(), self._clock())
        yield from self._site(document)
        yield from self._learning(document)
        yield from self._neighbours(document["neighbours"])
        yield from self._conduct({each["peer_id"]: each["name"] for each in document["neighbours"]})
        yield from self._wire(document["traffic"])
        yield from self._contributed()
        yield _counter("gossipfl_scrape_failures", ("source",), (((name,), n) for name, n in self._failures.items()))

    def _site(self, document: Mapping[str, Any]) -> Iterator[Metric]:
        ledger = self._standing.ledger
        facts = {key: document[key] for key in ("site", "peer_id", "federation", "mode", "rule", "codec")}
        facts["transport"] = "libp2p" if document["broker"] is None else "broker"
        versions = {"version": document["version"], "python": platform.python_version()}
        phases = dict.fromkeys((*PHASES, document["phase"]), False) | {document["phase"]: True}
        yield InfoMetricFamily("gossipfl_build", TEXTS["gossipfl_build"], versions)
        yield InfoMetricFamily("gossipfl_site", TEXTS["gossipfl_site"], facts)
        yield _gauge("gossipfl_start_time_seconds", ledger.started_at.timestamp())
        yield _gauge("gossipfl_incarnation", document["incarnation"])
        yield _gauge("gossipfl_model_parameters", document["model_parameters"])
        yield StateSetMetricFamily("gossipfl_phase", TEXTS["gossipfl_phase"], phases)
        yield _counter("gossipfl_events", ("event",), (((event,), n) for event, n in _few(ledger.events)))
        yield _gauge("gossipfl_journal_lost_events", ledger.journal.lost)

    def _learning(self, document: Mapping[str, Any]) -> Iterator[Metric]:
        last, evaluation = document["last_round"] or {}, document["evaluation"] or {}
        yield _gauge("gossipfl_round", document["round"])
        for name in ("rounds", "rounds_deferred", "training_steps", "training_samples"):
            yield _counter(f"gossipfl_{name}", (), [((), self._totals[name])])
        yield _gauge("gossipfl_last_round_age_seconds", last.get("ended_s_ago"))
        yield _gauge("gossipfl_training_loss", last.get("loss"))
        yield _gauge("gossipfl_test_round", evaluation.get("round"))
        yield _gauge("gossipfl_test_loss", evaluation.get("loss"))
        yield _gauge("gossipfl_test_accuracy_ratio", evaluation.get("accuracy"))
        yield _gauges("gossipfl_test_metric", "metric", list(evaluation.get("metrics", {}).items())[:MAX_WORDS])

    def _neighbours(self, neighbours: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
        states = StateSetMetricFamily(
            "gossipfl_neighbour_state", TEXTS["gossipfl_neighbour_state"], labels=["neighbour"]
        )
        for each in neighbours:
            words = dict.fromkeys((*NEIGHBOUR_STATES, each["state"]), False) | {each["state"]: True}
            states.add_metric([each["name"]], words)
        yield states
        for name, value in NEIGHBOUR_GAUGES.items():
            yield _gauges(name, "neighbour", [(each["name"], value(each)) for each in neighbours])
        verdicts = [((each["name"], word), each[word]) for each in neighbours for word in ("accepted", "rejected")]
        yield _counter("gossipfl_neighbour_verdicts", ("neighbour", "verdict"), verdicts)

    def _conduct(self, names: Mapping[PeerId, str]) -> Iterator[Metric]:
        channels = self._standing.core.exchange.post.channels
        known = [(name, channels[peer]) for peer, name in names.items() if peer in channels]
        events = [((names[peer], word), n) for (peer, word), n in dict(self._events).items() if peer in names]
        one = ("neighbour",)
        yield _counter(
            "gossipfl_neighbour_missed", one, (((name,), self._missed[peer]) for peer, name in names.items())
        )
        yield _counter("gossipfl_neighbour_offences", one, (((name,), channel.offences) for name, channel in known))
        yield _counter("gossipfl_neighbour_mutes", one, (((name,), channel.mutes) for name, channel in known))
        yield _counter("gossipfl_neighbour_events", ("neighbour", "event"), events)

    def _wire(self, traffic: Mapping[str, int]) -> Iterator[Metric]:
        counters = self._standing.transport.counters
        yield _gauge("gossipfl_link_up", float(is_linked(self._standing)))
        yield _counter("gossipfl_reconnects", (), [((), counters.reconnects)])
        for unit in ("frames", "bytes"):
            both = [((way,), traffic[f"{unit}_{way}"]) for way in ("sent", "received")]
            yield _counter(f"gossipfl_traffic_{unit}", ("direction",), both)
        layers = {"protocol": self._standing.core.exchange.post.dropped, "transport": counters.by_reason}
        dropped = [((layer, word), n) for layer, reasons in layers.items() for word, n in _few(reasons)]
        yield _counter("gossipfl_dropped", ("layer", "reason"), dropped)

    def _contributed(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for name, source in self._sources.items():
            try:
                for figure in source():
                    _add(families, figure)
            except Exception as error:  # noqa: BLE001 - one part's mistake must not hide the figures of all others
                if not self._failures[name]:
                    log.error("not all metrics of %s are told: %s", name, error)  # noqa: TRY400 - the line says it all
                self._failures[name] += 1
        yield from families.values()


NEIGHBOUR_GAUGES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "gossipfl_neighbour_last_heard_age_seconds": lambda each: each["last_heard_s"],
    "gossipfl_neighbour_round": lambda each: each["round"],
    "gossipfl_neighbour_staleness_rounds": lambda each: each["staleness"],
    "gossipfl_neighbour_behind": lambda each: each["behind"],
    "gossipfl_neighbour_weight_ratio": lambda each: each["weight"],
    "gossipfl_neighbour_accepted": lambda each: (each["last_verdict"] or {}).get("accepted"),
    "gossipfl_neighbour_distance": lambda each: (each["last_verdict"] or {}).get("distance"),
    "gossipfl_neighbour_threshold": lambda each: (each["last_verdict"] or {}).get("threshold"),
    "gossipfl_neighbour_link_up": lambda each: None if each["link"] is None else each["link"] == "up",
}
"""What of a neighbour's status is a number; None where it is not known."""


def is_linked(standing: Standing) -> bool:
    """Tell whether a site reaches anybody: its broker or, without one, at least one neighbour."""
    if standing.direct is None:
        return standing.ledger.link.state == "up"
    return any(link.state == "up" for link in standing.direct.links().values())


def _gauge(name: str, value: float | None) -> Metric:
    """Return a family of one gauge; of none, where the value is not known."""
    return GaugeMetricFamily(name, TEXTS[name], value)


def _gauges(name: str, label: str, values: Iterable[tuple[str, float | None]]) -> Metric:
    family = GaugeMetricFamily(name, TEXTS[name], labels=[label])
    for word, value in values:
        if value is not None:
            family.add_metric([word], float(value))
    return family


def _counter(name: str, labels: Sequence[str], counts: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = CounterMetricFamily(name, TEXTS[name], labels=labels)
    for words, count in counts:
        family.add_metric(words, count)
    return family


def _few(counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Yield counts under the first words that came up: chosen so, none of them ever falls."""
    seen = list(dict(counts).items())  # a copy in one step: large models are mixed in another thread
    yield from seen[:MAX_WORDS]
    if len(seen) > MAX_WORDS:
        yield OTHER_WORDS, sum(count for _, count in seen[MAX_WORDS:])


def _add(families: dict[str, Metric], figure: Figure) -> None:
    """Put a figure into its family; ValueError for what would make the whole page unreadable."""
    name = figure.name.removesuffix("_total")
    if not _NAME.fullmatch(name) or name in TEXTS or name.endswith(_RESERVED):
        raise ValueError(f"{figure.name!r} is no name for a metric, or is taken")
    kind = "counter" if name != figure.name else "gauge"
    family = families.setdefault(name, Metric(name, figure.text, kind))
    labels = {label: str(word) for label, word in figure.labels.items()}
    if family.type != kind or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{figure.name!r} is a gauge and a counter, or has a label that is no name")
    if any(sample.labels == labels for sample in family.samples):
        raise ValueError(f"{figure.name!r} is told twice with labels {labels}")
    family.add_sample(figure.name, labels, float(figure.value))
