from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_grids import BASE, GRID, experiment_of

from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError
from gossipfl.experiments import grid as grid_module
from gossipfl.experiments.document import Document
from gossipfl.experiments.grid import ANY, UNKNOWN, Grid, differences, unroll

VALUES: dict[str, list[Any]] = {
    "rounds": [1, 2, 3, 4],
    "train.lr": [0.01, 0.1, 1.0],
    "codec": ["float32", "float16", "int8"],
    "rule": ["mean", "balance", {"name": "balance", "gamma": 0.5, "label": "wide"}],
    "partition": ["iid", {"name": "dirichlet", "alpha": 0.1}],
}


def unrolled(**document: Any) -> Grid:
    return unroll(Document.model_validate({"name": "test", **document}), "test.toml")


def labels_of(grid: Grid) -> set[tuple[str, ...]]:
    return {cell.labels for cell in grid.cells}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, list[Any]]:
    keys = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    return {key: draw(st.permutations(VALUES[key]))[: draw(st.integers(1, len(VALUES[key])))] for key in keys}


@settings(max_examples=25)
@given(grid=grids(), seeds=st.integers(1, 3), data=st.data())
def test_cells_are_the_product_without_what_is_excluded(grid: dict[str, list[Any]], seeds: int, data: Any) -> None:
    whole = unrolled(grid=grid, seeds=seeds)
    names = list(grid)
    axes = [whole.axes[name] for name in names]
    assert len(whole.cells) == seeds * len(list(itertools.product(*axes)))
    excluded = []
    for _ in range(data.draw(st.integers(0, 2))):
        chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        excluded.append({name: data.draw(st.sampled_from(whole.axes[name])) for name in chosen})

    def left(labels: tuple[str, ...]) -> bool:
        cell = dict(zip(names, labels, strict=True))
        return not any(all(cell[name] == label for name, label in one.items()) for one in excluded)

    expected = {labels for labels in itertools.product(*axes) if left(labels)}
    if not expected:
        with pytest.raises(ConfigError, match="leaves out every cell"):
            unrolled(grid=grid, seeds=seeds, exclude=excluded)
        return
    part = unrolled(grid=grid, seeds=seeds, exclude=excluded)
    assert labels_of(part) == expected
    assert len(part.cells) == seeds * len(expected)
    assert part.excluded == len(list(itertools.product(*axes))) - len(expected)
    assert {cell.hash for cell in part.cells} <= {cell.hash for cell in whole.cells}


@settings(max_examples=15)
@given(grid=grids(), shuffle=st.randoms(use_true_random=False))
def test_hashes_are_distinct_and_do_not_depend_on_the_order_of_keys(
    grid: dict[str, list[Any]], shuffle: random.Random
) -> None:
    base = {"nodes": 6, "train": {"local_steps": 2, "batch": 4}, "task": {"name": "digits", "model": "softmax"}}
    keys, inner = list(grid), list(base)
    shuffle.shuffle(keys)
    shuffle.shuffle(inner)
    one = unrolled(grid=grid, base=base, seeds=[3, 1])
    other = unrolled(
        grid={key: list(reversed(grid[key])) for key in keys}, base={key: base[key] for key in inner}, seeds=[1, 3]
    )
    hashes = [cell.hash for cell in one.cells]
    assert len(set(hashes)) == len(hashes)
    assert set(hashes) == {cell.hash for cell in other.cells}


def test_a_seed_comes_whole_before_the_next(tmp_path: Path) -> None:
    grid = experiment_of(tmp_path, "seeds = 3\n" + BASE + GRID).grid
    assert [cell.seed for cell in grid.cells] == [0] * 4 + [1] * 4 + [2] * 4
    assert [cell.labels for cell in grid.cells[:4]] == [cell.labels for cell in grid.cells[4:8]]
    assert {cell.spec().seed for cell in grid.cells} == {0, 1, 2}


def test_the_hash_follows_what_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of(base: dict[str, Any], **more: Any) -> str:
        return unrolled(base=base, grid={"rounds": [2]}, **more).cells[0].hash

    known = hash_of({})
    assert known == hash_of({"nodes": 8})  # the default, said aloud
    assert known == hash_of({}, name="other", records="full")
    others = [hash_of({"nodes": 9}), hash_of({}, engine="testbed"), hash_of({}, seeds=[1])]
    monkeypatch.setattr(grid_module, "__version__", "99.0")
    others.append(hash_of({}))
    monkeypatch.undo()
    monkeypatch.setattr(grid_module, "RESULT_SCHEMA", 99)
    others.append(hash_of({}))
    assert len({known, *others}) == 6


def test_differences_give_the_run_back(tmp_path: Path) -> None:
    text = BASE + GRID + '"train.lr" = [0.5]\npartition = ["auto", { name = "dirichlet", alpha = 0.3 }]\n'
    for cell in experiment_of(tmp_path, text).grid.cells:
        spec = cell.spec()
        found = differences(spec)
        assert RunSpec.model_validate({**found, "seed": cell.seed}) == spec
        assert found["train"] == {"local_steps": 1, "batch": 8, "lr": 0.5}
        assert "codec" not in found


def test_cells_without_an_attack_are_one_whatever_the_number_of_attackers() -> None:
    grid = unrolled(
        grid={"attack": ["none", "gaussian"], "byzantine": [1, 2], "placement": ["random", [0, 1]]},
        exclude=[{"placement": "0,1", "byzantine": 1}],
    )
    assert labels_of(grid) == {
        ("none", ANY, ANY),
        ("gaussian", "1", "random"),
        ("gaussian", "2", "random"),
        ("gaussian", "2", "0,1"),
    }
    free = next(cell.spec() for cell in grid.cells if cell.labels[0] == "none")
    assert (free.attack.name, free.byzantine, free.placement) == (None, 0, "random")
    assert (grid.merged, grid.excluded) == (2, 2)
    assert grid.axes["byzantine"] == (ANY, "1", "2")


def test_an_attack_that_only_the_base_leaves_out_is_a_mistake_not_a_repair() -> None:
    with pytest.raises(ConfigError, match="byzantine = 2 without an attack; add attack"):
        unrolled(base={"byzantine": 2}, grid={"rounds": [2]})


def test_bundles_set_keys_together_and_merge_with_the_base() -> None:
    tables = [
        {"label": "small", "nodes": 4, "topology": "ring", "train": {"lr": 0.3}},
        {"label": "large", "nodes": 12, "topology": {"name": "random-regular", "degree": 3}},
    ]
    grid = unrolled(base={"train": {"local_steps": 7}}, grid={"size": tables, "rule": ["mean"]})
    small, large = (cell.spec() for cell in grid.cells)
    assert (small.nodes, small.topology.name, small.train.lr, small.train.local_steps) == (4, "ring", 0.3, 7)
    assert (large.nodes, large.topology.options, large.train.lr) == (12, {"degree": 3}, 0.1)
    assert grid.axes["size"] == ("small", "large")


def test_a_named_section_of_the_grid_replaces_the_one_of_the_base() -> None:
    grid = unrolled(base={"rule": {"name": "balance", "gamma": 0.9}}, grid={"rule": ["mean", "balance"]})
    assert [cell.spec().rule.options for cell in grid.cells] == [{}, {"gamma": 0.9}]
    options = unrolled(base={"rule": "balance"}, grid={"rule": {"gamma": [0.1, 0.2]}})
    assert [cell.spec().rule.options["gamma"] for cell in options.cells] == [0.1, 0.2]
    assert options.axes == {"rule.gamma": ("0.1", "0.2")}


def test_labels_are_short_where_they_can_be() -> None:
    rules = ["mean", {"name": "balance"}, {"name": "balance", "gamma": 0.5}, {"name": "mean", "label": "plain"}]
    with pytest.raises(ConfigError, match="are the same run"):
        unrolled(grid={"rule": rules})
    grid = unrolled(grid={"rule": rules[:3], "train.lr": [{"value": 0.1, "label": "fast"}, 0.01]})
    assert grid.axes == {"rule": ("mean", "balance", "balance gamma=0.5"), "train.lr": ("fast", "0.01")}
    assert {cell.spec().train.lr for cell in grid.cells} == {0.1, 0.01}


def test_patterns_know_labels_values_names_lists_seeds_and_keys_of_bundles() -> None:
    sizes = [{"label": "a", "nodes": 6}, {"label": "b", "nodes": 8}]
    axes = {"rule": ["mean", "balance", {"name": "balance", "gamma": 0.5}], "size": sizes}

    def left(**pattern: Any) -> int:
        return len(unrolled(grid=axes, exclude=[pattern], seeds=[4, 5]).cells)

    assert left(rule="mean") == 12 - 4
    assert left(rule="balance") == 12 - 4  # a label comes before the name that several may have
    assert left(rule={"name": "balance", "gamma": 0.5}) == 12 - 4
    assert left(rule=["mean", "balance gamma=0.5"], size="a") == 12 - 4
    assert left(nodes=8, rule="mean") == 12 - 2
    assert left(size=["a"], seed=5) == 12 - 3
    named = {"rule": [{"name": "balance", "gamma": 0.1}, {"name": "balance", "gamma": 0.5}, "mean"]}
    assert len(unrolled(grid=named, exclude=[{"rule": "balance"}]).cells) == 1


def test_included_cells_get_the_labels_of_what_they_are() -> None:
    sizes = [{"label": "a", "nodes": 6}, {"label": "b", "nodes": 8}]
    grid = unrolled(
        grid={"rule": ["mean", "balance"], "size": sizes},
        include=[{"rule": ["mean", {"name": "balance", "gamma": 0.7}], "nodes": 20}, {"rounds": 3, "size": "b"}],
        seeds=2,
    )
    assert list(grid.axes) == ["rule", "size", "nodes", "rounds"]
    extra = {cell.labels for cell in grid.cells} - {cell.labels for cell in grid.cells if cell.labels[3] == "40"}
    assert ("mean", "a", "6", "40") in labels_of(grid)
    assert ("mean", UNKNOWN, "20", "40") in labels_of(grid)
    assert ("pace", "b", "8", "3") in extra
    assert len(grid.cells) == 2 * (4 + 2 + 1)


def test_including_a_cell_that_is_there_changes_nothing() -> None:
    axes = {"rule": ["mean", "balance"], "rounds": [2, 3]}
    plain = unrolled(grid=axes)
    grid = unrolled(grid=axes, include=[{"rule": "mean", "rounds": 2}])
    assert grid.cells == plain.cells
    assert (grid.merged, plain.merged) == (1, 0)


def test_an_engine_can_be_an_axis() -> None:
    grid = unrolled(base={"transport": "memory"}, grid={"engine": ["simulate", "testbed"]}, engine="testbed")
    assert [(cell.engine, cell.labels) for cell in grid.cells] == [
        ("simulate", ("simulate",)),
        ("testbed", ("testbed",)),
    ]


def test_a_graph_from_a_file_brings_its_nodes() -> None:
    grid = unrolled(grid={"topology": ["abilene", "ring"]})
    assert [cell.spec().nodes for cell in grid.cells] == [11, 8]
