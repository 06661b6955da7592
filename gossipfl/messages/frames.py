"""Frames: signed messages and the chunks of large bodies, as a transport carries them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from gossipfl.digest import DIGEST_BYTES, digest
from gossipfl.errors import MessageError
from gossipfl.messages.bounded import KEY_BYTES, Buffer, binary, counter, pack, unpack

MAGIC = b"gf"
MAJOR = 1
MINOR = 1
MAX_FRAME_BYTES = 1 << 20
CHUNK_BYTES = 960 * 1024
"""Size of a body's chunks; with its header a chunk stays below ``MAX_FRAME_BYTES``."""
MAX_CHUNKS = 1500
"""Bounds an announcement: 1,500 chunks are 1.4 GiB of body."""
SIGNATURE_BYTES = 64
FEDERATION_BYTES = 16

MAX_SIGNED_BYTES = 64 * 1024

_DOMAIN = b"gossipfl/1/message"
_PREFIX = struct.Struct("<2sBBBBH")
_TYPE_MESSAGE = 0
_TYPE_CHUNK = 1


@dataclass(frozen=True, slots=True)
class Stated:
    """Where the sender's replica stands: its version, and its digest."""

    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """Who says how much to whom: signed, and believed only when the signature holds.

    ``recipient`` is a public key, or empty for every follower. ``digests`` has one entry per chunk of
    ``CHUNK_BYTES`` (one for an inline body). ``stated``: in messages that tell where the sender's replica stands.
    """

    federation: bytes
    sender: bytes
    recipient: bytes
    incarnation: int
    sequence: int
    body_bytes: int
    digests: tuple[bytes, ...]
    stated: Stated | None = None

    def pack(self) -> bytes:
        """Return the canonical encoding: a msgpack array in the order of the fields."""
        fields: list[Any] = [
            self.federation,
            self.sender,
            self.recipient,
            self.incarnation,
            self.sequence,
            self.body_bytes,
            b"".join(self.digests),
        ]
        if self.stated is not None:
            fields.append([self.stated.version, self.stated.digest])
        return pack(fields)


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
    packed = pack([header.federation, header.sender, header.incarnation, header.sequence, index])
    return b"".join((_PREFIX.pack(MAGIC, MAJOR, MINOR, _TYPE_CHUNK, 0, len(packed)), packed, data))


def read_prefix(view: memoryview) -> tuple[int, int, int, int]:
    """Return minor version, type, kind and header length of a frame; raises MessageError where it is none of ours."""
    if len(view) > MAX_FRAME_BYTES:
        raise MessageError("oversized")
    if len(view) < _PREFIX.size:
        raise MessageError("truncated")
    magic, major, minor, frame_type, kind, header_bytes = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise MessageError("magic")
    if major != MAJOR:
        raise MessageError("version", str(major))
    return minor, frame_type, kind, header_bytes


def parse_frame(frame: Buffer) -> Envelope | Chunk:
    """Split a frame into its parts without believing any; raises MessageError with a short reason."""
    view = memoryview(frame)
    minor, frame_type, kind, header_bytes = read_prefix(view)
    end = _PREFIX.size + header_bytes
    if len(view) < end:
        raise MessageError("truncated")
    fields = unpack(view[_PREFIX.size : end], list)
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


def parse_signed(signed: bytes) -> Header:
    """Return the header in the bytes that a signature is over; raises MessageError where they are none."""
    view = memoryview(signed)
    if len(view) > MAX_SIGNED_BYTES or bytes(view[: len(_DOMAIN)]) != _DOMAIN:
        raise MessageError("statement", "domain")
    view = view[len(_DOMAIN) :]
    if len(view) < _PREFIX.size:
        raise MessageError("truncated")
    magic, major, _, frame_type, _, header_bytes = _PREFIX.unpack_from(view)
    if (magic, major, frame_type) != (MAGIC, MAJOR, _TYPE_MESSAGE) or len(view) != _PREFIX.size + header_bytes:
        raise MessageError("statement", "prefix")
    return _parse_header(unpack(view[_PREFIX.size :], list))


def _parse_header(fields: list[Any]) -> Header:
    if len(fields) < 7:
        raise MessageError("header")
    federation, sender, recipient, incarnation, sequence, body_bytes, digests = fields[:7]
    joined = binary(digests)
    count = len(joined) // DIGEST_BYTES
    size = counter(body_bytes)
    expected = 1 if travels_inline(size) else -(-size // CHUNK_BYTES)
    if expected > MAX_CHUNKS or len(joined) != expected * DIGEST_BYTES:
        raise MessageError("header", "digests do not fit the body's size")
    if binary(recipient) and len(recipient) != KEY_BYTES:
        raise MessageError("header", "recipient")
    return Header(
        federation=binary(federation, FEDERATION_BYTES),
        sender=binary(sender, KEY_BYTES),
        recipient=recipient,
        incarnation=counter(incarnation),
        sequence=counter(sequence),
        body_bytes=size,
        digests=tuple(joined[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in range(count)),
        stated=_parse_stated(fields[7]) if len(fields) > 7 else None,
    )


def _parse_stated(value: Any) -> Stated | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) < 2:
        raise MessageError("field", "stated")
    return Stated(counter(value[0]), binary(value[1], DIGEST_BYTES))


def _parse_chunk(fields: list[Any], data: memoryview) -> Chunk:
    if len(fields) < 5:
        raise MessageError("header")
    federation, sender, incarnation, sequence, index = fields[:5]
    if not 0 < len(data) <= CHUNK_BYTES:
        raise MessageError("length")
    return Chunk(
        federation=binary(federation, FEDERATION_BYTES),
        sender=binary(sender, KEY_BYTES),
        incarnation=counter(incarnation),
        sequence=counter(sequence),
        index=counter(index),
        data=data,
    )
