"""Conspiracies, changing graphs, and what rules are told: the parts of the simulator that no agent has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_simulator import NODES, Pull, uneven_graph

from gossipfl.codec import make_codec
from gossipfl.robust.base import ConspiracyView
from gossipfl.robust.hood import Hood, Mixed, TensorRule
from gossipfl.robust.registry import make_attack, make_rule
from gossipfl.simulator import Byzantine, Simulator
from gossipfl.tasks.base import Evaluation
from gossipfl.topology import make_sequence
from gossipfl.topology.weights import mixing_csr

LIARS = frozenset({1, 4})


@dataclass
class Plot:
    """Conspirators who tell target i the constant 100 + i, and note what they see."""

    name: ClassVar[str] = "plot"
    omniscient: ClassVar[bool] = True
    views: list[ConspiracyView] = field(default_factory=list)

    def lies(self, view: ConspiracyView) -> torch.Tensor:
        self.views.append(view)
        return torch.zeros_like(view.own) + (100.0 + view.targets)[:, None, None]


@dataclass(frozen=True)
class Spy(TensorRule):
    """Keeps the own model, counts how often it has met each neighbour, and notes what it is told."""

    hoods: list[Hood] = field(default_factory=list)
    name: ClassVar[str] = "spy"
    needs: ClassVar[tuple[Any, ...]] = ("f", "moved", "previous")
    memory: ClassVar[int] = 1

    def mix(self, hood: Hood) -> Mixed:
        self.hoods.append(hood)
        met = torch.zeros(*hood.present.shape, 1) if hood.memory is None else hood.memory.nan_to_num(0)
        return Mixed(hood.own.clone(), hood.present, hood.weights * 0, memory=met.double() + 1)


def simulator(rule: Any, attack: Any = None, graph: Any = None, steps: int = 1) -> Simulator:
    liars = Byzantine(LIARS, attack, 5) if attack else None
    graph = graph or uneven_graph()
    return Simulator(
        graph, Pull(graph.nodes), rule, make_codec("float32"), byzantine=liars, local_steps=steps, horizon=9
    )


def test_conspirators_tell_each_honest_neighbour_its_own_lie_and_nobody_else() -> None:
    plot, graph = Plot(), uneven_graph()
    sim = simulator(make_rule("mean"), plot)
    sim.step()
    trained = sim.replicas.clone()
    mixing = mixing_csr(graph).toarray()
    for node in set(range(NODES)) - LIARS:
        lied = sum(mixing[node, liar] for liar in LIARS)
        honest = sum(mixing[node, j] * trained[j] for j in range(NODES) if j not in LIARS)
        torch.testing.assert_close(sim.vectors[node], honest.float() + lied * (100.0 + node), rtol=1e-5, atol=1e-5)
    # Among themselves they are honest, and what they publish is their trained model.
    torch.testing.assert_close(sim.vectors[1], (torch.from_numpy(mixing[1]).float() @ trained), rtol=1e-5, atol=1e-5)


def test_what_conspirators_see() -> None:
    plot, graph = Plot(), uneven_graph()
    sim = simulator(make_rule("balance"), plot)
    sim.step()
    (view,) = plot.views
    mixing = mixing_csr(graph).toarray()
    targets = [node for node in range(NODES) if node not in LIARS and LIARS & set(graph.neighbours(node))]
    assert view.targets.tolist() == targets
    for row, node in enumerate(targets):
        honest = [j for j in graph.neighbours(node) if j not in LIARS]
        lying = [j for j in graph.neighbours(node) if j in LIARS]
        assert torch.equal(view.target[row], sim.replicas[node])
        assert int(view.honest_present[row].sum()) == len(honest)
        assert int(view.byzantine_present[row].sum()) == len(lying)
        for place, j in enumerate(honest):
            assert torch.equal(view.honest[row, place], sim.replicas[j])
            assert float(view.honest_weights[row, place]) == pytest.approx(mixing[node, j])
        for place, j in enumerate(lying):
            assert int(view.senders[row, place]) == j
            assert float(view.byzantine_weights[row, place]) == pytest.approx(mixing[node, j])
        assert float(view.honest_weights[row, len(honest) :].sum()) == 0
    assert view.is_honest.tolist() == [node not in LIARS for node in range(NODES)]
    honest_nodes = [node for node in range(NODES) if node not in LIARS]
    within = mixing[np.ix_(honest_nodes, honest_nodes)] * (1 - np.eye(len(honest_nodes)))
    np.testing.assert_allclose(view.laplacian.numpy(), np.diag(within.sum(1)) - within, atol=1e-12)
    assert view.rule.name == "balance"
    assert view.horizon == 9


@pytest.mark.parametrize("attack", ["alie", "dissensus", "trim", "threshold-hugging"])
def test_same_seed_same_conspiracy(attack: str) -> None:
    runs = []
    for _ in range(2):
        sim = simulator(make_rule("median"), make_attack(attack))
        for _ in range(3):
            sim.step()
        runs.append(sim.vectors.clone())
    assert torch.equal(*runs)
    assert bool(runs[0].isfinite().all())


def test_isolation_leaves_the_weighted_mean_where_it_was() -> None:
    """What the attack promises, seen through the whole simulator."""
    sim = simulator(make_rule("mean"), make_attack("isolation"))
    sim.step()
    for node in plot_targets():
        torch.testing.assert_close(sim.vectors[node], sim.replicas[node], rtol=1e-4, atol=1e-4)


def plot_targets() -> list[int]:
    graph = uneven_graph()
    return [node for node in range(NODES) if node not in LIARS and LIARS & set(graph.neighbours(node))]


def test_rules_are_told_what_they_ask_for() -> None:
    rule, graph = Spy(), uneven_graph()
    sim = simulator(rule, make_attack("sign-flip"), steps=2)
    start = sim.vectors.clone()
    sim.step()
    first, public = sim.replicas.clone(), sim.vectors.clone()
    assert len(rule.hoods) == NODES  # so small a network mixes node by node
    assert all(hood.memory is None for hood in rule.hoods)
    assert all(torch.equal(hood.previous, start[: len(hood.previous)]) for hood in rule.hoods)
    rule.hoods.clear()
    sim.step()
    for node, hood in enumerate(rule.hoods):
        neighbours = graph.neighbours(node)
        assert int(hood.byzantine) == len(LIARS & set(neighbours))
        assert hood.previous is not None
        assert torch.equal(hood.previous, first[list(neighbours)])
        assert hood.memory is not None
        assert hood.memory.flatten().tolist() == [1.0] * len(neighbours)
        expected = torch.linalg.vector_norm(sim.vectors[node] - public[node])
        assert float(hood.moved) == pytest.approx(float(expected), rel=1e-5)
        assert float(hood.moved) > 0


class Still(Pull):
    """Learners that stay where they are."""

    common_test = True

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.vectors = self.targets.clone()

    def train(self, steps: int) -> torch.Tensor:
        return torch.zeros(len(self.vectors), dtype=torch.float64)

    def evaluate_vectors(self, vectors: torch.Tensor) -> list[Evaluation]:
        return [Evaluation(float(vector.sum())) for vector in vectors]


def test_a_changing_graph_mixes_with_the_links_of_the_round() -> None:
    sequence = make_sequence("base-k", 6, {"k": 1})
    fleet = Still(6)
    sim = Simulator(sequence, fleet, make_rule("mean"), make_codec("float32"))
    centre = fleet.vectors.mean(0)
    assert sequence.period is not None
    for round_ in range(sequence.period):
        report = sim.step()
        assert report.links.senders.tolist() == sequence.links(round_).senders.tolist()
        assert report.payload_bytes.shape == (6,)
    torch.testing.assert_close(fleet.vectors, centre.expand(6, -1), rtol=1e-5, atol=1e-5)
    assert sim.consensus_distance() < 1e-5


def test_memory_follows_pairs_through_a_changing_graph() -> None:
    sequence = make_sequence("one-peer-exponential", 12)
    rule = Spy()
    sim = Simulator(sequence, Still(12), rule, make_codec("float32"))
    period = sequence.period
    assert period is not None
    for _ in range(period + 1):
        sim.step()
    last = rule.hoods[-1]
    assert last.memory is not None
    assert last.memory.flatten().tolist() == [1.0] * 12
    assert all(h.memory is None or bool(h.memory.isnan().all()) for h in rule.hoods[:period])


def test_the_average_model_is_measured_on_the_common_test() -> None:
    fleet = Still(NODES)
    sim = Simulator(
        uneven_graph(), fleet, make_rule("alone"), make_codec("float32"), measures={"norm": lambda x: x.norm(dim=1)}
    )
    average = sim.evaluate_average()
    assert average is not None
    assert average.loss == pytest.approx(float(fleet.vectors.mean(0).sum()), rel=1e-5)
    some = sim.evaluate_average(np.array([0, 2]))
    assert some is not None
    assert some.loss == pytest.approx(float(fleet.vectors[[0, 2]].mean(0).sum()), rel=1e-5)
    assert [e.metrics["norm"] for e in sim.evaluate()] == pytest.approx(fleet.vectors.norm(dim=1).tolist())
