"""The embedded broker: what it speaks, what it refuses, its back-pressure, and its process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gossipfl.errors import TransportUnavailable
from gossipfl.transports.broker import Broker, main, open_listener, start_broker_process
from gossipfl.transports.broker_client import BrokerLimits
from gossipfl.transports.mqtt_packets import publish_head

DEADLINE_S = 20.0
CONNACK = b"\x20\x02\x00\x00"


def run(program: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await program
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def packet(first: int, *fields: bytes) -> bytes:
    body = b"".join(fields)
    assert len(body) < 128
    return bytes([first, len(body)]) + body


def text(value: str) -> bytes:
    return len(value).to_bytes(2) + value.encode()


def connect(client_id: str = "ann", *fields: bytes, flags: int = 2, keepalive_s: int = 0) -> bytes:
    return packet(0x10, text("MQTT"), bytes([4, flags]), keepalive_s.to_bytes(2), text(client_id), *fields)


class RawClient:
    """A client that sends whatever bytes a test likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes, answer: bytes) -> None:
        """Send and expect exactly these bytes back; empty: that the broker hangs up."""
        self.writer.write(request)
        assert await (self.reader.readexactly(len(answer)) if answer else self.hung_up()) == answer

    async def hung_up(self) -> bytes:
        try:
            return await self.reader.read()
        except ConnectionError:  # it closed while bytes of ours were still unread
            return b""


@contextlib.asynccontextmanager
async def raw(broker: Broker, hello: bytes | None = None) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    client = RawClient(reader, writer)
    try:
        if hello is not None:
            await client.ask(hello, CONNACK)
        yield client
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110  # counters have no event to wait for
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("sent", [0, 1])
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 65_500, 65_536, 500_000, 2_000_000])
def test_messages_of_every_size_and_qos_reach_every_subscriber_in_order(
    sent: int, granted: int, size_bytes: int
) -> None:
    async def program() -> None:
        async with (
            Broker() as broker,
            aiomqtt.Client(broker.host, broker.port) as sender,
            aiomqtt.Client(broker.host, broker.port) as one,
            aiomqtt.Client(broker.host, broker.port) as two,
        ):
            await one.subscribe("a/b", qos=granted)
            await two.subscribe("a/+", qos=granted)
            payloads = [bytes([number]) * size_bytes for number in range(3)]
            for payload in payloads:
                await sender.publish("a/b", payload, qos=sent)
            for subscriber in (one, two):
                received = [await anext(subscriber.messages) for _ in payloads]
                assert [message.payload for message in received] == payloads
                assert {message.qos for message in received} == {min(sent, granted, 1)}
            await one.unsubscribe("a/b")
            await sender.publish("a/b", b"last", qos=sent)
            assert (await anext(two.messages)).payload == b"last"
            assert broker.counters.messages_out == 3 + 4

    run(program())


def test_packets_may_come_in_pieces_or_together() -> None:
    async def program() -> None:
        stream = connect() + packet(0x82, b"\x00\x01", text("t"), b"\x00") + packet(0x30, text("t"), b"payload")
        answer = CONNACK + b"\x90\x03\x00\x01\x00" + packet(0x30, text("t"), b"payload")
        async with Broker() as broker:
            for step in (1, 2, 3, len(stream)):
                async with raw(broker) as client:
                    for start in range(0, len(stream), step):
                        client.writer.write(stream[start : start + step])
                        await client.writer.drain()
                        await asyncio.sleep(0)
                    assert await client.reader.readexactly(len(answer)) == answer

    run(program())


def test_retained_messages_are_delivered_and_not_kept() -> None:
    async def program() -> None:
        async with Broker() as broker, raw(broker, connect("ann")) as ann, raw(broker, connect("bob")) as bob:
            await ann.ask(packet(0x82, b"\x00\x01", text("t"), b"\x00"), b"\x90\x03\x00\x01\x00")
            await ann.ask(packet(0x31, text("t"), b"now"), packet(0x30, text("t"), b"now"))
            await bob.ask(packet(0x82, b"\x00\x01", text("t"), b"\x00"), b"\x90\x03\x00\x01\x00")
            await bob.ask(b"\xc0\x00", b"\xd0\x00")  # a ping is answered first: nothing was kept

    run(program())


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (connect("ann", text("user"), text("secret"), flags=0xC2), CONNACK),
        (connect("ann", text("user"), text("guess"), flags=0xC2), b"\x20\x02\x00\x04"),
        (connect("ann", text("other"), text("secret"), flags=0xC2), b"\x20\x02\x00\x04"),
        (connect("ann", text("user"), flags=0x82), b"\x20\x02\x00\x04"),
        (connect("ann"), b"\x20\x02\x00\x04"),
        (connect("", flags=0), b"\x20\x02\x00\x02"),
        (packet(0x10, text("MQTT"), b"\x05\x02\x00\x00\x00\x00\x00"), b"\x20\x02\x00\x01"),
    ],
)
def test_who_may_come_in(hello: bytes, answer: bytes) -> None:
    async def program() -> None:
        async with Broker(username="user", password="secret") as broker, raw(broker) as client:
            await client.ask(hello, answer)
            if answer != CONNACK:
                assert await client.hung_up() == b""

    run(program())


def test_a_client_without_an_id_gets_one_and_a_second_of_the_same_id_replaces_the_first() -> None:
    async def program() -> None:
        async with Broker() as broker, raw(broker, connect("")) as one, raw(broker, connect("")):
            await one.ask(b"\xc0\x00", b"\xd0\x00")
            async with raw(broker, connect("ann")) as first, raw(broker, connect("ann")) as second:
                assert await first.hung_up() == b""
                await second.ask(b"\xc0\x00", b"\xd0\x00")

    run(program())


def test_a_stranger_gets_no_large_buffer() -> None:
    async def program() -> None:
        async with Broker() as broker, raw(broker) as client:
            await client.ask(b"\x10\xff\xff\x7f", b"")  # a CONNECT of 2 MB, of which nothing more comes
            assert broker.counters.malformed == 1

    run(program())


def test_a_will_is_published_when_its_client_vanishes_and_not_when_it_leaves() -> None:
    will = {"flags": 0x06}

    async def program() -> None:
        async with Broker() as broker, raw(broker, connect("ann")) as ann:
            await ann.ask(packet(0x82, b"\x00\x01", text("wills/#"), b"\x00"), b"\x90\x03\x00\x01\x00")
            async with raw(broker, connect("bob", text("wills/bob"), text("gone"), **will)) as bob:
                await bob.ask(b"\xe0\x00", b"")
            async with raw(broker, connect("cid", text("wills/cid"), text("gone"), **will)):
                pass
            expected = packet(0x30, text("wills/cid"), b"gone")
            assert await ann.reader.readexactly(len(expected)) == expected

    run(program())


@pytest.mark.parametrize(
    "wrong",
    [
        connect("again"),
        b"\x34" + publish_head("t", 0, 1)[1:],  # QoS 2
        b"\x00\x00",
        b"\x20\x02\x00\x00",  # a server's packet
        b"\x30\xff\xff\xff\xff",
        b"\x30\xff\xff\xff\x7f",  # 256 MB
        packet(0x30, text("a/#")),
        packet(0x82, b"\x00\x01", *([text("t") + b"\x00"] * 9)),  # more filters than allowed
    ],
)
def test_a_malformed_packet_closes_its_connection_and_no_other(wrong: bytes) -> None:
    async def program() -> None:
        limits = BrokerLimits(filters=8)
        async with (
            Broker(limits=limits) as broker,
            raw(broker, connect("ann")) as ann,
            raw(broker, connect("bob")) as bob,
        ):
            await ann.ask(wrong, b"")
            await bob.ask(b"\xc0\x00", b"\xd0\x00")
            assert len(broker.clients) == 1

    run(program())


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.booleans(), st.binary(max_size=300), st.integers(0, 15))
def test_no_bytes_at_all_hurt_the_broker(greet: bool, noise: bytes, kind: int) -> None:
    async def program() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with Broker() as broker, raw(broker, connect("bob")) as bob:
            async with raw(broker, connect("ann") if greet else None) as ann:
                for chunk in (noise, bytes([kind << 4 | 2, min(len(noise), 127)]) + noise):
                    ann.writer.write(chunk)
                ann.writer.write_eof()
                await ann.hung_up()
            await bob.ask(b"\xc0\x00", b"\xd0\x00")
        assert problems == []

    run(program())


def test_the_number_of_clients_is_bounded() -> None:
    async def program() -> None:
        async with Broker(limits=BrokerLimits(clients=1)) as broker, raw(broker, connect("ann")) as ann:
            async with raw(broker) as bob:
                assert await bob.hung_up() == b""
            await ann.ask(b"\xc0\x00", b"\xd0\x00")

    run(program())


def test_clients_that_break_a_time_limit_are_overdue() -> None:
    async def program() -> None:
        async with Broker() as broker, raw(broker):
            await until(lambda: broker.clients)
            (silent,) = broker.clients
            now_s = asyncio.get_running_loop().time()
            assert silent.overdue(now_s) is None
            assert silent.overdue(now_s + 6) == "no CONNECT in time"
            async with raw(broker, connect("ann", keepalive_s=10)):
                (ann,) = (client for client in broker.clients if client.client_id == "ann")
                assert ann.overdue(now_s + 14) is None
                assert ann.overdue(now_s + 16) == "keep-alive expired"

    run(program())


def test_a_slow_subscriber_holds_its_publisher_back_and_loses_nothing() -> None:
    count, size_bytes = 200, 100_000
    limits = BrokerLimits(queue_bytes=1_000_000)

    async def program() -> None:
        async with Broker(limits=limits) as broker, aiomqtt.Client(broker.host, broker.port) as publisher:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, (broker.host, broker.port))
                await loop.sock_sendall(sock, connect("slow") + packet(0x82, b"\x00\x01", text("t"), b"\x00"))
                assert await loop.sock_recv(sock, len(CONNACK) + 5) == CONNACK + b"\x90\x03\x00\x01\x00"

                async def publish_all() -> None:
                    for number in range(count):
                        await publisher.publish("t", bytes([number]) * size_bytes, timeout=DEADLINE_S)

                publishing = asyncio.create_task(publish_all())
                await until(lambda: any(client.paused for client in broker.clients))
                assert not publishing.done()
                (slow,) = (client for client in broker.clients if client.client_id == "slow")
                assert limits.queue_bytes < slow.queued_bytes <= limits.queue_bytes + size_bytes + 100
                stall_s = asyncio.get_running_loop().time() + limits.stall_s
                assert slow.overdue(stall_s - 1) is None
                assert slow.overdue(stall_s + 1) == "stalled"

                head = publish_head("t", size_bytes)
                expected = (len(head) + size_bytes) * count
                received = bytearray()
                while len(received) < expected:
                    received += await loop.sock_recv(sock, 1 << 20)
                await publishing
                step = len(head) + size_bytes
                assert [received[at + step - 1] for at in range(0, expected, step)] == list(range(count))
                assert not any(client.paused for client in broker.clients)

    run(program())


def test_a_publisher_is_read_again_when_its_slow_subscriber_goes() -> None:
    async def program() -> None:
        async with Broker(limits=BrokerLimits(queue_bytes=10_000)) as broker, raw(broker, connect("ann")) as ann:
            async with raw(broker, connect("slow") + packet(0x82, b"\x00\x01", text("t"), b"\x00")):
                ann.writer.write((publish_head("t", 1_000_000) + bytes(1_000_000)) * 20)
                await until(lambda: any(client.paused for client in broker.clients))
                (slow,) = (client for client in broker.clients if client.client_id == "slow")
                slow.close("stalled")
            await ann.ask(b"\xc0\x00", b"\xd0\x00")

    run(program())


@pytest.mark.processes
@pytest.mark.parametrize("unix", [False, True])
def test_a_broker_process_serves_at_once_and_ends_with_its_context(unix: bool, tmp_path: Path) -> None:
    path = tmp_path / "broker.sock" if unix else None
    with (
        start_broker_process(socket_path=path, username="user", password="secret") as broker,
        socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as client,
    ):
        client.connect(broker.socket_path if unix else (broker.host, broker.port))
        client.sendall(connect("ann", text("user"), text("secret"), flags=0xC2))
        assert client.recv(4) == CONNACK
    assert not Path(f"/proc/{broker.pid}").exists()
    assert path is None or not path.exists()


@pytest.mark.processes
def test_a_broker_process_dies_with_its_parent() -> None:
    program = (
        "import os, sys\n"
        "from gossipfl.transports.broker import start_broker_process\n"
        "with start_broker_process() as broker:\n"
        "    print(broker.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + DEADLINE_S
    while _alive(pid):
        assert time.monotonic() < deadline, "the broker outlived its parent"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Say whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.processes
def test_the_command_prints_its_address_and_ends_at_a_signal() -> None:
    command = [sys.executable, "-m", "gossipfl.transports.broker", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        host, _, port = broker.stdout.readline().removeprefix("listening on ").strip().partition(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(connect())
            assert client.recv(4) == CONNACK
        broker.send_signal(signal.SIGINT)
        assert broker.wait(DEADLINE_S) == 0


def test_an_address_that_cannot_be_had_is_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with open_listener("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TransportUnavailable, match=f"127.0.0.1:{port}"), start_broker_process(port=port):
            pass
        assert main(["--port", str(port)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    missing = tmp_path / "no folder" / "broker.sock"
    with pytest.raises(TransportUnavailable, match="no folder"), start_broker_process(socket_path=missing):
        pass


def test_the_broker_starts_without_the_heavy_libraries() -> None:
    program = "import sys, gossipfl.transports.broker; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "aiomqtt", "paho", "sklearn"} & set(loaded)
