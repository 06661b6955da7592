"""Makes ``docs/wire/vectors.json``, the test vectors of the wire format: ``python tests/wire_vectors.py``.

The tests check that the file is what this module makes, and that it is what the implementation reads.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from gossipfl.codec import make_codec
from gossipfl.digest import digest, vector_digest
from gossipfl.gossip.post import stated_in
from gossipfl.identity import Identity
from gossipfl.membership import federation_id_of
from gossipfl.messages import (
    CHUNK_BYTES,
    Body,
    Bye,
    Charter,
    Evidence,
    Grant,
    Header,
    Hello,
    Kind,
    Request,
    Seen,
    Stated,
    Statement,
    Status,
    Update,
    Veil,
    chunk_digests,
    chunk_spans,
    encode_body,
    frame_chunk,
    frame_message,
    signing_input,
)

PATH = Path(__file__).parent.parent / "docs" / "wire" / "vectors.json"
FEDERATION = "vectors"
SEEDS = [bytes([n]) * 32 for n in (1, 2)]
LARGE_BODY_BYTES = CHUNK_BYTES + 1000


def make_vectors() -> dict[str, Any]:
    """Return the whole file's content."""
    alice, bob = (Identity.from_seed(seed) for seed in SEEDS)
    return {
        "about": "Test vectors of the gossipfl wire format, version 1.1; bytes in hexadecimal. See protocol.md.",
        "federation": {"name": FEDERATION, "id": federation_id_of(FEDERATION).hex()},
        "identities": [
            {"seed": seed.hex(), "public_key": i.public_key.hex(), "peer_id": i.peer_id}
            for seed, i in zip(SEEDS, (alice, bob), strict=True)
        ],
        "messages": [_message(alice, bob, *entry) for entry in _dialogue(alice, bob)],
        "sealed": _sealed(alice),
        "large": _large(alice),
        "refused": _refused(alice),
    }


def _dialogue(alice: Identity, bob: Identity) -> list[tuple[str, Kind, Body, bool]]:
    import torch

    codec = make_codec("float32")
    initial = torch.tensor([0.0, 1.0, -2.0])
    delta = torch.tensor([0.5, -0.25, 4.0])
    layout, start, moved = digest(b"a layout"), vector_digest(initial), vector_digest(initial + delta)
    payload = memoryview(codec.encode(delta).payload)
    whole = memoryview(codec.encode(initial + delta).payload)
    acks = {bob.public_key: (7, 3)}
    witness = {bob.public_key: Seen.of(7, 3, digest(b"a replica"))}
    one, other = (_statement(bob, Status(0, 1, digest(said))) for said in (b"to one", b"to another"))
    return [
        ("hello to every neighbour", Kind.HELLO, Hello(layout, start, 0, 0, start, reply=False), False),
        ("hello in reply", Kind.HELLO, Hello(layout, start, 1, 0, moved, reply=True, agent="example/1"), True),
        ("delta, codec float32, (0.5, -0.25, 4)", Kind.DELTA, Update(0, 1, moved, 1, payload, acks), False),
        ("keyframe, (0.5, 0.75, 2)", Kind.KEYFRAME, Update(0, 1, moved, 1, whole), True),
        ("request for what is newer than version 4", Kind.REQUEST, Request(4), True),
        ("request for a keyframe", Kind.REQUEST, Request(None), True),
        ("status", Kind.STATUS, Status(0, 1, moved, acks), False),
        ("status of a node whose rounds are over", Kind.STATUS, Status(2**40, 2**41, moved, {}, done=True), False),
        ("grant of chunks 6 to 11", Kind.GRANT, Grant(7, 90, 6, 6), True),
        ("good-bye", Kind.BYE, Bye("done"), False),
        ("hello, membership version 3", Kind.HELLO, Hello(layout, start, 0, 0, start, False, "", 3), False),
        ("status with a testimony", Kind.STATUS, Status(0, 1, moved, acks, False, 3, witness), False),
        ("a membership, which is JSON", Kind.MEMBERSHIP, Charter(3, memoryview(b"{}")), True),
        ("evidence: a statement", Kind.EVIDENCE, Evidence((one,)), True),
        ("evidence: two that contradict each other", Kind.EVIDENCE, Evidence((one, other)), False),
    ]


def _message(alice: Identity, bob: Identity, name: str, kind: Kind, body: Body, addressed: bool) -> dict[str, Any]:
    encoded = encode_body(body)
    header = _header(alice, encoded, bob.public_key if addressed else b"", stated_in(body))
    signed = signing_input(kind, header.pack())
    signature = alice.sign(signed)
    return {
        "name": name,
        "kind": int(kind),
        "header": _header_fields(header),
        "body": _body_fields(body),
        "signed": signed.hex(),
        "signature": signature.hex(),
        "frame": frame_message(signed, signature, encoded).hex(),
    }


def _header(sender: Identity, body: bytes, recipient: bytes = b"", stated: Stated | None = None) -> Header:
    federation, digests = federation_id_of(FEDERATION), chunk_digests(body)
    return Header(federation, sender.public_key, recipient, 5, 70_000, len(body), digests, stated)


def _statement(sender: Identity, status: Status) -> Statement:
    header = _header(sender, encode_body(status), b"", stated_in(status))
    signed = signing_input(Kind.STATUS, header.pack())
    return Statement(signed, sender.sign(signed), header)


def _sealed(alice: Identity) -> dict[str, Any]:
    body = encode_body(Bye("done"))
    signed = signing_input(Kind.BYE, _header(alice, body).pack())
    frame = frame_message(signed, alice.sign(signed), body)
    key, salt = bytes(range(32)), bytes(range(100, 124))
    sealed = Veil({3: key}, lambda _: salt).seal(frame)
    return {"key": key.hex(), "epoch": 3, "salt": salt.hex(), "frame": frame.hex(), "sealed": sealed.hex()}


def _header_fields(header: Header) -> dict[str, Any]:
    return {
        "federation": header.federation.hex(),
        "sender": header.sender.hex(),
        "recipient": header.recipient.hex(),
        "incarnation": header.incarnation,
        "sequence": header.sequence,
        "body_bytes": header.body_bytes,
        "digests": [entry.hex() for entry in header.digests],
        "stated": None if header.stated is None else [header.stated.version, header.stated.digest.hex()],
    }


def _body_fields(body: Body) -> dict[str, Any]:
    return {name: as_json(getattr(body, name)) for name in body.__dataclass_fields__}


def as_json(value: Any) -> Any:
    """Return a field of a body as the file has it."""
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if isinstance(value, dict):
        return {key.hex(): as_json(each) for key, each in value.items()}
    match value:
        case Seen():
            return [value.incarnation, value.version, value.digest.hex()]
        case Statement():
            return {"signed": value.signed.hex(), "signature": value.signature.hex()}
        case tuple():
            return [as_json(each) for each in value]
    return value


def _large(alice: Identity) -> dict[str, Any]:
    body = bytes(i % 251 for i in range(LARGE_BODY_BYTES))
    header = _header(alice, body)
    signed = signing_input(Kind.KEYFRAME, header.pack())
    spans = chunk_spans(len(body))
    chunks = [frame_chunk(header, index, body[start:end]) for index, (start, end) in enumerate(spans)]
    return {
        "about": "A body of body_bytes bytes, byte i being i mod 251, is announced by frame and follows in chunks.",
        "body_bytes": len(body),
        "header": _header_fields(header),
        "frame": frame_message(signed, alice.sign(signed), body).hex(),
        "chunks": [
            {
                "index": index,
                "start": start,
                "end": end,
                "frame_head": frame[: len(frame) - (end - start)].hex(),
                "frame_digest": digest(frame).hex(),
            }
            for index, ((start, end), frame) in enumerate(zip(spans, chunks, strict=True))
        ],
    }


def _refused(alice: Identity) -> list[dict[str, str]]:
    body = encode_body(Bye("done"))
    signed = signing_input(Kind.BYE, _header(alice, body).pack())
    frame = frame_message(signed, alice.sign(signed), body)
    cases = {
        "magic": b"gx" + frame[2:],
        "version": frame[:2] + b"\x02" + frame[3:],
        "type": frame[:4] + b"\x07" + frame[5:],
        "truncated": frame[:7],
        "length": frame[:-1],
        "msgpack": frame[:8] + b"\xc1" + frame[9:],
        "header": frame[:6] + struct.pack("<H", 1) + b"\x90" + bytes(64),
    }
    return [{"reason": reason, "frame": content.hex()} for reason, content in cases.items()]


def main() -> None:
    """Write the file."""
    PATH.write_text(json.dumps(make_vectors(), indent=1) + "\n")


if __name__ == "__main__":
    main()
