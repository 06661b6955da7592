"""CPU and wall time per frame of the MQTT transport, at several brokers: one publisher, two subscribers.

    python benchmarks/transport.py [--sizes 1000 100000 407000 1000000] [--megabytes 100] [--rounds 3] [--json FILE]

Publisher, broker and each subscriber are processes of their own; the CPU time is what the kernel accounts to each of
them (user and system) between the first and the last frame. A figure is the median of the rounds; compare figures
within one run only. Brokers that are not installed are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from gossipfl.heap import keep_freed_pages
from gossipfl.transports.broker import start_broker_process
from gossipfl.transports.mqtt import MqttTransport
from gossipfl.transports.mqtt_options import MqttOptions

SUBSCRIBERS = ("bob", "cid")
BROKERS = ("embedded unix", "embedded", "mosquitto", "amqtt")
PINGS = 200

_AMQTT = """
import asyncio, sys
from amqtt.broker import Broker

async def main():
    listener = {"default": {"type": "tcp", "bind": "127.0.0.1:" + sys.argv[1]}}
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    await Broker({"listeners": listener, "plugins": plugins}).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass
class Cost:
    """One cell: milliseconds per frame published; ``subscriber`` is the mean of both."""

    broker: str
    qos: int
    size_bytes: int
    publisher_ms: float
    broker_ms: float
    subscriber_ms: float
    total_ms: float
    wall_ms: float
    round_trip_ms: float


@contextlib.contextmanager
def running_broker(kind: str) -> Iterator[tuple[MqttOptions, int]]:
    """Run one kind of broker; gives how to reach it and its process id."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if kind == "embedded":
            own = stack.enter_context(start_broker_process())
            yield MqttOptions(port=own.port), own.pid
        elif kind == "embedded unix":
            own = stack.enter_context(start_broker_process(socket_path=folder / "broker.sock"))
            yield MqttOptions(socket_path=own.socket_path), own.pid
        else:
            port = _free_port()
            if kind == "mosquitto":
                config = folder / "mosquitto.conf"
                config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest none\n")
                command = [mosquitto_program() or "mosquitto", "-c", str(config)]
            else:
                command = [sys.executable, "-c", _AMQTT, str(port)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                _await_port(port)
                yield MqttOptions(port=port), process.pid
            finally:
                process.kill()
                process.wait()


def mosquitto_program() -> str | None:
    """Return where Mosquitto is installed, if it is."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise SystemExit(f"no broker came up on port {port}")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, from the scheduler's nanosecond account."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def node(me: str, options: MqttOptions, frames: int, size_bytes: int, pipe: Connection) -> None:
    """Run one node in a process of its own, in step with the others through its pipe."""
    keep_freed_pages()

    async def main() -> None:
        peers = SUBSCRIBERS if me == "ann" else ("ann",)
        transport = MqttTransport(me, peers, options)
        await transport.start()
        await _step(pipe)
        if me == "ann":
            frame = bytes(size_bytes)
            for _ in range(frames):
                await transport.send(transport.peers, frame)
        else:
            for _ in range(frames):
                await transport.receive()
        await _step(pipe)
        pipe.send(await _round_trips(transport) if me == "ann" else await _echo(transport, me))
        await asyncio.to_thread(pipe.recv)
        await transport.close()

    asyncio.run(main())


async def _step(pipe: Connection) -> None:
    """Say that this node is ready, and go on when all are."""
    pipe.send(None)
    await asyncio.to_thread(pipe.recv)


async def _round_trips(transport: MqttTransport) -> float:
    frame = bytes(1000)
    begin_s = time.perf_counter()
    for _ in range(PINGS):
        await transport.send(["bob"], frame)
        await transport.receive()
    return (time.perf_counter() - begin_s) / PINGS


async def _echo(transport: MqttTransport, me: str) -> float:
    for _ in range(PINGS if me == "bob" else 0):
        await transport.send(["ann"], (await transport.receive()).frame)
    return 0.0


def measure(kind: str, qos: int, size_bytes: int, frames: int) -> Cost:
    """Send ``frames`` frames through one broker and account for them."""
    context = multiprocessing.get_context("fork")
    with running_broker(kind) as (reach, broker_pid):
        options = MqttOptions(
            host=reach.host, port=reach.port, socket_path=reach.socket_path, qos=1 if qos else 0, inbox_bytes=1 << 30
        )
        ends = [context.Pipe() for _ in range(3)]
        members = ("ann", *SUBSCRIBERS)
        nodes = [
            context.Process(target=node, args=(me, options, frames, size_bytes, theirs))
            for me, (_, theirs) in zip(members, ends, strict=True)
        ]
        for process in nodes:
            process.start()
        pipes = [ours for ours, _ in ends]
        pids = [broker_pid, *(process.pid or 0 for process in nodes)]
        _gather(pipes)
        before, begin_s = [cpu_s(pid) for pid in pids], time.perf_counter()
        _release(pipes)
        _gather(pipes)
        wall_s = time.perf_counter() - begin_s
        used_ms = [(cpu_s(pid) - start) / frames * 1e3 for pid, start in zip(pids, before, strict=True)]
        _release(pipes)
        round_trip_s = max(pipe.recv() for pipe in pipes)
        _release(pipes)
        for process in nodes:
            process.join()
    broker_ms, publisher_ms, *subscriber_ms = used_ms
    return Cost(
        kind,
        qos,
        size_bytes,
        publisher_ms,
        broker_ms,
        statistics.mean(subscriber_ms),
        sum(used_ms),
        wall_s / frames * 1e3,
        round_trip_s * 1e3,
    )


def _gather(pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        pipe.recv()


def _release(pipes: Sequence[Connection]) -> None:
    for pipe in pipes:
        pipe.send(None)


def median_of(costs: Sequence[Cost]) -> Cost:
    """Return the cost, field by field, of the middle round."""
    middle = asdict(costs[0])
    for name, value in middle.items():
        if isinstance(value, float):
            middle[name] = statistics.median(getattr(cost, name) for cost in costs)
    return Cost(**middle)


def missing() -> dict[str, str]:
    """Return the brokers that this machine lacks, with what is missing."""
    absent = {}
    if mosquitto_program() is None:
        absent["mosquitto"] = "the program mosquitto is not installed"
    if importlib.util.find_spec("amqtt") is None:
        absent["amqtt"] = "the package amqtt is not installed"
    return absent


def main() -> None:
    """Measure every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000, 407_000, 1_000_000])
    parser.add_argument("--brokers", nargs="+", default=list(BROKERS), choices=BROKERS)
    parser.add_argument("--megabytes", type=int, default=100, help="published in each cell, at most 2,000 frames")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    absent = missing()
    results: list[Cost] = []
    print(
        f"{'bytes':>8} {'broker':14} qos  publisher  broker  subscriber  total CPU  ratio   wall  1 KB round trip (ms)"
    )
    for size_bytes in options.sizes:
        base = 0.0
        frames = max(50, min(2000, options.megabytes * 1_000_000 // size_bytes))
        for kind in (kind for kind in options.brokers if kind not in absent):
            for qos in (0, 1):
                cost = median_of([measure(kind, qos, size_bytes, frames) for _ in range(options.rounds)])
                results.append(cost)
                base = base or cost.total_ms
                print(
                    f"{size_bytes:8d} {kind:14} {qos:3d} {cost.publisher_ms:10.3f} {cost.broker_ms:7.3f} "
                    f"{cost.subscriber_ms:11.3f} {cost.total_ms:10.3f} {cost.total_ms / base:6.2f} {cost.wall_ms:6.2f} "
                    f"{cost.round_trip_ms:8.2f}",
                    flush=True,
                )
    for kind, reason in absent.items():
        print(f"{kind} left out: {reason}")
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
