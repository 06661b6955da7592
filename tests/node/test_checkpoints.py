"""What is saved comes back bit for bit; what is not what was saved does not come back at all."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from kill_points import STORE, FastDisk, assert_is, bits, content, save

from gossipfl.digest import digest
from gossipfl.errors import ConfigError
from gossipfl_node.checkpoints import SCHEMA, Checkpoints, generation
from gossipfl_node.checkpoints.generation import PIECE_BYTES, Damaged, parse_manifest, tensor_pieces
from gossipfl_node.durable import DISK

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
NEWEST = "0000000003"


def _store(folder: Path, keep: int = 3) -> Checkpoints:
    return Checkpoints(folder / STORE, keep, disk=FastDisk())


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder with generations 1, 2 and 3."""
    store = _store(tmp_path)
    for number in (1, 2, 3):
        save(store, number)
    return tmp_path


# ------------------------------------------------------------------------------------------------------- round trips


def test_the_newest_of_the_last_generations_is_loaded(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / STORE, keep=2)
    assert store.load() is None
    for number in range(1, 6):
        save(store, number)
        assert_is(store.load(), number)
        assert_is(Checkpoints(tmp_path / STORE).load(), number)
        kept = [f"{each:010d}" for each in range(max(1, number - 1), number + 1)]
        assert sorted(path.name for path in (tmp_path / STORE).iterdir()) == kept
    assert store.damaged == []
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / STORE, *(tmp_path / STORE).rglob("*"))}
    assert modes == {0}, "nobody else may read what the site's data taught it"


def test_fewer_are_kept_from_the_next_save_on(three: Path) -> None:
    _store(three, keep=1).save(*content(4))
    assert [path.name for path in (three / STORE).iterdir()] == ["0000000004"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_bit_of_every_dtype_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    """NaN payloads, signalling ones too, and -0 among them; for bool also bytes that are neither 0 nor 1."""
    raw = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.uint8)  # all patterns of 16 bits
    wide = torch.tensor([0x7FF0000000000001, -1, -(2**63), 0x7FA000017F800001], dtype=torch.int64).view(torch.uint8)
    tensors = {"all": torch.cat([raw, wide]).view(dtype), "scalar": torch.zeros((), dtype=dtype)}
    store = _store(tmp_path)
    store.save(tensors, {}, 0)
    loaded = store.load()
    assert loaded is not None
    assert bits(loaded.tensors) == bits(tensors)
    loaded.tensors["all"].zero_()  # may be written to
    again = store.load()
    assert again is not None
    assert bits(again.tensors) == bits(tensors)


def test_tensors_of_every_layout_come_back(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32)
    tensors = {
        "whole": whole,
        "the same": whole,
        "overlapping": whole[3:11],
        "strided": whole.view(4, 6)[::2, 1::3],
        "transposed": whole.view(2, 3, 4).permute(2, 0, 1),
        "expanded": whole[:1].expand(5, 3),
        "negated": torch.tensor([1 + 2j, 3 - 4j, 0]).conj().imag,
        "trained": torch.nn.Parameter(torch.ones(3)),
        "empty": torch.empty(3, 0, 2),
        "": torch.tensor(True),
        'a "name"\n\0 ü 🜁': torch.tensor([1], dtype=torch.uint8),
    }
    assert tensors["negated"].is_neg()
    store = _store(tmp_path)
    store.save(tensors, {}, 0)
    loaded = store.load()
    assert loaded is not None
    assert list(loaded.tensors) == list(tensors)
    assert bits(loaded.tensors) == {
        name: bits({name: each.detach().resolve_neg()})[name] for name, each in tensors.items()
    }
    starts = [each.data_ptr() for each in loaded.tensors.values() if each.numel()]
    assert len(set(starts)) == len(starts), "no memory is shared"


def test_no_tensors_and_no_facts_are_a_checkpoint_too(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.save({}, {}, -1)
    loaded = store.load()
    assert loaded is not None
    assert (loaded.tensors, loaded.facts, loaded.round) == ({}, {}, -1)


def test_the_file_is_one_of_the_library(three: Path) -> None:
    tensors = content(3)[0]
    path = three / STORE / NEWEST / "tensors.safetensors"
    assert bits(safetensors.torch.load_file(path)) == bits(tensors)
    theirs = safetensors.torch.save({name: each.contiguous() for name, each in tensors.items()})
    assert len(path.read_bytes()) == len(theirs)


def test_a_large_tensor_is_written_from_where_it_lies() -> None:
    """Only what is not contiguous is copied, one tensor at a time."""
    large = torch.rand(3 * PIECE_BYTES // 4 + 5)
    header, *pieces = tensor_pieces({"large": large})
    assert [len(piece) for piece in pieces] == [PIECE_BYTES] * 3 + [20]
    assert all(np.shares_memory(np.frombuffer(piece, np.uint8), large.numpy()) for piece in pieces)
    assert b"".join([header, *pieces]) == safetensors.torch.save({"large": large})


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(facts=st.dictionaries(st.text(), _json, max_size=4), round_=st.integers(-(2**64), 2**64))
def test_facts_come_back(facts: dict[str, Any], round_: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder))
        store.save({}, facts, round_)
        loaded = store.load()
        assert loaded is not None
        assert repr((loaded.facts, loaded.round)) == repr((facts, round_))


@pytest.mark.parametrize(
    "facts",
    [{"loss": float("nan")}, {"loss": float("inf")}, {1: 2}, {"pair": (1, 2)}, {"set": {1}}, {"bytes": b""}],
    ids=lambda facts: str(next(iter(facts))),
)
def test_facts_that_would_not_come_back_are_refused(three: Path, facts: dict[Any, Any]) -> None:
    store = _store(three)
    with pytest.raises(ValueError, match="facts of a checkpoint must be JSON values: "):
        store.save({}, facts, 4)
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(ValueError, match="JSON values"):
        store.save({}, cycle, 4)
    assert_is(store.load(), 3)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"z": torch.zeros(1, dtype=torch.complex64)}, '"z" is torch.complex64'),
        ({"s": torch.zeros(2, 2).to_sparse()}, '"s" is torch.float32, torch.sparse_coo on cpu'),
        ({"m": torch.zeros(2, device="meta")}, "on meta: not one to save"),
        ({"__metadata__": torch.zeros(1)}, "__metadata__"),
        ({"\ud800": torch.zeros(1)}, "surrogates not allowed"),
        ({"n" * 600: torch.zeros(1), "m" * 600: torch.zeros(1)}, "2 tensors have too long names"),
    ],
    ids=["complex", "sparse", "meta", "metadata", "surrogate", "long"],
)
def test_tensors_that_would_not_come_back_are_refused(
    three: Path, tensors: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MAX_HEADER_BYTES", 1000)
    store = _store(three)
    with pytest.raises(ValueError, match=told):
        store.save(tensors, {}, 4)
    assert sorted(path.name for path in (three / STORE).iterdir()) == ["0000000001", "0000000002", NEWEST]
    assert_is(store.load(), 3)


def test_facts_that_no_load_would_read_are_refused(three: Path) -> None:
    with pytest.raises(ValueError, match="longer than 16777216 bytes; shorten its facts"):
        _store(three).save({}, {"long": "x" * (16 << 20)}, 4)
    assert_is(_store(three).load(), 3)


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 checkpoint is kept, not 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_worker_thread_may_save_and_load(tmp_path: Path) -> None:
    async def run() -> None:
        store = Checkpoints(tmp_path / STORE)
        await asyncio.to_thread(save, store, 1)
        assert_is(await asyncio.to_thread(store.load), 1)

    asyncio.run(run())


# ----------------------------------------------------------------------------------------------------------- damage


def _assert_set_aside(folder: Path, told: str) -> None:
    """Assert that the newest generation is not believed, is told, and is out of the way."""
    store = _store(folder)
    assert_is(store.load(), 2)
    ((name, reason),) = store.damaged
    assert name == f"{NEWEST}.damaged"
    assert told in reason
    assert "\n" not in reason
    assert (folder / STORE / name).exists() or (folder / STORE / name).is_symlink()
    again = _store(folder)
    assert_is(again.load(), 2)
    assert again.damaged == []
    assert again.save(*content(4)) == 4, "a number is given once"
    assert_is(_store(folder).load(), 4)


def _forge(folder: Path, change: Callable[[dict[str, Any]], Any], tensors: bytes | None = None) -> None:
    """Change the newest manifest and put its digest right, and that of ``tensors`` if they are given."""
    newest = folder / STORE / NEWEST
    document = json.loads((newest / "manifest.json").read_bytes())
    del document["blake3"]
    if tensors is not None:
        (newest / "tensors.safetensors").write_bytes(tensors)
        document["tensors"] |= {"bytes": len(tensors), "blake3": digest(tensors).hex()}
    document = change(document) or document
    covered = b'", ' + json.dumps(document).encode()[1:]
    (newest / "manifest.json").write_bytes(b'{"blake3": "' + digest(covered).hex().encode() + covered)


def test_a_forged_manifest_that_says_the_same_is_believed(three: Path) -> None:
    """So the refusals below are due to what was changed. The digests are no signatures."""
    _forge(three, lambda document: None, (three / STORE / NEWEST / "tensors.safetensors").read_bytes())
    assert_is(_store(three).load(), 3)


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors"])
@pytest.mark.parametrize("state", ["missing", "empty", "torn", "longer", "folder", "link", "pipe", "pickle"])
def test_a_file_that_is_not_what_was_written(three: Path, name: str, state: str) -> None:
    path = three / STORE / NEWEST / name
    held = path.read_bytes()
    path.unlink()
    match state:
        case "empty":
            path.touch()
        case "torn":
            path.write_bytes(held[: len(held) // 2])
        case "longer":
            path.write_bytes(held + b"\0")
        case "folder":
            path.mkdir()
        case "link":
            (path.parent / "other").write_bytes(held)
            path.symlink_to("other")
        case "pipe":
            os.mkfifo(path)
        case "pickle":
            path.write_bytes(pickle.dumps(content(3)[0]))
    _assert_set_aside(three, "manifest" if name == "manifest.json" else "tensors")


@pytest.mark.parametrize("state", ["file", "pipe", "link", "empty folder", "dangling link"])
def test_something_else_under_the_name_of_a_generation(three: Path, state: str) -> None:
    path = three / STORE / NEWEST
    shutil.rmtree(path)
    match state:
        case "file":
            path.write_text("mine")
        case "pipe":
            os.mkfifo(path)
        case "link":
            (three / "elsewhere").mkdir()
            path.symlink_to(three / "elsewhere")
        case "empty folder":
            path.mkdir()
        case "dangling link":
            path.symlink_to(three / "nowhere")
    _assert_set_aside(three, "its manifest.json cannot be read")
    assert state != "link" or (three / "elsewhere").is_dir()


class _Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def _header(parts: Any, length: int | None = None, body: bytes = b"") -> bytes:
    text = json.dumps(parts).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    "tensors",
    [
        pickle.dumps(_Bomb()),
        b"",
        _header({}, 2**64 - 1),
        _header({}, 2**62),
        _header({}, 99_999_999),
        _header({"w": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}}, None, bytes(4)),
        _header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]}}, None, bytes(4)),
        _header({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, None, bytes(4)),
        _header({"w": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}, None, bytes(4)),
        _header({"w": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, None, bytes(8)),
        _header({"w": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, None, bytes(4)),
        _header({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, None, bytes(4)),
        _header([[]] * 9000),
        struct.pack("<Q", 90_000) + b"[" * 90_000,
        _header({"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None, bytes(4)),
    ],
    ids=range(15),
)
def test_a_hostile_file_of_tensors_whose_digest_is_right(three: Path, tensors: bytes) -> None:
    _forge(three, lambda document: None, tensors)
    _assert_set_aside(three, "its file of tensors ")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("schema") and None,
        lambda document: document.update(schema=0),
        lambda document: document.update(schema="2"),
        lambda document: document.update(schema=None),
        lambda document: document.update(schema=1.5),
        lambda document: document.update(more=1),
        lambda document: document.pop("round") and None,
        lambda document: document.update(round="1"),
        lambda document: document.update(round=True),
        lambda document: document.update(facts=[]),
        lambda document: document.update(tensors=None),
        lambda document: document["tensors"].update(bytes=2**63),
        lambda document: document["tensors"].update(bytes=10**400),
        lambda document: document["tensors"].update(bytes=-1),
        lambda document: document["tensors"].update(bytes=0),
        lambda document: document["tensors"].update(blake3="00" * 32),
        lambda document: document["tensors"].update(table=[]),
        lambda document: document["tensors"]["table"].reverse() or document["tensors"]["table"].pop(),
        lambda document: document["tensors"]["table"].append(document["tensors"]["table"][0]),
        lambda document: document["tensors"]["table"][0].update(shape=[2**62]),
        lambda document: document["tensors"]["table"][0].update(dtype="int32"),
        lambda document: document["tensors"]["table"][0].update(name="another"),
        lambda document: {"schema": 1},
    ],
    ids=range(23),
)
def test_a_hostile_manifest_whose_digest_is_right(three: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    def changed(document: dict[str, Any]) -> Any:
        result = change(document)
        return result if result and "schema" in result else document

    _forge(three, changed)
    _assert_set_aside(three, "its ")


@pytest.mark.parametrize("text", [b"[]", b'{"a":', b"[" * 100_000, b"\xff", b"1" * 5000])
def test_a_manifest_that_is_no_object_though_its_digest_is_right(three: Path, text: bytes) -> None:
    covered = b'", "facts": ' + text
    (three / STORE / NEWEST / "manifest.json").write_bytes(b'{"blake3": "' + digest(covered).hex().encode() + covered)
    _assert_set_aside(three, "its manifest is no JSON")


def test_where_all_are_damaged_none_is_loaded_and_every_one_told(three: Path) -> None:
    for path in (three / STORE).rglob("manifest.json"):
        path.write_text("{}")
    store = _store(three)
    assert store.load() is None
    assert [name for name, _ in store.damaged] == [f"{number:010d}.damaged" for number in (3, 2, 1)]
    assert store.load() is None
    assert store.damaged == []
    assert store.save(*content(4)) == 4


def test_damaged_generations_are_bounded_in_number(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for _ in range(8):
        number = store.save(*content(1))
        (tmp_path / STORE / f"{number:010d}" / "manifest.json").unlink()
        assert store.load() is None
    assert sorted(path.name for path in (tmp_path / STORE).iterdir()) == [
        f"{number:010d}.damaged" for number in (6, 7, 8)
    ]


def test_a_damaged_one_that_was_given_its_name_again_is_set_aside_again(three: Path) -> None:
    folder = three / STORE
    (folder / NEWEST / "manifest.json").unlink()
    assert_is(_store(three).load(), 2)
    shutil.copytree(folder / f"{NEWEST}.damaged", folder / NEWEST)
    _assert_set_aside(three, "its manifest.json cannot be read")


def test_what_is_not_ours_stays(three: Path) -> None:
    """Also links, and names that only look like ours."""
    names = ["lost+found", "notes.txt", "3", "00000000003", "000000000３", "0000000009.part.bak", ".0000000009"]
    for name in names:
        (three / STORE / name).mkdir()
        (three / STORE / name / "file").touch()
    (three / "precious").mkdir()
    (three / "precious" / "file").touch()
    (three / STORE / "0000000007.part").mkdir()
    (three / STORE / "0000000007.part" / "link").symlink_to(three / "precious")
    (three / STORE / "0000000006.old").symlink_to(three / "precious")
    store = _store(three, keep=1)
    assert_is(store.load(), 3)
    assert (three / "precious" / "file").exists()
    store.save(*content(4))
    assert {path.name for path in (three / STORE).iterdir()} == {*names, "0000000004"}


def test_leftovers_are_removed_with_all_that_is_in_them(three: Path) -> None:
    for name in ("0000000004.part", "0000000001.old"):
        (three / STORE / name / "deep" / "er").mkdir(parents=True)
        (three / STORE / name / "deep" / "er" / "file").touch()
    (three / STORE / "0000000005.part").touch()
    assert_is(_store(three).load(), 3)
    assert len(list((three / STORE).iterdir())) == 3


def test_the_last_number_is_a_clear_line(three: Path) -> None:
    (three / STORE / NEWEST).rename(three / STORE / "9999999999")
    with pytest.raises(ConfigError, match="holds number 9999999999, the last there is; move that away"):
        _store(three).save(*content(4))


# ----------------------------------------------------------------------------------------------------- newer versions


def test_a_newer_schema_is_refused_and_kept(three: Path) -> None:
    """A version that was installed by mistake destroys nothing, whichever it is asked to do first."""
    _forge(three, lambda document: {"schema": SCHEMA + 1, "anything": [1]})
    (three / STORE / "0000000004").mkdir()  # damaged, and newer: not even that is touched
    (three / STORE / "0000000005.part").mkdir()
    before = sorted(path.name for path in (three / STORE).iterdir())
    told = rf"{NEWEST} was saved by a newer version \(schema 2; this one knows up to 1\); install that version again"
    store = _store(three, keep=1)
    with pytest.raises(ConfigError, match=told):
        store.load()
    for _ in range(2):
        with pytest.raises(ConfigError, match=told):
            store.save(*content(4))
    assert sorted(path.name for path in (three / STORE).iterdir()) == before


# ------------------------------------------------------------------------------------------------------ random damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with generations 1, 2 and 3, only to be copied."""
    path = tmp_path_factory.mktemp("saved")
    store = _store(path)
    for number in (1, 2, 3):
        save(store, number)
    return path


@given(data=st.data())
def test_random_damage_is_never_believed(saved: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(saved, folder)
        newest = folder / STORE / NEWEST
        for name in data.draw(st.lists(st.sampled_from(sorted(path.name for path in newest.iterdir())), min_size=1)):
            path = newest / name
            held = bytearray(path.read_bytes())
            start = data.draw(st.integers(0, len(held)))
            end = data.draw(st.integers(start, min(len(held), start + 64)))
            match data.draw(st.sampled_from(["overwrite", "flip", "cut out", "truncate", "insert", "zero", "former"])):
                case "overwrite":
                    held[start:end] = data.draw(st.binary(min_size=end - start, max_size=end - start))
                case "flip" if start < len(held):
                    held[start] ^= 1 << data.draw(st.integers(0, 7))
                case "cut out":
                    del held[start:end]
                case "truncate":
                    del held[start:]
                case "insert":
                    held[start:start] = data.draw(st.binary(max_size=16))
                case "zero":
                    held[start:] = bytes(len(held) - start)
                case "former":
                    held[:] = (newest.with_name("0000000002") / name).read_bytes()
            path.write_bytes(held)
        store = _store(folder)
        found = store.load()
        assert found is not None
        if found.number == 3 and found.facts == content(2)[1]:  # both files are those of generation 2
            assert bits(found.tensors) == bits(content(2)[0])
        else:
            assert_is(found, found.number)
        assert found.number in (2, 3)
        assert [name for name, _ in store.damaged] == [f"{NEWEST}.damaged"] * (found.number == 2)


def test_every_single_bit_of_a_manifest_counts(saved: Path, tmp_path: Path) -> None:
    held = bytearray(DISK.read(saved / STORE / NEWEST / "manifest.json", 1 << 20))
    parse_manifest(bytes(held))
    for position in range(8 * len(held)):
        held[position // 8] ^= 1 << position % 8
        with pytest.raises(Damaged):
            parse_manifest(bytes(held))
        held[position // 8] ^= 1 << position % 8
