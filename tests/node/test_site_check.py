"""A site's file: what is understood, and every mistake told at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mosquitto import free_port, make_certificates, mosquitto_program, password_lines, running_mosquitto
from site_daemons import Daemon, Deployment, address, listening, on_loopback, ring

from gossipfl.entry import run_app
from gossipfl.errors import ConfigError, TransportUnavailable
from gossipfl.identity import Identity
from gossipfl_node.check import check_site
from gossipfl_node.cli import app
from gossipfl_node.config import load_site
from gossipfl_node.daemon import run_site
from gossipfl_node.direct import find_mistakes
from gossipfl_node.federation import Federation
from gossipfl_node.site import Site

NAMES = ["alpha", "beta", "gamma"]


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, "checked")
    for name in NAMES:
        made.add(name)
    return made


@pytest.fixture
def alpha(deployment: Deployment) -> Daemon:
    return deployment.site("alpha", ring(NAMES), address(1883))


@pytest.fixture
def direct(deployment: Deployment) -> Daemon:
    """Alpha without a broker, and the addresses of two neighbours."""
    deployment.addresses = {"beta": on_loopback(4002), "gamma": "/dns4/gamma.example.org/tcp/4001"}
    return deployment.site("alpha", ring(NAMES), listening(on_loopback(4001)))


def rewrite(daemon: Daemon, **changes: str) -> None:
    """Replace text in a site's file; the keys of ``changes`` are names of what is replaced."""
    text = daemon.file.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    daemon.file.write_text(text)


def mistakes(daemon: Daemon) -> list[str]:
    found = check_site(daemon.file, broker=False).mistakes
    assert all(line.startswith(f"{daemon.file}: ") and "\n" not in line for line in found)
    return [line.removeprefix(f"{daemon.file}: ") for line in found]


def test_a_good_site_has_no_mistake(alpha: Daemon) -> None:
    findings = check_site(alpha.file, broker=False)
    assert findings.mistakes == ()
    assert findings.summary.startswith(f"ok: alpha ({alpha.identity.peer_id}) gossips with beta, gamma")
    assert not alpha.state.exists(), "check changes nothing"


def test_all_mistakes_are_told_at_once(alpha: Daemon) -> None:
    text = alpha.file.read_text()
    text = text.replace(
        'rule = "mean"', 'rule = {name = "balance", gama = 1}\ncodec = "int9"\nrounds = 0\nevaluate_evry = 1'
    )
    text = text.replace('name = "alpha"', 'name = "alfa"').replace('"site.key"', '"other.key"')
    text = text.replace('["beta", "gamma"]', '["beta", "gama"], ["beta", "beta"], ["beta", "alpha"]')
    text = text.replace("drain_s = 3.0", "deadline_min_s = 100.0").replace("of = 3", "of = 0")
    alpha.file.write_text(text + '\npassword_file = "none"\n[task]\nname = "mnist"\npath = "none"\n')
    expected = [
        "rounds must be at least 1, not 0",
        'evaluate_evry is an unknown key; did you mean "evaluate_every"?',
        "share.of must be at least 1",
        'site.name "alfa" is no member; did you mean "alpha"?',
        'names "gama", who is no member; did you mean "gamma"?',
        '["beta", "beta"] makes a site its own neighbour',
        '["beta", "alpha"] is there twice',
        "other.key cannot be read: No such file",
        "broker.username is missing; a password needs one",
        'rule "balance" has no option "gama"',
        'codec "int9" is unknown',
        "gossip.deadline_min_s must be at most gossip.deadline_s",
    ]
    found = mistakes(alpha)
    for part in expected:
        assert sum(part in line for line in found) == 1, (part, found)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"site.key"', '"../beta/site.key"', 'is that of "beta"'),
        ('state = "state"', 'state = "site.toml"', "is no folder"),
        ("index = 0", "index = 3", "share.index must be less than share.of (3), not 3"),
        ('rule = "mean"', 'task = "digitz"', 'task "digitz" is unknown'),
        ('rule = "mean"', 'task = "no.such.module:make"', "no module named no"),
        ('rule = "mean"', 'task = "json:loads"', 'task "json:loads"'),
        ("local_steps = 2", "lr = 1e30", 'task "digits": the first step gives a loss of'),
        ("heartbeat_s = 0.3", "heartbeat_s = 3.0", "gossip.heartbeat_s must be less than gossip.liveness_s"),
        ('["alpha", "beta"], ', "", None),
        (
            '["alpha", "beta"], ["beta", "gamma"], ["gamma", "alpha"]',
            '["beta", "gamma"]',
            'site "alpha" has no neighbour',
        ),
        ('["beta", "gamma"], ["gamma", "alpha"]', "", "leave gamma cut off from the rest"),
        ("port = 1883", 'port = 1883\nusername = "x"\npassword_file = "site.toml"', "is open to other users"),
        ("port = 1883", 'port = 1883\nusername = "x"\npassword = "y"', "can be read by every user"),
        ("port = 1883", 'port = 1883\ntls = {ca = "none.pem"}', "broker.tls.ca: no such file"),
        ("[federation]", "[federatoin]", "federation.name is missing"),
    ],
)
def test_each_mistake_has_its_line(alpha: Daemon, old: str, new: str, line: str | None) -> None:
    alpha.file.chmod(0o644)
    rewrite(alpha, **{old: new})
    found = mistakes(alpha)
    if line is None:
        assert found == []
    else:
        assert [line in each for each in found].count(True) == 1, found


def test_a_good_site_without_a_broker_has_no_mistake(direct: Daemon) -> None:
    findings = check_site(direct.file, broker=False)
    assert findings.mistakes == ()
    assert findings.summary.endswith("task digits; libp2p on /ip4/127.0.0.1/tcp/4001")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("/tcp/4002", "/udp/4002", "federation.addresses.beta: address '/ip4/127.0.0.1/udp/4002' is no multiaddress"),
        ("/ip4/127.0.0.1/tcp/4002", "127.0.0.1:4002", "federation.addresses.beta: address '127.0.0.1:4002' is no"),
        ("/tcp/4002", "/tcp/0", "federation.addresses.beta: address '/ip4/127.0.0.1/tcp/0': port 0 cannot be dialled"),
        ("127.0.0.1/tcp/4002", "0.0.0.0/tcp/4002", "stands for any machine; name the site's own address"),
        ("/tcp/4002", "/tcp/4002/p2p/{gamma}", "federation.addresses.beta: address '/ip4/127.0.0.1/tcp/4002/p2p/12D3"),
        ("/tcp/4002", "/tcp/4002/p2p/{beta}", None),
        ("gamma.example.org", "127.0.0.1 x", "federation.addresses.gamma: address '/dns4/127.0.0.1 x/tcp/4001'"),
        (
            "/dns4/gamma.example.org/tcp/4001",
            "/ip4/127.0.0.1/tcp/4002",
            "federation.addresses.gamma: /ip4/127.0.0.1/tcp/4002 is the address of beta, too; correct one of them",
        ),
        ("gamma = [", "gama = [", 'federation.addresses.gama names no member; did you mean "gamma"?'),
        ('beta = ["/ip4/127.0.0.1/tcp/4002"]', 'beta = "/x"', "federation.addresses.beta must be a list"),
        ('"/ip4/127.0.0.1/tcp/4001"]', "]", "libp2p.listen is empty; name an address, such as /ip4/0.0.0.0/tcp/4001"),
        (
            "127.0.0.1/tcp/4001",
            "localhost/tcp/4001",
            "libp2p.listen: address '/ip4/localhost/tcp/4001': 'localhost' is",
        ),
        ("/ip4/127.0.0.1/tcp/4001", "/dns4/a.b/tcp/4001", "listen on an IP address, such as /ip4/0.0.0.0/tcp/4001"),
        ("dead_s = 1.5", 'announce = ["alpha.example:4001"]', "libp2p.announce: address 'alpha.example:4001' is no"),
        ("ping_s = 0.5", "ping_s = 5.0", "libp2p.ping_s must be less than libp2p.dead_s (1.5), or no link would last"),
        ("ping_s = 0.5", "ping_s = 0", "libp2p.ping_s must be more than 0"),
        ("dead_s = 1.5", "dead = 1.5", 'libp2p.dead is an unknown key; did you mean "dead_s"?'),
        (
            "[libp2p]\n",
            '[broker]\nhost = "x"\n[libp2p]\n',
            "[broker] and [libp2p] are both given; keep the one that all",
        ),
        ("[libp2p]\n", "[broker]\n[libp2p]\nmdns = true\n", "[broker] and [libp2p] are both given"),
    ],
)
def test_each_mistake_without_a_broker_has_its_line(direct: Daemon, old: str, new: str, line: str | None) -> None:
    ids = {name: Identity.load(direct.folder.parent / name / "site.key").peer_id for name in NAMES}
    rewrite(direct, **{old: new.format(**ids) if "{" in new else new})
    found = mistakes(direct)
    if line is None:
        assert found == []
    else:
        assert [line in each for each in found].count(True) == 1, found
        assert len(found) == 1 + any("broker.host is missing" in each for each in found), found


@pytest.mark.parametrize(
    ("start", "line"),
    [
        ("", "no transport is given; add [broker] to gossip over MQTT, or [libp2p] to do without a broker"),
        ("libp2p = {}", "federation.addresses is empty, and libp2p.mdns is off: no site could find another"),
        ("libp2p = {mdns = true}", None),
    ],
)
def test_a_site_needs_a_transport_and_a_way_to_be_found(alpha: Daemon, start: str, line: str | None) -> None:
    alpha.file.write_text(start + alpha.file.read_text().partition("[broker]")[0])
    found = mistakes(alpha)
    if line is None:
        assert found == []
        return
    assert [line in each for each in found] == [True]
    with pytest.raises(ConfigError, match=re.escape(line)):
        run_site(load_site(alpha.file))
    assert not alpha.state.exists()


def test_addresses_do_no_harm_over_a_broker(direct: Daemon) -> None:
    direct.file.write_text(direct.file.read_text().partition("[libp2p]")[0] + address(1883))
    assert mistakes(direct) == []


def test_two_members_never_have_one_key(direct: Daemon, deployment: Deployment) -> None:
    rewrite(direct, **{deployment.members["gamma"].peer_id: deployment.members["beta"].peer_id})
    (line,) = mistakes(direct)
    assert line == "federation.members.gamma has the peer id of beta; each site needs a key of its own"


def test_without_the_library_one_line_says_what_to_install(direct: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    (line,) = mistakes(direct)
    assert "needs py-libp2p, which is not installed; run: pip install 'gossipfl[libp2p]'" in line
    with pytest.raises(ConfigError, match="not installed"):
        run_site(load_site(direct.file))
    assert not direct.state.exists()


def _uncommented(text: str) -> str:
    """Return a TOML text with the tables and lists in it that are commented out."""
    return re.sub(r"^# (\[[\w.]+\]|\w+ = (?:\[|false|\d\.))", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize("transport", ["broker", "libp2p"])
def test_the_example_is_a_site_with_either_transport(tmp_path: Path, transport: str) -> None:
    """As it stands, and with what is commented out in the place of the broker."""
    example = (Path(__file__).parents[2] / "node/site.example.toml").read_text()
    while "12D3KooW..." in example:
        example = example.replace("12D3KooW...", Identity.generate().peer_id, 1)
    if transport == "libp2p":
        head, _, rest = example.partition("[broker]")
        section, _, rest = rest.partition("# [libp2p]")[2].partition("[task]")
        example = _uncommented(head) + _uncommented("# [libp2p]" + section) + "[task]" + rest
    path = tmp_path / "site.toml"
    path.write_text(example)
    spec = load_site(path)
    assert (spec.broker is None, spec.libp2p is None) == (transport == "libp2p", transport == "broker")
    assert set(spec.federation.addresses) == ({"airport", "harbour"} if spec.libp2p else set())
    assert spec.libp2p is None or len(spec.libp2p.listen) == len(spec.libp2p.announce) == 1
    assert Federation.of(spec.federation, "airport").neighbours
    assert list(find_mistakes(spec)) == []


@pytest.mark.parametrize("transport", ["alpha", "direct"])
def test_a_key_that_others_can_read_is_refused(transport: str, request: pytest.FixtureRequest) -> None:
    alpha: Daemon = request.getfixturevalue(transport)
    (alpha.folder / "site.key").chmod(0o644)
    alpha.state.mkdir(mode=0o777)
    alpha.state.chmod(0o777)
    found = mistakes(alpha)
    assert any("is open to other users; run: chmod 600" in line for line in found)
    assert any("may be written by other users; run: chmod go-w" in line for line in found)
    with pytest.raises(ConfigError, match="is open to other users"):
        run_site(load_site(alpha.file))


@pytest.mark.parametrize("content", [None, "a = ", b"\xff"])
def test_a_file_that_is_no_toml_is_one_line(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "site.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (line,) = check_site(path).mistakes
    assert line.startswith(f"{path}: ")


def test_everyone_derives_the_same_graph_from_the_same_edges(deployment: Deployment) -> None:
    """Neighbours in the order of their names and Metropolis weights, whatever the order in the file."""
    edges = [("gamma", "alpha"), ("beta", "alpha")]
    sites = {name: load_site(deployment.site(name, edges, address(1)).file) for name in NAMES}
    seen = {name: Federation.of(spec.federation, name) for name, spec in sites.items()}
    ids = {name: identity.peer_id for name, identity in deployment.members.items()}
    assert seen["alpha"].weights == {ids["beta"]: 1 / 3, ids["gamma"]: 1 / 3}
    assert list(seen["alpha"].weights) == [ids["beta"], ids["gamma"]]
    assert seen["beta"].weights == {ids["alpha"]: 1 / 3}


def test_paths_are_relative_to_the_file(alpha: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(alpha, **{'rule = "mean"': 'task = {name = "mnist", path = "data"}'})
    monkeypatch.chdir(alpha.folder.parent)
    spec = load_site(Path("alpha/site.toml"))
    assert spec.site.key == alpha.folder / "site.key"
    assert spec.task.options["path"] == str(alpha.folder / "data")


def test_sites_that_share_data_take_different_parts_and_one_model(deployment: Deployment) -> None:
    sites = [Site(load_site(deployment.site(name, ring(NAMES), address(1)).file)) for name in NAMES]
    first, second = (site.learner(incarnation=1) for site in sites[:2])
    assert first.vector.equal(second.vector)
    assert first.train(1).loss != second.train(1).loss


def test_the_command_exits_with_2_and_a_line_for_each_mistake(
    alpha: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(alpha, **{'rule = "mean"': 'rule = "meen"\ncodec = "x"'})
    with pytest.raises(SystemExit) as ended:
        run_app(app, "gossipfl-node", ["check", "--no-broker", str(alpha.file)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"gossipfl-node: error: {alpha.file}: ") for line in lines)


def test_a_key_is_made_once_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "site.key"
    told = []
    for arguments, code in ((["key", str(path)], 0), (["key", "--show", str(path)], 0), (["key", str(path)], 2)):
        with pytest.raises(SystemExit) as ended:
            run_app(app, "gossipfl-node", arguments)
        assert ended.value.code == code
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].startswith("12D3KooW")
    assert told[2] == ""
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_broker_that_cannot_be_reached_is_a_mistake(deployment: Deployment) -> None:
    alpha = deployment.site("alpha", ring(NAMES), address(free_port()))
    (line,) = check_site(alpha.file).mistakes
    assert "cannot reach the MQTT broker" in line
    with pytest.raises(TransportUnavailable, match="cannot reach the MQTT broker"):
        run_site(load_site(alpha.file))
    assert '"event":"failed"' in (alpha.state / "events.jsonl").read_text()


def test_run_refuses_what_check_refuses(alpha: Daemon) -> None:
    rewrite(alpha, **{'"site.key"': '"../beta/site.key"'})
    with pytest.raises(ConfigError, match='is that of "beta"'):
        run_site(load_site(alpha.file))
    assert not alpha.state.exists()


@pytest.mark.mosquitto
def test_what_the_broker_refuses_is_told(deployment: Deployment, tmp_path: Path) -> None:
    """A wrong password, a topic that the ACL does not allow, and a certificate that nobody vouches for."""
    mosquitto_program()
    certificates, strangers = (make_certificates(tmp_path / name) for name in ("tls", "other"))
    alpha_id = deployment.members["alpha"].peer_id
    acl = tmp_path / "acl"
    acl.write_text(
        f"user alpha\ntopic readwrite gossipfl/checked/{alpha_id}/#\ntopic read gossipfl/checked/#\nuser beta\n"
    )
    acl.chmod(0o600)
    lines = [*password_lines(tmp_path, {"alpha": "right", "beta": "right"}), *certificates.lines(), f"acl_file {acl}"]
    with running_mosquitto(tmp_path, lines) as (port, _):

        def found(user: str, password: str, ca: Path) -> str:
            section = address(port, f'username = "{user}"', 'password_file = "word"', f'tls = {{ca = "{ca}"}}')
            alpha = deployment.site("alpha", ring(NAMES), section)
            word = alpha.folder / "word"
            word.write_text(password + "\n")
            word.chmod(0o600)
            return "\n".join(check_site(alpha.file).mistakes)

        assert found("alpha", "right", certificates.ca) == ""
        assert "refuses user 'alpha'" in found("alpha", "wrong", certificates.ca)
        assert "(ACL)" in found("beta", "right", certificates.ca)
        assert "CERTIFICATE_VERIFY_FAILED" in found("alpha", "right", strangers.ca)
