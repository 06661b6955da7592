"""MQTT: what is told at the start when something is wrong, what is dropped, and how a broken link is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from mosquitto import free_port, make_certificates, mosquitto_program, password_lines, running_mosquitto

from gossipfl.errors import ConfigError, TransportClosed, TransportUnavailable
from gossipfl.transports import mqtt_packets
from gossipfl.transports.base import MAX_FRAME_BYTES
from gossipfl.transports.broker import Broker, start_broker_process
from gossipfl.transports.broker_client import BrokerClient
from gossipfl.transports.mqtt import MqttTransport
from gossipfl.transports.mqtt_options import MqttOptions, TlsFiles, Topics

DEADLINE_S = 20.0


def run(program: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await program
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


async def refused(options: MqttOptions) -> str:
    """Return the one line with which ``start`` fails."""
    transport = MqttTransport("ann", ["bob"], options)
    with pytest.raises(TransportUnavailable) as caught:
        await transport.start()
    await transport.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  # counters have no event to wait for
        await asyncio.sleep(0.002)


@pytest.mark.mosquitto
@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_password_is_told_at_once(tmp_path: Path, password: str | None) -> None:
    with running_mosquitto(tmp_path, password_lines(tmp_path, {"ann": "secret"})) as (port, _):
        line = _run_refused(MqttOptions(port=port, username="ann", password=password))
        assert f"127.0.0.1:{port} refuses user 'ann'" in line
        assert "secret" not in line


def _run_refused(options: MqttOptions) -> str:
    lines: list[str] = []

    async def program() -> None:
        lines.append(await refused(options))

    run(program())
    return lines[0]


def test_a_broker_of_ours_refuses_a_wrong_password_too() -> None:
    async def program() -> None:
        async with Broker(username="user", password="secret") as broker:
            assert "refuses user None" in await refused(MqttOptions(port=broker.port))

    run(program())


@pytest.mark.mosquitto
def test_a_broker_with_a_strange_certificate_is_not_trusted(tmp_path: Path) -> None:
    ours, theirs = (make_certificates(tmp_path / name) for name in ("ours", "theirs"))
    with running_mosquitto(tmp_path, ["allow_anonymous true", *theirs.lines()]) as (port, _):
        line = _run_refused(MqttOptions(port=port, tls=TlsFiles(str(ours.ca))))
        assert "no TLS connection" in line
        assert "certificate verify failed" in line


@pytest.mark.mosquitto
@pytest.mark.parametrize("names", ["localhost", "127.0.0.1"])
def test_tls_checks_the_brokers_name_and_its_clients(tmp_path: Path, names: str) -> None:
    files = make_certificates(tmp_path / "tls")
    lines = ["allow_anonymous true", *files.lines(), "require_certificate true"]
    with running_mosquitto(tmp_path, lines) as (port, _):
        tls = TlsFiles(str(files.ca), str(files.certificate), str(files.key))
        options = MqttOptions(host=names, port=port, tls=tls, timeout_s=1.0, start_tries=1)
        if names == "localhost":  # the certificate is for 127.0.0.1 only
            assert "no TLS connection" in _run_refused(options)
            return

        async def program() -> None:
            transport = MqttTransport("ann", ["bob"], options)
            await transport.start()
            await transport.close()

        run(program())


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_unusable_tls_file_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    assert f"TLS file {path} cannot be used" in _run_refused(MqttOptions(tls=TlsFiles(str(path))))


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("rules", "topic"),
    [
        (["topic read #"], "gossipfl/default/ann/to/ann"),
        (["topic read #", "topic write gossipfl/default/ann/to/#"], "gossipfl/default/ann/all"),
    ],
)
def test_a_topic_that_the_acl_forbids_is_named(tmp_path: Path, rules: list[str], topic: str) -> None:
    acl = tmp_path / "acl"
    acl.write_text("\n".join(rules) + "\n")
    with running_mosquitto(tmp_path, ["allow_anonymous true", f"acl_file {acl}"]) as (port, _):
        line = _run_refused(MqttOptions(port=port, timeout_s=0.3))
    assert f"to {topic};" in line
    assert "ACL" in line


def test_a_refused_subscription_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    granted = mqtt_packets.suback
    monkeypatch.setattr(mqtt_packets, "suback", lambda packet_id, codes: granted(packet_id, [0x80, *codes[1:]]))

    async def program() -> None:
        async with Broker() as broker:
            assert "refuses ann the topic gossipfl/default/bob/all" in await refused(MqttOptions(port=broker.port))

    run(program())


def test_a_broker_that_does_not_answer_is_given_up() -> None:
    async def program() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            options = MqttOptions(port=mute.getsockname()[1], timeout_s=0.1, start_tries=2, backoff_s=(0.01, 0.01))
            assert "timed out" in await refused(options)

    run(program())


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_close_ends_a_start_that_is_still_trying(turns: int) -> None:
    async def program() -> None:
        options = MqttOptions(port=free_port(), start_tries=1000, backoff_s=(0.001, 0.001))
        transport = MqttTransport("ann", ["bob"], options)
        starting = asyncio.create_task(transport.start())
        for _ in range(turns):
            await asyncio.sleep(0.002)
        await transport.close()
        with pytest.raises(TransportClosed):
            await starting

    run(program())


def test_frames_for_all_peers_are_published_once() -> None:
    async def program() -> None:
        async with Broker() as broker:
            members = {
                me: MqttTransport(me, {"ann", "bob", "cid"} - {me}, MqttOptions(port=broker.port))
                for me in ("ann", "bob", "cid")
            }
            for transport in members.values():
                await transport.start()
            before = broker.counters.messages_in
            await members["ann"].send(["cid", "bob"], b"to all")
            await members["bob"].receive()
            await members["cid"].receive()
            assert broker.counters.messages_in == before + 1
            for transport in members.values():
                await transport.close()

    run(program())


def test_what_a_broker_should_not_pass_on_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # A broker that sends more than it was asked for: every subscription of ann's becomes one to everything.
    subscribe = Broker._subscribe
    everything = ("gossipfl/#", 0)

    def widened(broker: Broker, client: BrokerClient, request: mqtt_packets.Subscribe) -> None:
        subscribe(broker, client, mqtt_packets.Subscribe(request.packet_id, (everything, *request.filters[1:])))

    monkeypatch.setattr(Broker, "_subscribe", widened)

    async def program() -> None:
        async with Broker() as broker, aiomqtt.Client(broker.host, broker.port) as stranger:
            ann = MqttTransport("ann", ["bob"], MqttOptions(port=broker.port))
            await ann.start()
            await stranger.publish("gossipfl/default/cid/all", b"not a peer's topic")
            await stranger.publish("gossipfl/default/bob/all", bytes(MAX_FRAME_BYTES + 1))
            await stranger.publish("gossipfl/default/bob/all", b"")
            await stranger.publish("gossipfl/default/bob/all", b"frame")
            assert (await ann.receive()).frame == b"frame"
            assert ann.counters.by_reason == {"foreign": 1, "oversize": 1}
            await ann.close()

    run(program())


@pytest.mark.processes
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("end", ["broker dies", "we close"])
def test_a_sender_that_waits_is_released_when_the_link_ends(end: str, qos: Any) -> None:
    async def program() -> None:
        with start_broker_process() as broker:
            ann = MqttTransport("ann", ["bob"], MqttOptions(port=broker.port, qos=qos, timeout_s=0.2))
            await ann.start()
            os.kill(broker.pid, signal.SIGSTOP)
            try:
                frame = bytes(MAX_FRAME_BYTES)
                sending = [asyncio.create_task(ann.send(["bob"], frame)) for _ in range(60)]
                assert await ann.events()
                await until(lambda: ann.counters.frames_sent > 0 or qos == 1)
                if end == "broker dies":
                    os.kill(broker.pid, signal.SIGKILL)
                    results = await asyncio.gather(*sending)
                    assert False in results
                else:
                    await ann.close()
                    ended = await asyncio.gather(*sending, return_exceptions=True)
                    assert any(isinstance(end, TransportClosed) for end in ended)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(broker.pid, signal.SIGCONT)
            await ann.close()

    run(program())


@pytest.mark.parametrize(
    "wrong",
    [
        {"federation": "a/b"},
        {"federation": ""},
        {"port": 0},
        {"port": 70000},
        {"qos": 2},
        {"keepalive_s": 0},
        {"start_tries": 0},
        {"timeout_s": 0.0},
        {"backoff_s": (1.0, 0.1)},
        {"socket_path": "/tmp/x", "tls": TlsFiles("ca.pem")},
    ],
)
def test_options_that_cannot_be_used_are_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^mqtt: [^\n]+$"):
        MqttOptions(**wrong)


@pytest.mark.parametrize("peer", ["a+b", "#", "a/b", "", "x" * 129])
def test_an_id_that_is_no_topic_level_is_refused(peer: str) -> None:
    with pytest.raises(ConfigError, match="peer id"):
        Topics("default", "ann", [peer])


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(MqttOptions(username="ann", password="secret"))


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_mosquitto_skips_a_test_but_fails_it_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such-broker is not installed"):
        mosquitto_program("no-such-broker")


def test_close_waits_until_the_broker_has_read_what_was_sent() -> None:
    async def program() -> None:
        with start_broker_process() as broker:
            transport = MqttTransport("ann", ["bob"], MqttOptions(port=broker.port))
            await transport.start()
            os.kill(broker.pid, signal.SIGSTOP)
            await transport.send({"bob"}, b"good-bye")
            closing = asyncio.create_task(transport.close())
            _, waiting = await asyncio.wait([closing], timeout=0.3)
            os.kill(broker.pid, signal.SIGCONT)
            assert waiting
            await closing

    run(program())
