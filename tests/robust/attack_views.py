"""Small networks with liars in them, and what conspirators see of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from hypothesis import strategies as st

from gossipfl.robust.base import ConspiracyView, Rule
from gossipfl.robust.registry import make_rule

SEED = 17


@dataclass(frozen=True)
class Scene:
    """``models`` (n, d) float32 of nodes with ``neighbours``, of whom ``liars`` are Byzantine."""

    models: torch.Tensor
    neighbours: tuple[tuple[int, ...], ...]
    liars: frozenset[int]

    @property
    def targets(self) -> list[int]:
        return [i for i in range(len(self.models)) if i not in self.liars and self.lying(i)]

    def honest(self, node: int) -> list[int]:
        return [j for j in self.neighbours[node] if j not in self.liars]

    def lying(self, node: int) -> list[int]:
        return [j for j in self.neighbours[node] if j in self.liars]

    def weight(self, i: int, j: int) -> float:
        return 1 / (1 + max(len(self.neighbours[i]), len(self.neighbours[j])))

    def slow(self, nodes: list[int]) -> np.ndarray:
        """Models in float64, (k, d)."""
        return self.models[nodes].double().numpy()

    def laplacian(self) -> np.ndarray:
        honest = [i for i in range(len(self.models)) if i not in self.liars]
        weights = np.array([[self.weight(i, j) if j in self.neighbours[i] else 0.0 for j in honest] for i in honest])
        return np.diag(weights.sum(1)) - weights


def connect(models: torch.Tensor, edges: set[tuple[int, int]], liars: set[int]) -> Scene:
    both = edges | {(j, i) for i, j in edges}
    nodes = range(len(models))
    return Scene(models, tuple(tuple(j for j in nodes if (i, j) in both) for i in nodes), frozenset(liars))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Networks of 2 to 9 nodes around a common model, with at least one liar beside an honest node."""
    nodes, size = draw(st.integers(2, 9)), draw(st.integers(1, 12))
    liars = draw(st.sets(st.integers(1, nodes - 1), min_size=1, max_size=max(1, nodes // 2)))
    possible = [(i, j) for i in range(nodes) for j in range(i + 1, nodes)]
    edges = set(draw(st.lists(st.sampled_from(possible), max_size=24))) | {(0, min(liars))}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.01, 0.3, 2.0]))
    models = torch.randn(size, generator=generator) + spread * torch.randn(nodes, size, generator=generator)
    return connect(models, edges, liars)


def bells(size: int = 40) -> Scene:
    """Two cliques of five joined by one edge, a liar in each: node 4 beside nodes 0 to 3, node 9 beside 5 to 8."""
    generator = torch.Generator().manual_seed(3)
    models = torch.randn(size, generator=generator) + 0.05 * torch.randn(10, size, generator=generator)
    halves = [(i, j) for base in (0, 5) for i in range(base, base + 5) for j in range(i + 1, base + 5)]
    return connect(models, {*halves, (0, 5)}, {4, 9})


def view(scene: Scene, rule: Rule | None = None, padding: int = 0, round_: int = 3) -> ConspiracyView:
    """What conspirators see, with ``padding`` more places than needed; padding is NaN."""
    honest, lying = [scene.honest(i) for i in scene.targets], [scene.lying(i) for i in scene.targets]
    wide, deep = (max(len(row) for row in rows) + padding for rows in (honest, lying))
    liars = torch.zeros(len(scene.models), dtype=torch.bool)
    liars[list(scene.liars)] = True
    return ConspiracyView(
        target=scene.models[scene.targets],
        honest=_vectors(scene, honest, wide),
        honest_present=_there(honest, wide),
        honest_weights=_weights(scene, honest, wide),
        own=_vectors(scene, lying, deep),
        byzantine_present=_there(lying, deep),
        byzantine_weights=_weights(scene, lying, deep),
        everyone=scene.models,
        is_honest=~liars,
        targets=torch.tensor(scene.targets),
        senders=torch.tensor([[*row, *[0] * (deep - len(row))] for row in lying]),
        laplacian=torch.from_numpy(scene.laplacian()),
        rule=make_rule("mean") if rule is None else rule,
        round=round_,
        horizon=20,
        generator=torch.Generator().manual_seed(SEED),
    )


def alone(seen: ConspiracyView, place: int) -> ConspiracyView:
    """The view of one target of many, without leading dimension and without padding."""
    honest, lying = seen.honest_present[place], seen.byzantine_present[place]
    return replace(
        seen,
        target=seen.target[place],
        honest=seen.honest[place][honest],
        honest_present=honest[honest],
        honest_weights=seen.honest_weights[place][honest],
        own=seen.own[place][lying],
        byzantine_present=lying[lying],
        byzantine_weights=seen.byzantine_weights[place][lying],
        targets=seen.targets[place],
        senders=seen.senders[place][lying],
    )


def tensors(seen: ConspiracyView) -> dict[str, torch.Tensor]:
    """Copies of all tensors of a view."""
    found = {field.name: getattr(seen, field.name) for field in fields(seen)}
    return {name: value.clone() for name, value in found.items() if isinstance(value, torch.Tensor)}


def _vectors(scene: Scene, rows: list[list[int]], width: int) -> torch.Tensor:
    out = torch.full((len(rows), width, scene.models.shape[1]), torch.nan)
    for place, row in enumerate(rows):
        out[place, : len(row)] = scene.models[row]
    return out


def _there(rows: list[list[int]], width: int) -> torch.Tensor:
    return torch.tensor([[place < len(row) for place in range(width)] for row in rows], dtype=torch.bool)


def _weights(scene: Scene, rows: list[list[int]], width: int) -> torch.Tensor:
    out = torch.zeros(len(rows), width, dtype=torch.float64)
    for place, (target, row) in enumerate(zip(scene.targets, rows, strict=True)):
        out[place, : len(row)] = torch.tensor([scene.weight(target, j) for j in row], dtype=torch.float64)
    return out
