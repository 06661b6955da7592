"""A site's key as py-libp2p sees it, and whether that library is one that was tried."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyType
from libp2p.peer.id import ID

from gossipfl.errors import ConfigError
from gossipfl.identity import Identity
from gossipfl.transports.libp2p.host import SiteKey
from gossipfl.transports.libp2p.library import TRIED_VERSIONS, check_library

SEEDS = st.binary(min_size=32, max_size=32)


@given(SEEDS)
def test_a_site_has_one_peer_id_everywhere(seed: bytes) -> None:
    identity = Identity.from_seed(seed)
    key = SiteKey(identity)
    assert key.get_type() is KeyType.Ed25519
    assert str(ID.from_pubkey(key.get_public_key())) == identity.peer_id
    assert ID.from_base58(identity.peer_id).to_base58() == identity.peer_id
    if any(seed):  # of an empty seed the library makes a random key
        library_key = create_new_key_pair(seed)
        assert library_key.public_key.to_bytes() == key.get_public_key().to_bytes() == identity.public_key


@given(SEEDS, st.binary(max_size=200), st.integers(0, 63), st.integers(1, 255))
def test_a_signature_verifies_with_the_library_and_with_no_other_data(
    seed: bytes, data: bytes, position: int, flip: int
) -> None:
    key = SiteKey(Identity.from_seed(seed))
    signature = key.sign(data)
    verifier = key.get_public_key()
    assert verifier.verify(data, signature)
    assert not verifier.verify(data + b"!", signature)
    altered = bytearray(signature)
    altered[position] ^= flip
    assert not verifier.verify(data, bytes(altered))


def test_the_private_key_is_handed_out_to_nobody() -> None:
    key = SiteKey(Identity.from_seed(b"s" * 32))
    with pytest.raises(NotImplementedError):
        key.to_bytes()
    with pytest.raises(NotImplementedError):
        key.serialize()
    assert "s" * 8 not in repr(key)


# ---------------------------------------------------------------------------------------------------- the library


def complaint() -> str:
    with pytest.raises(ConfigError) as caught:
        check_library()
    (line,) = str(caught.value).splitlines()
    return line


def test_this_library_was_tried() -> None:
    check_library()


@pytest.mark.parametrize("missing", ["libp2p", "trio"])
def test_a_missing_library_is_told_in_one_line_with_the_mend(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    line = complaint()
    assert "not installed" in line
    assert "pip install 'gossipfl[libp2p]'" in line


@pytest.mark.parametrize("version", ["0.7.0", "0.8.10", "1.0.0rc1"])
def test_another_version_is_told_in_one_line_with_the_mend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    line = complaint()
    assert version in line
    assert f"pip install 'libp2p=={TRIED_VERSIONS[-1]}'" in line


def test_a_folder_of_the_same_name_is_not_taken_for_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a folder can be imported, as a package without files; it is of no version."""

    def no_version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", no_version)
    assert "pip install" in complaint()
