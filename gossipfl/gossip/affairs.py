"""What members tell each other beside models: versions of the membership, and evidence against one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gossipfl.errors import ConfigError
from gossipfl.gossip.charters import Charters, charter_of
from gossipfl.gossip.effects import Adopt, Convict, Effect, Report, Send
from gossipfl.gossip.post import Encoded
from gossipfl.gossip.witness import Witness
from gossipfl.messages import Charter, Evidence, Kind, Proof, Seen, Statement

if TYPE_CHECKING:
    from gossipfl.gossip.post import Opened, Post
    from gossipfl.gossip.replica import Followed
    from gossipfl.gossip.settings import Party
    from gossipfl.identity import PeerId
    from gossipfl.membership.document import Document


class Affairs:
    """One node's part in them; ``shut_out`` ends what there is with one who was convicted."""

    def __init__(self, party: Party, post: Post, charters: Charters | None, shut_out: Callable[[PeerId], None]) -> None:
        self.charters = charters
        self._party = party
        self._post = post
        self._shut_out = shut_out
        self._witness = Witness(party.membership, party.identity.peer_id)
        post.requires_statements = charters is not None
        post.on_replay = self._replayed

    @property
    def version(self) -> int:
        """The version of the membership in force; 0 where memberships have none."""
        return 0 if self.charters is None else self.charters.version

    @property
    def proofs(self) -> Mapping[PeerId, Proof]:
        """Who is known to have equivocated, and the proofs of it."""
        return self._witness.proofs

    def change_party(self, party: Party) -> None:
        """Go on with another membership."""
        self._party = party
        self._witness.change_membership(party.membership)

    # ------------------------------------------------------------------------------------------ membership

    def offer(self, peer: PeerId, theirs: int, now: float) -> list[Effect]:
        """Send a neighbour the membership, if it says that it has an older one (0: that it has none with a version)."""
        if self.charters is None or not theirs:
            return []
        return [self._sent(charter, peer, theirs) for charter in self.charters.offers(peer, theirs, now)]

    def show(self, peer: PeerId, document: Document, theirs: int) -> list[Effect]:
        """Send a neighbour with version ``theirs`` a document, whether or not it is in force here."""
        if not theirs:
            return []
        return [self._sent(charter_of(document), peer, theirs)]

    def _sent(self, charter: Charter, peer: PeerId, epoch: int) -> Send:
        """Return what brings a version to a neighbour under the key that it has, that of ``epoch``."""
        return Send((peer,), self._post.seal(Encoded.of(Kind.MEMBERSHIP, charter), peer).frame, epoch=epoch)

    def hear_charter(self, peer: PeerId, charter: Charter, now: float) -> list[Effect]:
        """Consider a version of the membership."""
        if self.charters is None:
            return []
        try:
            document = self.charters.consider(charter)
        except ConfigError as error:
            refused = Report("membership_refused", peer, {"version": charter.version, "detail": str(error)})
            return [refused, *self._post.offend(peer, "membership", now)]
        return [] if document is None else [Adopt(document)]

    # ------------------------------------------------------------------------------------------ evidence

    def testimony(self, followed: Mapping[PeerId, Followed]) -> dict[bytes, Seen]:
        """Return what this node holds of its neighbours, by public key."""
        members = self._party.membership.members
        return {
            members[peer].public_key: Seen.of(other.incarnation, other.version, other.digest)
            for peer, other in followed.items()
            if other.speaks and other.vector is not None and other.version
        }

    def note(self, message: Opened) -> list[Effect]:
        """Remember what a neighbour has signed."""
        proof = self._witness.note(message.peer, message.statement)
        return [] if proof is None else self._convict(message.peer, proof)

    def hear_testimony(self, peer: PeerId, witness: Mapping[bytes, Seen], now: float) -> list[Effect]:
        """Compare what a neighbour holds of others with what they told this node."""
        effects: list[Effect] = []
        for statement in self._witness.differing(peer, witness, now):
            effects += self._post.send(Kind.EVIDENCE, Evidence((statement,)), (peer,))
        return effects

    def hear_evidence(self, peer: PeerId, evidence: Evidence, now: float) -> list[Effect]:
        """Weigh what a third node has signed."""
        try:
            verdict = self._witness.weigh(evidence.statements)
        except ValueError:
            return self._post.offend(peer, "evidence", now)
        return [] if verdict is None else self._convict(*verdict)

    def show_proofs(self, peer: PeerId) -> list[Effect]:
        """Send a neighbour all proofs."""
        effects: list[Effect] = []
        for convict, proof in self.proofs.items():
            if convict != peer:
                effects += self._post.send(Kind.EVIDENCE, Evidence((proof.one, proof.other)), (peer,))
        return effects

    def restore(self, proofs: Mapping[PeerId, Proof]) -> None:
        """Know these proofs from the start."""
        for peer, proof in proofs.items():
            self._end_with(peer, proof)

    def _replayed(self, peer: PeerId, statement: Statement) -> list[Effect]:
        proof = self._witness.note_again(peer, statement)
        if proof is None or not statement.genuine:
            return []
        return self._convict(peer, proof)

    def _convict(self, peer: PeerId, proof: Proof) -> list[Effect]:
        """Keep a proof, tell all neighbours, and hear its sender no more."""
        if peer in self.proofs:
            return []
        self._end_with(peer, proof)
        effects: list[Effect] = [Convict(peer, proof)]
        to = [other for other in self._party.weights if other != peer]
        return effects + self._post.send(Kind.EVIDENCE, Evidence((proof.one, proof.other)), to)

    def _end_with(self, peer: PeerId, proof: Proof) -> None:
        self._witness.convict(peer, proof)
        self._post.convicted.add(peer)
        self._shut_out(peer)
