"""One client of the embedded broker: its socket, its half-read packet and the packets that wait for it.

The bytes of a large message are received straight into the buffer of its own packet, and that one buffer is
what every subscriber's socket is given: the broker copies no payload. Sockets are non-blocking and driven by
the event loop's readers and writers, because asyncio's stream transport would copy whatever a full socket
does not take.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from gossipfl.transports.mqtt_packets import Buffer, PacketError, Publish, packet_span

_SCRATCH_BYTES = 1 << 16
_WRITE_BUFFERS = 64
_SOCKET_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """What a broker grants one client."""

    packet_bytes: int = 2 << 20
    """The largest packet; a larger one closes the connection, as does a CONNECT of over 64 KiB."""

    queue_bytes: int = 8 << 20
    """Bytes that wait for a subscriber before its publishers are no longer read (back-pressure)."""

    stall_s: float = 20.0
    """A subscriber that has bytes waiting and takes none for so long is disconnected."""

    connect_s: float = 5.0
    """Time to send a CONNECT."""

    clients: int = 4096
    filters: int = 16384
    """Topic filters of one client."""


@dataclass(slots=True)
class BrokerCounters:
    """Totals since the start."""

    connections: int = 0
    messages_in: int = 0
    messages_out: int = 0
    malformed: int = 0
    stalled: int = 0


class PacketSink(Protocol):
    """Who acts on a client's packets."""

    limits: BrokerLimits
    counters: BrokerCounters
    scratch: memoryview

    def handle(self, client: BrokerClient, first: int, packet: memoryview, body_at: int) -> None:
        """Act on one whole packet; ``packet`` may be kept. Raises PacketError to have the client closed."""

    def gone(self, client: BrokerClient) -> None:
        """Forget a client whose connection has ended."""


def new_scratch() -> memoryview:
    """Return the buffer into which all clients of one loop read short packets."""
    return memoryview(bytearray(_SCRATCH_BYTES))


class _Outbox:
    """Buffers that wait for a socket, written without being joined or copied."""

    def __init__(self, sock: socket.socket) -> None:
        self.queued_bytes = 0
        self._sock = sock
        self._buffers: deque[memoryview] = deque()

    def __bool__(self) -> bool:
        return bool(self._buffers)

    def append(self, buffer: Buffer) -> None:
        if len(buffer):  # an empty one would never be done
            self._buffers.append(memoryview(buffer))
            self.queued_bytes += len(buffer)

    def flush(self) -> bool:
        """Write what the socket takes and say whether it took anything; raises OSError when it is broken."""
        took = False
        while self._buffers:
            wanted = list(islice(self._buffers, _WRITE_BUFFERS))
            try:
                count = self._sock.sendmsg(wanted)
            except BlockingIOError:
                break
            took = True
            self._discard(count)
            if count < sum(map(len, wanted)):
                break
        return took

    def clear(self) -> None:
        self._buffers.clear()
        self.queued_bytes = 0

    def _discard(self, count: int) -> None:
        self.queued_bytes -= count
        while count:
            first = self._buffers[0]
            if count < len(first):
                self._buffers[0] = first[count:]
                return
            count -= len(first)
            self._buffers.popleft()


class BrokerClient:
    """A connection; it calls its sink with whole packets and writes what it is given, in order."""

    def __init__(self, sink: PacketSink, sock: socket.socket) -> None:
        self.client_id: str | None = None
        self.will: Publish | None = None
        self.keepalive_s = 0
        self.close_reason: str | None = None
        self._sink = sink
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._opened_s = self._heard_s = self._moved_s = self._loop.time()
        self._head = b""
        self._packet: memoryview | None = None
        self._filled = 0
        self._out = _Outbox(sock)
        self._packet_id = 0
        self._unacknowledged: set[int] = set()
        self._slow: set[BrokerClient] = set()
        self._waiting: dict[BrokerClient, None] = {}
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        self._loop.add_reader(sock, self._readable)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self.close_reason is not None

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be written to this client."""
        return self._out.queued_bytes

    @property
    def overfull(self) -> bool:
        """Whether so much waits for this subscriber that its publishers have to wait too."""
        return self.queued_bytes > self._sink.limits.queue_bytes

    @property
    def paused(self) -> bool:
        """Whether this publisher is not read because of a slow subscriber."""
        return bool(self._slow)

    def overdue(self, now_s: float) -> str | None:
        """Return which time limit this client has broken by ``now_s``, if any."""
        limits = self._sink.limits
        if self.client_id is None and now_s - self._opened_s > limits.connect_s:
            return "no CONNECT in time"
        if self._out and now_s - self._moved_s > limits.stall_s:
            return "stalled"
        if self.keepalive_s and not self.paused and now_s - self._heard_s > 1.5 * self.keepalive_s:
            return "keep-alive expired"
        return None

    # --- reading

    def _readable(self) -> None:
        self._heard_s = self._loop.time()
        try:
            if self._packet is None:
                self._read_scratch()
            else:
                self._read_packet(self._packet)
        except BlockingIOError:
            return
        except PacketError as error:
            self._sink.counters.malformed += 1
            self.close(str(error))
        except OSError as error:
            self.close(error.strerror or "connection lost")

    def _read_packet(self, packet: memoryview) -> None:
        count = self._sock.recv_into(packet[self._filled :])
        if not count:
            self.close("connection lost")
            return
        self._filled += count
        if self._filled == len(packet):
            self._packet = None
            header_bytes, _ = packet_span(packet) or (0, 0)
            self._sink.handle(self, packet[0], packet, header_bytes)

    def _read_scratch(self) -> None:
        scratch, kept = self._sink.scratch, len(self._head)
        scratch[:kept] = self._head
        count = self._sock.recv_into(scratch[kept:])
        if not count:
            self.close("connection lost")
            return
        data = scratch[: kept + count]
        position = 0
        while not self.closed and self._packet is None:
            span = packet_span(data[position:])
            if span is None:
                self._head = bytes(data[position:])
                return
            self._head = b""
            position = self._cut(data, position, *span)

    def _cut(self, data: memoryview, position: int, header_bytes: int, body_bytes: int) -> int:
        """Take one packet from the shared scratch buffer, or begin the buffer of one that goes beyond it."""
        total = header_bytes + body_bytes
        known = self.client_id is not None
        if total > (self._sink.limits.packet_bytes if known else _SCRATCH_BYTES):
            raise PacketError(f"packet of {total} bytes")
        packet = memoryview(bytearray(total))
        part = data[position : position + total]
        packet[: len(part)] = part
        if len(part) == total:
            self._sink.handle(self, packet[0], packet, header_bytes)
        else:
            self._packet, self._filled = packet, len(part)
        return position + len(part)

    # --- back-pressure

    def wait_for(self, subscriber: BrokerClient) -> None:
        """Stop reading this publisher until ``subscriber`` has caught up."""
        if self.closed or subscriber.closed or subscriber in self._slow:
            return
        if not self._slow:
            self._loop.remove_reader(self._sock)
        self._slow.add(subscriber)
        subscriber._waiting[self] = None

    def _release_publishers(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for publisher in waiting:
            publisher._slow.discard(self)
            if not publisher._slow and not publisher.closed:
                publisher._heard_s = self._loop.time()
                self._loop.add_reader(publisher._sock, publisher._readable)

    # --- writing

    def next_packet_id(self) -> int:
        """Return a packet identifier that is not in use, or 0 when all are (and QoS 0 is all that is left)."""
        if len(self._unacknowledged) >= 0xFFFF:
            return 0
        while True:
            self._packet_id = self._packet_id % 0xFFFF + 1
            if self._packet_id not in self._unacknowledged:
                self._unacknowledged.add(self._packet_id)
                return self._packet_id

    def acknowledged(self, packet_id: int) -> None:
        """Free a packet identifier."""
        self._unacknowledged.discard(packet_id)

    def write(self, *parts: Buffer) -> None:
        """Write the parts of one packet: at once what the socket takes, and the rest when it takes more."""
        if self.closed:
            return
        was_idle = not self._out
        if was_idle:
            self._moved_s = self._loop.time()
        for part in parts:
            self._out.append(part)
        if was_idle:
            self._flush()
            if self._out:
                self._loop.add_writer(self._sock, self._writable)

    def _writable(self) -> None:
        self._flush()
        if not self._out and not self.closed:
            self._loop.remove_writer(self._sock)
        if self._waiting and self.queued_bytes <= self._sink.limits.queue_bytes // 2:
            self._release_publishers()

    def _flush(self) -> None:
        try:
            if self._out.flush():
                self._moved_s = self._loop.time()
        except OSError as error:
            self.close(error.strerror or "connection lost")

    # --- the end

    def close(self, reason: str) -> None:
        """Close the connection, give up what waits to be written, and tell the sink."""
        if self.closed:
            return
        self.close_reason = reason
        if not self._slow:
            self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._out.clear()
        self._packet = None
        for subscriber in self._slow:
            subscriber._waiting.pop(self, None)
        self._slow.clear()
        self._release_publishers()
        self._sink.gone(self)
