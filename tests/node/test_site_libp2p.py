"""Daemons that dial each other: sites that have moved, hang, are strangers, or have no port to listen on."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mosquitto import free_port
from site_daemons import Daemon, Deployment, connected, ended_in_the_end, listening, on_loopback, ring

from gossipfl.errors import TransportUnavailable
from gossipfl_node.check import check_site
from gossipfl_node.config import Libp2pSection, load_site
from gossipfl_node.daemon import run_site
from gossipfl_node.direct import options_of
from gossipfl_node.federation import Federation
from gossipfl_node.site import Site

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

NAMES = ["alpha", "beta", "gamma"]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    """Three sites in a triangle. Gamma has moved: the others have its former address, and it knows beta's alone."""
    deployment = Deployment(tmp_path_factory.mktemp("sites"), "moved")
    for name in NAMES:
        deployment.add(name)
    real = {name: on_loopback(free_port()) for name in NAMES}
    daemons = {}
    for name in NAMES:
        known = {"beta": real["beta"]} if name == "gamma" else {**real, "gamma": on_loopback(free_port())}
        deployment.addresses = known
        patience = {"join_timeout_s = 20.0": "join_timeout_s = 1.0"}
        daemons[name] = deployment.site(name, ring(NAMES), listening(real[name]), patience)
    with ended_in_the_end(list(daemons.values())):
        daemons["beta"].start(forked=False)
        daemons["beta"].until(lambda status: bool(status["libp2p"]["listening"]))
        for name in ("alpha", "gamma"):
            daemons[name].start()
        yield daemons


def _linked(neighbour: dict[str, Any]) -> bool:
    return bool(neighbour["link"] == "up" and neighbour["state"] == "joined" and neighbour["accepted"] > 0)


def test_a_site_that_has_moved_is_found_through_a_common_neighbour(sites: dict[str, Daemon]) -> None:
    alpha, gamma = sites["alpha"], sites["gamma"]
    alpha.until_neighbour(gamma, _linked)
    gamma.until_neighbour(alpha, _linked)
    for daemon in sites.values():
        daemon.until(connected)


def test_a_stranger_that_dials_is_refused_and_changes_nothing(sites: dict[str, Daemon], tmp_path: Path) -> None:
    """It has a key of its own, and everything else right."""
    alpha = sites["alpha"]
    before = alpha.until(connected)
    deployment = Deployment(tmp_path, "moved")
    deployment.add("stranger")
    deployment.members["alpha"] = alpha.identity
    deployment.addresses = {"alpha": before["libp2p"]["listening"][0]}
    stranger = deployment.site("stranger", ring(["stranger", "alpha"]), listening(on_loopback(0)))
    with ended_in_the_end([stranger]):
        stranger.start()
        alpha.until(lambda status: status["traffic"]["frames_dropped"].get("refused stranger", 0) >= 2)
        away = stranger.until_neighbour(alpha, lambda each: each["link"] == "down")
        assert away["neighbours"][0]["state"] == "never heard"
    after = alpha.until(lambda status: status["round"] > before["round"] + 2)
    assert connected(after)
    assert after["events"]["link-refused"] >= 1
    assert f"a connection with {stranger.identity.peer_id} was refused: " in alpha.log()
    assert [each["state"] for each in after["neighbours"]] == ["joined", "joined"]


def test_a_site_that_hangs_is_let_go_and_taken_back(sites: dict[str, Daemon]) -> None:
    alpha, gamma = sites["alpha"], sites["gamma"]
    alpha.until(connected)
    gamma.kill(signal.SIGSTOP)
    try:
        hung = alpha.until_neighbour(gamma, lambda each: each["link"] == "down" and each["state"] == "lost")
        assert next(each for each in hung["neighbours"] if each["name"] == "beta")["link"] == "up"
        assert "lost the link to gamma: silent for" in alpha.log()
    finally:
        gamma.kill(signal.SIGCONT)
    back = alpha.until_neighbour(gamma, lambda each: each["link"] == "up" and each["state"] == "joined")
    assert back["libp2p"]["reconnects"] > 0


def test_what_was_learnt_of_addresses_outlives_a_restart(sites: dict[str, Daemon]) -> None:
    """Nobody is left who could tell alpha where gamma is, or the other way round, but their own disks."""
    alpha, beta, gamma = (sites[name] for name in NAMES)
    for daemon in (alpha, gamma):
        daemon.until(connected)
    for daemon in sites.values():
        daemon.kill(signal.SIGTERM)
    for daemon in sites.values():
        assert daemon.ended() == 0, daemon.log_end()
        assert len(json.loads((daemon.state / "addresses.json").read_text())) == 2
    for daemon in (alpha, gamma):
        daemon.start()
    status = alpha.until_neighbour(gamma, _linked)
    away = next(each for each in status["neighbours"] if each["name"] == beta.name)
    assert (away["link"], away["address"]) == ("down", None)
    assert status["libp2p"]["links"]["beta"]["detail"]


def test_broken_address_records_are_begun_anew(sites: dict[str, Daemon]) -> None:
    alpha, _, gamma = (sites[name] for name in NAMES)
    gamma.until_neighbour(alpha, _linked)
    former = alpha.status()["incarnation"]
    alpha.kill(signal.SIGKILL)
    alpha.ended()
    (alpha.state / "addresses.json").write_text('["bm8gcmVjb3Jk", ')
    alpha.start()
    status = alpha.until_neighbour(gamma, _linked)
    assert status["incarnation"] > former
    assert "addresses.json is broken, and begun anew" in alpha.log()


# ------------------------------------------------------------------------------------------- before the start


@pytest.fixture
def alpha(tmp_path: Path) -> Daemon:
    deployment = Deployment(tmp_path, "listening")
    for name in NAMES:
        deployment.add(name)
    deployment.addresses = {"beta": on_loopback(4002)}
    return deployment.site("alpha", ring(NAMES), listening(on_loopback(free_port())))


def _section(daemon: Daemon) -> Libp2pSection:
    section = load_site(daemon.file).libp2p
    assert section is not None
    return section


def test_a_site_that_can_listen_has_no_mistake(alpha: Daemon) -> None:
    findings = check_site(alpha.file)
    assert findings.mistakes == ()
    assert f"libp2p on {_section(alpha).listen[0]} (no address of gamma)" in findings.summary
    assert not alpha.state.exists(), "check changes nothing"


def test_a_port_that_is_taken_is_a_mistake(alpha: Daemon) -> None:
    port = int(_section(alpha).listen[0].rpartition("/")[2])
    with socket.create_server(("127.0.0.1", port)):
        (line,) = check_site(alpha.file).mistakes
        assert f"libp2p: cannot listen on /ip4/127.0.0.1/tcp/{port}: " in line
        assert check_site(alpha.file, broker=False).mistakes == ()
        with pytest.raises(TransportUnavailable, match="cannot listen on"):
            run_site(load_site(alpha.file))
    events = [json.loads(line) for line in (alpha.state / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "failed", "ended"]


def test_an_address_that_this_machine_does_not_have_is_a_mistake(alpha: Daemon) -> None:
    alpha.file.write_text(alpha.file.read_text().replace('listen = ["/ip4/127.0.0.1/', 'listen = ["/ip4/192.0.2.1/'))
    (line,) = check_site(alpha.file).mistakes
    assert "libp2p: cannot listen on /ip4/192.0.2.1/tcp/" in line


def test_the_transport_is_told_what_the_file_says(alpha: Daemon) -> None:
    """Members, neighbours, addresses of others, and the incarnation as the number of its address record."""
    text = alpha.file.read_text().replace("[libp2p]", '[libp2p]\nannounce = ["/dns4/alpha.example/tcp/4001"]')
    alpha.file.write_text(text.replace('"]\n\n[libp2p]', f'"]\nalpha = ["{on_loopback(4009)}"]\n\n[libp2p]'))
    spec = load_site(alpha.file)
    federation = Federation.of(spec.federation, "alpha")
    site = Site(spec)
    transport = site.direct_transport(7, [b"no record"])
    assert transport.peers == set(federation.weights)
    assert transport.address_records() == ()

    options = options_of(spec, 7)
    assert options.sequence == 7
    assert options.announce == ("/dns4/alpha.example/tcp/4001",)
    assert options.addresses == {spec.federation.members["beta"]: (on_loopback(4002),)}
    assert (options.ping_s, options.dead_s, options.mdns) == (0.5, 1.5, False)


def test_check_lets_nobody_in(alpha: Daemon) -> None:
    """While it tries to listen, its neighbours may dial: they are better served by the daemon, later."""

    async def visit() -> None:
        listener = Site(load_site(alpha.file)).listener()
        assert not listener.peers
        try:
            await listener.start()
            assert list(listener.listening) == _section(alpha).listen
        finally:
            await listener.close()

    asyncio.run(visit())
