"""What a daemon keeps on its disk: lock, incarnation, replay marks, events."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gossipfl.codec import make_codec
from gossipfl.errors import ConfigError
from gossipfl.gossip import GossipCore, GossipSettings, Party, Send
from gossipfl.identity import Identity
from gossipfl.membership import Membership
from gossipfl.robust.registry import make_rule
from gossipfl_node.journal import OLDER_FILES, Journal
from gossipfl_node.logs import start_logging
from gossipfl_node.narrate import LINES, PEER_LINES, narrate
from gossipfl_node.state import MAX_ADDRESSES_BYTES, StateFolder, find_mistakes, running_pid
from gossipfl_node.status_socket import NotRunningError, ask

CLOCK_S = 1_800_000_000.0


@pytest.mark.parametrize("clock_s", [CLOCK_S, 0.0, -5.0])
def test_the_incarnation_grows_whatever_the_clock_says(tmp_path: Path, clock_s: float) -> None:
    seen = []
    for at in (CLOCK_S, clock_s, clock_s, 1.0):
        with StateFolder(tmp_path / "state") as state:
            seen.append(state.next_incarnation(at))
    assert seen == sorted(set(seen))
    assert seen[0] == CLOCK_S


def test_a_site_that_lost_its_folder_is_believed_again(tmp_path: Path) -> None:
    """The clock stands in for the count that is gone."""
    with StateFolder(tmp_path / "old") as state:
        former = [state.next_incarnation(CLOCK_S) for _ in range(3)]
    with StateFolder(tmp_path / "new") as state:
        assert state.next_incarnation(CLOCK_S + 60) > max(former)


@pytest.mark.parametrize("content", ["", "-1", "many", "9" * 30])
def test_a_broken_incarnation_is_a_clear_line(tmp_path: Path, content: str) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "incarnation").write_text(content)
    (line,) = find_mistakes(tmp_path)
    assert str(tmp_path / "incarnation") in line
    with pytest.raises(ConfigError, match="holds no number; delete it"), StateFolder(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "[]", "3", '{"a": 1}', '{"a": [1]}', '{"a": ["x", 1]}', '{"a": [null, 1]}'])
def test_broken_replay_marks_are_a_clear_line(tmp_path: Path, content: str) -> None:
    if content == "[]":
        content = "[1]"
    (tmp_path / "replay.json").write_text(content)
    with pytest.raises(ConfigError, match="is broken; restore it, or delete it"):
        StateFolder(tmp_path).replay_marks()


def test_replay_marks_come_back_as_they_were_saved(tmp_path: Path) -> None:
    marks = {"one": (3, 17), "two": (2**40, 2**33)}
    state = StateFolder(tmp_path)
    assert state.replay_marks() == {}
    state.save_replay_marks(marks)
    assert state.replay_marks() == marks
    assert list(tmp_path.iterdir()) == [tmp_path / "replay.json"], "no half-written file is left"


def test_address_records_come_back_as_they_were_saved(tmp_path: Path) -> None:
    records = [bytes(range(256)), b"", b"\n"]
    state = StateFolder(tmp_path)
    assert state.address_records() == []
    state.save_address_records(records)
    assert state.address_records() == records
    state.save_address_records([])
    assert state.address_records() == []
    assert list(tmp_path.iterdir()) == [tmp_path / "addresses.json"], "no half-written file is left"


def test_address_records_are_bounded(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.save_address_records([number.to_bytes(2) * 1024 for number in range(1000)])
    assert (tmp_path / "addresses.json").stat().st_size <= MAX_ADDRESSES_BYTES
    kept = state.address_records()
    assert 100 < len(kept) < 1000
    assert kept[-1] == (len(kept) - 1).to_bytes(2) * 1024


@pytest.mark.parametrize(
    "content", [b"", b"3", b"null", b'"abc"', b"[1]", b'["?"]', b'["YQ"]', b'["\xc3\xa9"]', b"\xff", b"[" * 100_000]
)
def test_broken_address_records_are_begun_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """They are signed, and every neighbour has them: no reason to keep a site from starting."""
    (tmp_path / "addresses.json").write_bytes(content)
    tmp_path.chmod(0o700)
    with StateFolder(tmp_path) as state:
        assert state.address_records() == []
        assert "is broken, and begun anew" in caplog.text
        state.save_address_records([b"new"])
        assert state.address_records() == [b"new"]


def test_the_folder_is_private_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state"
    assert running_pid(path) is None
    with StateFolder(path):
        assert path.stat().st_mode & 0o777 == 0o700
        assert running_pid(path) == os.getpid()
        code = "import sys, pathlib; from gossipfl_node.state import StateFolder as Folder\n"
        code += "with Folder(pathlib.Path(sys.argv[1])): pass"
        second = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
        assert f"is in use by process {os.getpid()}; stop that daemon" in second.stderr
    assert running_pid(path) is None


def test_a_daemon_that_does_not_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="does not exist"):
        ask(tmp_path / "none")
    with pytest.raises(NotRunningError, match="no daemon is running"):
        ask(tmp_path)
    with (
        StateFolder(tmp_path / "state"),
        pytest.raises(NotRunningError, match=rf"process {os.getpid()}\) does not answer"),
    ):
        ask(tmp_path / "state")


# ---------------------------------------------------------------------------------------------- replay over a restart


def _core(identity: Identity, other: Identity, membership: Membership, incarnation: int) -> GossipCore:
    return GossipCore(
        Party(identity, membership, incarnation, {other.peer_id: 0.5}),
        b"layout".ljust(32, b"\0"),
        torch.zeros(4),
        make_rule("mean"),
        make_codec("float32"),
        GossipSettings(mode="async"),
    )


def test_a_replay_from_before_a_restart_is_refused() -> None:
    ann, bob = Identity.from_seed(b"a" * 32), Identity.from_seed(b"b" * 32)
    membership = Membership.from_ids("replayed", {"ann": ann.peer_id, "bob": bob.peer_id})
    sender, receiver = _core(bob, ann, membership, 5), _core(ann, bob, membership, 1)
    frames = [effect.frame for effect in sender.start(0.0) if isinstance(effect, Send)]
    for now in range(1, 5):
        frames += [effect.frame for effect in sender.tick(float(now)) if isinstance(effect, Send)]
    for frame in frames[:-1]:
        receiver.receive(frame, 1.0)
    marks = receiver.replay_marks()
    assert marks == {bob.peer_id: (5, len(frames) - 1)}

    restarted = _core(ann, bob, membership, 2)
    restarted.restore_replay_marks({**marks, "12D3KooWsomebody": (9, 9)})
    assert restarted.replay_marks() == marks
    for frame in frames[:-1]:
        assert restarted.receive(frame, 9.0) == []
    assert restarted.exchange.post.dropped == {"replay": len(frames) - 1}
    assert not restarted.followed[bob.peer_id].joined
    assert restarted.receive(frames[-1], 9.0) != [], "what is new is heard"


# ---------------------------------------------------------------------------------------------- events and log


def test_the_journal_is_bounded_however_much_happens(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Journal(path, "alpha", 4096) as journal:
        for number in range(2000):
            journal.add(number / 10, "round", {"round": number, "loss": float("nan")})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + OLDER_FILES
    assert all(file.stat().st_size <= 4096 for file in files)
    lines = [json.loads(line) for file in [*reversed(files[1:]), files[0]] for line in file.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(2000 - len(lines), 2000))
    assert {(line["node"], line["event"], line["loss"]) for line in lines} == {("alpha", "round", None)}
    assert all(line["time"].endswith("Z") for line in lines)


def test_the_journal_goes_on_after_a_restart(tmp_path: Path) -> None:
    for start in range(3):
        with Journal(tmp_path / "events.jsonl", "alpha", 4096) as journal:
            journal.add(0.0, "started", {"start": start})
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["start"] for line in lines] == [0, 1, 2]


def test_a_disk_that_takes_nothing_does_not_stop_the_site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "away" / "events.jsonl"
    with caplog.at_level(logging.WARNING), Journal(path, "alpha", 4096) as journal:
        for _ in range(3):
            journal.add(0.0, "round", {})
            journal.flush()
        path.parent.mkdir()
        journal.add(0.0, "round", {})
        journal.flush()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "3 were lost" in caplog.text
    assert len(path.read_text().splitlines()) == 1


def test_every_event_is_one_readable_line(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"peer": "beta", "round": 3, "silent": ["beta", "gamma"], "silent_s": 10.2, "reason": "layout"}
    fields |= {"detail": "x", "count": 2, "seconds": 4.0, "missing_chunks": 3, "rounds": 30}
    fields |= {"loss": 0.5, "own_loss": 0.7, "version": 2, "members": 4}
    with caplog.at_level(logging.DEBUG, logger="gossipfl_node"):
        for event in LINES:
            narrate(event, fields)
        narrate("something_new", {"a": 1})
        narrate("neighbour_lost", {})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(LINES) + 2
    assert not any("{" in message for message in messages[: len(LINES)])
    assert messages[-2:] == ["something_new {'a': 1}", "neighbour_lost {}"]


def test_links_to_a_broker_and_to_neighbours_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="gossipfl_node"):
        for event in PEER_LINES:
            narrate(event, {"detail": "x"})
            narrate(event, {"detail": "x", "peer": "beta"})
        narrate("link-refused", {"detail": "x", "peer": "beta"})
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "connected to the broker at x",
        "beta connected at x",
        "lost the broker, trying again until it answers: x",
        "lost the link to beta: x",
        "a connection with beta was refused: x",
    ]


def test_logs_as_json_carry_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        start_logging("info", as_json=True)
        narrate("neighbour_lost", {"peer": "beta", "silent_s": 4.0})
        narrate("resync", {"peer": "beta"})
    finally:
        root.handlers, level = before[0], before[1]
        root.setLevel(level)
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["event"], entry["peer"]) == ("warning", "neighbour_lost", "beta")
