"""One test or more for each guarantee of the wire protocol, by its number in ``docs/wire/protocol.md``."""

from __future__ import annotations

import ast
import inspect
import math
import pkgutil
import sys
import tracemalloc

import pytest
import torch
from lab import LAYOUT, Lab, forge, make_identity, make_membership, raw_body
from torch import Tensor

import gossipfl
from gossipfl.codec import ZSTD_FLAG, make_codec
from gossipfl.digest import digest, vector_digest
from gossipfl.errors import ConfigError
from gossipfl.gossip import GossipSettings, Party, Send
from gossipfl.gossip.exchange import SERVINGS_PER_VERSION
from gossipfl.gossip.post import MUTE_FIRST_S, MUTE_MAX_S, OFFENCES_FORGIVEN, SMALL_BODY_BYTES
from gossipfl.gossip.settings import MAX_NEIGHBOURS
from gossipfl.identity import Identity
from gossipfl.messages import Bye, Envelope, Hello, Kind, Request, Status, Update, parse_frame

FLOAT32 = 1


def start_async(nodes: int = 2, size: int = 64, **options: object) -> Lab:
    return Lab(nodes, size, mode="async", **options).start()  # type: ignore[arg-type]


def make_status(version: int = 0) -> Status:
    return Status(0, version, bytes(32))


def make_delta(vector: Tensor, *, version: int = 1, payload: bytes | None = None, codec: int = FLOAT32) -> Update:
    """Return an update that says to lead to ``vector``."""
    content = payload if payload is not None else bytes(make_codec("float32").encode(vector).payload)
    return Update(0, version, vector_digest(vector), codec, memoryview(content))


class TestGuarantee01NoCodeFromBytes:
    MODULES = ("messages", "codec", "identity", "membership", "digest", "gossip", "transports", "agent")
    FORBIDDEN_IMPORTS = frozenset({"pickle", "marshal", "shelve", "dill", "cloudpickle", "importlib", "ctypes"})
    FORBIDDEN_CALLS = frozenset({"eval", "exec", "compile", "__import__", "load"})

    def sources(self) -> list[ast.Module]:
        import importlib

        names = []
        for top in self.MODULES:
            module = importlib.import_module(f"gossipfl.{top}")
            names.append(module.__name__)
            if hasattr(module, "__path__"):
                names += [found.name for found in pkgutil.iter_modules(module.__path__, f"{module.__name__}.")]
        return [ast.parse(inspect.getsource(importlib.import_module(name))) for name in names]

    def test_guarantee_01_no_module_that_reads_from_a_peer_can_run_what_it_reads(self) -> None:
        sources = self.sources()
        assert len(sources) > 15
        for tree in sources:
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    assert not {alias.name.split(".")[0] for alias in node.names} & self.FORBIDDEN_IMPORTS
                if isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] not in self.FORBIDDEN_IMPORTS
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in self.FORBIDDEN_CALLS
                if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load"}:
                    raise AssertionError(ast.unparse(node))

    def test_guarantee_01_a_dialogue_imports_no_unpickler(self) -> None:
        assert gossipfl.__name__ in sys.modules
        lab = start_async()
        before = set(sys.modules)
        lab.publish(1, torch.ones(64))
        lab.settle()
        assert lab.agree(0, 1)
        assert not {name.split(".")[0] for name in set(sys.modules) - before} & self.FORBIDDEN_IMPORTS


class TestGuarantee02BoundedBeforeBelieved:
    def test_guarantee_02_a_body_beyond_its_kind_is_an_offence(self) -> None:
        lab = start_async()
        body = raw_body({"why": ""}, bytes(SMALL_BODY_BYTES))
        lab.receive(0, lab.forge(1, Kind.BYE, body))
        assert lab.events(0, "offence")[0].fields == {"reason": "oversized", "count": 1}

    def test_guarantee_02_a_zstd_bomb_is_not_inflated(self) -> None:
        import zstandard

        lab = start_async()
        bomb = zstandard.ZstdCompressor(level=19).compress(bytes(100 << 20))
        assert len(bomb) < 20_000
        frame = lab.forge(1, Kind.DELTA, make_delta(torch.ones(64), payload=bomb, codec=FLOAT32 | ZSTD_FLAG))
        lab.receive(0, lab.forge(1, Kind.BYE, Bye()))
        tracemalloc.start()
        try:
            lab.receive(0, frame)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert lab.dropped(0) == {"offence-codec": 1}
        assert peak < 1 << 20

    def test_guarantee_02_a_small_zstd_bomb_within_the_body_limit_is_not_inflated(self) -> None:
        import zstandard

        lab = start_async(size=64)
        bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 20))
        assert len(bomb) < 256
        lab.receive(0, lab.forge(1, Kind.DELTA, make_delta(torch.ones(64), payload=bomb, codec=FLOAT32 | ZSTD_FLAG)))
        assert lab.dropped(0) == {"offence-codec": 1}
        assert "declares" in lab.events(0, "update_refused")[0].fields["detail"]

    def test_guarantee_02_waiting_updates_are_bounded(self) -> None:
        lab = start_async()
        for version in range(2, 500):  # version 1 never comes
            lab.receive(
                0, lab.forge(1, Kind.DELTA, make_delta(torch.ones(64), version=version), sequence=1000 + version)
            )
        assert len(lab.seen_by(0, 1).waiting) == lab.cores[0].exchange.credit + 2

    def test_guarantee_02_neighbours_fit_one_status(self) -> None:
        identity = make_identity(0)
        others = [Identity.from_seed(digest(b"n", n.to_bytes(2, "big"))) for n in range(MAX_NEIGHBOURS + 1)]
        names = {f"n{i}": other.peer_id for i, other in enumerate([identity, *others])}
        membership = type(make_membership(1)).from_ids("lab", names)
        weights = {other.peer_id: 0.0 for other in others}
        with pytest.raises(ConfigError, match="at most 1000 neighbours"):
            Party(identity, membership, 1, weights)
        acks = {other.public_key: (2**62, 2**62) for other in others[:MAX_NEIGHBOURS]}
        status = Status(2**62, 2**62, bytes(32), acks)
        lab = start_async()
        lab.receive(0, lab.forge(1, Kind.STATUS, status))
        assert lab.dropped(0) == {}


class TestGuarantee03Signed:
    """Whatever an outsider changes, nothing but a counter moves."""

    def frame(self, lab: Lab) -> bytes:
        return lab.forge(1, Kind.DELTA, make_delta(torch.ones(64)), sequence=50)

    def test_guarantee_03_signed_a_genuine_message_is_believed(self) -> None:
        lab = start_async()
        lab.receive(0, self.frame(lab))
        assert lab.seen_by(0, 1).version == 1

    @pytest.mark.parametrize(
        ("place", "reasons"),
        [
            ("body", {"body-digest"}),
            ("signature", {"signature"}),
            ("header", {"signature", "federation", "stranger", "replay", "header", "msgpack", "field", "length"}),
        ],
    )
    def test_guarantee_03_signed_a_tampered_message_is_not(self, place: str, reasons: set[str]) -> None:
        lab = start_async()
        frame = self.frame(lab)
        envelope = parse_frame(frame)
        assert isinstance(envelope, Envelope)
        head = len(envelope.signed) - len(b"gossipfl/1/message")
        span = {"header": range(8, head), "signature": range(head, head + 64), "body": range(head + 64, len(frame), 7)}
        for position in span[place]:
            changed = bytearray(frame)
            changed[position] ^= 1
            assert lab.receive(0, bytes(changed)) == []
        assert lab.seen_by(0, 1).version == 0
        assert set(lab.dropped(0)) <= reasons
        assert sum(lab.dropped(0).values()) == len(span[place])
        lab.receive(0, frame)  # and the true one still gets through
        assert lab.seen_by(0, 1).version == 1

    @pytest.mark.parametrize("kind", [Kind.KEYFRAME, Kind.STATUS, Kind.BYE, 99])
    def test_guarantee_03_signed_the_kind_is_part_of_what_is_signed(self, kind: int) -> None:
        lab = start_async()
        frame = bytearray(self.frame(lab))
        frame[5] = kind
        assert lab.receive(0, bytes(frame)) == []
        assert lab.dropped(0) == {"signature": 1}

    def test_guarantee_03_signed_strangers_and_non_neighbours_are_refused(self) -> None:
        lab = start_async(3, edges=[(0, 1)])
        stranger = Identity.from_seed(bytes(32))
        body = make_status()
        lab.receive(0, forge(stranger, Kind.STATUS, body, federation=lab.membership.federation_id, sequence=1))
        assert lab.dropped(0) == {"stranger": 1}
        lab.receive(0, lab.forge(2, Kind.STATUS, body))
        assert lab.dropped(0) == {"stranger": 1, "no-neighbour": 1}
        lab.receive(0, lab.forge(0, Kind.STATUS, body))  # its own echo
        assert lab.dropped(0) == {"stranger": 1, "no-neighbour": 2}

    def test_guarantee_03_signed_another_federation_is_refused(self) -> None:
        lab = start_async()
        other = make_membership(2, "another").federation_id
        lab.receive(0, forge(lab.identities[1], Kind.STATUS, make_status(), federation=other, sequence=1000))
        assert lab.dropped(0) == {"federation": 1}

    def test_guarantee_03_signed_what_is_meant_for_another_is_refused(self) -> None:
        lab = start_async(3)
        for recipient, dropped in ((2, {"recipient": 1}), (0, {"recipient": 1})):
            lab.receive(0, lab.forge(1, Kind.REQUEST, Request(None), recipient=recipient))
            assert lab.dropped(0) == dropped

    def test_guarantee_03_signed_every_request_and_answer_names_its_recipient(self) -> None:
        lab = start_async(3)
        lab.publish(1, torch.ones(64))
        lab.take()
        lab.publish(1, torch.ones(64))
        lab.wait(2)
        addressed = {
            kind: bool(parse_frame(letter.frame).header.recipient)  # type: ignore[union-attr]
            for kind, letter in [(letter.kind, letter) for letter in self.eavesdrop(lab)]
        }
        assert addressed == {Kind.REQUEST: True, Kind.DELTA: True, Kind.STATUS: False}

    def eavesdrop(self, lab: Lab) -> list:  # type: ignore[type-arg]
        heard = []
        lab.seen_by(0, 1).vector = None
        lab.wait(0.3, delivering=False)
        lab.perform(0, lab.cores[0].exchange.ask(lab.ids[1], lab.now + 10))
        lab.publish(1, torch.full((64,), 2.0))
        lab.take()
        heard += lab.perform(0, lab.cores[0].exchange.ask(lab.ids[1], lab.now + 100))
        lab.publish(1, torch.full((64,), 3.0))
        lab.take()
        heard += lab.receive(1, lab.forge(0, Kind.REQUEST, Request(lab.cores[1].exchange.own.version - 1), recipient=1))
        heard += lab.perform(1, lab.cores[1].exchange.heartbeat(lab.now))
        return heard


class TestGuarantee04ReplayProof:
    def test_guarantee_04_replays_are_counted_and_dropped(self) -> None:
        lab = start_async()
        frames = []
        for value in (1.0, 2.0, 3.0):
            (letter,) = lab.publish(1, torch.full((64,), value))
            frames.append(letter.frame)
            lab.settle()
        before = snapshot(lab)
        for frame in frames * 3:
            assert lab.receive(0, frame) == []
        assert lab.dropped(0) == {"replay": 9}
        assert snapshot(lab) == before

    def test_guarantee_04_reordered_messages_are_no_replays(self) -> None:
        lab = start_async()
        letters = [lab.publish(1, torch.full((64,), value))[0] for value in (1.0, 2.0, 3.0)]
        lab.wire.clear()
        for letter in reversed(letters):
            lab.deliver(letter)
        assert lab.agree(0, 1)
        assert lab.dropped(0) == {}

    def test_guarantee_04_an_earlier_life_of_the_sender_is_over(self) -> None:
        lab = start_async()
        (old,) = lab.publish(1, torch.ones(64))
        lab.wire.clear()
        lab.restart(1)
        lab.settle()
        lab.wait(1)
        lab.deliver(old)
        assert lab.dropped(0) == {"replay": 1}
        assert lab.agree(0, 1)

    def test_guarantee_04_a_restart_of_the_receiver_opens_no_door(self) -> None:
        lab = start_async()
        recorded = []
        for value in (1.0, 2.0):
            recorded += lab.publish(1, torch.full((64,), value))
            lab.settle()
        marks = lab.cores[0].replay_marks()
        assert marks == {lab.ids[1]: (1, 4)}
        lab.restart(0)
        lab.cores[0].restore_replay_marks(marks | {"somebody who has left": (9, 9)})
        lab.wire.clear()
        for letter in recorded:
            lab.deliver(letter)
        assert lab.dropped(0) == {"replay": 2}
        lab.wait(2)
        assert lab.agree(0, 1)  # what the living neighbour says now is new

    def test_guarantee_04_without_marks_the_same_replay_would_succeed(self) -> None:
        """So that the test above shows what it says."""
        lab = start_async()
        recorded = lab.publish(1, torch.ones(64))
        lab.settle()
        lab.restart(0)
        lab.wire.clear()
        for letter in recorded:
            lab.deliver(letter)
        assert lab.dropped(0) == {}


class TestGuarantee05SelfMending:
    def test_guarantee_05_a_gap_is_closed(self) -> None:
        lab = start_async()
        lab.publish(1, torch.full((64,), 1.0))
        lab.wire.clear()
        lab.publish(1, torch.full((64,), 2.0))
        lab.wait(1)
        assert lab.agree(0, 1)
        assert len(lab.events(0, "resync")) >= 1

    def test_guarantee_05_a_long_gap_is_closed_by_a_keyframe(self) -> None:
        lab = start_async()
        for value in range(10):
            lab.publish(1, torch.full((64,), float(value)))
            lab.wire.clear()
        lab.wait(3)
        assert lab.agree(0, 1)
        assert len(lab.events(0, "keyframe")) == 1

    def test_guarantee_05_a_digest_mismatch_leads_to_a_keyframe(self) -> None:
        lab = start_async()
        true = make_delta(torch.ones(64))
        lab.publish(1, torch.ones(64))
        lab.wire.clear()
        wrong = Update(0, 1, true.digest, FLOAT32, make_delta(torch.full((64,), 2.0)).payload)
        (request,) = lab.receive(0, lab.forge(1, Kind.DELTA, wrong))
        assert request.kind == Kind.REQUEST
        assert request.body == Request(None)
        assert lab.events(0, "digest_mismatch")[0].fields == {"version": 1}
        assert not lab.seen_by(0, 1).usable
        lab.settle()
        assert lab.agree(0, 1)

    def test_guarantee_05_a_status_reveals_what_differs(self) -> None:
        lab = start_async()
        lab.publish(1, torch.ones(64))
        lab.settle()
        vector = lab.seen_by(0, 1).vector
        assert vector is not None
        vector.add_(1.0)
        lab.seen_by(0, 1).digest = vector_digest(vector)
        lab.wait(3)
        assert lab.agree(0, 1)
        assert len(lab.events(0, "digest_mismatch")) == 1

    def test_guarantee_05_a_new_neighbour_is_brought_up_to_date(self) -> None:
        lab = Lab(2, mode="async")
        lab.perform(1, lab.cores[1].start(0.0))
        for value in range(5):
            lab.publish(1, torch.full((64,), float(value)))
        lab.wire.clear()
        lab.perform(0, lab.cores[0].start(0.0))
        lab.settle()
        lab.wait(1)
        assert lab.agree(0, 1)

    def test_guarantee_05_a_restarted_neighbour_is_followed_again(self) -> None:
        lab = start_async()
        for value in range(5):
            lab.publish(1, torch.full((64,), float(value)))
        lab.settle()
        lab.restart(1)
        assert lab.seen_by(0, 1).version == 5
        lab.wait(1)
        assert lab.agree(0, 1)
        assert lab.seen_by(0, 1).version == 0
        assert len(lab.events(0, "neighbour_restarted")) == 1

    def test_guarantee_05_another_initial_model_is_told_and_mended(self) -> None:
        lab = Lab(2, mode="async")
        lab.start(joined=False)
        own = lab.cores[1].exchange.own
        hello = Hello(LAYOUT, digest(b"another"), 0, 0, own.digest, reply=True)
        lab.receive(0, lab.forge(1, Kind.HELLO, hello))
        assert len(lab.events(0, "initial_model_differs")) == 1
        assert not lab.seen_by(0, 1).usable
        lab.wait(1)
        assert lab.agree(0, 1)

    @pytest.mark.parametrize("initial", [torch.full((64,), 1e-40), -torch.zeros(64), torch.full((64,), 1.2e-38)])
    def test_guarantee_05_keyframes_carry_every_replica_exactly(self, initial: Tensor) -> None:
        """Subnormal elements and -0 are in no keyframe, so they must be in no replica."""
        lab = Lab(2, mode="async", initial=initial).start()
        lab.publish(1, torch.full((64,), 1e-40))
        lab.settle()
        lab.seen_by(0, 1).vector = None
        lab.wait(3)
        assert lab.agree(0, 1)
        assert lab.dropped(0) == {}

    @pytest.mark.parametrize("have", [None, 0, 3, 2**60])
    def test_guarantee_05_resync_is_no_amplifier(self, have: int | None) -> None:
        """A flood of requests brings a bounded number of answers for each version, then one now and then."""
        lab = start_async(size=1000)
        for value in range(4):
            lab.publish(1, torch.full((1000,), float(value)))
        lab.settle()
        requests = answered = 0
        end_s = 60.0
        while lab.now < end_s:
            requests += 1
            answered += len(lab.receive(1, lab.forge(0, Kind.REQUEST, Request(have))))
            lab.now += 0.03
        assert requests == pytest.approx(2000, abs=1)
        most = SERVINGS_PER_VERSION + end_s / lab.settings.resync_max_s + 1
        assert SERVINGS_PER_VERSION <= answered <= most

    def test_guarantee_05_one_request_brings_at_most_two_updates(self) -> None:
        lab = start_async(size=1000)
        for value in range(8):
            lab.publish(1, torch.full((1000,), float(value)))
        lab.settle()
        for have in (None, *range(10)):
            lab.now += 1.0
            answer = lab.receive(1, lab.forge(0, Kind.REQUEST, Request(have)))
            sizes = [len(letter.frame) for letter in answer]
            assert sum(sizes) <= 2 * (4 * 1000 + 1000)
            assert (len(sizes) == 0) == (have == 8)

    def test_guarantee_05_requests_are_rate_limited_on_the_asking_side(self) -> None:
        lab = start_async()
        lab.receive(0, lab.forge(1, Kind.STATUS, make_status(version=2**50)))
        lab.wire.clear()
        lab.wait(60, delivering=False)
        asked = sum(letter.kind == Kind.REQUEST for letter in lab.wire)
        assert 10 <= asked <= 30

    def test_guarantee_05_a_keyframe_that_nobody_asked_for_is_counted(self) -> None:
        lab = start_async()
        lab.publish(1, torch.ones(64))
        lab.settle()
        lab.receive(0, lab.forge(1, Kind.KEYFRAME, make_delta(torch.ones(64))))
        assert lab.dropped(0) == {"unsolicited-keyframe": 1}
        assert lab.agree(0, 1)


class TestGuarantee06Versioned:
    def test_guarantee_06_an_unknown_major_version_is_counted(self) -> None:
        lab = start_async()
        frame = bytearray(lab.forge(1, Kind.STATUS, make_status()))
        frame[2] = 2
        assert lab.receive(0, bytes(frame)) == []
        assert lab.dropped(0) == {"version": 1}

    def test_guarantee_06_an_unknown_kind_is_counted_and_no_offence(self) -> None:
        lab = start_async()
        for sequence in range(1000, 1010):
            assert lab.receive(0, lab.forge(1, 42, raw_body({"new": 1}), sequence=sequence)) == []
        assert lab.dropped(0) == {"kind": 10}
        assert lab.reports[0][-1].event == "neighbour_joined"

    def test_guarantee_06_the_next_minor_version_is_understood(self) -> None:
        """A message with a header element and a meta key more, and a higher minor number, signed as such."""
        import msgpack

        from gossipfl.messages import frame_message, signing_input

        lab = start_async()
        lab.publish(1, torch.ones(64))
        lab.wire.clear()
        body = raw_body({"r": 0, "v": 1, "d": lab.cores[1].exchange.own.digest, "later": [1, 2]})
        me = lab.identities[1]
        header = msgpack.packb(
            [lab.membership.federation_id, me.public_key, b"", 1, 900, len(body), digest(body), None, "later"]
        )
        signed = signing_input(Kind.STATUS, header, minor=2)
        lab.receive(0, frame_message(signed, me.sign(signed), body))
        assert lab.dropped(0) == {}
        assert lab.seen_by(0, 1).claimed == 1


class TestGuarantee07LayoutHandshake:
    def test_guarantee_07_another_layout_is_refused_on_both_sides(self) -> None:
        lab = Lab(2, layouts={1: digest(b"another layout")}, mode="async").start()
        for node in (0, 1):
            (report,) = lab.events(node, "neighbour_refused")
            assert report.peer == lab.ids[1 - node]
            assert report.fields["reason"] == "layout"
            assert report.fields["ours"] != report.fields["theirs"]
            assert not lab.seen_by(node, 1 - node).usable
        assert lab.publish(0, torch.ones(64)) == []

    def test_guarantee_07_a_refused_neighbour_cannot_move_a_replica(self) -> None:
        lab = Lab(2, layouts={1: digest(b"another layout")}, mode="async").start()
        lab.receive(0, lab.forge(1, Kind.DELTA, make_delta(torch.ones(64))))
        assert lab.seen_by(0, 1).version == 0
        assert lab.cores[0].mix is not None
        lab.publish(0)
        assert lab.mix(0).verdicts == {}

    def test_guarantee_07_a_new_start_with_the_right_layout_is_welcome(self) -> None:
        lab = Lab(2, layouts={1: digest(b"another layout")}, mode="async").start()
        lab._layouts = {}
        lab.restart(1)
        lab.wait(2)
        assert lab.agree(0, 1)
        assert lab.agree(1, 0)

    def test_guarantee_07_a_change_of_layout_in_mid_life_costs_no_flood(self) -> None:
        """What is owed to a neighbour that is refused meanwhile must not come due for ever."""
        lab = start_async(3)
        lab.publish(1, torch.ones(64))
        lab.settle()
        hello = Hello(digest(b"another"), lab.cores[0].exchange.own.initial_digest, 1, 0, bytes(32), reply=True)
        lab.receive(0, lab.forge(1, Kind.HELLO, hello))
        lab.wire.clear()
        lab.wait(10, delivering=False, step_s=0.002)
        sent = sum(letter.sender == 0 for letter in lab.wire)
        assert sent < 60


class TestGuarantee08MalformedIsCounted:
    def offend(self, lab: Lab, sequence: int) -> None:
        lab.receive(0, lab.forge(1, Kind.STATUS, raw_body({"r": -1}), sequence=sequence))

    def test_guarantee_08_offences_are_counted_and_reported(self) -> None:
        lab = start_async()
        self.offend(lab, 1000)
        assert lab.dropped(0) == {"offence-field": 1}
        assert lab.events(0, "offence")[0].fields == {"reason": "field", "count": 1}
        assert not lab.cores[0].exchange.post.is_muted(lab.ids[1], lab.now)

    def test_guarantee_08_the_mute_grows_and_ends(self) -> None:
        lab = start_async()
        post = lab.cores[0].exchange.post
        sequence, durations = 1000, []
        for _ in range(16):
            for _ in range(OFFENCES_FORGIVEN):
                sequence += 1
                self.offend(lab, sequence)
            durations.append(lab.events(0, "peer_muted")[-1].fields["seconds"])
            assert post.is_muted(lab.ids[1], lab.now)
            assert lab.receive(0, lab.forge(1, Kind.STATUS, make_status(), sequence=sequence + 1)) == []
            assert lab.dropped(0)["muted"] == len(durations)
            lab.now += durations[-1]
            assert not post.is_muted(lab.ids[1], lab.now)
        assert durations == [min(MUTE_FIRST_S * 2**n, MUTE_MAX_S) for n in range(16)]
        assert durations[-1] == MUTE_MAX_S
        lab.receive(0, lab.forge(1, Kind.STATUS, make_status(7), sequence=sequence + 1))
        assert lab.seen_by(0, 1).claimed == 7

    def test_guarantee_08_nobody_can_have_another_muted(self) -> None:
        lab = start_async(3)
        good = lab.forge(1, Kind.STATUS, make_status(), sequence=1000)
        for position in range(8, len(good)):
            changed = bytearray(good)
            changed[position] ^= 0xFF
            lab.receive(0, bytes(changed))
        assert lab.events(0, "offence") == []
        assert lab.events(0, "peer_muted") == []

    def test_guarantee_08_a_mended_neighbour_is_followed_again(self) -> None:
        lab = start_async()
        for sequence in range(1000, 1000 + OFFENCES_FORGIVEN):
            self.offend(lab, sequence)
        lab.publish(1, torch.ones(64))
        lab.settle()
        assert not lab.agree(0, 1)
        lab.wait(5)
        assert lab.agree(0, 1)


class TestGuarantee09FiniteOrRefused:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e-40, 3e38])
    @pytest.mark.parametrize("kind", [Kind.DELTA, Kind.KEYFRAME])
    def test_guarantee_09_bad_numbers_never_reach_the_rule(self, bad: float, kind: Kind) -> None:
        lab = start_async()
        values = torch.ones(64)
        values[17] = bad
        if kind == Kind.KEYFRAME:
            lab.seen_by(0, 1).vector = None
        payload = values.numpy().tobytes()
        update = Update(0, 1, digest(payload), FLOAT32, memoryview(payload))
        lab.receive(0, lab.forge(1, kind, update))
        assert lab.dropped(0) == {"offence-codec": 1}
        lab.publish(0)
        assert lab.mix(0).verdicts == {}
        assert torch.isfinite(lab.models[0]).all()

    def test_guarantee_09_an_absurd_norm_is_kept_from_the_rule_until_it_is_over(self) -> None:
        lab = start_async(max_norm=100.0)
        lab.publish(1, torch.full((64,), 1e6))
        lab.settle()
        assert lab.agree(0, 1)
        assert lab.events(0, "absurd_norm")[0].fields == {"version": 1}
        lab.publish(0)
        assert lab.mix(0).verdicts == {}
        lab.publish(1, torch.full((64,), 1.0))
        lab.settle()
        lab.publish(0)
        assert list(lab.mix(0).verdicts) == [lab.ids[1]]

    def test_guarantee_09_an_absurd_neighbour_does_not_hold_up_a_synchronous_round(self) -> None:
        lab = Lab(2, max_norm=100.0).start()
        lab.publish(1, torch.full((64,), 1e6))
        lab.publish(0)
        lab.settle()
        assert lab.cores[0].ready(lab.now)
        mixing = lab.mix(0)
        assert (mixing.verdicts, mixing.missed) == ({}, (lab.ids[1],))

    def test_guarantee_09_a_sum_of_normal_deltas_is_never_subnormal(self) -> None:
        """x = 0, then +1.5·2^-126, then -2^-126: every payload is normal, their sum is not."""
        lab = start_async()
        smallest = 2.0**-126
        lab.publish(1, torch.full((64,), 1.5 * smallest))
        lab.settle()
        payload = torch.full((64,), -smallest).numpy().tobytes()
        update = Update(1, 2, vector_digest(torch.zeros(64)), FLOAT32, memoryview(payload))
        lab.receive(0, lab.forge(1, Kind.DELTA, update))
        held = lab.seen_by(0, 1)
        assert held.version == 2
        assert held.vector is not None
        assert torch.equal(held.vector, torch.zeros(64))

    def test_guarantee_09_numbers_that_grow_step_by_step_are_noticed(self) -> None:
        lab = start_async()
        step = torch.full((64,), 2.0**24)
        total = torch.zeros(64)
        for version in range(1, 9):
            total += step
            payload = step.numpy().tobytes()
            update = Update(0, version, vector_digest(total), FLOAT32, memoryview(payload))
            lab.receive(0, lab.forge(1, Kind.DELTA, update, sequence=1000 + version))
        assert lab.seen_by(0, 1).version == 8
        assert lab.seen_by(0, 1).absurd


class TestGuarantee10Chunked:
    """More in test_chunks.py."""

    SIZE = 260_000  # 1.04 MB: two chunks

    def test_guarantee_10_a_large_body_travels_in_chunks_behind_everything_else(self) -> None:
        lab = start_async(size=self.SIZE)
        lab.publish(1, torch.randn(self.SIZE))
        (announcement,) = lab.take()
        assert len(announcement.frame) < 500
        (grant,) = lab.deliver(announcement)
        lab.take()
        effects = lab.cores[1].receive(grant.frame, lab.now)
        assert [effect.bulk for effect in effects if isinstance(effect, Send)] == [True, True]
        assert all(len(effect.frame) <= 1 << 20 for effect in effects if isinstance(effect, Send))
        beat = lab.cores[1].exchange.heartbeat(lab.now)
        assert [effect.bulk for effect in beat if isinstance(effect, Send)] == [False]
        lab.perform(1, effects)
        lab.settle()
        assert lab.agree(0, 1)

    def test_guarantee_10_small_bodies_travel_with_their_message(self) -> None:
        lab = start_async()
        (letter,) = lab.publish(1, torch.ones(64))
        assert letter.body.version == 1


class TestGuarantee13Credits:
    def publish_for(self, lab: Lab, duration_s: float, every_s: float = 0.1) -> int:
        """Let node 0 publish; returns how many updates were sent. Nothing is delivered."""
        sent, end = 0, lab.now + duration_s
        while lab.now < end:
            sent += sum(letter.kind == Kind.DELTA for letter in lab.publish(0, torch.full((lab.size,), lab.now)))
            lab.mix(0)
            lab.wait(every_s, delivering=False)
        return sent

    @pytest.mark.parametrize(("window_bytes", "updates"), [(1, 2), (64 * 4 * 5, 5), (1 << 30, 32)])
    def test_guarantee_13_a_silent_neighbour_gets_no_more_than_its_window(
        self, window_bytes: int, updates: int
    ) -> None:
        lab = start_async(window_bytes=window_bytes, liveness_s=2.0)
        assert self.publish_for(lab, 30.0) == updates
        assert lab.seen_by(0, 1).lost

    def test_guarantee_13_two_that_both_ran_out_of_credit_find_each_other_again(self) -> None:
        """Whoever gets no updates must still get heartbeats, though the others get updates all the time."""
        lab = start_async(3, window_bytes=1, heartbeat_s=1.0, liveness_s=2.0)
        for step in range(120):
            lab.now += 0.1
            for node, core in enumerate(lab.cores):
                lab.publish(node, torch.full((64,), lab.now))
                core.mix(lab.models[node], lab.now)
                lab.perform(node, core.tick(lab.now))
            cut_off = step < 60
            lab.wire = [letter for letter in lab.wire if not cut_off or {letter.sender, letter.recipient} != {0, 1}]
            lab.settle()
            if step == 59:
                assert lab.seen_by(0, 1).lost
                assert lab.seen_by(1, 0).lost
        lab.wait(2.0)
        assert lab.agree(0, 1)
        assert lab.agree(1, 0)

    def test_guarantee_13_acknowledgement_gives_credit_back(self) -> None:
        lab = start_async(window_bytes=1)
        assert self.publish_for(lab, 2.0) == 2
        lab.settle()
        lab.wait(3.0)
        assert lab.agree(1, 0)
        assert self.publish_for(lab, 2.0) == 2

    def test_guarantee_13_an_asynchronous_node_waits_for_credit_with_limited_patience(self) -> None:
        lab = start_async(window_bytes=1, patience_s=3.0, liveness_s=1e6)
        core = lab.cores[0]
        self.publish_for(lab, 0.2)
        assert not core.may_publish(lab.now)
        assert not core.may_publish(lab.now + 2.9)
        assert core.may_publish(lab.now + 3.0)

    def test_guarantee_13_an_update_is_acknowledged_soon_though_nobody_else_speaks(self) -> None:
        lab = start_async(heartbeat_s=100.0, ack_delay_s=0.5)
        lab.publish(0, torch.ones(64))
        lab.settle()
        assert lab.seen_by(0, 1).acked == 0
        lab.wait(0.6)
        assert lab.seen_by(0, 1).acked == 1

    def test_guarantee_13_nobody_can_acknowledge_what_was_never_sent(self) -> None:
        lab = start_async(window_bytes=1)
        acks = {lab.identities[0].public_key: (1, 2**60)}
        lab.receive(0, lab.forge(1, Kind.STATUS, Status(0, 0, bytes(32), acks)))
        assert lab.seen_by(0, 1).acked == 0
        lab.publish(0)
        acks = {lab.identities[0].public_key: (7, 1), lab.identities[1].public_key: (1, 1)}
        lab.receive(0, lab.forge(1, Kind.STATUS, Status(0, 0, bytes(32), acks)))
        assert lab.seen_by(0, 1).acked == 0


def snapshot(lab: Lab) -> list[object]:
    """Return what node 0 of a lab believes."""
    core = lab.cores[0]
    followed = [
        (repr(other), other.vector is not None and vector_digest(other.vector)) for other in core.followed.values()
    ]
    return [followed, core.round, core.phase, core.replay_marks()]


def test_settings_are_what_the_document_says() -> None:
    settings = GossipSettings()
    assert (settings.resync_s, settings.resync_max_s, settings.window_bytes) == (0.25, 5.0, 4 << 20)
