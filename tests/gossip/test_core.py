"""Rounds of the protocol core, seen from one node at a time."""

from __future__ import annotations

import pytest
import torch
from lab import Lab

from gossipfl.codec import MAX_MAGNITUDE
from gossipfl.errors import ConfigError
from gossipfl.gossip import Party, Phase
from gossipfl.gossip.rounds import REMEMBERED_ROUNDS
from gossipfl.messages import Bye, Kind, Status


def finish_round(lab: Lab, *nodes: int) -> None:
    for node in nodes:
        lab.publish(node)
    lab.settle()
    for node in nodes:
        assert lab.cores[node].ready(lab.now)
        lab.mix(node)


class TestSynchronousRounds:
    def test_a_round_waits_for_every_neighbour_and_then_means(self) -> None:
        lab = Lab(3).start()
        for node in range(3):
            lab.publish(node, torch.full((64,), float(node)))
            assert not lab.cores[node].ready(lab.now)
        lab.settle()
        for node in range(3):
            assert lab.cores[node].ready(lab.now)
            assert set(lab.mix(node).staleness.values()) == {0}
            assert torch.allclose(lab.models[node], torch.ones(64))

    def test_a_neighbours_future_is_never_mixed(self) -> None:
        lab = Lab(3, edges=[(0, 1), (1, 2)]).start()
        lab.publish(0, torch.full((64,), 3.0))
        lab.publish(1, torch.full((64,), 6.0))
        lab.settle()
        lab.mix(0)
        lab.publish(0, torch.full((64,), 300.0))  # node 0 is a round ahead of node 1, which waits for node 2
        lab.settle()
        assert lab.seen_by(1, 0).round == 0
        assert list(lab.seen_by(1, 0).waiting) == [2]
        lab.publish(2, torch.full((64,), 9.0))
        lab.settle()
        assert lab.cores[1].ready(lab.now)
        lab.mix(1)
        assert torch.allclose(lab.models[1], torch.full((64,), 6.0))

    def test_the_deadline_ends_a_round_and_the_missing_one_is_named(self) -> None:
        lab = Lab(2, deadline_s=60.0, liveness_s=1e6).start()
        lab.publish(0)
        lab.wire.clear()
        assert not lab.cores[0].ready(lab.now + 59.9)
        assert lab.cores[0].ready(lab.now + 60.0)
        lab.now += 60.0
        assert lab.mix(0).missed == (lab.ids[1],)
        assert lab.events(0, "miss")[0].peer == lab.ids[1]

    def test_one_that_never_publishes_is_waited_for_less_and_less(self) -> None:
        """It may be alive and well and say so every second: that must not cost a whole deadline each round."""
        lab = Lab(3, deadline_s=60.0, deadline_min_s=5.0).start()
        waits = []
        for _ in range(8):
            began = lab.now
            for node in (0, 1):
                lab.publish(node)
            while not lab.cores[0].ready(lab.now):
                lab.wait(0.5, step_s=0.5)
            waits.append(lab.now - began)
            while not lab.cores[1].ready(lab.now):
                lab.wait(0.5, step_s=0.5)
            for node in (0, 1):
                lab.mix(node)
        assert waits == pytest.approx([60, 30, 15, 7.5, 5, 5, 5, 5], abs=1.0)

    def test_one_that_publishes_again_is_waited_for_again(self) -> None:
        lab = Lab(2, deadline_s=60.0, liveness_s=1e6).start()
        for _ in range(3):
            lab.publish(0)
            lab.wire.clear()
            lab.now += 60.0
            lab.mix(0)
        assert lab.seen_by(0, 1).misses == 3
        for _ in range(4):
            lab.publish(1)
            lab.settle()
            lab.now += 61.0
            lab.mix(1)
        finish_round(lab, 0)
        assert lab.seen_by(0, 1).misses == 0

    def test_while_its_own_link_is_down_a_node_holds_its_round(self) -> None:
        lab = Lab(2, deadline_s=5.0, outage_s=30.0).start()
        core = lab.cores[0]
        lab.perform(0, core.link(False, lab.now))
        lab.publish(0)
        assert not core.ready(lab.now + 29.9)
        assert core.ready(lab.now + 30.0)
        lab.perform(0, core.link(True, lab.now + 1.0))
        assert core.ready(lab.now + 5.0)

    def test_a_node_without_neighbours_goes_on_alone(self) -> None:
        lab = Lab(1).start()
        lab.publish(0, torch.ones(64))
        assert lab.cores[0].ready(lab.now)
        assert lab.mix(0).verdicts == {}
        assert torch.equal(lab.models[0], torch.ones(64))


class TestLeaving:
    def test_a_good_bye_ends_the_waiting(self) -> None:
        lab = Lab(2).start()
        lab.publish(0)
        lab.settle()
        assert not lab.cores[0].ready(lab.now)
        lab.perform(1, lab.cores[1].stop(lab.now, "tea"))
        lab.settle()
        assert lab.events(0, "neighbour_left")[0].fields == {"reason": "tea"}
        assert lab.cores[0].ready(lab.now)
        assert lab.cores[1].phase is Phase.STOPPED

    def test_what_a_good_bye_has_overtaken_does_not_call_the_neighbour_back(self) -> None:
        lab = Lab(2).start()
        digest = lab.cores[1].exchange.own.digest
        status = lab.forge(1, Kind.STATUS, Status(0, 0, digest), sequence=600)
        lab.receive(0, lab.forge(1, Kind.BYE, Bye("done"), sequence=601))
        lab.receive(0, status)
        assert lab.seen_by(0, 1).left
        lab.receive(0, lab.forge(1, Kind.STATUS, Status(0, 0, digest), sequence=602))
        assert not lab.seen_by(0, 1).left

    def test_rounds_that_are_over_stay_over(self) -> None:
        lab = Lab(2).start()
        digest = lab.cores[1].exchange.own.digest
        late = lab.forge(1, Kind.STATUS, Status(0, 0, digest, done=False), sequence=600)
        lab.receive(0, lab.forge(1, Kind.STATUS, Status(0, 0, digest, done=True), sequence=601))
        lab.receive(0, late)
        assert lab.seen_by(0, 1).done

    def test_a_node_is_settled_when_all_hold_its_last_update_and_owe_it_none(self) -> None:
        lab = Lab(2).start()
        finish_round(lab, 0, 1)
        lab.publish(0)
        assert not lab.cores[0].settled()
        lab.settle()
        for node, core in enumerate(lab.cores):
            lab.perform(node, core.drain(lab.now))
        lab.settle()
        lab.wait(1.0)
        assert lab.cores[0].settled()
        assert lab.cores[0].settled(together=True)


class TestAsynchronousRounds:
    def test_nobody_is_waited_for(self) -> None:
        lab = Lab(2, mode="async").start()
        lab.publish(0)
        assert lab.cores[0].ready(lab.now)

    def test_an_old_replica_counts_less_and_at_last_nothing(self) -> None:
        lab = Lab(2, mode="async", max_staleness=3).start()
        lab.publish(1, torch.full((64,), 8.0))
        lab.settle()
        shares = []
        for _ in range(5):
            lab.publish(0, torch.zeros(64))
            mixing = lab.mix(0)
            shares += [verdict.weight for verdict in mixing.verdicts.values()]
        assert shares == pytest.approx([0.5 * (1 + stale) ** -0.5 for stale in range(4)])

    def test_remembered_publications_are_bounded_though_rounds_are_skipped(self) -> None:
        lab = Lab(2, mode="async", window_bytes=1 << 30).start()
        core = lab.cores[0]
        for number in range(500):
            if number % 3:
                core.publish(lab.models[0], lab.now)
                core.mix(lab.models[0], lab.now)
            else:
                core.skip()
        assert len(core._times.published) <= REMEMBERED_ROUNDS


class TestParty:
    def test_a_neighbour_must_be_a_member(self) -> None:
        lab, larger = Lab(2), Lab(3)
        with pytest.raises(ConfigError, match="not a member"):
            Party(lab.identities[0], lab.membership, 1, {larger.ids[2]: 0.5})

    def test_a_node_is_not_its_own_neighbour(self) -> None:
        lab = Lab(2)
        with pytest.raises(ConfigError, match="its own neighbour"):
            Party(lab.identities[0], lab.membership, 1, {lab.ids[0]: 0.5})


def test_a_replica_never_holds_what_no_keyframe_can_say() -> None:
    lab = Lab(2, size=4, mode="async").start()
    for step in (0.9, 1.8, -1.8, 1.8):  # as many times 2^27, in deltas that are each within the limit
        for _ in range(4):
            lab.publish(0, torch.tensor([step * MAX_MAGNITUDE, 1.0, 2.0, 3.0]))
            lab.settle()
            lab.mix(0)
            lab.now += 1.0
    assert lab.cores[0].exchange.own.vector[0] == MAX_MAGNITUDE
    assert lab.agree(1, 0)
    lab.restart(1)
    lab.settle()
    lab.wait(5.0)
    assert lab.agree(1, 0)
    assert not [reason for reason in lab.dropped(1) if reason.startswith("offence")]
