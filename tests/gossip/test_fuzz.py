"""100,000 altered messages against a core: no exception, no belief from an unsigned byte, bounded memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import fields

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Lab, raw_body, says_the_same
from membership.documents import ISSUED, SIGNERS, make_first

from gossipfl.digest import vector_digest
from gossipfl.errors import MessageError
from gossipfl.gossip import GossipCore, Send
from gossipfl.gossip.post import MUTE_MAX_S, statement_of
from gossipfl.messages import (
    Body,
    Bye,
    Charter,
    Envelope,
    Evidence,
    Kind,
    Status,
    decode_body,
    parse_frame,
)
from gossipfl.provision.changes import renewed

SIZE = 200
MESSAGES = 100_000
SIGNED_EVERY = 25
"""One message in so many is re-signed with the key of a neighbour: signing and verifying are the slow part."""
SMALL_CHUNK = 600

Belief = tuple[object, ...]


def record_dialogue(*, versions: bool = False) -> tuple[Lab, list[bytes]]:
    """Return a lab of two in mid-dialogue, and every frame that went between them: all kinds, and chunks."""
    lab = Lab(2, SIZE, mode="async", documents=[make_first(2)] if versions else [])
    corpus: list[bytes] = []
    perform = lab.perform

    def recording(node: int, effects: list) -> list:  # type: ignore[type-arg]
        letters = perform(node, effects)
        corpus.extend(letter.frame for letter in letters)
        return letters

    lab.perform = recording  # type: ignore[method-assign,assignment]
    lab.start()
    for value in range(6):
        lab.publish(1, torch.full((SIZE,), float(value)))
        if value == 3:
            lab.wire.clear()
        lab.publish(0)
        lab.mix(0)
        lab.mix(1)
        lab.wait(0.6)
    lab.restart(1)
    lab.wait(2)
    corpus.append(lab.forge(1, Kind.BYE, Bye("done")))
    document = renewed(make_first(2), ISSUED).signed_by(SIGNERS[0])
    corpus.append(lab.forge(1, Kind.MEMBERSHIP, Charter(2, memoryview(document.encode()))))
    status = parse_frame(lab.forge(1, Kind.STATUS, Status(0, 1, bytes(32))))
    assert isinstance(status, Envelope)
    corpus.append(lab.forge(1, Kind.EVIDENCE, Evidence((statement_of(status),))))
    corpus += refresh(lab, corpus)
    (announcement,) = lab.publish(1, torch.full((SIZE,), 7.0))  # in the chunked case its chunks stay under way
    lab.wire.clear()
    for letter in lab.deliver(announcement):
        lab.deliver(letter)
    lab.wire.clear()
    return lab, corpus


def refresh(lab: Lab, corpus: list[bytes]) -> list[bytes]:
    """Sign what has been said again, as node 1 and unheard so far: only the signature stands before these."""
    fresh = []
    for number, frame in enumerate(corpus):
        parsed = parse_frame(frame)
        if isinstance(parsed, Envelope) and parsed.body is not None:
            fresh.append(lab.forge(1, parsed.kind, bytes(parsed.body), sequence=5_000_000 + number))
    return fresh * 3


def beliefs(lab: Lab) -> Belief:
    """Return all that node 0 holds, its counters aside."""
    core = lab.cores[0]
    post = core.exchange.post
    channels = tuple(
        (repr(channel.window), channel.offences, channel.mutes, channel.muted_until, tuple(channel.assemblies))
        for channel in post.channels.values()
    )
    assemblies = tuple(
        (tuple(assembly.missing), assembly.stalls, bytes(assembly.body))
        for channel in post.channels.values()
        for assembly in channel.assemblies.values()
    )
    followed = tuple(
        (
            *(repr(getattr(other, field.name)) for field in fields(other) if field.name not in {"vector", "waiting"}),
            sorted(other.waiting),
            other.vector is not None and vector_digest(other.vector),
        )
        for other in core.followed.values()
    )
    own = core.exchange.own
    return (channels, assemblies, followed, own.version, vector_digest(own.vector), core.round, core.phase)


# ---------------------------------------------------------------------------------------------- mutations

Mutation = Callable[[random.Random, bytearray, list[bytes]], bytearray]


def flip_bits(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    for _ in range(draw.randint(1, 8)):
        frame[draw.randrange(len(frame))] ^= 1 << draw.randrange(8)
    return frame


def truncate(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    return frame[: draw.randrange(len(frame))]


def extend(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    return frame + draw.randbytes(draw.randint(1, 40))


def splice(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    other = draw.choice(corpus)
    return frame[: draw.randrange(len(frame))] + other[draw.randrange(len(other)) :]


def edit_lengths(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    struct.pack_into("<H", frame, 6, draw.choice([0, 1, 0xFFFF, draw.randrange(0x10000)]))
    return frame


def edit_prefix(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    frame[draw.randrange(2, 6)] = draw.choice([0, 1, 2, 3, 0x80, 0xFF])
    return frame


def edit_header(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    (length,) = struct.unpack_from("<H", frame, 6)
    fields = msgpack.unpackb(frame[8 : 8 + length])
    fields[draw.randrange(len(fields))] = random_tree(draw)
    packed = msgpack.packb(fields)
    return bytearray(frame[:6] + struct.pack("<H", len(packed) & 0xFFFF) + packed + frame[8 + length :])


def shuffle_bytes(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    start = draw.randrange(len(frame))
    end = min(len(frame), start + draw.randint(2, 64))
    part = frame[start:end]
    draw.shuffle(part)
    frame[start:end] = part
    return frame


def swap_bodies(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    """Join one message's signed header with another one's body of the same length, where there is one."""
    other = draw.choice(corpus)
    (length,) = struct.unpack_from("<H", frame, 6)
    return frame[: 8 + length + 64] + other[-max(1, len(frame) - (8 + length + 64)) :]


def edit_body(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    (length,) = struct.unpack_from("<H", frame, 6)
    place = min(8 + length + 64, len(frame) - 1)
    frame[draw.randrange(place, len(frame))] ^= draw.randint(1, 255)
    return frame


def edit_signature(draw: random.Random, frame: bytearray, corpus: list[bytes]) -> bytearray:
    (length,) = struct.unpack_from("<H", frame, 6)
    frame[min(8 + length + draw.randrange(64), len(frame) - 1)] ^= draw.randint(1, 255)
    return frame


MUTATIONS: tuple[Mutation, ...] = (
    edit_body,
    edit_signature,
    flip_bits,
    truncate,
    extend,
    splice,
    edit_lengths,
    edit_prefix,
    edit_header,
    shuffle_bytes,
    swap_bodies,
)


def random_tree(draw: random.Random, depth: int = 0) -> object:
    """Return something that msgpack can say."""
    leaf = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.choice([0, 1, 5, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**63)]),
        lambda: draw.choice([0.0, -1.5, float("nan"), float("inf")]),
        lambda: draw.randbytes(draw.choice([0, 1, 16, 31, 32, 33, 64])),
        lambda: "x" * draw.choice([0, 1, 32, 200, 201, 1000]),
    ]
    if depth < 3 and draw.random() < 0.4:
        children = range(draw.randrange(5))
        if draw.random() < 0.5:
            return [random_tree(draw, depth + 1) for _ in children]
        return {draw.choice(["r", "v", "d", "k", b"\0" * 32]): random_tree(draw, depth + 1) for _ in children}
    return draw.choice(leaf)()


def random_meta(draw: random.Random, frame: bytes) -> tuple[int, bytes]:
    """Return a kind and a body: that of a real message with some of its meta exchanged."""
    envelope = parse_frame(frame)
    kind, body = draw.randrange(1, 11), b""
    meta: dict[object, object] = {}
    if isinstance(envelope, Envelope) and envelope.body is not None:
        kind = envelope.kind
        (length,) = struct.unpack_from("<I", envelope.body)
        meta = msgpack.unpackb(envelope.body[4 : 4 + length], strict_map_key=False)
        body = bytes(envelope.body[4 + length :])
    for key in draw.sample(sorted(meta, key=str), k=min(len(meta), draw.randrange(3))):
        meta[key] = random_tree(draw)
    if draw.random() < 0.3:
        body = draw.randbytes(draw.choice([0, 1, len(body), 4 * SIZE, 4 * SIZE + 1]))
    return kind, raw_body(meta, body)


def unsigned_mutations(draw: random.Random, corpus: list[bytes]) -> Iterator[bytes]:
    genuine = set(corpus)
    chunks = [frame for frame in corpus if not isinstance(parse_frame(frame), Envelope)]
    while True:
        frame = bytes(draw.choice(MUTATIONS)(draw, bytearray(draw.choice(corpus)), corpus))
        is_chunk = len(frame) > 5 and frame[4] == 1
        if frame not in genuine and not (is_chunk and any(says_the_same(frame, chunk) for chunk in chunks)):
            yield frame


# ---------------------------------------------------------------------------------------------- the tests


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("messages.frames", "gossip.chunks"):
        monkeypatch.setattr(f"gossipfl.{module}.CHUNK_BYTES", SMALL_CHUNK)


@pytest.mark.usefixtures("small_chunks")
def test_the_corpus_has_everything() -> None:
    _, corpus = record_dialogue()
    parsed = [parse_frame(frame) for frame in corpus]
    kinds = {frame.kind for frame in parsed if isinstance(frame, Envelope)}
    assert kinds == set(Kind)
    assert any(isinstance(frame, Envelope) and frame.body is None for frame in parsed)
    assert any(not isinstance(frame, Envelope) for frame in parsed)


def bombard(lab: Lab, corpus: list[bytes], messages: int) -> int:
    """Send altered messages to node 0, now and then a signed one; returns how many were unsigned."""
    core, draw = lab.cores[0], random.Random(20)
    altered = unsigned_mutations(draw, corpus)
    sent, before = 0, beliefs(lab)
    for number in range(messages):
        if number % SIGNED_EVERY == 0:
            assert beliefs(lab) == before, "something that nobody signed was believed"
            lab.now += draw.choice([0.0, 0.01, 1.0, 5000.0])
            kind, body = random_meta(draw, draw.choice(corpus))
            frame = lab.forge(1, kind, told(kind, body), sequence=2000 + number)
            effects = core.receive(frame, lab.now) + core.tick(lab.now)
            assert all(len(effect.frame) <= 1 << 20 for effect in effects if isinstance(effect, Send))
            if core.proofs:
                pardon(core)
            if core.exchange.post.is_muted(lab.ids[1], lab.now):
                lab.now += MUTE_MAX_S  # what is dropped unread tests nothing
            before = beliefs(lab)
        else:
            assert core.receive(next(altered), lab.now) == []
            sent += 1
    assert beliefs(lab) == before
    return sent


def told(kind: int, body: bytes) -> Body | bytes:
    """Return the body if it is one, so that the header can repeat what it says; a header may lack it in version 1.0."""
    try:
        decoded = decode_body(kind, body)
    except MessageError:
        return body
    return decoded if len(body) % 2 else body


def pardon(core: GossipCore) -> None:
    """Hear node 1 again, whose key has signed any number of contradictions."""
    affairs = core.exchange.affairs
    for peer in list(affairs.proofs):
        core.exchange.post.convicted.discard(peer)
        core.followed[peer].refused = None
    affairs._witness.proofs.clear()


@pytest.mark.timeout(180)
def test_altered_messages_where_memberships_have_versions() -> None:
    lab, corpus = record_dialogue(versions=True)
    sent = bombard(lab, corpus, MESSAGES // 10)
    assert sum(lab.dropped(0).values()) >= sent
    assert {"signature", "offence-membership", "offence-statement"} <= set(lab.dropped(0))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("chunked", [False, True], ids=["inline", "chunked"])
def test_a_hundred_thousand_altered_messages(chunked: bool, request: pytest.FixtureRequest) -> None:
    if chunked:
        request.getfixturevalue("small_chunks")
    lab, corpus = record_dialogue()
    sent = bombard(lab, corpus, MESSAGES // 2)
    assert sum(lab.dropped(0).values()) >= sent  # each is counted, and some of the signed ones are, too
    assert lab.dropped(0).get("muted", 0) == 0
    assert {"signature", "body-digest", "chunk" if chunked else "length", "offence-field"} <= set(lab.dropped(0))
    assert len(lab.dropped(0)) < 60


@pytest.mark.usefixtures("small_chunks")
def test_memory_stays_bounded_under_altered_messages() -> None:
    """At most 34 updates of 800 bytes wait, as much is being fetched, and messages pass through."""
    lab, corpus = record_dialogue()
    bombard(lab, corpus, 500)
    lab.reports[0].clear()
    tracemalloc.start()
    try:
        bombard(lab, corpus, 5000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_hypothesis_makes_of_a_frame(data: st.DataObject) -> None:
    lab, corpus = RECORDED
    frame = bytearray(data.draw(st.sampled_from(corpus)))
    for _ in range(data.draw(st.integers(1, 6))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    frame[data.draw(st.integers(0, len(frame))) :] = data.draw(st.binary(max_size=20))
    if any(says_the_same(bytes(frame), genuine) for genuine in corpus):
        return
    before = beliefs(lab)
    assert lab.cores[0].receive(bytes(frame), lab.now) == []
    assert beliefs(lab) == before


keys = st.sampled_from(["l", "i", "v", "r", "d", "re", "a", "c", "k", "h", "e", "in", "s", "f", "n", "why"])
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=40) | st.text()
)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9), st.dictionaries(keys, trees, max_size=8), st.binary(max_size=40))
def test_whatever_a_neighbour_signs_raises_nothing(kind: int, meta: dict[str, object], payload: bytes) -> None:
    lab = RECORDED[0]
    lab.now += MUTE_MAX_S
    lab.receive(0, lab.forge(1, kind, raw_body(meta, payload)))
    lab.wait(0.1, delivering=False)
    lab.wire.clear()
    lab.reports[0].clear()


RECORDED = record_dialogue()
