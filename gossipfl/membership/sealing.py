"""The federation's key, sealed for each member: HPKE (RFC 9180) to the X25519 form of the member's Ed25519 key.

A member needs one key, not two: the Montgomery form of an Ed25519 key is an X25519 key of the same secret (RFC 7748,
section 4.1; what libsodium calls crypto_sign_ed25519_pk_to_curve25519). The two uses are told apart by their domains.

    u = (1 + y) / (1 - y)  mod 2^255 - 19
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from gossipfl.digest import digest
from gossipfl.errors import ConfigError
from gossipfl.identity import Identity

KEY_BYTES: Final = 32

_FIELD: Final = 2**255 - 19
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_INFO: Final = b"gossipfl/1/federation-key\0"
_CHECK: Final = b"gossipfl/1/federation-key-check\0"


def new_key() -> bytes:
    """Return a new federation key from the operating system's randomness."""
    return secrets.token_bytes(KEY_BYTES)


def check_of(key: bytes) -> str:
    """Return the digest by which members tell that they were all given the same key, as hexadecimal digits."""
    return digest(_CHECK, key).hex()


def seal_key(key: bytes, public_key: bytes, *, federation: bytes, version: int) -> bytes:
    """Return ``key`` sealed for the member with the Ed25519 ``public_key``, for one version of one federation."""
    recipient = X25519PublicKey.from_public_bytes(montgomery(public_key))
    return _SUITE.encrypt(key, recipient, info=_info(federation, version))


def open_key(sealed: bytes, identity: Identity, *, federation: bytes, version: int, check: str) -> bytes:
    """Return the key that was sealed for this ``identity``; raises ConfigError where it is not the one it must be."""
    secret = X25519PrivateKey.from_private_bytes(identity.montgomery_secret())
    try:
        key = _SUITE.decrypt(sealed, secret, info=_info(federation, version))
    except (InvalidTag, ValueError):
        raise ConfigError(f"the federation key of version {version} was not sealed for {identity.peer_id}") from None
    if len(key) != KEY_BYTES or check_of(key) != check:
        raise ConfigError(f"the federation key of version {version} is not the one that all members have")
    return key


def montgomery(public_key: bytes) -> bytes:
    """Return the X25519 public key of the same secret as a 32-byte Ed25519 public key."""
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    return ((1 + y) * pow(1 - y, -1, _FIELD) % _FIELD).to_bytes(32, "little")


def _info(federation: bytes, version: int) -> bytes:
    return _INFO + federation + version.to_bytes(8, "big")
