"""Daemons as real processes, on a real broker and without one: gossip, faults, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from mosquitto import free_port
from site_daemons import (
    COMMAND,
    PATIENCE_S,
    Daemon,
    Deployment,
    address,
    connected,
    ended_in_the_end,
    listening,
    on_loopback,
    reconnects,
    ring,
)

from gossipfl.identity import Identity
from gossipfl.membership import federation_id_of
from gossipfl.messages import Bye, Header, Kind, chunk_digests, encode_body, frame_message, signing_input
from gossipfl.transports.broker import start_broker_process
from gossipfl_node.check import check_site
from gossipfl_node.status_socket import NotRunningError

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


class Brokers:
    """A broker that can die and return on the same port."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.port = self._stack.enter_context(start_broker_process()).port

    def die(self) -> None:
        self._stack.close()

    def come_back(self) -> None:
        self._stack.enter_context(start_broker_process(port=self.port))


@dataclass
class Way:
    """How sites reach each other: through ``broker``, or where there is none, at a loopback port of each."""

    broker: Brokers | None

    def site(self, deployment: Deployment, name: str, changes: Mapping[str, str] | None = None) -> Daemon:
        """Write a member's file, in a ring of all members."""
        edges = ring(list(deployment.members))
        if self.broker is not None:
            return deployment.site(name, edges, address(self.broker.port), changes)
        for member in deployment.members:
            deployment.addresses.setdefault(member, on_loopback(free_port()))
        return deployment.site(name, edges, listening(deployment.addresses[name]), changes)


@pytest.fixture(scope="module", params=["mqtt", "libp2p"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    brokers = Brokers() if request.param == "mqtt" else None
    yield Way(brokers)
    if brokers is not None:
        brokers.die()


over_mqtt = pytest.mark.parametrize("way", ["mqtt"], indirect=True)


@pytest.fixture
def broker(way: Way) -> Brokers:
    assert way.broker is not None
    return way.broker


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory, way: Way) -> Iterator[list[Daemon]]:
    """Three sites in a triangle, started together."""
    names = ["alpha", "beta", "gamma"]
    deployment = Deployment(tmp_path_factory.mktemp("sites"), "triangle")
    for name in names:
        deployment.add(name)
    daemons = [way.site(deployment, name) for name in names]
    with ended_in_the_end(daemons):
        for daemon in daemons:
            daemon.start()
        for daemon in daemons:
            daemon.until(lambda status: status["round"] > 3 and all(_mixed(each) for each in status["neighbours"]))
        yield daemons


@pytest.fixture(scope="module")
def loners(tmp_path_factory: pytest.TempPathFactory, way: Way) -> Iterator[dict[str, Daemon]]:
    """Sites whose neighbour never comes, in a round without end."""
    endless = {"local_steps = 2": "local_steps = 1000000000", "join_timeout_s = 20.0": "join_timeout_s = 0.01"}
    daemons = {}
    for name, changes in (("stuck", {}), ("late", {"[gossip]": "stop_timeout_s = 0.2\n[gossip]"})):
        deployment = Deployment(tmp_path_factory.mktemp(name), name)
        deployment.add(name)
        deployment.add("nobody")
        daemons[name] = way.site(deployment, name, {**endless, **changes})
    with ended_in_the_end(list(daemons.values())):
        for daemon in daemons.values():
            daemon.start()
        yield daemons


def _mixed(neighbour: dict[str, Any]) -> bool:
    return bool(neighbour["state"] == "joined" and neighbour["accepted"] > 0)


def _kept(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else {}


def test_sites_train_and_average_with_each_other(sites: list[Daemon]) -> None:
    for daemon in sites:
        status = daemon.until(lambda status: status["evaluation"] is not None)
        assert status["phase"] == "running"
        assert status["site"] == daemon.name
        assert status["peer_id"] == daemon.identity.peer_id
        assert connected(status)
        assert status["last_round"]["loss"] > 0
        assert 0 <= status["evaluation"]["accuracy"] <= 1
        assert {each["name"] for each in status["neighbours"]} == {other.name for other in sites} - {daemon.name}
        assert all(each["rejected"] == 0 for each in status["neighbours"])
        assert not {"replay", "signature", "stranger"} & set(status["dropped"])


def test_status_for_people_and_for_programs(sites: list[Daemon]) -> None:
    alpha = sites[0]
    for place in ([str(alpha.file)], ["--state", str(alpha.state)]):
        line = subprocess.run([*COMMAND, "status", *place, "--json"], capture_output=True, check=True, text=True).stdout
        assert json.loads(line)["site"] == "alpha"
    people = subprocess.run([*COMMAND, "status", str(alpha.file)], capture_output=True, check=True, text=True).stdout
    network = alpha.status()["libp2p"]
    words = ["alpha", "running", "beta", "gamma", "joined"]
    words += ["broker"] if network is None else ["2 of 2 links up", *network["listening"]]
    for word in words:
        assert word in people


def test_status_names_the_links_of_the_transport_in_use(sites: list[Daemon], way: Way) -> None:
    alpha, beta, gamma = sites
    status = alpha.until(connected)
    if way.broker is not None:
        assert status["libp2p"] is None
        assert status["broker"]["address"] == f"127.0.0.1:{way.broker.port}"
        assert {each["link"] for each in status["neighbours"]} == {None}
        return
    assert status["broker"] is None
    links = status["libp2p"]["links"]
    assert set(links) == {beta.name, gamma.name}
    for each in status["neighbours"]:
        link = links[each["name"]]
        assert (each["link"], each["address"]) == (link["state"], link["address"])
        assert each["address"].startswith("/ip4/127.0.0.1/tcp/")
        assert link["since_s"] >= 0
    assert "connected at /ip4/127.0.0.1/tcp/" in alpha.log()
    assert "the broker" not in alpha.log()


def test_only_the_owner_may_ask(sites: list[Daemon]) -> None:
    assert (sites[0].state / "status.sock").stat().st_mode & 0o777 == 0o600
    assert sites[0].state.stat().st_mode & 0o077 == 0


def test_two_daemons_never_share_a_state_folder(sites: list[Daemon]) -> None:
    second = subprocess.run([*COMMAND, "run", str(sites[0].file)], capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert f"in use by process {sites[0].status()['pid']}" in second.stderr


def test_check_beside_a_running_daemon_leaves_its_links_alone(sites: list[Daemon]) -> None:
    before = sites[0].until(connected)
    findings = check_site(sites[0].file)
    assert findings.mistakes == ()
    assert "left to the daemon that is running" in findings.summary
    after = sites[0].status()
    assert connected(after)
    assert reconnects(after) == reconnects(before)


@over_mqtt
def test_a_stranger_on_the_broker_changes_nothing(sites: list[Daemon], broker: Brokers) -> None:
    """Noise, true frames for the second time, a stranger's good-bye, and good-byes in a neighbour's name."""
    alpha, beta = sites[:2]
    before = alpha.status()
    stranger = Identity.generate()
    forged = [_good_bye("triangle", signer=stranger, sender=sender) for sender in (stranger, beta.identity)]
    other = _good_bye("square", signer=beta.identity, sender=beta.identity)
    asyncio.run(_publish_as(broker.port, beta, [b"noise" * 40, *forged, other], repeats=20))
    expected = {"magic": 20, "replay": 60, "stranger": 20, "signature": 20, "federation": 20}
    after = alpha.until(lambda status: all(status["dropped"].get(why, 0) >= count for why, count in expected.items()))
    assert {why: after["dropped"][why] - before["dropped"].get(why, 0) for why in expected} == expected
    again = alpha.until(lambda status: status["round"] >= after["round"] + 2)
    assert again["pid"] == before["pid"]
    assert [each["state"] for each in again["neighbours"]] == ["joined", "joined"]
    assert not {"peer_muted", "offence", "digest_mismatch", "neighbour_left"} & set(again["events"])


def _good_bye(federation: str, *, signer: Identity, sender: Identity) -> bytes:
    """Return a good-bye that names ``sender`` and is signed by ``signer``."""
    body = encode_body(Bye("forged"))
    header = Header(federation_id_of(federation), sender.public_key, b"", 2**40, 1, len(body), chunk_digests(body))
    signed = signing_input(Kind.BYE, header.pack())
    return frame_message(signed, signer.sign(signed), body)


async def _publish_as(port: int, victim: Daemon, frames: list[bytes], repeats: int) -> None:
    """Publish these frames, and three that the victim has just sent, on the victim's topic."""
    topic = f"gossipfl/triangle/{victim.identity.peer_id}/all"
    seen: list[bytes] = []
    async with asyncio.timeout(PATIENCE_S), aiomqtt.Client("127.0.0.1", port) as client:
        await client.subscribe(topic)
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            seen.append(message.payload)
            if len(seen) == 3:
                break
        await client.unsubscribe(topic)
        for _ in range(repeats):
            for frame in [*seen, *frames]:
                await client.publish(topic, frame)


@over_mqtt
def test_a_broker_that_dies_and_returns_is_survived(sites: list[Daemon], broker: Brokers) -> None:
    before = [daemon.until(lambda status: status["broker"]["link"] == "up") for daemon in sites]
    broker.die()
    alone = [daemon.until(lambda status: status["broker"]["link"] == "down") for daemon in sites]
    rounds = {status["site"]: status["round"] for status in alone}
    for daemon in sites:  # asynchronous sites train on without it
        daemon.until(lambda status: status["round"] > rounds[status["site"]] + 1)
    broker.come_back()
    for daemon, then in zip(sites, before, strict=True):
        now = daemon.until(lambda status: all(each["round"] > rounds[each["name"]] for each in status["neighbours"]))
        assert now["broker"]["link"] == "up"
        assert now["broker"]["reconnects"] == 1
        assert now["pid"] == then["pid"]


def test_stopped_and_killed_sites_are_taken_back(sites: list[Daemon], way: Way) -> None:
    """One is stopped and drains, one is killed: both come back as a new incarnation, and old frames stay refused."""
    alpha, beta, gamma = sites
    for name in ["replay.json"] if way.broker is not None else ["replay.json", "addresses.json"]:
        gamma.until(lambda _, name=name: len(_kept(gamma.state / name)) == 2)  # type: ignore[misc]
    former = {daemon.name: daemon.status()["incarnation"] for daemon in sites}
    beta.kill(signal.SIGTERM)
    gamma.kill(signal.SIGKILL)
    assert gamma.ended() == -signal.SIGKILL
    assert beta.ended() == 0, beta.log_end()
    alpha.until_neighbour(beta, lambda each: each["state"] == "left")
    alpha.until_neighbour(gamma, lambda each: each["state"] == "lost")
    for daemon in (beta, gamma):
        with pytest.raises(NotRunningError, match="no daemon is running"):
            daemon.status()

    for daemon, others in ((beta, (alpha, gamma)), (gamma, (alpha, beta))):
        marks = _kept(daemon.state / "replay.json")
        assert {peer: mark[0] for peer, mark in marks.items()} == {
            other.identity.peer_id: former[other.name] for other in others
        }
    assert beta.events()[-1]["event"] == "ended"

    for daemon in (beta, gamma):
        daemon.start()
    for daemon in (beta, gamma):
        status = daemon.until(lambda status: status["round"] > 2 and all(map(_mixed, status["neighbours"])))
        assert status["incarnation"] > former[daemon.name]
        daemon.until(connected)
        alpha.until_neighbour(
            daemon,
            lambda each: (
                each["incarnation"] > former[each["name"]] and each["state"] == "joined" and bool(each["round"])
            ),
        )
    alpha.until(connected)


def test_the_first_signal_drains_and_says_good_bye(sites: list[Daemon]) -> None:
    for daemon, number in zip(sites, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), strict=True):
        daemon.kill(number)
    for daemon in sites:
        assert daemon.ended() == 0, daemon.log_end()
        assert "ended after" in daemon.log()
        assert not (daemon.state / "status.sock").exists()
        assert "Traceback" not in daemon.log()
    told = subprocess.run([*COMMAND, "status", str(sites[0].file)], capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "no daemon is running" in told.stderr


def test_a_second_signal_ends_at_once(loners: dict[str, Daemon]) -> None:
    stuck = loners["stuck"]
    stuck.until(lambda status: status["phase"] == "joining" and "join_timeout" in status["events"])
    stuck.kill(signal.SIGTERM)
    stuck.until(lambda status: status["phase"] == "stopping")
    stuck.kill(signal.SIGTERM)
    assert stuck.ended() == -signal.SIGTERM


def test_a_round_that_does_not_end_cannot_hold_up_the_stop(loners: dict[str, Daemon]) -> None:
    late = loners["late"]
    late.until(lambda status: "join_timeout" in status["events"])
    late.kill(signal.SIGTERM)
    assert late.ended() == 0
    assert "site.stop_timeout_s" in late.log()
    assert _kept(late.state / "replay.json") == {}


def test_a_site_can_wait_for_its_broker(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "waiting")
    for name in ("waiting", "nobody"):
        deployment.add(name)
    waiting = deployment.site("waiting", ring(["waiting", "nobody"]), address(free_port(), "wait = true"))
    with ended_in_the_end([waiting]):
        waiting.start(forked=False)
        waiting.until(lambda status: status["phase"] == "waiting for the broker")
        deadline = time.monotonic() + PATIENCE_S
        while "waiting for the broker: cannot reach" not in waiting.log() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "waiting for the broker: cannot reach" in waiting.log()
        waiting.kill(signal.SIGINT)
        assert waiting.ended() == 0, waiting.log_end()
