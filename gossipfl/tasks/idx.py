"""IDX files: the format of the MNIST distribution (LeCun, Cortes and Burges), raw or gzip."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import DataError

UNSIGNED_BYTE = 0x08
MAX_BYTES = 1 << 30
"""No file that fits this task is larger; a header that claims more is refused unread."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Return the unsigned bytes of an IDX file with so many ``dimensions``.

    The header is 0, 0, type, dimensions, then each length as an unsigned 32-bit big-endian number. Raises
    DataError, in one line, for a file that cannot be read, has another type or rank, or holds fewer or more
    bytes than its header says.
    """
    try:
        with _opened(path) as stream:
            return _parse(stream, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; fetch the file again") from error


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _parse(stream: BinaryIO, path: Path, dimensions: int) -> NDArray[np.uint8]:
    header = stream.read(4 + 4 * dimensions)
    expected = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if len(header) != 4 + 4 * dimensions or header[:4] != expected:
        raise DataError(
            f"{path} starts with {header[:4].hex() or 'nothing'}, not {expected.hex()}: no IDX file of bytes "
            f"with {dimensions} dimension(s); fetch the file again"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size = prod(shape)
    if size > MAX_BYTES:
        raise DataError(f"{path} claims {size} bytes, more than {MAX_BYTES}; fetch the file again")
    body = stream.read(size + 1)
    if len(body) != size:
        found = f"only {len(body)}" if len(body) < size else "more"
        raise DataError(f"{path} should hold {size} bytes after its header, but holds {found}; fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)
