"""The audit log: what it keeps over crashes and full disks, and whether any change of it is found."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossipfl.agent import RoundReport
from gossipfl.errors import ConfigError
from gossipfl.gossip import Mixing, Report
from gossipfl.identity import Identity
from gossipfl.robust.base import Verdict as RuleVerdict
from gossipfl.tasks.base import TrainReport
from gossipfl_node.audit import AuditLog, Turning, Verdict, describe, verify
from gossipfl_node.audit.entries import MAX_LINE_BYTES
from gossipfl_node.audit.log import BATCH, MAX_FIELDS_BYTES, MAX_WAITING

KEY = Identity.from_seed(bytes(range(32)))
OTHER_KEY = Identity.from_seed(bytes(range(1, 33)))
SEED = bytes(range(32)).hex()


def write(folder: Path, count: int, *, max_bytes: int = 1 << 20, older_files: int = 15, each: bool = True) -> None:
    """Add ``count`` entries in one start of a daemon, ``each`` flushed by itself."""
    with AuditLog(folder, KEY, max_bytes=max_bytes, older_files=older_files) as log:
        for number in range(count):
            log.add("verdict", {"peer": "beta", "round": number, "distance": 0.1 * number})
            if each:
                log.flush()


def lines(folder: Path) -> list[bytes]:
    return (folder / "audit.jsonl").read_bytes().splitlines()


def entries(folder: Path) -> list[dict[str, Any]]:
    """Return all entries in all files, in order; what is no JSON is left out."""
    found = []
    for path in [*sorted(folder.glob("audit-*.jsonl")), folder / "audit.jsonl"]:
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


def kinds(folder: Path) -> list[str]:
    return [entry["kind"] for entry in entries(folder)]


def sound(folder: Path, **more: Any) -> Verdict:
    verdict = verify(folder, KEY.peer_id, **more)
    assert verdict.ok, verdict.findings
    return verdict


def found(folder: Path, **more: Any) -> str:
    verdict = verify(folder, KEY.peer_id, **more)
    assert not verdict.ok
    return "\n".join(verdict.findings)


@contextlib.contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``limit_bytes``: writes fail half-way, as on a disk that is full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


# ------------------------------------------------------------------------------------------ what is written


def test_entries_are_numbered_chained_and_signed(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY) as log:
        log.add("start", {"incarnation": 7, "loss": float("nan"), "name": "Zürich \ud800"})
        log.add("stop", {})
    anchor, start, stop = entries(tmp_path)
    assert [anchor["kind"], start["kind"], stop["kind"]] == ["anchor", "start", "stop"]
    assert [anchor["n"], start["n"], stop["n"]] == [0, 1, 2]
    assert anchor["prev"] == "0" * 64
    assert start["fields"] == {"incarnation": 7, "loss": None, "name": "Zürich \ud800"}
    assert all(list(entry) == ["n", "time", "kind", "fields", "prev", "sig"] for entry in entries(tmp_path))
    verdict = sound(tmp_path)
    assert (verdict.entries, verdict.first, verdict.last) == (3, (0, anchor["time"]), (2, stop["time"]))
    assert verdict.kinds == {"anchor": 1, "start": 1, "stop": 1}
    assert not verdict.notes
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.head", "audit.jsonl"]


def test_a_log_goes_on_over_many_starts(tmp_path: Path) -> None:
    for _ in range(5):
        write(tmp_path, 3)
    assert [entry["n"] for entry in entries(tmp_path)] == list(range(16))
    assert kinds(tmp_path).count("anchor") == 1
    assert sound(tmp_path, at_least=16).entries == 16
    assert "entry 16 is missing at the end" in found(tmp_path, at_least=17)


def test_nothing_is_written_where_nothing_happened(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY) as log:
        log.flush()
    assert not list(tmp_path.iterdir())


def test_what_is_too_long_or_no_json_is_told_as_such(tmp_path: Path) -> None:
    circle: dict[str, Any] = {}
    circle["again"] = circle
    with AuditLog(tmp_path, KEY) as log:
        log.add("evidence", {"frame": "f" * MAX_FIELDS_BYTES})
        log.add("evidence", circle)
        log.add("evidence", {"frame": "é" * (MAX_FIELDS_BYTES // 6 - 10)})
    _, long, round_, fits = entries(tmp_path)
    assert long["fields"]["oversized"] > MAX_FIELDS_BYTES
    assert "no JSON" in round_["fields"]["unreadable"]
    assert fits["fields"]["frame"][0] == "é"
    assert max(map(len, lines(tmp_path))) < MAX_LINE_BYTES
    sound(tmp_path)


def test_full_files_are_put_aside_and_the_chain_goes_through_all(tmp_path: Path) -> None:
    for _ in range(3):
        write(tmp_path, 10, max_bytes=1500)
    files = sorted(tmp_path.glob("audit-*.jsonl"))
    assert len(files) > 3
    for path in (*files, tmp_path / "audit.jsonl"):
        assert json.loads(path.read_bytes().splitlines()[0])["kind"] == "anchor"
    assert [entry["n"] for entry in entries(tmp_path)] == list(range(len(entries(tmp_path))))
    assert kinds(tmp_path).count("verdict") == 30
    assert not sound(tmp_path).notes
    files[1].unlink()
    assert "are missing before entry" in found(tmp_path)


def test_the_oldest_files_go_and_the_log_says_so(tmp_path: Path) -> None:
    write(tmp_path, 60, max_bytes=1500, older_files=2)
    files = sorted(tmp_path.glob("audit-*.jsonl"))
    assert len(files) == 2
    verdict = sound(tmp_path)
    assert verdict.first is not None
    assert verdict.first[0] > 0
    assert "were put away by the site" in "\n".join(verdict.notes)
    files[0].unlink()
    assert "are missing at the beginning" in found(tmp_path)


def test_no_older_file_is_kept_where_none_shall_be(tmp_path: Path) -> None:
    write(tmp_path, 30, max_bytes=1500, older_files=0)
    assert not list(tmp_path.glob("audit-*.jsonl"))
    sound(tmp_path)


def test_a_start_between_putting_aside_and_the_anchor(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit-0000000000000000.jsonl")
    write(tmp_path, 2)
    assert kinds(tmp_path) == ["anchor", *["verdict"] * 5, "anchor", *["verdict"] * 2]
    sound(tmp_path)


def test_entries_from_many_threads_while_others_flush(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY, max_bytes=4000) as log:

        def add() -> None:
            for number in range(30):
                log.add("offence", {"count": number})
                log.flush()

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sound(tmp_path).kinds["offence"] == 120


def test_figures_tell_how_the_log_stands(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY) as log:
        log.add("start", {})
        assert {figure.name: figure.value for figure in log.figures()} == {
            "gossipfl_audit_entries_total": 0,
            "gossipfl_audit_lost_total": 0,
            "gossipfl_audit_waiting_entries": 1,
        }
        log.flush()
        assert [figure.value for figure in log.figures()] == [2, 0, 0]


# ------------------------------------------------------------------------------------------ crashes

WRITER = """
import sys
from pathlib import Path
from gossipfl.identity import Identity
from gossipfl_node.audit import AuditLog

log = AuditLog(Path(sys.argv[1]), Identity.from_seed(bytes.fromhex(sys.argv[2])), max_bytes=3 << 20)
log.add("start", {})
log.flush()
"""
ENDLESS = """
while True:
    for _ in range(64):
        log.add("evidence", {"frame": "f" * 15000})
    log.flush()
    print(flush=True)
"""
MIDLINE = """
import resource, signal
size = (Path(sys.argv[1]) / "audit.jsonl").stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[3]), size + int(sys.argv[3])))
for number in range(3):
    log.add("evidence", {"number": number})
log.flush()
"""


def test_a_daemon_killed_while_it_writes_loses_only_what_it_had_not_flushed(tmp_path: Path) -> None:
    flushed = 0
    for rounds in (1, 3, 2):
        command = [sys.executable, "-c", WRITER + ENDLESS, str(tmp_path), SEED]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(rounds):
                assert process.stdout.readline()
            process.kill()
        assert process.returncode == -signal.SIGKILL
        flushed += rounds * 64
        sound(tmp_path)
        write(tmp_path, 1)
        assert sound(tmp_path).kinds["evidence"] >= flushed


def kill_midline(folder: Path, after_bytes: int) -> None:
    """Have the kernel kill a daemon ``after_bytes`` into its write of three entries."""
    command = [sys.executable, "-c", WRITER + MIDLINE, str(folder), SEED, str(after_bytes)]
    process = subprocess.run(command, check=False, capture_output=True)
    assert process.returncode == -signal.SIGXFSZ, process.stderr


@pytest.mark.parametrize("after_bytes", [1, 100, 400, 700])
def test_a_torn_line_stays_where_it_is_and_is_told(tmp_path: Path, after_bytes: int) -> None:
    kill_midline(tmp_path, after_bytes)
    torn = (tmp_path / "audit.jsonl").read_bytes()
    assert not torn.endswith(b"\n")
    verdict = sound(tmp_path)
    assert "bytes at the end are no entry" in "\n".join(verdict.notes)
    write(tmp_path, 2)
    after = (tmp_path / "audit.jsonl").read_bytes()
    assert after.startswith(torn + b"\n"), "nothing is ever taken back"
    (told,) = [entry for entry in entries(tmp_path) if entry["kind"] == "recovered"]
    fragment = torn.rpartition(b"\n")[2]
    assert told["fields"]["torn"]["bytes"] == len(fragment) + 1
    assert "are no entry, as a crash leaves them" in "\n".join(sound(tmp_path).notes)
    (tmp_path / "audit.jsonl").write_bytes(after.replace(fragment + b"\n", b""))
    assert "tells of bytes before it that are gone" in found(tmp_path)
    (tmp_path / "audit.jsonl").write_bytes(after.replace(fragment, b"x" + fragment))
    assert "no entry that" in found(tmp_path)


def test_a_line_that_lacks_only_its_end_is_an_entry(tmp_path: Path) -> None:
    write(tmp_path, 3)
    path = tmp_path / "audit.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    sound(tmp_path)
    write(tmp_path, 1)
    assert kinds(tmp_path) == ["anchor", *["verdict"] * 4]
    sound(tmp_path)


@pytest.mark.parametrize("left", [b"", b'{"n":0,"ti', b"\0" * 5000, b"\n\n", b"x" * (3 * MAX_LINE_BYTES)])
def test_what_a_crash_leaves_of_the_very_first_entry(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "audit.jsonl").write_bytes(left)
    write(tmp_path, 1)
    assert kinds(tmp_path) == ["anchor", "verdict"]
    sound(tmp_path)


def test_a_crash_before_the_head_is_named_is_no_finding(tmp_path: Path) -> None:
    write(tmp_path, 2)
    head = (tmp_path / "audit.head").read_bytes()
    write(tmp_path, 3)
    (tmp_path / "audit.head").write_bytes(head)
    assert "names entry 2: the site was killed before it named 5" in "\n".join(sound(tmp_path).notes)
    write(tmp_path, 1)
    assert not sound(tmp_path).notes


# ------------------------------------------------------------------------------------------ disks that take no more


def test_entries_wait_for_a_disk_that_takes_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AuditLog(tmp_path, KEY) as log:
        log.add("start", {})
        log.flush()
        size = (tmp_path / "audit.jsonl").stat().st_size
        for number in range(100):
            log.add("verdict", {"round": number})
            with full_disk(size + 150):
                log.flush()
            assert (tmp_path / "audit.jsonl").stat().st_size == size, "no half line is left"
        assert log.lost == 0
    assert [entry["fields"].get("round") for entry in entries(tmp_path)] == [None, None, *range(100)]
    sound(tmp_path)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "cannot be written: File too large; entries wait" in caplog.text


def test_what_cannot_wait_is_lost_counted_and_told(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY) as log:
        log.add("start", {})
        log.flush()
        for number in range(MAX_WAITING + 30):
            log.add("verdict", {"round": number})
        with full_disk(100):
            log.flush()
        assert log.lost == 30
        log.flush()
        log.add("stop", {})
    assert kinds(tmp_path) == ["anchor", "start", *["verdict"] * MAX_WAITING, "lost", "stop"]
    assert entries(tmp_path)[-2]["fields"]["count"] == 30
    assert "could not keep 30 entries" in "\n".join(sound(tmp_path).notes)


def test_a_disk_that_is_full_from_the_start_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(tmp_path, KEY)
    with full_disk(0):
        for _ in range(3):
            log.add("start", {})
            log.flush()
    log.flush()
    log.close()
    assert kinds(tmp_path) == ["anchor", *["start"] * 3]
    sound(tmp_path)
    assert len(caplog.records) == 2


def test_a_full_disk_while_a_file_is_put_aside(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY, max_bytes=1200, older_files=1) as log:
        for number in range(40):
            log.add("verdict", {"round": number})
            with full_disk(1200 if number % 2 else 1 << 20):
                log.flush()
    assert sound(tmp_path).last is not None


@pytest.mark.parametrize("how", ["folder", "symlink", "pipe", "absent"])
def test_a_log_that_cannot_be_a_file_stops_nobody(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    state = tmp_path / "state"
    path = state / "audit.jsonl"
    if how != "absent":
        state.mkdir()
    match how:
        case "folder":
            path.mkdir()
        case "symlink":
            path.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(path)
    log = AuditLog(state, KEY)
    log.add("start", {})
    log.flush()
    log.close()
    assert "cannot be written" in caplog.text
    assert "1 audit entries could not be written, and are lost" in caplog.text
    assert "cannot be read" in found(state)


def test_a_file_that_somebody_changes_under_a_daemon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AuditLog(tmp_path, KEY) as log:
        for _ in range(5):
            log.add("start", {})
            log.flush()
        (tmp_path / "audit.jsonl").write_bytes(b"".join(line + b"\n" for line in lines(tmp_path)[:3]))
        log.add("stop", {})
        log.flush()
        assert entries(tmp_path)[3]["fields"]["missing"] == {"from": 3, "to": 5}
        (tmp_path / "audit.jsonl").unlink()
        log.add("stop", {})
    assert kinds(tmp_path) == ["anchor", "stop"]
    assert "was changed by somebody else" in caplog.text
    assert "entries up to 7 were gone when the site started" in found(tmp_path)


# ------------------------------------------------------------------------------------------ what is found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in three files."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder, 9, max_bytes=1400)
    assert len(list(folder.glob("audit*.jsonl"))) == 3
    sound(folder)
    return folder


@contextlib.contextmanager
def changed(whole: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Give a copy of the log with some files changed."""
    folder = whole.parent / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    yield folder
    shutil.rmtree(folder)


SLOW = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(data=st.data())
def test_any_byte_that_is_changed_is_found(whole: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(whole.iterdir())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    with changed(whole, {path.name: bytes(content)}) as folder:
        found(folder)


def test_any_bit_of_an_end_that_is_changed_is_found(whole: Path) -> None:
    """The last bytes matter most: no later line holds their digest."""
    path = whole / "audit.jsonl"
    content = path.read_bytes()
    with changed(whole, {}) as folder:
        for place in range(len(content) - 50, len(content)):
            for bit in range(8):
                (folder / path.name).write_bytes(
                    content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]
                )
                found(folder)


@SLOW
@given(data=st.data())
def test_any_line_that_is_removed_moved_or_repeated_is_found(whole: Path, data: st.DataObject) -> None:
    paths = [path for path in sorted(whole.iterdir()) if path.suffix == ".jsonl"]
    all_lines = {path.name: path.read_bytes().splitlines(keepends=True) for path in paths}
    name = data.draw(st.sampled_from(sorted(all_lines)))
    some = list(all_lines[name])
    place = data.draw(st.integers(0, len(some) - 1))
    match data.draw(st.sampled_from(["removed", "moved", "repeated", "swapped", "elsewhere"])):
        case "removed":
            del some[place]
        case "moved":
            line = some.pop(place)
            some.insert(data.draw(st.integers(0, len(some)).filter(lambda to: to != place)), line)
        case "repeated":
            some.insert(data.draw(st.integers(0, len(some))), some[place])
        case "swapped":
            other = data.draw(st.integers(0, len(some) - 1).filter(lambda other: other != place))
            some[place], some[other] = some[other], some[place]
        case "elsewhere":
            foreign = data.draw(st.sampled_from(sorted(set(all_lines) - {name})))
            some.insert(place, data.draw(st.sampled_from(all_lines[foreign])))
    with changed(whole, {name: b"".join(some)}) as folder:
        found(folder)


@SLOW
@given(data=st.data())
def test_any_line_that_is_inserted_is_found(whole: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for path in sorted(whole.iterdir()) if path.suffix == ".jsonl"]))
    some = path.read_bytes().splitlines(keepends=True)
    new = data.draw(st.binary(max_size=200) | st.sampled_from([b"{}", b"[" * 50_000, b"\xff" * 100, b"null"]))
    some.insert(data.draw(st.integers(0, len(some))), new + b"\n")
    with changed(whole, {path.name: b"".join(some)}) as folder:
        found(folder)


@SLOW
@given(content=st.binary(max_size=3000), head=st.binary(max_size=300))
def test_no_content_makes_it_raise(whole: Path, content: bytes, head: bytes) -> None:
    with changed(whole, {"audit.jsonl": content, "audit.head": head}) as folder:
        found(folder)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_entries_taken_from_the_end_are_found(tmp_path: Path, count: int) -> None:
    write(tmp_path, 8)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(line + b"\n" for line in lines(tmp_path)[:-count]))
    told = f"entry {8} is" if count == 1 else f"entries {9 - count} to 8 are"
    assert f"{told} missing at the end" in found(tmp_path)
    write(tmp_path, 1)  # and still after the daemon has gone on
    assert "missing before entry 9" in found(tmp_path)
    assert f"entries up to {8} were gone when the site started" in found(tmp_path)


def test_a_log_or_its_head_that_was_deleted_is_found_after_the_next_start(tmp_path: Path) -> None:
    write(tmp_path, BATCH + 10)
    (tmp_path / "audit.head").unlink()
    assert "audit.head cannot be read" in found(tmp_path)
    write(tmp_path, 1)
    assert "audit.head was gone or another's" in found(tmp_path)
    (tmp_path / "audit.jsonl").unlink()
    assert f"entries 0 to {BATCH + 12} are missing at the end" in found(tmp_path)
    write(tmp_path, 1)
    assert "were gone when the site started" in found(tmp_path)


def test_a_folder_put_back_is_found_by_whoever_remembers(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    write(tmp_path / "new", 4)
    shutil.copytree(tmp_path / "new", tmp_path / "copy")
    write(tmp_path / "new", 4)
    seen = sound(tmp_path / "new").entries
    sound(tmp_path / "copy")
    assert "missing at the end" in found(tmp_path / "copy", at_least=seen)


def test_two_logs_of_one_key_do_not_fit_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, 6)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    (tmp_path / "one" / "audit.jsonl").write_bytes(b"\n".join([*one[:4], *two[4:], b""]))
    assert "follows upon another entry 3" in found(tmp_path / "one")
    assert "entry 6 is another than audit.head names" in found(tmp_path / "one")


def test_another_key_is_found(tmp_path: Path) -> None:
    write(tmp_path, 3)
    for key in (OTHER_KEY.peer_id, OTHER_KEY.public_key):
        verdict = verify(tmp_path, key)
        assert "is it the log of another site?" in "\n".join(verdict.findings)
        assert verdict.entries == 0
    with pytest.raises(ConfigError, match="peer id"):
        verify(tmp_path, "12D3KooWnobody")


def test_single_files_can_be_checked_without_their_head(whole: Path, tmp_path: Path) -> None:
    copies = [shutil.copy(path, tmp_path) for path in sorted(whole.glob("audit-*.jsonl"))]
    verdict = verify([Path(copy) for copy in copies], KEY.peer_id)
    assert verdict.ok
    assert "cannot be known" in "\n".join(verdict.notes)
    assert verify(Path(copies[0]), KEY.peer_id).ok
    assert "missing at the beginning" in "\n".join(verify(Path(copies[1]), KEY.peer_id).findings)
    assert not verify([], KEY.peer_id).ok
    assert not verify(tmp_path / "none", KEY.peer_id).ok


def test_huge_and_strange_files_are_clear_findings_in_little_memory(tmp_path: Path) -> None:
    write(tmp_path, 2)
    good = (tmp_path / "audit.jsonl").read_bytes()
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.truncate(256 << 20)  # a hole of zeros: one line without end
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"[" * 100_000 + b"]" * 100_000 + b"\n" + b'{"n":0}\n' * 10_000)
    tracemalloc.start()
    assert "audit.jsonl, lines 4 to 10005: no entry that" in found(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    (tmp_path / "audit.jsonl").write_bytes(good)
    sound(tmp_path)


def test_many_findings_are_told_in_few_lines(tmp_path: Path) -> None:
    write(tmp_path, 250, each=False)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(line + b"\n" for line in reversed(lines(tmp_path))))
    verdict = verify(tmp_path, KEY.peer_id)
    assert len(verdict.findings) == 101
    assert verdict.findings[-1].startswith("and ")


def test_a_verdict_reads_well(whole: Path) -> None:
    verdict = verify(whole, KEY.peer_id)
    first, last = describe(verdict)
    assert first.startswith("12 entries, 0 to 11, from 20")
    assert first.endswith(": 3 anchor, 9 verdict")
    assert last == "the log is whole, as far as this can be known"
    with changed(whole, {"audit.jsonl": b"nonsense\n"}) as folder:
        told = describe(verify(folder, KEY.peer_id))
    assert told[-1] == "this log is not as it was written"
    assert f"found: audit.jsonl, line 1: no entry that {KEY.peer_id} has signed" in told


# ------------------------------------------------------------------------------------------ what is worth an entry


def report(round_: int, t_s: float, verdicts: Mapping[str, bool], missed: Sequence[str] = ()) -> RoundReport:
    mixing = Mixing(
        round=round_,
        verdicts={peer: RuleVerdict(accepted, 0.5, 1.5, 2.0) for peer, accepted in verdicts.items()},
        staleness=dict.fromkeys(verdicts, 0),
        missed=tuple(missed),
    )
    return RoundReport(round_, t_s, TrainReport(0.5, 1, 8), 0.1, None, 0.2, mixing, None, 0, 0)


class Kept:
    """What a ``Turning`` adds."""

    def __init__(self, **more: Any) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []
        self.turning = Turning(lambda kind, fields: self.entries.append((kind, dict(fields))), str.upper, **more)

    def turns(self) -> list[tuple[str, str, int]]:
        return [(entry["peer"], entry["turned"], entry["round"]) for _, entry in self.entries if "turned" in entry]

    def totals(self) -> list[dict[str, Any]]:
        return [entry for _, entry in self.entries if "totals" in entry]


def test_a_turn_is_kept_and_what_stays_is_not() -> None:
    kept = Kept()
    for round_ in range(1000):
        kept.turning.on_round(report(round_, round_, {"a": True, "b": 100 <= round_ < 500 or round_ < 3}))
    assert kept.turns() == [("B", "rejected", 3), ("B", "accepted", 100), ("B", "rejected", 500)]
    assert kept.entries[0] == (
        "verdict",
        {"peer": "B", "turned": "rejected", "round": 3, "distance": 1.5, "threshold": 2.0},
    )


def test_one_that_turns_in_every_round_fills_no_log() -> None:
    kept = Kept(quiet_s=60.0, totals_s=1e9)
    for round_ in range(10_000):
        kept.turning.on_round(report(round_, round_ * 0.1, {"a": round_ % 2 == 0}))
    assert len(kept.turns()) <= 1000 / 60 + 1
    kept.turning.finish()
    (total,) = kept.totals()
    assert total["totals"]["A"] == {"accepted": 5000, "rejected": 5000, "missed": 0, "turns": 9999}


def test_totals_come_at_their_time_and_at_the_end() -> None:
    kept = Kept(totals_s=100.0)
    for round_ in range(25):
        kept.turning.on_round(report(round_, round_ * 10.0, {"a": True}, missed=["b"]))
    kept.turning.finish()
    kept.turning.finish()
    assert [entry["rounds"] for entry in kept.totals()] == [(0, 10), (11, 20), (21, 24)]
    assert kept.totals()[0]["totals"] == {
        "A": {"accepted": 11, "rejected": 0, "missed": 0, "turns": 0},
        "B": {"accepted": 0, "rejected": 0, "missed": 11, "turns": 0},
    }


def test_totals_of_many_neighbours_fit_into_entries(tmp_path: Path) -> None:
    with AuditLog(tmp_path, KEY) as log:
        turning = Turning(log.add, lambda peer: peer)
        turning.on_round(report(0, 0.0, {f"{number:064d}": True for number in range(1000)}))
        turning.finish()
    told = [entry["fields"]["totals"] for entry in entries(tmp_path) if entry["kind"] == "verdict"]
    assert sum(map(len, told)) == 1000


def test_what_matters_later_is_kept_and_other_events_are_not() -> None:
    kept = Kept()
    kept.turning.on_event(1.0, Report("offence", "a", {"reason": "flood", "count": 3}))
    kept.turning.on_event(1.0, Report("peer_muted", "a", {"reason": "flood", "seconds": 1.0}))
    kept.turning.on_event(1.0, Report("resync", "a", {"have": 1}))
    kept.turning.on_event(1.0, Report("join_timeout", None, {"silent": []}))
    kept.turning.on_round(RoundReport(0, 0.0, TrainReport(0.5, 1, 8), 0.1, None, 0.2, None, None, 0, 0))
    kept.turning.finish()
    kept.turning.on_event(1.0, Report("equivocation", "b", {"detail": "two updates 7"}))
    kept.turning.on_event(1.0, Report("membership", None, {"version": 3}))
    assert kept.entries == [
        ("offence", {"event": "offence", "peer": "A", "peer_id": "a", "reason": "flood", "count": 3}),
        ("mute", {"event": "peer_muted", "peer": "A", "peer_id": "a", "reason": "flood", "seconds": 1.0}),
        ("evidence", {"event": "equivocation", "peer": "B", "peer_id": "b", "detail": "two updates 7"}),
        ("membership", {"event": "membership", "version": 3}),
    ]


def test_nothing_of_it_is_logged_but_troubles(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        write(tmp_path, 50, max_bytes=1500)
    assert not caplog.records
