"""Whole runs over each wire between processes: the demo, and a model that is large."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import started

pytestmark = pytest.mark.processes

DEMO = "--nodes 8 --byzantine 2 --attack sign-flip --set attack.strength=4 --rounds 20 --set train.local_steps=3"
HIDDEN = 133_333
"""Hidden units of the large model: 10 million parameters, so that an update has 40 MB."""


@pytest.mark.parametrize("wire", ["mqtt", "libp2p"])
def test_eight_processes_find_out_the_two_that_lie(tmp_path: Path, wire: str) -> None:
    with started(tmp_path / "out", "--transport", wire, *DEMO.split()) as command:
        code, _, told = command.finish()
    assert code == 0, told
    summary = command.run().summary
    assert (summary["transport"], summary["rounds_done"], summary["faults"]) == (wire, 20, [])
    verdicts = summary["filter"]
    assert verdicts["byzantine_accepted"] == verdicts["honest_rejected"] == 0
    assert verdicts["byzantine_rejected"] > 0
    assert summary["accuracy"]["min"] > 0.8


@pytest.mark.timeout(180)
def test_a_large_model_is_learnt_together(tmp_path: Path) -> None:
    options = (
        f"--nodes 2 --transport libp2p --rounds 2 --rule mean --set task.hidden={HIDDEN} --set train.local_steps=1"
    )
    with started(tmp_path / "out", *options.split(), "--set", "train.lr=0.01") as command:
        code, _, told = command.finish()
    assert code == 0, told
    run = command.run()
    assert (run.summary["rounds_done"], run.summary["faults"]) == (2, [])
    rows = run.rounds.to_pylist()
    # A replica is compared with its owner's digest before anybody mixes it.
    assert sum(row["accepted_honest"] for row in rows) == 4
    assert all(row["bytes_sent"] > 4 * 75 * HIDDEN for row in rows)
    assert not any(event["event"] in {"digest_mismatch", "keyframe"} for event in run.events())
