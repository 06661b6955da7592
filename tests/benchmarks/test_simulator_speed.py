"""The benchmark of the simulator compares like with like."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "simulator_speed.py"


@pytest.fixture(scope="module")
def speed() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("simulator_speed", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    torch.set_num_threads(1)
    module = importlib.util.module_from_spec(spec)
    sys.modules["simulator_speed"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["simulator_speed"]


@pytest.mark.parametrize("name", ["softmax-100", "mlp-digits-20", "cnn-mnist-20"])
def test_the_plain_loop_does_the_same_arithmetic(speed: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(speed.CASES, name, replace(speed.CASES[name], nodes=10, images=40))
    monkeypatch.setattr(speed, "STEPS", 2)
    row = speed.measure(name, None, repeats=1)
    # Convolutions round as the processor's kernels do, and ReLUs turn that into other gradients here and there.
    assert row.apart < (1e-4 if name.startswith("cnn") else 1e-6)
    assert row.plain_steps_s > 0
    assert row.simulator_steps_s > 0
    assert 0 < row.mixing < 1
    assert (row.bound is None) == (name == "cnn-mnist-20")


def test_batches_are_permutations_end_to_end(speed: ModuleType) -> None:
    drawn = speed.batches(48, seed=1)
    stream = torch.cat([next(drawn) for _ in range(3)])
    assert sorted(stream[:48].tolist()) == sorted(stream[48:].tolist()) == list(range(48))
