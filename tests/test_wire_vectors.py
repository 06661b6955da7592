"""The published test vectors are what this implementation writes, and what it reads."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
from wire_vectors import PATH, as_json, make_vectors

from gossipfl.digest import digest
from gossipfl.errors import MessageError
from gossipfl.gossip import affairs, exchange, post
from gossipfl.identity import Identity, Verifier, peer_id_of
from gossipfl.membership import federation_id_of
from gossipfl.messages import (
    Chunk,
    Envelope,
    Header,
    Kind,
    Proof,
    Stated,
    Statement,
    Veil,
    bodies,
    bounded,
    chunk_spans,
    decode_body,
    frames,
    parse_frame,
    sealed,
    statements,
)

VECTORS: dict[str, Any] = json.loads(PATH.read_text())


def unhex(fields: dict[str, Any]) -> Header:
    return Header(
        federation=bytes.fromhex(fields["federation"]),
        sender=bytes.fromhex(fields["sender"]),
        recipient=bytes.fromhex(fields["recipient"]),
        incarnation=fields["incarnation"],
        sequence=fields["sequence"],
        body_bytes=fields["body_bytes"],
        digests=tuple(bytes.fromhex(entry) for entry in fields["digests"]),
        stated=None if fields["stated"] is None else Stated(fields["stated"][0], bytes.fromhex(fields["stated"][1])),
    )


def test_the_file_is_what_the_script_makes() -> None:
    assert make_vectors() == VECTORS


def test_names_and_keys() -> None:
    assert federation_id_of(VECTORS["federation"]["name"]).hex() == VECTORS["federation"]["id"]
    for entry in VECTORS["identities"]:
        identity = Identity.from_seed(bytes.fromhex(entry["seed"]))
        assert identity.public_key.hex() == entry["public_key"]
        assert peer_id_of(identity.public_key) == entry["peer_id"]


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: vector["name"])
def test_a_message_is_read_as_it_says(vector: dict[str, Any]) -> None:
    envelope = parse_frame(bytes.fromhex(vector["frame"]))
    assert isinstance(envelope, Envelope)
    assert envelope.kind == vector["kind"]
    assert envelope.header == unhex(vector["header"])
    assert envelope.signed.hex() == vector["signed"]
    assert envelope.signature.hex() == vector["signature"]
    assert Verifier(envelope.header.sender).verify(envelope.signed, envelope.signature)
    assert envelope.body_matches()
    assert envelope.body is not None
    body = decode_body(envelope.kind, envelope.body)
    for name, expected in vector["body"].items():
        assert as_json(getattr(body, name)) == expected, name


def test_a_sealed_frame_is_opened_as_it_says() -> None:
    vector = VECTORS["sealed"]
    veil = Veil({vector["epoch"]: bytes.fromhex(vector["key"])}, bytes)
    assert bytes(veil.open(bytes.fromhex(vector["sealed"]))).hex() == vector["frame"]


def test_the_evidence_is_a_proof() -> None:
    vector = next(each for each in VECTORS["messages"] if "contradict" in each["name"])
    one, other = (
        Statement.of(bytes.fromhex(each["signed"]), bytes.fromhex(each["signature"]))
        for each in vector["body"]["statements"]
    )
    assert Proof(one, other).holds


def test_every_kind_has_a_vector() -> None:
    assert {vector["kind"] for vector in VECTORS["messages"]} == set(Kind)


def test_a_large_body_is_announced_and_cut_as_it_says() -> None:
    large = VECTORS["large"]
    body = bytes(i % 251 for i in range(large["body_bytes"]))
    envelope = parse_frame(bytes.fromhex(large["frame"]))
    assert isinstance(envelope, Envelope)
    assert envelope.header == unhex(large["header"])
    assert envelope.body is None
    assert Verifier(envelope.header.sender).verify(envelope.signed, envelope.signature)
    assert [(chunk["start"], chunk["end"]) for chunk in large["chunks"]] == chunk_spans(len(body))
    for vector in large["chunks"]:
        frame = bytes.fromhex(vector["frame_head"]) + body[vector["start"] : vector["end"]]
        assert digest(frame).hex() == vector["frame_digest"]
        chunk = parse_frame(frame)
        assert isinstance(chunk, Chunk)
        assert chunk.index == vector["index"]
        assert digest(chunk.data) == envelope.header.digests[chunk.index]


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["reason"])
def test_a_broken_frame_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(MessageError) as raised:
        parse_frame(bytes.fromhex(vector["frame"]))
    assert raised.value.reason == vector["reason"]


def test_the_document_names_every_counter() -> None:
    document = (PATH.parent / "protocol.md").read_text()
    wire = "".join(inspect.getsource(part) for part in (bodies, bounded, frames, sealed, statements))
    parsing = set(re.findall(r'MessageError\("([a-z-]+)"', wire))
    source = "".join(inspect.getsource(part) for part in (post, exchange, affairs))
    dropped = set(re.findall(r'(?:_drop\(|dropped\[)"([a-z-]+)"', source))
    offences = {f"offence-{reason}" for reason in re.findall(r'offend\(peer, "([a-z-]+)"', source)}
    assert len(parsing) > 8
    assert len(dropped) > 10
    assert len(offences) > 3
    inside_bodies = {"body", "statement"} & parsing  # counted as an offence, under that name
    missing = {name for name in (parsing - inside_bodies) | dropped | offences if f"`{name}`" not in document}
    assert missing == set()
