from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError
from gossipfl.simulator import Byzantine, Stack
from gossipfl.testbed.plan import Plan
from gossipfl.testbed.simulated import make_simulator
from gossipfl.testbed.stacked import StackedRun, stack_key

ROUNDS = 4


def spec(**settings: Any) -> RunSpec:
    base = {"nodes": 6, "topology": "ring", "rounds": ROUNDS, "task": {"name": "digits", "model": "softmax"}}
    return RunSpec.model_validate({**base, "train": {"local_steps": 2}, **settings})


DIFFERENT = [
    {"seed": 1},
    {"seed": 2, "byzantine": 1, "attack": "gaussian"},
    {"nodes": 8, "topology": {"name": "random-regular", "degree": 4}, "byzantine": 2, "attack": "alie", "seed": 3},
    {"byzantine": 1, "attack": "label-flip", "partition": "shards", "seed": 4},
    {"nodes": 7, "topology": "star", "byzantine": 2, "attack": "trim", "placement": [1, 2]},
    {"byzantine": 2, "attack": "trim", "seed": 5},
]


@pytest.mark.parametrize("rule", ["mean", "balance", {"name": "ios", "f": "known"}, "wfagg", "ubar"], ids=str)
def test_each_network_does_what_it_would_do_alone(rule: Any) -> None:
    rule = {"name": "wfagg", "f": "known"} if rule == "wfagg" else rule
    plans = [Plan(spec(rule=rule, **settings)) for settings in DIFFERENT]
    stacked = StackedRun(plans)
    assert stacked.batched
    reports = [stacked.simulator.step() for _ in range(ROUNDS)]
    for number, plan in enumerate(plans):
        alone = make_simulator(plan)
        last = [alone.step() for _ in range(ROUNDS)][-1]
        part = stacked.nodes(number)
        torch.testing.assert_close(stacked.simulator.vectors[part], alone.vectors, rtol=1e-4, atol=1e-5)
        assert (stacked.honest(number) - part.start).tolist() == alone.honest.tolist()
        for counted in ("accepted_honest", "accepted_byzantine", "rejected_honest", "rejected_byzantine"):
            together = getattr(reports[-1].filtered, counted)[part]
            assert together.tolist() == getattr(last.filtered, counted).tolist()
        degree = np.mean(plan.topology.degrees)
        assert stacked.bytes_sent(number, reports[-1]) == pytest.approx(4 * alone.vectors.shape[1] * degree)
        distance = stacked.simulator.consensus_distance(stacked.honest(number))
        assert distance == pytest.approx(alone.consensus_distance(), rel=1e-4)


def test_what_must_be_the_same_is_in_the_key() -> None:
    keys = {stack_key(spec(**settings)) for settings in DIFFERENT}
    assert len(keys) == 1
    others = [{"rounds": 5}, {"rule": "mean"}, {"train": {"lr": 0.2}}, {"codec": "int8"}, {"task": "digits"}]
    assert len(keys | {stack_key(spec(**other)) for other in others}) == 6


def test_a_stack_checks_each_network() -> None:
    with pytest.raises(ConfigError, match=r"\[6\] are not all among 0\.\.5"):
        Stack([Byzantine({6}, Plan(spec(byzantine=1, attack="gaussian")).attack)], [6])
