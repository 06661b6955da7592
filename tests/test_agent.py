"""The agent: how one node lives, in virtual time, with a learner that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from lab import Lab
from torch import Tensor

from gossipfl.agent import Agent, AgentOptions, AgentResult, Guard, Liar, RoundReport
from gossipfl.clock import run_virtual
from gossipfl.compute import ThreadCompute, VirtualCompute
from gossipfl.digest import vector_digest
from gossipfl.errors import ConfigError, TransportClosed
from gossipfl.gossip import Report, Send
from gossipfl.messages import Kind, Status
from gossipfl.outgoing import QUEUED_FRAMES, Outgoing
from gossipfl.robust.base import AttackView
from gossipfl.tasks.base import Evaluation, TrainReport
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport
from gossipfl.vector import Entry, Layout

SIZE = 32
OPTIONS = AgentOptions(local_steps=1, rounds=5, evaluates=lambda _: False, leave_together=True)


class Drifter:
    """A learner whose step adds ``drift``; at the calls in ``diverges`` training makes it NaN."""

    def __init__(self, layout: Layout, drift: float, diverges: Sequence[int] = ()) -> None:
        self.layout = layout
        self.vector = torch.zeros(layout.size)
        self.calls = 0
        self._drift = drift
        self._diverges = diverges

    def train(self, steps: int) -> TrainReport:
        self.vector.add_(self._drift * steps)
        if self.calls in self._diverges:
            self.vector[3] = float("nan")
        self.calls += 1
        return TrainReport(0.0, steps, steps)

    def evaluate(self) -> Evaluation:
        return Evaluation(float(self.vector.mean()))


@dataclass
class Witness:
    """Keeps what an agent says."""

    rounds: list[RoundReport] = field(default_factory=list)
    events: list[tuple[float, Report]] = field(default_factory=list)
    on_report: Callable[[Report], None] = lambda _: None

    def on_round(self, report: RoundReport) -> None:
        self.rounds.append(report)

    def on_event(self, t_s: float, report: Report) -> None:
        self.events.append((t_s, report))
        self.on_report(report)

    def named(self, event: str) -> list[Report]:
        return [report for _, report in self.events if report.event == event]


class Team:
    """Agents around the cores of a lab, on one memory network."""

    def __init__(
        self,
        nodes: int = 3,
        size: int = SIZE,
        options: AgentOptions = OPTIONS,
        *,
        liars: dict[int, Liar] | None = None,
        diverges: dict[int, Sequence[int]] | None = None,
        threads: bool = False,
        **settings: object,
    ) -> None:
        layout = Layout((Entry("w", (size,)),))
        self.lab = Lab(nodes, size, mode=options.mode, layouts=dict.fromkeys(range(nodes), layout.digest), **settings)
        self.network = MemoryNetwork()
        self.witnesses = [Witness() for _ in range(nodes)]
        self.learners = [Drifter(layout, float(node), (diverges or {}).get(node, ())) for node in range(nodes)]
        self.transports = [
            MemoryTransport(self.network, peer, [other for other in self.lab.ids if other != peer])
            for peer in self.lab.ids
        ]
        self.agents = [
            Agent(
                core,
                self.learners[node],
                self.transports[node],
                ThreadCompute(f"n{node}") if threads else VirtualCompute(lambda: 0.1),
                options,
                self.witnesses[node],
                (liars or {}).get(node),
            )
            for node, core in enumerate(self.lab.cores)
        ]

    async def run(self, *nodes: int) -> list[AgentResult]:
        chosen = nodes or range(len(self.agents))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self.agents[node].run()) for node in chosen]
        return [task.result() for task in running]


class Judging(Drifter):
    """One whose loss is the distance of the mean from ``best``."""

    best = 0.0

    def losses(self, vectors: Sequence[Tensor]) -> list[float]:
        return [abs(float(vector.mean()) - self.best) for vector in vectors]


class TestGuard:
    def run(self, worse: float) -> tuple[Team, list[Report]]:
        team = Team(2, options=replace(OPTIONS, rounds=3, guard=None))
        for node, agent in enumerate(team.agents):
            learner = Judging(team.learners[node].layout, float(10 * node))
            team.learners[node] = agent.learner = learner
            learner.best = 0.5
            agent._options = replace(OPTIONS, rounds=3, guard=Guard(worse))
        run_virtual(team.run())
        return team, team.witnesses[0].named("mixing_refused")

    def test_a_step_that_is_clearly_worse_is_rolled_back(self) -> None:
        team, refused = self.run(0.5)
        assert len(refused) == 3
        assert refused[0].fields == {"round": 0, "loss": 4.5, "own_loss": 0.5}
        torch.testing.assert_close(team.learners[0].vector, torch.zeros(SIZE))

    def test_others_are_taken(self) -> None:
        team, refused = self.run(100.0)
        assert refused == []
        assert float(team.learners[0].vector.mean()) > 1.0

    def test_a_learner_that_cannot_judge_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="the guard judges models by their loss"):
            Team(options=replace(OPTIONS, guard=Guard()))


class TestLife:
    def test_all_rounds_are_done_and_everything_is_closed(self) -> None:
        team = Team()
        results = run_virtual(team.run())
        assert [result.rounds for result in results] == [5, 5, 5]
        for result, learner, witness in zip(results, team.learners, team.witnesses, strict=True):
            assert result.digest == vector_digest(learner.vector)
            assert [report.round for report in witness.rounds] == list(range(5))
            assert result.dropped == {}
        assert all(team.network.find(peer) is None for peer in team.lab.ids)

    def test_it_is_measured_after_mixing_in_the_rounds_that_say_so(self) -> None:
        team = Team(options=replace(OPTIONS, evaluates=lambda round_: round_ in {0, 4}))
        results = run_virtual(team.run())
        assert [report.evaluation for report in team.witnesses[0].rounds] == [
            Evaluation(pytest.approx(1.0)),
            None,
            None,
            None,
            Evaluation(pytest.approx(5.0)),
        ]
        assert results[0].evaluation == team.witnesses[0].rounds[4].evaluation

    def test_a_personalised_model_is_measured_and_not_kept(self) -> None:
        team = Team(options=replace(OPTIONS, evaluates=lambda _: True, personalise_steps=3))
        results = run_virtual(team.run())
        assert results[2].evaluation == Evaluation(pytest.approx(5.0))
        assert results[2].personalised == Evaluation(pytest.approx(5.0 + 3 * 2.0))
        assert torch.allclose(team.learners[2].vector, torch.full((SIZE,), 5.0))

    def test_the_mean_moves_as_the_equation_says(self) -> None:
        """With equal weights on a complete graph all agree after a round, at the mean of the drifts."""
        team = Team()
        run_virtual(team.run())
        for learner in team.learners:
            assert torch.allclose(learner.vector, torch.full((SIZE,), 5.0))

    def test_a_round_report_counts_bytes_and_time(self) -> None:
        team = Team()
        run_virtual(team.run())
        report = team.witnesses[0].rounds[1]
        assert report.train_s == 0.1
        assert report.round_s == pytest.approx(0.1)
        assert report.bytes_sent > 2 * 4 * SIZE
        assert report.bytes_received > 2 * 4 * SIZE

    def test_frames_after_the_end_meet_a_closed_transport(self) -> None:
        async def scene() -> None:
            team = Team()
            await team.run()
            with pytest.raises(TransportClosed):
                await team.transports[0].send([team.lab.ids[1]], b"late")

        run_virtual(scene())

    def test_rounds_can_be_held_to_a_pace(self) -> None:
        team = Team(options=replace(OPTIONS, round_every_s=60.0))
        run_virtual(team.run())
        times = [report.t_s for report in team.witnesses[0].rounds]
        assert times == pytest.approx([0.1 + 60.0 * n for n in range(5)])


class TestStop:
    def stop_at(self, team: Team, node: int, at_s: float) -> list[AgentResult]:
        async def scene() -> list[AgentResult]:
            asyncio.get_running_loop().call_later(at_s, team.agents[node].stop)
            return await team.run()

        return run_virtual(scene())

    def test_the_round_is_finished_and_the_neighbours_are_told(self) -> None:
        team = Team(options=replace(OPTIONS, rounds=50, leave_together=False))
        results = self.stop_at(team, 0, 1.05)
        assert 8 <= results[0].rounds <= 12
        assert [result.rounds for result in results[1:]] == [50, 50]
        for witness in team.witnesses[1:]:
            (left,) = [report for report in witness.named("neighbour_left") if report.peer == team.lab.ids[0]]
            assert left.fields == {"reason": "done"}
            assert witness.named("neighbour_lost") == []

    def test_everybody_holds_its_last_update(self) -> None:
        team = Team(options=replace(OPTIONS, rounds=50, leave_together=False))
        self.stop_at(team, 0, 1.05)
        own = team.lab.cores[0].exchange.own
        for core in team.lab.cores[1:]:
            held = core.followed[team.lab.ids[0]]
            assert held.version == own.version
            assert held.vector is not None
            assert torch.equal(held.vector, own.vector)

    def test_an_agent_that_would_run_for_ever_ends_when_told(self) -> None:
        team = Team(nodes=2, options=replace(OPTIONS, rounds=None))

        async def scene() -> list[AgentResult]:
            for agent in team.agents:
                asyncio.get_running_loop().call_later(3.0, agent.stop)
            return await team.run()

        results = run_virtual(scene())
        assert all(25 <= result.rounds <= 31 for result in results)

    def test_stopping_while_joining_is_no_time_out(self) -> None:
        team = Team()

        async def scene() -> float:
            asyncio.get_running_loop().call_later(2.0, team.agents[0].stop)
            await team.run(0)
            return asyncio.get_running_loop().time()

        assert run_virtual(scene()) == pytest.approx(2.0)
        assert team.witnesses[0].named("join_timeout") == []

    def test_a_neighbour_that_only_claims_progress_cannot_hold_up_a_stop(self) -> None:
        """One that claims a newer version every second has all the appearance of somebody at work."""
        team = Team(nodes=2, options=replace(OPTIONS, rounds=None, drain_s=5.0))

        async def claim() -> None:
            core = team.lab.cores[1]
            post = core.exchange.post
            await team.transports[1].start()
            for effect in core.start(0.0):
                await team.transports[1].send(effect.recipients, effect.frame)  # type: ignore[union-attr]
            for version in range(1, 100):
                status = Status(version, version, bytes(32))
                for effect in post.send(Kind.STATUS, status, [team.lab.ids[0]]):
                    await team.transports[1].send(effect.recipients, effect.frame)  # type: ignore[union-attr]
                await asyncio.sleep(1.0)

        async def scene() -> float:
            liar = asyncio.create_task(claim())
            asyncio.get_running_loop().call_later(10.0, team.agents[0].stop)
            await team.run(0)
            liar.cancel()
            return asyncio.get_running_loop().time()

        assert run_virtual(scene()) <= 10.0 + 5.0 + 0.2

    def test_a_stop_while_draining_waits_for_no_one_else_to_finish(self) -> None:
        team = Team(nodes=2, options=replace(OPTIONS, rounds=1, drain_s=30.0))
        team.agents[1]._options = replace(OPTIONS, rounds=100)

        async def scene() -> float:
            loop = asyncio.get_running_loop()
            ended: list[float] = []

            async def first() -> None:
                await team.agents[0].run()
                ended.append(loop.time())

            loop.call_later(4.0, team.agents[0].stop)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(first())
                tasks.create_task(team.agents[1].run())
            return ended[0]

        assert run_virtual(scene()) < 6.0


class TestTrouble:
    def test_a_model_that_diverges_is_reported_and_goes_back_to_what_was_published(self) -> None:
        team = Team(diverges={1: [2]})
        run_virtual(team.run())
        (report,) = team.witnesses[1].named("divergence")
        assert report.fields == {"round": 2}
        assert all(bool(torch.isfinite(learner.vector).all()) for learner in team.learners)
        assert all(witness.rounds[-1].round == 4 for witness in team.witnesses)
        assert team.witnesses[0].named("offence") == []

    def test_an_absent_neighbour_is_named_and_work_begins_without_it(self) -> None:
        team = Team(options=replace(OPTIONS, join_timeout_s=7.0))
        results = run_virtual(team.run(0, 1))
        for node in (0, 1):
            (report,) = team.witnesses[node].named("join_timeout")
            assert report.fields == {"silent": [team.lab.ids[2]]}
            assert team.witnesses[node].rounds[0].t_s == pytest.approx(7.1)
        assert [result.rounds for result in results] == [5, 5]

    def test_one_that_comes_late_is_taken_in(self) -> None:
        team = Team(options=replace(OPTIONS, rounds=40, join_timeout_s=1.0))

        async def late() -> None:
            await asyncio.sleep(2.0)
            await team.agents[2].run()

        async def scene() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(team.agents[0].run())
                tasks.create_task(team.agents[1].run())
                tasks.create_task(late())

        run_virtual(scene())
        mixing = team.witnesses[0].rounds[-1].mixing
        assert mixing is not None
        assert team.lab.ids[2] in mixing.verdicts

    def test_an_error_of_the_learner_ends_the_agent_and_closes_its_transport(self) -> None:
        team = Team(nodes=2)

        def fail(steps: int) -> TrainReport:
            raise RuntimeError("the disk is gone")

        team.learners[0].train = fail  # type: ignore[method-assign]
        with pytest.raises(ExceptionGroup) as raised:
            run_virtual(team.agents[0].run())
        assert raised.group_contains(RuntimeError, match="the disk is gone")
        assert team.network.find(team.lab.ids[0]) is None


class TestOffloading:
    def test_a_large_model_goes_the_same_way_in_the_other_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options = replace(OPTIONS, rounds=6)
        inline = Team(options=options)
        expected = run_virtual(inline.run())
        monkeypatch.setattr("gossipfl.agent.shell.OFFLOAD_PARAMETERS", SIZE)
        offloaded = Team(options=options, threads=True)
        results = asyncio.run(offloaded.run())
        assert [result.digest for result in results] == [result.digest for result in expected]
        # The first to start greets neighbours that are not on the network yet; nothing else may be lost.
        assert {reason for result in results for reason in result.dropped} <= {"transport-absent"}

    def test_no_two_messages_share_a_sequence_number(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Link events, ticks and frames all make a core speak: with a second thread they must take turns."""
        monkeypatch.setattr("gossipfl.agent.shell.OFFLOAD_PARAMETERS", SIZE)
        team = Team(options=replace(OPTIONS, rounds=30, mode="async"), threads=True, heartbeat_s=0.001, ack_delay_s=0.0)
        results = asyncio.run(team.run())
        assert all(result.dropped.get("replay", 0) == 0 for result in results)


@dataclass
class Recorder:
    """An attack that notes what it sees, and publishes a constant."""

    publishes_own: bool = False
    omniscient: bool = False
    name: str = "recorder"
    views: list[tuple[int, Tensor, list[Tensor]]] = field(default_factory=list)

    def lie(self, view: AttackView) -> Tensor:
        self.views.append((view.round, view.own.clone(), [replica.clone() for replica in view.replicas]))
        return torch.full_like(view.own, -7.0)


class TestByzantine:
    def test_it_sees_its_trained_model_and_what_was_public_before_the_round(self) -> None:
        attack = Recorder()
        team = Team(liars={1: Liar(attack, torch.Generator())})
        run_virtual(team.run())
        assert [round_ for round_, _, _ in attack.views] == list(range(5))
        _, own, replicas = attack.views[0]
        assert torch.equal(own, torch.full((SIZE,), 1.0))
        assert [float(replica[0]) for replica in replicas] == [0.0, 0.0]
        # Round 0: the honest nodes publish 0 and 2; each mixes the mean of 0, 2 and the lie.
        _, own, replicas = attack.views[1]
        assert [float(replica[0]) for replica in replicas] == [0.0, 2.0]
        assert float(own[0]) == pytest.approx((0 + 1 + 2) / 3 + 1)

    def test_the_others_hold_the_lie_and_its_own_model_stays_its_own(self) -> None:
        team = Team(liars={1: Liar(Recorder(), torch.Generator())})
        run_virtual(team.run())
        for node in (0, 2):
            held = team.lab.cores[node].followed[team.lab.ids[1]].vector
            assert held is not None
            assert torch.equal(held, torch.full((SIZE,), -7.0))
        assert float(team.learners[1].vector[0]) > -3.0

    def test_an_attack_on_the_data_publishes_honestly(self) -> None:
        attack = Recorder(publishes_own=True)
        team = Team(liars={1: Liar(attack, torch.Generator())})
        run_virtual(team.run())
        assert attack.views == []
        assert torch.allclose(team.learners[0].vector, torch.full((SIZE,), 5.0))


class TestOutgoing:
    def test_bulk_and_urgent_frames_do_not_wait_for_each_other_and_both_are_bounded(self) -> None:
        async def scene() -> tuple[int, bool]:
            outgoing = Outgoing()
            for number in range(1000):
                outgoing.put(Send(("p",), number.to_bytes(2, "big"), bulk=number % 2 == 1))
            return outgoing.dropped, outgoing.idle

        dropped, idle = run_virtual(scene())
        assert dropped == 1000 - sum(QUEUED_FRAMES.values())
        assert not idle
