"""``gossipfl-node explain``: from the journal and the evidence of a state folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gossip.test_evidence import statement
from typer.testing import CliRunner

from gossipfl.entry import EXIT_USAGE
from gossipfl.errors import ConfigError
from gossipfl.messages import Proof
from gossipfl.messages.statements import format_proof
from gossipfl_node.cli import app
from gossipfl_node.explain import account_of
from gossipfl_node.journal import Journal


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A journal of two starts, the older part of it put aside, the newest line torn by a crash."""
    with Journal(tmp_path / "events.jsonl", "alpha", 4096) as journal:
        for round_ in range(60):
            verdict = {"peer": "beta", "round": round_, "distance": 0.5, "threshold": 1.0}
            journal.add(float(round_), "accept", verdict)
        for round_ in range(60, 64):
            far = {"peer": "beta", "round": round_, "distance": 5.0, "threshold": 1.0, "reason": "farther than others"}
            journal.add(float(round_), "reject", far)
        journal.add(64.0, "peer_muted", {"peer": "beta", "seconds": 2.0, "reason": "codec"})
        journal.add(65.0, "keyframe", {"peer": "beta", "version": 3})
        journal.add(66.0, "accept", {"peer": "gamma", "round": 64, "distance": 0.1, "threshold": 1.0})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"t": 67.0, "event": "reject", "peer": "be')
    assert (tmp_path / "events.jsonl.1").exists()
    return tmp_path


def test_verdicts_reasons_and_events_are_told_of_one_neighbour(state: Path) -> None:
    account = account_of(state, "beta", members={"beta": "id-of-beta"}, last=5)
    assert account.totals == {"accepted": 60, "rejected": 4}
    assert account.reasons == {"farther than others": 4}
    assert [verdict["round"] for verdict in account.verdicts] == [59, 60, 61, 62, 63]
    assert [event["event"] for event in account.events] == ["peer_muted"]
    assert account.counts == {"peer_muted": 1, "keyframe": 1}
    assert account.evidence is None


def test_a_peer_id_is_as_good_as_a_name(state: Path) -> None:
    assert account_of(state, "id-of-beta", members={"beta": "id-of-beta"}, last=5).totals["accepted"] == 60


def test_evidence_is_told(state: Path) -> None:
    proof = Proof(statement(), statement(version=2))
    (state / "evidence").mkdir()
    peer_id = json.loads(format_proof(proof))["sender"]
    (state / "evidence" / f"{peer_id}.json").write_text(format_proof(proof))
    account = account_of(state, "beta", members={"beta": peer_id}, last=5)
    assert account.evidence is not None
    assert "sequence number 1" in account.evidence


def test_a_mistyped_name_gets_one_line(state: Path) -> None:
    with pytest.raises(ConfigError, match='nothing is known of "betta"; did you mean "beta"'):
        account_of(state, "betta", members={"beta": "x"}, last=5)


def test_the_command_prints_a_table_or_json(state: Path) -> None:
    runner = CliRunner()
    told = runner.invoke(app, ["explain", "beta", "--state", str(state), "--last", "3"])
    assert told.exit_code == 0, told.output
    assert "4 x farther than others" in told.output
    assert "peer_muted" in told.output
    document = json.loads(runner.invoke(app, ["explain", "beta", "--state", str(state), "--json"]).output)
    assert document["verdicts"] == {"accepted": 60, "rejected": 4}
    wrong = runner.invoke(app, ["explain", "beta"])
    assert isinstance(wrong.exception, ConfigError)
    assert EXIT_USAGE == 2
