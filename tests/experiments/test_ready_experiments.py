from __future__ import annotations

import re
from pathlib import Path

import pytest

from gossipfl.experiments.grid import load_experiment
from gossipfl.robust.registry import ATTACKS, RULES, make_rule
from gossipfl.topology import make_topology

FOLDER = Path(__file__).parents[2] / "experiments"
FILES = sorted(FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_valid_and_told_of(path: Path, tmp_path: Path) -> None:
    one_seed = tmp_path / path.name
    one_seed.write_text(re.sub(r"^seeds = \d+$", "seeds = 1", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    cells = load_experiment(one_seed).grid.cells
    assert len(cells) > 9
    assert len({cell.hash for cell in cells}) == len(cells)
    assert f"`{path.name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")
    for rule in {cell.spec().rule.name: cell.spec().rule for cell in cells[:2000]}.values():
        make_rule(rule.name, rule.options)


@pytest.mark.parametrize("name", ["matrix", "matrix-mnist"])
def test_the_matrix_has_every_rule_and_every_attack(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    grid = text[text.index("[grid]") :]
    named = set(re.findall(r'"([a-z+-]+)"', grid))
    assert set(RULES) <= named
    assert set(ATTACKS) - named <= {"feature-noise", "backdoor"}


def test_the_ios_graph_is_the_one_of_the_study() -> None:
    topology = make_topology("experiments/ios-er12.json")
    assert (topology.nodes, len(topology.edges)) == (12, 47)
    assert topology.induced(range(10)).is_connected
