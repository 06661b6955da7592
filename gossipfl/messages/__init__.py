"""Versioned, signed, bounded messages: the bytes that agents exchange.

A *frame* is what a transport carries, at most ``MAX_FRAME_BYTES``. There are two types:

* a **message**: prefix, header, Ed25519 signature over both, and the body. The header carries the BLAKE3 digests
  of the body's chunks, so the signature covers the body too. A body that fits travels in the same frame; of a larger
  one only the signed announcement does, and the receiver asks for the chunks (see ``gossipfl.gossip.chunks``);
* a **chunk**: prefix, a short header that names the announcing message, and a part of its body. It carries no
  signature: its bytes are believed only if their digest is the one in the signed announcement.

Reading goes in steps, each bounded before the next: ``parse_frame`` (lengths, shallow msgpack), the signature over
``Envelope.signed``, ``Envelope.body_matches`` (digest), ``decode_body`` (fields). The byte tables are in
``docs/wire/protocol.md``.
"""

from gossipfl.messages.bodies import (
    Body,
    Bye,
    Charter,
    Evidence,
    Grant,
    Hello,
    Kind,
    Request,
    Seen,
    Status,
    Update,
    decode_body,
    encode_body,
)
from gossipfl.messages.bounded import (
    KEY_BYTES,
    MAX_COUNTER,
    MAX_META_BYTES,
    Buffer,
)
from gossipfl.messages.frames import (
    CHUNK_BYTES,
    FEDERATION_BYTES,
    MAGIC,
    MAJOR,
    MAX_CHUNKS,
    MAX_FRAME_BYTES,
    MINOR,
    SIGNATURE_BYTES,
    Chunk,
    Envelope,
    Header,
    Stated,
    chunk_digests,
    chunk_spans,
    frame_chunk,
    frame_message,
    parse_frame,
    signing_input,
    travels_inline,
)
from gossipfl.messages.sealed import OVERHEAD_BYTES, Veil
from gossipfl.messages.statements import Proof, Statement

__all__ = [
    "CHUNK_BYTES",
    "FEDERATION_BYTES",
    "KEY_BYTES",
    "MAGIC",
    "MAJOR",
    "MAX_CHUNKS",
    "MAX_COUNTER",
    "MAX_FRAME_BYTES",
    "MAX_META_BYTES",
    "MINOR",
    "OVERHEAD_BYTES",
    "SIGNATURE_BYTES",
    "Body",
    "Buffer",
    "Bye",
    "Charter",
    "Chunk",
    "Envelope",
    "Evidence",
    "Grant",
    "Header",
    "Hello",
    "Kind",
    "Proof",
    "Request",
    "Seen",
    "Stated",
    "Statement",
    "Status",
    "Update",
    "Veil",
    "chunk_digests",
    "chunk_spans",
    "decode_body",
    "encode_body",
    "frame_chunk",
    "frame_message",
    "parse_frame",
    "signing_input",
    "travels_inline",
]
