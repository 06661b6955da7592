"""One equation, three programs: matrices, agents in virtual time, and processes over MQTT end in the same models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl.cli.progress import Silence
from gossipfl.config import RunSpec, load_spec
from gossipfl.records import RunRecords, load_run
from gossipfl.testbed.run import run_testbed
from gossipfl.testbed.simulated import run_simulation

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

ATTACKED = [("mean", "sign-flip"), ("mean", "gaussian"), ("balance", "sign-flip"), ("balance", "gaussian")]
CASES = [
    ("mean", None, "float32"),
    ("balance", None, "int8"),
    ("balance", "label-flip", "float32"),
    *((rule, attack, codec) for rule, attack in ATTACKED for codec in ("float32", "int8")),
]
NODES = 8


def spec_of(rule: str, attack: str | None, codec: str, transport: str) -> RunSpec:
    flags = {
        "nodes": NODES,
        "transport": transport,
        "rounds": 4,
        "rule": rule,
        "attack": attack,
        "byzantine": 2 if attack else 0,
        "codec": codec,
        "seed": 5,
    }
    return load_spec(None, flags, ["keep_vectors=true", "train.local_steps=3"])


def name_of(rule: str, attack: str | None, codec: str) -> str:
    return f"{rule}-{attack}-{codec}"


def run_all_over_mqtt(out: Path) -> None:
    """Run every case as processes; called in a process of its own, which loads torch once for all of them."""
    for case in CASES:
        with RunRecords(out / name_of(*case)) as records:
            run_testbed(spec_of(*case, transport="mqtt"), records, Silence())


@pytest.fixture(scope="module")
def over_mqtt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mqtt")
    program = "import sys, pathlib, test_parity; test_parity.run_all_over_mqtt(pathlib.Path(sys.argv[1]))"
    # Forked from here, the nodes would inherit whatever other tests have left in this process.
    subprocess.run([sys.executable, "-c", program, str(out)], cwd=Path(__file__).parent, check=True, timeout=150)
    return out


def vectors(out: Path) -> dict[int, Any]:
    with np.load(out / "vectors.npz") as kept:
        return {int(node): kept[node] for node in kept}


def vector_digests(out: Path) -> Mapping[str, str]:
    digests: Mapping[str, str] = load_run(out).summary["vector_digest"]
    return digests


@pytest.mark.parametrize(("rule", "attack", "codec"), CASES)
def test_all_three_engines_agree(over_mqtt: Path, tmp_path: Path, rule: str, attack: str | None, codec: str) -> None:
    for name, engine in (("agents", run_testbed), ("matrices", run_simulation)):
        with RunRecords(tmp_path / name) as records:
            records.write_summary(engine(spec_of(rule, attack, codec, "memory"), records, Silence()))
    processes = over_mqtt / name_of(rule, attack, codec)
    assert vector_digests(tmp_path / "agents") == vector_digests(processes)
    of_agents, of_matrices, of_processes = map(vectors, (tmp_path / "agents", tmp_path / "matrices", processes))
    assert sorted(of_agents) == sorted(of_matrices) == sorted(of_processes) == list(range(NODES))
    for node, vector in of_processes.items():
        assert np.array_equal(of_agents[node], vector)
        assert np.linalg.norm(of_matrices[node] - vector) <= 1e-5 * np.linalg.norm(vector)
        assert np.linalg.norm(vector) > 0
    assert len({vector.tobytes() for vector in of_processes.values()}) == NODES
