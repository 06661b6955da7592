"""``gossipfl federation``: what it makes, what it refuses."""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path

import pytest
from command_line import call
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gossipfl.cli.federation import slug
from gossipfl.identity import Identity
from gossipfl.membership.document import Document
from gossipfl.messages import Proof
from gossipfl.messages.statements import format_proof
from gossipfl_node.check import check_site
from gossipfl_node.config import load_site
from gossipfl_node.site import Site


class Folder:
    """A federation's folder, and the command on it."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        return call(self._capsys, "federation", *arguments)

    def do(self, command: str, *arguments: str) -> str:
        code, out, err = self.run(command, *arguments, "--dir", str(self.path))
        assert code == 0, err
        return out

    def refused(self, command: str, *arguments: str) -> str:
        code, _, err = self.run(command, *arguments, "--dir", str(self.path))
        assert code == 2
        (line,) = err.splitlines()
        return line

    def init(self, *arguments: str) -> str:
        return self.do("init", "ring", "--sites", "a,b,c,d", "--name", "fed", *arguments)

    @property
    def document(self) -> Document:
        return Document.parse((self.path / "membership.json").read_bytes())


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path / "fed", capsys)


def test_bundles_are_complete_and_secret(folder: Folder) -> None:
    folder.init("--broker", "broker.example.org:9883")
    for name in "abcd":
        site = folder.path / "sites" / name
        assert {path.name for path in site.iterdir()} == {
            "README.txt", "ca.pem", "membership.json", "site.key", "site.pem", "site.toml",
        }  # fmt: skip
        assert stat.S_IMODE(site.stat().st_mode) == 0o700
        assert stat.S_IMODE((site / "site.key").stat().st_mode) == 0o600
        assert check_site(site / "site.toml", broker=False).mistakes == ()
    for name in ("secret", "broker", "sites"):
        assert stat.S_IMODE((folder.path / name).stat().st_mode) == 0o700
    assert "listener 9883" in (folder.path / "broker" / "mosquitto.conf").read_text()


def test_each_site_knows_its_neighbours_and_has_the_same_key(folder: Folder) -> None:
    folder.init("--libp2p", "--address", "a=/ip4/192.0.2.1/tcp/4001", "--address", "b=/ip4/192.0.2.2/tcp/4001")
    sites = [Site(load_site(folder.path / "sites" / name / "site.toml")) for name in "abcd"]
    assert [{each.name for each in site.federation.neighbours} for site in sites] == [
        {"b", "d"}, {"a", "c"}, {"b", "d"}, {"a", "c"},
    ]  # fmt: skip
    keys = {next(iter(veil.keys.values())) for site in sites if (veil := site.veil()) is not None}
    assert len(keys) == 1
    assert sites[0].spec.federation.addresses["b"] == ["/ip4/192.0.2.2/tcp/4001"]


def test_certificates_are_of_the_sites_own_keys_and_let_them_in(folder: Folder) -> None:
    folder.init("--broker", "127.0.0.1")
    site = folder.path / "sites" / "a"
    certificate = x509.load_pem_x509_certificate((site / "site.pem").read_bytes())
    identity = Identity.load(site / "site.key")
    assert certificate.subject.rfc4514_string() == f"CN={identity.peer_id}"
    assert certificate.public_key() == identity.private_key().public_key()
    context = ssl.create_default_context(cafile=str(site / "ca.pem"))
    context.load_cert_chain(site / "site.pem", site / "site.key")
    broker = x509.load_pem_x509_certificate((folder.path / "broker" / "broker.pem").read_bytes())
    broker.verify_directly_issued_by(x509.load_pem_x509_certificate((folder.path / "broker" / "ca.pem").read_bytes()))
    assert broker.public_bytes(Encoding.DER)


def test_versions_follow_each_other_and_keys_change(folder: Folder) -> None:
    folder.init("--broker", "broker.example.org")
    first = folder.document
    folder.do("add", "e", "--links", "a,c")
    second = folder.document
    folder.do("remove", "b")
    third = folder.document
    folder.do("rotate", "--site", "c")
    fourth = folder.document
    assert [each.content.version for each in (first, second, third, fourth)] == [1, 2, 3, 4]
    checks = {each.content.key.check for each in (first, second, third, fourth) if each.content.key is not None}
    assert len(checks) == 4
    assert sorted(third.content.members) == ["a", "c", "d", "e"]
    assert fourth.content.members["c"].peer_id != third.content.members["c"].peer_id
    assert Identity.load(folder.path / "sites" / "c" / "site.key").peer_id == fourth.content.members["c"].peer_id
    revoked = x509.load_pem_x509_crl((folder.path / "broker" / "revoked.pem").read_bytes())
    assert len(list(revoked)) == 2
    assert sorted(path.name for path in (folder.path / "history").iterdir()) == [
        f"membership-{version}.json" for version in (1, 2, 3, 4)
    ]


def test_a_site_may_keep_its_key_to_itself(folder: Folder) -> None:
    own = Identity.generate()
    folder.init("--broker", "broker.example.org", "--peer-id", f"b={own.peer_id}")
    assert folder.document.content.members["b"].peer_id == own.peer_id
    assert not (folder.path / "sites" / "b" / "site.key").exists()
    assert "made its key itself" in (folder.path / "sites" / "b" / "README.txt").read_text()


def test_several_operators_sign(folder: Folder, tmp_path: Path) -> None:
    other = Identity.generate()
    other.save(tmp_path / "other.key")
    out = folder.init("--broker", "broker.example.org", "--signer", other.peer_id, "--threshold", "2")
    assert "signed by 1 of 2 signers (2 needed)" in out
    assert not (folder.path / "membership.json").exists()
    proposal = folder.path / "proposal.json"
    assert "needs 2 signatures and has 1" in folder.refused("accept", str(proposal))
    code, out, _ = folder.run("sign", str(proposal), "--key", str(tmp_path / "other.key"))
    assert code == 0
    assert "signed by 2 of 2" in out
    folder.do("accept", str(proposal))
    assert folder.document.complete
    folder.do("rotate")
    assert folder.document.content.version == 1  # one signature is not enough


def test_a_graph_file_names_its_sites(folder: Folder) -> None:
    folder.do("init", "abilene", "--name", "fed", "--libp2p")
    assert {"Seattle", "New-York", "Kansas-City"} <= set(folder.document.content.members)


@pytest.mark.parametrize(
    ("text", "name"),
    [("São Paulo", "Sao-Paulo"), ("a/b", "a-b"), ("..", "site"), ("日本", "site"), ("x" * 99, "x" * 64)],
)
def test_names_are_made_of_any_text(text: str, name: str) -> None:
    assert slug(text) == name


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["remove", "x"], '"x" is no member'),
        (["add", "a", "--links", "b"], '"a" is a member already'),
        (["add", "e", "--links", ""], "would have no neighbour"),
        (["add", "e", "--links", "b,b"], '"b" is named twice'),
        (["add", "e/", "--links", "b"], "node name 'e/' cannot be used"),
        (["add", "e", "--links", "b", "--peer-id", "12D3"], "peer id '12D3' has 4 characters"),
        (["remove", "a", "--link", "b"], "name two sites"),
        (["rotate", "--threshold", "3"], "threshold 3 is more than there are signers"),
        (["rotate", "--peer-id", "a"], "write NAME=TEXT"),
        (["rotate", "--peer-id", "x=y"], '"x" is no site'),
    ],
)
def test_mistakes_get_one_line_and_change_nothing(folder: Folder, arguments: list[str], complaint: str) -> None:
    folder.init("--libp2p")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert complaint in folder.refused(*arguments)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--libp2p", "--broker", "x"], "one of the two"),
        ([], "one of the two"),
        (["--libp2p", "--peer-id", "z=1"], '"z" is no site'),
    ],
)
def test_a_federation_is_made_one_way(folder: Folder, arguments: list[str], complaint: str) -> None:
    assert complaint in folder.refused("init", "ring", "--sites", "a,b,c", "--name", "fed", *arguments)


def test_a_folder_is_not_overwritten_and_another_is_none(folder: Folder) -> None:
    folder.init("--libp2p")
    assert "is not empty" in folder.refused("init", "ring", "--sites", "a,b,c", "--name", "fed", "--libp2p")
    code, _, err = folder.run("rotate", "--dir", str(folder.path / "sites"))
    assert code == 2
    assert "is no federation's folder" in err


def test_show_checks_signatures(folder: Folder, tmp_path: Path) -> None:
    folder.init("--libp2p")
    old = tmp_path / "old.json"
    old.write_bytes((folder.path / "membership.json").read_bytes())
    folder.do("rotate")
    new = folder.path / "membership.json"
    code, out, _ = folder.run("show", str(new), "--after", str(old), "--json")
    assert code == 0
    assert json.loads(out)["version"] == 2
    code, _, err = folder.run("show", str(old), "--after", str(new))
    assert code == 2
    assert "is older than 2" in err
    text = new.read_text().replace('"model_seed": 0', '"model_seed": 1')
    new.write_text(text)
    code, _, err = folder.run("show", str(new))
    assert code == 2
    assert "0 valid signatures" in err


def test_evidence_is_checked_by_a_third_party(folder: Folder, tmp_path: Path) -> None:
    from gossip.test_evidence import statement

    path = tmp_path / "proof.json"
    path.write_text(format_proof(Proof(statement(), statement(version=2))))
    code, out, _ = folder.run("evidence", str(path))
    assert code == 0
    assert "proved:" in out
    path.write_text(path.read_text().replace('"signature": "', '"signature": "AAAA', 1))
    code, _, err = folder.run("evidence", str(path))
    assert code == 2
    assert "no evidence" in err
