"""Vectors between two processes over libp2p, beside what they could be: raw py-libp2p streams and plain asyncio TCP.

    python benchmarks/libp2p_throughput.py [--megabytes 1 10 50] [--repeats 3] [--idle] [--json FILE]

Both processes train all the while (MLP 784-128-10, batch 32, one thread), unless ``--idle`` says otherwise: what a
node moves bytes beside. A request is a vector of the given size, the answer a few bytes. The paths take turns, so that
a machine whose speed drifts does so for all; figures are medians over the repeats of MB/s of vector, and ratios are
taken in one turn.

- ``transport``: Libp2pTransport on both sides, the vector in frames of 960 KiB as the protocol cuts it, each on the
  bulk lane; asyncio in the main thread, the bridge, Noise, yamux.
- ``raw``: hosts of py-libp2p as they come (Noise and yamux named), one stream, the whole vector in one write.
- ``raw, own muxer``: the same hosts with the muxer and the Noise session of the transport, no bridge, no asyncio.
- ``tcp``: asyncio streams, no encryption.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import socket
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CHUNK_BYTES = 960 * 1024
READ_BYTES = 256 * 1024
HEAD_BYTES = 8
ANSWER = b"done"
SECONDS = 2.0
"""Each measurement repeats its request for at least so long."""

PATHS = ("transport", "raw", "raw, own muxer", "tcp")


class Trainer:
    """Trains in a thread until it is stopped, and counts its steps."""

    def __init__(self, active: bool) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._train, daemon=True) if active else None
        self.steps = 0
        if self._thread is not None:
            self._thread.start()

    def _train(self) -> None:
        import torch

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        images, labels = torch.rand(32, 784, generator=generator), torch.arange(32) % 10
        while not self._stop.is_set():
            model.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.add_(parameter.grad, alpha=-0.01)
            self.steps += 1

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---------------------------------------------------------------------------------------------- our transport


async def transport(me: int, ports: tuple[int, int], sizes: list[int], measure: Measure) -> None:
    """Exchange over Libp2pTransport."""
    from gossipfl.identity import Identity
    from gossipfl.transports.libp2p.options import Libp2pOptions
    from gossipfl.transports.libp2p.transport import Libp2pTransport

    keys = [Identity.from_seed(bytes([number + 1]) * 32) for number in range(2)]
    other = keys[1 - me].peer_id
    link = Libp2pTransport(
        keys[me],
        [other],
        Libp2pOptions(
            listen=(f"/ip4/127.0.0.1/tcp/{ports[me]}",), addresses={other: (f"/ip4/127.0.0.1/tcp/{ports[1 - me]}",)}
        ),
    )
    await link.start()
    while (await link.events()).state != "up":
        pass

    async def request(body: memoryview) -> None:
        for at in range(0, len(body), CHUNK_BYTES):
            await link.send([other], body[at : at + CHUNK_BYTES], bulk=True)
        await link.receive()

    async def serve(size: int) -> None:
        got = 0
        while got < size:
            got += len((await link.receive()).frame)
        await link.send([other], ANSWER)

    await (measure.ask(sizes, request) if me == 0 else measure.answer(sizes, serve))
    await link.close()


# ---------------------------------------------------------------------------------------------- raw libp2p


def raw(me: int, ports: tuple[int, int], sizes: list[int], measure: Measure, *, own: bool) -> None:
    """Exchange over a stream between two py-libp2p hosts."""
    import trio

    trio.run(_raw, me, ports, sizes, measure, own)


async def _raw(me: int, ports: tuple[int, int], sizes: list[int], measure: Measure, own: bool) -> None:
    import trio
    from multiaddr import Multiaddr

    from gossipfl.identity import Identity

    keys = [Identity.from_seed(bytes([number + 1]) * 32) for number in range(2)]
    host = _own_host(keys[me]) if own else _stock_host(bytes([me + 1]) * 32)
    done = trio.Event()
    name: Any = "/benchmark/1"

    async def serve(stream: Any) -> None:
        async def one(size: int) -> None:
            await _read(stream, size)
            await stream.write(ANSWER)

        await measure.answer(sizes, one)
        done.set()

    host.set_stream_handler(name, serve)
    async with host.run([Multiaddr(f"/ip4/127.0.0.1/tcp/{ports[me]}")]):
        if me == 1:
            measure.ready()
            await done.wait()
            await trio.sleep(0.2)
            return
        await trio.to_thread.run_sync(measure.await_other)
        from libp2p.peer.id import ID
        from libp2p.peer.peerinfo import PeerInfo

        other = ID.from_base58(keys[1].peer_id)
        await host.connect(PeerInfo(other, [Multiaddr(f"/ip4/127.0.0.1/tcp/{ports[1]}")]))
        stream = await host.new_stream(other, [name])

        async def request(body: memoryview) -> None:
            await stream.write(bytes(body))
            await _read(stream, len(ANSWER))

        await measure.ask(sizes, request)


async def _read(stream: Any, size: int) -> None:
    while size:
        size -= len(await stream.read(min(size, READ_BYTES)))


def _stock_host(seed: bytes) -> Any:
    from libp2p import create_yamux_muxer_option, new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport

    key = create_new_key_pair(seed)
    security = {PROTOCOL_ID: Transport(key, noise_privkey=new_noise_key().private_key)}
    return new_host(key_pair=key, sec_opt=security, muxer_opt=create_yamux_muxer_option())


def _own_host(identity: Any) -> Any:
    from gossipfl.transports.libp2p.host import TidyTcp, make_host

    return make_host(identity, lambda peer: None, TidyTcp(), mdns=False, peers=1)


# ---------------------------------------------------------------------------------------------- plain TCP


async def tcp(me: int, ports: tuple[int, int], sizes: list[int], measure: Measure) -> None:
    """Exchange over asyncio's streams."""
    if me == 1:
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async def one(size: int) -> None:
                while size:
                    size -= len(await reader.read(min(size, READ_BYTES)))
                writer.write(ANSWER)
                await writer.drain()

            await measure.answer(sizes, one)
            writer.close()
            over.set()

        async with await asyncio.start_server(serve, "127.0.0.1", ports[1], limit=READ_BYTES):
            measure.ready()
            await over.wait()
        return
    await asyncio.to_thread(measure.await_other)
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[1], limit=READ_BYTES)

    async def request(body: memoryview) -> None:
        writer.write(body)
        await writer.drain()
        await reader.readexactly(len(ANSWER))

    await measure.ask(sizes, request)
    writer.close()


# ---------------------------------------------------------------------------------------------- measuring


class Measure:
    """Keeps both processes at the same size: the pipe to the parent tells when each of them begins one."""

    def __init__(self, pipe: Connection, repeats_for: dict[int, int]) -> None:
        self._pipe = pipe
        self._repeats = repeats_for

    def ready(self) -> None:
        """Tell the parent that this side serves."""
        self._pipe.send("ready")

    def await_other(self) -> None:
        """Wait for the parent to say that the other side serves."""
        self._pipe.recv()

    async def ask(self, sizes: list[int], request: Callable[[memoryview], Awaitable[None]]) -> None:
        """Send each vector as often as it was agreed, and report MB/s and CPU seconds per MB."""
        for size in sizes:
            body = memoryview(bytearray(size))
            await request(body)
            begin_s, cpu_s = time.perf_counter(), _cpu_s()
            for _ in range(self._repeats[size]):
                await request(body)
            wall_s = time.perf_counter() - begin_s
            self._pipe.send((size, self._repeats[size] * size / wall_s / 1e6, _cpu_s() - cpu_s))

    async def answer(self, sizes: list[int], serve: Callable[[int], Awaitable[None]]) -> None:
        """Take what ``ask`` sends."""
        for size in sizes:
            for _ in range(self._repeats[size] + 1):
                await serve(size)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def side(path: str, me: int, ports: tuple[int, int], sizes: list[int], pipe: Connection, trains: bool) -> None:
    """Be one of the two processes."""
    from gossipfl.heap import keep_freed_pages

    keep_freed_pages()
    trainer = Trainer(trains)
    measure = Measure(pipe, {size: max(3, int(SECONDS * 60e6 / size)) for size in sizes})
    if path == "transport":
        asyncio.run(transport(me, ports, sizes, measure))
    elif path == "tcp":
        asyncio.run(tcp(me, ports, sizes, measure))
    else:
        raw(me, ports, sizes, measure, own=path == "raw, own muxer")
    trainer.stop()
    pipe.send("over")


def run(path: str, sizes: list[int], trains: bool) -> dict[int, float]:
    """Return MB/s by size of one path, in two fresh processes."""
    context = multiprocessing.get_context("spawn")
    ports = (free_port(), free_port())
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=side, args=(path, me, ports, sizes, pipes[me][1], trains), daemon=True)
        for me in range(2)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that a process that dies is an end of file here
    if path != "transport":
        assert pipes[1][0].recv() == "ready"
        pipes[0][0].send(None)
    speeds: dict[int, float] = {}
    while (told := pipes[0][0].recv()) != "over":
        speeds[told[0]] = told[1]
    for process in processes:
        process.join(timeout=30)
        process.kill()
    return speeds


def main() -> None:
    """Measure all paths in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 10, 50])
    parser.add_argument("--paths", nargs="+", choices=PATHS[1:], default=list(PATHS[1:]), help="beside the transport")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--idle", action="store_true", help="nobody trains")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(megabytes * 1e6) for megabytes in options.megabytes]
    turns = [
        {path: run(path, sizes, not options.idle) for path in (PATHS[0], *options.paths)}
        for _ in range(options.repeats)
    ]
    print("while both train" if not options.idle else "while nobody trains")
    print(
        f"{'path':16}" + "".join(f"{size / 1e6:>9g} MB" for size in sizes) + "   MB/s, then the ratio transport / path"
    )
    table: dict[str, Any] = {}
    for path in (PATHS[0], *options.paths):
        speeds = [statistics.median(turn[path][size] for turn in turns) for size in sizes]
        ratios = [
            statistics.median(turn["transport"][size] / turn[path][size] for turn in turns)
            if "transport" in turns[0]
            else 0
            for size in sizes
        ]
        table[path] = {"mb_per_s": speeds, "transport_ratio": ratios}
        print(
            f"{path:16}" + "".join(f"{speed:12.0f}" for speed in speeds) + "   " + "  ".join(f"{r:.2f}" for r in ratios)
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"sizes": sizes, "paths": table, "idle": options.idle}, indent=1) + "\n")


if __name__ == "__main__":
    main()
