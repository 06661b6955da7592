"""Faults as data: a plan of what the wire does wrong, and a wrapper that does it to any transport.

    transport = FaultyTransport(inner, FaultPlan(drop=0.2, delay_s=(0.0, 0.05)), seed=derive_seed(seed,
    "faults"))

The wrapper works on the sending side. Give every node of a network the same plan and seed; each link draws
from a generator of its own, so that what happens on one link does not depend on the traffic of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError, TransportClosed
from gossipfl.transports.base import FORMER_PEER, LinkEvent, PeerId, Received, Transport, check_frame

IN_FLIGHT_FRAMES = 4096
"""Frames that one wrapper keeps under way at once; ``send`` waits when there are more."""

REORDER_HOLD_S = 0.1
"""The longest time for which a frame is held back for its successor to overtake it."""


@dataclass(frozen=True, slots=True)
class Partition:
    """From ``start_s`` until ``end_s`` no frame passes between different ``groups``.

    Peers that no group names form one more group together.
    """

    start_s: float
    end_s: float
    groups: tuple[frozenset[PeerId], ...]

    def separates(self, one: PeerId, other: PeerId, now_s: float) -> bool:
        """Say whether this partition stops a frame between two peers at ``now_s``."""
        return self.start_s <= now_s < self.end_s and self._group(one) != self._group(other)

    def _group(self, peer: PeerId) -> int:
        return next((number for number, group in enumerate(self.groups) if peer in group), -1)


@dataclass(frozen=True, slots=True)
class Crash:
    """From ``start_s`` until ``end_s`` nothing leaves or reaches ``peer``, as if its machine had no power."""

    peer: PeerId
    start_s: float
    end_s: float = math.inf


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """What goes wrong on the wire; the default plan is a perfect wire.

    ``drop``, ``duplicate``, ``reorder`` and ``corrupt`` are probabilities for one frame on one link, drawn
    independently: a frame that is not dropped may be doubled, held back until its successor has gone (at most
    REORDER_HOLD_S), and have some of its bytes changed. ``delay_s`` bounds a uniform delay. Times of
    partitions and crashes are seconds since the wrapper's origin. ``corrupt`` plays a broken transport: the
    seam promises that no frame arrives altered, and the protocol's signatures have to notice when that
    promise is not kept.

    Raises ConfigError for a probability outside [0, 1] or a range that runs backwards.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)
    partitions: tuple[Partition, ...] = ()
    crashes: tuple[Crash, ...] = ()

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate", "reorder", "corrupt"):
            probability = getattr(self, name)
            if not 0.0 <= probability <= 1.0:
                raise ConfigError(f"fault plan: {name} = {probability} is no probability; use 0 to 1")
        shortest_s, longest_s = self.delay_s
        if not 0.0 <= shortest_s <= longest_s < math.inf:
            raise ConfigError(f"fault plan: delay_s = {self.delay_s}; use two finite times, shortest first")
        spans: tuple[Partition | Crash, ...] = (*self.partitions, *self.crashes)
        for span in spans:
            if not span.start_s <= span.end_s:
                raise ConfigError(f"fault plan: {span} ends before it starts; swap its times")

    def cuts(self, sender: PeerId, recipient: PeerId, now_s: float) -> str | None:
        """Return why no frame can pass between two peers at ``now_s``, or None when it can."""
        if self.crashed(sender, now_s) or self.crashed(recipient, now_s):
            return "fault: crash"
        if any(partition.separates(sender, recipient, now_s) for partition in self.partitions):
            return "fault: partition"
        return None

    def crashed(self, peer: PeerId, now_s: float) -> bool:
        """Say whether ``peer`` is without power at ``now_s``."""
        return any(crash.peer == peer and crash.start_s <= now_s < crash.end_s for crash in self.crashes)


@dataclass(frozen=True, slots=True)
class _Fate:
    """What happens to one frame on one link; one delay for each copy that is sent."""

    delays_s: tuple[float, ...]
    held: bool
    corrupt: bool

    @property
    def untouched(self) -> bool:
        return self.delays_s == (0.0,) and not self.held and not self.corrupt


class FaultyTransport(Transport):
    """``inner``, with the faults of ``plan`` done to every frame that is sent.

    The plan's time 0 is the loop's time ``origin_s``, or the time of ``start`` when that is None. Frames
    under way are bounded (IN_FLIGHT_FRAMES); ``close`` loses them. ``counters`` are those of ``inner``, and
    the frames that a fault took are among its dropped ones.
    """

    def __init__(self, inner: Transport, plan: FaultPlan, seed: int, *, origin_s: float | None = None) -> None:
        self.me = inner.me
        self.peers = inner.peers
        self.counters = inner.counters
        self.shares_wire = inner.shares_wire
        self._inner = inner
        self._plan = plan
        self._origin_s = origin_s
        self._seed = seed
        self._random: dict[PeerId, Random] = {}
        self._draw_for(inner.peers)
        self._overtaken: dict[PeerId, asyncio.Event] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(IN_FLIGHT_FRAMES)
        self._closed = False

    def _draw_for(self, peers: Collection[PeerId]) -> None:
        """Give new links a generator; one that returns goes on with its own, lest its faults repeat."""
        for peer in sorted(set(peers) - self._random.keys()):
            self._random[peer] = Random(derive_seed(self._seed, self.me, peer))

    async def start(self) -> None:
        """Start the transport below; raises what it raises."""
        await self._inner.start()
        if self._origin_s is None:
            self._origin_s = asyncio.get_running_loop().time()

    async def send(
        self, recipients: Collection[PeerId], frame: bytes | bytearray | memoryview, *, bulk: bool = False
    ) -> bool:
        """Do to the frame, for each recipient, what the plan and the link's generator say."""
        check_frame(frame, recipients, self.peers)
        if self._closed:
            raise TransportClosed("the transport was closed")
        if self._plan == FaultPlan():
            return await self._inner.send(recipients, frame, bulk=bulk)
        content = bytes(frame)
        at_once: list[PeerId] = []
        for peer in sorted(recipients):
            successor_of = self._overtaken.pop(peer, None)
            if await self._despatch(peer, content, bulk):
                at_once.append(peer)
            if successor_of is not None:
                asyncio.get_running_loop().call_soon(successor_of.set)
        at_once = [peer for peer in at_once if self._may_go_on(peer)]
        return await self._inner.send(at_once, content, bulk=bulk) if at_once else True

    def _may_go_on(self, peer: PeerId) -> bool:
        """Count a frame whose recipient has ceased to be a peer on the way, and say whether it has not."""
        if peer not in self.peers:
            self.counters.count_drop(FORMER_PEER)
        return peer in self.peers

    async def _despatch(self, peer: PeerId, content: bytes, bulk: bool) -> bool:
        """Send the frame on its way with its faults; return True when it has none."""
        reason = self._plan.cuts(self.me, peer, self._now_s())
        fate = self._draw(peer)
        if reason or not fate.delays_s:
            self.counters.count_drop(reason or "fault: drop")
            return False
        if fate.untouched:
            return True
        if fate.corrupt:
            content = _corrupted(content, self._random[peer])
        overtaken = self._overtaken.setdefault(peer, asyncio.Event()) if fate.held else None
        for delay_s in fate.delays_s:
            await self._slots.acquire()
            if self._closed:
                raise TransportClosed("the transport was closed")
            journey = self._travel(peer, content, bulk, delay_s, overtaken)
            task = asyncio.get_running_loop().create_task(journey, name=f"faults[{self.me}].travel")
            self._under_way.add(task)
            task.add_done_callback(self._arrived)
        return False

    def _draw(self, peer: PeerId) -> _Fate:
        """Draw a frame's fate; always as many numbers, so that one probability does not shift the others."""
        random, plan = self._random[peer], self._plan
        drop, duplicate, reorder, corrupt = (random.random() for _ in range(4))
        delays_s = (random.uniform(*plan.delay_s), random.uniform(*plan.delay_s))
        copies = 0 if drop < plan.drop else 2 if duplicate < plan.duplicate else 1
        return _Fate(delays_s[:copies], reorder < plan.reorder, corrupt < plan.corrupt)

    async def _travel(
        self, peer: PeerId, content: bytes, bulk: bool, delay_s: float, overtaken: asyncio.Event | None
    ) -> None:
        if overtaken is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REORDER_HOLD_S):
                    await overtaken.wait()
        await asyncio.sleep(delay_s)
        if not self._may_go_on(peer):
            return
        reason = self._plan.cuts(self.me, peer, self._now_s())
        if reason:
            self.counters.count_drop(reason)
            return
        with contextlib.suppress(TransportClosed):
            await self._inner.send([peer], content, bulk=bulk)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._slots.release()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - (self._origin_s or 0.0)

    async def receive(self) -> Received:
        """Return the next frame that reaches this node while it is not crashed."""
        while True:
            received = await self._inner.receive()
            if not self._plan.crashed(self.me, self._now_s()):
                return received
            self.counters.count_drop("fault: crash")

    async def events(self) -> LinkEvent:
        """Return the next event of the transport below; the plan's faults are silent."""
        return await self._inner.events()

    async def change_peers(self, peers: Collection[PeerId], members: Collection[PeerId]) -> None:
        """Have other peers, here and below; a frame under way to a former one is lost."""
        if self._closed:
            raise TransportClosed("the transport was closed")
        self._draw_for(peers)
        self.peers = frozenset(peers)
        try:
            await self._inner.change_peers(peers, members)
        finally:
            self.peers = self._inner.peers

    async def close(self) -> None:
        """Lose all frames under way and close the transport below."""
        self._closed = True
        under_way = list(self._under_way)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._inner.close()


def _corrupted(content: bytes, random: Random) -> bytes:
    """Return ``content`` with one to eight of its bytes changed."""
    changed = bytearray(content)
    places = random.sample(range(len(changed)), k=min(len(changed), random.randint(1, 8)))
    for place in places:
        changed[place] ^= random.randint(1, 255)
    return bytes(changed)
