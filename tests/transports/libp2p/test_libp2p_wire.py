"""Greetings, refusals and frame heads: what is built can be read, and nothing else raises anything unexpected."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from libp2p_pairs import run_trio

from gossipfl.errors import MessageError
from gossipfl.membership import FEDERATION_ID_BYTES, federation_id_of
from gossipfl.messages.bounded import MAX_COUNTER, pack
from gossipfl.transports.base import MAX_FRAME_BYTES
from gossipfl.transports.libp2p.wire import (
    BULK,
    CONTROL,
    FRAME,
    HEAD,
    INSTANCE_BYTES,
    MAX_GREETING_BYTES,
    MAX_RECORD_BYTES,
    RECORD,
    Greeting,
    Refused,
    frame_head,
    read_head,
    refusal,
)

FEDERATION = federation_id_of("wire")
INSTANCE = bytes(range(INSTANCE_BYTES))
HELLO = Greeting(FEDERATION, INSTANCE, CONTROL)
FIELDS = {"f": FEDERATION, "i": INSTANCE, "l": 0, "m": 0, "a": "0.1.0"}


class Ended(Exception):
    """There are no more bytes."""


class Reader:
    """A stream of given bytes, whose reads are as long as they are asked to be, and no longer than they may be."""

    def __init__(self, data: bytes) -> None:
        self.rest = data
        self.most = 0

    async def read_exactly(self, n: int) -> bytes:
        self.most = max(self.most, n)
        if n > len(self.rest):
            raise Ended
        taken, self.rest = self.rest[:n], self.rest[n:]
        return taken

    async def write(self, data: bytes) -> None:
        raise AssertionError("a greeting is read only")


def read(data: bytes) -> tuple[Greeting, Reader]:
    found: list[Greeting] = []
    reader = Reader(data)

    async def main() -> None:
        found.append(await Greeting.read(reader))

    run_trio(main)
    return found[0], reader


def framed(fields: Any) -> bytes:
    packed = fields if isinstance(fields, bytes) else pack(fields)
    return len(packed).to_bytes(2, "big") + packed


@given(
    st.binary(min_size=FEDERATION_ID_BYTES, max_size=FEDERATION_ID_BYTES),
    st.binary(min_size=INSTANCE_BYTES, max_size=INSTANCE_BYTES),
    st.sampled_from([CONTROL, BULK]) | st.integers(0, MAX_COUNTER),
    st.binary(max_size=20),
)
def test_a_greeting_is_read_as_it_was_built(federation: bytes, instance: bytes, lane: int, after: bytes) -> None:
    greeting = Greeting(federation, instance, lane)
    found, reader = read(greeting.pack() + after)
    assert found == greeting
    assert reader.rest == after
    assert len(greeting.pack()) <= 2 + MAX_GREETING_BYTES


def test_a_greeting_of_a_later_minor_version_may_say_more() -> None:
    found, _ = read(framed({**FIELDS, "m": 99, "z": [1, {"y": None}]}))
    assert found == HELLO


@pytest.mark.parametrize("reason", ["duplicate", "federation", "", "ünïcode"])
def test_a_refusal_is_read_as_such(reason: str) -> None:
    with pytest.raises(Refused) as caught:
        read(refusal(reason))
    assert caught.value.reason == str(caught.value) == reason


def test_a_refusal_counts_whatever_else_is_said() -> None:
    with pytest.raises(Refused):
        read(framed({**FIELDS, "no": "twin"}))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        [],
        "hello",
        b"",
        b"\xc1",
        b"\x81",
        b"\x80\x80",
        {**FIELDS, "f": FEDERATION[:-1]},
        {**FIELDS, "f": FEDERATION + b"x"},
        {**FIELDS, "f": FEDERATION.hex()},
        {**FIELDS, "i": b""},
        {**FIELDS, "i": None},
        {**FIELDS, "l": -1},
        {**FIELDS, "l": 1 << 63},
        {**FIELDS, "l": 0.0},
        {**FIELDS, "l": False},
        {key: value for key, value in FIELDS.items() if key != "f"},
        {key: value for key, value in FIELDS.items() if key != "i"},
        {key: value for key, value in FIELDS.items() if key != "l"},
        {"no": 5},
        {"no": b"bytes"},
        {"no": None},
        {"no": "x" * 201},
    ],
    ids=repr,
)
def test_what_is_no_greeting_is_refused(fields: Any) -> None:
    with pytest.raises(MessageError):
        read(framed(fields))


@pytest.mark.parametrize("length", [MAX_GREETING_BYTES + 1, 0xFFFF])
def test_an_oversized_greeting_is_refused_before_it_is_read(length: int) -> None:
    reader = Reader(length.to_bytes(2, "big") + bytes(length))

    async def main() -> None:
        with pytest.raises(MessageError, match="greeting: oversized"):
            await Greeting.read(reader)

    run_trio(main)
    assert reader.most == 2


def test_the_largest_greeting_is_read() -> None:
    fields = {**FIELDS, "z": b""}
    fields["z"] = bytes(MAX_GREETING_BYTES - len(pack({**fields, "z": bytes(300)})) + 300)
    assert len(pack(fields)) == MAX_GREETING_BYTES
    assert read(framed(fields))[0] == HELLO


@given(st.binary(max_size=200), st.booleans())
@example(b"\xdf\xff\xff\xff\xff", True)
@example(b"\x91" * 1000, True)
@example(b"\x81\xc7\xff\x00", True)
@example(b"\x81\x90\x00", True)
@example(b"\x81\xa2no\xa1\xff", True)
def test_any_bytes_are_read_or_refused(data: bytes, well_framed: bool) -> None:
    with contextlib.suppress(MessageError, Refused, Ended):
        read(framed(data) if well_framed else data)


@given(st.data())
def test_a_greeting_with_altered_bytes_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(HELLO.pack())
    for position, byte in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)))):
        whole[position] = byte
    with contextlib.suppress(MessageError, Refused, Ended):
        read(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


# ---------------------------------------------------------------------------------------------------- frames


@given(st.sampled_from([FRAME, RECORD]) | st.integers(0, 255), st.integers(0, MAX_FRAME_BYTES))
def test_a_head_is_read_as_it_was_built(kind: int, size_bytes: int) -> None:
    head = frame_head(kind, size_bytes)
    assert len(head) == HEAD.size == 4
    for form in (head, bytearray(head), memoryview(head)):
        assert read_head(form) == (kind, size_bytes)


def test_a_head_is_a_type_and_three_bytes_of_length() -> None:
    assert frame_head(RECORD, 0x010203) == b"\x01\x01\x02\x03"


@pytest.mark.parametrize("kind", [FRAME, RECORD, 255])
@pytest.mark.parametrize("size_bytes", [MAX_FRAME_BYTES + 1, (1 << 24) - 1])
def test_a_frame_that_is_too_long_is_refused(kind: int, size_bytes: int) -> None:
    with pytest.raises(MessageError) as caught:
        read_head(frame_head(kind, size_bytes))
    assert caught.value.reason == "oversized"


@given(st.binary(min_size=4, max_size=4))
def test_any_head_is_read_or_refused(head: bytes) -> None:
    with contextlib.suppress(MessageError):
        kind, size_bytes = read_head(head)
        assert 0 <= kind <= 255
        assert 0 <= size_bytes <= MAX_FRAME_BYTES


def test_a_record_fits_a_frame() -> None:
    assert MAX_RECORD_BYTES <= MAX_FRAME_BYTES
    with pytest.raises(struct.error):
        frame_head(256, 0)
