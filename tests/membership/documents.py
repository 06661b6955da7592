"""Memberships for tests."""

from __future__ import annotations

from datetime import UTC, datetime

from lab import make_identity

from gossipfl.identity import Identity
from gossipfl.membership.document import Document
from gossipfl.provision.changes import first_version

ISSUED = datetime(2026, 1, 31, 12, tzinfo=UTC)
SIGNERS = [make_identity(200), make_identity(201), make_identity(202)]


def ring(nodes: int) -> list[tuple[str, str]]:
    """Edges of a ring of n0, n1, ..."""
    return [(f"n{node}", f"n{(node + 1) % nodes}") for node in range(nodes if nodes > 2 else nodes - 1)]


def make_first(
    nodes: int = 4, *, signers: list[Identity] | None = None, threshold: int = 1, encrypted: bool = False
) -> Document:
    """Version 1 of a ring, signed by all its signers."""
    signers = SIGNERS[:1] if signers is None else signers
    document = first_version(
        "lab",
        {f"n{node}": make_identity(node).peer_id for node in range(nodes)},
        ring(nodes),
        signers=[signer.peer_id for signer in signers],
        threshold=threshold,
        model_seed=7,
        encrypted=encrypted,
        addresses={},
        issued=ISSUED,
    )
    for signer in signers:
        document = document.signed_by(signer)
    return document
