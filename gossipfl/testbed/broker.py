"""The MQTT broker of a run: one that the spec names, or the testbed's own, which is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from gossipfl.errors import ConfigError, TransportUnavailable
from gossipfl.testbed.orphans import die_with_parent
from gossipfl.testbed.ports import LOOPBACK
from gossipfl.transports.broker import open_listener, open_unix_listener, spawn_broker
from gossipfl.transports.mqtt_options import MqttOptions, TlsFiles

if TYPE_CHECKING:
    from gossipfl.sections import BrokerSpec, TlsSpec

PORT, TLS_PORT = 1883, 8883
RESTART_S = 1.0
"""Shortest time between two starts of a broker that keeps dying."""

READY_S = 10.0
STOP_S = 5.0
SOCKET_PATH_BYTES = 107
"""Longest path that the kernel takes for a Unix domain socket."""

MOSQUITTO_SETTINGS = (
    "persistence false",
    "log_dest stderr",
    "log_type error",
    "max_queued_messages 10000",
    "set_tcp_nodelay true",
    "allow_anonymous true",
)

Process: TypeAlias = "subprocess.Popen[bytes]"
Spawn: TypeAlias = Callable[[], Process]


class RunBroker:
    """The broker of a run, and how to reach it.

    ``process`` is the testbed's own broker and ``spawn`` starts another one at the address in ``options``; without
    them the broker is somebody else's to keep.
    """

    def __init__(self, options: MqttOptions, process: Process | None = None, spawn: Spawn | None = None) -> None:
        self.options = options
        self._process = process
        self._spawn = spawn

    @property
    def pid(self) -> int | None:
        """The process of the testbed's own broker."""
        return None if self._process is None else self._process.pid

    async def keep(self, restarted: Callable[[int], None]) -> None:
        """Start the testbed's own broker again whenever it dies, and tell ``restarted`` its exit status."""
        loop = asyncio.get_running_loop()
        started_s = -RESTART_S
        while self._spawn is not None and self._process is not None:
            status = await _ended(self._process)
            await asyncio.sleep(started_s + RESTART_S - loop.time())
            self._process = self._spawn()
            started_s = loop.time()
            restarted(status)

    def stop(self) -> None:
        """End the testbed's own broker."""
        if self._process is not None:
            _stop(self._process)


@contextlib.contextmanager
def run_broker(spec: BrokerSpec, federation: str) -> Iterator[RunBroker]:
    """Provide the broker that ``spec`` wants for as long as the context lasts.

    The embedded broker listens at a Unix domain socket in a private folder, which halves the CPU time per byte, or on
    the port that the spec names; Mosquitto listens on loopback. Raises TransportUnavailable where an address cannot
    be had, and ConfigError where Mosquitto is wanted and not installed.
    """
    with contextlib.ExitStack() as stack:
        if spec.host is not None:
            broker = RunBroker(_options_of(spec, spec.host, federation))
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gossipfl-")))
            own = _mosquitto if spec.kind == "mosquitto" else _embedded
            broker = own(spec, federation, folder, stack)
        stack.callback(broker.stop)
        yield broker


def _options_of(spec: BrokerSpec, host: str, federation: str) -> MqttOptions:
    return MqttOptions(
        host=host,
        port=spec.port or (TLS_PORT if spec.tls else PORT),
        federation=federation,
        username=spec.username,
        password=spec.password,
        tls=None if spec.tls is None else _tls_files(spec.tls),
    )


def _tls_files(spec: TlsSpec) -> TlsFiles:
    ca, certificate, key = (None if path is None else str(path) for path in (spec.ca, spec.cert, spec.key))
    return TlsFiles(ca, certificate, key)


def _embedded(spec: BrokerSpec, federation: str, folder: Path, stack: contextlib.ExitStack) -> RunBroker:
    """Start the embedded broker on a listener that stays open here: its address outlives each of its processes."""
    path = folder / "broker.sock"
    if spec.port is None and len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        listener = stack.enter_context(open_unix_listener(path))
        port, socket_path = PORT, str(path)
    else:
        listener = stack.enter_context(open_listener(LOOPBACK, spec.port or 0))
        port, socket_path = listener.getsockname()[1], None
    options = MqttOptions(
        host=LOOPBACK,
        port=port,
        socket_path=socket_path,
        federation=federation,
        username=spec.username,
        password=spec.password,
    )

    def spawn() -> Process:
        return spawn_broker(listener, spec.username, spec.password or "")

    return RunBroker(options, spawn(), spawn)


def _mosquitto(spec: BrokerSpec, federation: str, folder: Path, stack: contextlib.ExitStack) -> RunBroker:
    """Start Mosquitto on loopback and wait until it answers."""
    program = shutil.which(
        "mosquitto", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )
    if program is None:
        raise ConfigError('broker.kind "mosquitto": the program is not installed; install it, or leave broker.kind out')
    with open_listener(LOOPBACK, spec.port or 0) as listener:  # says in one line where a port cannot be had
        port = int(listener.getsockname()[1])
    config, log = folder / "mosquitto.conf", folder / "mosquitto.log"
    # Started by root, Mosquitto would become another user, and a change of user unties it from its parent's death.
    user = ["user root"] if os.geteuid() == 0 else []
    config.write_text("\n".join([*MOSQUITTO_SETTINGS, *user, f"listener {port} {LOOPBACK}", ""]), encoding="ascii")
    output = stack.enter_context(log.open("wb"))

    def spawn() -> Process:
        return subprocess.Popen(  # noqa: S603 - a program of the system, on a file written here
            [program, "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C is the testbed's to handle
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - one system call that takes no lock
        )

    process = spawn()
    stack.callback(_stop, process)
    _await_port(port, process, log)
    return RunBroker(MqttOptions(host=LOOPBACK, port=port, federation=federation), process, spawn)


def _await_port(port: int, process: Process, log: Path) -> None:
    deadline_s = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1.0):
            return
        time.sleep(0.01)
    said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise TransportUnavailable(f"mosquitto does not answer on {LOOPBACK}:{port}: {said[-1]}")


def _stop(process: Process) -> None:
    process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _ended(process: Process) -> int:
    """Wait for the end of a child and return its exit status, negative for a signal."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
