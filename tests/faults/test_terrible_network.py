"""Whole runs in virtual time over a terrible network: they end, learn as well, and everyone agrees on everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytest
import torch

from gossipfl.config import RunSpec
from gossipfl.digest import vector_digest
from gossipfl.records import Event, NodeRound
from gossipfl.testbed.plan import Plan
from gossipfl.testbed.virtual import VirtualRun, run_in_virtual_time

torch.set_num_threads(1)

NODES = 8
ROUNDS = 30
ROUND_S = 0.05
TERRIBLE = {"drop": 0.2, "duplicate": 0.1, "reorder": 0.1, "delay_s": [0.0, 0.02]}
PARTITION = {"start_s": 10 * ROUND_S, "end_s": 20 * ROUND_S, "groups": [[0, 1, 2, 3]]}
"""Ten rounds long."""


@dataclass
class Outcome:
    """A finished run with its records."""

    plan: Plan
    run: VirtualRun | None = None
    rows: list[NodeRound] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def count(self, event: str, node: int | None = None) -> int:
        name = None if node is None else f"node-{node}"
        return sum(e.event == event and name in (None, e.node) for e in self.events)

    def accuracy(self, *, without: frozenset[int] = frozenset()) -> float:
        assert self.run is not None
        left_out = self.plan.byzantine | without
        measured = [r.evaluation for node, r in enumerate(self.run.results) if node not in left_out]
        return fmean(e.accuracy for e in measured if e is not None and e.accuracy is not None)

    @property
    def digests(self) -> list[bytes]:
        assert self.run is not None
        return [result.digest for result in self.run.results]

    def disagreements(self, *, without: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
        """Return the pairs (follower, owner) whose replicas differ."""
        assert self.run is not None
        found = []
        for node, agent in enumerate(self.run.agents):
            for peer, other in agent.core.followed.items():
                owner = self.plan.node_of[peer]
                own = self.run.agents[owner].core.exchange.own
                same = other.vector is not None and torch.equal(other.vector, own.vector)
                if not same and not {node, owner} & without:
                    found.append((node, owner))
        return found


def start(**changes: Any) -> Outcome:
    settings: dict[str, Any] = {
        "nodes": NODES,
        "transport": "memory",
        "rounds": ROUNDS,
        "seed": 3,
        "task": {"name": "digits"},
        "train": {"local_steps": 5},
    }
    outcome = Outcome(Plan(RunSpec.model_validate(settings | changes)))
    outcome.run = run_in_virtual_time(outcome.plan, outcome.rows.append, outcome.events.append)
    return outcome


@pytest.fixture(scope="module", params=["sync", "async"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clean(mode: str) -> Outcome:
    return start(mode=mode)


@pytest.fixture(scope="module")
def stormy(mode: str) -> Outcome:
    return start(mode=mode, faults=TERRIBLE | {"partitions": [PARTITION]})


class TestLossAndPartition:
    """20 % loss, duplicates, reordering, delay, and a partition of ten rounds that heals."""

    def test_every_node_ends_every_round(self, stormy: Outcome) -> None:
        assert Counter(row.node for row in stormy.rows) == dict.fromkeys(range(NODES), ROUNDS)

    def test_the_faults_really_happened(self, stormy: Outcome) -> None:
        assert stormy.run is not None
        reasons = Counter[str]()
        for agent in stormy.run.agents:
            reasons.update(agent.transport.counters.by_reason)
        assert reasons["fault: drop"] > 100
        assert reasons["fault: partition"] > 10
        assert stormy.count("resync") > 50

    def test_honest_accuracy_is_that_of_the_clean_run(self, clean: Outcome, stormy: Outcome) -> None:
        assert clean.accuracy() > 0.9
        assert abs(stormy.accuracy() - clean.accuracy()) <= 0.02

    def test_every_replica_equals_its_owners(self, clean: Outcome, stormy: Outcome) -> None:
        assert clean.disagreements() == []
        assert stormy.disagreements() == []

    def test_nobody_is_blamed_for_the_wire(self, stormy: Outcome) -> None:
        assert stormy.count("offence") == 0
        assert stormy.count("digest_mismatch") == 0

    def test_nobody_hangs(self, mode: str, stormy: Outcome) -> None:
        """All the extra time is the partition's: a liveness limit, a few deadlines, and draining."""
        spec = stormy.plan.spec.gossip
        last = max(row.t_s for row in stormy.rows)
        assert last < ROUNDS * ROUND_S + (spec.liveness_s + 6 * spec.deadline_min_s if mode == "sync" else 10.0)

    def test_the_same_seed_gives_the_same_run(self, mode: str, stormy: Outcome) -> None:
        again = start(mode=mode, faults=TERRIBLE | {"partitions": [PARTITION]})
        assert again.digests == stormy.digests
        assert again.events == stormy.events
        assert again.rows == stormy.rows

    def test_another_seed_gives_another_run(self, mode: str, stormy: Outcome) -> None:
        other = start(mode=mode, seed=4, rounds=4, faults=TERRIBLE)
        assert other.digests != stormy.digests


class TestLossAlone:
    def test_a_synchronous_run_is_the_clean_one_bit_for_bit(self) -> None:
        """Loss costs time, not accuracy: every update arrives before its round ends."""
        clean, lossy = start(rounds=10), start(rounds=10, faults=TERRIBLE)
        assert lossy.count("miss") == 0
        assert lossy.digests == clean.digests

    @pytest.mark.parametrize("codec", ["int8", "float16"])
    def test_lossy_codecs_keep_their_replicas_equal_too(self, codec: str) -> None:
        outcome = start(rounds=10, codec={"name": codec}, faults=TERRIBLE)
        assert outcome.disagreements() == []


@pytest.fixture(scope="module")
def crashed(mode: str) -> Outcome:
    return start(mode=mode, faults={"crashes": [{"node": 2, "start_s": 10 * ROUND_S}]})


class TestCrash:
    CRASHED = frozenset({2})

    def test_the_others_go_on(self, crashed: Outcome) -> None:
        rounds = Counter(row.node for row in crashed.rows)
        assert {node: rounds[node] for node in range(NODES) if node != 2} == {
            node: ROUNDS for node in range(NODES) if node != 2
        }

    def test_its_neighbours_say_so_once(self, crashed: Outcome) -> None:
        losses = [event for event in crashed.events if event.event == "neighbour_lost" and event.node != "node-2"]
        assert {event.fields["peer"] for event in losses} == {"node-2"}
        neighbours = {f"node-{node}" for node in crashed.plan.topology.neighbours(2)}
        assert sorted(event.node or "" for event in losses) == sorted(neighbours)

    def test_they_still_learn_and_agree(self, clean: Outcome, crashed: Outcome) -> None:
        assert abs(crashed.accuracy(without=self.CRASHED) - clean.accuracy(without=self.CRASHED)) <= 0.02
        assert crashed.disagreements(without=self.CRASHED) == []

    def test_one_that_comes_back_is_taken_in_again(self, mode: str) -> None:
        outage = {"node": 2, "start_s": 10 * ROUND_S, "end_s": 10 * ROUND_S + 2.0}
        impatient = {"liveness_s": 1.0, "deadline_min_s": 0.5}
        outcome = start(mode=mode, rounds=80, gossip=impatient, faults={"crashes": [outage]})
        assert outcome.count("neighbour_lost") > 0
        assert outcome.count("neighbour_back", 2) > 0
        assert outcome.disagreements() == []
        assert Counter(row.node for row in outcome.rows)[2] == outcome.plan.spec.rounds


class TestCorruption:
    def test_altered_frames_are_noticed_and_made_good(self, mode: str, clean: Outcome) -> None:
        outcome = start(mode=mode, faults={"corrupt": 0.2})
        assert outcome.run is not None
        dropped = Counter[str]()
        for result in outcome.run.results:
            dropped.update(result.dropped)
        assert dropped["body-digest"] > 100
        assert outcome.count("offence") == 0
        assert outcome.disagreements() == []
        assert abs(outcome.accuracy() - clean.accuracy()) <= 0.02


class TestByzantine:
    def test_lies_over_a_terrible_network_are_still_filtered(self) -> None:
        outcome = start(byzantine=1, attack={"name": "sign-flip"}, faults=TERRIBLE)
        assert outcome.accuracy() > 0.88
        assert outcome.disagreements() == []
        rejected = sum(row.rejected_byzantine for row in outcome.rows if not row.byzantine)
        assert rejected > sum(row.accepted_byzantine for row in outcome.rows if not row.byzantine)


def test_vectors_are_what_their_digests_say() -> None:
    outcome = start(rounds=2)
    assert outcome.run is not None
    assert outcome.digests == [vector_digest(agent.learner.vector) for agent in outcome.run.agents]
