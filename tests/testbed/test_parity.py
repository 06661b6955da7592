"""One equation, four programs: matrices, agents in virtual time, and processes over each wire, all end alike."""

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

pytestmark = [pytest.mark.processes, pytest.mark.timeout(320)]

ATTACKED = [("mean", "sign-flip"), ("mean", "gaussian"), ("pace", "sign-flip"), ("pace", "gaussian")]
CASES = [
    ("mean", None, "float32"),
    ("pace", None, "int8"),
    ("balance", "label-flip", "float32"),
    ("balance", "gaussian", "int8"),
    *((rule, attack, codec) for rule, attack in ATTACKED for codec in ("float32", "int8")),
]
NODES = 8
WIRES = {"mqtt": CASES, "libp2p": CASES[1::3]}
"""A wire carries bytes, whatever they mean: one of them carries all cases."""


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


def run_all_over(wire: str, out: Path) -> None:
    """Run the wire's cases as processes; called in a process of its own, which loads torch once for all of them."""
    for case in WIRES[wire]:
        with RunRecords(out / name_of(*case)) as records:
            run_testbed(spec_of(*case, transport=wire), records, Silence())


@pytest.fixture(scope="module")
def over_wires(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    program = "import sys, pathlib, test_parity; test_parity.run_all_over(sys.argv[1], pathlib.Path(sys.argv[2]))"
    outs = {wire: tmp_path_factory.mktemp(wire) for wire in WIRES}
    for wire, out in outs.items():
        # Forked from here, the nodes would inherit whatever other tests have left in this process.
        command = [sys.executable, "-c", program, wire, str(out)]
        subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=150)
    return outs


def vectors(out: Path) -> dict[int, Any]:
    with np.load(out / "vectors.npz") as kept:
        return {int(node): kept[node] for node in kept}


def vector_digests(out: Path) -> Mapping[str, str]:
    digests: Mapping[str, str] = load_run(out).summary["vector_digest"]
    return digests


@pytest.mark.parametrize(("rule", "attack", "codec"), CASES)
def test_all_engines_agree(
    over_wires: dict[str, Path], tmp_path: Path, rule: str, attack: str | None, codec: str
) -> None:
    for name, engine in (("agents", run_testbed), ("matrices", run_simulation)):
        with RunRecords(tmp_path / name) as records:
            records.write_summary(engine(spec_of(rule, attack, codec, "memory"), records, Silence()))
    of_agents, of_matrices = vectors(tmp_path / "agents"), vectors(tmp_path / "matrices")
    assert sorted(of_agents) == sorted(of_matrices) == list(range(NODES))
    for node, vector in of_agents.items():
        assert np.linalg.norm(of_matrices[node] - vector) <= 1e-5 * np.linalg.norm(vector)
        assert np.linalg.norm(vector) > 0
    assert len({vector.tobytes() for vector in of_agents.values()}) == NODES
    carried = [out for wire, out in over_wires.items() if (rule, attack, codec) in WIRES[wire]]
    for processes in (out / name_of(rule, attack, codec) for out in carried):
        assert vector_digests(tmp_path / "agents") == vector_digests(processes)
        of_processes = vectors(processes)
        assert sorted(of_processes) == list(range(NODES))
        assert all(np.array_equal(of_agents[node], vector) for node, vector in of_processes.items())


TOLD = [{"name": "wfagg", "f": "known"}, {"name": "ubar"}, {"name": "ios", "f": "known"}]


@pytest.mark.parametrize("rule", TOLD, ids=lambda rule: str(rule["name"]))
def test_agents_tell_rules_what_the_simulator_tells_them(tmp_path: Path, rule: dict[str, Any]) -> None:
    """Last round's models, memory, losses and the truth about neighbours: by way of the protocol as by matrices."""
    for name, engine in (("agents", run_testbed), ("matrices", run_simulation)):
        spec = spec_of(rule["name"], "sign-flip", "float32", "memory")
        spec = RunSpec.model_validate({**spec.as_dict(), "rule": rule, "topology": "complete", "rounds": 6})
        with RunRecords(tmp_path / name) as records:
            records.write_summary(engine(spec, records, Silence()))
    of_agents, of_matrices = vectors(tmp_path / "agents"), vectors(tmp_path / "matrices")
    for node, vector in of_agents.items():
        assert np.linalg.norm(of_matrices[node] - vector) <= 1e-5 * np.linalg.norm(vector)
    verdicts = [load_run(tmp_path / name).summary["filter"] for name in ("agents", "matrices")]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]["byzantine_rejected"] > 0
