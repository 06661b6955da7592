from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest

from gossipfl.errors import ConfigError
from gossipfl.identity import Identity
from gossipfl.membership import Member, Membership, federation_id_of

IDENTITIES = [Identity.from_seed(bytes([number]) * 32) for number in range(3)]
IDS = {f"site-{number}": identity.peer_id for number, identity in enumerate(IDENTITIES)}


def test_federation_id_is_fixed_by_its_name() -> None:
    assert federation_id_of("oran-lab").hex() == "4dd5e30a147344607f38dc54ccdc17dd"
    assert federation_id_of("oran-lab") != federation_id_of("oran-lab2")


def test_members_are_found_by_key_and_by_id() -> None:
    membership = Membership.from_ids("oran-lab", IDS)
    assert membership.federation_id == federation_id_of("oran-lab")
    assert [member.name for member in membership] == list(IDS)
    assert len(membership) == 3
    for number, identity in enumerate(IDENTITIES):
        expected = Member(f"site-{number}", identity.peer_id, identity.public_key)
        assert membership.by_public_key(identity.public_key) == expected
        assert membership.get(identity.peer_id) == expected
        assert identity.peer_id in membership


def test_strangers_are_not_found() -> None:
    membership = Membership.from_ids("oran-lab", IDS)
    stranger = Identity.from_seed(bytes([9]) * 32)
    assert membership.by_public_key(stranger.public_key) is None
    assert membership.by_public_key(b"") is None
    assert membership.get(stranger.peer_id) is None
    assert stranger.peer_id not in membership


def test_a_membership_does_not_change() -> None:
    ids = dict(IDS)
    membership = Membership.from_ids("oran-lab", ids)
    ids.clear()
    assert len(membership) == 3
    with pytest.raises(FrozenInstanceError):
        membership.members = {}  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(membership)) == membership


@pytest.mark.parametrize("name", ["a", "site-1", "A.b_c-9", "x" * 64, "...", "-"])
def test_names_that_are_safe(name: str) -> None:
    assert [member.name for member in Membership.from_ids(name, {name: IDS["site-0"]})] == [name]


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a+", "#", "$SYS", "a b", "a\n", "ä", ".", "..", "a\0", "١"])
def test_names_that_break_topics_or_files_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="node name") as caught:
        Membership.from_ids("oran-lab", {name: IDS["site-0"]})
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="federation name"):
        federation_id_of(name)


def test_a_key_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match='"a" and "b" have one peer id'):
        Membership.from_ids("oran-lab", {"a": IDS["site-0"], "b": IDS["site-0"]})


def test_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(ConfigError, match='"Site" and "site" are too alike'):
        Membership.from_ids("oran-lab", {"Site": IDS["site-0"], "site": IDS["site-1"]})


def test_one_name_for_two_members_is_refused() -> None:
    twins = [Member.from_peer_id("site", IDS[name]) for name in ("site-0", "site-1")]
    with pytest.raises(ConfigError, match='"site" and "site" are too alike'):
        Membership(bytes(16), {member.peer_id: member for member in twins})


def test_a_mistyped_peer_id_is_refused() -> None:
    with pytest.raises(ConfigError, match="peer id"):
        Membership.from_ids("oran-lab", {"a": "12D3KooW"})


def test_the_table_must_agree_with_itself() -> None:
    member = Member.from_peer_id("a", IDS["site-0"])
    with pytest.raises(ValueError, match="16 bytes"):
        Membership(b"short", {member.peer_id: member})
    with pytest.raises(ValueError, match="own peer ids"):
        Membership(bytes(16), {IDS["site-1"]: member})
