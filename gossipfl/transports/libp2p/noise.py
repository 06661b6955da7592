"""Noise for members: py-libp2p's handshake, then a session that seals and opens many packets at a time.

The handshake (XX, signed with the site's key) is the library's own. What comes after it is the same bytes on the wire,
made in fewer steps: py-libp2p reads two bytes, then a packet, with a lock, a system call and several coroutines for
each; here one read of the socket serves as many packets as it brought. A remote peer is admitted, or refused, as soon
as the handshake has proved who it is, before anything else is negotiated with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair, PrivateKey
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.secure_session import SecureSession

from gossipfl.identity import PeerId

Part = bytes | bytearray | memoryview

TAG_BYTES = 16
MAX_PLAIN_BYTES = 65535 - TAG_BYTES
"""Most plaintext of one Noise packet, whose own length has to fit two bytes."""

_LENGTH_BYTES = 2
_READ_BYTES = (16 << 10, 256 << 10)
"""What one read asks the socket for: little after a quiet time, much once there is much."""


class NotAdmitted(HandshakeFailure):
    """The remote peer proved who it is, and is refused."""


class MemberNoise(NoiseTransport):
    """The Noise security of this node; ``admit`` raises NotAdmitted for a peer that may not connect."""

    def __init__(self, key_pair: KeyPair, noise_key: PrivateKey, admit: Callable[[PeerId], None]) -> None:
        super().__init__(key_pair, noise_privkey=noise_key)
        self._admit = admit

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Shake hands with whoever has dialled."""
        return await self._admitted(conn, await super().secure_inbound(conn))

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Shake hands with the peer that was dialled; another one at its address fails."""
        return await self._admitted(conn, await super().secure_outbound(conn, peer_id))

    async def _admitted(self, conn: IRawConnection, session: ISecureConn) -> MemberSession:
        try:
            self._admit(str(session.get_remote_peer()))
        except NotAdmitted:
            await conn.close()
            raise
        return MemberSession(cast("SecureSession", session), conn)


class MemberSession(SecureSession):
    """The secured connection after the handshake: one writer and one reader at a time.

    A write that is cancelled midway leaves part of a packet on the wire; whoever cancels it must close the connection.
    """

    def __init__(self, session: SecureSession, raw: IRawConnection) -> None:
        super().__init__(
            local_peer=session.get_local_peer(),
            local_private_key=session.get_local_private_key(),
            remote_peer=session.get_remote_peer(),
            remote_permanent_pubkey=session.get_remote_public_key(),
            is_initiator=session.is_initiator,
            conn=session.conn,
        )
        noise: Any = cast("Any", session.conn).noise_state.noise_protocol
        self._raw = raw
        self._sealing = _Cipher(noise.cipher_state_encrypt)
        self._opening = _Cipher(noise.cipher_state_decrypt)
        self._rest = b""
        self._is_spoilt = False
        self._plain = bytearray()
        self._ask_bytes = _READ_BYTES[0]

    async def write(self, data: bytes) -> None:
        """Send plaintext."""
        await self.write_parts((data,))

    async def write_parts(self, parts: Sequence[Part]) -> None:
        """Send several pieces of plaintext behind each other, in one write to the socket."""
        await self._raw.write(cast("bytes", self._seal(parts)))

    def _seal(self, parts: Sequence[Part]) -> bytearray:
        total = sum(map(len, parts))
        packets = -(-total // MAX_PLAIN_BYTES)
        sealed = bytearray(total + packets * (_LENGTH_BYTES + TAG_BYTES))
        view, at = memoryview(sealed), 0
        for plain in _packets(parts):
            size = len(plain) + TAG_BYTES
            view[at : at + _LENGTH_BYTES] = size.to_bytes(_LENGTH_BYTES, "big")
            at += _LENGTH_BYTES
            self._sealing.seal_into(plain, view[at : at + size])
            at += size
        return sealed

    async def read(self, n: int | None = None) -> bytes:
        """Return exactly ``n`` bytes, or what there is (n None); fewer, or none, only at the end of the connection."""
        while not self._plain or (n is not None and len(self._plain) < n):
            blocks = await self.read_blocks()
            if not blocks:
                break
            for block in blocks:
                self._plain += block
        n = len(self._plain) if n is None else n
        taken = bytes(self._plain[:n])
        del self._plain[:n]
        if not taken and n:
            raise ConnectionClosedError("the connection was closed")
        return taken

    def leftover(self) -> bytes:
        """Return, and forget, what ``read`` has decrypted beyond what was asked of it."""
        taken = bytes(self._plain)
        self._plain.clear()
        return taken

    async def read_blocks(self) -> list[bytes]:
        """Return the plaintext of every whole packet that one read of the socket brings; none at the end."""
        while True:
            if self._is_spoilt:
                raise ConnectionClosedError("a packet was not the peer's own")
            data = await self._raw.read(self._ask_bytes)
            if not data:
                return []
            self._ask_bytes = _READ_BYTES[len(data) == self._ask_bytes or len(data) > _READ_BYTES[0]]
            blocks = self._open(self._rest + data if self._rest else data)
            if blocks:
                return blocks

    def _open(self, data: bytes) -> list[bytes]:
        view, at, blocks = memoryview(data), 0, []
        while len(data) - at >= _LENGTH_BYTES:
            begin = at + _LENGTH_BYTES
            end = begin + (data[at] << 8 | data[at + 1])
            if end > len(data):
                break
            try:
                blocks.append(self._opening.open(view[begin:end]))
            except InvalidTag:
                self._is_spoilt = True
                raise ConnectionClosedError("a packet was not the peer's own") from None
            at = end
        self._rest = data[at:]
        return blocks


class _Cipher:
    """One direction of a session: ChaCha20-Poly1305 with the packet's number as the nonce (Noise, section 12.3)."""

    def __init__(self, state: Any) -> None:
        self._aead = ChaCha20Poly1305(state.k)
        self._number: int = state.n

    def _nonce(self) -> bytes:
        number = self._number
        self._number = number + 1
        return b"\0\0\0\0" + number.to_bytes(8, "little")

    def seal_into(self, plain: Part, sealed: memoryview) -> None:
        self._aead.encrypt_into(self._nonce(), plain, None, sealed)

    def open(self, sealed: memoryview) -> bytes:
        return self._aead.decrypt(self._nonce(), sealed, None)


def _packets(parts: Iterable[Part]) -> Iterator[Part]:
    """Yield the plaintext of one packet after the other; large pieces are cut without being copied."""
    gathered: list[Part] = []
    room = MAX_PLAIN_BYTES
    for part in parts:
        view = memoryview(part)
        while len(view):
            piece, view = view[:room], view[room:]
            gathered.append(piece)
            room -= len(piece)
            if not room:
                yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
                gathered, room = [], MAX_PLAIN_BYTES
    if gathered:
        yield gathered[0] if len(gathered) == 1 else b"".join(gathered)
