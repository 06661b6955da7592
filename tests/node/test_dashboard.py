"""The Grafana dashboard: it asks for what a site really tells, and Grafana can load it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from watched_sites import gossip, watched_sites

from gossipfl_node.audit import AuditLog
from gossipfl_node.metrics import NEIGHBOUR_STATES, PHASES, TEXTS, Figure

DASHBOARD = Path(__file__).parents[2] / "node" / "grafana-dashboard.json"
TARGET_LABELS = {"job", "instance", "__name__"}
"""What Prometheus itself puts to every series."""
VALUES = {
    "verdict": {"accepted", "rejected"},
    "direction": {"sent", "received"},
    "gossipfl_phase": set(PHASES),
    "gossipfl_neighbour_state": set(NEIGHBOUR_STATES),
}
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}")
_MATCHER = re.compile(r'([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"(?<![\w.])[a-zA-Z_:][\w:]*")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Return the labels of every sample name that a real site tells."""
    root = tmp_path_factory.mktemp("watched")
    with watched_sites(root) as both, AuditLog(root, both[0].site.identity) as log:
        metrics = both[0].metrics
        metrics.contribute("audit", log.figures)
        metrics.contribute("broken", lambda: [Figure("broken", "No name, so that there is a failure to tell.", 1)])
        gossip(both)
        labels: dict[str, set[str]] = {}
        for _ in range(2):
            for family in metrics.registry.collect():
                suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
                labels.setdefault(family.name + suffix, set())
                for sample in family.samples:
                    labels.setdefault(sample.name, set()).update(sample.labels)
        # Families that have no sample here: sites with links of their own, rules with distances, tasks with measures.
        for name in ("distance", "threshold", "link_up"):
            labels[f"gossipfl_neighbour_{name}"].add("neighbour")
        labels["gossipfl_test_metric"].add("metric")
        labels["gossipfl_dropped_total"] |= {"layer", "reason"}
        return labels


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield where an expression stands, itself, and its legend."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"], target["legendFormat"]
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"], ""
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"], ""


def names_in(expression: str) -> set[str]:
    """Return the names of metrics in a PromQL expression."""
    bare = _STRING.sub("", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = _GROUPING.sub("", bare)
    bare = re.sub(r"label_values\(([^,]*),[^)]*\)", r"\1", bare)
    found = {(match[0], bare[match.end() :].lstrip()[:1]) for match in _NAME.finditer(bare)}
    return {name for name, following in found if following != "(" and name not in WORDS}


def test_names_are_found_in_expressions() -> None:
    expression = 'sum by (le) (rate(a_total{x="b", y=~"$d"}[$__rate_interval])) / on (job) group_left (s) e_info > 1e3'
    assert names_in(expression) == {"a_total", "e_info"}
    assert names_in("histogram_quantile(0.95, sum by (le) (rate(x_bucket[5m])))") == {"x_bucket"}
    assert names_in('label_values(a_info{b="c"}, d)') == {"a_info"}


def test_every_metric_that_it_asks_for_exists(dashboard: dict[str, Any], told: dict[str, set[str]]) -> None:
    count = 0
    for title, expression, _ in queries(dashboard):
        names = names_in(expression)
        assert names, f"{title}: {expression}"
        assert names <= set(told), f"{title}: {names - set(told)}"
        assert expression.count("(") == expression.count(")")
        count += 1
    assert count > 50


def test_every_label_that_it_asks_for_exists(dashboard: dict[str, Any], told: dict[str, set[str]]) -> None:
    for title, expression, legend in queries(dashboard):
        known = TARGET_LABELS | {"site"}.union(*(told[name] for name in names_in(expression)))
        for name, matchers in _MATCHERS.findall(expression):
            for label, _, value in _MATCHER.findall(matchers):
                assert label in told[name] | TARGET_LABELS, f"{title}: {name}{{{label}}}"
                assert value.startswith("$") or value in VALUES[label], f"{title}: {label}={value}"
        for grouping in _GROUPING.findall(expression):
            assert {label.strip() for label in grouping.split(",")} <= known, title
        assert set(_LEGEND.findall(legend)) <= known, f"{title}: {legend}"


def test_it_shows_nearly_all_that_is_told(dashboard: dict[str, Any]) -> None:
    asked = "\n".join(expression for _, expression, _ in queries(dashboard))
    missing = {name for name in TEXTS if name not in asked}
    assert missing <= {"gossipfl_model_parameters", "gossipfl_test_round"}


def test_counters_are_never_shown_as_they_are(dashboard: dict[str, Any]) -> None:
    """They begin at zero with each start; but for one that should stay there."""
    for title, expression, _ in queries(dashboard):
        for name in names_in(expression):
            if name.endswith(("_total", "_bucket", "_sum", "_count")) and name != "gossipfl_audit_lost_total":
                assert re.search(rf"(rate|increase)\({name}\b", expression), f"{title}: {expression}"


def test_grafana_has_what_it_needs(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["id"] is None, "Grafana numbers it itself"
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", dashboard["uid"])
    assert dashboard["title"]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__interval", "__all"}
    assert used <= set(variables)
    rows = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "Learning", "Neighbours and filter", "Links and traffic", "Health"]


def test_panels_are_complete_and_do_not_lie_upon_each_other(dashboard: dict[str, Any]) -> None:
    every = list(panels(dashboard))
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    for one, other in itertools.combinations([panel["gridPos"] for panel in every], 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
