"""Any course of events, drawn by hypothesis: cores over a wire that loses, repeats, reorders, alters and parts.

After each step a follower either knows nothing of a neighbour or holds, bit for bit, what that one had at the version
that the follower names. In the end, once the wire is sound again, everyone holds what everyone has published.
"""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lab import Lab, Letter, says_the_same

from gossipfl.digest import vector_digest
from gossipfl.gossip import Phase
from gossipfl.gossip.chunks import OUTBOX_BODIES, OUTBOX_MESSAGES
from gossipfl.gossip.post import ASSEMBLY_BYTES_MIN

SIZE = 200
SMALL_CHUNK = 512
"""With it, a float32 update has three chunks and an int8 one travels inline."""
LETTERS = 300
DEADLINE_S = 20.0
EDGES = {2: [(0, 1)], 3: [(0, 1), (1, 2)], 4: [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)]}

picks = st.integers(0, 2**16)


class GossipMachine(RuleBasedStateMachine):
    """Two to four nodes; every rule is one thing that may happen at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        for module in ("messages.frames", "gossip.chunks"):
            self.patches.setattr(f"gossipfl.{module}.CHUNK_BYTES", SMALL_CHUNK)

    @initialize(
        nodes=st.sampled_from(sorted(EDGES)),
        mode=st.sampled_from(["sync", "async"]),
        codec=st.sampled_from(["float32", "int8", "float16+zstd"]),
        seed=picks,
    )
    def begin(self, nodes: int, mode: str, codec: str, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.lab = Lab(
            nodes,
            SIZE,
            edges=EDGES[nodes],
            initial=torch.randn(SIZE, generator=self.generator),
            codec=codec,
            mode=mode,
            deadline_s=DEADLINE_S,
        )
        self.parted: set[int] = set()
        self.published: dict[tuple[int, int, int], bytes] = {}
        self.newest: dict[tuple[int, int], tuple[int, int]] = {}
        for node in range(nodes):
            self.note(node)
        self.lab.start(joined=False)

    def note(self, node: int) -> None:
        own = self.lab.cores[node].exchange.own
        self.published[node, self.lab._incarnations[node], own.version] = vector_digest(own.vector)

    def pick(self, number: int) -> int:
        return number % len(self.lab.cores)

    def take(self, number: int, *, keep: bool = False) -> Letter | None:
        """Take a letter off the wire; None where a partition swallows it."""
        wire = self.lab.wire
        letter = wire[number % len(wire)] if keep else wire.pop(number % len(wire))
        return letter if (letter.sender in self.parted) == (letter.recipient in self.parted) else None

    # ------------------------------------------------------------------------------------------ the wire

    @precondition(lambda self: self.lab.wire)
    @rule(number=picks, repeat=st.booleans())
    def deliver_any(self, number: int, repeat: bool) -> None:
        if letter := self.take(number, keep=repeat):
            self.lab.deliver(letter)

    @precondition(lambda self: self.lab.wire)
    @rule()
    def deliver_all(self) -> None:
        for _ in range(len(self.lab.wire)):
            if letter := self.take(0):
                self.lab.deliver(letter)

    @rule(seed=picks, steps=st.integers(1, 12), pause_s=st.sampled_from([0.0, 0.2, 1.0]))
    def storm(self, seed: int, steps: int, pause_s: float) -> None:
        """Some time with a terrible wire: what is on it is shuffled, lost, repeated or late."""
        draw = random.Random(seed)
        for _ in range(steps):
            letters, self.lab.wire = self.lab.wire, []
            draw.shuffle(letters)
            for letter in letters:
                fate = draw.choices(["deliver", "lose", "repeat", "delay"], weights=[6, 2, 1, 2])[0]
                if fate in {"repeat", "delay"}:
                    self.lab.wire.append(letter)
                if fate in {"deliver", "repeat"} and (letter.sender in self.parted) == (
                    letter.recipient in self.parted
                ):
                    self.lab.deliver(letter)
            self.work(draw.randrange(2**16), 1e-2)
            self.lab.wait(pause_s, delivering=False, step_s=0.1)
            self.replicas_are_true()
            self.memory_is_bounded()

    @precondition(lambda self: self.lab.wire)
    @rule(number=picks)
    def lose(self, number: int) -> None:
        self.take(number)

    @precondition(lambda self: self.lab.wire)
    @rule(number=picks, place=picks, value=st.integers(1, 255), cut=st.booleans())
    def alter(self, number: int, place: int, value: int, cut: bool) -> None:
        if letter := self.take(number, keep=True):
            frame = bytearray(letter.frame)
            frame[place % len(frame)] ^= value
            if cut:
                del frame[place % len(frame) :]
            if says_the_same(bytes(frame), letter.frame):
                return
            before = self.beliefs(letter.recipient)
            assert self.lab.receive(letter.recipient, bytes(frame)) == []
            assert self.beliefs(letter.recipient) == before

    def beliefs(self, node: int) -> list[tuple[object, ...]]:
        core = self.lab.cores[node]
        return [
            (other.version, other.claimed, other.acked, other.incarnation, other.joined, other.left, *marks)
            for other, *marks in zip(core.followed.values(), core.replay_marks().items(), strict=False)
        ]

    @rule(side=st.sets(st.integers(0, 3), max_size=2))
    def part(self, side: set[int]) -> None:
        self.parted = side

    # ------------------------------------------------------------------------------------------ the nodes

    @rule(duration_s=st.sampled_from([0.01, 0.3, 1.0, 5.0, 30.0]))
    def pass_time(self, duration_s: float) -> None:
        self.lab.wait(duration_s, delivering=False, step_s=duration_s / 2)

    @rule(number=picks, scale=st.sampled_from([0.0, 1e-3, 1.0]))
    def work(self, number: int, scale: float) -> None:
        """Train and publish, or mix, whichever is next."""
        node = self.pick(number)
        core = self.lab.cores[node]
        if core.phase is Phase.TRAINING:
            self.lab.models[node].add_(torch.randn(SIZE, generator=self.generator), alpha=scale)
            if self.lab.settings.mode == "async" and not core.may_publish(self.lab.now):
                core.skip()
                return
            self.lab.publish(node)
            self.note(node)
        elif core.ready(self.lab.now):
            self.lab.mix(node)

    @rule(number=picks)
    def restart(self, number: int) -> None:
        node = self.pick(number)
        marks = self.lab.cores[node].replay_marks()
        self.lab.restart(node)
        self.lab.cores[node].restore_replay_marks(marks)
        self.note(node)
        for key in [key for key in self.newest if key[0] == node]:
            del self.newest[key]

    @rule(number=picks, up=st.booleans())
    def link(self, number: int, up: bool) -> None:
        node = self.pick(number)
        self.lab.perform(node, self.lab.cores[node].link(up, self.lab.now))

    # ------------------------------------------------------------------------------------------ what always holds

    @invariant()
    def replicas_are_true(self) -> None:
        for node, core in enumerate(self.lab.cores):
            for peer, other in core.followed.items():
                if other.vector is not None:
                    owner = self.lab.index[peer]
                    life = max(other.incarnation, 1)
                    assert vector_digest(other.vector) == self.published[owner, life, other.version]
                    before = self.newest.get((node, owner), (-1, -1))
                    assert (life, other.version) >= before
                    self.newest[node, owner] = (life, other.version)

    @invariant()
    def memory_is_bounded(self) -> None:
        self.lab.wire = self.lab.wire[-LETTERS:]
        for core in self.lab.cores:
            assert all(len(other.waiting) <= core.exchange.credit + 2 for other in core.followed.values())
            post = core.exchange.post
            bodies = post._outbox._bodies.values()
            assert len(bodies) <= OUTBOX_MESSAGES
            assert len({id(kept.body) for kept in bodies}) <= OUTBOX_BODIES
            for channel in post.channels.values():
                assert sum(len(a.body) for a in channel.assemblies.values()) <= ASSEMBLY_BYTES_MIN
                assert channel.mutes == 0  # everybody is honest here

    @invariant()
    def models_are_finite(self) -> None:
        assert all(bool(torch.isfinite(model).all()) for model in self.lab.models)

    # ------------------------------------------------------------------------------------------ the end

    def teardown(self) -> None:
        try:
            if hasattr(self, "lab"):
                self.mend()
        finally:
            self.patches.undo()

    def mend(self) -> None:
        """With a sound wire every round ends, and every replica becomes its owner's."""
        lab = self.lab
        self.parted = set()
        for node, core in enumerate(lab.cores):
            lab.perform(node, core.link(True, lab.now))
        waiting = [node for node, core in enumerate(lab.cores) if core.phase is Phase.WAITING]
        lab.wait(DEADLINE_S + 0.1, step_s=0.1)
        for node in waiting:
            assert lab.cores[node].ready(lab.now)
            lab.mix(node)
        for node in range(len(lab.cores)):
            lab.publish(node)
            self.note(node)
            lab.perform(node, lab.cores[node].drain(lab.now))
        lab.wait(90.0, step_s=0.25)
        self.replicas_are_true()
        for node, core in enumerate(lab.cores):
            assert core.settled(), f"node {node} still waits"
            for peer in core.followed:
                assert lab.agree(node, lab.index[peer]), f"node {node} does not hold {lab.index[peer]}'s replica"


def test_any_course_of_events() -> None:
    limits = settings(
        max_examples=30,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(GossipMachine, settings=limits)  # type: ignore[no-untyped-call]
