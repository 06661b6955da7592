"""A member of another implementation (js-libp2p) and a real node: all that the two share is docs/wire.

``member.mjs`` says hello, asks for a keyframe and verifies it; what it then holds has to be what the node has
published. It is no part of the usual set-up: without Node.js and npm these tests skip, unless
GOSSIPFL_REQUIRE_INTEROP is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from gossipfl.agent import Agent, AgentOptions, RoundReport
from gossipfl.codec import make_codec
from gossipfl.compute import ThreadCompute
from gossipfl.digest import digest, vector_digest
from gossipfl.gossip import GossipCore, GossipSettings, Party, Report
from gossipfl.identity import Identity
from gossipfl.membership import Membership
from gossipfl.messages import CHUNK_BYTES
from gossipfl.robust.mean import Mean
from gossipfl.tasks.base import Evaluation, TrainReport
from gossipfl.transports.libp2p.options import Libp2pOptions
from gossipfl.transports.libp2p.records import Record
from gossipfl.transports.libp2p.transport import Libp2pTransport
from gossipfl.vector import Entry, Layout

HERE = Path(__file__).parent
OLDEST_NODE_JS = 20
INSTALL_S = 240.0
SCENE_S = 90.0
"""For a busy machine; nothing below waits longer than it must."""

FEDERATION = "interop"
SEED = digest(b"interop member")
MEMBER = Identity.from_seed(SEED)
NODE = Identity.from_seed(digest(b"interop node"))
INCARNATION = 3
MEMBER_INCARNATION = 2**53 + 1
"""Beyond what a number of JavaScript holds."""
PARAMETERS = 4097
LARGE_PARAMETERS = 3_000_000
LARGE_CHUNKS = -(-4 * LARGE_PARAMETERS // CHUNK_BYTES)
PUBLISHED_FIRST = 3
"""Versions that the node has published before the member comes: its initial model is of no use any more."""

pytestmark = [pytest.mark.interop, pytest.mark.timeout(SCENE_S + 30.0, func_only=True)]


# ------------------------------------------------------------------------------------------ the other implementation


@pytest.fixture(scope="session")
def node_js() -> str:
    """The path of Node.js, with all that the member needs installed beside it."""
    node, npm = (shutil.which(name) or _unavailable(f"{name} is not installed") for name in ("node", "npm"))
    told = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    if int(told.removeprefix("v").partition(".")[0]) < OLDEST_NODE_JS:
        _unavailable(f"Node.js is {told}; the member needs {OLDEST_NODE_JS} or later")
    installed, locked = HERE / "node_modules" / ".package-lock.json", HERE / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < locked.stat().st_mtime:
        _install(npm)
    return node


def _install(npm: str) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=INSTALL_S, check=True)
    except subprocess.TimeoutExpired:
        _unavailable(f"npm ci took longer than {INSTALL_S:g} s")
    except subprocess.CalledProcessError as error:
        _unavailable(f"npm ci failed: {error.stderr.strip()[-500:]}")


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("GOSSIPFL_REQUIRE_INTEROP"):
        pytest.fail(reason)
    pytest.skip(reason)


class Member:
    """A running member.mjs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self) -> dict[str, Any]:
        """Return its next line."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = await self._process.stdout.readline()
        assert line, (await self._process.stderr.read()).decode()
        said: dict[str, Any] = json.loads(line)
        return said


@contextlib.asynccontextmanager
async def a_member(node_js: str, learner: Wanderer, address: str | None, **given: Any) -> AsyncIterator[Member]:
    """Run a member that dials the node at ``address`` (None: listens); ``given`` is what else it is told."""
    told = {
        "seed": SEED.hex(),
        "federation": FEDERATION,
        "node": {"peer": NODE.peer_id, "address": address},
        "incarnation": str(MEMBER_INCARNATION),
        "layout": learner.layout.digest.hex(),
        "initial": learner.initial.hex(),
        "timeout_s": SCENE_S - 10.0,
        "listen": address is None,
        **given,
    }
    pipe = asyncio.subprocess.PIPE
    program = str(HERE / "member.mjs")
    process = await asyncio.create_subprocess_exec(node_js, program, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(told).encode())
        process.stdin.write_eof()
        yield Member(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def dialled_by_member(node_js: str, site: Site, **given: Any) -> dict[str, Any]:
    """Let a member dial a node, and return what came of it."""
    async with a_member(node_js, site.learner, site.transport.listening[0], **given) as member:
        return await member.says()


# ------------------------------------------------------------------------------------------ the node


class Wanderer:
    """A learner on a random walk."""

    def __init__(self, size: int = PARAMETERS) -> None:
        self.layout = Layout((Entry("first", (size - 3,)), Entry("second", (3, 1))))
        self._generator = torch.Generator().manual_seed(size)
        self.vector = torch.randn(size, generator=self._generator)
        self.initial = vector_digest(self.vector)

    def train(self, steps: int) -> TrainReport:
        self.vector += torch.randn(len(self.vector), generator=self._generator)
        return TrainReport(0.0, steps, steps)

    def evaluate(self) -> Evaluation:
        return Evaluation(0.0)


@dataclass
class Site:
    """A node at work, and what it said; ``published`` maps a version of its replica to what a member has to hold."""

    learner: Wanderer
    core: GossipCore
    transport: Libp2pTransport
    published: dict[int, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[float, Report]] = field(default_factory=list)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False

    def on_round(self, report: RoundReport) -> None:
        own = self.core.exchange.own
        self.published[own.version] = {
            "ok": True,
            "version": own.version,
            "round": own.round,
            "parameters": len(own.vector),
            "first": own.vector[:4].tolist(),
            "digest": own.digest.hex(),
        }
        self._heard.set()

    def on_event(self, t_s: float, report: Report) -> None:
        self.events.append((t_s, report))
        self._heard.set()

    def on_end(self, _: object) -> None:
        self._ended = True
        self._heard.set()

    @property
    def refusals(self) -> dict[str, int]:
        """Connections that were not used, by the reason that is counted."""
        return {reason: n for reason, n in self.transport.counters.by_reason.items() if reason.startswith("refused")}

    def times(self, event: str) -> list[float]:
        """When an event was told."""
        return [t_s for t_s, report in self.events if report.event == event]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the node says."""
        while not condition():
            assert not self._ended, "the node has ended"
            self._heard.clear()
            await self._heard.wait()

    async def agrees(self, result: dict[str, Any]) -> None:
        """Check that a member holds what this node has published: after the first versions, not before."""
        assert result["ok"], result
        assert result["version"] >= PUBLISHED_FIRST
        await self.until(lambda: result["version"] in self.published)
        published = self.published[result["version"]]
        assert {name: result[name] for name in published} == published


@contextlib.asynccontextmanager
async def a_node(
    learner: Wanderer | None = None, *, member: Identity = MEMBER, address: str | None = None, pace_s: float = 0.05
) -> AsyncIterator[Site]:
    """Run a node whose one neighbour is ``member``, at ``address`` where that is known."""
    learner = learner or Wanderer()
    members = Membership.from_ids(FEDERATION, {"node": NODE.peer_id, "member": member.peer_id})
    party = Party(NODE, members, INCARNATION, {member.peer_id: 0.5})
    settings = GossipSettings(mode="async")
    core = GossipCore(party, learner.layout.digest, learner.vector, Mean(), make_codec("float32"), settings)
    addresses = {member.peer_id: (address,)} if address is not None else {}
    options = Libp2pOptions(federation=FEDERATION, addresses=addresses, sequence=INCARNATION)
    transport = Libp2pTransport(NODE, [member.peer_id], options, members=list(members.members))
    site = Site(learner, core, transport)
    how = AgentOptions(1, None, lambda _: False, mode="async", join_timeout_s=0.0, drain_s=2.0, round_every_s=pace_s)
    agent = Agent(core, learner, transport, ThreadCompute("interop"), how, site)
    running = asyncio.create_task(agent.run())
    running.add_done_callback(site.on_end)
    try:
        await site.until(lambda: len(site.published) >= PUBLISHED_FIRST)
        yield site
    finally:
        agent.stop()
        await running


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scene for a bounded time."""

    async def bounded() -> None:
        async with asyncio.timeout(SCENE_S):
            await scene()

    asyncio.run(bounded())


# ------------------------------------------------------------------------------------------ the tests


class TestItDials:
    @pytest.mark.parametrize("bulk", [False, True], ids=["one lane", "two lanes"])
    def test_it_holds_what_the_node_has_published(self, node_js: str, bulk: bool) -> None:
        async def scene() -> None:
            async with a_node() as site:
                result = await dialled_by_member(node_js, site, bulk=bulk, parameters=PARAMETERS)
                await site.agrees(result)
                assert result["chunks"] == 0
                assert site.refusals == {}
                await site.until(lambda: site.core.followed[MEMBER.peer_id].left)  # it has said good-bye

        play(scene)

    @pytest.mark.parametrize("bulk", [False, True], ids=["one lane", "two lanes"])
    def test_a_large_replica_comes_in_chunks(self, node_js: str, bulk: bool) -> None:
        async def scene() -> None:
            async with a_node(Wanderer(LARGE_PARAMETERS), pace_s=0.5) as site:
                result = await dialled_by_member(node_js, site, bulk=bulk)
                await site.agrees(result)
                assert result["chunks"] == LARGE_CHUNKS
                assert result["bulk_chunks"] == (LARGE_CHUNKS if bulk else 0)

        play(scene)

    def test_each_reads_the_others_address_record(self, node_js: str) -> None:
        told = ["/ip4/127.0.0.1/tcp/9", "/ip4/127.0.0.1/udp/9/quic-v1", "/dns4/localhost/tcp/9"]

        async def scene() -> None:
            async with a_node() as site:
                assert site.transport.address_records() == ()
                result = await dialled_by_member(node_js, site, advertise=told)
                (record,) = map(Record.read, site.transport.address_records())
                assert record.peer == MEMBER.peer_id
                assert record.sequence == MEMBER_INCARNATION
                assert [str(address) for address in record.addresses] == [told[0], told[2]]
                own = {"peer": NODE.peer_id, "addresses": list(site.transport.listening), "seq": INCARNATION}
                assert result["records"] == [own]
                assert site.transport.counters.frames_dropped == 0

        play(scene)

    def test_a_link_outlives_pings_of_js_libp2p(self, node_js: str) -> None:
        """Its connection monitor pings every 10 s, and ends a connection where no answer comes."""
        hold_s = 12.5

        async def scene() -> None:
            async with a_node() as site:
                result = await dialled_by_member(node_js, site, bulk=True, hold_s=hold_s)
                await site.agrees(result)
                assert result["ping_ms"] is not None
                await site.until(lambda: "link-down" in {report.event for _, report in site.events})
                (up_s,), (down_s,) = site.times("link-up"), site.times("link-down")
                assert down_s - up_s >= hold_s
                assert site.refusals == {}

        play(scene)

    def test_a_stranger_is_refused(self, node_js: str) -> None:
        other = Identity.from_seed(digest(b"interop, another member"))

        async def scene() -> None:
            async with a_node(member=other) as site:
                result = await dialled_by_member(node_js, site)
                assert result["ok"] is False
                await site.until(lambda: len(site.times("link-refused")) > 0)
                assert site.refusals == {"refused stranger": 1}
                assert site.times("link-up") == []

        play(scene)

    def test_another_federation_is_refused(self, node_js: str) -> None:
        async def scene() -> None:
            async with a_node() as site:
                result = await dialled_by_member(node_js, site, federation="another")
                assert result == {"ok": False, "why": "the node refuses lane 0: federation"}
                await site.until(lambda: len(site.times("link-refused")) > 0)
                assert site.refusals == {"refused federation": 1}
                assert site.times("link-up") == []

        play(scene)


class TestItListens:
    @pytest.mark.parametrize("bulk", [False, True], ids=["one lane", "two lanes"])
    def test_it_holds_what_the_node_has_published(self, node_js: str, bulk: bool) -> None:
        async def scene() -> None:
            learner = Wanderer(LARGE_PARAMETERS)
            async with a_member(node_js, learner, None, bulk=bulk, parameters=LARGE_PARAMETERS) as member:
                ready = await member.says()
                assert ready["peer"] == MEMBER.peer_id
                async with a_node(learner, address=ready["listening"], pace_s=0.5) as site:
                    result = await member.says()
                    await site.agrees(result)
                    assert result["chunks"] == LARGE_CHUNKS
                    assert result["bulk_chunks"] == (LARGE_CHUNKS if bulk else 0)
                    (record,) = map(Record.read, site.transport.address_records())
                    assert [str(address) for address in record.addresses] == [ready["listening"]]
                    assert site.refusals == {}

        play(scene)

    def test_a_node_of_another_federation_is_refused(self, node_js: str) -> None:
        async def scene() -> None:
            learner = Wanderer()
            async with a_member(node_js, learner, None, federation="another") as member:
                ready = await member.says()
                async with a_node(learner, address=ready["listening"]) as site:
                    assert await member.says() == {"ok": False, "why": "the node's greeting: federation"}
                    await site.until(lambda: len(site.times("link-refused")) > 0)
                    assert site.refusals["refused by peer"] == 1
                    assert site.times("link-up") == []

        play(scene)
