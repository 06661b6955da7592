"""BLAKE3 digests of bytes and vectors, and seeds derived from digests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 32


def digest(*parts: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte BLAKE3 digest of the concatenation of ``parts``."""
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    return bytes(hasher.digest())


def vector_digest(vector: Tensor) -> bytes:
    """Return the digest of a float32 vector's little-endian bytes.

    Two holders of a public replica agree exactly when these 32 bytes agree. ``vector`` is a contiguous
    CPU tensor of shape (d,).
    """
    return digest(vector.detach().numpy().data.cast("B"))


def derive_seed(root: int, *labels: str | int) -> int:
    """Return a 63-bit seed for one purpose, from a run's seed and a path of labels.

    Every generator of a run is seeded this way (``derive_seed(seed, "order", node)``), so that adding a
    generator never shifts the numbers that another one draws.
    """
    text = "/".join([str(root), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(digest(text.encode())[:8], "little") >> 1
