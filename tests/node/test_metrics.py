"""What Prometheus is told of a site."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from watched_sites import ROUNDS, Watched, gossip, watched_sites

from gossipfl.gossip import Report
from gossipfl_node.metrics import MAX_WORDS, NEIGHBOUR_STATES, PHASES, TEXTS, Figure, Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Watched]]:
    """Two sites at the end of their rounds."""
    with watched_sites(tmp_path_factory.mktemp("watched")) as both:
        gossip(both)
        yield both


@pytest.fixture
def alpha(sites: list[Watched]) -> Watched:
    return sites[0]


@pytest.fixture
def fresh(alpha: Watched) -> Metrics:
    """Metrics that have seen nothing and nobody contributes to."""
    return Metrics(alpha.standing, lambda: alpha.phase, fresh_s=0.0)


@pytest.fixture(scope="module")
def still(sites: list[Watched]) -> Metrics:
    """Metrics whose time stands still: each page is made once."""
    return Metrics(sites[0].standing, lambda: "running", clock=lambda: 0.0)


def families(metrics: Metrics) -> dict[str, Metric]:
    """Return what the strictest reader there is makes of a page."""
    _, page = metrics.page(OPENMETRICS)
    return {family.name: family for family in parse_openmetrics(page.decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


# ------------------------------------------------------------------------------------------ pages


def test_both_formats_can_be_read_and_tell_the_same(alpha: Watched) -> None:
    content_type, text = alpha.metrics.page("")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    plain = {(s.name, tuple(s.labels.items())) for family in parse_text(text.decode()) for s in family.samples}
    content_type, text = alpha.metrics.page(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    strict = {(s.name, tuple(s.labels.items())) for family in parse_openmetrics(text.decode()) for s in family.samples}
    assert plain == strict


def test_every_name_follows_the_conventions_and_has_a_text(alpha: Watched) -> None:
    told = families(alpha.metrics)
    own = {name for name in told if not name.startswith("process_")}
    assert own == set(TEXTS)
    for name, family in told.items():
        assert name.startswith(("gossipfl_", "process_"))
        assert family.documentation.endswith("."), name
        assert family.type in {"counter", "gauge", "histogram", "info", "stateset"}
        assert not name.endswith(("_ms", "_s", "_kb", "_percent", "_total")), "base units, and no suffix twice"
        for sample in family.samples:
            assert set(sample.labels) <= {"neighbour", "verdict", "event", "layer", "reason", "direction", "le"} | {
                *("metric", "source", name),
                *("version", "python"),
                *("site", "peer_id", "federation", "mode", "rule", "codec", "transport"),
            }


def test_the_registry_is_its_own(alpha: Watched, sites: list[Watched]) -> None:
    assert b"gossipfl_" not in prometheus_client.generate_latest()
    assert value(sites[1].metrics, "gossipfl_neighbour_weight_ratio", neighbour="alpha") == 0.5
    assert value(alpha.metrics, "gossipfl_neighbour_weight_ratio", neighbour="alpha") is None


@given(
    accept=st.text(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                "application/openmetrics-text",
                "text/plain",
                "version=1.0.0",
                "version=1.x",
                "version=",
                ";",
                ",",
                "q=",
                "escaping=allow-utf-8",
                "escaping=values",
                "*/*",
                " ",
            ]
        ),
        max_size=12,
    ).map("".join)
)
def test_whatever_a_client_accepts_it_gets_one_of_two_pages(still: Metrics, accept: str) -> None:
    content_type, _ = still.page(accept)
    assert content_type in {
        "text/plain; version=0.0.4; charset=utf-8",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    }


def test_a_page_is_made_once_for_all_who_ask_at_the_same_time(alpha: Watched) -> None:
    now = 10.0
    asked = 0

    def figures() -> Iterable[Figure]:
        nonlocal asked
        asked += 1
        return [Figure("gossipfl_asked", "How often.", asked)]

    metrics = Metrics(alpha.standing, lambda: "running", clock=lambda: now)
    metrics.contribute("test", figures)
    assert len({metrics.page()[1] for _ in range(10)}) == 1
    now = 10.9
    assert b"gossipfl_asked 1.0" in metrics.page()[1]
    assert b"gossipfl_asked 2.0" in metrics.page(OPENMETRICS)[1], "the other format is another page"
    now = 11.0
    assert b"gossipfl_asked 3.0" in metrics.page()[1]


# ------------------------------------------------------------------------------------------ what is told


def test_who_it_is(alpha: Watched) -> None:
    told = families(alpha.metrics)
    (site,), (build,) = told["gossipfl_site"].samples, told["gossipfl_build"].samples
    assert site.labels == {
        "site": "alpha",
        "peer_id": alpha.site.identity.peer_id,
        "federation": "watched",
        "mode": "async",
        "rule": "mean",
        "codec": "float32",
        "transport": "broker",
    }
    assert set(build.labels) == {"version", "python"}
    assert value(alpha.metrics, "gossipfl_start_time_seconds") == alpha.ledger.started_at.timestamp()
    assert value(alpha.metrics, "gossipfl_model_parameters") == alpha.standing.parameters


def test_how_it_learns(alpha: Watched) -> None:
    metrics = alpha.metrics
    assert alpha.ledger.round is not None
    assert alpha.ledger.evaluation is not None
    assert value(metrics, "gossipfl_round") == ROUNDS
    assert value(metrics, "gossipfl_rounds_total") == ROUNDS
    assert value(metrics, "gossipfl_round_seconds_count") == ROUNDS
    assert value(metrics, "gossipfl_training_seconds_bucket", le="+Inf") == ROUNDS
    assert value(metrics, "gossipfl_training_steps_total") == 2 * ROUNDS
    assert (value(metrics, "gossipfl_training_samples_total") or 0) > 0
    assert value(metrics, "gossipfl_training_loss") == alpha.ledger.round.training.loss
    assert value(metrics, "gossipfl_test_round") == ROUNDS - 1
    assert value(metrics, "gossipfl_test_loss") == alpha.ledger.evaluation[1].loss
    assert 0 <= (value(metrics, "gossipfl_test_accuracy_ratio") or -1) <= 1
    assert (value(metrics, "gossipfl_last_round_age_seconds") or -1) >= 0


def test_how_its_neighbours_stand(alpha: Watched) -> None:
    metrics = alpha.metrics
    states = {
        sample.labels["gossipfl_neighbour_state"]: sample.value
        for sample in families(metrics)["gossipfl_neighbour_state"].samples
    }
    assert set(states) == set(NEIGHBOUR_STATES)
    assert sum(states.values()) == 1
    accepted = value(metrics, "gossipfl_neighbour_verdicts_total", neighbour="beta", verdict="accepted")
    (tally,) = alpha.ledger.tallies.values()
    assert accepted == tally.accepted > 0
    assert value(metrics, "gossipfl_neighbour_verdicts_total", neighbour="beta", verdict="rejected") == 0
    assert value(metrics, "gossipfl_neighbour_accepted", neighbour="beta") == 1
    assert value(metrics, "gossipfl_neighbour_events_total", neighbour="beta", event="neighbour_joined") == 1
    assert value(metrics, "gossipfl_neighbour_mutes_total", neighbour="beta") == 0
    assert (value(metrics, "gossipfl_neighbour_last_heard_age_seconds", neighbour="beta") or -1) >= 0
    assert value(metrics, "gossipfl_neighbour_link_up", neighbour="beta") is None, "there is a broker"


def test_distances_are_told_where_the_rule_has_them(alpha: Watched) -> None:
    metrics = alpha.metrics
    assert value(metrics, "gossipfl_neighbour_distance", neighbour="beta") is None
    (tally,) = alpha.ledger.tallies.values()
    former, tally.last = tally.last, {"round": 5, "accepted": False, "distance": 2.5, "threshold": 1.25}
    try:
        assert value(metrics, "gossipfl_neighbour_distance", neighbour="beta") == 2.5
        assert value(metrics, "gossipfl_neighbour_threshold", neighbour="beta") == 1.25
        assert value(metrics, "gossipfl_neighbour_accepted", neighbour="beta") == 0
    finally:
        tally.last = former


def test_offences_and_mutes_are_told_by_neighbour(sites: list[Watched], alpha: Watched) -> None:
    post, beta = alpha.core.exchange.post, sites[1].site.identity.peer_id
    for _ in range(3):
        for effect in post.offend(beta, "flood", now=0.0):
            assert isinstance(effect, Report)
            alpha.metrics.on_event(0.0, effect)
    metrics = alpha.metrics
    assert value(metrics, "gossipfl_neighbour_offences_total", neighbour="beta") == 3
    assert value(metrics, "gossipfl_neighbour_mutes_total", neighbour="beta") == 1
    assert value(metrics, "gossipfl_neighbour_events_total", neighbour="beta", event="offence") == 3
    assert value(metrics, "gossipfl_dropped_total", layer="protocol", reason="offence-flood") == 3


def test_traffic_and_link(alpha: Watched) -> None:
    counters = alpha.standing.transport.counters
    metrics = alpha.metrics
    assert value(metrics, "gossipfl_traffic_bytes_total", direction="sent") == counters.bytes_sent > 0
    assert value(metrics, "gossipfl_traffic_frames_total", direction="received") == counters.frames_received > 0
    before = value(metrics, "gossipfl_events_total", event="link-up") or 0
    alpha.link("up")
    assert value(metrics, "gossipfl_link_up") == 1
    alpha.link("down")
    assert value(metrics, "gossipfl_link_up") == 0
    assert value(metrics, "gossipfl_events_total", event="link-up") == before + 1


@pytest.mark.parametrize("phase", [*PHASES, "a phase of a later version"])
def test_exactly_one_phase_is_told(alpha: Watched, phase: str) -> None:
    metrics = Metrics(alpha.standing, lambda: phase)
    samples = families(metrics)["gossipfl_phase"].samples
    assert [sample.labels["gossipfl_phase"] for sample in samples if sample.value] == [phase]


def test_a_site_that_has_not_begun_has_a_page_too(tmp_path: Path) -> None:
    with watched_sites(tmp_path) as (alpha, _):
        told = families(alpha.metrics)
        assert not told["gossipfl_training_loss"].samples
        assert not told["gossipfl_neighbour_last_heard_age_seconds"].samples
        assert value(alpha.metrics, "gossipfl_rounds_total") == 0
        state = {"neighbour": "beta", "gossipfl_neighbour_state": "never heard"}
        assert value(alpha.metrics, "gossipfl_neighbour_state", **state) == 1


def test_words_from_elsewhere_are_bounded_and_never_fall(fresh: Metrics, alpha: Watched) -> None:
    reasons = alpha.standing.transport.counters.by_reason
    reasons.clear()
    try:
        for number in range(MAX_WORDS + 50):
            reasons[f'reason {number:03d}\n"quoted"\\'] = number
        samples = [s for s in families(fresh)["gossipfl_dropped"].samples if s.labels["layer"] == "transport"]
        assert len(samples) == MAX_WORDS + 1
        assert samples[-1].labels["reason"] == "other"
        assert samples[-1].value == sum(range(MAX_WORDS, MAX_WORDS + 50))
    finally:
        reasons.clear()


def test_the_process_is_told(alpha: Watched) -> None:
    metrics = alpha.metrics
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert (value(metrics, name) or 0) > 0, name


# ------------------------------------------------------------------------------------------ what others contribute


def test_other_parts_contribute_gauges_and_counters(fresh: Metrics) -> None:
    fresh.contribute(
        "checkpoints",
        lambda: [
            Figure("gossipfl_checkpoint_age_seconds", "Time since a checkpoint was kept.", 12.5),
            Figure("gossipfl_checkpoint_failures_total", "Checkpoints that could not be kept.", 3),
            Figure("gossipfl_certificate_expiry_seconds", "Time to its end.", 60, {"certificate": "broker"}),
            Figure("gossipfl_certificate_expiry_seconds", "Time to its end.", 90, {"certificate": "site"}),
        ],
    )
    told = families(fresh)
    assert told["gossipfl_checkpoint_age_seconds"].type == "gauge"
    assert told["gossipfl_checkpoint_failures"].type == "counter"
    assert value(fresh, "gossipfl_checkpoint_failures_total") == 3
    assert value(fresh, "gossipfl_certificate_expiry_seconds", certificate="site") == 90


@pytest.mark.parametrize(
    "figures",
    [
        [Figure("checkpoint_age_seconds", "No prefix.", 1)],
        [Figure("gossipfl_Age", "No such letters.", 1)],
        [Figure("gossipfl_round", "Taken.", 1)],
        [Figure("gossipfl_rounds_total", "Taken.", 1)],
        [Figure("gossipfl_round_seconds_count", "Part of a histogram.", 1)],
        [Figure("gossipfl_site_info", "Taken.", 1)],
        [Figure("gossipfl_new", "Twice.", 1), Figure("gossipfl_new", "Twice.", 2)],
        [Figure("gossipfl_new", "A gauge.", 1), Figure("gossipfl_new_total", "A counter.", 1)],
        [Figure("gossipfl_new", "A bad label.", 1, {"of what": "x"})],
        [Figure("gossipfl_new", "No number.", "many")],  # type: ignore[arg-type]
        None,
    ],
)
def test_a_part_that_fails_is_counted_and_hides_nobody_else(
    fresh: Metrics, figures: list[Figure] | None, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> Iterable[Figure]:
        if figures is None:
            raise OSError("the disk is gone")
        return figures

    fresh.contribute("broken", source)
    fresh.contribute("sound", lambda: [Figure("gossipfl_sound", "Told after it.", 1, {"label": '\n"\\'})])
    for asked in (1, 2, 3):
        told = families(fresh)
        (failures,) = told["gossipfl_scrape_failures"].samples
        assert failures.labels == {"source": "broken"}
        assert failures.value == asked
        assert len(told["gossipfl_sound"].samples) == 1
    assert len(caplog.records) == 1


def test_asking_for_the_status_does_not_load_prometheus() -> None:
    code = "import sys, gossipfl_node.cli, gossipfl_node.status, gossipfl_node.audit; "
    code += "assert 'prometheus_client' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
