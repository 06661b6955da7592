from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gossipfl.config import load_spec
from gossipfl.records import Event, NodeRound, RunRecords
from gossipfl.summary import RunFacts, summarise
from gossipfl.topology import make_topology

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes the records of a small made-up run; node 1 is Byzantine and always rejected."""

    def make(*, nodes: int = 4, rounds: int = 3, finished: bool = True, accuracy: bool = True) -> Path:
        out = tmp_path / f"run-{nodes}-{rounds}"
        spec = load_spec(None, {"nodes": nodes, "rounds": rounds, "byzantine": 1, "attack": "sign-flip"})
        graph = make_topology("ring", nodes, {}, 0)
        with RunRecords(out) as records:
            records.write_spec(spec)
            records.write_topology(graph)
            for round_ in range(rounds):
                for node in range(nodes):
                    for peer in graph.neighbours(node):
                        kind = "reject" if peer == 1 else "accept"
                        records.add_event(Event(round_, kind, f"node-{node}", {"peer": f"node-{peer}"}))
                    liars = sum(peer == 1 for peer in graph.neighbours(node))
                    records.add_round(
                        NodeRound(
                            node=node,
                            name=f"node-{node}",
                            byzantine=node == 1,
                            round=round_,
                            t_s=round_ + 0.1 * node,
                            loss=1.0 / (round_ + 1),
                            test_loss=0.5,
                            test_accuracy=0.9 if accuracy else None,
                            metrics={} if accuracy else {"nrmse": 0.3},
                            accepted_honest=2 - liars,
                            rejected_byzantine=liars,
                            bytes_sent=1000,
                            round_s=0.2,
                        )
                    )
            records.add_event(Event(1.5, "died", "node-3", {"signal": "<script>alert(1)</script>"}))
            if finished:
                facts = RunFacts(
                    "testbed", "memory", 10, [1], "ring", len(graph.edges), 0.5, 1.0, vector_digests={0: "ab"}
                )
                records.write_summary(summarise(spec, facts, records.statistics))
        return out

    return make
