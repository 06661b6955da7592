"""Versioned, signed, bounded messages: the bytes that agents exchange.

A *frame* is what a transport carries, at most ``MAX_FRAME_BYTES``. There are two types:

* a **message**: prefix, header, Ed25519 signature over both, and the body. The header carries the BLAKE3 digests
  of the body's chunks, so the signature covers the body too. A body that fits travels in the same frame; of a larger
  one only the signed announcement does, and the receiver asks for the chunks (see ``gossipfl.gossip.chunks``);
* a **chunk**: prefix, a short header that names the announcing message, and a part of its body. It carries no
  signature: its bytes are believed only if their digest is the one in the signed announcement.

Reading goes in steps, each bounded before the next: ``parse_frame`` (lengths, shallow msgpack), the signature over
``Envelope.signed``, ``Envelope.body_matches`` (digest), ``decode_body`` (fields). The byte tables are in
``docs/wire/protocol.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import msgpack

from gossipfl.digest import DIGEST_BYTES, digest
from gossipfl.errors import MessageError

Buffer: TypeAlias = bytes | bytearray | memoryview

MAGIC = b"gf"
MAJOR = 1
MINOR = 0
MAX_FRAME_BYTES = 1 << 20
CHUNK_BYTES = 960 * 1024
"""Size of a body's chunks; with its header a chunk stays below ``MAX_FRAME_BYTES``."""
MAX_CHUNKS = 1500
"""Bounds an announcement: 1,500 chunks are 1.4 GiB of body."""
MAX_META_BYTES = 64 * 1024
"""Bounds the msgpack part of any body."""
MAX_COUNTER = (1 << 63) - 1
SIGNATURE_BYTES = 64
KEY_BYTES = 32
FEDERATION_BYTES = 16

_DOMAIN = b"gossipfl/1/message"
_PREFIX = struct.Struct("<2sBBBBH")
_META = struct.Struct("<I")
_TYPE_MESSAGE = 0
_TYPE_CHUNK = 1


class Kind(IntEnum):
    """What a message says."""

    HELLO = 1
    DELTA = 2
    KEYFRAME = 3
    REQUEST = 4
    STATUS = 5
    GRANT = 6
    BYE = 7


@dataclass(frozen=True, slots=True)
class Header:
    """Who says how much to whom: signed, and believed only when the signature holds.

    ``recipient`` is a public key, or empty for every follower. ``digests`` has one entry per chunk of
    ``CHUNK_BYTES`` (one for an inline body).
    """

    federation: bytes
    sender: bytes
    recipient: bytes
    incarnation: int
    sequence: int
    body_bytes: int
    digests: tuple[bytes, ...]

    def pack(self) -> bytes:
        """Return the canonical encoding: a msgpack array in the order of the fields."""
        return _pack(
            [
                self.federation,
                self.sender,
                self.recipient,
                self.incarnation,
                self.sequence,
                self.body_bytes,
                b"".join(self.digests),
            ]
        )


@dataclass(frozen=True, slots=True)
class Envelope:
    """A parsed but not yet believed message; ``body`` is None when it must be fetched in chunks."""

    kind: int
    minor: int
    header: Header
    signature: bytes
    signed: bytes
    body: memoryview | None

    def body_matches(self) -> bool:
        """Tell whether the inline body is the one that the header's digest names."""
        return self.body is not None and digest(self.body) == self.header.digests[0]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One part of an announced body."""

    federation: bytes
    sender: bytes
    incarnation: int
    sequence: int
    index: int
    data: memoryview


# ---------------------------------------------------------------------------------------------- bodies


@dataclass(frozen=True, slots=True)
class Hello:
    """Handshake: the model's layout, the common initial model, and where the sender's replica stands."""

    layout: bytes
    initial: bytes
    version: int
    round: int
    digest: bytes
    reply: bool
    agent: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """A delta (``version - 1`` to ``version``) or, in a keyframe, the whole public replica.

    ``digest`` is that of the replica after the update. ``acks`` maps a follower's public key to the
    (incarnation, version) of that node's replica that the sender of this update holds.
    """

    round: int
    version: int
    digest: bytes
    codec: int
    payload: memoryview
    acks: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for what is newer than version ``have`` (None: for a keyframe)."""

    have: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """Heartbeat: where the sender's replica stands, what it holds of others, and whether its rounds are over."""

    round: int
    version: int
    digest: bytes
    acks: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    done: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """Credit for ``count`` chunks from ``first`` of the announced message (``incarnation``, ``sequence``)."""

    incarnation: int
    sequence: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender leaves on purpose."""

    reason: str = ""


Body: TypeAlias = Hello | Update | Request | Status | Grant | Bye


# ---------------------------------------------------------------------------------------------- writing


def chunk_spans(body_bytes: int) -> list[tuple[int, int]]:
    """Return (start, end) of each chunk of a body that does not travel inline."""
    return [(start, min(start + CHUNK_BYTES, body_bytes)) for start in range(0, body_bytes, CHUNK_BYTES)]


def travels_inline(body_bytes: int) -> bool:
    """Tell whether a body of that size is carried by its message's own frame."""
    return body_bytes <= CHUNK_BYTES


def chunk_digests(body: Buffer) -> tuple[bytes, ...]:
    """Return the digests that a header carries for ``body``."""
    view = memoryview(body)
    if travels_inline(len(view)):
        return (digest(view),)
    return tuple(digest(view[start:end]) for start, end in chunk_spans(len(view)))


def signing_input(kind: int, header: bytes, minor: int = MINOR) -> bytes:
    """Return the bytes that the sender signs: domain, prefix and header (which holds the body's digests)."""
    return _DOMAIN + _PREFIX.pack(MAGIC, MAJOR, minor, _TYPE_MESSAGE, kind, len(header)) + header


def frame_message(signed: bytes, signature: bytes, body: Buffer) -> bytes:
    """Join a signed header with its body, or leave the body out when it travels in chunks."""
    head = signed[len(_DOMAIN) :]
    if travels_inline(len(body)):
        return b"".join((head, signature, body))
    return head + signature


def frame_chunk(header: Header, index: int, data: Buffer) -> bytes:
    """Build the frame of one chunk of the message that ``header`` announced."""
    packed = _pack([header.federation, header.sender, header.incarnation, header.sequence, index])
    return b"".join((_PREFIX.pack(MAGIC, MAJOR, MINOR, _TYPE_CHUNK, 0, len(packed)), packed, data))


def encode_body(body: Body) -> bytes:
    """Return the bytes of a body: u32 length of the msgpack map, the map, and an update's raw payload."""
    payload: Buffer = b""
    match body:
        case Hello():
            meta: dict[str, Any] = {
                "l": body.layout,
                "i": body.initial,
                "v": body.version,
                "r": body.round,
                "d": body.digest,
                "re": body.reply,
                "a": body.agent,
            }
        case Update():
            meta = {
                "r": body.round,
                "v": body.version,
                "d": body.digest,
                "c": body.codec,
                "k": _acks(body.acks),
            }
            payload = body.payload
        case Request():
            meta = {"h": body.have}
        case Status():
            meta = {"r": body.round, "v": body.version, "d": body.digest, "k": _acks(body.acks), "e": body.done}
        case Grant():
            meta = {"in": body.incarnation, "s": body.sequence, "f": body.first, "n": body.count}
        case Bye():
            meta = {"why": body.reason[:200]}
    packed = _pack(meta)
    return b"".join((_META.pack(len(packed)), packed, payload))


def _acks(acks: Mapping[bytes, tuple[int, int]]) -> dict[bytes, list[int]]:
    return {key: [incarnation, version] for key, (incarnation, version) in acks.items()}


def _pack(tree: Any) -> bytes:
    packed = msgpack.packb(tree, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


# ---------------------------------------------------------------------------------------------- reading


def parse_frame(frame: Buffer) -> Envelope | Chunk:
    """Split a frame into its parts without believing any; raises MessageError with a short reason."""
    view = memoryview(frame)
    if len(view) > MAX_FRAME_BYTES:
        raise MessageError("oversized")
    if len(view) < _PREFIX.size:
        raise MessageError("truncated")
    magic, major, minor, frame_type, kind, header_bytes = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise MessageError("magic")
    if major != MAJOR:
        raise MessageError("version", str(major))
    end = _PREFIX.size + header_bytes
    if len(view) < end:
        raise MessageError("truncated")
    fields = _unpack(view[_PREFIX.size : end], list)
    if frame_type == _TYPE_CHUNK:
        return _parse_chunk(fields, view[end:])
    if frame_type != _TYPE_MESSAGE:
        raise MessageError("type", str(frame_type))
    header = _parse_header(fields)
    body_at = end + SIGNATURE_BYTES
    if len(view) < body_at:
        raise MessageError("truncated")
    inline = travels_inline(header.body_bytes)
    if len(view) - body_at != (header.body_bytes if inline else 0):
        raise MessageError("length")
    return Envelope(
        kind=kind,
        minor=minor,
        header=header,
        signature=bytes(view[end:body_at]),
        signed=_DOMAIN + bytes(view[:end]),
        body=view[body_at:] if inline else None,
    )


def _parse_header(fields: list[Any]) -> Header:
    if len(fields) < 7:
        raise MessageError("header")
    federation, sender, recipient, incarnation, sequence, body_bytes, digests = fields[:7]
    joined = _binary(digests)
    count = len(joined) // DIGEST_BYTES
    size = _counter(body_bytes)
    expected = 1 if travels_inline(size) else -(-size // CHUNK_BYTES)
    if expected > MAX_CHUNKS or len(joined) != expected * DIGEST_BYTES:
        raise MessageError("header", "digests do not fit the body's size")
    if _binary(recipient) and len(recipient) != KEY_BYTES:
        raise MessageError("header", "recipient")
    return Header(
        federation=_binary(federation, FEDERATION_BYTES),
        sender=_binary(sender, KEY_BYTES),
        recipient=recipient,
        incarnation=_counter(incarnation),
        sequence=_counter(sequence),
        body_bytes=size,
        digests=tuple(joined[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in range(count)),
    )


def _parse_chunk(fields: list[Any], data: memoryview) -> Chunk:
    if len(fields) < 5:
        raise MessageError("header")
    federation, sender, incarnation, sequence, index = fields[:5]
    if not 0 < len(data) <= CHUNK_BYTES:
        raise MessageError("length")
    return Chunk(
        federation=_binary(federation, FEDERATION_BYTES),
        sender=_binary(sender, KEY_BYTES),
        incarnation=_counter(incarnation),
        sequence=_counter(sequence),
        index=_counter(index),
        data=data,
    )


def decode_body(kind: int, body: Buffer) -> Body:
    """Read the body of a verified message; raises MessageError, also for a kind this version does not know."""
    view = memoryview(body)
    if len(view) < _META.size:
        raise MessageError("body", "truncated")
    (meta_bytes,) = _META.unpack_from(view)
    if meta_bytes > MAX_META_BYTES or _META.size + meta_bytes > len(view):
        raise MessageError("body", "meta length")
    meta = _unpack(view[_META.size : _META.size + meta_bytes], dict)
    payload = view[_META.size + meta_bytes :]
    if kind not in (Kind.DELTA, Kind.KEYFRAME) and len(payload):
        raise MessageError("body", "trailing bytes")
    match kind:
        case Kind.HELLO:
            return Hello(
                layout=_binary(meta.get("l"), DIGEST_BYTES),
                initial=_binary(meta.get("i"), DIGEST_BYTES),
                version=_counter(meta.get("v")),
                round=_counter(meta.get("r")),
                digest=_binary(meta.get("d"), DIGEST_BYTES),
                reply=bool(meta.get("re")),
                agent=_text(meta.get("a", "")),
            )
        case Kind.DELTA | Kind.KEYFRAME:
            codec = _counter(meta.get("c"))
            return Update(
                round=_counter(meta.get("r")),
                version=_counter(meta.get("v")),
                digest=_binary(meta.get("d"), DIGEST_BYTES),
                codec=codec,
                payload=payload,
                acks=_read_acks(meta.get("k", {})),
            )
        case Kind.REQUEST:
            have = meta.get("h")
            return Request(have=None if have is None else _counter(have))
        case Kind.STATUS:
            return Status(
                round=_counter(meta.get("r")),
                version=_counter(meta.get("v")),
                digest=_binary(meta.get("d"), DIGEST_BYTES),
                acks=_read_acks(meta.get("k", {})),
                done=bool(meta.get("e")),
            )
        case Kind.GRANT:
            return Grant(*(_counter(meta.get(key)) for key in ("in", "s", "f", "n")))
        case Kind.BYE:
            return Bye(reason=_text(meta.get("why", "")))
        case _:
            raise MessageError("kind", str(kind))


def _unpack(view: memoryview, expected: type) -> Any:
    """Read one shallow msgpack object; every limit is checked by the reader before it allocates."""
    try:
        tree = msgpack.unpackb(
            view,
            raw=False,
            strict_map_key=False,
            max_str_len=1024,
            max_bin_len=MAX_META_BYTES,
            max_array_len=64,
            max_map_len=1024,
            max_ext_len=0,
        )
    except (
        ValueError,
        TypeError,
        RecursionError,
        UnicodeDecodeError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise MessageError("msgpack", type(error).__name__) from None
    if not isinstance(tree, expected):
        raise MessageError("msgpack", f"not a {expected.__name__}")
    return tree


def _binary(value: Any, length: int | None = None) -> bytes:
    if not isinstance(value, bytes) or (length is not None and len(value) != length):
        raise MessageError("field", "bytes")
    return value


def _counter(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_COUNTER:
        raise MessageError("field", "counter")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise MessageError("field", "text")
    return value


def _read_acks(value: Any) -> dict[bytes, tuple[int, int]]:
    if not isinstance(value, dict):
        raise MessageError("field", "acks")
    acks = {}
    for key, pair in value.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise MessageError("field", "acks")
        acks[_binary(key, KEY_BYTES)] = (_counter(pair[0]), _counter(pair[1]))
    return acks
