from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import make_identity
from membership.documents import ISSUED, SIGNERS, make_first

from gossipfl.errors import ConfigError
from gossipfl.membership.document import MAX_DOCUMENT_BYTES, Document, check_first, check_successor
from gossipfl.provision.changes import renewed, with_site, without_site

A, B, C = SIGNERS


def test_what_is_written_is_read() -> None:
    document = make_first(encrypted=True)
    again = Document.parse(document.encode())
    assert again == Document(again.content, document.tree, document.signatures)
    assert again.content == document.content
    assert again.fingerprint == document.fingerprint
    check_first(again)


def test_what_a_later_program_adds_stays_under_the_signature() -> None:
    outer = json.loads(make_first().encode())
    outer["signed"]["region"] = "north"
    unsigned = Document.parse(json.dumps(outer))
    with pytest.raises(ConfigError, match="0 valid signatures"):
        check_first(unsigned)
    document = Document.parse(unsigned.signed_by(A).encode())
    check_first(document)
    assert document.tree["region"] == "north"


def test_the_graph_has_the_members_in_the_order_of_their_names() -> None:
    graph = make_first(5).graph
    assert [graph.label(node) for node in range(5)] == ["n0", "n1", "n2", "n3", "n4"]
    assert graph.edges == ((0, 1), (0, 4), (1, 2), (2, 3), (3, 4))


class TestSuccession:
    def test_a_later_version_signed_by_the_same_follows_also_with_gaps(self) -> None:
        first = make_first()
        second = with_site(first, "n9", make_identity(9).peer_id, ["n0"], [], ISSUED).signed_by(A)
        third = without_site(second, "n9", [], ISSUED).signed_by(A)
        check_successor(second, first)
        check_successor(third, second)
        check_successor(third, first)

    def test_an_older_one_and_another_of_the_same_number_are_refused(self) -> None:
        first = make_first()
        second = renewed(first, ISSUED).signed_by(A)
        with pytest.raises(ConfigError, match="version 1 is older than 2"):
            check_successor(first, second)
        other = with_site(first, "n9", make_identity(9).peer_id, ["n0"], [], ISSUED).signed_by(A)
        with pytest.raises(ConfigError, match="another membership version 2"):
            check_successor(other, second)

    def test_another_federation_is_refused(self) -> None:
        first = make_first()
        content = renewed(first, ISSUED).content.model_copy(update={"federation": "other"})
        with pytest.raises(ConfigError, match='membership of "other"'):
            check_successor(Document.of(content).signed_by(A), first)

    @pytest.mark.parametrize("signer", [None, B, make_identity(0)])
    def test_who_is_no_signer_decides_nothing(self, signer: Any) -> None:
        first = make_first()
        second = renewed(first, ISSUED)
        if signer is not None:
            second = second.signed_by(signer)
        with pytest.raises(ConfigError, match="0 valid signatures of version 1's signers"):
            check_successor(second, first)

    def test_the_threshold_counts_signers_not_signatures(self) -> None:
        first = make_first(signers=[A, B, C], threshold=2)
        second = renewed(first, ISSUED).signed_by(A).signed_by(A)
        with pytest.raises(ConfigError, match="has 1 valid signatures"):
            check_successor(second, first)
        check_successor(second.signed_by(C), first)

    def test_signers_hand_over_with_the_signatures_of_both(self) -> None:
        first = make_first(signers=[A])
        second = renewed(first, ISSUED, signers=[B.peer_id])
        with pytest.raises(ConfigError, match="of version 1's signers"):
            check_successor(second.signed_by(B), first)
        with pytest.raises(ConfigError, match="of its own signers"):
            check_successor(second.signed_by(A), first)
        check_successor(second.signed_by(A).signed_by(B), first)

    def test_a_signature_moved_from_another_version_does_not_hold(self) -> None:
        first = make_first()
        second = renewed(first, ISSUED)
        stolen = Document(second.content, second.tree, first.signatures)
        with pytest.raises(ConfigError, match="0 valid signatures"):
            check_successor(stolen, first)


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    outer = json.loads(make_first(encrypted=True).encode())
    change(outer)
    return json.dumps(outer)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no membership"),
        ("[]", 'no "signed" part'),
        ('{"signed": {"type": "other"}}', "its type is 'other'"),
        ("[" * 100_000, "no membership"),
        (" " * (MAX_DOCUMENT_BYTES + 1), "at most 900000 bytes"),
        (changed(lambda outer: outer.pop("signatures")), 'no "signatures"'),
        (changed(lambda outer: outer["signatures"].update(x="AAAA")), "the signature of x"),
        (changed(lambda outer: outer["signed"].update(version=0)), "version"),
        (changed(lambda outer: outer["signed"].update(version=1.5)), "1.5 is no whole number"),
        (changed(lambda outer: outer["signed"].update(version="2")), "version"),
        (changed(lambda outer: outer["signed"].update(threshold=2)), "threshold 2 is more"),
        (changed(lambda outer: outer["signed"].update(signers=["x"])), "peer id"),
        (changed(lambda outer: outer["signed"]["edges"].append(["n0", "n9"])), '"n9" is no member'),
        (changed(lambda outer: outer["signed"]["edges"].append(["n1", "n0"])), "there twice"),
        (changed(lambda outer: outer["signed"]["edges"].append(["n1", "n1"])), "leads back"),
        (changed(lambda outer: outer["signed"]["members"].update(n9={"peer_id": "x"})), "peer id"),
        (changed(lambda outer: outer["signed"]["key"]["sealed"].pop("n0")), "not sealed for each member"),
        (changed(lambda outer: outer["signed"].pop("members")), "members: Field required"),
    ],
)
def test_bad_documents_get_one_line(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as raised:
        Document.parse(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_altered_byte_is_believed(data: st.DataObject) -> None:
    encoded = bytearray(make_first().encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    try:
        document = Document.parse(bytes(encoded))
        check_first(document)
    except ConfigError:
        return
    assert document.fingerprint == make_first().fingerprint  # in white space, or in the name of a signature


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
TREES = st.recursive(
    LEAVES,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=8), part, max_size=4),
    max_leaves=20,
)


@given(TREES)
@settings(max_examples=60, deadline=None)
def test_any_tree_in_any_place_is_refused_in_one_line_or_read(tree: Any) -> None:
    outer, complaints = json.loads(make_first(encrypted=True).encode()), []
    for key in list(outer["signed"]):
        if key == "type":
            continue
        text = json.dumps({**outer, "signed": {**outer["signed"], key: tree}})
        try:
            Document.parse(text)
        except ConfigError as error:
            complaints.append(str(error))
    assert not [line for line in complaints if "\n" in line]


def test_signatures_of_anything_but_64_bytes_are_refused() -> None:
    short = changed(lambda outer: outer["signatures"].update({A.peer_id: base64.b64encode(bytes(63)).decode()}))
    with pytest.raises(ConfigError, match="no base64 of 64 bytes"):
        Document.parse(short)
