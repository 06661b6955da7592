"""A small MQTT 3.1.1 broker on asyncio, for testbeds and tests: nothing to install and little CPU per byte.

    async with Broker() as broker:                  # in the running loop
        ...  broker.port

    with start_broker_process() as broker:          # in a process of its own
        ...  broker.port

    python -m gossipfl.transports.broker --port 1883

What it speaks: QoS 0 and 1, both wildcards, wills, keep-alive, user name and password. What it leaves out: QoS 2
(such a message closes the connection; such a subscription is granted QoS 1), retained messages (delivered, never
stored), sessions that outlive their connection, redelivery, TLS and access control. For a network that is not one
machine's loopback use Mosquitto.

What it adds to the standard is back-pressure: while more than ``BrokerLimits.queue_bytes`` wait for a subscriber,
the publishers that write to it are not read. It never drops a message, and disconnects a subscriber that stalls.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from gossipfl.errors import TransportUnavailable
from gossipfl.heap import keep_freed_pages
from gossipfl.transports import mqtt_packets as mqtt
from gossipfl.transports.broker_client import BrokerClient, BrokerCounters, BrokerLimits, new_scratch
from gossipfl.transports.mqtt_packets import ConnectReturn, PacketError, PacketType, Publish
from gossipfl.transports.subscriptions import Subscriptions

PASSWORD_VARIABLE = "GOSSIPFL_BROKER_PASSWORD"  # noqa: S105  # the name of a variable
"""The environment variable with the password; a command line would show it to every user of the machine."""

_SWEEP_S = 1.0
_PARENT_CHECK_S = 0.5
_BACKLOG = 1024


class Broker:
    """The broker itself; start it with ``async with`` in a running loop.

    ``listener`` is a listening socket that the broker takes over; without it one is opened on ``host`` and
    ``port`` (0: the kernel chooses). With a ``username`` every client must give it and its ``password``. Raises
    TransportUnavailable when the address cannot be had.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        username: str | None = None,
        password: str = "",
        limits: BrokerLimits | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.limits = limits or BrokerLimits()
        self.counters = BrokerCounters()
        self.scratch = new_scratch()
        self._credentials = (username, password.encode()) if username is not None else None
        self._listener = listener
        self.clients: set[BrokerClient] = set()
        self._by_id: dict[str, BrokerClient] = {}
        self._subscriptions: Subscriptions[BrokerClient] = Subscriptions()
        self._sweeper: asyncio.Task[None] | None = None
        self._anonymous = 0

    async def __aenter__(self) -> Self:
        if self._listener is None:
            self._listener = open_listener(self.host, self.port)
        if self._listener.family != socket.AF_UNIX:
            self.host, self.port = self._listener.getsockname()[:2]
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        self._sweeper = asyncio.create_task(self._sweep(), name="broker.sweep")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for client in list(self.clients):
            client.will = None
            client.close("broker stops")
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def _accept(self) -> None:
        assert self._listener is not None  # only its own reader calls this
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # the client has gone already
            return
        except OSError:  # no descriptor is free: leave it in the kernel's backlog until the next sweep
            asyncio.get_running_loop().remove_reader(self._listener)
            return
        if len(self.clients) >= self.limits.clients:
            sock.close()
            return
        self.counters.connections += 1
        self.clients.add(BrokerClient(self, sock))

    async def _sweep(self) -> None:
        """Close clients that broke a time limit."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            if self._listener is not None:
                loop.add_reader(self._listener, self._accept)
            for client in list(self.clients):
                reason = client.overdue(loop.time())
                if reason == "stalled":
                    self.counters.stalled += 1
                if reason:
                    client.close(reason)

    # --- packets (the sink of every BrokerClient)

    def handle(self, client: BrokerClient, first: int, packet: memoryview, body_at: int) -> None:
        """Act on one packet of ``client``; a malformed one raises PacketError and touches nobody else."""
        kind, flags, body = first >> 4, first & 0x0F, packet[body_at:]
        if (kind == PacketType.CONNECT) == (client.client_id is not None):
            raise PacketError("first packet is no CONNECT" if client.client_id is None else "second CONNECT")
        if kind == PacketType.PUBLISH:
            message = mqtt.parse_publish(flags, body)
            self._route(message, client, packet if first == 0x30 else None)
            if message.qos:
                client.write(mqtt.puback(message.packet_id))
        elif kind == PacketType.PUBACK:
            client.acknowledged(mqtt.parse_puback(flags, body))
        elif kind == PacketType.PINGREQ:
            mqtt.parse_empty(flags, body)
            client.write(mqtt.PINGRESP)
        elif kind == PacketType.SUBSCRIBE:
            self._subscribe(client, mqtt.parse_subscribe(flags, body))
        elif kind == PacketType.UNSUBSCRIBE:
            request = mqtt.parse_unsubscribe(flags, body)
            for pattern in request.filters:
                self._subscriptions.remove(client, pattern)
            client.write(mqtt.unsuback(request.packet_id))
        elif kind == PacketType.CONNECT:
            self._connect(client, flags, body)
        elif kind == PacketType.DISCONNECT:
            mqtt.parse_empty(flags, body)
            client.will = None
            client.close("disconnected")
        else:
            raise PacketError(f"packet of type {kind}")

    def _connect(self, client: BrokerClient, flags: int, body: memoryview) -> None:
        if flags:
            raise PacketError("reserved flags of CONNECT")
        request = mqtt.parse_connect(body)
        refusal = self._refusal(request)
        if refusal:
            client.write(mqtt.connack(refusal))
            client.close(refusal.name.lower().replace("_", " "))
            return
        self._anonymous += 1
        client_id = request.client_id or f"anonymous-{self._anonymous}"
        rival = self._by_id.get(client_id)
        if rival is not None:
            rival.close("another client took its id")
        client.client_id = client_id
        client.will = request.will
        client.keepalive_s = request.keepalive_s
        self._by_id[client_id] = client
        client.write(mqtt.connack(ConnectReturn.ACCEPTED))

    def _refusal(self, request: mqtt.Connect) -> ConnectReturn | None:
        if request.level != mqtt.LEVEL:
            return ConnectReturn.BAD_PROTOCOL_LEVEL
        if not request.client_id and not request.clean_session:
            return ConnectReturn.BAD_CLIENT_ID
        if self._credentials is not None:
            username, password = self._credentials
            known = request.username == username and hmac.compare_digest(request.password or b"", password)
            return None if known else ConnectReturn.BAD_CREDENTIALS
        return None

    def _subscribe(self, client: BrokerClient, request: mqtt.Subscribe) -> None:
        if self._subscriptions.count(client) + len(request.filters) > self.limits.filters:
            raise PacketError("too many subscriptions")
        for pattern, qos in request.filters:
            self._subscriptions.add(client, pattern, qos)
        client.write(mqtt.suback(request.packet_id, [qos for _, qos in request.filters]))

    def _route(self, message: Publish, publisher: BrokerClient | None, packet: memoryview | None) -> None:
        """Write a message to its subscribers; ``packet``: the bytes it came in, when they can go on unchanged."""
        self.counters.messages_in += 1
        head = b""
        for subscriber, granted in list(self._subscriptions.matching(message.topic).items()):
            if min(message.qos, granted):
                own_head = mqtt.publish_head(message.topic, len(message.payload), subscriber.next_packet_id())
                subscriber.write(own_head, message.payload)
            elif packet is not None:
                subscriber.write(packet)
            else:
                head = head or mqtt.publish_head(message.topic, len(message.payload))
                subscriber.write(head, message.payload)
            self.counters.messages_out += 1
            if publisher is not None and subscriber.overfull:
                publisher.wait_for(subscriber)

    def gone(self, client: BrokerClient) -> None:
        """Forget a client that is closed and publish its will."""
        self.clients.discard(client)
        self._subscriptions.forget(client)
        if client.client_id is not None and self._by_id.get(client.client_id) is client:
            del self._by_id[client.client_id]
        if client.will is not None:
            self._route(client.will, None, None)


def open_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port``; TransportUnavailable when it cannot be had."""
    try:
        return socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as error:
        raise TransportUnavailable(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port, or 0 for any free one"
        ) from None


def open_unix_listener(path: Path) -> socket.socket:
    """Return a socket that listens at ``path``; TransportUnavailable when it cannot be had."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError as error:  # a path that is too long has no strerror
        listener.close()
        raise TransportUnavailable(
            f"cannot listen at {path}: {error.strerror or error}; name a new file in a folder that you can write"
        ) from None
    return listener


@dataclass(frozen=True, slots=True)
class BrokerProcess:
    """A broker in a process of its own: at ``socket_path``, or else at ``host`` and ``port``."""

    host: str
    port: int
    pid: int
    socket_path: str | None = None


@contextlib.contextmanager
def start_broker_process(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    socket_path: Path | None = None,
    username: str | None = None,
    password: str = "",
) -> Iterator[BrokerProcess]:
    """Run a broker in a process of its own for as long as the context lasts, or this process lives.

    The address is bound here, so the caller may connect at once: the kernel keeps its connection until the new
    process accepts it. With ``socket_path`` it is a Unix domain socket at that path. Raises TransportUnavailable
    when the address cannot be had.
    """
    with open_listener(host, port) if socket_path is None else open_unix_listener(socket_path) as listener:
        if socket_path is None:
            host, port = listener.getsockname()[:2]
        process = spawn_broker(listener, username, password)
    try:
        yield BrokerProcess(host, port, process.pid, str(socket_path) if socket_path else None)
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if socket_path is not None:
            socket_path.unlink(missing_ok=True)


def spawn_broker(listener: socket.socket, username: str | None = None, password: str = "") -> subprocess.Popen[bytes]:
    """Start a broker process on ``listener``; it lives until SIGTERM, or as long as this process.

    Who keeps ``listener`` open keeps the address: another process can be started on it, and clients that connect
    meanwhile wait for that one.
    """
    command = [sys.executable, "-m", "gossipfl.transports.broker"]
    command += ["--fd", str(listener.fileno()), "--parent", str(os.getpid())]
    environment = dict(os.environ)
    if username is not None:
        command += ["--username", username]
        environment[PASSWORD_VARIABLE] = password
    return subprocess.Popen(  # noqa: S603  # this very interpreter and module
        command, env=environment, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL
    )


async def _serve(broker: Broker, parent: int | None) -> None:
    """Serve until SIGTERM, or until ``parent`` is no longer the parent of this process."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if parent is None:
        loop.add_signal_handler(signal.SIGINT, stop.set)
    else:  # Ctrl-C reaches the whole process group; the parent decides when its broker goes
        loop.add_signal_handler(signal.SIGINT, lambda: None)
    async with broker:
        if parent is None:
            sys.stdout.write(f"listening on {broker.host}:{broker.port}\n")
            sys.stdout.flush()
        while not stop.is_set() and parent in {None, os.getppid()}:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PARENT_CHECK_S):
                    await stop.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until SIGTERM or SIGINT; return 0, or 2 when its address cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m gossipfl.transports.broker", description="A small MQTT broker")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883, help="0: any free port, which is printed")
    parser.add_argument("--username", help=f"its password is taken from ${PASSWORD_VARIABLE}")
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    keep_freed_pages()
    listener = socket.socket(fileno=options.fd) if options.fd is not None else None
    password = os.environ.get(PASSWORD_VARIABLE, "")
    broker = Broker(options.host, options.port, username=options.username, password=password, listener=listener)
    try:
        asyncio.run(_serve(broker, options.parent))
    except TransportUnavailable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
