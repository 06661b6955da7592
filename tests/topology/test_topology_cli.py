"""``gossipfl topology`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gossipfl.cli.topology import app
from gossipfl.errors import ConfigError, TopologyError
from gossipfl.topology import TOPOLOGIES, make_topology
from gossipfl.topology.files.library import library, read_topology


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160", "NO_COLOR": "1"})


def test_list_names_every_family_and_library_graph() -> None:
    result = run("list")
    assert result.exit_code == 0
    for name in (*TOPOLOGIES, *library()):
        assert f" {name} " in result.output
    assert "degree=4" in result.output


def test_list_as_json() -> None:
    document = json.loads(run("list", "--json").output)
    assert document["families"]["random-regular"] == {"degree": 4}
    assert document["sequences"]["base-k"] == {"k": 1}
    assert document["library"]["abilene"] == {"nodes": 11, "edges": 14}


def test_show_tells_neighbours_and_source() -> None:
    result = run("show", "abilene")
    assert result.exit_code == 0
    assert "0 Seattle" in result.output
    assert "Sunnyvale, Denver" in result.output
    assert "Knight" in result.output


def test_show_cuts_long_tables_and_keeps_markup_literal(tmp_path: Path) -> None:
    assert "40 more nodes" in run("show", "ring", "--nodes", "100").output
    path = tmp_path / "odd.json"
    path.write_text('{"nodes": ["[bold]x[/bold]", "b"], "edges": [[0, 1]]}')
    assert "0 [bold]x[/bold]" in run("show", str(path)).output


def test_analyse_as_table() -> None:
    result = run("analyse", "geant2012", "--byzantine", "2")
    assert result.exit_code == 0
    for text in ("spectral gap", "0.02117", "1 parallel edge merged", "SE - FI", "honest part connected", "surrounded"):
        assert text in result.output


def test_analyse_as_one_line_of_json() -> None:
    result = run("analyse", "random-regular", "--nodes", "20", "--set", "degree=6", "--seed", "3", "--json")
    assert len(result.output.splitlines()) == 1
    report = json.loads(result.output)
    assert (report["nodes"], report["edges"], report["degree"]["min"]) == (20, 60, 6)


def test_analyse_tells_what_rules_allow_and_what_a_round_moves() -> None:
    arguments = ("analyse", "abilene", "--model-bytes", "560000", "--byzantine", "2")
    told = run(*arguments).output
    for text in ("trimmed-mean", "1.68 MB; to a broker 560 kB", "r-robust, r", "1 (exact)", "worst for majorities"):
        assert text in told
    report = json.loads(run(*arguments, "--json").output)
    assert report["tolerance"]["trimmed-mean"]["per_node"] == [
        (degree - 1) // 2 for degree in make_topology("abilene").degrees
    ]
    assert "trimmed-mean" not in run(*arguments, "--no-rules").output


def test_analyse_a_sequence() -> None:
    told = run("analyse", "base-k", "--nodes", "20", "--set", "k=4").output
    assert "2 rounds" in told
    report = json.loads(run("analyse", "base-k", "--nodes", "20", "--set", "k=4", "--json").output)
    assert (report["period"], report["exact_after"]) == (2, 2)


def test_recommend_as_table_and_as_file(tmp_path: Path) -> None:
    path = tmp_path / "mended.json"
    arguments = ("recommend", "geant2012", "--add", "2", "--max-degree", "8", "-o", str(path))
    result = run(*arguments)
    assert result.exit_code == 0
    for text in ("new links", "2: ", "units of the file", "spectral gap, fastest", "bridges"):
        assert text in result.output
    assert len(read_topology(path).edges) == 63
    refused = run(*arguments)
    assert "--force" in str(refused.exception)
    assert run(*arguments, "--force").exit_code == 0


def test_recommend_as_json_carries_the_weights() -> None:
    report = json.loads(run("recommend", "abilene", "--byzantine", "1", "--max-links", "16", "--json").output)
    assert len(report["links"]) == len(report["weights"]["fastest"]) == 16
    assert len(report["added"]) == 2
    assert report["short"]
    assert "below 3 neighbours" in run("recommend", "abilene", "--byzantine", "1").output


def test_recommend_with_costs(tmp_path: Path) -> None:
    costs = tmp_path / "costs.csv"
    costs.write_text("Seattle, New York, 7\nSeattle, Chicago, 2.5\n")
    result = run("recommend", "abilene", "--add", "2", "--costs", str(costs), "--budget", "3")
    assert "Seattle - Chicago" in result.output
    assert "2.5" in result.output


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_draw_writes_a_picture(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"graph{ending}"
    result = run("draw", "abilene", "--byzantine", "2", "-o", str(path))
    assert result.exit_code == 0
    assert "11 nodes, 14 edges" in result.output
    assert path.stat().st_size > 2000


def test_analyse_and_recommend_draw_what_they_found(tmp_path: Path) -> None:
    for arguments in (("analyse", "abilene", "--byzantine", "2", "--no-rules"), ("recommend", "abilene", "--add", "1")):
        path = tmp_path / f"{arguments[0]}.svg"
        assert run(*arguments, "--picture", str(path)).exit_code == 0
        assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize("ending", [".json", ".graphml", ".edges", ".csv"])
def test_generate_writes_the_graph_that_a_run_would_have(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"drawn{ending}"
    result = run("generate", "erdos-renyi", "--nodes", "24", "--set", "p=0.3", "--seed", "5", "-o", str(path))
    assert result.exit_code == 0
    wanted = make_topology("erdos-renyi", 24, {"p": 0.3}, seed=5)
    assert read_topology(path).edges == wanted.edges
    assert f"24 nodes, {len(wanted.edges)} edges" in result.output


def test_generate_does_not_replace_a_file_unasked(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text("precious")
    refused = run("generate", "ring", "--nodes", "5", "-o", str(path))
    assert isinstance(refused.exception, TopologyError)
    assert "--force" in str(refused.exception)
    assert path.read_text() == "precious"
    assert run("generate", "ring", "--nodes", "5", "-o", str(path), "--force").exit_code == 0
    assert read_topology(path).nodes == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "rnig"], 'topology "rnig" is unknown; did you mean "ring"'),
        (["show", "ring"], "needs a number of nodes"),
        (["show", "ring", "--nodes", "8", "--set", "degree"], '--set "degree" is no option; write --set key=value'),
        (["show", "ring", "--nodes", "8", "--set", "=3"], "write --set key=value"),
        (["analyse", "random-regular", "--nodes", "8", "--set", "degree=four"], "degree is 'four'; give a whole"),
        (["analyse", "ring", "--nodes", "8", "--byzantine", "8"], "give 0 to 7"),
        (["generate", "ring", "--nodes", "8", "-o", "ring.dot"], 'ending ".dot" is unknown'),
        (["generate", "base-k", "--nodes", "8", "-o", "ring.json"], "is a sequence of graphs, another each round"),
        (["analyse", "base-k", "--nodes", "8", "--byzantine", "1"], "leave --byzantine out"),
        (["analyse", "base-k", "--nodes", "8", "--picture", "x.png"], "leave --picture out"),
        (["draw", "ring", "--nodes", "8", "--byzantine", "8", "-o", "x.png"], "give 0 to 7"),
        (["recommend", "ring", "--nodes", "8", "--add", "-1"], "links to add: -1 is negative"),
        (["recommend", "abilene", "--max-links", "5"], "has 14 links; give at least 14"),
        (["recommend", "ring", "--nodes", "8", "--max-length", "1"], "has no positions to measure links by"),
        (["recommend", "abilene", "--metric", "moon"], 'metric "moon" is unknown'),
        (["recommend", "abilene", "--costs", "nowhere.csv"], "cannot be read"),
    ],
)
def test_mistakes_reach_the_top_as_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, TopologyError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["draw", "ring", "--nodes", "8", "-o", "ring.gif"],
        ["analyse", "ring", "--nodes", "8", "--picture", "ring.gif"],
        ["recommend", "ring", "--nodes", "8", "--picture", "ring.gif"],
    ],
)
def test_unknown_kinds_of_pictures_are_refused_before_any_work(arguments: list[str]) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert 'ending ".gif" is unknown; choose one of: .png, .svg, .pdf' in str(result.exception)


@pytest.mark.parametrize("command", ["list", "show", "analyse", "recommend", "draw", "generate"])
def test_help_shows_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"gossipfl topology {command}" in result.output
