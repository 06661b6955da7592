"""Saboteurs among honest agents in virtual time: everybody else learns, agrees, ends, and tells what happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pytest
import torch

from gossipfl.cli.progress import Silence as NoProgress
from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError
from gossipfl.gossip.allowance import MESSAGES
from gossipfl.records import Event, NodeRound, RunRecords
from gossipfl.robust.registry import ATTACKS
from gossipfl.testbed.plan import Plan, node_name
from gossipfl.testbed.saboteurs.registry import SABOTEURS, make_sabotage
from gossipfl.testbed.saboteurs.seat import check_reach
from gossipfl.testbed.simulated import run_simulation
from gossipfl.testbed.virtual import VirtualRun, run_in_virtual_time

torch.set_num_threads(1)

NODES, ROUNDS, BYZANTINE = 8, 15, 2
PLAYED: dict[str, dict[str, Any]] = {name: {"name": name} for name in SABOTEURS}
PLAYED["heartbeats"] = {"name": "silence", "heartbeats": True}
SEEN = {
    "equivocation": {"equivocation"},
    "replay": {"neighbour_restarted", "keyframe"},
    "stale-flood": set[str](),
    "silence": {"neighbour_lost"},
    "heartbeats": {"resync", "miss"},
    "layout-lie": {"neighbour_refused", "update_refused", "offence", "peer_muted"},
    "nan": {"update_refused", "offence", "equivocation"},
}
"""Events that honest nodes report because of each attack, and in no clean run."""
DROPPED = {
    "replay": {"replay", "recipient", "no-neighbour"},
    "stale-flood": {"replay", "recipient", "unsolicited-keyframe"},
    "layout-lie": {"offence-codec", "offence-oversized", "muted"},
    "nan": {"offence-codec", "convicted"},
    "equivocation": {"convicted"},
}
"""Counters of honest nodes that each attack moves; those of the transport aside, a clean run moves none."""


@dataclass
class Outcome:
    """A finished run, seen by those who stayed honest; ``absent`` nodes are left out too."""

    plan: Plan
    absent: frozenset[int] = frozenset()
    rows: list[NodeRound] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    run: VirtualRun = field(init=False)

    def __post_init__(self) -> None:
        self.run = run_in_virtual_time(self.plan, self.rows.append, self.events.append)

    @property
    def honest(self) -> list[int]:
        return [node for node in range(self.plan.spec.nodes) if node not in self.plan.byzantine | self.absent]

    @property
    def accuracy(self) -> float:
        evaluations = [self.run.results[node].evaluation for node in self.honest]
        return fmean(one.accuracy for one in evaluations if one is not None and one.accuracy is not None)

    @property
    def told(self) -> list[Event]:
        names = {node_name(node) for node in self.honest}
        return [event for event in self.events if event.node in names]

    @property
    def dropped(self) -> Counter[str]:
        total = Counter[str]()
        for node in self.honest:
            total.update(self.run.results[node].dropped)
        return Counter({reason: n for reason, n in total.items() if not reason.startswith("transport-")})

    def replica(self, follower: int, owner: int) -> Any:
        """What one node holds of another."""
        return self.run.agents[follower].core.followed[self.plan.identities[owner].peer_id]

    def links(self, owners: frozenset[int] | list[int]) -> list[tuple[int, int]]:
        """Pairs (honest follower, owner)."""
        graph = self.plan.topology
        return [(node, other) for node in self.honest for other in graph.neighbours(node) if other in owners]


def play(attack: dict[str, Any] | None, absent: frozenset[int] = frozenset(), **changes: Any) -> Outcome:
    settings: dict[str, Any] = {
        "nodes": NODES,
        "transport": "memory",
        "rounds": ROUNDS,
        "seed": 3,
        "task": {"name": "digits"},
        "rule": {"name": "balance"},  # rejects none of these honest nodes: what is lost here, the protocol lost
        "train": {"local_steps": 5},
    }
    if attack is not None:
        settings |= {"attack": attack, "byzantine": BYZANTINE}
    if absent:
        settings["faults"] = {"crashes": [{"node": node, "start_s": 0.0} for node in sorted(absent)]}
    return Outcome(Plan(RunSpec.model_validate(settings | changes)), absent)


@pytest.fixture(scope="module", params=PLAYED)
def attack(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def outcome(attack: str) -> Outcome:
    return play(PLAYED[attack])


@pytest.fixture(scope="module")
def clean() -> Outcome:
    return play(None)


@pytest.fixture(scope="module")
def without_them() -> Outcome:
    """The same run with the saboteurs' machines switched off from the start."""
    absent = Plan(
        RunSpec.model_validate({"nodes": NODES, "seed": 3, "byzantine": BYZANTINE, "attack": "nan"})
    ).byzantine
    return play(None, absent)


def test_honest_nodes_end_all_rounds_in_time(outcome: Outcome) -> None:
    rows = [row for row in outcome.rows if not row.byzantine]
    assert Counter(row.node for row in rows) == dict.fromkeys(outcome.honest, ROUNDS)
    limits = outcome.plan.spec.gossip
    assert max(event.t_s for event in outcome.told) < limits.liveness_s + limits.deadline_min_s


def test_honest_nodes_learn_as_well_as_without_them(outcome: Outcome, without_them: Outcome) -> None:
    assert outcome.honest == without_them.honest
    assert without_them.accuracy > 0.9
    assert abs(outcome.accuracy - without_them.accuracy) <= 0.02


def test_no_honest_vote_is_lost(outcome: Outcome) -> None:
    votes = Counter[str]()
    for row in outcome.rows:
        if not row.byzantine:
            votes.update(accepted=row.accepted_honest, rejected=row.rejected_honest)
    assert votes == {"accepted": ROUNDS * len(outcome.links(outcome.honest)), "rejected": 0}


def test_replicas_of_honest_neighbours_stay_equal_to_their_owners(outcome: Outcome) -> None:
    for follower, owner in outcome.links(outcome.honest):
        held, own = outcome.replica(follower, owner), outcome.run.agents[owner].core.exchange.own
        assert held.version == own.version == ROUNDS
        assert torch.equal(held.vector, own.vector)


def test_the_attack_leaves_its_traces(attack: str, outcome: Outcome, clean: Outcome) -> None:
    wanted_events, wanted_counters = SEEN[attack], DROPPED.get(attack, set())
    assert wanted_events | wanted_counters
    assert wanted_events <= {event.event for event in outcome.told}
    assert wanted_counters <= set(outcome.dropped)
    assert not wanted_events & {event.event for event in clean.told}
    assert clean.dropped == {}


def test_nobody_honest_is_blamed(outcome: Outcome) -> None:
    saboteurs = {node_name(node) for node in outcome.plan.byzantine}
    blamed = ("offence", "peer_muted", "neighbour_refused", "neighbour_lost", "digest_mismatch", "reject", "miss")
    assert {event.fields["peer"] for event in outcome.told if event.event in blamed} <= saboteurs


def test_what_is_kept_of_a_saboteur_is_bounded(outcome: Outcome) -> None:
    for follower, owner in outcome.links(outcome.plan.byzantine):
        exchange = outcome.run.agents[follower].core.exchange
        held, channel = outcome.replica(follower, owner), exchange.post.channels[outcome.plan.identities[owner].peer_id]
        assert len(held.waiting) <= exchange.credit + 2
        assert not channel.assemblies
        assert 0 <= channel.allowance.left <= MESSAGES


def test_each_half_hears_another_truth() -> None:
    """Where those who are deceived differently have no link to each other, nobody finds out."""
    outcome = play(PLAYED["equivocation"], rounds=5, topology="ring")
    for liar in outcome.plan.byzantine:
        own = outcome.run.agents[liar].core.exchange.own.vector
        held = [outcome.replica(node, liar).vector for node in outcome.plan.topology.neighbours(liar)]
        assert all(torch.equal(vector, own) for vector in held[1::2])
        assert all(torch.equal(vector, held[0]) for vector in held[::2])
        assert not torch.equal(held[0], own)
        assert float((held[0] - own).norm() / own.norm()) == pytest.approx(1.0, rel=1e-3)
    assert not {"digest_mismatch", "keyframe"} & {event.event for event in outcome.told}


@pytest.mark.parametrize("name", ["replay", "stale-flood", "nan"])
def test_the_same_seed_gives_the_same_attack(name: str) -> None:
    one, two = (play(PLAYED[name], rounds=4, nodes=5, topology="ring") for _ in range(2))
    assert one.events == two.events
    assert one.rows == two.rows
    assert [result.dropped for result in one.run.results] == [result.dropped for result in two.run.results]
    other = play(PLAYED[name], rounds=4, nodes=5, topology="ring", seed=4)
    assert other.events != one.events


def test_one_who_floods_is_muted() -> None:
    """A round of a second, and 2000 messages in it: more than a neighbour may say."""
    slow = {"step_s": 1.0}
    options = {"name": "stale-flood", "rate": 2000}
    outcome = play(options, nodes=3, byzantine=1, topology="line", rounds=2, train={"local_steps": 1}, gossip=slow)
    told = [event for event in outcome.told if event.event == "peer_muted"]
    assert {event.fields["reason"] for event in told} == {"flood"}
    assert outcome.dropped["offence-flood"] >= 3
    assert outcome.dropped["muted"] > 100


@pytest.mark.parametrize("name", ["silence", "heartbeats"])
def test_silence_has_no_vote_in_asynchronous_rounds(name: str) -> None:
    """What neighbours hold of it is the initial model, which plain averaging would let draw everybody back."""
    outcome = play(PLAYED[name], mode="async", rule="mean", rounds=5)
    rows = [row for row in outcome.rows if not row.byzantine]
    assert Counter(row.node for row in rows) == dict.fromkeys(outcome.honest, 5)
    assert sum(row.accepted_byzantine + row.rejected_byzantine for row in rows) == 0
    assert sum(row.accepted_honest for row in rows) >= 4 * len(outcome.links(outcome.honest))


class TestSpec:
    def plan(self, **attack: Any) -> Plan:
        return Plan(RunSpec.model_validate({"nodes": 4, "byzantine": 1, "attack": attack, "transport": "memory"}))

    def test_a_name_means_one_thing(self) -> None:
        assert not set(SABOTEURS) & set(ATTACKS)
        for name in SABOTEURS:
            assert make_sabotage(name).name == name

    @pytest.mark.parametrize("name", SABOTEURS)
    def test_saboteurs_publish_no_lie_of_their_own(self, name: str) -> None:
        plan = self.plan(name=name)
        plan.check_agents()
        assert plan.attack is None
        assert all(plan.liar(node) is None for node in range(4))
        assert plan.sabotage == make_sabotage(name)

    def test_an_unknown_attack_is_told_with_all_that_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r'attack "replya" is unknown.*"replay".*sign-flip.*stale-flood'):
            self.plan(name="replya").check()

    def test_the_simulator_has_no_wire(self, tmp_path: Any) -> None:
        spec = self.plan(name="replay").spec
        with (
            RunRecords(tmp_path / "run") as records,
            pytest.raises(ConfigError, match=r'^attack "replay" is played on the wire; use testbed run$'),
        ):
            run_simulation(spec, records, NoProgress())

    @pytest.mark.parametrize(
        ("attack", "problem"),
        [
            ({"name": "replay", "speed": 3}, 'has no option "speed"; its options are: rate'),
            ({"name": "nan", "rate": 3}, 'has no option "rate"; it has no options'),
            ({"name": "replay", "rate": 0}, "rate = 0 frames a second must lie above 0"),
            ({"name": "stale-flood", "rate": 1e6}, "up to 10000"),
            ({"name": "stale-flood", "rate": "fast"}, "must be a number"),
            ({"name": "silence", "heartbeats": 1}, "heartbeats = 1 must be true or false"),
            ({"name": "equivocation", "strength": -1.0}, "strength = -1.0 must be greater than 0"),
        ],
    )
    def test_options_are_checked_before_anything_starts(self, attack: dict[str, Any], problem: str) -> None:
        with pytest.raises(ConfigError, match=problem):
            self.plan(**attack).check()

    def test_forgers_need_updates_that_travel_with_their_message(self) -> None:
        check_reach(self.plan(name="nan"), 139_960)
        with pytest.raises(ConfigError, match=r'attack "nan" forges .* 10000000 parameters .* choose a smaller model'):
            check_reach(self.plan(name="nan"), 10_000_000)
        check_reach(self.plan(name="silence"), 10_000_000)
        check_reach(self.plan(name="sign-flip"), 10_000_000)
