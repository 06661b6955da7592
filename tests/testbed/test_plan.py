from __future__ import annotations

from typing import Any

import pytest

from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError, GossipflError, TopologyError
from gossipfl.testbed.plan import Plan
from gossipfl.testbed.simulated import make_simulator

RULE = {"name": "trimmed-mean", "f": 1}


def plan(**settings: Any) -> Plan:
    return Plan(
        RunSpec.model_validate({"nodes": 8, "rounds": 2, "task": {"name": "digits", "model": "softmax"}, **settings})
    )


def test_byzantine_nodes_sit_where_the_spec_says() -> None:
    star = {"topology": "star", "byzantine": 1, "attack": "gaussian"}
    assert plan(**star, placement="degree").byzantine == {0}
    assert plan(**star, placement=[5]).byzantine == {5}
    drawn = {tuple(plan(**star, seed=seed).byzantine) for seed in range(20)}
    assert len(drawn) > 3
    assert plan(**star, seed=3).byzantine == plan(**star, seed=3, placement="random").byzantine
    assert plan(topology="star", placement="degree").byzantine == frozenset()


def test_wrong_placements_are_one_line() -> None:
    with pytest.raises(ConfigError, match='placement "degre" is unknown; did you mean "degree"'):
        _ = plan(byzantine=1, attack="gaussian", placement="degre").byzantine
    for nodes, words in (([1, 2], "lists 2 nodes where byzantine is 1"), ([9], "names node 9, but nodes are 0 to 7")):
        with pytest.raises(ValueError, match=words):
            plan(byzantine=1, attack="gaussian", placement=nodes)


def test_an_f_that_the_graph_does_not_allow_is_refused_before_the_run() -> None:
    plan(topology={"name": "random-regular", "degree": 4}, rule=RULE).check()
    with pytest.raises(ConfigError, match=r'"trimmed-mean": f = 1, but node 0 has 2 neighbours, which allow at most 0'):
        plan(topology="ring", rule=RULE).check()
    with pytest.raises(ConfigError, match=r'"krum": f = 0, but node 1 has 1 neighbours, which allow no f at all'):
        plan(topology="star", rule={"name": "krum", "f": 0}).check()
    plan(topology="ring", rule={"name": "trimmed-mean", "f": "known"}).check()
    with pytest.raises(ConfigError, match='rule "krum" needs f'):
        plan(rule="krum").check()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"topology": "base-k"}, 'topology "base-k" is another graph in each round'),
        ({"byzantine": 1, "attack": "alie"}, 'attack "alie" sees all models'),
        ({"train": {"init": "own"}}, 'init = "own": agents start from one model'),
    ],
)
def test_agents_refuse_what_only_the_simulator_can_play(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(GossipflError, match=words):
        plan(**settings).check_agents()
    simulator = make_simulator(plan(**settings))
    simulator.step()
    assert simulator.round == 1


def test_a_changing_graph_has_the_union_of_its_links_for_records() -> None:
    assert plan(topology="base-k").topology.is_connected
    assert len(plan(topology="epidemic").topology.edges) == 28
    with pytest.raises(TopologyError):
        plan(topology={"name": "base-k", "k": 0}).check()


def test_own_starts_are_apart_and_repeat() -> None:
    first, again = (make_simulator(plan(train={"init": "own", "init_scale": 2.0}, seed=4)) for _ in range(2))
    assert first.vectors.std() == pytest.approx(2.0, rel=0.05)
    assert (first.vectors == again.vectors).all()
    assert (first.vectors[0] != first.vectors[1]).any()


def test_a_backdoor_is_measured() -> None:
    attacked = plan(byzantine=2, attack={"name": "backdoor", "boost": 2}, partition="iid")
    simulator = make_simulator(attacked)
    simulator.step()
    rates = [evaluation.metrics["attack_success"] for evaluation in simulator.evaluate()]
    assert len(rates) == 8
    assert all(0 <= rate <= 1 for rate in rates)


def test_the_average_model_of_a_group_is_measured() -> None:
    simulator = make_simulator(plan(averages={"all": list(range(8)), "two": [1, 5]}, rule="alone"))
    simulator.step()
    simulator.step()
    measured = simulator.evaluate()[3].metrics
    for name, group in (("all", range(8)), ("two", (1, 5))):
        average = simulator.vectors[list(group)].mean(0, keepdim=True)
        assert measured[f"average_{name}"] == simulator.fleet.evaluate_vectors(average)[0].accuracy
    assert measured["average_all"] != measured["average_two"]
    with pytest.raises(ValueError, match="must list nodes from 0 to 7, not"):
        plan(averages={"none": []})
    with pytest.raises(ConfigError, match="averages: no agent sees"):
        plan(averages={"all": [0]}).check_agents()


def test_unknown_attacks_name_both_kinds() -> None:
    with pytest.raises(ConfigError, match='attack "replai" is unknown; did you mean "replay"'):
        _ = plan(byzantine=1, attack="replai").attack
