"""The work of one of two processes that send each other a thousand frames of a megabyte, all at once."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gossipfl.digest import digest
from gossipfl.identity import PeerId
from gossipfl.transports.libp2p.transport import Libp2pTransport

EXCHANGES = 1000
CONTENTS = 16
"""Different contents: a thousand of them would be a gigabyte of memory before anything is sent."""

FRAME_BYTES = 1_000_000
STALL_S = 20.0


def content(number: int) -> bytes:
    return random.Random(number).randbytes(FRAME_BYTES)


def memory_mb(what: str) -> float:
    """Return VmRSS or VmHWM (the most so far) of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


async def stress(transport: Libp2pTransport, peer: PeerId) -> None:
    """Send and receive everything, ping in between, and tell how it went."""
    contents = [content(number) for number in range(CONTENTS)]
    known = {digest(frame): number for number, frame in enumerate(contents)}
    while transport.links()[peer].state != "up":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    gc.collect()
    before_mb = memory_mb("VmRSS")
    got: Counter[int] = Counter()
    urgent: set[int] = set()
    progress = time.monotonic()
    pings = 0
    problem: str | None = None

    async def send(number: int) -> None:
        assert await transport.send([peer], contents[number % CONTENTS], bulk=True)
        assert await transport.send([peer], number.to_bytes(4, "big"))

    async def receive() -> None:
        nonlocal progress
        while got.total() < EXCHANGES or len(urgent) < EXCHANGES:
            frame = (await transport.receive()).frame
            if len(frame) == 4:
                urgent.add(int.from_bytes(frame, "big"))
            else:
                got[known[digest(frame)]] += 1
            progress = time.monotonic()

    async def ping() -> None:
        nonlocal pings

        async def once() -> None:
            link = transport._switchboard._neighbours[peer].link
            assert link is not None
            link.muxed.probe()
            await link.muxed.ping()

        while True:
            await transport._bridge.run(once)
            pings += 1
            await asyncio.sleep(0.05)

    async def watch(work: asyncio.Future[Any]) -> None:
        while not work.done():
            if time.monotonic() - progress > STALL_S:
                raise TimeoutError(f"stalled: {got.total()} frames, {len(urgent)} urgent ones, {pings} pings")
            await asyncio.wait([work], timeout=0.2)

    pinging = asyncio.create_task(ping())
    work = asyncio.gather(receive(), *(send(number) for number in range(EXCHANGES)))
    try:
        await watch(work)
        await work
        wanted = Counter(number % CONTENTS for number in range(EXCHANGES))
        assert got == wanted, "each content came as often as it was sent"
    except Exception as error:  # noqa: BLE001 - told, with everything else
        problem = f"{type(error).__name__}: {error}"
        work.cancel()
    pinging.cancel()
    (ended,) = (await asyncio.wait([pinging]))[0]
    if not ended.cancelled():
        problem = problem or f"pings ended: {ended.exception()!r}"
    told = {
        "problem": problem,
        "frames": got.total(),
        "urgent": len(urgent),
        "pings": pings,
        "grown_mb": memory_mb("VmHWM") - before_mb,
    }
    sys.stdout.write(json.dumps({"stressed": told}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()
