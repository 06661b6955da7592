"""A Byzantine node's own key at work: it opens what the node says, and signs what the node never said."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gossipfl.gossip.post import Encoded, stated_in
from gossipfl.messages import (
    Body,
    Buffer,
    Envelope,
    Header,
    Kind,
    chunk_digests,
    decode_body,
    encode_body,
    frame_message,
    parse_frame,
    signing_input,
)

if TYPE_CHECKING:
    from gossipfl.gossip.post import Post
    from gossipfl.identity import Identity, PeerId


@dataclass(frozen=True, slots=True)
class Letter:
    """A message with its body read."""

    kind: Kind
    header: Header
    body: Body


class Forge:
    """Signs with the key of one node.

    Args:
        identity: The node's key.
        post: The node's post room: new messages take their numbers from it, so that they fit in among its own.
    """

    def __init__(self, identity: Identity, post: Post) -> None:
        self._identity = identity
        self._post = post

    def read(self, frame: Buffer) -> Letter | None:
        """Read one of the node's own frames; None for chunks, and for messages whose body travels in those."""
        envelope = parse_frame(frame)
        if not isinstance(envelope, Envelope) or envelope.body is None:
            return None
        return Letter(Kind(envelope.kind), envelope.header, decode_body(envelope.kind, envelope.body))

    def rewrite(self, letter: Letter, body: Body, *, incarnation: int | None = None) -> bytes:
        """Sign another body under the number of ``letter``, or the same in another ``incarnation``."""
        encoded = encode_body(body)
        header = replace(
            letter.header,
            incarnation=letter.header.incarnation if incarnation is None else incarnation,
            body_bytes=len(encoded),
            digests=chunk_digests(encoded),
            stated=stated_in(body),
        )
        signed = signing_input(letter.kind, header.pack())
        return frame_message(signed, self._identity.sign(signed), encoded)

    def write(self, kind: Kind, body: Body, recipient: PeerId | None = None) -> bytes:
        """Sign a new message, to one neighbour or to all."""
        return self._post.seal(Encoded.of(kind, body), recipient).frame
