from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.errors import ConfigError
from gossipfl.identity import (
    Identity,
    Verifier,
    base58_decode,
    base58_encode,
    peer_id_of,
    public_key_of,
)
from gossipfl.transports import base

# The Ed25519 key pair among the test vectors of the libp2p specification "Peer Ids and Keys".
LIBP2P_SEED = bytes.fromhex("7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d")
LIBP2P_PUBLIC = bytes.fromhex("1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")
LIBP2P_PEER_ID = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def _order_8_y() -> list[int]:
    """Both y of the points of order 8, whose double has y = 0: so x² = -y², and dy⁴ + 2y² = 1."""
    root = _square_root((1 + D) % P)
    assert root is not None
    squares = [(-1 + sign * root) * pow(D, -1, P) % P for sign in (1, -1)]
    found = [y for square in squares if (y := _square_root(square)) is not None]
    return [value for y in found for value in (y, P - y)]


def _square_root(value: int) -> int | None:
    root = pow(value, (P + 3) // 8, P)
    for candidate in (root, root * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == value:
            return candidate
    return None


SMALL_ORDER = [
    (y + wrap | sign << 255).to_bytes(32, "little")
    for y in (0, 1, P - 1, *_order_8_y())
    for wrap in (0, P)
    for sign in (0, 1)
    if y + wrap < 1 << 255
]


def test_peer_id_is_libp2p_s() -> None:
    identity = Identity.from_seed(LIBP2P_SEED)
    assert identity.public_key == LIBP2P_PUBLIC
    assert identity.peer_id == LIBP2P_PEER_ID == peer_id_of(LIBP2P_PUBLIC)
    assert public_key_of(LIBP2P_PEER_ID) == LIBP2P_PUBLIC
    assert base.PeerId is str


def test_signature_is_rfc_8032_test_3() -> None:
    identity = Identity.from_seed(bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"))
    expected = bytes.fromhex(
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
    )
    assert identity.sign(b"\xaf\x82") == expected
    assert Verifier(identity.public_key).verify(b"\xaf\x82", expected)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\0", "1"),
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
    ],
)
def test_base58_vectors(data: bytes, text: str) -> None:
    assert base58_encode(data) == text
    assert base58_decode(text) == data


@given(st.binary(max_size=64))
def test_base58_round_trip(data: bytes) -> None:
    assert base58_decode(base58_encode(data)) == data


@given(st.binary(min_size=32, max_size=32).filter(lambda key: key not in SMALL_ORDER))
def test_every_key_is_in_its_peer_id(public_key: bytes) -> None:
    peer_id = peer_id_of(public_key)
    assert len(peer_id) == 52
    assert peer_id.startswith("12D3KooW")
    assert public_key_of(peer_id) == public_key


@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    key = b"\x07" * length
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id_of(key)
    with pytest.raises(ValueError, match="32 bytes"):
        Verifier(key)
    with pytest.raises(ValueError, match="32 bytes"):
        Identity.from_seed(key)


def test_keys_that_anyone_can_sign_for_are_refused() -> None:
    assert len(SMALL_ORDER) == 14
    for key in SMALL_ORDER:
        with pytest.raises(ValueError, match="small order"):
            Verifier(key)
        with pytest.raises(ValueError, match="small order"):
            peer_id_of(key)
        with pytest.raises(ConfigError, match="small order"):
            public_key_of(base58_encode(bytes.fromhex("002408011220") + key))


@pytest.mark.parametrize(
    ("peer_id", "complaint"),
    [
        ("", "0 characters"),
        (LIBP2P_PEER_ID[:-1], "51 characters"),
        (LIBP2P_PEER_ID + "a", "53 characters"),
        ("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "46 characters"),
        ("1" * 1_000_000, "1000000 characters"),
        (LIBP2P_PEER_ID.replace("B", "0"), "no base-58 digit"),
        (LIBP2P_PEER_ID.replace("B", "é"), "no base-58 digit"),
        ("1" * 52, "not that of an Ed25519 key"),
        ("z" * 52, "not that of an Ed25519 key"),
        (base58_encode(bytes.fromhex("002408021220") + LIBP2P_PUBLIC), "not that of an Ed25519 key"),
    ],
)
def test_bad_peer_ids_get_one_short_line(peer_id: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        public_key_of(peer_id)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_verifier_answers_and_never_raises() -> None:
    identity = Identity.from_seed(bytes(range(32)))
    verifier = Verifier(identity.public_key)
    signature = identity.sign(b"round 7")
    assert verifier.verify(b"round 7", signature)
    assert verifier.verify(memoryview(b"round 7"), memoryview(signature))
    assert not verifier.verify(b"round 8", signature)
    assert not Verifier(LIBP2P_PUBLIC).verify(b"round 7", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64), b"\xff" * 64):
        assert not verifier.verify(b"round 7", wrong)
    not_on_the_curve = (2).to_bytes(32, "little")
    assert not Verifier(not_on_the_curve).verify(b"round 7", signature)


@given(st.integers(0, 511))
def test_no_flipped_bit_of_a_signature_verifies(bit: int) -> None:
    identity = Identity.from_seed(LIBP2P_SEED)
    flipped = bytearray(identity.sign(b"data"))
    flipped[bit // 8] ^= 1 << bit % 8
    assert not Verifier(identity.public_key).verify(b"data", flipped)


def test_generated_identities_differ() -> None:
    assert Identity.generate().peer_id != Identity.generate().peer_id


def test_repr_keeps_the_secret() -> None:
    assert repr(Identity.from_seed(LIBP2P_SEED)) == f"Identity({LIBP2P_PEER_ID})"


def test_a_saved_key_is_private_standard_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    identity = Identity.generate()
    identity.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_pem_private_key(path.read_bytes(), None) is not None
    loaded = Identity.load(path)
    assert loaded.public_key == identity.public_key
    assert Verifier(identity.public_key).verify(b"data", loaded.sign(b"data"))


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = Identity.generate()
    first.save(path)
    with pytest.raises(ConfigError, match="never overwritten"):
        Identity.generate().save(path)
    assert Identity.load(path).peer_id == first.peer_id


def test_a_dangling_link_is_not_followed_on_save(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="never overwritten"):
        Identity.generate().save(path)
    assert not (tmp_path / "elsewhere").exists()


def test_save_into_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made: No such file or directory$"):
        Identity.generate().save(tmp_path / "missing" / "node.key")


def test_half_a_key_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    path = tmp_path / "node.key"
    with pytest.raises(ConfigError, match=r"cannot be written: No space left on device$"):
        Identity.generate().save(path)
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o777])
def test_a_key_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    Identity.generate().save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod 600 {path}$"):
        Identity.load(path)


def _write_private(path: Path, content: bytes) -> Path:
    path.touch(0o600)
    path.write_bytes(content)
    return path


def test_files_that_hold_no_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Identity.load(tmp_path / "missing.key")
    with pytest.raises(ConfigError, match=r"cannot be read|is not a file"):
        Identity.load(tmp_path)
    key = X25519PrivateKey.generate()
    encryption = BestAvailableEncryption(b"password")
    contents = {
        "empty": b"",
        "noise": b"\xff" * 10_000,
        "seed": LIBP2P_SEED.hex().encode(),
        "other": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "locked": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption),
    }
    for name, content in contents.items():
        with pytest.raises(ConfigError, match="holds no unencrypted Ed25519 private key"):
            Identity.load(_write_private(tmp_path / name, content))
