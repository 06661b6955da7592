from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import make_identity

from gossipfl.errors import ConfigError
from gossipfl.identity import Identity
from gossipfl.membership.sealing import check_of, montgomery, new_key, open_key, seal_key

FEDERATION = bytes(16)


@given(seed=st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_the_montgomery_form_is_the_public_key_of_the_secret(seed: bytes) -> None:
    identity = Identity.from_seed(seed)
    secret = X25519PrivateKey.from_private_bytes(identity.montgomery_secret())
    assert montgomery(identity.public_key) == secret.public_key().public_bytes_raw()


def test_a_known_pair() -> None:
    """From libsodium's test of crypto_sign_ed25519_pk_to_curve25519 (ed25519_convert)."""
    seed = bytes.fromhex("421151a459faeade3d247115f94aedae42318124095afabe4d1451a559faedee")
    identity = Identity.from_seed(seed)
    assert montgomery(identity.public_key).hex() == "f1814f0e8ff1043d8a44d25babff3cedcae6c22c3edaa48f857ae70de2baae50"


def test_the_one_it_was_sealed_for_opens_it() -> None:
    key, one = new_key(), make_identity(1)
    sealed = seal_key(key, one.public_key, federation=FEDERATION, version=3)
    assert open_key(sealed, one, federation=FEDERATION, version=3, check=check_of(key)) == key
    assert sealed != seal_key(key, one.public_key, federation=FEDERATION, version=3)


@pytest.mark.parametrize(
    ("who", "federation", "version"), [(2, FEDERATION, 3), (1, bytes([1]) * 16, 3), (1, FEDERATION, 4)]
)
def test_nobody_else_and_for_nothing_else(who: int, federation: bytes, version: int) -> None:
    key = new_key()
    sealed = seal_key(key, make_identity(1).public_key, federation=FEDERATION, version=3)
    with pytest.raises(ConfigError, match="was not sealed for"):
        open_key(sealed, make_identity(who), federation=federation, version=version, check=check_of(key))


def test_a_key_of_ones_own_is_noticed() -> None:
    """A signer could give each member another key: then they would hear nobody."""
    one, given = make_identity(1), new_key()
    sealed = seal_key(given, one.public_key, federation=FEDERATION, version=3)
    with pytest.raises(ConfigError, match="is not the one that all members have"):
        open_key(sealed, one, federation=FEDERATION, version=3, check=check_of(new_key()))


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_refused(sealed: bytes) -> None:
    with pytest.raises(ConfigError, match="was not sealed for"):
        open_key(sealed, make_identity(1), federation=FEDERATION, version=1, check="00" * 32)
