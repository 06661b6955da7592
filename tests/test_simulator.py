from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gossipfl.codec import Encoded, make_codec
from gossipfl.digest import derive_seed
from gossipfl.errors import ConfigError
from gossipfl.robust import network
from gossipfl.robust.registry import make_attack, make_rule
from gossipfl.simulator import Byzantine, Simulator
from gossipfl.tasks.base import Evaluation, Partition, TrainOptions
from gossipfl.tasks.fleet import Fleet, make_fleet
from gossipfl.tasks.registry import load_task
from gossipfl.topology import Topology, make_topology
from gossipfl.topology.graph import canonical_edges

NODES, SIZE, RATE, HORIZON = 9, 40, 0.1, 12


class Pull:
    """A fleet whose nodes are pulled to targets of their own: training anyone can do by hand."""

    def __init__(self, nodes: int = NODES, size: int = SIZE) -> None:
        generator = torch.Generator().manual_seed(11)
        self.targets = torch.randn(nodes, size, generator=generator) * 0.2 + 1
        self.vectors = torch.full((nodes, size), 0.5)

    def train(self, steps: int) -> torch.Tensor:
        losses = torch.zeros(len(self.vectors), dtype=torch.float64)
        for _ in range(steps):
            losses += (self.vectors - self.targets).square().sum(1)
            self.vectors += RATE * (self.targets - self.vectors)
        return losses / steps

    def evaluate(self) -> list[Evaluation]:
        return [Evaluation(float(x)) for x in (self.vectors - self.targets).square().sum(1)]


def uneven_graph(nodes: int = NODES) -> Topology:
    """A ring with chords and one node of degree 1."""
    ring = [(i, (i + 1) % (nodes - 1)) for i in range(nodes - 1)]
    return Topology("uneven", nodes, canonical_edges([*ring, (0, 3), (0, 4), (2, 6), (0, nodes - 1)]))


def simulator(rule: str, attack: str | None = None, codec: str = "float32", seed: int = 5) -> Simulator:
    liars = Byzantine({1, 4}, make_attack(attack), seed) if attack else None
    fleet = Pull()
    return Simulator(
        uneven_graph(), fleet, make_rule(rule), make_codec(codec), byzantine=liars, local_steps=3, horizon=HORIZON
    )


def naive(rule: str, attack: str | None, rounds: int, seed: int = 5) -> np.ndarray:
    """The same network in float64, node by node, from the equations alone."""
    graph, fleet = uneven_graph(), Pull()
    targets, x, liars = fleet.targets.double().numpy(), fleet.vectors.double().numpy(), {1, 4} if attack else set()
    noise = {b: torch.Generator().manual_seed(derive_seed(seed, "attack", b)) for b in liars}
    for t in range(rounds):
        for _ in range(3):
            x = x + RATE * (targets - x)
        shown = x.copy()
        for b in liars:
            if attack == "sign-flip":
                shown[b] = -x[b]
            elif attack == "gaussian":
                shown[b] = math.sqrt(200) * torch.randn(SIZE, generator=noise[b]).double().numpy()
        mixed = x.copy()
        for i in range(NODES):
            others = graph.neighbours(i)
            if rule == "mean":
                for j in others:
                    mixed[i] += (shown[j] - x[i]) / (1 + max(len(others), len(graph.neighbours(j))))
            else:
                limit = 0.3 * math.exp(-t / HORIZON) * np.linalg.norm(x[i])
                near = [shown[j] for j in others if np.linalg.norm(x[i] - shown[j]) <= limit]
                mixed[i] = 0.5 * x[i] + 0.5 * np.mean(near, axis=0) if near else x[i]
        x = mixed
    return x


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("attack", [None, "sign-flip", "gaussian", "label-flip"])
@pytest.mark.parametrize("rule", ["mean", "balance"])
def test_agrees_with_the_equations_in_float64(
    monkeypatch: pytest.MonkeyPatch, rule: str, attack: str | None, at_once: bool
) -> None:
    monkeypatch.setattr(network, "BATCHED_FROM", 1 if at_once else 10**9)
    monkeypatch.setattr(network, "SPARSE_FROM", 1)
    sim = simulator(rule, attack)
    for _ in range(HORIZON):
        sim.step()
    expected = naive(rule, attack, HORIZON)
    np.testing.assert_allclose(sim.vectors.numpy(), expected, rtol=2e-5, atol=1e-5 * np.abs(expected).max())


def test_balance_rejects_the_liars_and_the_report_says_so() -> None:
    sim = simulator("balance", "sign-flip")
    report = [sim.step() for _ in range(3)][-1]
    graph = uneven_graph()
    for node in range(NODES):
        liars = len({1, 4} & set(graph.neighbours(node)))
        honest = len(graph.neighbours(node)) - liars
        filtered = report.filtered
        assert filtered.accepted_byzantine[node] == 0
        assert filtered.rejected_byzantine[node] == liars
        assert filtered.accepted_honest[node] + filtered.rejected_honest[node] == honest
    rejected = ~report.verdicts.accepted
    assert set(sim.links.senders[rejected]) >= {1, 4}
    assert (report.verdicts.distances[rejected] > report.verdicts.thresholds[rejected]).all()
    assert report.round == 2
    assert report.payload_bytes.tolist() == [4 * SIZE] * NODES


def test_attack_sees_its_own_model_and_what_was_public_before_the_round() -> None:
    seen = []

    class Spy:
        name = "spy"
        publishes_own = omniscient = False

        def lie(self, view):  # noqa: ANN001, ANN202
            seen.append((view.own.clone(), [r.clone() for r in view.replicas], view.round))
            return view.own * 2

    sim = Simulator(uneven_graph(), Pull(), make_rule("mean"), make_codec("float32"), byzantine=Byzantine({3}, Spy()))
    start = sim.replicas.clone()
    sim.step()
    public = sim.replicas.clone()
    sim.step()
    neighbours = uneven_graph().neighbours(3)
    assert [t for _, _, t in seen] == [0, 1]
    for before, (_, replicas, _) in zip((start, public), seen, strict=True):
        assert len(replicas) == len(neighbours)
        assert all(torch.equal(r, before[j]) for r, j in zip(replicas, neighbours, strict=True))
    torch.testing.assert_close(sim.replicas[3], seen[1][0] * 2)


def test_replicas_hold_what_receivers_decode_and_errors_are_fed_back() -> None:
    codec = make_codec("int8")
    payloads: list[tuple[bytes, int]] = []

    class Recording:
        name, wire_id = codec.name, codec.wire_id
        decode, max_bytes = codec.decode, codec.max_bytes

        def encode(self, delta: torch.Tensor) -> Encoded:
            encoded = codec.encode(delta)
            payloads.append((bytes(encoded.payload), delta.numel()))
            return encoded

    sim = Simulator(uneven_graph(), Pull(), make_rule("mean"), Recording(), local_steps=1)
    held = sim.replicas.clone()
    for _ in range(5):
        payloads.clear()
        sizes = sim.step().payload_bytes
        for node, (payload, size) in enumerate(payloads):
            held[node] += codec.decode(payload, size)
            assert sizes[node] == len(payload)
    assert torch.equal(held, sim.replicas)
    exact = simulator("mean")
    lossy = simulator("mean", codec="int8")
    for _ in range(HORIZON):
        exact.step()
        lossy.step()
    assert not torch.equal(exact.vectors, lossy.vectors)
    torch.testing.assert_close(lossy.vectors, exact.vectors, rtol=0, atol=5e-3)


@pytest.mark.parametrize("attack", [None, "gaussian"])
def test_same_seed_same_bits(attack: str | None) -> None:
    runs = []
    for seed in (5, 5, 6):
        sim = simulator("mean", attack, seed=seed)
        for _ in range(3):
            sim.step()
        runs.append(sim.vectors.clone())
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2]) == (attack is None)


def test_a_diverged_model_goes_back_to_its_public_replica() -> None:
    fleet = Pull()
    sim = Simulator(uneven_graph(), fleet, make_rule("balance"), make_codec("float32"), local_steps=1)
    sim.step()
    public = sim.replicas[2].clone()
    fleet.targets[2] = float("inf")
    report = sim.step()
    assert report.diverged == (2,)
    assert torch.equal(sim.replicas[2], public)
    assert bool(sim.vectors.isfinite().all())


def test_consensus_distance_is_over_honest_nodes() -> None:
    sim = simulator("mean", "sign-flip")
    sim.vectors.zero_()
    honest = [0, 2, 3, 5, 6, 7, 8]
    assert sim.honest.tolist() == honest
    sim.vectors[[1, 4]] = 99
    assert sim.consensus_distance() == 0
    sim.vectors[0, 0] = 7
    assert sim.consensus_distance() == pytest.approx(math.sqrt((36 + 6) / 7))


def test_time_comes_from_the_clock_it_is_given() -> None:
    ticks = iter([10.0, 12.5, 13.0])
    sim = Simulator(uneven_graph(), Pull(), make_rule("mean"), make_codec("float32"), clock=lambda: next(ticks))
    report = sim.step()
    assert (report.train_s, report.round_s) == (2.5, 3.0)


def test_learns_digits_among_liars() -> None:
    nodes, rounds = 40, 40
    task = load_task("digits", {"model": "softmax"})
    shards = task.shards(nodes, Partition("iid"), 0)
    graph = Topology("circulant", nodes, canonical_edges((i, (i + s) % nodes) for i in range(nodes) for s in (1, 2, 5)))
    liars = Byzantine({7, 20}, make_attack("sign-flip", {"strength": 4}), 0)
    means = {}
    for name in ("mean", "balance", "pace"):
        fleet = make_fleet(task, shards, TrainOptions(), model_seed=0, order_seeds=range(nodes))
        rule, codec = make_rule(name), make_codec("float32")
        sim = Simulator(graph, fleet, rule, codec, byzantine=liars, local_steps=1, horizon=rounds)
        for _ in range(rounds):
            sim.step()
        results = sim.evaluate()
        means[name] = np.mean([results[node].accuracy for node in sim.honest])
    assert means["balance"] > 0.88
    assert means["mean"] < means["balance"] - 0.15
    assert means["pace"] > 0.88


def digits_fleet(nodes: int, partition: str) -> Fleet:
    task = load_task("digits", {"model": "softmax"})
    shards = task.shards(nodes, Partition(partition), 0)
    return make_fleet(task, shards, TrainOptions(), model_seed=0, order_seeds=range(nodes))


def test_pace_learns_where_each_node_knows_one_label_and_some_lie() -> None:
    graph = make_topology("random-regular", 20, {"degree": 10}, seed=0)
    liars = Byzantine({3, 8}, make_attack("gaussian"), 0)
    means = {}
    for name in ("balance", "pace"):
        rule, fleet = make_rule(name), digits_fleet(20, "shards")
        sim = Simulator(graph, fleet, rule, make_codec("float32"), byzantine=liars, local_steps=3, horizon=40)
        for _ in range(40):
            sim.step()
        results = sim.evaluate()
        means[name] = np.mean([results[node].accuracy for node in sim.honest])
    assert means["pace"] > 0.6
    assert means["balance"] < 0.3


@pytest.mark.parametrize(("name", "returns"), [("pace", True), ("balance", False)])
def test_a_site_that_begins_anew_within_the_others_reach_is_taken_back(name: str, returns: bool) -> None:
    """Its neighbours are further than BALANCE allows by then, and whatever it remembered of them is gone."""
    graph, fleet = make_topology("random-regular", 8, {"degree": 4}, seed=0), digits_fleet(8, "iid")
    initial = fleet.vectors[0].clone()
    for rounds in (60, 15):
        fleet.vectors[0] = initial
        sim = Simulator(graph, fleet, make_rule(name), make_codec("float32"), local_steps=3)
        for _ in range(rounds):
            sim.step()
    others = fleet.vectors[1:].mean(0)
    assert bool((fleet.vectors[0] - others).norm() < 0.05 * others.norm()) == returns


def test_mistakes_are_one_clear_line() -> None:
    def build(fleet: Pull, byzantine: Byzantine | None = None) -> Simulator:
        return Simulator(uneven_graph(), fleet, make_rule("mean"), make_codec("float32"), byzantine=byzantine)

    with pytest.raises(ConfigError, match='topology "uneven" has 9 nodes for 5 learners'):
        build(Pull(5))
    with pytest.raises(ConfigError, match=r"\[9\] are not all among 0\.\.8"):
        build(Pull(), Byzantine({9}, make_attack("sign-flip")))
    with pytest.raises(ConfigError, match="1 Byzantine nodes have no attack"):
        Byzantine({0})
