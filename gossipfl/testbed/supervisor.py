"""The parent of a testbed's node processes: forks them, listens to them, and ends them."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gossipfl.records import Event, NodeRound
from gossipfl.testbed.node_process import INTERRUPTS, node_process
from gossipfl.testbed.pipe import PipeReader
from gossipfl.testbed.plan import node_name

if TYPE_CHECKING:
    from gossipfl.testbed.node_process import MakeTransport
    from gossipfl.testbed.plan import Plan

READ_BYTES = 1 << 20
KILL_AFTER_S = 30.0
"""How long nodes may take to drain after they were asked to end."""


@dataclass(slots=True)
class Child:
    """One node process and what it has told so far."""

    node: int
    pid: int
    descriptor: int
    reader: PipeReader = field(default_factory=PipeReader.new)
    end: dict[str, Any] | None = None
    running: bool = True


class Supervisor:
    """Runs one process per node and passes on what they tell.

    ``keep_row`` and ``keep_event`` take rows and events as they come. A first interrupt asks all nodes to finish
    their round and leave, a second one kills them.
    """

    def __init__(
        self,
        plan: Plan,
        make_transport: MakeTransport,
        keep_row: Callable[[NodeRound], None],
        keep_event: Callable[[Event], None],
    ) -> None:
        self._plan = plan
        self._make_transport = make_transport
        self._keep_row = keep_row
        self._keep_event = keep_event
        self._forked_s = 0.0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.children: list[Child] = []
        self.interrupted = False

    async def run(self) -> None:
        """Fork all nodes and wait for their end; what their rows and events do to ``keep_...`` is raised here."""
        loop = asyncio.get_running_loop()
        for number in INTERRUPTS:
            loop.add_signal_handler(number, self.interrupt)
        try:
            self._fork_all()
            await self._over
        finally:
            await self._reap()
            for number in INTERRUPTS:
                loop.remove_signal_handler(number)

    def tell(self, event: str, node: int | None = None, **fields: Any) -> None:
        """Keep an event that only the parent can see, on the nodes' clock."""
        t_s = asyncio.get_running_loop().time() - self._forked_s
        self._keep_event(Event(t_s, event, None if node is None else node_name(node), fields))

    def _fork_all(self) -> None:
        """Fork all nodes; an interrupt waits until each of them can take its own."""
        gc.collect()
        gc.freeze()  # keeps the collector from touching, and so copying, the pages that children share
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
        self._forked_s = asyncio.get_running_loop().time()
        try:
            for node in range(self._plan.spec.nodes):
                self._fork(node)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
            gc.unfreeze()

    def _fork(self, node: int) -> None:
        parent = os.getpid()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            for child in self.children:
                os.close(child.descriptor)
            _leave_loop()
            node_process(self._plan, node, self._make_transport, writing, parent)
        os.close(writing)
        os.set_blocking(reading, False)
        child = Child(node, pid, reading)
        self.children.append(child)
        asyncio.get_running_loop().add_reader(reading, self._read, child)

    def _read(self, child: Child) -> None:
        try:
            data = os.read(child.descriptor, READ_BYTES)
        except BlockingIOError:
            return
        try:
            self._take(child, data)
        except Exception as error:  # noqa: BLE001 - a callback has nobody to raise it to
            if not self._over.done():
                self._over.set_exception(error)
        if not data:
            self._finish(child)

    def _take(self, child: Child, data: bytes) -> None:
        for told in child.reader.feed(data):
            if isinstance(told, Event):
                self._keep_event(told)
            elif isinstance(told, NodeRound):
                self._keep_row(told)
            else:
                child.end = told

    def _finish(self, child: Child) -> None:
        """The pipe is closed: the process has ended, or is about to."""
        asyncio.get_running_loop().remove_reader(child.descriptor)
        os.close(child.descriptor)
        _, status = os.waitpid(child.pid, 0)
        child.running = False
        code = os.waitstatus_to_exitcode(status)
        if child.end is None or "error" in child.end:
            told = {} if child.end is None else {"error": child.end["error"]}
            how = {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
            self.tell("died", child.node, **how, **told)
        if not self._over.done() and not any(other.running for other in self.children):
            self._over.set_result(None)

    def interrupt(self) -> None:
        """Ask all nodes to end; the second time, kill them."""
        again, self.interrupted = self.interrupted, True
        self.end_all(signal.SIGKILL if again else signal.SIGTERM)
        if not again:
            asyncio.get_running_loop().call_later(KILL_AFTER_S, self.end_all, signal.SIGKILL)

    def end_all(self, number: signal.Signals) -> None:
        """Send a signal to all nodes that still run."""
        for child in self.children:
            if child.running:
                os.kill(child.pid, number)

    async def _reap(self) -> None:
        """Whatever happens to the parent's task, no child outlives it."""
        self.end_all(signal.SIGKILL)
        for child in self.children:
            if child.running:
                self._finish(child)


def _leave_loop() -> None:
    """Forget, in a forked child, the event loop that its parent runs."""
    asyncio._set_running_loop(None)
    asyncio.set_event_loop(None)
