"""The wire format: what is written is read back, and nothing else is ever believed or paid for."""

from __future__ import annotations

import inspect
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import forge, make_identity, raw_body

from gossipfl import messages
from gossipfl.digest import digest
from gossipfl.errors import MessageError
from gossipfl.messages import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_COUNTER,
    MAX_FRAME_BYTES,
    MAX_META_BYTES,
    Bye,
    Chunk,
    Envelope,
    Grant,
    Header,
    Hello,
    Kind,
    Request,
    Status,
    Update,
    chunk_digests,
    chunk_spans,
    decode_body,
    encode_body,
    frame_chunk,
    frame_message,
    parse_frame,
    signing_input,
)

FEDERATION = digest(b"federation")[:16]
PREFIX = struct.Struct("<2sBBBBH")

counters = st.integers(0, MAX_COUNTER)
digests = st.binary(min_size=32, max_size=32)
acks = st.dictionaries(digests, st.tuples(counters, counters), max_size=8)
hellos = st.builds(Hello, digests, digests, counters, counters, digests, st.booleans(), st.text(max_size=200))
updates = st.builds(
    lambda payload, **fields: Update(payload=memoryview(payload), **fields),
    payload=st.binary(max_size=300),
    round=counters,
    version=counters,
    digest=digests,
    codec=st.integers(0, 255),
    acks=acks,
)
requests = st.builds(Request, st.none() | counters)
statuses = st.builds(Status, counters, counters, digests, acks, st.booleans())
grants = st.builds(Grant, counters, counters, counters, counters)
byes = st.builds(Bye, st.text(max_size=200))
bodies = st.one_of(
    st.tuples(st.just(Kind.HELLO), hellos),
    st.tuples(st.sampled_from([Kind.DELTA, Kind.KEYFRAME]), updates),
    st.tuples(st.just(Kind.REQUEST), requests),
    st.tuples(st.just(Kind.STATUS), statuses),
    st.tuples(st.just(Kind.GRANT), grants),
    st.tuples(st.just(Kind.BYE), byes),
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    size = draw(st.one_of(st.integers(0, 4 * CHUNK_BYTES), st.just(MAX_CHUNKS * CHUNK_BYTES)))
    count = max(1, len(chunk_spans(size)))
    return Header(
        federation=draw(st.binary(min_size=16, max_size=16)),
        sender=draw(digests),
        recipient=draw(st.one_of(st.just(b""), digests)),
        incarnation=draw(counters),
        sequence=draw(counters),
        body_bytes=size,
        digests=tuple(digest(bytes([i % 256])) for i in range(count)),
    )


def make_frame(fields: list[Any], body: bytes = b"", kind: int = Kind.STATUS, **prefix: Any) -> bytes:
    """Frame any header fields, with a signature of zeros."""
    header = msgpack.packb(fields)
    values = {"magic": b"gf", "major": 1, "minor": 0, "type": 0} | prefix
    packed = PREFIX.pack(values["magic"], values["major"], values["minor"], values["type"], kind, len(header))
    return packed + header + bytes(64) + body


def make_fields(body: bytes = b"", **changes: Any) -> list[Any]:
    """Return the fields of a header that fits ``body``."""
    fields = {
        "federation": FEDERATION,
        "sender": bytes(32),
        "recipient": b"",
        "incarnation": 1,
        "sequence": 1,
        "body_bytes": len(body),
        "digests": digest(body),
    }
    return list((fields | changes).values())


def reason_of(frame: bytes) -> str:
    with pytest.raises(MessageError) as raised:
        parse_frame(frame)
    return raised.value.reason


class TestRoundTrips:
    @given(bodies)
    def test_body(self, kind_and_body: tuple[Kind, Any]) -> None:
        kind, body = kind_and_body
        assert decode_body(kind, encode_body(body)) == body

    @given(headers(), st.integers(0, 255), st.binary(min_size=64, max_size=64))
    def test_header_of_an_announced_or_inline_message(self, header: Header, kind: int, signature: bytes) -> None:
        inline = header.body_bytes <= CHUNK_BYTES
        signed = signing_input(kind, header.pack())
        body = memoryview(bytearray(header.body_bytes)) if inline else memoryview(b"")
        frame = frame_message(signed, signature, body) if inline else signed[len(b"gossipfl/1/message") :] + signature
        envelope = parse_frame(frame)
        assert isinstance(envelope, Envelope)
        assert (envelope.kind, envelope.header, envelope.signature) == (kind, header, signature)
        assert envelope.signed == signed
        assert (envelope.body is not None) == inline

    @given(st.binary(min_size=1, max_size=100), counters, counters, st.integers(0, MAX_CHUNKS))
    def test_chunk(self, data: bytes, incarnation: int, sequence: int, index: int) -> None:
        header = Header(FEDERATION, bytes(32), b"", incarnation, sequence, 0, (bytes(32),))
        chunk = parse_frame(frame_chunk(header, index, data))
        assert chunk == Chunk(FEDERATION, bytes(32), incarnation, sequence, index, memoryview(data))

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
    def test_chunk_digests_cover_the_body(self, size: int) -> None:
        body = (bytes(range(256)) * (size // 256 + 1))[:size]
        expected = [digest(body)] if size <= CHUNK_BYTES else [digest(body[a:b]) for a, b in chunk_spans(size)]
        assert list(chunk_digests(body)) == expected
        assert b"".join(body[a:b] for a, b in chunk_spans(size)) == body

    def test_the_largest_chunk_and_the_largest_inline_body_fit_a_frame(self) -> None:
        header = Header(FEDERATION, bytes(32), bytes(32), MAX_COUNTER, MAX_COUNTER, CHUNK_BYTES, (bytes(32),))
        assert len(frame_chunk(header, MAX_COUNTER, bytes(CHUNK_BYTES))) <= MAX_FRAME_BYTES
        assert len(frame_message(signing_input(2, header.pack()), bytes(64), bytes(CHUNK_BYTES))) <= MAX_FRAME_BYTES

    def test_the_largest_announcement_fits_its_header_length(self) -> None:
        size = MAX_CHUNKS * CHUNK_BYTES
        header = Header(FEDERATION, bytes(32), bytes(32), MAX_COUNTER, MAX_COUNTER, size, (bytes(32),) * MAX_CHUNKS)
        assert len(header.pack()) <= 0xFFFF
        envelope = parse_frame(signing_input(2, header.pack())[len(b"gossipfl/1/message") :] + bytes(64))
        assert isinstance(envelope, Envelope)
        assert envelope.header == header


class TestHostileBytes:
    @given(st.binary(max_size=400))
    def test_random_bytes(self, data: bytes) -> None:
        for frame in (data, b"gf\x01\x00" + data):
            with pytest.raises(MessageError):
                parse_frame(frame)

    @given(st.integers(0, 20), st.binary(max_size=300))
    def test_random_bodies(self, kind: int, data: bytes) -> None:
        for body in (data, struct.pack("<I", len(data)) + data):
            try:
                decode_body(kind, body)
            except MessageError as error:
                assert error.reason in REASONS  # noqa: PT017 - success is legal too

    @settings(max_examples=300)
    @given(bodies, st.data())
    def test_mutated_frames(self, kind_and_body: tuple[Kind, Any], data: st.DataObject) -> None:
        frame = bytearray(forge(make_identity(0), *kind_and_body, federation=FEDERATION, sequence=1))
        for _ in range(data.draw(st.integers(1, 4))):
            frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
        del frame[data.draw(st.integers(0, len(frame))) :]
        try:
            parsed = parse_frame(frame)
            if isinstance(parsed, Envelope) and parsed.body is not None:
                decode_body(parsed.kind, parsed.body)
        except MessageError as error:
            assert error.reason in REASONS  # noqa: PT017 - a flipped bit of the signature parses

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (b"", "truncated"),
            (b"gf\x01\x00\x00\x01\xff", "truncated"),
            (bytes(MAX_FRAME_BYTES + 1), "oversized"),
            (make_frame(make_fields(), magic=b"GF"), "magic"),
            (make_frame(make_fields(), major=2), "version"),
            (make_frame(make_fields(), major=0), "version"),
            (make_frame(make_fields(), type=2), "type"),
            (make_frame(make_fields())[:-1], "truncated"),
            (make_frame(make_fields(), b"x"), "length"),
            (make_frame(make_fields(b"xy"), b"x"), "length"),
            (make_frame(make_fields()[:6]), "header"),
            (make_frame(make_fields(federation=bytes(15))), "field"),
            (make_frame(make_fields(sender="0" * 32)), "field"),
            (make_frame(make_fields(sender=bytes(33))), "field"),
            (make_frame(make_fields(recipient=bytes(31))), "header"),
            (make_frame(make_fields(recipient=None)), "field"),
            (make_frame(make_fields(incarnation=-1)), "field"),
            (make_frame(make_fields(incarnation=True)), "field"),
            (make_frame(make_fields(sequence=2**63)), "field"),
            (make_frame(make_fields(sequence=1.0)), "field"),
            (make_frame(make_fields(digests=bytes(31))), "header"),
            (make_frame(make_fields(digests=bytes(64))), "header"),
            (make_frame(make_fields(digests=b"")), "header"),
            (make_frame(make_fields(body_bytes=CHUNK_BYTES + 1, digests=bytes(32))), "header"),
            (make_frame(make_fields(body_bytes=MAX_COUNTER, digests=bytes(64))), "header"),
            (make_frame(make_fields(body_bytes=CHUNK_BYTES * MAX_CHUNKS + 1, digests=bytes(32))), "header"),
            (PREFIX.pack(b"gf", 1, 0, 0, 5, 3) + b"\x81\x01\x02" + bytes(64), "msgpack"),
            (PREFIX.pack(b"gf", 1, 0, 0, 5, 1) + b"\xc1" + bytes(64), "msgpack"),
            (PREFIX.pack(b"gf", 1, 0, 1, 0, 6) + msgpack.packb([1, 2, 3, 4, 5]), "length"),
            (PREFIX.pack(b"gf", 1, 0, 1, 0, 3) + msgpack.packb([1, 2]) + b"x", "header"),
        ],
    )
    def test_every_refusal_of_a_frame_has_its_reason(self, frame: bytes, reason: str) -> None:
        assert reason_of(frame) == reason

    @pytest.mark.parametrize(
        ("kind", "body", "reason"),
        [
            (Kind.REQUEST, b"", "body"),
            (Kind.REQUEST, b"\x00\x00\x00", "body"),
            (Kind.REQUEST, struct.pack("<I", 2) + b"\x80", "body"),
            (Kind.REQUEST, struct.pack("<I", 0xFFFFFFFF) + b"\x80", "body"),
            (Kind.REQUEST, struct.pack("<I", MAX_META_BYTES + 1) + bytes(MAX_META_BYTES + 1), "body"),
            (Kind.REQUEST, raw_body({"h": 1}, b"x"), "body"),
            (Kind.REQUEST, raw_body([1]), "msgpack"),
            (Kind.REQUEST, raw_body({"h": -1}), "field"),
            (Kind.REQUEST, raw_body({"h": "1"}), "field"),
            (Kind.STATUS, raw_body({}), "field"),
            (Kind.STATUS, raw_body({"r": 0, "v": 0, "d": bytes(32), "k": [1]}), "field"),
            (Kind.STATUS, raw_body({"r": 0, "v": 0, "d": bytes(32), "k": {b"k": [0, 0]}}), "field"),
            (Kind.STATUS, raw_body({"r": 0, "v": 0, "d": bytes(32), "k": {bytes(32): [0]}}), "field"),
            (Kind.STATUS, raw_body({"r": 0, "v": 0, "d": bytes(32), "k": {bytes(32): b"ab"}}), "field"),
            (Kind.GRANT, raw_body({"in": 1, "s": 1, "f": 0}), "field"),
            (Kind.BYE, raw_body({"why": "x" * 201}), "field"),
            (Kind.BYE, raw_body({"why": 3}), "field"),
            (Kind.HELLO, raw_body({"l": bytes(31)}), "field"),
            (Kind.DELTA, raw_body({"r": 0, "v": 0, "d": bytes(32), "c": None}), "field"),
            (0, raw_body({}), "kind"),
            (10, raw_body({}), "kind"),
            (10, raw_body({}, b"payload"), "kind"),
            (Kind.MEMBERSHIP, raw_body({}, b"x"), "field"),
            (Kind.EVIDENCE, raw_body({}), "statement"),
            (Kind.EVIDENCE, raw_body({}, bytes(3)), "statement"),
            (Kind.EVIDENCE, raw_body({}, bytes(68)), "statement"),
            (255, raw_body({}), "kind"),
        ],
    )
    def test_every_refusal_of_a_body_has_its_reason(self, kind: int, body: bytes, reason: str) -> None:
        with pytest.raises(MessageError) as raised:
            decode_body(kind, body)
        assert raised.value.reason == reason

    @pytest.mark.parametrize(
        "meta",
        [
            b"\x91" * 60_000 + b"\xc0",
            b"\x81\xa1x" * 20_000 + b"\xc0",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x05",
            b"\x81\xa1h\xdd\x7f\xff\xff\xff",
            b"\x81\x90\xc0",
            b"\x81\xa1h\xc7\x00\xff",
            b"\x81\xa1h\xd6\xff\x00\x00\x00\x00",
            b"\xa2\xff\xfe",
            b"\x81\xa2\xff\xfe\x00",
        ],
        ids=[
            "nested lists",
            "nested maps",
            "huge list",
            "huge map",
            "huge bin",
            "huge str",
            "huge ext",
            "huge list inside",
            "list as key",
            "empty timestamp",
            "timestamp",
            "bad utf-8",
            "bad utf-8 key",
        ],
    )
    def test_hostile_msgpack_is_refused_before_it_costs_memory(self, meta: bytes) -> None:
        body = struct.pack("<I", len(meta)) + meta
        with pytest.raises(MessageError):
            decode_body(Kind.REQUEST, body)  # whatever is imported on the first error is not counted below
        tracemalloc.start()
        try:
            with pytest.raises(MessageError):
                decode_body(Kind.REQUEST, body)
            with pytest.raises(MessageError):
                parse_frame(PREFIX.pack(b"gf", 1, 0, 0, 1, len(meta)) + meta + bytes(64))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2**20

    def test_a_declared_size_costs_nothing(self) -> None:
        size = MAX_CHUNKS * CHUNK_BYTES
        frame = make_frame(make_fields(body_bytes=size, digests=bytes(32 * MAX_CHUNKS)))
        tracemalloc.start()
        try:
            envelope = parse_frame(frame)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert isinstance(envelope, Envelope)
        assert envelope.header.body_bytes == size
        assert peak < 2**20

    def test_parsing_does_not_copy_the_payload(self) -> None:
        payload = bytes(CHUNK_BYTES - 1000)
        body = Update(1, 1, bytes(32), 1, memoryview(payload))
        frame = forge(make_identity(0), Kind.DELTA, body, federation=FEDERATION, sequence=1)
        tracemalloc.start()
        try:
            envelope = parse_frame(frame)
            assert isinstance(envelope, Envelope)
            assert envelope.body is not None
            assert envelope.body_matches()
            assert decode_body(envelope.kind, envelope.body) == body
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100_000


class TestMinorVersions:
    """A node of the next minor version may add header elements and meta keys; this one ignores them."""

    @given(st.integers(0, 255), st.lists(counters | digests | st.none(), max_size=5))
    def test_further_header_elements_are_ignored(self, minor: int, further: list[Any]) -> None:
        envelope = parse_frame(make_frame([*make_fields(), None, *further], minor=minor))
        assert isinstance(envelope, Envelope)
        assert envelope.minor == minor
        assert envelope.header == Header(FEDERATION, bytes(32), b"", 1, 1, 0, (digest(b""),))

    def test_what_is_signed_includes_what_is_ignored(self) -> None:
        plain, further = parse_frame(make_frame(make_fields())), parse_frame(make_frame([*make_fields(), None, 7]))
        assert isinstance(plain, Envelope)
        assert isinstance(further, Envelope)
        assert plain.signed != further.signed

    @given(bodies, st.dictionaries(st.text(min_size=3, max_size=5), counters | digests | st.none(), max_size=4))
    def test_unknown_meta_keys_are_ignored(self, kind_and_body: tuple[Kind, Any], further: dict[str, Any]) -> None:
        kind, body = kind_and_body
        encoded = encode_body(body)
        (length,) = struct.unpack_from("<I", encoded)
        meta = msgpack.unpackb(encoded[4 : 4 + length], strict_map_key=False)
        longer = raw_body({**{k: v for k, v in further.items() if k not in meta}, **meta}, encoded[4 + length :])
        assert decode_body(kind, longer) == body

    def test_further_chunk_header_elements_are_ignored(self) -> None:
        header = msgpack.packb([FEDERATION, bytes(32), 1, 2, 3, "new"])
        chunk = parse_frame(PREFIX.pack(b"gf", 1, 9, 1, 0, len(header)) + header + b"data")
        assert chunk == Chunk(FEDERATION, bytes(32), 1, 2, 3, memoryview(b"data"))

    def test_optional_keys_have_defaults(self) -> None:
        base = {"r": 1, "v": 2, "d": bytes(32)}
        assert decode_body(Kind.STATUS, raw_body(base)) == Status(1, 2, bytes(32))
        hello = base | {"l": bytes(32), "i": bytes(32)}
        assert decode_body(Kind.HELLO, raw_body(hello)) == Hello(bytes(32), bytes(32), 2, 1, bytes(32), reply=False)
        assert decode_body(Kind.REQUEST, raw_body({})) == Request(None)
        assert decode_body(Kind.BYE, raw_body({})) == Bye("")


REASONS = {
    "oversized",
    "truncated",
    "magic",
    "version",
    "type",
    "msgpack",
    "header",
    "field",
    "length",
    "body",
    "kind",
    "statement",
    "unsealed",
    "epoch",
    "seal",
}


MESSAGE_MODULES = (messages.bodies, messages.bounded, messages.frames, messages.sealed, messages.statements)


def test_reasons_are_a_closed_set() -> None:
    """Counters are named after reasons, so a peer must not be able to invent one."""
    source = "".join(inspect.getsource(part) for part in MESSAGE_MODULES)
    used = {part.split('"')[0] for part in source.split('MessageError("')[1:]}
    assert used == REASONS
