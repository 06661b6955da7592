"""What messages say: the bodies, and their bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

from gossipfl.digest import DIGEST_BYTES
from gossipfl.errors import MessageError
from gossipfl.messages.bounded import KEY_BYTES, MAX_META_BYTES, Buffer, binary, counter, pack, text, unpack
from gossipfl.messages.statements import Statement, pack_statements, unpack_statements

SEEN_BYTES = 16

_META = struct.Struct("<I")


class Kind(IntEnum):
    """What a message says."""

    HELLO = 1
    DELTA = 2
    KEYFRAME = 3
    REQUEST = 4
    STATUS = 5
    GRANT = 6
    BYE = 7
    MEMBERSHIP = 8
    EVIDENCE = 9


_KINDS = frozenset(Kind)
_WITH_PAYLOAD = frozenset({Kind.DELTA, Kind.KEYFRAME, Kind.MEMBERSHIP, Kind.EVIDENCE})


@dataclass(frozen=True, slots=True)
class Hello:
    """Handshake: the model's layout, the common initial model, and where the sender's replica stands.

    ``membership``: the version in force at the sender; 0 where memberships have no versions.
    """

    layout: bytes
    initial: bytes
    version: int
    round: int
    digest: bytes
    reply: bool
    agent: str = ""
    membership: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node holds of another's replica: the start of its digest is enough to tell whether two hold the same."""

    incarnation: int
    version: int
    digest: bytes

    @classmethod
    def of(cls, incarnation: int, version: int, digest: bytes) -> Seen:
        """Return what is told of a replica."""
        return cls(incarnation, version, digest[:SEEN_BYTES])


@dataclass(frozen=True, slots=True)
class Update:
    """A delta (``version - 1`` to ``version``) or, in a keyframe, the whole public replica.

    ``digest`` is that of the replica after the update. ``acks`` maps a follower's public key to the
    (incarnation, version) of that node's replica that the sender of this update holds. ``witness`` tells those who
    follow the same nodes what it holds of them.
    """

    round: int
    version: int
    digest: bytes
    codec: int
    payload: memoryview
    acks: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    witness: Mapping[bytes, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for what is newer than version ``have`` (None: for a keyframe)."""

    have: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """Heartbeat: where the sender's replica stands, what it holds of others, and whether its rounds are over.

    ``membership`` as in ``Hello``.
    """

    round: int
    version: int
    digest: bytes
    acks: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    done: bool = False
    membership: int = 0
    witness: Mapping[bytes, Seen] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Charter:
    """A membership document: it is believed for its own signatures, whoever brings it."""

    version: int
    document: memoryview


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a third node has signed: one statement, to compare with, or two that contradict each other."""

    statements: tuple[Statement, ...]


Body: TypeAlias = Hello | Update | Request | Status | Grant | Bye | Charter | Evidence


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
                **_membership(body.membership),
            }
        case Update():
            meta = {
                "r": body.round,
                "v": body.version,
                "d": body.digest,
                "c": body.codec,
                "k": _acks(body.acks),
                **_witness(body.witness),
            }
            payload = body.payload
        case Request():
            meta = {"h": body.have}
        case Status():
            meta = {
                "r": body.round,
                "v": body.version,
                "d": body.digest,
                "k": _acks(body.acks),
                "e": body.done,
                **_membership(body.membership),
                **_witness(body.witness),
            }
        case Grant():
            meta = {"in": body.incarnation, "s": body.sequence, "f": body.first, "n": body.count}
        case Bye():
            meta = {"why": body.reason[:200]}
        case Charter():
            meta = {"n": body.version}
            payload = body.document
        case Evidence():
            meta = {}
            payload = pack_statements(body.statements)
    packed = pack(meta)
    return b"".join((_META.pack(len(packed)), packed, payload))


def _membership(version: int) -> dict[str, int]:
    return {"m": version} if version else {}


def _witness(witness: Mapping[bytes, Seen]) -> dict[str, Any]:
    seen = {key: [each.incarnation, each.version, each.digest] for key, each in witness.items()}
    return {"w": seen} if seen else {}


def _acks(acks: Mapping[bytes, tuple[int, int]]) -> dict[bytes, list[int]]:
    return {key: [incarnation, version] for key, (incarnation, version) in acks.items()}


def decode_body(kind: int, body: Buffer) -> Body:
    """Read the body of a verified message; raises MessageError, also for a kind this version does not know."""
    if kind not in _KINDS:
        raise MessageError("kind", str(kind))
    view = memoryview(body)
    if len(view) < _META.size:
        raise MessageError("body", "truncated")
    (meta_bytes,) = _META.unpack_from(view)
    if meta_bytes > MAX_META_BYTES or _META.size + meta_bytes > len(view):
        raise MessageError("body", "meta length")
    meta = unpack(view[_META.size : _META.size + meta_bytes], dict)
    payload = view[_META.size + meta_bytes :]
    if kind not in _WITH_PAYLOAD and len(payload):
        raise MessageError("body", "trailing bytes")
    match kind:
        case Kind.HELLO:
            return Hello(
                layout=binary(meta.get("l"), DIGEST_BYTES),
                initial=binary(meta.get("i"), DIGEST_BYTES),
                version=counter(meta.get("v")),
                round=counter(meta.get("r")),
                digest=binary(meta.get("d"), DIGEST_BYTES),
                reply=bool(meta.get("re")),
                agent=text(meta.get("a", "")),
                membership=counter(meta.get("m", 0)),
            )
        case Kind.DELTA | Kind.KEYFRAME:
            codec = counter(meta.get("c"))
            return Update(
                round=counter(meta.get("r")),
                version=counter(meta.get("v")),
                digest=binary(meta.get("d"), DIGEST_BYTES),
                codec=codec,
                payload=payload,
                acks=_read_acks(meta.get("k", {})),
                witness=_read_witness(meta.get("w", {})),
            )
        case Kind.REQUEST:
            have = meta.get("h")
            return Request(have=None if have is None else counter(have))
        case Kind.STATUS:
            return Status(
                round=counter(meta.get("r")),
                version=counter(meta.get("v")),
                digest=binary(meta.get("d"), DIGEST_BYTES),
                acks=_read_acks(meta.get("k", {})),
                done=bool(meta.get("e")),
                membership=counter(meta.get("m", 0)),
                witness=_read_witness(meta.get("w", {})),
            )
        case Kind.GRANT:
            return Grant(*(counter(meta.get(key)) for key in ("in", "s", "f", "n")))
        case Kind.MEMBERSHIP:
            return Charter(counter(meta.get("n")), payload)
        case Kind.EVIDENCE:
            return Evidence(unpack_statements(payload))
        case _:
            return Bye(reason=text(meta.get("why", "")))


def _read_witness(value: Any) -> dict[bytes, Seen]:
    if not isinstance(value, dict):
        raise MessageError("field", "witness")
    seen = {}
    for key, each in value.items():
        if not isinstance(each, list) or len(each) < 3:
            raise MessageError("field", "witness")
        seen[binary(key, KEY_BYTES)] = Seen(counter(each[0]), counter(each[1]), binary(each[2], SEEN_BYTES))
    return seen


def _read_acks(value: Any) -> dict[bytes, tuple[int, int]]:
    if not isinstance(value, dict):
        raise MessageError("field", "acks")
    acks = {}
    for key, pair in value.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise MessageError("field", "acks")
        acks[binary(key, KEY_BYTES)] = (counter(pair[0]), counter(pair[1]))
    return acks
