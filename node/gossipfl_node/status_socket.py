"""A Unix domain socket in the state folder that tells a daemon's status to users of this machine.

A socket and not a file that is rewritten every few seconds: it is never out of date, it cannot outlive its daemon (a
killed one leaves a socket that refuses connections), and it costs nothing while nobody asks. Whoever connects is sent
one JSON document; nothing is read from him.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from gossipfl.errors import ConfigError, GossipflError
from gossipfl.records import as_json_line
from gossipfl_node.state import STATUS_SOCKET, running_pid

ANSWER_S = 5.0
"""How long whoever asks waits, and how long the daemon lets a slow reader take."""
MAX_BYTES = 16 << 20


class NotRunningError(GossipflError):
    """No daemon answers."""


@contextlib.asynccontextmanager
async def status_server(folder: Path, document: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Answer with ``document()`` for as long as the context lasts; the folder must be locked by this process."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            writer.write((as_json_line(document()) + "\n").encode())
            async with asyncio.timeout(ANSWER_S):
                await writer.drain()
        writer.close()

    path = folder / STATUS_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, _short(folder) as short:
        try:
            path.unlink(missing_ok=True)  # of a daemon that was killed: the lock says that none runs
            listener.bind(short)
            path.chmod(0o600)
            server = await asyncio.start_unix_server(answer, sock=listener)
        except OSError as error:
            raise ConfigError(f"status socket {path} cannot be made: {error.strerror}") from None
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)


def ask(folder: Path) -> dict[str, Any]:
    """Return the status of the daemon whose state is in ``folder``; raises NotRunningError with the reason."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, _short(folder) as short:
            client.settimeout(ANSWER_S)
            client.connect(short)
            content = b"".join(_chunks(client))
        answer = json.loads(content)
    except PermissionError:
        raise NotRunningError(
            f"the status in {folder} may be read by the daemon's own user only; ask as that user"
        ) from None
    except (OSError, ValueError):
        raise NotRunningError(_why(folder)) from None
    if not isinstance(answer, dict):
        raise NotRunningError(_why(folder))
    return answer


def _chunks(client: socket.socket) -> Iterator[bytes]:
    received = 0
    while (chunk := client.recv(1 << 16)) and received < MAX_BYTES:
        received += len(chunk)
        yield chunk


def _why(folder: Path) -> str:
    if not folder.is_dir():
        return f"no daemon is running: the state folder {folder} does not exist"
    pid = running_pid(folder)
    if pid is None:
        return f"no daemon is running with the state folder {folder}"
    return f"the daemon (process {pid or 'unknown'}) does not answer: it is starting, or it hangs; ask again"


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[str]:
    """Give a name of the socket short enough for its address, which holds 107 bytes, however long the folder's is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{STATUS_SOCKET}"
    finally:
        os.close(descriptor)
