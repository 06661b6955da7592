"""MQTT packets: what is built can be parsed, and what is not a packet raises PacketError and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.transports import mqtt_packets as mqtt
from gossipfl.transports.mqtt_packets import PacketError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
PARSERS: list[Callable[[int, memoryview], Any]] = [
    lambda flags, body: mqtt.parse_connect(body),
    mqtt.parse_publish,
    mqtt.parse_subscribe,
    mqtt.parse_unsubscribe,
    mqtt.parse_puback,
    mqtt.parse_empty,
]


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(2) + value.encode()


def connect_body(flags: int, *fields: bytes, level: int = 4, name: str = "MQTT") -> memoryview:
    return memoryview(text(name) + bytes([level, flags]) + (30).to_bytes(2) + b"".join(fields))


@given(TEXT, st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_a_publish_is_parsed_as_it_was_built(topic: str, payload: bytes, packet_id: int) -> None:
    packet = mqtt.publish_head(topic, len(payload), packet_id) + payload
    header_bytes, body_bytes = mqtt.packet_span(packet) or (0, 0)
    assert header_bytes + body_bytes == len(packet)
    message = mqtt.parse_publish(packet[0] & 0x0F, memoryview(packet)[header_bytes:])
    assert (message.topic, bytes(message.payload)) == (topic, payload)
    assert (message.qos, message.packet_id) == (int(packet_id > 0), packet_id)


@given(st.integers(0, (1 << 28) - 1))
def test_every_length_takes_its_shortest_form(length: int) -> None:
    topic_bytes = 2 + len("t")
    packet = mqtt.publish_head("t", max(0, length - topic_bytes))
    span = mqtt.packet_span(packet)
    assert span is not None
    assert span[1] == max(length, topic_bytes)
    assert mqtt.packet_span(packet[: span[0] - 1]) is None


def test_a_length_of_five_bytes_is_refused() -> None:
    assert mqtt.packet_span(b"\x30\xff\xff\xff") is None
    with pytest.raises(PacketError):
        mqtt.packet_span(b"\x30\xff\xff\xff\xff")


@pytest.mark.parametrize("parse", PARSERS)
@given(flags=st.integers(0, 15), body=st.binary(max_size=60))
def test_any_bytes_parse_or_raise_packet_error(
    parse: Callable[[int, memoryview], Any], flags: int, body: bytes
) -> None:
    with contextlib.suppress(PacketError):
        parse(flags, memoryview(body))


@given(st.binary(max_size=40), st.integers(0, 255), st.data())
def test_any_bytes_after_a_good_start_parse_or_raise_packet_error(tail: bytes, flags: int, data: st.DataObject) -> None:
    body = bytes(connect_body(flags, tail))
    with contextlib.suppress(PacketError):
        mqtt.parse_connect(memoryview(body[: data.draw(st.integers(0, len(body)))]))


def test_a_connect_with_everything() -> None:
    body = connect_body(0xEE, text("ann"), text("wills/ann"), text("gone"), text("user"), text("secret"))
    request = mqtt.parse_connect(body)
    assert (request.client_id, request.clean_session, request.keepalive_s) == ("ann", True, 30)
    assert (request.username, request.password) == ("user", b"secret")
    assert request.will is not None
    assert (request.will.topic, bytes(request.will.payload), request.will.qos) == ("wills/ann", b"gone", 1)


def test_of_another_protocol_level_only_the_level_is_read() -> None:
    assert mqtt.parse_connect(connect_body(0xFF, b"\xff\xff", level=5)).level == 5


@pytest.mark.parametrize(
    ("parse", "flags", "body"),
    [
        (PARSERS[0], 0, connect_body(0x02, text("a"), name="MQIsdp")),
        (PARSERS[0], 0, connect_body(0x03, text("a"))),  # reserved flag
        (PARSERS[0], 0, connect_body(0x0A, text("a"))),  # QoS of a will that is not there
        (PARSERS[0], 0, connect_body(0x16, text("a"), text("t"), text(""))),  # will of QoS 2
        (PARSERS[0], 0, connect_body(0x06, text("a"), text("t/#"), text(""))),  # will to a wildcard
        (PARSERS[0], 0, connect_body(0x42, text("a"), text("p"))),  # password without a user
        (PARSERS[0], 0, connect_body(0x02, text("a"), b"!")),  # bytes left over
        (PARSERS[0], 0, connect_body(0x02, text("a\0b"))),
        (PARSERS[0], 0, connect_body(0x02, b"\x00\x01\xff")),  # not UTF-8
        (mqtt.parse_publish, 0x04, memoryview(text("t") + b"\x00\x01")),  # QoS 2
        (mqtt.parse_publish, 0x06, memoryview(text("t") + b"\x00\x01")),  # QoS 3
        (mqtt.parse_publish, 0x08, memoryview(text("t"))),  # duplicate of QoS 0
        (mqtt.parse_publish, 0x00, memoryview(text(""))),
        (mqtt.parse_publish, 0x00, memoryview(text("a/+"))),
        (mqtt.parse_publish, 0x02, memoryview(text("t") + b"\x00\x00")),  # identifier 0
        (mqtt.parse_subscribe, 0x00, memoryview(b"\x00\x01" + text("t") + b"\x00")),  # flags
        (mqtt.parse_subscribe, 0x02, memoryview(b"\x00\x01")),  # no filter
        (mqtt.parse_subscribe, 0x02, memoryview(b"\x00\x01" + text("t") + b"\x03")),  # QoS 3
        *(
            (mqtt.parse_subscribe, 0x02, memoryview(b"\x00\x01" + text(pattern) + b"\x00"))
            for pattern in ("", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+")
        ),
        (mqtt.parse_unsubscribe, 0x02, memoryview(b"\x00\x01")),
        (mqtt.parse_unsubscribe, 0x02, memoryview(b"\x00\x01" + text("a#"))),
        (mqtt.parse_puback, 0, memoryview(b"\x00\x00")),
        (mqtt.parse_puback, 0, memoryview(b"\x00\x01\x00")),
        (mqtt.parse_empty, 0, memoryview(b"\x00")),
        (mqtt.parse_empty, 1, memoryview(b"")),
    ],
)
def test_what_the_standard_forbids_is_refused(
    parse: Callable[[int, memoryview], Any], flags: int, body: memoryview
) -> None:
    with pytest.raises(PacketError):
        parse(flags, body)


def test_a_subscription_of_qos_2_is_granted_qos_1() -> None:
    request = mqtt.parse_subscribe(2, memoryview(b"\x00\x07" + text("a/+/#") + b"\x02" + text("b") + b"\x00"))
    assert (request.packet_id, request.filters) == (7, (("a/+/#", 1), ("b", 0)))
