"""A site's file: what is understood, and every mistake told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from mosquitto import free_port, make_certificates, mosquitto_program, password_lines, running_mosquitto
from site_daemons import Daemon, Deployment, address, ring

from gossipfl.entry import run_app
from gossipfl.errors import ConfigError, TransportUnavailable
from gossipfl_node.check import check_site
from gossipfl_node.cli import app
from gossipfl_node.config import load_site
from gossipfl_node.daemon import run_site
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


def test_a_key_that_others_can_read_is_refused(alpha: Daemon) -> None:
    (alpha.folder / "site.key").chmod(0o644)
    alpha.state.mkdir(mode=0o777)
    alpha.state.chmod(0o777)
    found = mistakes(alpha)
    assert any("is open to other users; run: chmod 600" in line for line in found)
    assert any("may be written by other users; run: chmod go-w" in line for line in found)


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
