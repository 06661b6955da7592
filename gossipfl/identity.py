"""Who a node is: an Ed25519 key, the peer id that names it, and signatures.

A peer id is libp2p's (its specification "Peer Ids and Keys"):

    peer id = base58btc(00 24 ‖ 08 01 12 20 ‖ A)

with A the 32-byte public key of RFC 8032, 08 01 12 20 the protobuf header of an Ed25519 key of that length,
and 00 24 the identity multihash of those 36 bytes. The key can be read back from it: ids need no directory.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from gossipfl.errors import ConfigError

PeerId = str
"""A node's libp2p peer id (base58, ``12D3KooW...``), derived from its Ed25519 public key."""

PUBLIC_KEY_BYTES: Final = 32
SEED_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_PEER_ID_PREFIX: Final = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_PEER_ID_LENGTH: Final = 52  # base58 digits of these 38 bytes, whatever the key
_MAX_KEY_FILE_BYTES: Final = 4096
_FIELD: Final = 2**255 - 19
_ORDER_8_Y: Final = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826  # d y⁴ + 2 y² = 1
_SMALL_ORDER_Y: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8_Y, _FIELD - _ORDER_8_Y})
_BASE58_DIGITS: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUES: Final = {digit: value for value, digit in enumerate(_BASE58_DIGITS)}


class Identity:
    """A node's private key. Its ``repr`` shows the peer id only."""

    __slots__ = ("_key", "peer_id", "public_key")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes_raw()
        self.peer_id: PeerId = peer_id_of(self.public_key)

    @classmethod
    def generate(cls) -> Identity:
        """Return a new identity from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """Return the identity of a 32-byte private seed (RFC 8032 §5.1.5); ValueError for another length."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a PEM file as ``save`` writes it (unencrypted PKCS #8, RFC 8410).

        Raises ConfigError where it is missing, no Ed25519 key, or open to the group or to others.
        """
        try:
            with path.open("rb") as file:
                # The opened file is asked, not the path, so that nobody can swap it in between.
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ConfigError(f"key file {path} is not a file")
                if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise ConfigError(f"key file {path} is open to other users; run: chmod 600 {path}")
                content = file.read(_MAX_KEY_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from None
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it is encrypted
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"key file {path} holds no unencrypted Ed25519 private key in PEM (PKCS #8)")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the private key to a new file that only its owner can read, and sync it to the disk.

        Raises ConfigError where the file exists (a key is never overwritten) or cannot be written.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise ConfigError(f"key file {path} exists already; a key is never overwritten") from None
        except OSError as error:
            raise ConfigError(f"key file {path} cannot be made: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)  # half a key would only block the next attempt
            raise ConfigError(f"key file {path} cannot be written: {error.strerror}") from None

    def sign(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return the 64-byte Ed25519 signature of ``data``; sign a digest where the data is large."""
        return self._key.sign(data)

    def montgomery_secret(self) -> bytes:
        """Return the X25519 secret of this key: the first half of SHA-512 of its seed (RFC 8032, section 5.1.5)."""
        return hashlib.sha512(self._key.private_bytes_raw()).digest()[:32]

    def private_key(self) -> Ed25519PrivateKey:
        """Return the key itself, for libraries that sign with it."""
        return self._key

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


class Verifier:
    """Checks signatures of one public key, which is loaded once.

    ``public_key`` is 32 bytes; ValueError for another length or a point of small order. Under bytes that are
    no point of the curve no signature verifies.
    """

    __slots__ = ("_key",)

    def __init__(self, public_key: bytes) -> None:
        _check_public_key(public_key)
        self._key = Ed25519PublicKey.from_public_bytes(public_key)

    def verify(self, data: bytes | bytearray | memoryview, signature: bytes | bytearray | memoryview) -> bool:
        """Return whether ``signature`` is this key's over ``data``; of any other bytes it is False."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True


def peer_id_of(public_key: bytes) -> PeerId:
    """Return the peer id of a 32-byte Ed25519 public key; ValueError for another length or a weak key."""
    _check_public_key(public_key)
    return base58_encode(_PEER_ID_PREFIX + public_key)


def public_key_of(peer_id: PeerId) -> bytes:
    """Return the 32-byte public key inside a peer id; ConfigError where it is not one of an Ed25519 key."""
    if len(peer_id) != _PEER_ID_LENGTH:  # before decoding, whose work is quadratic
        raise ConfigError(
            f"peer id {peer_id[:64]!r} has {len(peer_id)} characters; that of an Ed25519 key has "
            f"{_PEER_ID_LENGTH}, 12D3KooW..."
        )
    try:
        decoded = base58_decode(peer_id)
    except ValueError as error:
        raise ConfigError(f"peer id {peer_id!r} is mistyped: {error}") from None
    if len(decoded) != len(_PEER_ID_PREFIX) + PUBLIC_KEY_BYTES or not decoded.startswith(_PEER_ID_PREFIX):
        raise ConfigError(f"peer id {peer_id!r} is not that of an Ed25519 key, 12D3KooW...")
    public_key = decoded[len(_PEER_ID_PREFIX) :]
    try:
        _check_public_key(public_key)
    except ValueError as error:
        raise ConfigError(f"peer id {peer_id!r}: {error}") from None
    return public_key


def _check_public_key(public_key: bytes) -> None:
    """Refuse another length, and the points of order 1, 2, 4 and 8: anyone can sign for those."""
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {PUBLIC_KEY_BYTES} bytes, not {len(public_key)}")
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)  # the top bit is the sign of x
    if y % _FIELD in _SMALL_ORDER_Y:
        raise ValueError("a public key of small order belongs to nobody")


def base58_encode(data: bytes) -> str:
    """Return ``data`` as a big-endian number in base 58, after a ``1`` for each leading zero byte."""
    number = int.from_bytes(data, "big")
    digits = []
    while number:
        number, value = divmod(number, 58)
        digits.append(_BASE58_DIGITS[value])
    zeros = len(data) - len(data.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def base58_decode(text: str) -> bytes:
    """Undo ``base58_encode``; ValueError for a character that is no base-58 digit."""
    number = 0
    for position, digit in enumerate(text):
        if digit not in _BASE58_VALUES:
            raise ValueError(f"{digit!r} at position {position} is no base-58 digit")
        number = number * 58 + _BASE58_VALUES[digit]
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
