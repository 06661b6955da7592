from __future__ import annotations

import math
import re
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from gossipfl.codec import (
    BLOCK_SIZE,
    CODECS,
    MAX_MAGNITUDE,
    MAX_SCALE,
    ZSTD_FLAG,
    Codec,
    codec_by_wire_id,
    make_codec,
)
from gossipfl.errors import CodecError, ConfigError

PLAIN = ["float32", "float16", "int8"]
NAMES = list(CODECS)
GROUP = 128 * BLOCK_SIZE
SIZES = [1, 2, 1023, 1024, 1025, 5000, GROUP, GROUP + BLOCK_SIZE + 3]

every_codec = pytest.mark.parametrize("name", NAMES)

# Vectors as in docs/wire/codecs.md: name, what is encoded, payload, what is decoded.
VECTORS = [
    (
        "float32",
        [1.0, -0.5, 0.1, 1e-40, -0.0, 2.0**28],
        "0000803f 000000bf cdcccc3d 00000000 00000000 0000004d",
        "0000803f 000000bf cdcccc3d 00000000 00000000 0000004d",
    ),
    (
        "float16",
        [1.0, -0.5, 0.1, 1 + 2**-11, 1 + 3 * 2**-11, 2.0**-24, 2.0**-25, -0.0, 65520.0],
        "003c 00b8 662e 003c 023c 0100 0000 0080 ff7b",
        "0000803f 000000bf 00c0cc3d 0000803f 0040803f 00008033 00000000 00000080 00e07f47",
    ),
    (
        "int8",
        [127.0, -63.5, 0.5, 1.5, -0.4, 0.0],
        "0000803f 7fc000020000",
        "0000fe42 000080c2 00000000 00000040 00000000 00000000",
    ),
    (
        "int8",
        [0.1, -0.05, 0.033, -0.1],
        "a0694e3a 7fc02a81",
        "cdcccc3d a0694ebd 5175073d cdccccbd",
    ),
    (
        "int8",
        [2.0**30, -1.0, 2.0**19, 1.5 * 2.0**20],
        "00008049 7f000002",
        "0000fe4c 00000000 00000000 0000004a",
    ),
    ("int8", [1e-37, 0.0], "00000000 0000", "00000000 00000000"),
    (
        "int8",
        [0.0] * 1023 + [-2.0, 1.0, 0.25],
        "0402813c 0402013c" + "00" * 1023 + "81 7f20",
        "00000000" * 1023 + "000000c0 0000803f 0402813e",
    ),
]


def bits(vector: Tensor) -> bytes:
    return vector.numpy().astype("<f4").tobytes()


def random_delta(size: int, seed: int = 0, scale: float = 1e-3) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(("name", "values", "payload", "decoded"), VECTORS)
def test_vectors(name: str, values: list[float], payload: str, decoded: str) -> None:
    codec = make_codec(name)
    encoded = codec.encode(torch.tensor(values))
    assert bytes(encoded.payload).hex() == payload.replace(" ", "")
    assert bits(encoded.decoded).hex() == decoded.replace(" ", "")
    assert bits(codec.decode(bytes.fromhex(payload), len(values))).hex() == decoded.replace(" ", "")


DOCUMENTED = Path(__file__).parent.parent / "docs" / "wire" / "codecs.md"
REFUSED = re.findall(r"^\| `(\S+)` \| (\d+) \| `([0-9a-f ]+)` \|", DOCUMENTED.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "size", "payload"), REFUSED)
def test_refused_vectors(name: str, size: str, payload: str) -> None:
    with pytest.raises(CodecError):
        make_codec(name).decode(bytes.fromhex(payload), int(size))


def test_the_documented_vectors_are_these() -> None:
    assert len(REFUSED) == 13
    page = DOCUMENTED.read_text()
    for _, values, payload, decoded in VECTORS:
        if len(values) < BLOCK_SIZE:
            assert f"    payload   {payload}\n    decoded   {decoded}\n" in page


def test_zstd_vector() -> None:
    frame = bytes.fromhex("28b52ffd 20 08 410000 0000803f 000000bf")
    assert make_codec("float32+zstd").decode(frame, 2).tolist() == [1.0, -0.5]


@every_codec
@pytest.mark.parametrize("size", SIZES)
def test_receivers_hold_the_sender_s_bits(name: str, size: int) -> None:
    codec = make_codec(name)
    delta = random_delta(size)
    before = delta.clone()
    encoded = codec.encode(delta)
    received = codec.decode(memoryview(bytes(encoded.payload)), size)
    assert torch.equal(delta, before)
    assert received.dtype == encoded.decoded.dtype == torch.float32
    assert received.shape == encoded.decoded.shape == (size,)
    assert bits(received) == bits(encoded.decoded)
    assert len(encoded.payload) <= codec.max_bytes(size)
    assert bytes(codec.encode(delta).payload) == bytes(encoded.payload)


finite_vectors = arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@every_codec
@given(values=finite_vectors)
@settings(max_examples=60, deadline=None)
def test_any_finite_delta_travels(name: str, values: np.ndarray) -> None:
    codec = make_codec(name)
    encoded = codec.encode(torch.from_numpy(values))
    received = codec.decode(encoded.payload, len(values))
    assert bits(received) == bits(encoded.decoded)
    assert float(received.abs().max()) <= MAX_MAGNITUDE
    # What was decoded is in the format's range already, so sending it again changes nothing more.
    if not name.startswith("int8"):
        assert bits(codec.encode(received).decoded) == bits(received)


@given(values=finite_vectors)
def test_float32_is_exact_but_for_subnormals_and_saturation(values: np.ndarray) -> None:
    decoded = make_codec("float32").encode(torch.from_numpy(values)).decoded.numpy()
    expected = np.clip(values, -MAX_MAGNITUDE, MAX_MAGNITUDE)
    expected[np.abs(expected) < np.finfo(np.float32).smallest_normal] = 0
    assert np.array_equal(decoded, expected)


@given(values=finite_vectors)
def test_float16_rounds_as_the_language_does(values: np.ndarray) -> None:
    payload = bytes(make_codec("float16").encode(torch.from_numpy(values)).payload)
    clipped = [min(65504.0, max(-65504.0, float(value))) for value in values]
    assert payload == struct.pack(f"<{len(values)}e", *clipped)


def int8_oracle(values: np.ndarray) -> bytes:
    """Compute the specification element by element, each operation rounded to float32 from float64."""
    scales, levels = b"", []
    for start in range(0, len(values), BLOCK_SIZE):
        block = values[start : start + BLOCK_SIZE]
        scale = np.float32(float(np.abs(block).max()) / 127)
        scale = np.float32(0) if scale < 2.0**-126 else min(scale, np.float32(MAX_SCALE))
        scales += struct.pack("<f", scale)
        quotients = [float(np.float32(float(value) / float(scale))) if scale else 0.0 for value in block]
        levels += [max(-127, min(127, round(quotient))) for quotient in quotients]
    return scales + struct.pack(f"{len(levels)}b", *levels)


@given(values=finite_vectors)
def test_int8_small_vectors_agree_with_the_specification(values: np.ndarray) -> None:
    assert bytes(make_codec("int8").encode(torch.from_numpy(values)).payload) == int8_oracle(values)


@pytest.mark.parametrize("size", [1025, 5000, GROUP + BLOCK_SIZE + 3])
def test_int8_large_vectors_agree_with_the_specification(size: int) -> None:
    delta = random_delta(size)
    delta[:BLOCK_SIZE] *= 1e6
    delta[-2:] = 0
    payload = bytes(make_codec("int8").encode(delta).payload)
    assert payload == int8_oracle(delta.numpy())


def test_int8_error_is_at_most_half_a_step() -> None:
    delta = random_delta(3 * BLOCK_SIZE + 5)
    error = (make_codec("int8").encode(delta).decoded - delta).abs()
    for start in range(0, len(delta), BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        step = float(delta[block].abs().max()) / 127
        assert float(error[block].max()) <= step / 2 * (1 + 1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_error_feedback_delivers_the_whole_delta(name: str) -> None:
    """What is left over, x - x̂, shrinks to half the format's smallest step when it is sent again."""
    codec = make_codec(name)
    x = random_delta(5000)
    replica = torch.zeros_like(x)
    for _ in range(6):
        replica += codec.encode(x - replica).decoded
    assert float((x - replica).abs().max()) <= (2.0**-25 if name == "float16" else 1e-10)


@every_codec
def test_a_strided_delta_that_needs_a_gradient_is_fine(name: str) -> None:
    whole = random_delta(200).requires_grad_()
    encoded = make_codec(name).encode(whole[::2])
    assert not encoded.decoded.requires_grad
    assert bits(encoded.decoded) == bits(make_codec(name).encode(whole.detach()[::2].clone()).decoded)


@every_codec
def test_a_payload_at_an_odd_address_is_fine(name: str) -> None:
    codec = make_codec(name)
    encoded = codec.encode(random_delta(1500))
    frame = memoryview(b"\0" + bytes(encoded.payload))[1:]
    assert bits(codec.decode(frame, 1500)) == bits(encoded.decoded)


@every_codec
def test_decoded_vectors_belong_to_the_receiver(name: str) -> None:
    codec = make_codec(name)
    payload = bytearray(codec.encode(random_delta(1500)).payload)
    first = codec.decode(payload, 1500)
    kept = bits(first)
    payload[:] = bytes(len(payload))
    codec.encode(random_delta(1500, seed=1))
    assert bits(first) == kept
    first.zero_()


@every_codec
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1023, 1500, GROUP + BLOCK_SIZE + 2])
def test_a_delta_that_is_not_finite_is_refused(name: str, value: float, position: int) -> None:
    delta = random_delta(GROUP + BLOCK_SIZE + 3)
    delta[position] = value
    with pytest.raises(ValueError, match="finite"):
        make_codec(name).encode(delta)


@every_codec
@pytest.mark.parametrize(
    "delta", [torch.zeros(2, 2), torch.zeros(2, dtype=torch.float64), torch.zeros(0), torch.tensor(1.0)]
)
def test_only_vectors_of_float32_are_encoded(name: str, delta: Tensor) -> None:
    with pytest.raises(ValueError, match="float32 CPU vector"):
        make_codec(name).encode(delta)


def float32_payload(value: float, position: int, size: int) -> bytes:
    values = np.ones(size, "<f4")
    values[position] = value
    return values.tobytes()


@pytest.mark.parametrize("position", [0, 700, GROUP, GROUP + 5])
@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (math.nan, "not finite"),
        (math.inf, "not finite"),
        (-math.inf, "not finite"),
        (2.0**27 * (1 + 2**-23), "beyond"),
        (-(2.0**27) * (1 + 2**-23), "beyond"),
        (2.0**-149, "subnormal"),
        (-(2.0**-149), "subnormal"),
        (2.0**-126 - 2.0**-149, "subnormal"),
        (-(2.0**-126) + 2.0**-149, "subnormal"),
    ],
)
def test_float32_refuses(value: float, complaint: str, position: int) -> None:
    with pytest.raises(CodecError, match=complaint):
        make_codec("float32").decode(float32_payload(value, position, GROUP + 6), GROUP + 6)


@pytest.mark.parametrize("value", [2.0**27, -(2.0**27), 2.0**-126, -(2.0**-126), 0.0, -0.0])
def test_float32_accepts_its_limits(value: float) -> None:
    decoded = make_codec("float32").decode(float32_payload(value, 3, 9), 9)
    assert struct.pack("<f", decoded[3].item()) == struct.pack("<f", value)


@pytest.mark.parametrize("half", [0x7C00, 0xFC00, 0x7C01, 0x7E00, 0xFE00, 0xFFFF])
def test_float16_refuses(half: int) -> None:
    with pytest.raises(CodecError, match="not finite"):
        make_codec("float16").decode(struct.pack("<3H", 0, half, 0), 3)


@pytest.mark.parametrize(
    "scale", [0x00000001, 0x007FFFFF, 0x80000000, 0xBF800000, 0x49800001, 0x7F800000, 0x7FC00000, 0xFF800000]
)
def test_int8_refuses_a_scale(scale: int) -> None:
    payload = struct.pack("<II", 0x3F800000, scale) + bytes(1025)
    with pytest.raises(CodecError, match="scale"):
        make_codec("int8").decode(payload, 1025)


@pytest.mark.parametrize("scale", [0x00000000, 0x00800000, 0x49800000])
def test_int8_accepts_a_scale(scale: int) -> None:
    decoded = make_codec("int8").decode(struct.pack("<Ibb", scale, 127, -127), 2)
    value = struct.unpack("<f", struct.pack("<I", scale))[0]
    assert decoded.tolist() == [127 * value, -127 * value]


def test_int8_refuses_a_level_of_minus_128() -> None:
    with pytest.raises(CodecError, match="-128"):
        make_codec("int8").decode(struct.pack("<fbb", 1.0, 5, -128), 2)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("size", [1, 1024, 1025])
def test_one_length_only(name: str, size: int) -> None:
    codec = make_codec(name)
    payload = bytes(codec.encode(torch.ones(size)).payload)
    for wrong in (b"", payload[:-1], payload + b"\0", payload * 2):
        with pytest.raises(CodecError, match="bytes instead of"):
            codec.decode(wrong, size)
    with pytest.raises(CodecError):
        codec.decode(payload, size + 1)


def zstd_frame(content: bytes, *, size: bool = True, level: int = 1) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_content_size=size).compress(content)


HALVES = struct.pack("<4e", 1, 2, 3, 4)
SKIPPABLE = bytes.fromhex("502a4d18 03000000 616263")


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x28\xb5\x2f\xfd", id="magic only"),
        pytest.param(HALVES, id="no frame"),
        pytest.param(zstd_frame(HALVES)[:-1], id="truncated"),
        pytest.param(zstd_frame(HALVES) + b"\0", id="trailing byte"),
        pytest.param(zstd_frame(HALVES) * 2, id="two frames"),
        pytest.param(zstd_frame(HALVES) + SKIPPABLE, id="skippable after"),
        pytest.param(SKIPPABLE + zstd_frame(HALVES), id="skippable before"),
        pytest.param(SKIPPABLE, id="skippable alone"),
        pytest.param(zstd_frame(HALVES, size=False), id="no size"),
        pytest.param(zstd_frame(HALVES + b"\0\0"), id="too long"),
        pytest.param(zstd_frame(HALVES[:-2]), id="too short"),
        pytest.param(zstd_frame(b""), id="nothing"),
        pytest.param(zstd_frame(b"\0\x7e" * 4), id="content refused"),
        pytest.param(zstd_frame(bytes(1 << 24)), id="bomb"),
        pytest.param(bytes.fromhex("28b52ffd 21 05 08 410000") + HALVES, id="dictionary"),
        pytest.param(bytes.fromhex("28b52ffd 20 07 410000") + HALVES, id="declares less"),
        pytest.param(bytes.fromhex("28b52ffd 20 07 390000") + HALVES[:-1], id="one byte short"),
        pytest.param(bytes.fromhex("28b52ffd 20 08 2b0d00 00"), id="run beyond the size"),
        pytest.param(zstd_frame(HALVES) + bytes(1 << 20), id="oversized"),
    ],
)
def test_zstd_refuses(payload: bytes) -> None:
    with pytest.raises(CodecError):
        make_codec("float16+zstd").decode(payload, 4)


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (SKIPPABLE + zstd_frame(HALVES), "not a Zstandard frame"),
        (bytes.fromhex("28b52ffd 21 05 08 410000") + HALVES, "dictionary 5"),
        (zstd_frame(HALVES, size=False), "declares no size"),
        (zstd_frame(HALVES) + bytes(100), "more than 71 bytes"),
    ],
)
def test_zstd_refuses_before_it_decompresses(payload: bytes, complaint: str) -> None:
    with pytest.raises(CodecError, match=complaint):
        make_codec("float16+zstd").decode(payload, 4)


def test_zstd_holds_its_bound_on_noise() -> None:
    codec = make_codec("float16+zstd")
    noise = np.random.default_rng(0).integers(0, 0x7C00, 1 << 17, np.uint16).view(np.float16)
    for size in (1, 10, 1000, 70_000, 1 << 17):
        encoded = codec.encode(torch.from_numpy(noise[:size].astype(np.float32)))
        assert len(encoded.payload) <= codec.max_bytes(size)


def test_zstd_level_is_an_option() -> None:
    delta = torch.where(random_delta(20_000, seed=1) > 1e-3, random_delta(20_000), 0)
    lengths = [len(make_codec("int8+zstd", {"level": level}).encode(delta).payload) for level in (1, 19)]
    assert lengths[1] < lengths[0] < 20_000


@every_codec
def test_nothing_is_allocated_for_a_wrong_length(name: str) -> None:
    codec = make_codec(name)
    size = 4_000_000
    bomb = zstd_frame(bytes(codec.max_bytes(size) + 1))
    short = b"\0" * 1000
    tracemalloc.start()
    try:
        for payload in (bomb, short):
            with pytest.raises(CodecError):
                codec.decode(payload, size)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def decodes_or_refuses(codec: Codec, payload: bytes, size: int) -> None:
    try:
        decoded = codec.decode(payload, size)
    except CodecError:
        return
    values = decoded.numpy()
    assert values.shape == (size,)
    assert np.all(np.abs(values) <= MAX_MAGNITUDE)
    assert np.all((values == 0) | (np.abs(values) >= np.finfo(np.float32).smallest_normal))


@every_codec
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_payloads_decode_within_bounds_or_raise_codec_error(name: str, data: st.DataObject) -> None:
    codec = make_codec(name)
    size = data.draw(st.sampled_from([1, 7, 1030]))
    payload = bytearray(codec.encode(random_delta(size)).payload)
    for _ in range(data.draw(st.integers(0, 4))):
        if payload:
            position = data.draw(st.integers(0, len(payload) - 1))
            payload[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 12))
    tail = data.draw(st.binary(max_size=12))
    payload = payload[: len(payload) - cut] + tail
    decodes_or_refuses(codec, bytes(payload), size)


@every_codec
@given(noise=st.binary(min_size=24, max_size=24))
@settings(max_examples=100, deadline=None)
def test_noise_of_the_right_length_decodes_within_bounds_or_raises_codec_error(name: str, noise: bytes) -> None:
    sizes = {"float32": 6, "float16": 12, "int8": 20}
    base, _, stage = name.partition("+")
    decodes_or_refuses(make_codec(name), zstd_frame(noise) if stage else noise, sizes[base])


def test_wire_ids() -> None:
    numbers = {name: make_codec(name).wire_id for name in NAMES}
    assert numbers == {
        "float32": 1,
        "float16": 2,
        "int8": 3,
        "float32+zstd": ZSTD_FLAG | 1,
        "float16+zstd": ZSTD_FLAG | 2,
        "int8+zstd": ZSTD_FLAG | 3,
    }
    for name, number in numbers.items():
        assert make_codec(name).name == codec_by_wire_id(number).name == name


@pytest.mark.parametrize("number", [0, 4, 127, 128, 132, 255])
def test_unknown_wire_ids_are_the_peer_s_fault(number: int) -> None:
    with pytest.raises(CodecError, match=f"number {number} is unknown"):
        codec_by_wire_id(number)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("int4", {}, 'codec "int4" is unknown; choose one of: float32, float16, int8, float32[+]zstd, '),
        ("int8", {"level": 1}, 'codec "int8" has no option "level"; its options: none'),
        ("int8+zstd", {"block": 64}, 'codec "int8[+]zstd" has no option "block"; its options: level'),
        ("int8+zstd", {"level": "fast"}, "level 'fast' must be an integer"),
        ("int8+zstd", {"level": True}, "level True must be an integer"),
        ("int8+zstd", {"level": 0}, r"level 0 must lie in 1\.\.22"),
        ("int8+zstd", {"level": 23}, r"level 23 must lie in 1\.\.22"),
    ],
)
def test_mistaken_options_get_one_line(name: str, options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        make_codec(name, options)
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r'pip install "gossipfl\[zstd\]"'):
        make_codec("int8+zstd")
    with pytest.raises(CodecError, match="zstandard"):
        codec_by_wire_id(ZSTD_FLAG | 3)
    assert make_codec("int8").name == "int8"
