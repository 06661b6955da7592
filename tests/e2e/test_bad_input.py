"""A person's mistake is one line on stderr and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import resource
import socket
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from command_line import COMMAND, call
from mosquitto import mosquitto_program, password_lines, running_mosquitto

FILES = {
    "parts.edges": "0 1\n1 2\n3 4\n",
    "unknown-key.toml": "nodes = 4\n[train]\nlearning_rate = 0.1\n",
    "unknown-section.toml": "[trian]\nlr = 0.1\n",
    "syntax.toml": "nodes = 4\nrounds = = 3\n",
    "wrong-type.toml": 'nodes = "four"\n',
    "column/A.csv": "time,down,up\n2018-03-28 15:56:00,1,2\n",
    "broken_task.py": (
        "import numpy as np\n"
        "from gossipfl.tasks.classification import ClassificationTask\n"
        "from gossipfl.tasks.models import Softmax\n"
        "def fails():\n"
        "    raise KeyError('weights')\n"
        "def nothing():\n"
        "    return None\n"
        "def not_finite():\n"
        "    x, y = np.zeros((40, 3), np.float32), np.arange(40) % 2\n"
        "    x[7, 1] = np.nan\n"
        "    return ClassificationTask('mine', (x, y), (x, y), lambda _: Softmax(3, 2))\n"
    ),
    "syntax_task.py": "def make(:\n",
}

MISTAKES = [
    ("--topology rnig", 'topology "rnig" is unknown; did you mean "ring"?'),
    ("--topology parts.edges", 'graph file "parts.edges": the graph falls into 2 parts'),
    ("--topology nowhere.graphml", 'graph file "nowhere.graphml" cannot be read'),
    ("--topology abilene --nodes 5", 'topology "abilene" has 11 nodes, not 5'),
    ("--nodes 5 --set topology.degree=5", "degree"),
    ("--nodes 5 --set topology.degree=3", "degree"),
    ("--topology ring --nodes 2", 'topology "ring": 2 nodes are too few'),
    ("--topology hypercube --nodes 6", "6 nodes are no power of two"),
    ("unknown-key.toml", "unknown-key.toml: train.learning_rate is an unknown key; known keys: local_steps"),
    ("unknown-section.toml", 'unknown-section.toml: trian is an unknown key; did you mean "train"?'),
    ("syntax.toml", "syntax.toml: line 2, column 10: "),
    ("wrong-type.toml", 'wrong-type.toml: nodes must be a whole number, not "four"'),
    ("nowhere.toml", "nowhere.toml: no such file"),
    ("--rule balence", 'rule "balence" is unknown'),
    ("--attack gausian --byzantine 1", 'attack "gausian" is unknown'),
    ("--codec flaot32", 'codec "flaot32" is unknown'),
    ("--task digit", 'task "digit" is unknown'),
    ("--transport carrier-pigeon", '--transport: "carrier-pigeon" is unknown'),
    ("--mode both", '--mode: cannot be "both"'),
    ("--byzantine 2", "--byzantine: is 2 without an attack; add --attack NAME"),
    ("--attack sign-flip", '--attack: "sign-flip" has no node to act; add --byzantine K'),
    ("--byzantine 8 --attack sign-flip", "--byzantine: must be less than nodes (8)"),
    ("--set rule.gama=0.3", "gama"),
    ("--set attack.strength=5", "attack has options but no name"),
    ("--set train.lr=fast", '--set train.lr=fast: train.lr must be a number, not "fast"'),
    ("--set train.device=abacus", "abacus"),
    ("--set partition.alpha=0 --set partition.name=dirichlet", "partition.alpha must be more than 0"),
    ("--nodes 2000 --topology line", "1438 examples cannot be dealt to 2000 nodes"),
    ("--task mnist", "mnist needs path"),
    ("--task mnist --set task.path=nowhere", "nowhere is no folder"),
    ("--task lte-traffic --set task.path=nowhere", "nowhere"),
    ("--task lte-traffic --set task.path=column", "rnti_count"),
    ("--task lte-traffic --set task.path=blank", "blank/A.csv"),
    ("--task no_such_module:make", "no module named no_such_module"),
    ("--task broken_task:absent", 'broken_task has no callable "absent"'),
    ("--task broken_task:fails", "failed: KeyError: 'weights' ("),
    ("--task broken_task:nothing", "returned a NoneType without shards"),
    ("--task broken_task:not_finite", "mine training data: inputs hold values that are not finite"),
    ("--task syntax_task:make", "syntax_task.py, line 1"),
    ("--out file", "file: cannot be a folder"),
    ("--nodes many", "--nodes"),
    ("--no-such-option", "--no-such-option"),
    ("--set broker.tls.ca=ca.pem", "broker.tls needs a broker that speaks it; add broker.host"),
    ("--set broker.password=secret", "broker.password needs a user; add broker.username"),
    ("--transport mqtt --set faults.drop=0.5", "need the memory transport, not mqtt"),
    ("--transport libp2p --set faults.drop=0.5", "need the memory transport, not libp2p"),
    ("--transport libp2", '--transport: "libp2" is unknown; did you mean "libp2p"?'),
    ("--transport libp2p --rule balence", 'rule "balence" is unknown'),
    ("--set libp2p.ping_s=7", "--set libp2p.ping_s=7: libp2p.ping_s must be less than libp2p.dead_s (6.0)"),
    ("--set libp2p.window_bytes=1000", "libp2p.window_bytes must be at least 262144, not 1000"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with wrong files in it, where nothing may appear."""
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    for name, text in FILES.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    write_trace_of_blanks(here / "blank" / "A.csv")
    (here / "file").touch()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return tmp_path


def write_trace_of_blanks(path: Path) -> None:
    """Write a trace with good times and columns, and an infinite value in it."""
    from gossipfl.tasks.traces import COLUMNS

    rows = np.ones((60, len(COLUMNS)))
    rows[10, 0] = np.inf
    lines = [",".join(("time", *COLUMNS))]
    for number, row in enumerate(rows):
        moment = f"2018-03-28 {15 + number // 30:02d}:{2 * (number % 30):02d}:00"
        lines.append(",".join((moment, *map(str, row))))
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n")


def tree(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=[arguments for arguments, _ in MISTAKES])
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path, arguments: str, told: str) -> None:
    before = tree(folder)
    options = [] if "--transport" in arguments else ["--transport", "memory"]
    code, printed, line = call(capsys, "testbed", "run", *options, "--out", "out", *arguments.split())
    assert (code, printed, line.count("\n")) == (2, "", 1), line
    assert line.startswith("gossipfl: error: ")
    assert told in line
    assert tree(folder) == before


@pytest.mark.parametrize("arguments", ["--topology rnig", "--rule balence", "--mode async", "--task broken_task:fails"])
def test_a_mistake_in_a_simulation_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: str
) -> None:
    before = tree(folder)
    code, printed, line = call(capsys, "simulate", "--out", "out", *arguments.split())
    assert (code, printed, line.count("\n")) == (2, "", 1), line
    assert tree(folder) == before


def over_wire(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Try a run of processes, over MQTT unless told otherwise, that ends with a mistake, and return its line."""
    code, printed, line = call(capsys, "testbed", "run", "--topology", "ring", "--out", "out", *arguments)
    assert (code, printed, line.count("\n")) == (2, "", 1), line
    return line


@pytest.mark.parametrize("kind", ["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def test_a_port_in_use_is_told(capsys: pytest.CaptureFixture[str], folder: Path, kind: str) -> None:
    if kind == "mosquitto":
        mosquitto_program()
    before = tree(folder)
    with socket.create_server(("127.0.0.1", 0)) as rival:
        port = rival.getsockname()[1]
        line = over_wire(capsys, "--set", f"broker.port={port}", "--set", f"broker.kind={kind}")
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line
    assert tree(folder) == before


def test_a_broker_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    before = tree(folder)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    line = over_wire(capsys, "--set", "broker.host=127.0.0.1", "--set", f"broker.port={port}")
    assert f"cannot reach the MQTT broker at 127.0.0.1:{port}" in line
    assert tree(folder) == before


@pytest.mark.mosquitto
def test_a_wrong_password_is_told_and_not_repeated(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("broker")
    before = tree(folder)
    with running_mosquitto(elsewhere, password_lines(elsewhere, {"site": "right"})) as (port, _):
        sets = ("broker.host=127.0.0.1", f"broker.port={port}", "broker.username=site", "broker.password=w-r-o-n-g")
        line = over_wire(capsys, *(word for pair in sets for word in ("--set", pair)))
    assert "refuses user 'site': Not authorized; correct the user name and password" in line
    assert "w-r-o-n-g" not in line
    assert tree(folder) == before


def test_without_mosquitto_it_cannot_be_wanted(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    before = tree(folder)
    assert "the program is not installed; install it" in over_wire(capsys, "--set", "broker.kind=mosquitto")
    assert tree(folder) == before


def test_without_py_libp2p_it_cannot_be_wanted(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "libp2p" else find_spec(name))
    before = tree(folder)
    line = over_wire(capsys, "--transport", "libp2p", "--task", "broken_task:fails")
    assert "needs py-libp2p, which is not installed; run: pip install 'gossipfl[libp2p]'" in line
    assert tree(folder) == before


def test_a_py_libp2p_that_was_not_tried_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0" if name == "libp2p" else version(name))
    before = tree(folder)
    assert "was not tried with py-libp2p 99.0; run: pip install" in over_wire(capsys, "--transport", "libp2p")
    assert tree(folder) == before


def test_more_nodes_than_ports_can_be_had_are_told(folder: Path) -> None:
    before = tree(folder)
    done = subprocess.run(
        [*COMMAND, "testbed", "run", "--transport", "libp2p", "--topology", "ring", "--nodes", "200", "--out", "out"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "cannot reserve 200 ports on 127.0.0.1: Too many open files; run fewer nodes" in done.stderr
    assert tree(folder) == before


def test_an_earlier_run_is_not_lost_to_a_mistake(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    records = folder / "here" / "out"
    records.mkdir()
    (records / "summary.json").write_text("{}")
    assert over_wire(capsys, "--force", "--set", "broker.host=127.0.0.1", "--set", "broker.port=9")
    assert (records / "summary.json").read_text() == "{}"
    line = over_wire(capsys)
    assert "out: holds an earlier run; add --force" in line


@pytest.mark.parametrize("arguments", ["--topology rnig", "--task lte-traffic --set task.path=nowhere"])
def test_the_real_command_says_the_same(folder: Path, arguments: str) -> None:
    before = tree(folder)
    done = subprocess.run(
        [*COMMAND, "testbed", "run", "--out", "out", *arguments.split()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("gossipfl: error: ")
    assert tree(folder) == before
