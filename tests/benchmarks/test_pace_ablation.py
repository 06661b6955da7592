from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from command_line import call

from gossipfl.robust import registry

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pace_ablation.py"
MATRIX = """
[base]
nodes = 10
rounds = 3
evaluate_every = 3
[base.task]
name = "digits"
model = "softmax"
[base.train]
local_steps = 1
[grid]
rule = ["mean", "alone"]
attack = ["none", "gaussian"]
partition = ["iid", "shards"]
network = [{ label = "ring 20 %", topology = "ring", byzantine = 2 }]
"""


def test_every_variant_is_compared_with_what_the_matrix_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, folder, table = tmp_path / "matrix.toml", tmp_path / "matrix", tmp_path / "table.json"
    spec.write_text(MATRIX)
    code, _, told = call(capsys, "experiment", "run", str(spec), "--out", str(folder), "--workers", "1", "--quiet")
    assert code == 0, told
    monkeypatch.setattr(registry, "RULES", registry.RULES)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    words = ["--variants", "pace", "Metropolis weights", "--workers", "1", "--json", str(table)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--matrix", str(folder), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = json.loads(table.read_text())
    assert report["cells"] == 4
    assert [row["variant"] for row in report["rows"]] == ["pace", "Metropolis weights"]
    for row in report["rows"]:
        assert 0 <= row["mean"] <= row["worst"] <= 1
        assert row["mean"] == pytest.approx((row["iid"] + row["shards"]) / 2)
    assert "below alone" in capsys.readouterr().out
