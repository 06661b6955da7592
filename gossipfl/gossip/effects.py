"""What the protocol core asks its shell to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from gossipfl.identity import PeerId

if TYPE_CHECKING:
    from gossipfl.membership.document import Document
    from gossipfl.messages import Proof


@dataclass(frozen=True, slots=True)
class Send:
    """Put one frame on the wire; ``bulk`` frames (chunks) never go before others.

    ``epoch``: the version of the membership whose key the recipients have; None: the one in force.
    """

    recipients: tuple[PeerId, ...]
    frame: bytes
    bulk: bool = False
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened that records, logs and metrics should know."""

    event: str
    peer: PeerId | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adopt:
    """A membership that may take the place of the one in force: keep it on the disk, then call ``GossipCore.adopt``."""

    document: Document


@dataclass(frozen=True, slots=True)
class Convict:
    """A member has signed what contradicts itself: keep the proof on the disk. It is not heard any more."""

    peer: PeerId
    proof: Proof


Effect: TypeAlias = Send | Report | Adopt | Convict
