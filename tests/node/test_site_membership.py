"""Sites as `gossipfl federation init` sets them up, with a real Mosquitto, TLS, its ACL: they join and are cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt
import pytest
from mosquitto import _await_port, free_port, mosquitto_program
from site_daemons import Daemon
from typer.testing import CliRunner

from gossipfl.cli import app
from gossipfl.gossip import Report
from gossipfl.identity import Identity
from gossipfl.messages import MAGIC
from gossipfl.transports.broker import start_broker_process

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

SITES = ("airport", "depot", "harbour", "stadium")


def federation(*arguments: str) -> str:
    """Run ``gossipfl federation``; returns what it prints."""
    result = CliRunner().invoke(app, ["federation", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@dataclass
class Operator:
    """Whoever sets the federation up, and brings folders to sites."""

    folder: Path
    daemons: dict[str, Daemon] = field(default_factory=dict)

    def deploy(self, name: str, *, share: int, index: int, plain_broker: int | None = None) -> Daemon:
        """Copy a site's folder to its place and let the site be quick; nothing else is changed in its file."""
        place = self.folder.parent / "deployed" / name
        shutil.copytree(self.folder / "sites" / name, place)
        text = (place / "site.toml").read_text()
        text = text.replace("round_every_s = 10.0", "round_every_s = 0.1")
        text += (
            f"\n[share]\nindex = {index}\nof = {share}\n[gossip]\nliveness_s = 2.0\nheartbeat_s = 0.3\ndrain_s = 2.0\n"
        )
        if plain_broker is not None:
            before, _, after = text.partition("[broker]")
            text = (
                before + f'[broker]\nhost = "127.0.0.1"\nport = {plain_broker}\n\n[task]' + after.partition("[task]")[2]
            )
        (place / "site.toml").write_text(text)
        daemon = Daemon(name, place, Identity.load(place / "site.key"))
        self.daemons[name] = daemon
        return daemon

    def hand_over(self, name: str) -> None:
        """Put the newest membership in the place of the one that a running site was installed with."""
        place = self.daemons[name].folder / "membership.json"
        part = place.with_suffix(".new")
        shutil.copy(self.folder / "membership.json", part)
        part.replace(place)

    def stop(self) -> None:
        for daemon in self.daemons.values():
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill(signal.SIGKILL)
                daemon.ended()


@contextlib.contextmanager
def provisioned_mosquitto(folder: Path, port: int) -> Iterator[None]:
    """Run Mosquitto with the files that were made for it, from their folder."""
    program = mosquitto_program()
    own = folder / "test.conf"
    # Started by root, Mosquitto becomes user mosquitto, who may not read a test's folder.
    own.write_text("user root\nlog_dest none\n" + (folder / "mosquitto.conf").read_text())
    process = subprocess.Popen(
        [program, "-c", own.name], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _await_port(port, process)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(tmp_path / "ran-north")
    try:
        yield operator
    finally:
        operator.stop()


def version_is(daemon: Daemon, version: int) -> None:
    daemon.until(lambda status: status["membership"]["version"] == version)


def all_gossip(daemons: Sequence[Daemon]) -> None:
    for daemon in daemons:
        daemon.until(
            lambda status: all(each["state"] == "joined" and each["accepted"] for each in status["neighbours"])
        )


@pytest.mark.mosquitto
def test_a_federation_lives_with_tls_and_its_members_change(operator: Operator) -> None:
    port = free_port()
    federation(
        "init", "ring", "--sites", ",".join(SITES), "--name", "ran-north", "--broker", f"127.0.0.1:{port}",
        "--dir", str(operator.folder),
    )  # fmt: skip
    with provisioned_mosquitto(operator.folder / "broker", port):
        airport, depot, harbour, stadium = (
            operator.deploy(name, share=5, index=index) for index, name in enumerate(SITES)
        )
        for daemon in operator.daemons.values():
            daemon.start()
        all_gossip([airport, depot, harbour, stadium])
        assert airport.status()["membership"]["encrypted"] is True

        # A site is cut off: one of the others is told, and all of them know.
        federation("remove", "stadium", "--link", "airport,harbour", "--dir", str(operator.folder))
        operator.hand_over("airport")
        for daemon in (airport, depot, harbour):
            version_is(daemon, 2)
            assert "stadium" not in [each["name"] for each in daemon.status()["neighbours"]]
        assert stadium.ended() == 3
        assert [event["version"] for event in stadium.events() if event["event"] == "removed"] == [2]
        assert "is no member any more" in stadium.log()
        all_gossip([airport, depot, harbour])

        # It comes back with the key it had, and with the membership it had: nobody hears it.
        shutil.rmtree(stadium.state / "memberships")
        stadium.start()
        rounds = stadium.until(lambda status: status["round"] >= 5)
        assert not any(each["accepted"] for each in rounds["neighbours"])
        stadium.kill(signal.SIGKILL)
        stadium.ended()

        # Another one joins while the others run.
        federation("add", "mast", "--links", "airport,depot", "--dir", str(operator.folder))
        mast = operator.deploy("mast", share=5, index=4)
        operator.hand_over("depot")
        for daemon in (airport, depot, harbour):
            version_is(daemon, 3)
        mast.start()
        all_gossip([mast])
        airport.until_neighbour(mast, lambda each: each["accepted"] > 0)
        harbour_knows = [path.name for path in sorted((harbour.state / "memberships").iterdir())]
        assert harbour_knows == ["000001.json", "000002.json", "000003.json"]

        # What it learnt holds over a restart, although its installed file is the first.
        harbour.kill(signal.SIGKILL)
        harbour.ended()
        harbour.start()
        version_is(harbour, 3)
        all_gossip([harbour])


def test_a_broker_operator_sees_sizes_and_times_only(operator: Operator) -> None:
    """Everything that goes through the broker is captured, and searched for all that members know."""
    with start_broker_process() as broker:
        federation(
            "init", "ring", "--sites", "airport,depot,harbour", "--name", "ran-north",
            "--broker", f"127.0.0.1:{broker.port}", "--dir", str(operator.folder),
        )  # fmt: skip
        daemons = [
            operator.deploy(name, share=3, index=index, plain_broker=broker.port)
            for index, name in enumerate(("airport", "depot", "harbour"))
        ]
        for daemon in daemons:
            daemon.start()

        async def capture() -> list[tuple[str, bytes]]:
            heard = []
            async with asyncio.timeout(60), aiomqtt.Client("127.0.0.1", broker.port) as client:
                await client.subscribe("#")
                async for message in client.messages:
                    assert isinstance(message.payload, bytes)
                    if message.payload:
                        heard.append((str(message.topic), message.payload))
                    if len(heard) >= 300:
                        break
            return heard

        heard = asyncio.run(capture())
        all_gossip(daemons)
        federation("rotate", "--dir", str(operator.folder))
        operator.hand_over("depot")
        for daemon in daemons:
            version_is(daemon, 2)
        heard += asyncio.run(capture())
    assert {payload[8:16] for _, payload in heard} == {number.to_bytes(8, "little") for number in (1, 2)}
    secrets = [daemon.identity.public_key for daemon in daemons]
    secrets += [daemon.identity.peer_id.encode() for daemon in daemons]
    secrets += [daemon.name.encode() for daemon in daemons]
    secrets += [b"gossipfl", b"membership", b"signed", MAGIC + bytes([1, 1, 0])]
    for _, payload in heard:
        assert payload.startswith(MAGIC + bytes([1, 1, 2]))
        assert not [secret for secret in secrets if secret in payload[8:]]
    # Bytes that say nothing are spread evenly: chi-square over all of them, 255 degrees of freedom.
    body = b"".join(payload[40:] for _, payload in heard)
    expected = len(body) / 256
    chi_square = sum((body.count(value) - expected) ** 2 / expected for value in range(256))
    assert chi_square < 255 + 8 * (2 * 255) ** 0.5
    assert len({payload[16:40] for _, payload in heard}) == len({payload for _, payload in heard})


def test_a_membership_that_cannot_be_believed_is_not_taken(operator: Operator) -> None:
    with start_broker_process() as broker:
        federation(
            "init", "line", "--sites", "airport,depot", "--name", "ran-north",
            "--broker", f"127.0.0.1:{broker.port}", "--dir", str(operator.folder),
        )  # fmt: skip
        airport = operator.deploy("airport", share=2, index=0, plain_broker=broker.port)
        airport.start()
        airport.until(lambda status: status["round"] >= 1)
        place = airport.folder / "membership.json"
        tree = json.loads(place.read_text())
        tree["signed"]["version"] = 2
        place.with_suffix(".new").write_text(json.dumps(tree))
        place.with_suffix(".new").replace(place)
        airport.until(lambda _: any(event["event"] == "membership_refused" for event in airport.events()))
        assert airport.status()["membership"]["version"] == 1
        assert "has 0 valid signatures of version 1's signers" in airport.log()


def test_reports_of_the_membership_are_told_in_words() -> None:
    from gossipfl_node.narrate import LINES

    for event in ("membership", "membership_refused", "removed", "equivocation"):
        assert event in LINES, Report(event)
