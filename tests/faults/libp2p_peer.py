"""One libp2p site in a process of its own: tells what happens in JSON lines, does what it is told on stdin."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from libp2p_lab import key  # noqa: E402

from gossipfl.errors import TransportClosed  # noqa: E402
from gossipfl.transports.libp2p.options import Libp2pOptions  # noqa: E402
from gossipfl.transports.libp2p.transport import Libp2pTransport  # noqa: E402


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def echo(transport: Libp2pTransport) -> None:
    """Send each frame back."""
    while True:
        received = await transport.receive()
        assert received.source is not None
        await transport.send([received.source], b"echo " + bytes(received.frame))


async def watch(transport: Libp2pTransport) -> None:
    while True:
        event = await transport.events()
        tell(event=event.state, peer=event.peer, detail=event.detail)


async def obey(transport: Libp2pTransport) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        match line.split():
            case [b"counters"]:
                tell(counters=transport.counters.by_reason)
            case [b"links"]:
                tell(links={peer: link.state for peer, link in transport.links().items()})


async def main() -> None:
    setup = json.loads(sys.argv[1])
    options = setup["options"]
    for name in ("listen", "announce", "backoff_s"):
        if name in options:
            options[name] = tuple(options[name])
    options["addresses"] = {peer: tuple(told) for peer, told in options["addresses"].items()}
    transport = Libp2pTransport(key(setup["name"]), setup["peers"], Libp2pOptions(**options))
    await transport.start()
    tell(listening=transport.listening)
    tasks = [asyncio.create_task(watch(transport)), asyncio.create_task(obey(transport))]
    if setup["job"] == "echo":
        tasks.append(asyncio.create_task(echo(transport)))
    else:
        from libp2p_stress import stress

        tasks.append(asyncio.create_task(stress(transport, setup["peers"][0])))
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    await transport.close()
    for task in pending:
        task.cancel()
    await asyncio.wait(tasks)
    for task in done:
        if not isinstance(task.exception(), TransportClosed):
            task.result()


if __name__ == "__main__":
    asyncio.run(main())
