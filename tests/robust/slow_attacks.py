"""The conspiracies written out slowly from their papers: one target at a time, in float64, with loops.

Each returns what the liars around node ``i`` tell it: one vector (d,), or one for each liar (b, d).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from attack_views import Scene

Vector = np.ndarray


def crowd(scene: Scene, i: int, *, with_target: bool) -> list[Vector]:
    honest = scene.honest(i)
    return list(scene.slow([*honest, i] if with_target or not honest else honest))


def mean(vectors: list[Vector]) -> Vector:
    return sum(vectors, np.zeros_like(vectors[0])) / len(vectors)


def deviation(vectors: list[Vector]) -> Vector:
    if len(vectors) == 1:
        return np.zeros_like(vectors[0])
    return np.sqrt(sum((x - mean(vectors)) ** 2 for x in vectors) / (len(vectors) - 1))


def alie(scene: Scene, i: int, *, z: float | None = None, with_target: bool = False) -> Vector:
    vectors = crowd(scene, i, with_target=with_target)
    if z is None:
        k, b = len(scene.neighbours[i]), len(scene.lying(i))
        s = max(1, (k + 1) // 2 - b)
        z = 0.0 if k == 1 else NormalDist().inv_cdf((k - s) / k)
    return mean(vectors) + z * deviation(vectors)


def ipm(scene: Scene, i: int) -> Vector:
    return -0.1 * mean(crowd(scene, i, with_target=True))


def sign_flip_mean(scene: Scene, i: int) -> Vector:
    return -mean(crowd(scene, i, with_target=True))


def min_max(scene: Scene, i: int) -> Vector:
    vectors = crowd(scene, i, with_target=True)
    widest = max(np.linalg.norm(x - y) for x in vectors for y in vectors)
    return _hidden(vectors, lambda lie: max(np.linalg.norm(lie - x) for x in vectors) <= widest)


def min_sum(scene: Scene, i: int) -> Vector:
    vectors = crowd(scene, i, with_target=True)
    widest = max(sum(np.sum((x - y) ** 2) for y in vectors) for x in vectors)
    return _hidden(vectors, lambda lie: sum(np.sum((lie - x) ** 2) for x in vectors) <= widest)


def _hidden(vectors: list[Vector], hides) -> Vector:  # noqa: ANN001 - a predicate of vectors
    """The authors' search for γ: double while it hides, then halve in."""
    centre, sigma = mean(vectors), deviation(vectors)
    low, step = 0.0, 1e-3
    while hides(centre - (low + step) * sigma) and step < 1e6:
        low, step = low + step, step * 2
    for _ in range(80):
        step /= 2
        if hides(centre - (low + step) * sigma):
            low += step
    return centre - low * sigma if sigma.any() else centre


def dissensus(scene: Scene, i: int, *, strength: float = 1.5) -> Vector:
    own = scene.slow([i])[0]
    pull = sum((scene.weight(i, j) * (scene.slow([j])[0] - own) for j in scene.honest(i)), np.zeros_like(own))
    return own - strength * pull / sum(scene.weight(i, b) for b in scene.lying(i))


def isolation(scene: Scene, i: int) -> Vector:
    """What is missing to own, after the honest part of the weighted mean, own included."""
    own = scene.slow([i])[0]
    kept = 1 - sum(scene.weight(i, j) for j in scene.neighbours[i])
    rest = own - kept * own - sum(scene.weight(i, j) * scene.slow([j])[0] for j in scene.honest(i))
    return rest / sum(scene.weight(i, b) for b in scene.lying(i))


def krum_scores(vectors: list[Vector], liars: int) -> list[float]:
    closest = max(len(vectors) - liars - 2, 1)
    squares = [[float(np.sum((x - y) ** 2)) for y in vectors] for x in vectors]
    return [sum(sorted(row[:j] + row[j + 1 :])[:closest]) for j, row in enumerate(squares)]


def krum_attack(scene: Scene, i: int) -> Vector:
    own, liars = scene.slow([i])[0], len(scene.lying(i))
    honest = crowd(scene, i, with_target=True)
    sign, size = np.sign(sum(honest)), len(own)
    closest = max(len(honest) - 2, 1)
    sums = [sum(sorted(np.linalg.norm(x - y) for k, y in enumerate(honest) if k != j)[:closest])
            for j, x in enumerate(honest)]  # fmt: skip
    rest = max(len(honest) + liars - 2 * liars - 1, 1)
    lam = min(sums) / (rest * math.sqrt(size)) + max(np.linalg.norm(x - own) for x in honest) / math.sqrt(size)
    while lam >= 1e-5:
        scores = krum_scores([own - lam * sign] * liars + honest, liars)
        if scores[0] < min(scores[liars:]):
            return own - lam * sign
        lam /= 2
    return scene.slow(scene.lying(i))
