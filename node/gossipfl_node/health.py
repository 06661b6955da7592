"""A small web server that tells whoever watches over this site how it is: /metrics, /healthz and /readyz.

It answers GET and HEAD, reads no bodies, closes each connection after one answer, and looks paths up in a table: it
opens no file. What a client may send, how long it may take, and how many are served at a time is bounded, and no
mistake in an answer ends the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gossipfl.errors import ConfigError, GossipflError
from gossipfl_node.metrics import Metrics, is_linked

if TYPE_CHECKING:
    from gossipfl_node.config import SiteSpec
    from gossipfl_node.status import Standing

MAX_LINE_BYTES = 4096
"""Longest request line, and longest header."""
MAX_HEADERS = 64
MAX_CONNECTIONS = 8
"""How many clients are served at a time; one more takes the place of the oldest, who by then is likely to be idle."""
BACKLOG = 16
CLIENT_S = 5.0
"""How long a client may take for its request, and again for reading the answer."""
LINGER_S = 1.0
"""How long what a client sends after its request is read and thrown away: else the answer could be lost with it."""
STALL_S = 600.0
"""How long a round may take before a site counts as stuck, beside the waits that its file allows."""

log = logging.getLogger(__name__)

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")


class RefusedError(GossipflError):
    """A request that is not served; ``status`` says why in HTTP's words."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for: ``path`` without its query, names of ``headers`` in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """What it is told."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def text(cls, status: HTTPStatus, **headers: str) -> Response:
        """Return a line that says no more than the status."""
        return cls(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode(), headers)

    @classmethod
    def conditions(cls, word: str, failing: Mapping[str, str]) -> Response:
        """Return, as JSON, whether ``word`` is true, and each condition that fails with what is wrong."""
        status = HTTPStatus.SERVICE_UNAVAILABLE if failing else HTTPStatus.OK
        document = {word: not failing, "failing": failing}
        return cls(status, "application/json", (json.dumps(document) + "\n").encode())

    def encode(self, *, head_only: bool = False) -> bytes:
        """Return the answer as it goes to the wire."""
        headers = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
            **self.headers,
        }
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            *(f"{name}: {headers[name]}" for name in headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else self.body)


Page = Callable[[Request], Response]


class Vitals:
    """Whether a site lives, and whether it works, in conditions that fail.

    Args:
        standing: What the daemon knows.
        phase: What it is doing now, as the status says it.
        agent: Its agent's task, once there is one.
        stall_s: How long ago the last round, or the last ``progress``, may be.
    """

    def __init__(
        self,
        standing: Standing,
        phase: Callable[[], str],
        agent: Callable[[], asyncio.Task[Any] | None],
        stall_s: float,
    ) -> None:
        self._standing = standing
        self._phase = phase
        self._agent = agent
        self._stall_s = stall_s
        self._progress_s = 0.0

    def progress(self) -> None:
        """Note that the daemon itself got on: it began to wait, tried the broker again, started its agent."""
        self._progress_s = self._standing.ledger.elapsed_s

    def not_alive(self) -> dict[str, str]:
        """Return what says that only a new start can help: that anything answers says that the event loop runs."""
        failing = {}
        agent, ledger, stopping = self._agent(), self._standing.ledger, self._phase() == "stopping"
        if agent is not None and agent.done() and not stopping:
            failing["agent"] = "the agent has ended"
        still_s = ledger.elapsed_s - max(ledger.round_ended_s, self._progress_s)
        if still_s > self._stall_s and not stopping:
            failing["progress"] = f"nothing was done for {still_s:.0f} s, more than {self._stall_s:.0f} s"
        return failing

    def not_ready(self) -> dict[str, str]:
        """Return what says that the site does not gossip now."""
        failing = {}
        core, phase = self._standing.core, self._phase()
        if phase != "running":
            failing["running"] = f"the daemon is {phase}"
        if core.round == 0 and not core.all_joined:
            failing["joined"] = "not all neighbours have been heard yet"
        if not is_linked(self._standing):
            failing["link"] = "no link is up"
        return failing


def stall_limit_s(spec: SiteSpec) -> float:
    """Return how long a healthy site of this file may go without ending a round."""
    gossip = spec.gossip
    waits_s = gossip.join_timeout_s + gossip.outage_s + gossip.deadline_s + spec.site.round_every_s
    return STALL_S + waits_s


def pages(metrics: Metrics, vitals: Vitals) -> dict[str, Page]:
    """Return the three pages of a site."""

    def tell(request: Request) -> Response:
        content_type, text = metrics.page(request.headers.get("accept", ""))
        return Response(HTTPStatus.OK, content_type, text)

    return {
        "/metrics": tell,
        "/healthz": lambda _: Response.conditions("alive", vitals.not_alive()),
        "/readyz": lambda _: Response.conditions("ready", vitals.not_ready()),
    }


@contextlib.asynccontextmanager
async def health_server(
    host: str, port: int, served: Mapping[str, Page], *, client_s: float = CLIENT_S
) -> AsyncIterator[tuple[str, int]]:
    """Serve these pages for as long as the context lasts; gives the address, or raises ConfigError in one line."""
    desk = _Desk(served, client_s)
    try:
        server = await asyncio.start_server(desk.serve, host, port, limit=MAX_LINE_BYTES, backlog=BACKLOG)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that is none
        raise ConfigError(f"metrics cannot be served at {shown(host, port)}: {_reason(error)}") from None
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        await desk.close()


def shown(host: str, port: int) -> str:
    """Return an address as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read up to the end of the headers; RefusedError for what is no request, EOFError where nothing came."""
    try:
        line = await _line(reader, HTTPStatus.REQUEST_URI_TOO_LONG)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise RefusedError(HTTPStatus.BAD_REQUEST) from None
        raise
    start = _REQUEST_LINE.fullmatch(line)
    if start is None:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    method, target, major, minor = (part.decode("ascii") for part in start.groups())
    if major != "1":
        raise RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    try:
        headers = await _headers(reader)
    except asyncio.IncompleteReadError:
        raise RefusedError(HTTPStatus.BAD_REQUEST) from None
    if minor != "0" and "host" not in headers:
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    return Request(method, target.partition("?")[0], headers)


async def _headers(reader: asyncio.StreamReader) -> dict[str, str]:
    headers: dict[str, str] = {}
    room = MAX_HEADERS
    while line := await _line(reader, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE):
        room -= 1
        if room < 0:
            raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        header = _HEADER.fullmatch(line)
        if header is None:
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1").strip(" \t")
        if name == "host" and name in headers:
            raise RefusedError(HTTPStatus.BAD_REQUEST)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _line(reader: asyncio.StreamReader, too_long: HTTPStatus) -> bytes:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise RefusedError(too_long) from None
    return line[:-1].removesuffix(b"\r")


class _Desk:
    """Serves clients, few at a time."""

    def __init__(self, served: Mapping[str, Page], client_s: float) -> None:
        self._served = served
        self._client_s = client_s
        self._serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client, whatever it does: clients that only hold on keep nobody else out."""
        task = asyncio.current_task()
        assert task is not None
        while len(self._serving) >= MAX_CONNECTIONS:
            self._serving.pop(next(iter(self._serving))).transport.abort()
        self._serving[task] = writer
        try:
            await self._answer(reader, writer)
        except (OSError, EOFError, TimeoutError):
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._serving.pop(task, None)

    async def close(self) -> None:
        """End all that is under way."""
        for writer in self._serving.values():
            writer.transport.abort()
        if self._serving:
            await asyncio.wait(list(self._serving))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # to drain is then to have handed over the last byte
        head_only = False
        try:
            async with asyncio.timeout(self._client_s):
                request = await read_request(reader)
            head_only = request.method == "HEAD"
            response = self._respond(request)
        except RefusedError as refusal:
            response = Response.text(refusal.status)
        except TimeoutError:
            response = Response.text(HTTPStatus.REQUEST_TIMEOUT)
        writer.write(response.encode(head_only=head_only))
        async with asyncio.timeout(self._client_s):
            await writer.drain()
        writer.write_eof()
        async with asyncio.timeout(min(LINGER_S, self._client_s)):
            while await reader.read(MAX_LINE_BYTES):
                pass

    def _respond(self, request: Request) -> Response:
        if request.method not in {"GET", "HEAD"}:
            return Response.text(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        page = self._served.get(request.path)
        if page is None:
            return Response.text(HTTPStatus.NOT_FOUND)
        try:
            return page(request)
        except Exception:
            log.exception("%s cannot be told", request.path)
            return Response.text(HTTPStatus.INTERNAL_SERVER_ERROR)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text repeats the address
    return getattr(error, "strerror", None) or str(error)
