"""The web server of a site: what it says, and what a client can do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watched_sites import Watched, gossip, watched_sites

from gossipfl.errors import ConfigError
from gossipfl_node.health import (
    MAX_CONNECTIONS,
    MAX_HEADERS,
    MAX_LINE_BYTES,
    STALL_S,
    Page,
    RefusedError,
    Request,
    Response,
    Vitals,
    health_server,
    pages,
    read_request,
    shown,
    stall_limit_s,
)

T = TypeVar("T")
PATIENCE_S = 30.0
HOST = "127.0.0.1"


class Loop:
    """An event loop in a thread, as a daemon's would be, for clients that block."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.errors: list[Mapping[str, Any]] = []
        self._loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(PATIENCE_S)

    @contextlib.contextmanager
    def serving(self, served: Mapping[str, Page], host: str = HOST, **more: Any) -> Iterator[int]:
        """Serve on a free port."""
        server = health_server(host, 0, served, **more)
        _, port = self.run(server.__aenter__())
        try:
            yield port
        finally:
            self.run(server.__aexit__(None, None, None))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        assert not self.errors


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.close()


def hello(_: Request) -> Response:
    return Response(HTTPStatus.OK, "text/plain", b"hello\n")


@pytest.fixture(scope="module")
def port(loop: Loop) -> Iterator[int]:
    """A server with one page that works and one that does not."""

    def broken(_: Request) -> Response:
        raise RuntimeError("no such figure")

    with loop.serving({"/": hello, "/broken": broken, "/accept": accept}) as port:
        yield port


def accept(request: Request) -> Response:
    return Response(HTTPStatus.OK, "text/plain", request.headers.get("accept", "").encode())


def fetch(port: int, path: str, host: str = HOST, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    """Get a page with a real client."""
    request = urllib.request.Request(f"http://{shown(host, port)}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=PATIENCE_S)


def say(port: int, content: bytes) -> bytes:
    """Send bytes and return whatever comes back until the server closes."""
    with connect(port) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
        return listen(client)


def listen(client: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            answer += chunk
    return answer


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


# ------------------------------------------------------------------------------------------ HTTP


def test_a_page_is_served_and_the_connection_ends(port: int) -> None:
    status, headers, body = fetch(port, "/?a=b")
    assert (status, body) == (200, b"hello\n")
    assert headers["Content-Length"] == "6"
    assert headers["Connection"] == "close"
    assert headers["Cache-Control"] == "no-store"


def test_head_tells_the_same_without_the_page(port: int) -> None:
    client = HTTPConnection(HOST, port, timeout=PATIENCE_S)
    client.request("HEAD", "/")
    answer = client.getresponse()
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "6", b"")
    client.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "FOO"])
def test_other_methods_are_refused_whatever_body_they_bring(port: int, method: str) -> None:
    client = HTTPConnection(HOST, port, timeout=PATIENCE_S)
    client.request(method, "/", body=b"x" * 100_000)
    answer = client.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    client.close()


@pytest.mark.parametrize(
    "path", ["/none", "//", "/../../etc/passwd", "/%2e%2e/etc/passwd", "/./", "/broken/", "*", "http://127.0.0.1/", "x"]
)
def test_paths_are_names_in_a_table_and_nothing_else(port: int, path: str) -> None:
    assert status_of(say(port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())) == 404


def test_a_page_that_fails_is_told_and_logged(port: int, caplog: pytest.LogCaptureFixture) -> None:
    assert fetch(port, "/broken")[0] == 500
    assert "/broken cannot be told" in caplog.text
    assert fetch(port, "/")[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.0\n\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nname : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\na: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", 400),
        (b"GET / HT", 400),
        (b"GET /" + b"a" * (MAX_LINE_BYTES - 30) + b" HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /" + b"a" * MAX_LINE_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"a" * 1_000_000, 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"b" * MAX_LINE_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * (MAX_HEADERS - 1) + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ],
)
def test_what_is_a_request_and_what_is_not(port: int, request_: bytes, status: int) -> None:
    answer = say(port, request_)
    assert status_of(answer) == status
    assert answer.count(b"HTTP/1.1") == 1, "one connection, one answer"


def test_headers_are_told_to_the_page(port: int) -> None:
    answer = say(port, b"GET /accept HTTP/1.1\r\nHost: x\r\nACCEPT:\t a/b \r\nAccept: c/d\r\n\r\n")
    assert answer.endswith(b"\r\n\r\na/b, c/d")


def test_a_client_that_says_nothing_gets_nothing(port: int) -> None:
    assert say(port, b"") == b""


def test_slow_clients_are_sent_away(loop: Loop) -> None:
    with loop.serving({"/": hello}, client_s=0.5) as port:
        for start in (b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\na: b"):
            with connect(port) as client:
                client.sendall(start)
                assert status_of(listen(client)) == 408


def test_a_client_that_does_not_read_is_sent_away(loop: Loop) -> None:
    large = Response(HTTPStatus.OK, "text/plain", b"x" * (64 << 20))
    with loop.serving({"/": lambda _: large}, client_s=0.5) as port, connect(port) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with connect(port) as another:
            assert status_of(listen(another)) == 408, "by now the first one's time is over, too"
        assert len(listen(client)) < 64 << 20


def test_few_are_served_at_a_time_and_those_who_hold_on_keep_nobody_out(loop: Loop) -> None:
    with loop.serving({"/": hello}, client_s=PATIENCE_S) as port, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(port)) for _ in range(MAX_CONNECTIONS + 3)]
        assert fetch(port, "/")[0] == 200
        for client in idle[:4]:
            assert listen(client) == b"", "the oldest went first"
        for client in idle[4:]:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert status_of(listen(client)) == 200


def test_clients_are_cut_off_at_the_end(loop: Loop) -> None:
    with contextlib.ExitStack() as stack:
        with loop.serving({"/": hello}) as port:
            clients = [stack.enter_context(connect(port)) for _ in range(3)]
            fetch(port, "/")  # by then the server has taken the others
        for client in clients:
            assert listen(client) == b""


def test_it_serves_over_ipv6_and_by_name(loop: Loop) -> None:
    with loop.serving({"/": hello}, "::1") as port:
        assert fetch(port, "/", "::1")[0] == 200
    with loop.serving({"/": hello}, "localhost") as port:
        assert port > 0


def test_an_address_that_cannot_be_used_is_one_clear_line(loop: Loop) -> None:
    async def serve(host: str, port: int) -> None:
        async with health_server(host, port, {}):
            pass

    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError) as caught:
            loop.run(serve(HOST, number))
    assert str(caught.value) == f"metrics cannot be served at 127.0.0.1:{number}: Address already in use"
    for host, port in (
        ("192.0.2.1", 9464),
        ("no such host", 9464),
        ("a" * 70, 1),
        (HOST, 65536),
        ("2001:db8::1", 9464),
    ):
        with pytest.raises(ConfigError, match=r"^metrics cannot be served at .*: .+$") as caught:
            loop.run(serve(host, port))
        assert "\n" not in str(caught.value)
    assert "[2001:db8::1]:9464" in str(caught.value)


# ------------------------------------------------------------------------------------------ hostile bytes


def read(content: bytes) -> Request | HTTPStatus | None:
    """Return what the reader makes of bytes: a request, a refusal, or nothing where nothing came."""

    async def take() -> Request | HTTPStatus | None:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        reader.feed_data(content)
        reader.feed_eof()
        try:
            return await read_request(reader)
        except RefusedError as refusal:
            return refusal.status
        except EOFError:
            return None

    return asyncio.run(take())


PIECES = st.sampled_from(
    [
        *(
            b"GET",
            b"HEAD",
            b" ",
            b"/",
            b"/metrics",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"%2e",
            b"Host: x",
            b"Host:",
            b"Accept: ",
        ),
        *(b"\r\n", b"\n", b"\r", b":", b"a: b", b"\0", b"\xff", b"\t", b"a" * 5000, b"Content-Length: 9"),
    ]
)


@given(content=st.binary(max_size=300) | st.lists(PIECES, max_size=30).map(b"".join))
def test_no_bytes_make_the_reader_raise_anything_else(content: bytes) -> None:
    match read(content):
        case None:
            assert not content
        case Request(method, path, headers):
            assert content.startswith(method.encode() + b" " + path.encode())
            assert path
            assert all("\n" not in text and "\r" not in text for pair in headers.items() for text in pair)
        case HTTPStatus() as status:
            assert status in {400, 414, 431, 505}


TOKENS = st.text(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=20
)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30)


@given(
    path=st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?"), min_size=1, max_size=50
    ),
    headers=st.dictionaries(TOKENS.map(str.lower).filter(lambda name: name != "host"), VALUES, max_size=20),
    end=st.sampled_from(["\r\n", "\n"]),
)
def test_every_proper_request_is_read_as_it_was_meant(path: str, headers: dict[str, str], end: str) -> None:
    lines = [f"GET {path}?q HTTP/1.1", "Host: h", *(f"{name}: {value}" for name, value in headers.items())]
    assert read(end.join([*lines, "", ""]).encode()) == Request("GET", path, {"host": "h", **headers})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=500) | st.lists(PIECES, max_size=30).map(b"".join))
def test_no_bytes_on_the_wire_disturb_the_server(port: int, loop: Loop, content: bytes) -> None:
    answer = say(port, content)
    assert answer == b"" or status_of(answer) in {200, 400, 404, 405, 414, 431, 505}
    assert not loop.errors


# ------------------------------------------------------------------------------------------ a site's pages


@pytest.fixture
def alpha(tmp_path: Path) -> Iterator[Watched]:
    with watched_sites(tmp_path) as (alpha, _):
        yield alpha


@contextlib.contextmanager
def watched(
    loop: Loop, alpha: Watched, agent: Callable[[], asyncio.Task[Any] | None] = lambda: None, stall_s: float = 1e6
) -> Iterator[tuple[int, Vitals]]:
    vitals = Vitals(alpha.standing, lambda: alpha.phase, agent, stall_s)
    with loop.serving(pages(alpha.metrics, vitals)) as port:
        yield port, vitals


def asked(port: int, page: str) -> tuple[int, dict[str, str]]:
    status, headers, body = fetch(port, page)
    assert headers["Content-Type"] == "application/json"
    document = json.loads(body)
    (word,) = set(document) - {"failing"}
    assert document[word] is (status == 200) is not bool(document["failing"])
    return status, document["failing"]


def test_metrics_come_in_the_format_that_was_asked_for(loop: Loop, alpha: Watched) -> None:
    with watched(loop, alpha) as (port, _):
        status, headers, body = fetch(port, "/metrics")
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b'gossipfl_site_info{codec="float32"' in body
        prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
        status, headers, body = fetch(port, "/metrics", Accept=prometheus)
        assert headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert body.endswith(b"# EOF\n")


def test_a_site_is_ready_once_it_gossips(loop: Loop, tmp_path: Path) -> None:
    with watched_sites(tmp_path) as both, watched(loop, both[0]) as (port, _):
        alpha = both[0]
        status, failing = asked(port, "/readyz")
        assert status == 503
        assert failing == {
            "running": "the daemon is starting",
            "joined": "not all neighbours have been heard yet",
            "link": "no link is up",
        }
        gossip(both)
        alpha.link("up")
        assert asked(port, "/readyz") == (200, {})
        alpha.link("down")
        assert asked(port, "/readyz") == (503, {"link": "no link is up"})
        alpha.link("up")
        alpha.phase = "stopping"
        assert asked(port, "/readyz") == (503, {"running": "the daemon is stopping"})
        assert asked(port, "/healthz") == (200, {}), "a new start would not help"


def test_a_site_lives_while_its_agent_does(loop: Loop, alpha: Watched) -> None:
    async def fail() -> None:
        raise ValueError

    async def begin(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.create_task(work)

    async def end(task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    tasks: list[asyncio.Task[Any]] = []
    with watched(loop, alpha, lambda: tasks[-1] if tasks else None) as (port, _):
        assert asked(port, "/healthz") == (200, {})
        tasks.append(loop.run(begin(asyncio.Event().wait())))
        alpha.phase = "running"
        assert asked(port, "/healthz") == (200, {})
        loop.run(end(tasks[-1]))
        assert asked(port, "/healthz") == (503, {"agent": "the agent has ended"})
        tasks.append(loop.run(begin(fail())))
        loop.run(end(tasks[-1]))
        assert asked(port, "/healthz") == (503, {"agent": "the agent has ended"})
        alpha.phase = "stopping"
        assert asked(port, "/healthz") == (200, {})


def test_a_site_that_does_nothing_for_too_long_is_stuck(loop: Loop, alpha: Watched) -> None:
    alpha.phase = "running"
    with watched(loop, alpha, stall_s=100.0) as (port, vitals):
        alpha.ledger.started_s -= 99.0
        assert asked(port, "/healthz")[0] == 200
        alpha.ledger.started_s -= 101.0
        status, failing = asked(port, "/healthz")
        assert status == 503
        assert failing["progress"].endswith("more than 100 s")
        vitals.progress()
        assert asked(port, "/healthz") == (200, {})
        alpha.ledger.started_s -= 150.0
        assert asked(port, "/healthz")[0] == 503
        alpha.ledger.round_ended_s = alpha.ledger.elapsed_s
        assert asked(port, "/healthz") == (200, {})


def test_a_site_may_wait_as_long_as_its_file_allows(alpha: Watched) -> None:
    gossip_spec = alpha.site.spec.gossip
    slow = gossip_spec.model_copy(update={"outage_s": 7200.0})
    spec = alpha.site.spec.model_copy(update={"gossip": slow})
    assert stall_limit_s(spec) > STALL_S + 7200.0
    assert stall_limit_s(alpha.site.spec) > STALL_S + gossip_spec.join_timeout_s
