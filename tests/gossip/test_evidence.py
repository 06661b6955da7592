"""Equivocation: noticed by neighbours who compare, proved to everybody, remembered."""

from __future__ import annotations

import json

import pytest
import torch
from lab import Lab, forge, make_identity

from gossipfl.errors import ConfigError, MessageError
from gossipfl.gossip.post import statement_of
from gossipfl.messages import (
    Envelope,
    Evidence,
    Kind,
    Proof,
    Seen,
    Statement,
    Status,
    decode_body,
    encode_body,
    parse_frame,
)
from gossipfl.messages.statements import format_proof, pack_statements, read_proof, unpack_statements

LIAR = 0


def equivocate(lab: Lab) -> None:
    """Let node 0 publish one model to node 1, and another under the same version to the others."""
    core = lab.cores[LIAR]
    letters = lab.publish(LIAR, torch.ones(lab.size))
    lab.wire = [letter for letter in lab.wire if letter not in letters]
    own = core.exchange.own
    own.version -= 1
    own.vector.zero_()
    others = lab.publish(LIAR, torch.full((lab.size,), -1.0))
    lab.wire = [letter for letter in lab.wire if letter not in others]
    lab.wire += [letter for letter in letters if letter.recipient == 1]
    lab.wire += [letter for letter in others if letter.recipient != 1]
    lab.settle()


def make_lab(nodes: int = 4, **settings: object) -> Lab:
    lab = Lab(nodes, mode="async", **settings).start()
    for node in range(1, nodes):
        lab.publish(node)
    lab.settle()
    return lab


def statement(sender: int = 0, version: int = 1, digest: bytes = bytes(32), **header: int) -> Statement:
    identity = make_identity(sender)
    frame = forge(
        identity,
        Kind.STATUS,
        Status(0, version, digest),
        federation=bytes(16),
        sequence=header.get("sequence", 1),
        incarnation=header.get("incarnation", 1),
    )
    envelope = parse_frame(frame)
    assert isinstance(envelope, Envelope)
    return statement_of(envelope)


class TestTheNetwork:
    def test_all_learn_of_it_and_hear_the_liar_no_more(self) -> None:
        lab = make_lab()
        equivocate(lab)
        lab.wait(8.0)
        for node in (1, 2, 3):
            (conviction,) = lab.convictions[node]
            assert conviction.peer == lab.ids[LIAR]
            assert conviction.proof.holds
            other = lab.seen_by(node, LIAR)
            assert (other.refused, other.usable, other.alive) == ("equivocation", False, False)
        before = [lab.dropped(node).get("convicted", 0) for node in (1, 2, 3)]
        lab.publish(LIAR)
        lab.settle()
        assert [lab.dropped(node)["convicted"] - count for node, count in zip((1, 2, 3), before, strict=True)] == [
            1
        ] * 3

    def test_also_those_who_are_no_neighbours_of_the_liar(self) -> None:
        lab = make_lab(5, edges=[(0, 1), (0, 2), (1, 2), (2, 3), (3, 4)])
        equivocate(lab)
        lab.wait(8.0)
        assert [len(convictions) for convictions in lab.convictions] == [0, 1, 1, 1, 1]

    def test_who_was_away_is_shown_the_proof_on_return(self) -> None:
        lab = make_lab()
        equivocate(lab)
        lab.wait(8.0)
        lab.restart(3)
        assert not lab.cores[3].proofs
        lab.wait(2.0)
        assert set(lab.cores[3].proofs) == {lab.ids[LIAR]}

    def test_a_proof_from_the_disk_holds_from_the_start(self) -> None:
        lab = make_lab()
        equivocate(lab)
        lab.wait(8.0)
        proofs = dict(lab.cores[1].proofs)
        lab.restart(1)
        lab.cores[1].restore_proofs(proofs)
        lab.publish(LIAR)
        lab.wait(2.0)
        assert lab.dropped(1)["convicted"] > 0
        assert not lab.convictions[1][1:]

    def test_a_restart_of_the_liar_changes_nothing(self) -> None:
        lab = make_lab()
        equivocate(lab)
        lab.wait(8.0)
        lab.restart(LIAR)
        lab.wait(3.0)
        assert all(lab.seen_by(node, LIAR).refused == "equivocation" for node in (1, 2, 3))

    def test_a_synchronous_round_does_not_wait_for_it(self) -> None:
        lab = Lab(4).start()
        for node in range(4):
            lab.publish(node)
        lab.settle()
        for node in range(4):
            lab.mix(node)
        lab.cores[1].restore_proofs({lab.ids[LIAR]: Proof(statement(), statement(digest=bytes([1] * 32)))})
        for node in (1, 2, 3):
            lab.publish(node)
        lab.settle()
        assert lab.cores[1].ready(lab.now)
        assert lab.ids[LIAR] not in lab.mix(1).verdicts

    def test_one_number_on_two_messages_is_noticed_by_one_node_alone(self) -> None:
        lab = make_lab(2)
        status = lab.cores[0].exchange.own
        lab.receive(1, lab.forge(0, Kind.STATUS, Status(0, status.version, status.digest), sequence=700))
        lab.receive(1, lab.forge(0, Kind.STATUS, Status(1, status.version, status.digest), sequence=700))
        (conviction,) = lab.convictions[1]
        assert "the sequence number 700" in conviction.proof.contradiction

    def test_a_replay_and_a_forged_twin_convict_nobody(self) -> None:
        lab = make_lab(2)
        own = lab.cores[0].exchange.own
        frame = lab.forge(0, Kind.STATUS, Status(0, own.version, own.digest), sequence=700)
        lab.receive(1, frame)
        lab.receive(1, frame)
        envelope = parse_frame(lab.forge(0, Kind.STATUS, Status(1, own.version, own.digest), sequence=700))
        assert isinstance(envelope, Envelope)
        forged = bytearray(lab.forge(0, Kind.STATUS, Status(1, own.version, own.digest), sequence=700))
        forged[-len(envelope.body or b"") - 1] ^= 1  # the last byte of the signature
        lab.receive(1, bytes(forged))
        assert lab.convictions[1] == []
        assert lab.dropped(1)["replay"] == 2


class TestHonestNodes:
    def test_losses_restarts_and_keyframes_convict_nobody(self) -> None:
        lab = make_lab(4, codec="int8")
        draw = torch.Generator().manual_seed(1)
        for round_ in range(30):
            for node in range(4):
                lab.models[node] += torch.randn(lab.size, generator=draw)
                lab.publish(node)
            if round_ % 3:
                lab.wire = [letter for letter in lab.wire if torch.rand(1, generator=draw) > 0.4]
            lab.wait(0.4)
            for node in range(4):
                lab.mix(node)
            if round_ % 7 == 6:
                lab.restart(round_ % 4)
        lab.wait(5.0)
        assert lab.convictions == [[], [], [], []]
        assert all("offence-evidence" not in lab.dropped(node) for node in range(4))

    def test_a_false_witness_convicts_nobody_and_is_answered_now_and_then(self) -> None:
        """Node 1 says that it holds something else of node 0: it is shown what node 0 has signed, and that is all."""
        lab = make_lab(3)
        lab.publish(0, torch.ones(lab.size))
        lab.settle()
        other = lab.seen_by(2, 0)
        key = lab.identities[0].public_key
        own = lab.cores[1].exchange.own
        for _ in range(20):
            claim = {key: Seen(other.incarnation, other.version, bytes(16))}
            lab.receive(2, lab.forge(1, Kind.STATUS, Status(own.round, own.version, own.digest, witness=claim)))
        assert len(lab.take(Kind.EVIDENCE)) == 1
        lab.wait(3.0)
        assert lab.convictions == [[], [], []]

    def test_evidence_of_strangers_or_without_a_signature_is_an_offence(self) -> None:
        lab = make_lab(2)
        stranger = statement(9)
        lab.receive(0, lab.forge(1, Kind.EVIDENCE, Evidence((stranger,))))
        genuine = lab.forge(1, Kind.STATUS, Status(0, 0, lab.cores[1].exchange.own.digest))
        envelope = parse_frame(genuine)
        assert isinstance(envelope, Envelope)
        forged = Statement(envelope.signed, bytes(64), envelope.header)
        lab.receive(0, lab.forge(1, Kind.EVIDENCE, Evidence((forged, statement_of(envelope)))))
        assert lab.dropped(0)["offence-evidence"] == 2
        assert lab.convictions[0] == []

    def test_a_header_that_says_something_else_than_the_body_is_an_offence(self) -> None:
        lab = make_lab(2)
        body = encode_body(Status(0, 5, bytes(32)))
        frame = lab.forge(1, Kind.STATUS, Status(0, 5, bytes(32)))
        envelope = parse_frame(frame)
        assert isinstance(envelope, Envelope)
        lab.receive(0, lab.forge(1, Kind.STATUS, body))  # says nothing in the header, as nodes of version 1.0
        assert "offence-statement" not in lab.dropped(0)
        lab.cores[0].exchange.post.requires_statements = True
        lab.receive(0, lab.forge(1, Kind.STATUS, body))
        assert lab.dropped(0)["offence-statement"] == 1


class TestProofs:
    @pytest.mark.parametrize(
        ("one", "other", "says"),
        [
            (statement(), statement(digest=bytes([1] * 32), sequence=2), "two digests for version 1"),
            (statement(), statement(version=2), "the sequence number 1"),
            (statement(), statement(), ""),
            (statement(), statement(sequence=2), ""),
            (statement(), statement(1, digest=bytes([1] * 32)), ""),
            (statement(), statement(digest=bytes([1] * 32), incarnation=2), ""),
            (statement(), statement(version=2, digest=bytes([1] * 32), sequence=2), ""),
        ],
    )
    def test_what_contradicts_what(self, one: Statement, other: Statement, says: str) -> None:
        proof = Proof(one, other)
        assert says in proof.contradiction
        assert proof.holds is bool(says)

    def test_a_third_party_can_check_it(self) -> None:
        proof = Proof(statement(), statement(version=2))
        text = format_proof(proof)
        assert read_proof(text) == proof
        tree = json.loads(text)
        assert tree["sender"] == make_identity(0).peer_id

    def test_any_change_takes_its_force(self) -> None:
        tree = json.loads(format_proof(Proof(statement(), statement(version=2))))
        tree["statements"][0]["signature"] = tree["statements"][1]["signature"]
        with pytest.raises(ConfigError, match="a signature does not hold"):
            read_proof(json.dumps(tree))
        tree["statements"][0] = tree["statements"][1]
        with pytest.raises(ConfigError, match="do not contradict"):
            read_proof(json.dumps(tree))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"statements": [1, 2]}', '{"statements": []}', "[" * 90_000])
    def test_rubbish_is_refused_in_one_line(self, text: str) -> None:
        with pytest.raises(ConfigError, match="no evidence") as raised:
            read_proof(text)
        assert "\n" not in str(raised.value)

    def test_packed_statements_are_read_back_and_bounded(self) -> None:
        one, other = statement(), statement(version=2)
        for given in ((one,), (one, other)):
            packed = pack_statements(given)
            assert unpack_statements(packed) == given
            body = decode_body(Kind.EVIDENCE, encode_body(Evidence(given)))
            assert body == Evidence(given)
            for length in range(len(packed)):
                if length == len(pack_statements((one,))):
                    continue
                with pytest.raises(MessageError):
                    unpack_statements(packed[:length])
        with pytest.raises(MessageError):
            unpack_statements(pack_statements((one, other, one)))
