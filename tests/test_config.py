from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.config import TRANSPORTS, RunSpec, load_spec
from gossipfl.errors import ConfigError, TopologyError
from gossipfl.sections import Libp2pSpec
from gossipfl.settings import Settings, choose, parse_value, suggest
from gossipfl.transports.libp2p.options import Libp2pOptions


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    return tmp_path / "spec.toml"


def mistake(path: Path | None, flags: dict[str, Any], *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_spec(path, flags, sets)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_nothing_given_is_a_complete_run() -> None:
    spec = load_spec(None, {})
    assert (spec.nodes, spec.transport, spec.mode, spec.byzantine) == (8, "mqtt", "sync", 0)
    assert (spec.topology.name, spec.topology.options) == ("random-regular", {"degree": 4})
    assert (spec.task.name, spec.rule.name, spec.codec.name, spec.attack.name) == (
        "digits",
        "pace",
        "float32",
        None,
    )


def test_sets_win_over_options_and_options_over_the_file(spec_file: Path) -> None:
    spec_file.write_text("nodes = 3\nrounds = 3\nseed = 3\n[train]\nlr = 0.5\nbatch = 16\n")
    spec = load_spec(spec_file, {"rounds": 4, "seed": 4, "nodes": None}, ["seed=5", "train.lr=0.25"])
    assert (spec.nodes, spec.rounds, spec.seed) == (3, 4, 5)
    assert (spec.train.lr, spec.train.batch) == (0.25, 16)


@pytest.mark.parametrize(
    "text",
    ['rule = "mean"', '[rule]\nname = "mean"', 'rule = {name = "mean"}', 'rule.name = "mean"'],
)
def test_a_bare_name_is_short_for_a_table(spec_file: Path, text: str) -> None:
    spec_file.write_text(text)
    assert load_spec(spec_file, {}).rule == load_spec(None, {"rule": "mean"}).rule


def test_options_stay_whatever_the_order_of_the_pairs() -> None:
    spec = load_spec(None, {}, ["partition.alpha=0.1", "partition.name=dirichlet", "rule.gamma=0.3", "rule=balance"])
    assert (spec.partition.name, spec.partition.alpha) == ("dirichlet", 0.1)
    assert spec.rule.options == {"gamma": 0.3}


def test_a_graph_file_brings_its_number_of_nodes(spec_file: Path) -> None:
    assert load_spec(None, {"topology": "abilene"}).nodes == 11
    graph = spec_file.with_suffix(".edges")
    graph.write_text("0 1\n1 2\n3 4\n")
    spec_file.write_text(f'[topology]\nname = "{graph}"\nlargest = true\n')
    spec = load_spec(spec_file, {"byzantine": 2, "attack": "gaussian"})
    assert (spec.nodes, spec.as_dict()["nodes"]) == (3, 3)
    assert "must be less than nodes (3)" in mistake(spec_file, {"byzantine": 3, "attack": "gaussian"})
    assert load_spec(spec_file, {"nodes": 3}).nodes == 3
    with pytest.raises(TopologyError, match="falls into 2 parts"):
        load_spec(None, {"topology": str(graph)})
    # What names no topology is told where everything else is.
    assert mistake(None, {}, "topology=3").startswith("--set topology=3: topology")


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["broker.password=x"], "broker.password needs a user"),
        (["broker.tls.ca=x"], "broker.tls needs a broker that speaks it"),
        (["broker.kind=mosquitto", "broker.username=x"], "broker.username is for a broker with users"),
        (["broker.host=h", "broker.tls.key=x"], "broker.tls.key needs its certificate"),
    ],
)
def test_broker_settings_that_lead_nowhere_are_refused(sets: list[str], told: str) -> None:
    assert told in mistake(None, {}, *sets)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_sections_of_other_transports_are_left_alone(spec_file: Path, transport: str) -> None:
    spec_file.write_text('[broker]\nhost = "broker.example"\n[libp2p]\ndead_s = 9\n')
    assert load_spec(spec_file, {"transport": transport}).transport == transport


def test_libp2p_has_the_defaults_and_the_bounds_of_its_transport() -> None:
    section = Libp2pSpec()
    options = Libp2pOptions(**section.model_dump())
    assert options == Libp2pOptions()
    smallest = Libp2pSpec(window_bytes=1 << 18).window_bytes
    assert Libp2pOptions(window_bytes=smallest).window_bytes == smallest
    with pytest.raises(ConfigError, match="window_bytes is at least 262144"):
        Libp2pOptions(window_bytes=smallest - 1)


def test_other_keys_of_a_named_section_are_its_options(spec_file: Path) -> None:
    spec_file.write_text('[task]\nname = "mnist"\npath = "data"\n[rule]\nreach = 5\n')
    spec = load_spec(spec_file, {}, ["rule.leave=2", "rule.decay=0.5"])
    assert (spec.task.name, spec.task.options) == ("mnist", {"path": "data"})
    assert (spec.rule.name, spec.rule.options) == ("pace", {"reach": 5, "leave": 2, "decay": 0.5})


def test_another_name_drops_the_options_of_the_former(spec_file: Path) -> None:
    spec_file.write_text('[rule]\nname = "balance"\ngamma = 0.3\n[topology]\ndegree = 6\n')
    kept = load_spec(spec_file, {"rule": "balance", "topology": "random-regular"})
    assert (kept.rule.options, kept.topology.options) == ({"gamma": 0.3}, {"degree": 6})
    other = load_spec(spec_file, {"rule": "mean", "topology": "ring"})
    assert (other.rule.options, other.topology.options) == ({}, {})
    assert load_spec(spec_file, {}, ["rule.name=mean"]).rule.options == {}


def test_none_switches_an_attack_off(spec_file: Path) -> None:
    spec_file.write_text('byzantine = 2\n[attack]\nname = "gaussian"\nstrength = 10\n')
    spec = load_spec(spec_file, {"attack": "none", "byzantine": 0})
    assert (spec.attack.name, spec.attack.options) == (None, {})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('ruel = "mean"', 'ruel is an unknown key; did you mean "rule"?'),
        ("lr = 0.1", 'lr is an unknown key; did you mean "train.lr"?'),
        ("qqq = 1", "qqq is an unknown key; known keys: nodes, topology,"),
        ("[train]\nlocal_step = 3", 'train.local_step is an unknown key; did you mean "local_steps"?'),
        ("[faults]\ndorp = 0.1", 'faults.dorp is an unknown key; did you mean "drop"?'),
        ('rounds = "many"', 'rounds must be a whole number, not "many"'),
        ("rounds = true", "rounds must be a whole number, not True"),
        ("rounds = 0", "rounds must be at least 1, not 0"),
        ("seed = -1", "seed must be at least 0, not -1"),
        ("train = 3", "train must be a table of keys, not 3"),
        ("rule = 3", "rule must be a table of keys, not 3"),
        ("rule.name = 3", "rule.name must be text, not 3"),
        ("[train]\nlr = nan", "train.lr must be a finite number, not nan"),
        ("[train]\nlr = 0", "train.lr must be more than 0"),
        ("[train]\nmomentum = 1", "train.momentum must be less than 1"),
        ("[rule]\ngamma = inf", "rule.gamma must be a finite number"),
        ("[rule]\ngamma = {x = 1}", "rule.gamma must be one value or a list"),
        ("[broker]\nport = 70000", "broker.port must be at most 65535, not 70000"),
        ("keep_vectors = 1", "keep_vectors must be true or false, not 1"),
        ('mode = "snyc"', 'mode cannot be "snyc"; did you mean "sync"? Choose one of: sync, async'),
        ('partition = "x"', 'partition.name cannot be "x"; choose one of: auto, iid,'),
        ('transport = "pigeon"', 'transport "pigeon" is unknown; choose one of: memory, mqtt, libp2p'),
        ('transport = "libp2"', 'transport "libp2" is unknown; did you mean "libp2p"? Choose one of: memory,'),
        ('attack = "gaussian"', 'attack "gaussian" has no node to act; add --byzantine K, or --attack none'),
        ("byzantine = 2", "byzantine is 2 without an attack; add --attack NAME, or --byzantine 0"),
        ('byzantine = 8\nattack = "gaussian"', "byzantine must be less than nodes (8)"),
        ("[attack]\nstrength = 3", "attack has options but no name; add --attack NAME"),
        ("[faults]\ndrop = 0.1", "faults need the memory transport, not mqtt; add --transport memory"),
        ("[gossip]\ndeadline_min_s = 1e6", "gossip.deadline_min_s must be at most gossip.deadline_s"),
        ("[libp2p]\nping_s = 6", "libp2p.ping_s must be less than libp2p.dead_s (6.0)"),
        ("[libp2p]\ndead_s = 2", "libp2p.ping_s must be less than libp2p.dead_s (2.0)"),
        ("[libp2p]\nwindow_bytes = 1000", "libp2p.window_bytes must be at least 262144, not 1000"),
        ("[libp2p]\nlisten = 1", "libp2p.listen is an unknown key; known keys: ping_s, dead_s, window_bytes"),
        ("nodes = ", "line 1: invalid value; TOML is written key = value"),
        ("nodes = 3\n seed = = 4\nrounds = 3", "line 2, column 9: invalid value"),
        ("nodes = 3\nnodes = 4\n", "line 2, column 10: cannot overwrite a value"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_file_key_and_mend(spec_file: Path, text: str, told: str) -> None:
    spec_file.write_text(text)
    line = mistake(spec_file, {})
    assert line.startswith(f"{spec_file}: ")
    assert told in line


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ("delay_s = [2, 1]", "faults.delay_s must be [shortest, longest]"),
        ("delay_s = -1", "faults.delay_s.1 must be at least 0"),
        ("drop = 2", "faults.drop must be at most 1"),
        ("crashes = [{node = 9, start_s = 1}]", "names node 9, but nodes are 0 to 7"),
        ("crashes = [{node = 1, start_s = 3, end_s = 2}]", "must end after they start"),
        ("partitions = [{start_s = 1, groups = [[1]]}]", "faults.partitions.0.end_s is missing"),
        ("partitions = [{start_s = 1, end_s = 2, groups = [[1], [1]]}]", "names a node in two groups"),
        ("partitions = [{start_s = 1, end_s = 2, groups = [[1, 12]]}]", "names node 12"),
    ],
)
def test_impossible_faults_are_refused(spec_file: Path, faults: str, told: str) -> None:
    spec_file.write_text(f'transport = "memory"\n[faults]\n{faults}\n')
    assert told in mistake(spec_file, {})


def test_faults_of_a_lossy_network_are_read(spec_file: Path) -> None:
    spec_file.write_text(
        'transport = "memory"\n[faults]\ndrop = 0.2\ndelay_s = 0.5\n'
        "[[faults.partitions]]\nstart_s = 1\nend_s = 3\ngroups = [[0, 1], [2, 3]]\n"
    )
    faults = load_spec(spec_file, {}).faults
    assert faults is not None
    assert (faults.drop, faults.delay_s) == (0.2, (0.0, 0.5))
    assert faults.partitions[0].groups == ((0, 1), (2, 3))


def test_a_mistake_in_an_option_names_the_option() -> None:
    assert mistake(None, {"nodes": 0}) == "--nodes: must be at least 1, not 0"
    assert mistake(None, {"transport": "mqt"}).startswith('--transport: "mqt" is unknown; did you mean "mqtt"?')


def test_a_mistake_in_a_pair_repeats_the_pair() -> None:
    assert mistake(None, {}, "train.lr=fast") == ('--set train.lr=fast: train.lr must be a number, not "fast"')
    assert "write it as key=value" in mistake(None, {}, "rounds")
    assert "write it as key=value" in mistake(None, {}, "=3")
    assert "write it as key=value" in mistake(None, {}, "train..lr=3")
    assert "seed holds one value, it has no keys" in mistake(None, {}, "seed=1", "seed.x=2")


def test_the_source_that_was_overruled_is_not_blamed(spec_file: Path) -> None:
    spec_file.write_text("rounds = 0")
    assert load_spec(spec_file, {"rounds": 5}).rounds == 5
    spec_file.write_text("rounds = 5")
    assert mistake(spec_file, {"rounds": 0}).startswith("--rounds: ")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text("")
    assert mistake(tmp_path / "demmo.toml", {}).endswith('no such file; did you mean "demo"?')
    assert mistake(tmp_path, {}).startswith(f"{tmp_path}: cannot be read: ")
    (tmp_path / "latin.toml").write_bytes(b'task = "\xe9"')
    assert "is not UTF-8 text" in mistake(tmp_path / "latin.toml", {})


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len(mistake(None, {}, "train.lr=" + "x" * 10_000)) < 200


def test_a_spec_survives_json() -> None:
    spec = load_spec(
        None,
        {"nodes": 12, "attack": "gaussian", "byzantine": 2, "transport": "memory"},
        [
            "attack.strength=5",
            "faults.delay_s=[0.1, 0.5]",
            "rule.gamma=0.4",
            "broker.host=h",
            "broker.tls.ca=ca.pem",
            "libp2p.dead_s=9",
        ],
    )
    assert RunSpec.model_validate(json.loads(json.dumps(spec.as_dict()))) == spec


def test_the_record_of_a_spec_holds_no_password() -> None:
    spec = load_spec(None, {}, ["broker.username=site", "broker.password=hunter2"])
    assert spec.broker.password == "hunter2"
    assert "hunter2" not in json.dumps(spec.as_dict())
    assert "hunter2" not in repr(spec)


def test_a_mistake_in_a_password_does_not_print_it() -> None:
    assert mistake(None, {}, "broker.password=12345") == "--set broker.password: broker.password must be text"


@given(rounds=st.integers(1, 500), every=st.none() | st.integers(1, 600))
def test_the_last_round_is_evaluated(rounds: int, every: int | None) -> None:
    spec = RunSpec(rounds=rounds, evaluate_every=every)
    evaluated = [round_ for round_ in range(rounds) if spec.evaluates(round_)]
    assert evaluated[-1] == rounds - 1
    if every is None:
        assert len(evaluated) <= 21
    else:
        assert evaluated[:-1] == list(range(every - 1, rounds - 1, every))


@given(st.text(max_size=30))
def test_any_text_is_a_value(text: str) -> None:
    value = parse_value(text)
    assert isinstance(value, str | int | float | bool | list | dict)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("mean", "mean"),
        ("2026-01-01", "2026-01-01"),
        ("1\nother = 2", "1\nother = 2"),
        ("", ""),
    ],
)
def test_values_are_toml_or_plain_text(text: str, value: Any) -> None:
    assert parse_value(text) == value


@given(
    st.dictionaries(
        st.sampled_from([*RunSpec.model_fields, "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "lr", "y"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_no_tree_of_settings_raises_anything_but_one_line(tree: dict[str, Any]) -> None:
    settings = Settings()
    for key, value in tree.items():
        settings.add_option(key, value, "--set")
    try:
        settings.validate(RunSpec)
        told = ""
    except ConfigError as error:
        told = str(error)
    assert "\n" not in told


def test_mends() -> None:
    assert suggest("rign", ["ring", "torus"]) == '; did you mean "ring"?'
    assert suggest("zzz", ["ring", "torus"]) == ""
    assert choose("zzz", ["ring", "torus"]) == "; choose one of: ring, torus"


def test_a_name_for_folders_is_plain() -> None:
    spec = load_spec(None, {"task": "my.package:make/../task", "attack": "sign-flip", "byzantine": 1})
    assert spec.short_name == "my.package-make-..-task-pace-sign-flip-8"
    assert "/" not in spec.short_name
