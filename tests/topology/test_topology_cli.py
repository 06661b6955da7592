"""``gossipfl topology`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gossipfl.cli.topology import app
from gossipfl.errors import TopologyError
from gossipfl.topology import TOPOLOGIES, make_topology
from gossipfl.topology.files import library, read_topology


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
    ],
)
def test_mistakes_reach_the_top_as_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, TopologyError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize("command", ["list", "show", "analyse", "generate"])
def test_help_shows_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"gossipfl topology {command}" in result.output
