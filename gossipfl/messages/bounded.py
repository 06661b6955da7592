"""Reading and writing the msgpack parts of a message, every limit checked before memory is spent."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgpack

from gossipfl.errors import MessageError

Buffer: TypeAlias = bytes | bytearray | memoryview

KEY_BYTES = 32
MAX_META_BYTES = 64 * 1024
"""Bounds the msgpack part of any body."""
MAX_COUNTER = (1 << 63) - 1


def pack(tree: Any) -> bytes:
    """Return the msgpack encoding of a tree of plain values."""
    packed = msgpack.packb(tree, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def unpack(view: memoryview, expected: type) -> Any:
    """Read one shallow msgpack object; every limit is checked by the reader before it allocates."""
    try:
        tree = msgpack.unpackb(
            view,
            raw=False,
            strict_map_key=False,
            max_str_len=1024,
            max_bin_len=MAX_META_BYTES,
            max_array_len=64,
            max_map_len=1024,
            max_ext_len=0,
        )
    except (
        ValueError,
        TypeError,
        RecursionError,
        UnicodeDecodeError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise MessageError("msgpack", type(error).__name__) from None
    if not isinstance(tree, expected):
        raise MessageError("msgpack", f"not a {expected.__name__}")
    return tree


def binary(value: Any, length: int | None = None) -> bytes:
    """Return ``value`` if it is bytes (of the given length); raises MessageError."""
    if not isinstance(value, bytes) or (length is not None and len(value) != length):
        raise MessageError("field", "bytes")
    return value


def counter(value: Any) -> int:
    """Return ``value`` if it is an integer from 0 to ``MAX_COUNTER``; raises MessageError."""
    if type(value) is not int or not 0 <= value <= MAX_COUNTER:
        raise MessageError("field", "counter")
    return value


def text(value: Any) -> str:
    """Return ``value`` if it is a string of at most 200 characters; raises MessageError."""
    if not isinstance(value, str) or len(value) > 200:
        raise MessageError("field", "text")
    return value
