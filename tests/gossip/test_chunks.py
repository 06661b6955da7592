"""Large bodies: fetched in any order over a bad wire, in bounded memory, and never an amplifier."""

from __future__ import annotations

import random
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Lab, make_identity

from gossipfl.digest import digest
from gossipfl.gossip.chunks import (
    CREDIT_CHUNKS,
    MAX_STALLS,
    OUTBOX_BODIES,
    OUTBOX_MESSAGES,
    SERVINGS,
    STALL_GAPS,
    STALL_S,
    Assembly,
    Outbox,
)
from gossipfl.messages import (
    CHUNK_BYTES,
    Chunk,
    Grant,
    Header,
    Hello,
    Kind,
    Statement,
    Update,
    chunk_digests,
    frame_chunk,
    parse_frame,
    signing_input,
)

SMALL_CHUNK = 512
FEDERATION = digest(b"f")[:16]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut bodies every ``SMALL_CHUNK`` bytes, so that a small model has many chunks."""
    cut_small(monkeypatch)


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("messages.frames", "gossip.chunks"):
        monkeypatch.setattr(f"gossipfl.{module}.CHUNK_BYTES", SMALL_CHUNK)


def make_header(body: bytes, sequence: int = 1) -> Header:
    return Header(FEDERATION, bytes(32), b"", 1, sequence, len(body), chunk_digests(body))


def cut(header: Header, body: bytes) -> list[Chunk]:
    chunks = []
    for index, start in enumerate(range(0, len(body), SMALL_CHUNK)):
        chunk = parse_frame(frame_chunk(header, index, body[start : start + SMALL_CHUNK]))
        assert isinstance(chunk, Chunk)
        chunks.append(chunk)
    return chunks


class TestAssembly:
    @settings(max_examples=60)
    @given(st.integers(SMALL_CHUNK + 1, 20 * SMALL_CHUNK), st.randoms(use_true_random=False))
    def test_any_order_with_repeats_and_rubbish(self, size: int, draw: random.Random) -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            cut_small(monkeypatch)
            body = draw.randbytes(size)
            header = make_header(body)
            chunks = cut(header, body)
            order = [*range(len(chunks)), *draw.choices(range(len(chunks)), k=5)]
            draw.shuffle(order)
            assembly = Assembly.begin(Statement(b"", b"", header), Kind.DELTA, 0.0)
            placed = set()
            for index in order:
                rubbish = bytes([chunks[index].data[0] ^ 1]) + bytes(chunks[index].data[1:])
                wrong = Chunk(FEDERATION, bytes(32), 1, 1, index, memoryview(rubbish))
                before = bytes(assembly.body)
                assert not assembly.place(wrong, 0.0)
                assert bytes(assembly.body) == before
                assert assembly.place(chunks[index], 0.0) == (index not in placed)
                placed.add(index)
                assert assembly.missing == set(range(len(chunks))) - placed
            assert assembly.complete
            assert assembly.body == body

    @pytest.mark.usefixtures("small_chunks")
    def test_a_chunk_of_another_length_or_place_is_refused(self) -> None:
        body = bytes(3 * SMALL_CHUNK - 7)
        header = make_header(body)
        assembly = Assembly.begin(Statement(b"", b"", header), Kind.DELTA, 0.0)
        for index, length in ((0, SMALL_CHUNK - 1), (2, SMALL_CHUNK), (3, SMALL_CHUNK), (2**62, 1)):
            assert not assembly.place(Chunk(FEDERATION, bytes(32), 1, 1, index, memoryview(bytes(length))), 0.0)
        assert assembly.missing == {0, 1, 2}

    def test_memory_is_the_announced_size(self) -> None:
        size = 5 * CHUNK_BYTES
        header = Header(FEDERATION, bytes(32), b"", 1, 1, size, (bytes(32),) * 5)
        tracemalloc.start()
        try:
            assembly = Assembly.begin(Statement(b"", b"", header), Kind.DELTA, 0.0)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(assembly.body) == size
        assert size <= peak < size + 10_000

    @pytest.mark.usefixtures("small_chunks")
    def test_no_more_than_the_credit_is_under_way(self) -> None:
        body = bytes(40 * SMALL_CHUNK)
        header = make_header(body)
        assembly, chunks = Assembly.begin(Statement(b"", b"", header), Kind.DELTA, 0.0), cut(header, body)
        asked: list[int] = []
        while not assembly.complete:
            while (grant := assembly.next_grant()) is not None:
                asked += range(grant[0], sum(grant))
                assert len(assembly.granted) <= CREDIT_CHUNKS
            assembly.place(chunks[min(assembly.granted)], 0.0)
        assert asked == list(range(40))

    @pytest.mark.usefixtures("small_chunks")
    def test_after_a_stall_the_missing_ones_are_asked_for_again(self) -> None:
        body = random.Random(1).randbytes(4 * SMALL_CHUNK)
        header = make_header(body)
        assembly, chunks = Assembly.begin(Statement(b"", b"", header), Kind.DELTA, 0.0), cut(header, body)
        assert assembly.next_grant() == (0, 4)
        assert assembly.next_grant() is None
        assembly.place(chunks[1], 1.0)
        assert not assembly.stalled(1.0 + STALL_GAPS - 0.01)
        assert assembly.stalled(1.0 + STALL_GAPS)
        assert assembly.next_grant() == (0, 1)
        assert assembly.next_grant() == (2, 2)

    @pytest.mark.usefixtures("small_chunks")
    def test_patience_follows_the_pace_of_the_link(self) -> None:
        body = bytes(40 * SMALL_CHUNK)
        header = make_header(body)
        assembly, chunks = Assembly.begin(Statement(b"", b"", header), Kind.DELTA, 0.0), cut(header, body)
        assembly.place(chunks[0], 1.0)
        assert assembly.stalls_at == 1.0 + STALL_GAPS
        for index in range(1, 40):
            assembly.place(chunks[index], 1.0)
        assert assembly.stalls_at == 1.0 + STALL_S


@pytest.mark.usefixtures("small_chunks")
class TestOutbox:
    def test_a_grant_brings_at_most_the_credit(self) -> None:
        outbox, body = Outbox(), bytes(20 * SMALL_CHUNK)
        outbox.keep(make_header(body), body)
        assert len(outbox.serve("a", 1, 0, 2**62)) == CREDIT_CHUNKS
        assert len(outbox.serve("a", 1, 18, 6)) == 2
        assert outbox.serve("a", 1, 20, 6) == []
        assert outbox.serve("a", 1, 2**62, 6) == []
        assert outbox.serve("a", 1, 0, 0) == []
        assert outbox.serve("a", 2, 0, 6) == []

    def test_one_neighbour_gets_a_body_a_few_times_over_and_no_more(self) -> None:
        outbox, body = Outbox(), bytes(10 * SMALL_CHUNK)
        outbox.keep(make_header(body), body)
        served = sum(len(outbox.serve("greedy", 1, first % 10, 3)) for first in range(1000))
        assert served <= SERVINGS * 10
        assert len(outbox.serve("modest", 1, 0, 6)) == CREDIT_CHUNKS

    def test_memory_is_bounded_by_bodies_and_equal_ones_count_once(self) -> None:
        outbox = Outbox()
        shared = bytes(2 * SMALL_CHUNK)
        for sequence in range(OUTBOX_MESSAGES + 5):
            outbox.keep(make_header(shared, sequence), shared)
        assert outbox.serve("a", 4, 0, 1) == []
        assert len(outbox.serve("a", 5, 0, 1)) == 1
        for sequence in range(1000, 1000 + OUTBOX_BODIES):
            body = bytes([sequence % 256]) * (2 * SMALL_CHUNK)
            outbox.keep(make_header(body, sequence), body)
        assert outbox.serve("a", OUTBOX_MESSAGES + 4, 0, 1) == []
        assert all(outbox.serve("a", sequence, 0, 1) for sequence in range(1000, 1000 + OUTBOX_BODIES))

    def test_a_body_in_demand_outlives_newer_ones(self) -> None:
        outbox = Outbox()
        for sequence in range(3 * OUTBOX_BODIES):
            body = bytes([sequence]) * (2 * SMALL_CHUNK)
            outbox.keep(make_header(body, sequence), body)
            if sequence < 2 * OUTBOX_BODIES:
                assert outbox.serve(f"peer-{sequence}", 0, 0, 1)
        assert outbox.serve("late", 0, 0, 1) == []


@pytest.mark.usefixtures("small_chunks")
class TestFetching:
    """Two cores and a model of many chunks."""

    SIZE = 4000  # 16,000 bytes: 32 chunks

    def make(self, nodes: int = 2, **options: object) -> Lab:
        return Lab(nodes, self.SIZE, mode="async", **options).start()  # type: ignore[arg-type]

    def test_a_large_delta_arrives(self) -> None:
        lab = self.make()
        lab.publish(1, torch.randn(self.SIZE))
        lab.settle()
        assert lab.agree(0, 1)

    def test_chunks_are_bulk_and_announcements_are_not(self) -> None:
        lab = self.make()
        lab.publish(1, torch.randn(self.SIZE))
        seen = []
        while lab.wire:
            letter = lab.wire.pop(0)
            seen.append((letter.kind, letter.bulk))
            lab.deliver(letter)
        assert (Kind.DELTA, False) in seen
        assert {bulk for kind, bulk in seen if kind is None} == {True}
        assert {bulk for kind, bulk in seen if kind is not None} == {False}

    @pytest.mark.parametrize("seed", range(5))
    def test_it_arrives_over_a_wire_that_loses_a_third(self, seed: int) -> None:
        lab, draw = self.make(), random.Random(seed)
        lab.publish(1, torch.randn(self.SIZE))
        for _ in range(2000):
            if lab.agree(0, 1):
                break
            draw.shuffle(lab.wire)
            for letter in [lab.wire.pop() for _ in range(len(lab.wire))]:
                if draw.random() > 1 / 3:
                    lab.deliver(letter)
            lab.wait(0.1, delivering=False)
        assert lab.agree(0, 1)

    def test_nobody_asks_again_for_what_is_being_fetched(self) -> None:
        """A body that takes longer than the pause between requests must not be started anew for ever."""
        lab = self.make()
        lab.publish(1, torch.randn(self.SIZE))
        lab.wire, chunks = [], []
        lab.publish(1, torch.randn(self.SIZE))
        announced = lab.take()
        assert [letter.kind for letter in announced] == [Kind.DELTA]
        lab.deliver(announced[0])  # the first delta is lost, so this one will have to be followed by a keyframe
        for _ in range(300):  # one chunk a second
            lab.wait(1.0, delivering=False, step_s=0.25)
            for letter in lab.take():
                if letter.kind is None:
                    chunks.append(letter)
                else:
                    lab.deliver(letter)
            if chunks:
                lab.deliver(chunks.pop(0))
            if lab.agree(0, 1):
                break
        assert lab.agree(0, 1)
        assert lab.now < 120
        assert len(lab.events(0, "resync")) <= 5

    def test_a_slow_link_is_not_filled_with_repeats(self) -> None:
        """At a chunk a second, fetching takes about as many seconds as there are chunks."""
        lab = self.make()
        lab.publish(1, torch.randn(self.SIZE))
        lab.publish(1, torch.randn(self.SIZE))
        chunks = []
        while not lab.agree(0, 1) and lab.now < 300:
            lab.wait(1.0, delivering=False, step_s=0.25)
            for letter in lab.take():
                if letter.kind is None:
                    chunks.append(letter)
                else:
                    lab.deliver(letter)
            if chunks:
                lab.deliver(chunks.pop(0))
        assert lab.agree(0, 1)
        assert lab.now < 1.3 * 2 * 4 * self.SIZE / SMALL_CHUNK

    def test_many_neighbours_can_fetch_a_keyframe_at_once(self) -> None:
        """After a restart every neighbour wants the whole replica: that must not push bodies out of reach."""
        lab = self.make(8, edges=[(0, other) for other in range(1, 8)])
        lab.publish(0, torch.randn(self.SIZE))
        lab.settle()
        lab.restart(0)
        lab.publish(0, torch.randn(self.SIZE))
        for _ in range(100):
            if all(lab.agree(node, 0) for node in range(1, 8)):
                break
            slow, lab.wire = lab.wire, []
            for letter in sorted(slow, key=lambda letter: letter.kind is None):
                lab.deliver(letter)
            lab.wait(0.2, delivering=False)
        assert all(lab.agree(node, 0) for node in range(1, 8))
        assert lab.cores[0].exchange.post.dropped["grant"] == 0

    def test_a_replayed_announcement_is_refused_while_fetching_and_afterwards(self) -> None:
        lab = self.make()
        (announcement,) = lab.publish(1, torch.randn(self.SIZE))
        lab.wire.clear()
        assert [letter.kind for letter in lab.deliver(announcement)] == [Kind.GRANT]
        assert lab.deliver(announcement) == []
        assert lab.dropped(0)["replay"] == 1
        lab.settle()
        assert lab.agree(0, 1)
        assert lab.deliver(announcement) == []
        assert lab.dropped(0)["replay"] == 2

    def test_an_abandoned_body_is_forgotten_and_cannot_be_replayed(self) -> None:
        lab = self.make()
        (announcement,) = lab.publish(1, torch.randn(self.SIZE))
        lab.wire.clear()
        lab.deliver(announcement)
        lab.now += 0.01
        for stalls in range(MAX_STALLS + 1):
            lab.now += STALL_S * 2**stalls
            lab.perform(0, lab.cores[0].tick(lab.now))
        assert len(lab.events(0, "body_abandoned")) == 1
        assert not lab.cores[0].exchange.post.fetching(lab.ids[1])
        assert lab.deliver(announcement) == []
        lab.wire.clear()
        lab.wait(10)
        assert lab.agree(0, 1)

    def test_bodies_under_way_are_bounded_and_the_first_ones_are_finished(self) -> None:
        lab = self.make()
        post = lab.cores[0].exchange.post
        payload = memoryview(bytes(4 * self.SIZE + 60_000))
        for sequence in range(500, 1500):
            update = Update(sequence, 1, bytes(32), 1, payload)
            lab.receive(0, lab.forge(1, Kind.DELTA, update, sequence=sequence))
        assemblies = post.channels[lab.ids[1]].assemblies
        held = sum(len(assembly.body) for assembly in assemblies.values())
        assert held <= 4 << 20
        assert lab.dropped(0)["assembly-busy"] == 1000 - len(assemblies)
        assert min(assemblies) == (1, 500)

    def test_an_older_life_is_not_assembled_any_more(self) -> None:
        lab = self.make()
        (announcement,) = lab.publish(1, torch.randn(self.SIZE))
        lab.wire.clear()
        (grant,) = lab.deliver(announcement)
        lab.wire.clear()
        chunks = lab.deliver(grant)
        lab.receive(0, lab.forge(1, Kind.HELLO, _hello(lab), incarnation=2))
        for letter in chunks:
            lab.deliver(letter)
        update = Update(0, 1, bytes(32), 1, memoryview(bytes(9000)))
        lab.receive(0, lab.forge(1, Kind.DELTA, update, incarnation=2))
        assert list(lab.cores[0].exchange.post.channels[lab.ids[1]].assemblies) == [(2, 502)]

    def test_a_grant_for_an_earlier_life_is_counted(self) -> None:
        lab = self.make()
        lab.publish(1, torch.randn(self.SIZE))
        assert lab.receive(1, lab.forge(0, Kind.GRANT, Grant(9, 1, 0, 6))) == []
        assert lab.dropped(1)["grant"] == 1

    def test_chunks_from_nowhere_change_nothing(self) -> None:
        lab = self.make()
        header = Header(lab.membership.federation_id, make_identity(1).public_key, b"", 1, 77, 9, (bytes(32),))
        lab.receive(0, frame_chunk(header, 0, b"123456789"))
        assert lab.dropped(0) == {"chunk": 1}


def _hello(lab: Lab) -> Hello:
    own = lab.cores[1].exchange.own
    return Hello(digest(b"layout"), own.initial_digest, 0, 0, own.digest, reply=True)


def test_the_announced_size_is_bounded_by_the_layout_before_anything_is_allocated() -> None:
    lab = Lab(2, 100).start()
    size = 600 * CHUNK_BYTES
    header = Header(lab.membership.federation_id, make_identity(1).public_key, b"", 1, 99, size, (bytes(32),) * 600)
    signed = signing_input(Kind.DELTA, header.pack())
    frame = signed[len(b"gossipfl/1/message") :] + make_identity(1).sign(signed)
    lab.receive(0, b"")
    tracemalloc.start()
    try:
        lab.receive(0, frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000
    assert lab.events(0, "offence")[0].fields["reason"] == "oversized"
