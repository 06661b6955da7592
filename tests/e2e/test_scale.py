"""Networks larger than a handful; ``benchmarks/scale.py`` measures how far they go."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import call, started

from gossipfl.records import load_run

WORKLOAD = (
    "--rounds",
    "2",
    "--set",
    "task.model=softmax",
    "--set",
    "partition.samples=40",
    "--set",
    "evaluate_every=2",
)


@pytest.mark.processes
@pytest.mark.parametrize("network", ["--transport mqtt", "--transport libp2p --topology ring"])
def test_many_processes_finish(tmp_path: Path, network: str) -> None:
    with started(tmp_path / "out", "--nodes", "32", *network.split(), *WORKLOAD) as command:
        code, _, told = command.finish()
    assert code == 0, told
    summary = command.run().summary
    assert (summary["rounds_done"], summary["faults"], len(summary["vector_digest"])) == (2, [], 32)
    # Pages that the nodes share with their parent are not theirs.
    assert summary["private_bytes_per_node_median"] < 40e6


@pytest.mark.parametrize(
    ("engine", "nodes"), [(("testbed", "run", "--transport", "memory"), 200), (("simulate",), 2000)]
)
def test_many_nodes_fit_in_one_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: tuple[str, ...], nodes: int
) -> None:
    options = (*WORKLOAD, "--nodes", str(nodes), "--byzantine", str(nodes // 10), "--attack", "sign-flip")
    code, _, told = call(capsys, *engine, *options, "--out", str(tmp_path / "out"), "--quiet", "--no-report")
    assert code == 0, told
    run = load_run(tmp_path / "out")
    assert run.rounds.num_rows == 2 * nodes
    assert run.summary["filter"]["byzantine_rejected"] > 10 * run.summary["filter"]["byzantine_accepted"]
    assert len(run.summary["vector_digest"]) == nodes - nodes // 10
