"""Multiaddresses and options: what is accepted, and one line with a mend for everything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from libp2p_pairs import ANN, BOB
from multiaddr import Multiaddr

from gossipfl.errors import ConfigError
from gossipfl.transports.libp2p.addresses import MAX_ADDRESS_CHARACTERS, Address, dialable, listenable
from gossipfl.transports.libp2p.options import MAX_ADDRESSES, Libp2pOptions

MENDS = ("write it like", "use ", "name ", "leave out", "listen on", "correct ", "has 52", "at most", "at least")
"""Each refusal has one of these: it says what to do."""

ACCEPTED = {
    "/ip4/192.0.2.1/tcp/4001": Address("ip4", "192.0.2.1", 4001),
    "/ip4/0.0.0.0/tcp/0": Address("ip4", "0.0.0.0", 0),
    "/ip4/255.255.255.255/tcp/65535": Address("ip4", "255.255.255.255", 65535),
    "/ip6/::1/tcp/1": Address("ip6", "::1", 1),
    "/ip6/::/tcp/4001": Address("ip6", "::", 4001),
    "/ip6/2001:db8::1/tcp/4001": Address("ip6", "2001:db8::1", 4001),
    "/dns/example.org/tcp/443": Address("dns", "example.org", 443),
    "/dns4/a/tcp/443": Address("dns4", "a", 443),
    "/dns6/my-host-1.example/tcp/443": Address("dns6", "my-host-1.example", 443),
    f"/dns/example.org/tcp/443/p2p/{ANN.peer_id}": Address("dns", "example.org", 443, ANN.peer_id),
}
REFUSED = {
    "": "no multiaddress",
    "192.0.2.1:4001": "no multiaddress",
    "ip4/192.0.2.1/tcp/4001": "no multiaddress",
    "/ip4/192.0.2.1": "no multiaddress",
    "/ip4/192.0.2.1/tcp": "no multiaddress",
    "/ip4/192.0.2.1/tcp/4001/": "no multiaddress",
    "/ip4/192.0.2.1/udp/4001": "no multiaddress",
    "/ip4/192.0.2.1/tcp/4001/ws": "no multiaddress",
    "/ip4/192.0.2.1/tcp/4001/tls/ws": "no multiaddress",
    "/ip4/192.0.2.1/udp/4001/quic-v1": "no multiaddress",
    f"/dns/{'a' * 600}/tcp/1": "no multiaddress",
    "/ip4/192.0.2.1/tcp/": "port ''",
    "/ip4/192.0.2.1/tcp/-1": "port '-1'",
    "/ip4/192.0.2.1/tcp/65536": "port '65536'",
    "/ip4/192.0.2.1/tcp/http": "port 'http'",
    "/ip4/192.0.2.1/tcp/４００１": "port",
    "/ip4/192.0.2.1/tcp/4 001": "port",
    "/ip4/192.0.2.256/tcp/4001": "no ip4 address",
    "/ip4/192.0.2/tcp/4001": "no ip4 address",
    "/ip4/example.org/tcp/4001": "no ip4 address",
    "/ip4/::1/tcp/4001": "no ip4 address",
    "/ip4//tcp/4001": "no ip4 address",
    "/ip6/192.0.2.1/tcp/4001": "no ip6 address",
    "/ip6/:::/tcp/4001": "no ip6 address",
    "/dnsaddr/example.org/tcp/4001": "begins with",
    "/onion/example/tcp/4001": "begins with",
    "//192.0.2.1/tcp/4001": "begins with",
    "/two\nlines/192.0.2.1/tcp/4001": "begins with",
    "/\x1b[31mred/192.0.2.1/tcp/4001": "begins with",
    f"/{'long' * 100}/192.0.2.1/tcp/4001": "begins with",
    "/dns//tcp/4001": "no host name",
    "/dns/two words/tcp/4001": "no host name",
    "/dns/-example.org/tcp/4001": "no host name",
    "/dns/example.org./tcp/4001": "no host name",
    f"/dns/{'a' * 254}/tcp/4001": "no host name",
    "/dns/exämple.org/tcp/4001": "no host name",
    "/dns/two\nlines/tcp/4001": "no host name",
    "/ip4/192.0.2.1/tcp/4001/p2p/": "peer id",
    "/ip4/192.0.2.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N": "peer id",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{ANN.peer_id[:-1]}0": "mistyped",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{ANN.peer_id}x": "peer id",
}


def complaint(refuse: Any, *args: Any, **fields: Any) -> str:
    """Return what is said of something that is refused."""
    with pytest.raises(ConfigError) as caught:
        refuse(*args, **fields)
    return str(caught.value)


def check_line(line: str, address: str) -> None:
    """Check that it is one line, names the address (of a long one, the beginning), and says what to do."""
    assert line.isprintable()
    assert address[:79].encode("unicode_escape").decode() in line or repr(address[:79])[1:-1] in line
    assert any(mend in line for mend in MENDS), line


# ---------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize("text", ACCEPTED)
def test_an_address_is_read_and_written_again(text: str) -> None:
    assert Address.parse(text) == ACCEPTED[text]
    assert str(ACCEPTED[text]) == text
    assert str(Multiaddr(text)) == text


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text)[1:60])
def test_what_is_no_address_is_refused_in_one_line_that_names_it_and_the_mend(text: str) -> None:
    for read in (Address.parse, listenable):
        line = complaint(read, text)
        assert REFUSED[text] in line
        check_line(line, text)
    assert REFUSED[text] in complaint(dialable, text, ANN.peer_id)


@given(
    st.text(max_size=60)
    | st.from_regex(r"/(ip4|ip6|dns)/[^/]{0,20}/tcp/[^/]{0,8}(/p2p/[^/]{0,60})?", fullmatch=True)
    | st.from_regex(r"/[^/]{0,20}/host/tcp/4001", fullmatch=True)
)
@settings(max_examples=300)
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        address = Address.parse(text)
    except ConfigError as error:
        assert str(error).isprintable()  # noqa: PT017 - it need not be raised
    else:
        assert Address.parse(str(address)) == address


@given(
    st.from_regex(r"/ip4/[0-9]{1,3}(\.[0-9]{1,3}){3}/tcp/[0-9]{1,5}", fullmatch=True)
    | st.from_regex(r"/ip6/[0-9a-f:.%]{1,20}/tcp/[0-9]{1,6}", fullmatch=True)
    | st.from_regex(r"/dns[46]?/[A-Za-z0-9_.-]{1,20}/tcp/[0-9]{1,5}", fullmatch=True)
)
@example("/ip6/fe80::1%eth0/tcp/4001")
@example("/dns/two..dots/tcp/4001")
@example("/dns/label-/tcp/4001")
@example("/dns/label-.example.org/tcp/4001")
@example("/dns4/my_host/tcp/4001")
@example("/dns4/ab--cd/tcp/4001")
@example(f"/dns4/{'a' * 64}/tcp/4001")
@example("/ip4/192.0.2.1/tcp/004001")
@settings(max_examples=300)
def test_what_is_accepted_the_library_accepts_too(text: str) -> None:
    """It is given to the library when it is too late for one clear line."""
    try:
        address = Address.parse(text)
    except ConfigError:
        return
    Multiaddr(text)
    Multiaddr(str(address))


def test_the_longest_address() -> None:
    host = ".".join(["a" * 63] * 3 + ["a" * 61])
    longest = f"/dns/{host}/tcp/65535/p2p/{ANN.peer_id}"
    assert len(longest) < MAX_ADDRESS_CHARACTERS
    assert Address.parse(longest).host == host
    Multiaddr(longest)


def test_an_address_that_can_be_dialled_is_returned_without_its_peer_id() -> None:
    for text in ("/ip4/192.0.2.1/tcp/4001", f"/ip4/192.0.2.1/tcp/4001/p2p/{ANN.peer_id}"):
        assert dialable(text, ANN.peer_id) == Address("ip4", "192.0.2.1", 4001)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/ip4/192.0.2.1/tcp/0", "port 0 cannot be dialled"),
        ("/ip4/0.0.0.0/tcp/4001", "stands for any machine"),
        ("/ip6/::/tcp/4001", "stands for any machine"),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{BOB.peer_id}", "another peer id"),
    ],
)
def test_what_cannot_be_dialled_is_refused(text: str, reason: str) -> None:
    line = complaint(dialable, text, ANN.peer_id)
    assert reason in line
    check_line(line, text)


def test_an_address_to_listen_on() -> None:
    for text in ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/4001", "/ip4/127.0.0.1/tcp/1"):
        assert str(listenable(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/dns/example.org/tcp/4001", "listen on an IP address"),
        (f"/ip4/127.0.0.1/tcp/4001/p2p/{ANN.peer_id}", "leave out /p2p/"),
    ],
)
def test_what_cannot_be_listened_on_is_refused(text: str, reason: str) -> None:
    line = complaint(listenable, text)
    assert reason in line
    check_line(line, text)


# ---------------------------------------------------------------------------------------------------- options


def test_the_defaults_and_every_form_of_address_are_accepted() -> None:
    assert Libp2pOptions().addresses == {}
    options = Libp2pOptions(
        federation="lab",
        listen=("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"),
        announce=("/dns4/ann.example.org/tcp/443",),
        addresses={
            ANN.peer_id: (f"/ip4/192.0.2.1/tcp/4001/p2p/{ANN.peer_id}", "/dns/ann.example.org/tcp/4001"),
            BOB.peer_id: (),
        },
        mdns=True,
    )
    assert options.window_bytes >= 1 << 18


@pytest.mark.parametrize(
    ("field", "address"),
    [
        ("listen", "/ip4/127.0.0.1/udp/4001"),
        ("listen", "/dns/example.org/tcp/4001"),
        ("announce", "/ip4/0.0.0.0/tcp/4001"),
        ("announce", "/ip4/192.0.2.1/tcp/0"),
        ("announce", "nonsense"),
        ("addresses", "/ip4/0.0.0.0/tcp/4001"),
        ("addresses", "/ip4/192.0.2.1/tcp/0"),
        ("addresses", f"/ip4/192.0.2.1/tcp/4001/p2p/{BOB.peer_id}"),
        ("addresses", "nonsense"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_once(field: str, address: str) -> None:
    value = {ANN.peer_id: (address,)} if field == "addresses" else (address,)
    check_line(complaint(Libp2pOptions, **{field: value}), address)


def test_an_announced_address_with_a_peer_id_is_refused_in_words_that_fit() -> None:
    """Whose peer id would be right is not known here, so it can only be left out."""
    address = f"/ip4/192.0.2.1/tcp/4001/p2p/{ANN.peer_id}"
    line = complaint(Libp2pOptions, announce=(address,))
    check_line(line, address)
    assert "own, ;" not in line


def test_nothing_to_listen_on_is_refused() -> None:
    check_line(complaint(Libp2pOptions, listen=()), "/ip4/0.0.0.0/tcp/4001")


@pytest.mark.parametrize("field", ["announce", "addresses"])
def test_more_addresses_than_a_record_holds_are_refused(field: str) -> None:
    many = tuple(f"/ip4/192.0.2.1/tcp/{port}" for port in range(1, MAX_ADDRESSES + 2))
    for told, fits in ((many[:-1], True), (many, False)):
        fields: dict[str, Any] = {field: {ANN.peer_id: told} if field == "addresses" else told}
        if fits:
            Libp2pOptions(**fields)
        else:
            line = complaint(Libp2pOptions, **fields)
            assert f"{MAX_ADDRESSES + 1} entries; at most {MAX_ADDRESSES}" in line
            assert line.isprintable()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ping_s": 0.0}, "ping_s"),
        ({"ping_s": 6.0}, "dead_s"),
        ({"ping_s": float("nan")}, "ping_s"),
        ({"dead_s": 1.0}, "dead_s"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"backoff_s": (0.0, 1.0)}, "backoff_s"),
        ({"backoff_s": (2.0, 1.0)}, "backoff_s"),
        ({"backoff_s": (0.1, float("nan"))}, "backoff_s"),
        ({"window_bytes": (1 << 18) - 1}, "window_bytes"),
        ({"sequence": -1}, "sequence"),
        ({"sequence": 1 << 64}, "sequence"),
        ({"outbox_frames": 0}, "queue"),
        ({"inbox_frames": 0}, "queue"),
        ({"federation": ""}, "federation"),
    ],
    ids=repr,
)
def test_a_number_that_cannot_be_used_is_refused_in_one_line(fields: dict[str, Any], named: str) -> None:
    line = complaint(Libp2pOptions, **fields)
    assert line.isprintable()
    assert named in line
