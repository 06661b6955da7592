"""What one neighbour may cost another: time that is waited for it, and messages that are opened for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import Lab, raw_body

from gossipfl.gossip.allowance import MESSAGES, MESSAGES_PER_S, Allowance
from gossipfl.gossip.post import MUTE_FIRST_S, OFFENCES_FORGIVEN
from gossipfl.messages import Kind, Status


def mute(lab: Lab, node: int, offender: int) -> None:
    for _ in range(OFFENCES_FORGIVEN):
        lab.receive(node, lab.forge(offender, Kind.STATUS, raw_body({"r": -1})))
    assert lab.cores[node].exchange.post.is_muted(lab.ids[offender], lab.now)


def claim(lab: Lab, node: int, neighbour: int, version: int) -> None:
    """Let ``neighbour`` say to ``node`` that it has published up to ``version``."""
    own = lab.cores[neighbour].exchange.own
    digest = own.digest if version == own.version else bytes(32)
    lab.receive(node, lab.forge(neighbour, Kind.STATUS, Status(version - 1, version, digest)))


class TestMuted:
    def test_who_is_muted_is_not_waited_for(self) -> None:
        lab = Lab(3).start()
        mute(lab, 0, 2)
        lab.publish(0)
        lab.publish(1)
        lab.settle()
        assert lab.cores[0].ready(lab.now)
        assert lab.mix(0).missed == (lab.ids[2],)

    def test_a_round_that_waits_goes_on_once_the_last_one_is_muted(self) -> None:
        lab = Lab(2).start()
        lab.publish(0)
        assert not lab.cores[0].ready(lab.now)
        mute(lab, 0, 1)
        assert lab.cores[0].ready(lab.now)

    def test_when_the_mute_is_over_it_is_waited_for_again(self) -> None:
        lab = Lab(2).start()
        mute(lab, 0, 1)
        lab.now += MUTE_FIRST_S
        lab.publish(0)
        assert not lab.cores[0].ready(lab.now)

    def test_what_it_sent_before_still_counts(self) -> None:
        lab = Lab(2).start()
        lab.publish(1, torch.ones(64))
        lab.settle()
        lab.publish(0)
        mute(lab, 0, 1)
        assert lab.mix(0).missed == ()

    def test_an_asynchronous_node_spends_no_patience_on_it(self) -> None:
        lab = Lab(2, mode="async", window_bytes=1, patience_s=5.0).start()
        for _ in range(2):
            lab.publish(0)
            lab.cores[0].skip()
        lab.wire.clear()
        assert not lab.cores[0].may_publish(lab.now)
        mute(lab, 0, 1)
        assert lab.cores[0].may_publish(lab.now)

    def test_nobody_stays_for_it_at_the_end(self) -> None:
        lab = Lab(2).start()
        lab.publish(0)
        lab.wire.clear()
        assert not lab.cores[0].settled(lab.now, together=True)
        mute(lab, 0, 1)
        assert lab.cores[0].settled(lab.now, together=True)
        assert not lab.cores[0].settled(lab.now + MUTE_FIRST_S, together=True)


class TestOwing:
    """A neighbour that tells every second what it has published, and never sends it."""

    LIMIT_S = 5.0

    def wait_in_vain(self, lab: Lab) -> float:
        """Let node 0 publish and wait, and node 1 go on saying that it has published; returns how long that took."""
        began = lab.now
        lab.publish(0)
        while not lab.cores[0].ready(lab.now):
            lab.wait(0.25, delivering=False)
            lab.wire.clear()
            claim(lab, 0, 1, 1)
        lab.mix(0)
        return lab.now - began

    def test_it_is_waited_for_once_and_not_for_a_whole_deadline(self) -> None:
        lab = Lab(2, deadline_s=60.0, deadline_min_s=self.LIMIT_S).start()
        claim(lab, 0, 1, 1)
        waits = [self.wait_in_vain(lab) for _ in range(4)]
        assert waits == pytest.approx([self.LIMIT_S, 0.0, 0.0, 0.0], abs=0.3)
        assert len(lab.events(0, "miss")) == 4

    def test_the_core_wakes_up_to_go_on_without_it(self) -> None:
        lab = Lab(2, deadline_s=60.0, deadline_min_s=self.LIMIT_S, heartbeat_s=1e6, liveness_s=1e6).start()
        claim(lab, 0, 1, 1)
        began = lab.now
        lab.publish(0)
        core = lab.cores[0]
        while not core.ready(lab.now):
            assert core.next_wakeup() > lab.now  # or the shell would turn in circles
            lab.now = core.next_wakeup()
            lab.perform(0, core.tick(lab.now))
        assert lab.now - began == pytest.approx(self.LIMIT_S)
        assert core.next_wakeup() > lab.now

    def test_one_that_delivers_after_all_is_waited_for_again(self) -> None:
        lab = Lab(2, deadline_s=60.0, deadline_min_s=self.LIMIT_S).start()
        lab.publish(1, torch.ones(64))
        lab.take(Kind.DELTA)
        claim(lab, 0, 1, 1)
        self.wait_in_vain(lab)
        assert lab.seen_by(0, 1).owing
        lab.wait(6.0)
        assert lab.agree(0, 1)
        assert not lab.seen_by(0, 1).owing
        lab.publish(0)
        assert not lab.cores[0].ready(lab.now)

    def test_one_that_is_only_slow_owes_nothing(self) -> None:
        lab = Lab(2, deadline_s=60.0, deadline_min_s=self.LIMIT_S).start()
        lab.publish(0)
        lab.wait(3 * self.LIMIT_S)
        assert not lab.seen_by(0, 1).owing
        assert not lab.cores[0].ready(lab.now)

    def test_a_new_start_clears_the_debt(self) -> None:
        lab = Lab(2, deadline_min_s=self.LIMIT_S).start()
        claim(lab, 0, 1, 1)
        lab.wait(self.LIMIT_S + 1, delivering=False)
        assert lab.seen_by(0, 1).owing
        lab.wire.clear()
        lab.restart(1)
        lab.wait(1.0)
        assert not lab.seen_by(0, 1).owing
        assert lab.agree(0, 1)


class TestNothingSaid:
    def test_who_has_never_published_has_no_vote(self) -> None:
        """Its replica is the initial model, and that would draw an asynchronous node back to where it began."""
        lab = Lab(2, mode="async").start()
        lab.publish(0, torch.ones(64))
        mixing = lab.mix(0)
        assert (mixing.verdicts, mixing.missed) == ({}, ())
        assert torch.equal(lab.models[0], torch.ones(64))
        lab.publish(1, torch.zeros(64))
        lab.settle()
        lab.publish(0)
        assert list(lab.mix(0).verdicts) == [lab.ids[1]]


class TestClaims:
    def test_endless_claims_are_no_endless_progress(self) -> None:
        lab = Lab(2).start()
        core, rounds = lab.cores[0], 20
        seen = []
        for version in range(1, 100, 7):
            claim(lab, 0, 1, version)
            seen.append(core.progress(rounds))
        assert seen == [1, 8, 15, *[rounds] * 12]
        assert core.progress(None) == 99


class TestAllowance:
    def flood(self, lab: Lab, messages: int) -> None:
        own = lab.cores[1].exchange.own
        for _ in range(messages):
            lab.receive(0, lab.forge(1, Kind.STATUS, Status(0, 0, own.digest)))

    def test_who_says_too_much_is_muted(self) -> None:
        lab = Lab(2).start()
        spent = MESSAGES - lab.cores[0].exchange.post.channels[lab.ids[1]].allowance.left
        self.flood(lab, MESSAGES - int(spent))
        assert lab.events(0, "offence") == []
        self.flood(lab, OFFENCES_FORGIVEN + 5)
        assert lab.dropped(0) == {"offence-flood": OFFENCES_FORGIVEN, "muted": 5}
        assert lab.events(0, "peer_muted")[0].fields == {"seconds": MUTE_FIRST_S, "reason": "flood"}

    def test_each_round_begins_with_a_full_allowance(self) -> None:
        lab = Lab(2, mode="async").start()
        for _ in range(3):
            self.flood(lab, MESSAGES - 10)
            lab.publish(0)
            lab.mix(0)
        assert lab.events(0, "offence") == []

    def test_nobody_can_spend_anothers(self) -> None:
        """What its key has not signed does not count, nor what was counted before."""
        lab = Lab(2).start()
        allowance = lab.cores[0].exchange.post.channels[lab.ids[1]].allowance
        genuine = lab.forge(1, Kind.STATUS, Status(0, 0, bytes(32)))
        lab.receive(0, genuine)
        left = allowance.left
        for _ in range(10):
            lab.receive(0, genuine)
            forged = bytearray(lab.forge(1, Kind.STATUS, Status(0, 0, bytes(32))))
            forged[-100] ^= 1
            lab.receive(0, bytes(forged))
        assert allowance.left == left

    @settings(max_examples=30)
    @given(st.lists(st.floats(0.0, 0.5), min_size=1, max_size=400))
    def test_never_more_than_the_rate_allows(self, pauses: list[float]) -> None:
        """Within any time T at most MESSAGES + MESSAGES_PER_S T are let through, asking ten times at each moment."""
        allowance, now, granted = Allowance(), 100.0, 0
        for pause in pauses:
            now += pause
            granted += sum(allowance.spend(now) for _ in range(10))
            assert granted <= MESSAGES + MESSAGES_PER_S * (now - 100.0) + 1e-6

    def test_time_brings_it_back(self) -> None:
        allowance = Allowance()
        assert all(allowance.spend(0.0) for _ in range(MESSAGES))
        assert not allowance.spend(0.0)
        assert not allowance.spend(0.5 / MESSAGES_PER_S)
        assert allowance.spend(1.0 / MESSAGES_PER_S)
        assert sum(allowance.spend(1e6) for _ in range(2 * MESSAGES)) == MESSAGES
