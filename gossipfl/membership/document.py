"""Numbered, signed versions of a membership: who belongs, who gossips with whom, and the federation's key.

A document is JSON, so that people can read and compare it:

    {"signed": {...}, "signatures": {signer's peer id: base64 of 64 bytes}}

Signatures are over the canonical form of ``signed``: keys sorted, no spaces, ASCII, no fractions. What a later version
of this program adds to it stays in it and under the signatures.

    what is signed = "gossipfl/1/membership" ‖ 00 ‖ canonical form

The first version is trusted because an operator installed it. A later one is believed if ``threshold`` of the signers
of the version in force have signed it, and ``threshold`` of its own: so signers can hand over to others, and no single
one decides where the threshold is above one (The Update Framework, Samuel et al., CCS 2010, section 4.2).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gossipfl.digest import digest
from gossipfl.errors import ConfigError
from gossipfl.identity import SIGNATURE_BYTES, Identity, PeerId, Verifier, public_key_of
from gossipfl.membership.roster import Membership
from gossipfl.topology.graph import Topology, canonical_edges

TYPE: Final = "gossipfl membership 1"
MAX_DOCUMENT_BYTES: Final = 900_000
"""Some 3,000 sites: a document travels in one frame."""
MAX_SIGNERS: Final = 64

_DOMAIN: Final = b"gossipfl/1/membership\0"

Name = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=256)]


class _Part(BaseModel):
    """Strict about what it knows, silent about what it does not."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class Site(_Part):
    """A member: its peer id, and where it is dialled over libp2p."""

    peer_id: Text
    addresses: list[Text] = Field(default_factory=list, max_length=64)


class FederationKey(_Part):
    """The key of this version, sealed for each member by name (base64), and the digest that it must have (hex)."""

    check: Annotated[str, Field(pattern=r"[0-9a-f]{64}")]
    sealed: dict[Name, Text]


class Content(_Part):
    """What is signed. ``edges`` are pairs of names; ``key`` is None where messages are not encrypted."""

    type: Text
    federation: Name
    version: Annotated[int, Field(ge=1, lt=2**53)]
    issued: Text
    signers: list[Text] = Field(min_length=1, max_length=MAX_SIGNERS)
    threshold: Annotated[int, Field(ge=1, le=MAX_SIGNERS)]
    members: dict[Name, Site] = Field(min_length=2, max_length=4096)
    edges: list[Annotated[list[Name], Field(min_length=2, max_length=2)]]
    model_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    key: FederationKey | None = None


@dataclass(frozen=True)
class Document:
    """One version: its ``content``, the ``tree`` that it was read from, and ``signatures`` by signer."""

    content: Content
    tree: Mapping[str, Any]
    signatures: Mapping[PeerId, bytes]

    @classmethod
    def of(cls, content: Content) -> Self:
        """Return the unsigned document of ``content``; raises ConfigError where that contradicts itself."""
        document = cls(content, content.model_dump(), {})
        document.check()
        return document

    @classmethod
    def parse(cls, data: bytes | str) -> Self:
        """Read a document; raises ConfigError with one line for whatever is wrong in it. No signature is checked."""
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ConfigError(f"a membership has at most {MAX_DOCUMENT_BYTES} bytes, not {len(data)}")
        try:
            outer = json.loads(data, parse_float=_no_fraction, parse_constant=_no_fraction)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"no membership: {error}") from None
        if not isinstance(outer, dict) or not isinstance(outer.get("signed"), dict):
            raise ConfigError('no membership: there is no "signed" part')
        tree = outer["signed"]
        if tree.get("type") != TYPE:
            raise ConfigError(f'no membership: its type is {tree.get("type")!r}, not "{TYPE}"')
        try:
            content = Content.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"membership: {where}: {first['msg']}") from None
        document = cls(content, tree, _signatures(outer.get("signatures")))
        document.check()
        return document

    def check(self) -> None:
        """Raise ConfigError where the content contradicts itself."""
        content = self.content
        for signer in content.signers:
            public_key_of(signer)
        if len(set(content.signers)) != len(content.signers):
            raise ConfigError("membership: a signer is named twice")
        if content.threshold > len(content.signers):
            raise ConfigError(
                f"membership: threshold {content.threshold} is more than there are signers, {len(content.signers)}"
            )
        self.membership()
        seen = set()
        for one, other in content.edges:
            for name in (one, other):
                if name not in content.members:
                    raise ConfigError(f'membership: edge "{one}", "{other}": "{name}" is no member')
            pair = frozenset((one, other))
            if len(pair) < 2 or pair in seen:
                raise ConfigError(f'membership: edge "{one}", "{other}" is there twice, or leads back')
            seen.add(pair)
        if content.key is not None and content.key.sealed.keys() != content.members.keys():
            raise ConfigError("membership: the federation key is not sealed for each member, and nobody else")

    def name_of(self, peer_id: PeerId) -> str | None:
        """Return the name of the member with this peer id; None where there is none."""
        return next((name for name, site in self.content.members.items() if site.peer_id == peer_id), None)

    @property
    def graph(self) -> Topology:
        """The graph of the members."""
        return graph_of(self.content.federation, self.content.members, self.content.edges)

    def membership(self) -> Membership:
        """Return the table of members; raises ConfigError for names or peer ids that cannot be used."""
        content = self.content
        return Membership.from_ids(content.federation, {name: site.peer_id for name, site in content.members.items()})

    # ------------------------------------------------------------------------------------------ bytes

    @property
    def canonical(self) -> bytes:
        """The canonical form of what is signed."""
        return json.dumps(self.tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @property
    def fingerprint(self) -> bytes:
        """The digest of what is signed: two documents say the same exactly when it is the same."""
        return digest(_DOMAIN, self.canonical)

    def encode(self) -> bytes:
        """Return the document as it is written to files, and travels."""
        signatures = {signer: base64.b64encode(each).decode() for signer, each in sorted(self.signatures.items())}
        outer = {"signed": self.tree, "signatures": signatures}
        return (json.dumps(outer, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()

    # ------------------------------------------------------------------------------------------ signatures

    def signed_by(self, identity: Identity) -> Self:
        """Return the document with one more signature."""
        signature = identity.sign(_DOMAIN + self.canonical)
        return replace(self, signatures={**self.signatures, identity.peer_id: signature})

    def approved_by(self, signers: Iterable[PeerId]) -> frozenset[PeerId]:
        """Return those of ``signers`` whose signatures hold."""
        message = _DOMAIN + self.canonical
        return frozenset(
            signer
            for signer in signers
            if signer in self.signatures and Verifier(public_key_of(signer)).verify(message, self.signatures[signer])
        )

    @property
    def complete(self) -> bool:
        """Whether enough of its own signers have signed it."""
        return len(self.approved_by(self.content.signers)) >= self.content.threshold


def check_first(document: Document) -> None:
    """Raise ConfigError where a document cannot be the one that an operator installs."""
    if not document.complete:
        raise ConfigError(_too_few(document, document, "its own"))


def check_successor(document: Document, current: Document) -> None:
    """Raise ConfigError, with the reason, where ``document`` may not take the place of ``current``."""
    new, old = document.content, current.content
    if new.federation != old.federation:
        raise ConfigError(f'membership of "{new.federation}", not of "{old.federation}"')
    if new.version < old.version:
        raise ConfigError(f"membership version {new.version} is older than {old.version}, which is in force")
    if new.version == old.version:
        raise ConfigError(f"another membership version {new.version} is in force already; number the new one higher")
    if len(document.approved_by(old.signers)) < old.threshold:
        raise ConfigError(_too_few(document, current, f"version {old.version}'s"))
    if not document.complete:
        raise ConfigError(_too_few(document, document, "its own"))


def graph_of(federation: str, members: Iterable[str], edges: Iterable[Sequence[str]]) -> Topology:
    """Return the graph of the members of a federation, its nodes in the order of their names."""
    names = sorted(members)
    number = {name: index for index, name in enumerate(names)}
    pairs = canonical_edges((number[one], number[other]) for one, other in edges)
    return Topology(federation, len(names), pairs, labels=tuple(names))


def read_document(path: Path) -> Document:
    """Return the membership in a file; raises ConfigError that names it."""
    try:
        return Document.parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"membership {path} cannot be read: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _too_few(document: Document, judge: Document, whose: str) -> str:
    approved = len(document.approved_by(judge.content.signers))
    return (
        f"membership version {document.content.version} has {approved} valid signatures of {whose} signers, "
        f"and needs {judge.content.threshold}; let more of them sign it: gossipfl federation sign"
    )


def _signatures(tree: Any) -> dict[PeerId, bytes]:
    if not isinstance(tree, dict) or len(tree) > 2 * MAX_SIGNERS:
        raise ConfigError('no membership: there are no "signatures"')
    found = {}
    for signer, text in tree.items():
        try:
            signature = base64.b64decode(text, validate=True)
        except (ValueError, TypeError):
            signature = b""
        if len(signature) != SIGNATURE_BYTES:
            raise ConfigError(f"membership: the signature of {str(signer)[:64]} is no base64 of 64 bytes")
        found[str(signer)] = signature
    return found


def _no_fraction(text: str) -> Any:
    raise ValueError(f"{text} is no whole number")
