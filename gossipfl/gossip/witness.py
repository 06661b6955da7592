"""Neighbours of one node compare what it has told them: whoever says different things to them convicts itself.

Every node tells its neighbours, with its updates and heartbeats, which version with which digest it holds of the nodes
that it follows. Who holds the same version with another digest shows the statement that it was given; the other one
then has two that contradict each other, and hands both on to everybody. A proof is checked by each receiver for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from gossipfl.identity import PeerId
from gossipfl.membership import Membership
from gossipfl.messages import Proof, Seen, Statement

KEPT = 64
"""Statements remembered of each neighbour: those of its last versions, which others may still speak of."""
SHOW_EVERY_S = 5.0
"""Least time from one statement to the next that is shown to one neighbour about one node."""


class Witness:
    """What one node can testify: the statements of its neighbours, and the proofs that it knows."""

    def __init__(self, membership: Membership, me: PeerId) -> None:
        self._membership = membership
        self._me = me
        self._by_version: dict[PeerId, OrderedDict[tuple[int, int], Statement]] = {}
        self._by_sequence: dict[PeerId, OrderedDict[tuple[int, int], Statement]] = {}
        self._shown: dict[tuple[PeerId, PeerId], float] = {}
        self.proofs: dict[PeerId, Proof] = {}

    def change_membership(self, membership: Membership) -> None:
        """Go on with another membership."""
        self._membership = membership
        for table in (self._by_version, self._by_sequence):
            for peer in [peer for peer in table if peer not in membership]:
                del table[peer]
        self._shown.clear()

    # ------------------------------------------------------------------------------------------ what was said to us

    def note(self, peer: PeerId, statement: Statement) -> Proof | None:
        """Remember what a neighbour has signed; return the proof if it contradicts what it signed before."""
        header = statement.header
        if header.stated is not None:
            known = self._by_version.setdefault(peer, OrderedDict())
            former = known.get((header.incarnation, header.stated.version))
            if former is not None and (proof := _proof(former, statement)) is not None:
                return proof
            _keep(known, (header.incarnation, header.stated.version), statement)
            _keep(self._by_sequence.setdefault(peer, OrderedDict()), (header.incarnation, header.sequence), statement)
        return None

    def note_again(self, peer: PeerId, statement: Statement) -> Proof | None:
        """Return the proof if a number that was used before is now on another message; its signature is not checked."""
        header = statement.header
        known = self._by_sequence.get(peer)
        former = None if known is None else known.get((header.incarnation, header.sequence))
        return None if former is None else _proof(former, statement)

    # ------------------------------------------------------------------------------------------ what others were told

    def differing(self, teller: PeerId, witness: Mapping[bytes, Seen], now: float) -> list[Statement]:
        """Return what ``teller`` should see: statements to us that do not agree with what it holds."""
        found = []
        for key, seen in witness.items():
            member = self._membership.by_public_key(key)
            if member is None or member.peer_id in {teller, self._me} or member.peer_id in self.proofs:
                continue
            mine = self._told(member.peer_id, seen.incarnation, seen.version)
            if mine is None or mine.header.stated is None or mine.header.stated.digest.startswith(seen.digest):
                continue
            if now >= self._shown.get((teller, member.peer_id), float("-inf")) + SHOW_EVERY_S:
                self._shown[teller, member.peer_id] = now
                found.append(mine)
        return found

    def weigh(self, statements: Iterable[Statement]) -> tuple[PeerId, Proof] | None:
        """Return whom the statements convict, alone or with what we were told; None where they prove nothing new.

        Raises ValueError where one is not genuine, or of nobody that we know.
        """
        given = tuple(statements)
        member = self._membership.by_public_key(given[0].header.sender)
        if member is None or any(each.header.federation != self._membership.federation_id for each in given):
            raise ValueError("a statement of a stranger")
        if member.peer_id in self.proofs:
            return None
        if not all(each.genuine for each in given):
            raise ValueError("a signature does not hold")
        if len(given) == 2:
            proof = _proof(*given)
            if proof is None:
                raise ValueError("the statements do not contradict each other")
            return member.peer_id, proof
        stated = given[0].header.stated
        mine = None if stated is None else self._told(member.peer_id, given[0].header.incarnation, stated.version)
        proof = None if mine is None else _proof(mine, given[0])
        return None if proof is None else (member.peer_id, proof)

    def _told(self, peer: PeerId, incarnation: int, version: int) -> Statement | None:
        known = self._by_version.get(peer)
        return None if known is None else known.get((incarnation, version))

    def convict(self, peer: PeerId, proof: Proof) -> None:
        """Remember a proof; its statements are needed no more."""
        self.proofs[peer] = proof
        for table in (self._by_version, self._by_sequence):
            table.pop(peer, None)


def _keep(table: OrderedDict[tuple[int, int], Statement], key: tuple[int, int], statement: Statement) -> None:
    table[key] = statement
    while len(table) > KEPT:
        table.popitem(last=False)


def _proof(one: Statement, other: Statement) -> Proof | None:
    proof = Proof(one, other)
    return proof if proof.contradiction else None
