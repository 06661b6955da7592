"""Frames that only members can read: a frame of the protocol, encrypted as a whole with a key of the federation.

    head   = prefix (8 bytes, type 2) ‖ epoch (u64) ‖ salt (24 bytes)
    sealed = head ‖ AES-256-GCM(subkey, nonce 0, frame; head)
    subkey = BLAKE3 keyed with the federation's key, over "gossipfl/1/sealed" ‖ 00 ‖ salt

Many senders share the federation's key, so each frame gets a key of its own: with 24 random bytes they never meet,
where the 12 of a nonce would after some 2^32 frames. Sender, recipient, kind and numbers are inside; so is the
signature, which stays what a frame is believed by.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gossipfl.errors import MessageError
from gossipfl.messages.bounded import Buffer
from gossipfl.messages.frames import MAGIC, MAJOR, MINOR, read_prefix

SALT_BYTES = 24
OVERHEAD_BYTES = 8 + 8 + SALT_BYTES + 16
"""By how much a sealed frame is longer."""

_TYPE_SEALED = 2
_HEAD = struct.Struct("<2sBBBBHQ")
_CONTEXT = b"gossipfl/1/sealed\0"
_NONCE = bytes(12)


class Veil:
    """Seals and opens frames for one node.

    ``keys`` maps epochs, the versions of the membership that it knows, to the federation's keys of 32 bytes; None where
    a version has none, and frames are not sealed. ``salts(n)`` returns n bytes that never come again.
    """

    def __init__(self, keys: Mapping[int, bytes | None], salts: Callable[[int], bytes]) -> None:
        self.keys = dict(keys)
        self._salts = salts

    @property
    def epoch(self) -> int:
        """The newest epoch: the one that it seals in."""
        return max(self.keys)

    def seal(self, frame: Buffer, epoch: int | None = None) -> bytes:
        """Return ``frame`` as it travels in ``epoch`` (the newest); KeyError where that is not known."""
        epoch = self.epoch if epoch is None else epoch
        key = self.keys[epoch]
        if key is None:
            return bytes(frame)
        salt = self._salts(SALT_BYTES)
        head = _HEAD.pack(MAGIC, MAJOR, MINOR, _TYPE_SEALED, 0, 0, epoch) + salt
        return head + AESGCM(_subkey(key, salt)).encrypt(_NONCE, bytes(frame), head)

    def open(self, sealed: Buffer) -> Buffer:
        """Return the frame inside a sealed one; raises MessageError with a short reason.

        One that is not sealed is returned as it is, where there was a version without a key: its sender may have no
        newer one.
        """
        view = memoryview(sealed)
        _, frame_type, _, _ = read_prefix(view)
        if frame_type != _TYPE_SEALED:
            if None in self.keys.values():
                return sealed
            raise MessageError("unsealed")
        if len(view) < OVERHEAD_BYTES:
            raise MessageError("truncated")
        epoch = _HEAD.unpack_from(view)[-1]
        key = self.keys.get(epoch)
        if key is None:
            raise MessageError("epoch", str(epoch))
        head = bytes(view[: _HEAD.size + SALT_BYTES])
        try:
            return AESGCM(_subkey(key, head[_HEAD.size :])).decrypt(_NONCE, view[len(head) :], head)
        except InvalidTag:
            raise MessageError("seal") from None


def _subkey(key: bytes, salt: bytes) -> bytes:
    return bytes(blake3(_CONTEXT + salt, key=key).digest())
