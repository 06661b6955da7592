"""What an agent has kept by its host: checkpoints, memberships that come into force, evidence."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gossipfl.gossip import CoreState, Party
    from gossipfl.identity import PeerId
    from gossipfl.membership.document import Document
    from gossipfl.messages import Proof


@dataclass(frozen=True, slots=True)
class Succession:
    """A version as this node sees it: its neighbours in ``party``, and the ``key`` that messages are sealed with.

    ``party`` is None where this node is no member any more, ``key`` where messages are not sealed.
    """

    party: Party | None
    members: Collection[PeerId]
    key: bytes | None


class Steward(Protocol):
    """Whoever keeps checkpoints, versions of the membership, and evidence against members."""

    async def keep(self, document: Document) -> Succession:
        """Put a version on the disk, and return what it means for this node; raises UsageError where it cannot."""

    def wants_checkpoint(self) -> bool:
        """Whether it is time for a checkpoint, and none is being written."""

    def keep_checkpoint(self, core: CoreState, learner: Mapping[str, Any], *, last: bool) -> Awaitable[None]:
        """Put a checkpoint on the disk; what fails is the steward's to tell. The ``last`` one is waited for."""

    def keep_proof(self, peer: PeerId, proof: Proof) -> None:
        """Put the proof of an equivocation on the disk; what fails is the steward's to tell."""
