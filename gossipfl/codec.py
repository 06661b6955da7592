"""Codecs: a model delta as bytes, and bytes from a stranger as a finite, bounded vector.

A codec is the map C in q = C(x - x̂): the sender adds ``Encoded.decoded`` to its public replica x̂, every
receiver adds what it decodes, and the two are the same bits on every platform. What a codec could not express
stays in x - x̂ and is sent later: error feedback (CHOCO-SGD: Koloskova, Stich and Jaggi, ICML 2019).

The formats, specified with test vectors in ``docs/wire/codecs.md``, are little-endian and have no header:

    float32    d float32                                     4 d bytes
    float16    d float16                                     2 d bytes
    int8       ⌈d/1024⌉ float32 scales, then d int8 values   4 ⌈d/1024⌉ + d bytes
    *+zstd     one Zstandard frame around any of these

Nothing is allocated for a payload before its length has been checked against the receiver's own d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossipfl.errors import CodecError, ConfigError

MAX_MAGNITUDE = float(2**27)
"""No decoded element is larger in magnitude (about 1.3e8).

Far above any delta of a model that still learns, and small enough that the squared norm of a vector of
2^70 elements is finite in float32, so that no rule overflows on what a codec let through.
"""

BLOCK_SIZE = 1024
"""Elements that share one scale in the int8 format; the last block may be shorter."""

MAX_SCALE = float(2**20)
"""The largest int8 scale: 127 · 2^20 < ``MAX_MAGNITUDE``."""

ZSTD_FLAG = 0x80
"""Set in the ``wire_id`` of a codec whose payload is a Zstandard frame."""

_HALF_MAX = 65504.0
_MIN_NORMAL = 2.0**-126
_MAX_SUBNORMAL = (2**23 - 1) * 2.0**-149
_GROUP = 128 * BLOCK_SIZE  # elements worked on at once: half a MiB of float32 stays in a core's L2 cache

_Floats = NDArray[np.float32]
_Bytes = bytes | bytearray | memoryview


def settle(vector: Tensor) -> Tensor:
    """Turn subnormal elements and -0 of ``vector`` (any shape) into +0, and bound the others by ±2^27, in place.

    That is what the dense format can say.
    """
    return torch.hardshrink(vector, _MAX_SUBNORMAL, out=vector).clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE)


@dataclass(frozen=True, slots=True)
class Encoded:
    """The ``payload`` that travels, and ``decoded`` (d,), which is bit for bit what receivers decode.

    The two may share memory: write to ``decoded`` only once the payload has been sent.
    """

    payload: bytes | memoryview
    decoded: Tensor


class Codec(Protocol):
    """A format for vectors of float32. No call changes the next one's result; one thread at a time."""

    name: str
    wire_id: int

    def encode(self, delta: Tensor) -> Encoded:
        """Encode ``delta`` (d,), a float32 CPU tensor with d ≥ 1, which is only read.

        Elements beyond the format's range saturate. Raises ValueError for a NaN or an infinity.
        """
        ...

    def decode(self, payload: _Bytes, size: int) -> Tensor:
        """Return a new finite (size,) float32 tensor within ±``MAX_MAGNITUDE``, or raise CodecError."""
        ...

    def max_bytes(self, size: int) -> int:
        """Return the largest payload, in bytes, that ``decode`` accepts for a vector of ``size`` elements."""
        ...


class Float32:
    """The dense format: exact for normal numbers within ±``MAX_MAGNITUDE``; subnormal ones become zero."""

    name = "float32"
    wire_id = 1

    def encode(self, delta: Tensor) -> Encoded:
        """Encode at 4 bytes an element; the payload is ``decoded``'s own memory."""
        source = _checked(delta)
        peak = _finite_peak(source.numpy())
        decoded = np.empty(source.numel(), np.float32)
        out = torch.from_numpy(decoded)
        torch.hardshrink(source, _MAX_SUBNORMAL, out=out)  # one pass: copies, and turns subnormals into zeros
        if peak > MAX_MAGNITUDE:
            out.clamp_(-MAX_MAGNITUDE, MAX_MAGNITUDE)
        return Encoded(decoded.astype("<f4", copy=False).data.cast("B"), out)

    def decode(self, payload: _Bytes, size: int) -> Tensor:
        """Copy the payload; CodecError for a wrong length, a subnormal, non-finite or oversized element."""
        _check_length(self.name, payload, self.max_bytes(size))
        decoded = np.frombuffer(payload, "<f4").astype(np.float32)
        _check_bounded(self.name, decoded, MAX_MAGNITUDE)
        _check_no_subnormal(self.name, decoded)
        return torch.from_numpy(decoded)

    def max_bytes(self, size: int) -> int:
        """Return 4 · size: the format has one length."""
        return 4 * size


class Float16:
    """IEEE 754 binary16, rounded half to even, saturating at ±65504; relative error 2^-11 above 6.1e-5."""

    name = "float16"
    wire_id = 2

    def encode(self, delta: Tensor) -> Encoded:
        """Encode at 2 bytes an element."""
        source = _checked(delta)
        if _finite_peak(source.numpy()) > _HALF_MAX:
            source = source.clamp(-_HALF_MAX, _HALF_MAX)
        halves = np.empty(source.numel(), np.float16)
        torch.from_numpy(halves).copy_(source)
        return Encoded(halves.astype("<f2", copy=False).data.cast("B"), self._widen(halves))

    def decode(self, payload: _Bytes, size: int) -> Tensor:
        """Widen to float32, which is exact; CodecError for a wrong length or a non-finite element."""
        _check_length(self.name, payload, self.max_bytes(size))
        decoded = self._widen(np.frombuffer(payload, "<f2").astype(np.float16))
        _check_bounded(self.name, decoded.numpy(), _HALF_MAX)
        return decoded

    def max_bytes(self, size: int) -> int:
        """Return 2 · size: the format has one length."""
        return 2 * size

    @staticmethod
    def _widen(halves: NDArray[np.float16]) -> Tensor:
        # NumPy's large arrays lie in huge pages, a quarter of the cost of page faults; torch has the SIMD.
        return torch.from_numpy(np.empty(halves.size, np.float32)).copy_(torch.from_numpy(halves))


class Int8:
    """Symmetric linear quantisation with one scale per block of ``BLOCK_SIZE`` elements.

    s = fl(max|v| / 127),  q = round_half_even(fl(v / s)) in [-127, 127],  decoded = fl(s · q)

    where fl rounds one operation to float32. Each element's error is at most s/2, up to rounding. A block
    whose scale would be subnormal is sent as zeros.
    """

    name = "int8"
    wire_id = 3

    def encode(self, delta: Tensor) -> Encoded:
        """Encode at 1 byte an element and 4 bytes a block."""
        source = _checked(delta)
        size = source.numel()
        payload = np.empty(self.max_bytes(size), np.uint8)
        scales, levels = _split_int8(payload, size)
        decoded = torch.from_numpy(np.empty(size, np.float32))
        quanta = torch.from_numpy(levels)
        for span, blocks, shape in _block_groups(size):
            group = source[span].view(shape)
            scales[blocks] = group_scales = _block_scales(group.numpy())
            _quantise(group, group_scales, quanta[span].view(shape), decoded[span].view(shape))
        return Encoded(payload.data, decoded)

    def decode(self, payload: _Bytes, size: int) -> Tensor:
        """Multiply levels by scales; CodecError for a wrong length, an illegal scale or a level of -128."""
        _check_length(self.name, payload, self.max_bytes(size))
        wire_scales, wire_levels = _split_int8(np.frombuffer(payload, np.uint8), size)
        scales = wire_scales.astype(np.float32)
        _check_scales(scales)
        levels = wire_levels.copy()
        if levels.min() == -128:
            raise CodecError("int8: a level of -128, which no encoder sends")
        decoded = torch.from_numpy(np.empty(size, np.float32))
        quanta, factors = torch.from_numpy(levels), torch.from_numpy(scales)
        for span, blocks, shape in _block_groups(size):
            decoded[span].copy_(quanta[span]).view(shape).mul_(factors[blocks, None])
        return decoded

    def max_bytes(self, size: int) -> int:
        """Return size + 4 ⌈size/1024⌉: the format has one length."""
        return size + 4 * _block_count(size)


class Zstd:
    """A lossless Zstandard stage (RFC 8878) around a codec: one frame, with its size and no dictionary."""

    def __init__(self, inner: Codec, level: int = 1) -> None:
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                f'codec "{inner.name}+zstd" needs the package zstandard; pip install "gossipfl[zstd]"'
            ) from None
        if not 1 <= level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise ConfigError(
                f'codec "{inner.name}+zstd": level {level} must lie in 1..{zstandard.MAX_COMPRESSION_LEVEL}'
            )
        self.name = f"{inner.name}+zstd"
        self.wire_id = inner.wire_id | ZSTD_FLAG
        self._inner = inner
        self._zstd: Any = zstandard
        self._compressor: Any = zstandard.ZstdCompressor(level=level, write_checksum=False)
        self._decompressor: Any = zstandard.ZstdDecompressor()

    def encode(self, delta: Tensor) -> Encoded:
        """Encode with the inner codec and compress; the size depends on the data."""
        encoded = self._inner.encode(delta)
        return Encoded(self._compressor.compress(encoded.payload), encoded.decoded)

    def decode(self, payload: _Bytes, size: int) -> Tensor:
        """Decompress at most the inner codec's ``max_bytes(size)``, and decode that."""
        if memoryview(payload).nbytes > self.max_bytes(size):
            raise CodecError(f"{self.name}: more than {self.max_bytes(size)} bytes")
        limit = self._inner.max_bytes(size)
        try:
            self._check_frame(payload, limit)
            content = self._decompressor.decompress(payload, max_output_size=limit, allow_extra_data=False)
        except self._zstd.ZstdError as error:
            raise CodecError(f"{self.name}: {error}") from None
        return self._inner.decode(content, size)

    def max_bytes(self, size: int) -> int:
        """Return Zstandard's own bound on what compressing the inner codec's ``max_bytes(size)`` can give."""
        content = self._inner.max_bytes(size)
        return content + (content >> 8) + (max(0, (1 << 17) - content) >> 11)

    def _check_frame(self, payload: _Bytes, limit: int) -> None:
        if bytes(payload[:4]) != self._zstd.FRAME_HEADER:
            raise CodecError(f"{self.name}: not a Zstandard frame")
        declared = self._zstd.get_frame_parameters(payload)
        if declared.dict_id:
            raise CodecError(f"{self.name}: the frame asks for dictionary {declared.dict_id}")
        if declared.content_size > limit:  # "unknown" is the largest unsigned number
            raise CodecError(f"{self.name}: the frame declares no size, or more than {limit} bytes")


CODECS: Mapping[str, Callable[[], Codec]] = {
    "float32": Float32,
    "float16": Float16,
    "int8": Int8,
    "float32+zstd": lambda: Zstd(Float32()),
    "float16+zstd": lambda: Zstd(Float16()),
    "int8+zstd": lambda: Zstd(Int8()),
}
"""Every codec by name, with its default options."""

_NAMES_BY_WIRE_ID = {1: "float32", 2: "float16", 3: "int8"}
_NAMES_BY_WIRE_ID |= {number | ZSTD_FLAG: f"{name}+zstd" for number, name in _NAMES_BY_WIRE_ID.items()}


def make_codec(name: str, options: Mapping[str, object] | None = None) -> Codec:
    """Return the codec called ``name``; raises ConfigError for an unknown name or option, or a missing extra.

    The ``+zstd`` codecs take ``level`` (an integer, 1 fastest); the others take no option.
    """
    if name not in CODECS:
        raise ConfigError(f'codec "{name}" is unknown; choose one of: {", ".join(CODECS)}')
    rest = dict(options or {})
    base, _, stage = name.partition("+")
    level = rest.pop("level", 1) if stage else 1
    if rest:
        allowed = "level" if stage else "none"
        raise ConfigError(f'codec "{name}" has no option "{next(iter(rest))}"; its options: {allowed}')
    if not isinstance(level, int) or isinstance(level, bool):
        raise ConfigError(f'codec "{name}": level {level!r} must be an integer')
    return Zstd(CODECS[base](), level) if stage else CODECS[name]()


def codec_by_wire_id(wire_id: int) -> Codec:
    """Return a new codec for a peer's ``wire_id`` (u8), or raise CodecError where this node has none."""
    if wire_id not in _NAMES_BY_WIRE_ID:
        raise CodecError(f"codec number {wire_id} is unknown")
    try:
        return make_codec(_NAMES_BY_WIRE_ID[wire_id])
    except ConfigError as error:
        raise CodecError(str(error)) from None


def _checked(delta: Tensor) -> Tensor:
    if delta.dtype != torch.float32 or delta.dim() != 1 or delta.numel() == 0 or delta.device.type != "cpu":
        raise ValueError(f"a delta is a float32 CPU vector, not {delta.dtype} {tuple(delta.shape)} on {delta.device}")
    return delta.detach().contiguous()


def _finite_peak(values: _Floats) -> float:
    """Return max|v| of a local vector; ValueError where it is not finite."""
    # Two reductions need no temporary, and each returns NaN where there is one.
    high, low = float(values.max()), float(values.min())
    if not (math.isfinite(high) and math.isfinite(low)):
        raise ValueError("a delta must be finite")
    return max(high, -low)


def _check_length(name: str, payload: _Bytes, expected: int) -> None:
    length = memoryview(payload).nbytes
    if length != expected:
        raise CodecError(f"{name}: {length} bytes instead of {expected}")


def _check_bounded(name: str, values: _Floats, limit: float) -> None:
    high, low = float(values.max()), float(values.min())
    if not (high <= limit and low >= -limit):  # also for NaN, which max and min pass on
        raise CodecError(f"{name}: an element is not finite or beyond ±{limit:g}")


def _check_no_subnormal(name: str, values: _Floats) -> None:
    """Refuse any subnormal: encoders send none, and arithmetic on many is up to 100 times slower."""
    bits = values.view(np.uint32)
    scratch = np.empty(min(bits.size, _GROUP), np.uint32)
    for start in range(0, bits.size, _GROUP):
        group = bits[start : start + _GROUP]
        magnitude = np.left_shift(group, 1, out=scratch[: group.size])
        # Subnormals lie in (0, 2^24) here; minus 2^24, modulo 2^32, they alone exceed what zero becomes.
        magnitude -= np.uint32(1 << 24)
        if magnitude.max() > 0xFF000000:
            raise CodecError(f"{name}: an element is subnormal, which no encoder sends")


def _block_count(size: int) -> int:
    return -(-size // BLOCK_SIZE)


def _split_int8(payload: NDArray[np.uint8], size: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return an int8 payload's two parts as views: the scales, and the levels."""
    cut = 4 * _block_count(size)
    return payload[:cut].view("<f4"), payload[cut:].view(np.int8)


def _block_groups(size: int) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """Yield the elements, the blocks and the (blocks, width) shape of groups that fit in the cache."""
    whole = size - size % BLOCK_SIZE
    for start in range(0, whole, _GROUP):
        stop = min(start + _GROUP, whole)
        first, last = start // BLOCK_SIZE, stop // BLOCK_SIZE
        yield slice(start, stop), slice(first, last), (last - first, BLOCK_SIZE)
    if whole < size:
        last = whole // BLOCK_SIZE
        yield slice(whole, size), slice(last, last + 1), (1, size - whole)


def _block_scales(blocks: _Floats) -> _Floats:
    """Return one scale per row of ``blocks``: zero, or a normal number up to ``MAX_SCALE``."""
    peaks = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    if not np.isfinite(peaks).all():
        raise ValueError("a delta must be finite")
    scales: _Floats = peaks / np.float32(127)
    scales[scales < _MIN_NORMAL] = 0
    return np.minimum(scales, np.float32(MAX_SCALE), out=scales)


def _quantise(source: Tensor, scales: _Floats, quanta: Tensor, decoded: Tensor) -> None:
    """Write the levels of ``source`` (blocks, width) to ``quanta`` and their values to ``decoded``."""
    factors = torch.from_numpy(scales)[:, None]
    # By 1 where the scale is 0: what is there is too small to round to anything but 0.
    divisors = torch.from_numpy(np.where(scales > 0, scales, np.float32(1)))[:, None]
    torch.div(source, divisors, out=decoded)
    if float(scales.max()) == MAX_SCALE:
        decoded.clamp_(-127, 127)
    quanta.copy_(decoded.round_())
    # From the integers, so that a level of 0 gives +0 here as it does at the receiver, never -0.
    decoded.copy_(quanta).mul_(factors)


def _check_scales(scales: _Floats) -> None:
    """Refuse a scale that is neither +0 nor a normal number up to ``MAX_SCALE``."""
    legal = (scales.view(np.uint32) == 0) | ((scales >= _MIN_NORMAL) & (scales <= MAX_SCALE))
    if not legal.all():
        raise CodecError(f"int8: a scale is neither zero nor a normal number up to {MAX_SCALE:g}")
