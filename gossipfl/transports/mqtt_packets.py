"""MQTT 3.1.1 control packets as a broker sees them: parsing from bytes, building of bytes, and no I/O.

A subset of the OASIS standard: QoS 0 and 1 on the way in and out. Parsing is strict; whatever the standard
forbids raises PacketError, and nothing else is ever raised. Section numbers refer to MQTT Version 3.1.1,
OASIS 2014, https://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/mqtt-v3.1.1-os.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gossipfl.errors import WireError

Buffer = bytes | bytearray | memoryview

PINGRESP = b"\xd0\x00"
_LONGEST_HEADER = 5
_PROTOCOL = "MQTT"
LEVEL = 4
"""The protocol level of MQTT 3.1.1."""


class PacketError(WireError):
    """Bytes that are no MQTT 3.1.1 packet, or one that this subset does not speak."""


class PacketType(IntEnum):
    """The control packets that a client may send (section 2.2.1), less those of QoS 2."""

    CONNECT = 1
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    UNSUBSCRIBE = 10
    PINGREQ = 12
    DISCONNECT = 14


class ConnectReturn(IntEnum):
    """Return codes of CONNACK (section 3.2.2.3)."""

    ACCEPTED = 0
    BAD_PROTOCOL_LEVEL = 1
    BAD_CLIENT_ID = 2
    UNAVAILABLE = 3
    BAD_CREDENTIALS = 4


@dataclass(frozen=True, slots=True)
class Publish:
    """One application message; ``payload`` is a view into the packet's own buffer, never a copy."""

    topic: str
    payload: memoryview
    qos: int = 0
    packet_id: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """A client's first packet (section 3.1)."""

    client_id: str
    clean_session: bool
    keepalive_s: int
    level: int = LEVEL
    will: Publish | None = None
    username: str | None = None
    password: bytes | None = None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Topic filters with the highest QoS wanted of each (section 3.8)."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Topic filters to forget (section 3.10)."""

    packet_id: int
    filters: tuple[str, ...]


def packet_span(buffer: Buffer) -> tuple[int, int] | None:
    """Return the sizes in bytes of a packet's fixed header and of what follows it (section 2.2.3).

    None when ``buffer`` ends within the header. Raises PacketError when the length has more than four bytes.
    """
    length = 0
    for index in range(1, min(len(buffer), _LONGEST_HEADER)):
        byte = buffer[index]
        length |= (byte & 0x7F) << (7 * (index - 1))
        if byte < 0x80:
            return index + 1, length
    if len(buffer) >= _LONGEST_HEADER:
        raise PacketError("remaining length of more than four bytes")
    return None


class _Fields:
    """A cursor over the body of one packet."""

    __slots__ = ("_body", "_position")

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._position = 0

    def take(self, size_bytes: int) -> memoryview:
        end = self._position + size_bytes
        if end > len(self._body):
            raise PacketError("packet ends within a field")
        part = self._body[self._position : end]
        self._position = end
        return part

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self) -> int:
        high, low = self.take(2)
        return high << 8 | low

    def packet_id(self) -> int:
        number = self.integer()
        if not number:
            raise PacketError("packet identifier 0")
        return number

    def binary(self) -> memoryview:
        return self.take(self.integer())

    def text(self) -> str:
        try:
            text = str(self.binary(), "utf-8")
        except UnicodeDecodeError:
            raise PacketError("text that is not UTF-8") from None
        if "\0" in text:
            raise PacketError("text with a null character")
        return text

    def rest(self) -> memoryview:
        return self._body[self._position :]

    def finished(self) -> bool:
        return self._position == len(self._body)

    def end(self) -> None:
        if not self.finished():
            raise PacketError("bytes after the last field")


def parse_connect(body: memoryview) -> Connect:
    """Parse the body of a CONNECT; of one with another protocol level only that level is read."""
    fields = _Fields(body)
    if fields.text() != _PROTOCOL:
        raise PacketError("not the protocol MQTT")
    level = fields.byte()
    if level != LEVEL:
        return Connect("", clean_session=True, keepalive_s=0, level=level)
    flags = fields.byte()
    if flags & 0x01:
        raise PacketError("reserved flag of CONNECT is set")
    keepalive_s = fields.integer()
    client_id = fields.text()
    will = _parse_will(fields, flags)
    if flags & 0x40 and not flags & 0x80:
        raise PacketError("password without user name")
    username = fields.text() if flags & 0x80 else None
    password = bytes(fields.binary()) if flags & 0x40 else None
    fields.end()
    return Connect(client_id, bool(flags & 0x02), keepalive_s, level, will, username, password)


def _parse_will(fields: _Fields, flags: int) -> Publish | None:
    qos = flags >> 3 & 0x03
    if not flags & 0x04:
        if qos or flags & 0x20:
            raise PacketError("flags of a will that is not there")
        return None
    if qos > 1:
        raise PacketError(f"will of QoS {qos}")
    topic = _checked_topic(fields.text())
    return Publish(topic, memoryview(bytes(fields.binary())), qos)


def parse_publish(flags: int, body: memoryview) -> Publish:
    """Parse the body of a PUBLISH (section 3.3) with the ``flags`` of its first byte."""
    qos = flags >> 1 & 0x03
    if qos > 1:
        raise PacketError(f"message of QoS {qos}")
    if not qos and flags & 0x08:
        raise PacketError("duplicate flag on QoS 0")
    fields = _Fields(body)
    topic = _checked_topic(fields.text())
    packet_id = fields.packet_id() if qos else 0
    return Publish(topic, fields.rest(), qos, packet_id)


def parse_subscribe(flags: int, body: memoryview) -> Subscribe:
    """Parse the body of a SUBSCRIBE."""
    _expect_flags(flags, 0x02)
    fields = _Fields(body)
    packet_id = fields.packet_id()
    filters = []
    while not fields.finished():
        pattern = _checked_filter(fields.text())
        qos = fields.byte()
        if qos > 2:
            raise PacketError(f"subscription of QoS {qos}")
        filters.append((pattern, min(qos, 1)))
    if not filters:
        raise PacketError("subscription to nothing")
    return Subscribe(packet_id, tuple(filters))


def parse_unsubscribe(flags: int, body: memoryview) -> Unsubscribe:
    """Parse the body of an UNSUBSCRIBE."""
    _expect_flags(flags, 0x02)
    fields = _Fields(body)
    packet_id = fields.packet_id()
    filters = []
    while not fields.finished():
        filters.append(_checked_filter(fields.text()))
    if not filters:
        raise PacketError("unsubscription of nothing")
    return Unsubscribe(packet_id, tuple(filters))


def parse_puback(flags: int, body: memoryview) -> int:
    """Parse the body of a PUBACK and return its packet identifier."""
    _expect_flags(flags, 0)
    fields = _Fields(body)
    packet_id = fields.packet_id()
    fields.end()
    return packet_id


def parse_empty(flags: int, body: memoryview) -> None:
    """Check a PINGREQ or DISCONNECT, which have no body."""
    _expect_flags(flags, 0)
    _Fields(body).end()


def connack(code: ConnectReturn) -> bytes:
    """Build a CONNACK; no session is ever present."""
    return bytes((0x20, 2, 0, code))


def puback(packet_id: int) -> bytes:
    """Build a PUBACK."""
    return b"\x40\x02" + packet_id.to_bytes(2)


def suback(packet_id: int, granted: list[int]) -> bytes:
    """Build a SUBACK with the QoS granted to each filter."""
    return b"\x90" + _length(2 + len(granted)) + packet_id.to_bytes(2) + bytes(granted)


def unsuback(packet_id: int) -> bytes:
    """Build an UNSUBACK."""
    return b"\xb0\x02" + packet_id.to_bytes(2)


def publish_head(topic: str, payload_bytes: int, packet_id: int = 0) -> bytes:
    """Build all of a PUBLISH that stands before its payload; QoS 1 when there is a packet identifier."""
    name = topic.encode()
    identifier = packet_id.to_bytes(2) if packet_id else b""
    first = b"\x32" if packet_id else b"\x30"
    length = 2 + len(name) + len(identifier) + payload_bytes
    return first + _length(length) + len(name).to_bytes(2) + name + identifier


def _length(value: int) -> bytes:
    """Encode a remaining length: seven bits a byte, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _expect_flags(flags: int, expected: int) -> None:
    if flags != expected:
        raise PacketError(f"reserved flags {flags:#x}")


def _checked_topic(topic: str) -> str:
    if not topic or "+" in topic or "#" in topic:
        raise PacketError("topic that is empty or has a wildcard")
    return topic


def _checked_filter(pattern: str) -> str:
    """Check the wildcards (section 4.7.1): each alone in its level, and ``#`` in the last one only."""
    *inner, last = pattern.split("/")
    misplaced = any("#" in level or ("+" in level and level != "+") for level in inner)
    if not pattern or misplaced or (len(last) > 1 and ("#" in last or "+" in last)):
        raise PacketError("malformed topic filter")
    return pattern
