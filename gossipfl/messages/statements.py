"""Signed statements, and the proof that two of them make against their sender.

The header of a message that tells where its sender's replica stands ends with a statement: version and digest of that
replica. With the signature it can be shown to anybody, without the body. A sender has *equivocated* that has signed,
in one incarnation,

* two different headers under one sequence number, or
* two different digests for one version of its replica.

No loss, restart or delay makes an honest node do that: sequence numbers and versions only grow within an incarnation,
and an incarnation is never used twice.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gossipfl.errors import ConfigError, MessageError
from gossipfl.identity import Verifier, peer_id_of
from gossipfl.messages.bounded import Buffer
from gossipfl.messages.frames import SIGNATURE_BYTES, Header, parse_signed

TYPE: Final = "gossipfl evidence 1"
MAX_EVIDENCE_BYTES: Final = 256 * 1024

_LENGTHS: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Statement:
    """A signed header: ``signed`` is what the ``signature`` is over."""

    signed: bytes
    signature: bytes
    header: Header

    @classmethod
    def of(cls, signed: bytes, signature: bytes) -> Statement:
        """Read a statement; raises MessageError where it is none. The signature is not checked."""
        if len(signature) != SIGNATURE_BYTES:
            raise MessageError("statement", "signature")
        return cls(signed, signature, parse_signed(signed))

    @property
    def genuine(self) -> bool:
        """Whether its sender has signed it."""
        try:
            return Verifier(self.header.sender).verify(self.signed, self.signature)
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Proof:
    """Two statements of one sender that contradict each other."""

    one: Statement
    other: Statement

    @property
    def sender(self) -> bytes:
        """The public key of who signed both."""
        return self.one.header.sender

    @property
    def contradiction(self) -> str:
        """What both are about and say differently, for people; empty where they do not."""
        first, second = self.one.header, self.other.header
        same = (first.federation, first.sender, first.incarnation) == (
            second.federation,
            second.sender,
            second.incarnation,
        )
        if not same or self.one.signed == self.other.signed:
            return ""
        if first.sequence == second.sequence:
            return f"two messages with the sequence number {first.sequence} in incarnation {first.incarnation}"
        stated, also = first.stated, second.stated
        if stated is None or also is None or stated.version != also.version or stated.digest == also.digest:
            return ""
        return (
            f"two digests for version {stated.version} of its replica in incarnation {first.incarnation}: "
            f"{stated.digest.hex()[:16]}... and {also.digest.hex()[:16]}..."
        )

    @property
    def holds(self) -> bool:
        """Whether the statements contradict each other, and are both genuine."""
        return bool(self.contradiction) and self.one.genuine and self.other.genuine


def pack_statements(statements: Sequence[Statement]) -> bytes:
    """Return the bytes of some statements: of each its length (u32), what is signed, and the signature."""
    parts = []
    for statement in statements:
        parts += [_LENGTHS.pack(len(statement.signed)), statement.signed, statement.signature]
    return b"".join(parts)


def unpack_statements(data: Buffer) -> tuple[Statement, ...]:
    """Read one or two statements; raises MessageError for anything else."""
    view, found = memoryview(data), list[Statement]()
    while len(view):
        if len(found) == 2 or len(view) < _LENGTHS.size:
            raise MessageError("statement", "length")
        (length,) = _LENGTHS.unpack_from(view)
        end = _LENGTHS.size + length + SIGNATURE_BYTES
        if end > len(view):
            raise MessageError("statement", "length")
        signed = bytes(view[_LENGTHS.size : _LENGTHS.size + length])
        found.append(Statement.of(signed, bytes(view[end - SIGNATURE_BYTES : end])))
        view = view[end:]
    if not found:
        raise MessageError("statement", "none")
    return tuple(found)


def format_proof(proof: Proof) -> str:
    """Return a proof as JSON, which anybody can check with ``read_proof``."""
    header = proof.one.header
    tree = {
        "type": TYPE,
        "sender": peer_id_of(proof.sender),
        "federation": header.federation.hex(),
        "says": proof.contradiction,
        "statements": [
            {
                "signed": base64.b64encode(each.signed).decode(),
                "signature": base64.b64encode(each.signature).decode(),
            }
            for each in (proof.one, proof.other)
        ],
    }
    return json.dumps(tree, indent=1) + "\n"


def read_proof(data: bytes | str) -> Proof:
    """Read a proof and check it; raises ConfigError, in one line, where it proves nothing."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise ConfigError(f"evidence has at most {MAX_EVIDENCE_BYTES} bytes, not {len(data)}")
    try:
        tree: Any = json.loads(data)
        one, other = (
            Statement.of(
                base64.b64decode(each["signed"], validate=True), base64.b64decode(each["signature"], validate=True)
            )
            for each in tree["statements"]
        )
    except (ValueError, TypeError, LookupError, RecursionError, MessageError) as error:
        raise ConfigError(f"no evidence: {type(error).__name__}: {str(error)[:100]}") from None
    proof = Proof(one, other)
    if not proof.contradiction:
        raise ConfigError("no evidence: the two statements do not contradict each other")
    if not proof.holds:
        raise ConfigError("no evidence: a signature does not hold")
    return proof
