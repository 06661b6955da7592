"""Site daemons for tests: folders with keys and files, real processes, and waiting for what they say.

A daemon's imports take seconds of CPU time, so most are forked from one process that has made them already.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossipfl.identity import Identity
from gossipfl_node.status_socket import NotRunningError, ask

PATIENCE_S = 45.0
"""For a busy machine; nothing below waits longer than it must."""
POLL_S = 0.05

COMMAND = (sys.executable, "-c", "from gossipfl_node.cli import main; main()")

NURSERY = multiprocessing.get_context("forkserver")
NURSERY.set_forkserver_preload(
    [
        "gossipfl.codec",
        "gossipfl.robust.registry",
        "gossipfl.tasks.digits",
        "gossipfl.tasks.torch_learner",
        "gossipfl.transports.libp2p.transport",
        "gossipfl.transports.mqtt",
        "gossipfl_node.cli",
        "gossipfl_node.config",
        "gossipfl_node.daemon",
    ]
)


class Forked:
    """A process that runs the command after a fork, with the methods of Popen that the tests use."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._process = NURSERY.Process(target=_command, args=(arguments, log))
        self._process.start()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the process does not end"
        return self._process.exitcode


def _command(arguments: list[str], log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = ["gossipfl-node", *arguments]

    from gossipfl_node.cli import main

    main()


COMMON = """
rule = "mean"
evaluate_every = 2

[site]
name = "{name}"
key = "site.key"
state = "state"
round_every_s = 0.1

[gossip]
liveness_s = 2.0
heartbeat_s = 0.3
join_timeout_s = 20.0
drain_s = 3.0

[train]
local_steps = 2

[share]
index = {index}
of = {of}
"""


@dataclass
class Daemon:
    """One site: its folder, and its process while there is one."""

    name: str
    folder: Path
    identity: Identity
    process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def file(self) -> Path:
        return self.folder / "site.toml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def start(self, *, forked: bool = True) -> None:
        """Start the daemon, forked from the nursery or by its command line."""
        arguments = ["run", str(self.file), "--log-level", "debug"]
        with (self.folder / "log").open("ab") as log:
            if not forked:
                self.process = subprocess.Popen([*COMMAND, *arguments], stderr=log, stdout=log)
                return
        self.process = Forked(arguments, self.folder / "log")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def log_end(self) -> str:
        """Return the last lines of the log, for the message of a failure."""
        return "\n".join(self.log().splitlines()[-30:])

    def kill(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, limit_s: float = PATIENCE_S) -> int:
        assert self.process is not None
        return self.process.wait(limit_s)

    def status(self) -> dict[str, Any]:
        return ask(self.state)

    def neighbour(self, other: Daemon) -> dict[str, Any]:
        return next(each for each in self.status()["neighbours"] if each["name"] == other.name)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "events.jsonl").read_text().splitlines()]

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the first status that fulfils the condition; fails with the log when time is up or it has ended."""
        deadline = time.monotonic() + PATIENCE_S
        last: dict[str, Any] = {}
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, self.log_end()
            with contextlib.suppress(NotRunningError):
                last = self.status()
                if condition(last):
                    return last
            time.sleep(POLL_S)
        raise AssertionError(f"{self.name}: {json.dumps(last, indent=1)}\n{self.log_end()}")

    def until_neighbour(self, other: Daemon, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def holds(status: dict[str, Any]) -> bool:
            return any(condition(each) for each in status["neighbours"] if each["name"] == other.name)

        return self.until(holds)


@dataclass
class Deployment:
    """Sites of one federation; ``addresses`` are those that the files written from then on say, by name."""

    root: Path
    name: str
    members: dict[str, Identity] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def add(self, name: str) -> Identity:
        """Make a member's folder and key."""
        folder = self.root / name
        folder.mkdir(parents=True)
        self.members[name] = identity = Identity.generate()
        identity.save(folder / "site.key")
        return identity

    def federation(self, edges: Sequence[tuple[str, str]]) -> str:
        members = "\n".join(f'{name} = "{identity.peer_id}"' for name, identity in self.members.items())
        pairs = ", ".join(f'["{one}", "{other}"]' for one, other in edges)
        text = f'[federation]\nname = "{self.name}"\nedges = [{pairs}]\n[federation.members]\n{members}\n'
        if self.addresses:
            lines = [f'{name} = ["{multiaddress}"]' for name, multiaddress in self.addresses.items()]
            text += "\n".join(["[federation.addresses]", *lines, ""])
        return text

    def site(
        self, name: str, edges: Sequence[tuple[str, str]], transport: str, changes: Mapping[str, str] | None = None
    ) -> Daemon:
        """Write a member's file: the common settings with some ``changes`` of text, and the transport's section."""
        names = list(self.members)
        common = COMMON.format(name=name, index=names.index(name), of=len(names))
        for old, new in (changes or {}).items():
            assert old in common, old
            common = common.replace(old, new)
        folder = self.root / name
        (folder / "site.toml").write_text(f"{common}\n{self.federation(edges)}\n{transport}\n")
        return Daemon(name, folder, self.members[name])


@contextlib.contextmanager
def ended_in_the_end(daemons: Sequence[Daemon]) -> Iterator[None]:
    """Kill, whatever happens, the processes of these daemons."""
    try:
        yield
    finally:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


def ring(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the edges of a ring; of two names, the one edge between them."""
    pairs = zip(names, [*names[1:], names[0]], strict=True)
    return list(pairs)[: len(names) if len(names) > 2 else 1]


def address(port: int, *more: str) -> str:
    """Return the [broker] section for a broker on loopback."""
    return "\n".join(["[broker]", 'host = "127.0.0.1"', f"port = {port}", *more])


def on_loopback(port: int) -> str:
    """Return the multiaddress of a loopback port."""
    return f"/ip4/127.0.0.1/tcp/{port}"


def listening(multiaddress: str, *more: str) -> str:
    """Return the [libp2p] section of a site that listens there; a dead link is noticed after a second or two."""
    return "\n".join(["[libp2p]", f'listen = ["{multiaddress}"]', "ping_s = 0.5", "dead_s = 1.5", *more])


def connected(status: Mapping[str, Any]) -> bool:
    """Say whether a daemon has its link to the broker, or to each of its neighbours."""
    if status["libp2p"] is None:
        return bool(status["broker"]["link"] == "up")
    links = status["libp2p"]["links"].values()
    return bool(links) and all(link["state"] == "up" for link in links)


def reconnects(status: Mapping[str, Any]) -> int:
    """Return how often a daemon's links came back."""
    return int((status["libp2p"] or status["broker"])["reconnects"])
