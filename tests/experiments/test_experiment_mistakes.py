"""Whatever is wrong with a spec is one line that names the place, the cell and the mend, and exit code 2."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from command_line import call
from small_grids import BASE, GRID, experiment_of

from gossipfl.errors import ConfigError
from gossipfl.experiments import grid as grid_module

TOP = 'name = "x"\n'

WRONG = {
    "no such file": (None, "nowhere.toml: no such file"),
    "syntax": (TOP + "grid = [", "line 2"),
    "unknown key": (TOP + "sedes = 3\n" + BASE + GRID, 'sedes is an unknown key; did you mean "seeds"?'),
    "a run's key at the top": ("rounds = 3\n" + GRID, "rounds is a key of a run; write it under [base]"),
    "a bad name": ('name = "a/b"\n' + GRID, "name must be letters, digits"),
    "no grid": (TOP + BASE, "grid is empty; give it a key with a list of values"),
    "no seeds": (TOP + "seeds = 0\n" + GRID, "seeds must be at least one"),
    "a seed twice": (TOP + "seeds = [1, 1]\n" + GRID, "names a seed twice"),
    "seed in the grid": (TOP + "[grid]\nseed = [1, 2]\n", "write seeds = [...] at the top"),
    "empty axis": (TOP + "[grid]\nrule = []\n", "grid.rule has no value"),
    "no list": (TOP + '[grid]\nrule = "mean"\n', "grid.rule must be a list of values, not mean"),
    "no such axis": (TOP + "[grid]\nruel = ['mean']\n", 'grid.ruel is no key of a run; did you mean "rule"?'),
    "no such base key": (
        TOP + "[base]\nroundes = 3\n" + GRID,
        'base.roundes is no key of a run; did you mean "rounds"?',
    ),
    "a bad base value": (TOP + "[base]\nrounds = 0\n" + GRID, "base: rounds must be at least 1, not 0"),
    "a bad value": (TOP + "[grid]\nrounds = [1, 0]\n", 'grid.rounds "0": rounds must be at least 1, not 0'),
    "a deeper key": (TOP + "[grid]\n'train.lrr' = [1.0]\n", 'train.lrr is an unknown key; did you mean "lr"?'),
    "no label": (TOP + "[[grid.size]]\nnodes = 4\n", "grid.size: table 1 has no label"),
    "a bundle's key": (TOP + "[[grid.size]]\nlabel = 'a'\nnods = 4\n", 'grid.size "a": nods is no key of a run'),
    "labels twice": (TOP + "[grid]\nrule = ['mean', 'mean']\n", '2 values have the label "mean"'),
    "one key, two axes": (
        TOP + "[grid]\nnodes = [4]\n[[grid.size]]\nlabel = 'a'\nnodes = 5\n",
        "grid.size and grid.nodes both set nodes",
    ),
    "an engine": (TOP + "[grid]\nengine = ['simulator']\n", "engine cannot be simulator"),
    "exclude nothing": (TOP + "exclude = [{}]\n" + GRID, "exclude 1 is empty"),
    "exclude no axis": (
        TOP + "exclude = [{ruel = 'mean'}]\n" + GRID,
        '"ruel" is no axis of the grid; did you mean "rule"?',
    ),
    "exclude no value": (
        TOP + "exclude = [{rule = 'meen'}]\n" + GRID,
        'rule = meen fits no cell; did you mean "mean"?',
    ),
    "exclude all": (TOP + "exclude = [{byzantine = 1}]\n" + GRID, "exclude leaves out every cell"),
    "include no key": (TOP + "include = [{ruel = 'mean'}]\n" + GRID, 'ruel is no key of a run; did you mean "rule"?'),
    "report no axis": (
        TOP + GRID + "[report]\nrows = 'rules'\n",
        '"rules" is no axis; axes are: rule, attack, byzantine',
    ),
    "an attack alone": (
        TOP + "[grid]\nrule = ['mean']\nattack = ['none', 'gaussian']\n",
        'cell rule=mean, attack=gaussian: attack "gaussian" has no Byzantine node; add byzantine',
    ),
    "too many attackers": (
        TOP + BASE + GRID.replace("[1]", "[6]"),
        "attack=sign-flip, byzantine=6: byzantine must be less",
    ),
    "no such rule": (
        TOP + BASE + GRID.replace("mean", "meen"),
        'cell rule=meen, attack=none, byzantine=any: rule "meen"',
    ),
    "no such attack": (TOP + BASE + GRID.replace("sign-flip", "sing-flip"), 'attack "sing-flip" is unknown'),
    "a rule's option": (TOP + "[grid]\nrule = ['mean']\n'rule.gamma' = [1.0]\n", 'rule "mean" has no option "gamma"'),
    "a rule's need": (TOP + BASE + "[grid]\nrule = ['mean', 'ios']\n", "cell rule=ios: "),
    "no such codec": (TOP + BASE + "[grid]\ncodec = ['float33']\n", "cell codec=float33: "),
    "no such graph": (TOP + "[grid]\ntopology = ['rign']\n", 'grid.topology "rign": '),
    "a graph that cannot be": (
        TOP + BASE + "[grid]\ntopology = ['ring']\nnodes = [1]\n",
        "cell topology=ring, nodes=1: ",
    ),
    "no such task": (TOP + "[grid]\ntask = ['digitz']\n", 'cell task=digitz: task "digitz" is unknown'),
    "async matrices": (
        TOP + BASE + "[grid]\nmode = ['async']\n",
        'cell mode=async: mode async needs engine = "testbed"',
    ),
    "matrices without a wire": (
        TOP + BASE + GRID.replace("sign-flip", "silence"),
        'attack "silence" is played on the wire; it needs engine = "testbed"',
    ),
    "agents who see all": (
        TOP + 'engine = "testbed"\n' + BASE + GRID.replace("sign-flip", "alie"),
        'attack "alie" sees all models',
    ),
    "vectors": (TOP + BASE + "keep_vectors = true\n" + GRID, 'keep_vectors needs records = "full"'),
}


@pytest.mark.parametrize(("text", "told"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line(text: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ("nowhere.toml" if text is None else "wrong.toml")
    if text is not None:
        path.write_text(text, encoding="utf-8")
    code, printed, line = call(capsys, "experiment", "run", str(path), "--out", str(tmp_path / "out"))
    assert (code, printed) == (2, "")
    assert line.count("\n") == 1
    assert line.startswith("gossipfl: error: ")
    assert path.name in line
    assert told in line, line
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_grid_that_is_too_large_is_refused_before_it_is_unrolled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.toml"
    path.write_text(f"seeds = 1000\n[grid]\nrounds = {list(range(1, 1001))}\nnodes = [4, 5]\n", encoding="utf-8")
    monkeypatch.setattr(grid_module, "_combinations", None)
    code, _, line = call(capsys, "experiment", "check", str(path))
    assert code == 2
    assert "the grid has 2,000,000 cells, more than 1,000,000" in line


def test_two_runs_with_all_labels_in_common_are_refused(tmp_path: Path) -> None:
    def rules(*labels: str) -> str:
        tables = (f"{{ rule = {{ name = 'balance', gamma = 0.{at}{label} }} }}" for at, label in enumerate(labels, 5))
        return f"include = [{', '.join(tables)}]\n[grid]\nrounds = [2]\n"

    assert len(experiment_of(tmp_path, rules(", label = 'a'", ", label = 'b'")).grid.cells) == 3
    with pytest.raises(ConfigError, match="two different runs are both rounds=40, rule=balance; give a value a label"):
        experiment_of(tmp_path, rules("", ""))


def test_a_cluster_that_does_not_listen_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = experiment_of(tmp_path)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        arguments = ("experiment", "run", str(experiment.path), "--engine", "ray", "--address", address)
        code, _, line = call(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert line.count("\n") == 1
    assert f"no Ray cluster at {address}: Connection refused; start one with ray start" in line


def test_an_address_needs_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, line = call(capsys, "experiment", "run", str(tmp_path / "x.toml"), "--address", "10.0.0.1:6379")
    assert code == 2
    assert "add --engine ray" in line
