"""Versions of the membership among cores: offered, believed for their signatures, adopted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from lab import Lab, make_identity
from membership.documents import ISSUED, SIGNERS, make_first

from gossipfl.errors import ConfigError
from gossipfl.gossip import Charters, Party
from gossipfl.membership.document import Document
from gossipfl.messages import Charter, Kind
from gossipfl.provision.changes import renewed, with_site, without_site

FIRST = make_first(4)
SECOND = without_site(FIRST, "n3", [("n0", "n2")], ISSUED).signed_by(SIGNERS[0])
RING = [(0, 1), (1, 2), (2, 3), (0, 3)]


def party_in(lab: Lab, node: int, document: Document) -> Party | None:
    """What a version means for a node of the lab."""
    membership = document.membership()
    me = lab.identities[node]
    if me.peer_id not in membership:
        return None
    graph = document.graph
    place = sorted(document.content.members).index(f"n{node}")
    weights = {
        document.content.members[graph.label(other)].peer_id: 1.0 / (1 + len(graph.neighbours(place)))
        for other in graph.neighbours(place)
    }
    return Party(me, membership, 1, weights)


def adopt(lab: Lab, node: int, document: Document) -> None:
    party = party_in(lab, node, document)
    if party is not None:
        lab.perform(node, lab.cores[node].adopt(document, party, lab.now))


def let_it_spread(lab: Lab, duration_s: float = 5.0) -> None:
    """Let time pass, and cores adopt what they are offered."""
    for _ in range(int(duration_s / 0.5)):
        lab.wait(0.5)
        for node, wanted in enumerate(lab.adoptions):
            for document in wanted:
                adopt(lab, node, document)
            wanted.clear()


def version_of(lab: Lab, node: int) -> int:
    return lab.cores[node].exchange.affairs.version


class TestSpreading:
    def test_one_node_is_told_and_all_members_follow(self) -> None:
        lab = Lab(4, edges=RING, mode="async", documents=[FIRST]).start()
        adopt(lab, 0, SECOND)
        let_it_spread(lab)
        assert [version_of(lab, node) for node in range(3)] == [2, 2, 2]
        for node in range(3):
            assert lab.ids[3] not in lab.cores[node].followed
        assert set(lab.cores[0].followed) == {lab.ids[1], lab.ids[2]}

    def test_the_removed_one_is_a_stranger_to_all(self) -> None:
        lab = Lab(4, edges=RING, mode="async", documents=[FIRST]).start()
        adopt(lab, 0, SECOND)
        let_it_spread(lab)
        before = [lab.dropped(node).get("stranger", 0) for node in range(3)]
        lab.publish(3, torch.ones(lab.size))
        lab.settle()
        after = [lab.dropped(node).get("stranger", 0) for node in range(3)]
        assert [late - early for late, early in zip(after, before, strict=True)] == [1, 0, 1]

    def test_new_neighbours_exchange_models(self) -> None:
        lab = Lab(4, edges=RING, mode="async", documents=[FIRST]).start()
        lab.publish(2, torch.full((lab.size,), 3.0))
        lab.settle()
        for node in (0, 1, 2):
            adopt(lab, node, SECOND)
        lab.wait(2.0)
        assert lab.agree(0, 2)
        lab.publish(0, torch.full((lab.size,), 4.0))
        lab.settle()
        assert lab.agree(2, 0)

    def test_those_who_stay_neighbours_lose_nothing(self) -> None:
        lab = Lab(4, edges=RING, mode="async", documents=[FIRST]).start()
        lab.publish(1, torch.ones(lab.size))
        lab.settle()
        held = lab.seen_by(0, 1)
        adopt(lab, 0, SECOND)
        assert lab.seen_by(0, 1) is held
        assert held.weight == pytest.approx(1 / 3)
        lab.publish(1, torch.full((lab.size,), 2.0))
        lab.settle()
        assert lab.agree(0, 1)

    def test_a_node_that_missed_versions_gets_what_it_needs(self) -> None:
        first = make_first(3)
        second = renewed(first, ISSUED).signed_by(SIGNERS[0])
        third = renewed(second, ISSUED, signers=[SIGNERS[1].peer_id]).signed_by(SIGNERS[0]).signed_by(SIGNERS[1])
        fourth = renewed(third, ISSUED).signed_by(SIGNERS[1])
        lab = Lab(3, edges=[(0, 1), (1, 2), (0, 2)], mode="async", documents=[first]).start()
        for document in (second, third, fourth):
            adopt(lab, 0, document)
        let_it_spread(lab, 20.0)
        assert [version_of(lab, node) for node in range(3)] == [4, 4, 4]

    def test_nothing_is_offered_to_nodes_without_versions(self) -> None:
        lab = Lab(2, mode="async")
        lab.cores[0] = Lab(2, mode="async", documents=[make_first(2)]).cores[0]
        lab.start()
        lab.wait(5.0)
        assert lab.take(Kind.MEMBERSHIP) == []
        assert lab.seen_by(0, 1).membership == 0


class TestRefusing:
    @pytest.mark.parametrize(
        "document",
        [
            renewed(make_first(2), ISSUED),
            renewed(make_first(2), ISSUED).signed_by(SIGNERS[1]),
            renewed(make_first(2), ISSUED, signers=[SIGNERS[1].peer_id]).signed_by(SIGNERS[1]),
        ],
        ids=["unsigned", "signed by a stranger", "not handed over"],
    )
    def test_what_is_not_signed_is_an_offence(self, document: Document) -> None:
        lab = Lab(2, mode="async", documents=[make_first(2)]).start()
        version = document.content.version
        lab.receive(0, lab.forge(1, Kind.MEMBERSHIP, Charter(version, memoryview(document.encode()))))
        assert lab.adoptions[0] == []
        assert lab.dropped(0)["offence-membership"] == 1
        (report,) = lab.events(0, "membership_refused")
        assert "valid signatures" in report.fields["detail"]

    @pytest.mark.parametrize("payload", [b"", b"{}", b"\xff" * 50, b"[" * 5000])
    def test_rubbish_is_an_offence(self, payload: bytes) -> None:
        lab = Lab(2, mode="async", documents=[make_first(2)]).start()
        lab.receive(0, lab.forge(1, Kind.MEMBERSHIP, Charter(2, memoryview(payload))))
        assert lab.dropped(0)["offence-membership"] == 1

    def test_an_older_one_is_ignored(self) -> None:
        lab = Lab(4, edges=RING, mode="async", documents=[FIRST, SECOND]).start(joined=False)
        lab.settle()
        lab.receive(0, lab.forge(1, Kind.MEMBERSHIP, Charter(1, memoryview(FIRST.encode()))))
        assert lab.adoptions[0] == []
        assert "offence-membership" not in lab.dropped(0)

    def test_a_document_of_another_number_than_announced_is_an_offence(self) -> None:
        lab = Lab(4, edges=RING, mode="async", documents=[FIRST]).start()
        lab.receive(0, lab.forge(1, Kind.MEMBERSHIP, Charter(9, memoryview(SECOND.encode()))))
        assert lab.dropped(0)["offence-membership"] == 1


class TestCharters:
    def chain(self, length: int) -> list[Document]:
        documents = [FIRST]
        for _ in range(length - 1):
            documents.append(renewed(documents[-1], ISSUED).signed_by(SIGNERS[0]))
        return documents

    def versions(self, charters: Sequence[Charter]) -> list[int]:
        return [charter.version for charter in charters]

    def test_the_newest_is_enough_where_the_signers_are_the_same(self) -> None:
        charters = Charters(self.chain(5))
        assert self.versions(charters.offers("peer", 2, 0.0)) == [5]

    def test_all_are_needed_where_signers_have_changed(self) -> None:
        first, second = self.chain(2)
        third = renewed(second, ISSUED, signers=[SIGNERS[1].peer_id]).signed_by(SIGNERS[0]).signed_by(SIGNERS[1])
        fourth = renewed(third, ISSUED).signed_by(SIGNERS[1])
        charters = Charters([first, second, third, fourth])
        assert self.versions(charters.offers("peer", 1, 0.0)) == [2, 3, 4]
        assert self.versions(charters.offers("other", 3, 0.0)) == [4]

    def test_offers_come_ever_more_seldom(self) -> None:
        charters = Charters(self.chain(2))
        times = [second for second in range(1000) if charters.offers("peer", 1, float(second))]
        assert times == [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811]

    def test_nothing_is_offered_to_those_who_are_up_to_date_or_ahead_or_too_old(self) -> None:
        charters = Charters(self.chain(4)[1:])
        assert [charters.offers("peer", version, 0.0) for version in (1, 4, 5)] == [[], [], []]

    def test_a_chain_with_a_gap_in_its_signers_is_refused(self) -> None:
        stranger = make_first(4, signers=[SIGNERS[2]])
        with pytest.raises(ConfigError):
            Charters([FIRST, renewed(stranger, ISSUED).signed_by(SIGNERS[2])])

    def test_only_a_successor_is_adopted(self) -> None:
        charters = Charters(self.chain(3))
        with pytest.raises(ConfigError, match="older"):
            charters.adopt(FIRST)
        joined = with_site(charters.current, "n9", make_identity(9).peer_id, ["n0"], [], ISSUED).signed_by(SIGNERS[0])
        charters.adopt(joined)
        assert charters.version == 4
