"""The bytes of one generation: tensors in the safetensors format, and a manifest that vouches for them.

    tensors.safetensors    u64 length of a JSON header, the header, the tensors' bytes back to back; little-endian
    manifest.json          {"blake3": "...", "schema": 1, "round": 17, "facts": {...}, "tensors": {
                              "bytes": 48, "blake3": "...", "table": [{"name": "w", "dtype": "float32", "shape": [2]}]}}

The manifest's first digest is that of all bytes behind it, so that a manifest that was torn or edited is noticed;
the second is that of the file of tensors. Both are BLAKE3, in hex. Where ``blake3`` and ``schema`` stand, and what
the first covers, is the same in every schema: a program can tell a newer generation from a damaged one.

No digest here is a signature: the folder is as private as the site's key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor

from gossipfl.digest import digest

SCHEMA = 1
"""The newest form of a manifest that this program knows; it writes this one."""
MAX_MANIFEST_BYTES = 16 << 20
"""A longer manifest is neither written nor read."""
MAX_HEADER_BYTES = 100_000_000
"""Longest header of a file of tensors that the safetensors library reads."""
PIECE_BYTES = 1 << 20
"""What is digested and written at once: it still lies in a core's cache when it is written."""

_START = b'{"blake3": "'
_DIGEST = slice(len(_START), len(_START) + 64)
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Damaged(Exception):
    """A generation is not what was saved; the text says how that shows."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved as generation ``number``: the ``tensors``, and ``facts`` about them, after ``round``.

    The tensors lie in ordinary memory, share none, and may be written to.
    """

    number: int
    round: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class TensorRow(_Strict):
    """One tensor: its name, its dtype as torch calls it, and its shape."""

    name: str
    dtype: str
    shape: list[int]


class TensorsFile(_Strict):
    """The file of tensors: its size, its digest, and what it holds in the order in which it was given."""

    bytes: int
    blake3: str
    table: list[TensorRow]


class Manifest(_Strict):
    """The content of a manifest, its own digest left out."""

    schema_number: int = Field(alias="schema")
    round: int
    facts: dict[str, Any]
    tensors: TensorsFile


def table_of(tensors: Mapping[str, Tensor]) -> list[TensorRow]:
    """Return the table of ``tensors``; raises ValueError for one that cannot be saved."""
    rows = []
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f'tensor "{name}" is {tensor.dtype}, {tensor.layout} on {tensor.device}: not one to save')
        if name == "__metadata__":
            raise ValueError('no tensor can be called "__metadata__": safetensors has another use for that name')
        rows.append(TensorRow(name=name, dtype=_dtype_name(tensor), shape=list(tensor.shape)))
    return rows


def tensor_pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of a safetensors file piece by piece; ``tensors`` must not change meanwhile.

    No bytes are copied but those of a tensor that is not contiguous or not in the CPU's memory, one tensor at a
    time. The library's own writer is not used: it writes past ``Disk``, and takes no tensors that share memory.
    """
    # Wide elements come first, as the library has it, so that each tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    parts, start = {}, 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.itemsize
        parts[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"{len(tensors)} tensors have too long names and shapes for one file")
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for name in names:
        flat = tensors[name].detach().resolve_neg().cpu().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().data
        for start in range(0, len(content), PIECE_BYTES):
            yield content[start : start + PIECE_BYTES]


def encode_facts(facts: Mapping[str, Any]) -> str:
    """Return ``facts`` as JSON; raises ValueError unless the same will be read back."""
    plain = dict(facts)
    try:
        text = json.dumps(plain, allow_nan=False)
        same = json.loads(text) == plain
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"facts of a checkpoint must be JSON values: {error}") from None
    if not same:
        raise ValueError("facts of a checkpoint must be JSON values: keys are text, and sequences are lists")
    return text


def encode_manifest(round_: int, facts: str, tensors: TensorsFile) -> bytes:
    """Return a manifest's bytes, with ``facts`` as ``encode_facts`` gave them; raises ValueError for too many."""
    described = json.dumps(tensors.model_dump())
    covered = f'", "schema": {SCHEMA}, "round": {round_:d}, "facts": {facts}, "tensors": {described}}}\n'.encode()
    manifest = _START + digest(covered).hex().encode() + covered
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise ValueError(f"a checkpoint's manifest would be longer than {MAX_MANIFEST_BYTES} bytes; shorten its facts")
    return manifest


def newer_schema(manifest: bytes) -> int | None:
    """Return the schema of an intact manifest if it is newer than ``SCHEMA``."""
    try:
        schema = _checked(manifest).get("schema")
    except Damaged:
        return None
    return schema if isinstance(schema, int) and schema > SCHEMA else None


def parse_manifest(manifest: bytes) -> Manifest:
    """Return what a manifest says; raises Damaged unless every byte is as it was written, and makes sense."""
    document = _checked(manifest)
    if document.get("schema") != SCHEMA:
        raise Damaged(f"its manifest's schema is {document.get('schema')!r:.20}, which is none")
    try:
        return Manifest.model_validate({key: value for key, value in document.items() if key != "blake3"})
    except ValidationError as error:
        raise Damaged(f"its manifest is malformed at {'.'.join(map(str, error.errors()[0]['loc']))[:80]}") from None


def parse_tensors(content: bytes, expected: TensorsFile) -> dict[str, Tensor]:
    """Return the tensors of a file; raises Damaged unless it is, byte by byte, the one that was ``expected``."""
    if len(content) != expected.bytes:
        more = "more" if len(content) > expected.bytes else "fewer"
        raise Damaged(f"its file of tensors has {more} than {expected.bytes} bytes")
    if digest(content).hex() != expected.blake3:
        raise Damaged("its file of tensors is not the one that was saved: the digest differs")
    try:
        tensors = parse_safetensors(content)
    except (SafetensorError, LookupError, ValueError, AssertionError, RuntimeError) as error:
        raise Damaged(f"its file of tensors is malformed: {error}".replace("\n", " ")[:200]) from None
    held = sorted((name, _dtype_name(tensor), list(tensor.shape)) for name, tensor in tensors.items())
    if held != sorted((row.name, row.dtype, row.shape) for row in expected.table):
        raise Damaged("its file of tensors holds others than its manifest says")
    return {row.name: tensors[row.name] for row in expected.table}


def _checked(manifest: bytes) -> dict[str, Any]:
    covered = manifest[_DIGEST.stop :]
    if not manifest.startswith(_START) or digest(covered).hex().encode() != manifest[_DIGEST]:
        raise Damaged("its manifest was cut short or changed: the digest differs")
    try:
        document = json.loads(manifest)
    except (ValueError, RecursionError):
        raise Damaged("its manifest is no JSON") from None
    if not isinstance(document, dict):
        raise Damaged("its manifest is no JSON object")
    return document


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
