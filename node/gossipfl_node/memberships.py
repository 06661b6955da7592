"""The versions of the membership that a site keeps: the one that an operator installed, and those that came later.

state/memberships/
  000002.json       a version that was in force here, oldest first; those before the installed one are not known
state/evidence/
  12D3Koo....json   the proof that this member has equivocated; delete it to hear the member again
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossipfl.errors import ConfigError
from gossipfl.identity import peer_id_of
from gossipfl.membership.document import Document, check_first, check_successor, read_document
from gossipfl.membership.roster import federation_id_of
from gossipfl.messages.statements import format_proof, read_proof
from gossipfl_node.durable import write_atomically

if TYPE_CHECKING:
    from gossipfl.agent import Succession
    from gossipfl.gossip import CoreState
    from gossipfl.identity import Identity, PeerId
    from gossipfl.messages import Proof
    from gossipfl_node.resumption import Resumption
    from gossipfl_node.status import Ledger

FOLDER = "memberships"
EVIDENCE_FOLDER = "evidence"
MAX_KEPT = 64
"""Versions kept, each some 200 bytes a site; a neighbour with an older one is brought up to date by others."""

log = logging.getLogger(__name__)


def known_versions(installed: Path, state: Path) -> list[Document]:
    """Return the versions that a site has, oldest first; the last is in force.

    An installed file that is newer than what is kept takes its place as one that came by gossip would, and one that
    follows nothing that is kept (the site was set up anew) starts a new list. Raises ConfigError where it is no
    membership that enough signers have signed.
    """
    document = read_document(installed)
    check_first(document)
    kept = [each for each in _kept(state) if each.content.federation == document.content.federation]
    chain: list[Document] = []
    for each in kept:
        if chain and not _succeeds(each, chain[-1]):
            chain = []
        chain.append(each)
    if not chain or _succeeds(document, chain[-1]):
        return [*chain, document]
    if any(each.fingerprint == document.fingerprint for each in chain) or _succeeds(chain[-1], document):
        return chain
    log.warning("%s follows no version that was in force here: it begins anew", installed)
    return [document]


def _kept(state: Path) -> list[Document]:
    found = []
    for path in sorted((state / FOLDER).glob("*.json"))[-MAX_KEPT:]:
        try:
            found.append(read_document(path))
        except ConfigError as error:
            log.warning("left aside: %s", error)
    return found


def _succeeds(document: Document, current: Document) -> bool:
    try:
        check_successor(document, current)
    except ConfigError:
        return False
    return True


def federation_section(document: Document) -> dict[str, Any]:
    """Return what a site's file would have to say for the same members, edges and seed."""
    content = document.content
    return {
        "name": content.federation,
        "members": {name: site.peer_id for name, site in content.members.items()},
        "edges": [list(edge) for edge in content.edges],
        "addresses": {name: list(site.addresses) for name, site in content.members.items() if site.addresses},
        "model_seed": content.model_seed,
    }


def federation_key(document: Document, identity: Identity) -> bytes | None:
    """Return the key that members have in this version; raises ConfigError where it was sealed for somebody else."""
    from gossipfl.membership.sealing import open_key

    content = document.content
    if content.key is None:
        return None
    name = document.name_of(identity.peer_id)
    if name is None:
        raise ConfigError(f"{identity.peer_id} is no member in version {content.version}")
    try:
        sealed = base64.b64decode(content.key.sealed[name], validate=True)
    except ValueError:
        raise ConfigError(f"the federation key of version {content.version} is not base64") from None
    federation = federation_id_of(content.federation)
    return open_key(sealed, identity, federation=federation, version=content.version, check=content.key.check)


def known_proofs(state: Path) -> dict[PeerId, Proof]:
    """Return who is known to have equivocated, with the proof; files that prove nothing are left aside."""
    proofs = {}
    for path in sorted((state / EVIDENCE_FOLDER).glob("*.json")):
        try:
            proof = read_proof(path.read_bytes())
        except (OSError, ConfigError) as error:
            log.warning("left aside: %s: %s", path, error)
        else:
            proofs[peer_id_of(proof.sender)] = proof
    return proofs


class InstalledFile:
    """The membership file that site.toml names, which an operator may replace while the daemon runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()

    def replaced(self) -> Document | None:
        """Return the document if the file is another one than at the last look; raises ConfigError where it is none."""
        stamp = self._stamp()
        if stamp == self._seen or stamp is None:
            return None
        self._seen = stamp
        return read_document(self._path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


@dataclass(frozen=True, slots=True)
class Keeper:
    """Keeps for the agent what must outlive it, and tells it what a version of the membership means for this site."""

    state: Path
    identity: Identity
    incarnation: int
    ledger: Ledger
    resumption: Resumption

    def wants_checkpoint(self) -> bool:
        """Whether it is time for a checkpoint, and none is being written."""
        return self.resumption.due

    async def keep_checkpoint(self, core: CoreState, learner: Mapping[str, Any], *, last: bool) -> None:
        """Put a checkpoint on the disk, in the background but for the ``last``."""
        await self.resumption.save(core, learner, last=last)

    async def keep(self, document: Document) -> Succession:
        """Put a version on the disk, and return what it means for this node; raises ConfigError where it cannot."""
        from gossipfl_node.federation import Federation

        succession = self.succession(document)
        await asyncio.to_thread(self.save, document)
        if succession.party is not None:
            self.ledger.federation = Federation.of_document(document, self.identity.peer_id)
        return succession

    def save(self, document: Document) -> None:
        """Put a version on the disk."""
        path = self.state / FOLDER / f"{document.content.version:06d}.json"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(path, document.encode().decode())
            for old in sorted(path.parent.glob("*.json"))[:-MAX_KEPT]:
                old.unlink()
        except OSError as error:
            raise ConfigError(f"membership {path} cannot be written: {error.strerror}") from None

    def keep_proof(self, peer: PeerId, proof: Proof) -> None:
        """Put the proof of an equivocation on the disk; where it fails, it is known until the next start alone."""
        path = self.state / EVIDENCE_FOLDER / f"{peer}.json"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomically(path, format_proof(proof))
        except OSError as error:
            log.error("evidence %s cannot be written: %s", path, error.strerror)  # noqa: TRY400 - one line

    def succession(self, document: Document) -> Succession:
        """Return what a version means for this node."""
        from gossipfl.agent import Succession
        from gossipfl.gossip import Party
        from gossipfl_node.federation import weights_of

        membership = document.membership()
        members = list(membership.members)
        if self.identity.peer_id not in membership:
            return Succession(None, members, None)
        party = Party(self.identity, membership, self.incarnation, weights_of(document, self.identity.peer_id))
        return Succession(party, members, federation_key(document, self.identity))
