"""Saboteurs between processes: what they do on a real wire harms nobody, and is told in the records."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import started

pytestmark = pytest.mark.processes

ROUNDS = 8
RUN = f"--nodes 4 --topology complete --byzantine 1 --rounds {ROUNDS} --rule balance --seed 1 --set train.local_steps=5"
HONEST_VOTES = ROUNDS * 3 * 2


@pytest.mark.parametrize(
    ("wire", "attack", "counted"),
    [
        ("mqtt", "nan", {"offence-codec", "convicted"}),
        ("libp2p", "replay", {"replay", "recipient"}),
    ],
)
def test_honest_processes_go_on(tmp_path: Path, wire: str, attack: str, counted: set[str]) -> None:
    with started(tmp_path / "out", "--transport", wire, "--attack", attack, *RUN.split()) as command:
        code, _, told = command.finish()
    assert code == 0, told
    summary = command.run().summary
    assert (summary["attack"], summary["rounds_done"]) == (attack, ROUNDS)
    assert (summary["filter"]["honest_accepted"], summary["filter"]["honest_rejected"]) == (HONEST_VOTES, 0)
    assert summary["accuracy"]["min"] > 0.8
    assert counted <= set(summary["dropped"])
    saboteur = f"node-{summary['byzantine'][0]}"
    honest = [event for event in command.run().events() if event["node"] != saboteur]
    for event in honest:
        if event["event"] in {"offence", "peer_muted", "neighbour_lost", "neighbour_restarted", "digest_mismatch"}:
            assert event["peer"] == saboteur
    assert not {"died", "divergence"} & {event["event"] for event in honest}
