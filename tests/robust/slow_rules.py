"""Every rule once more, plainly from its paper: one node at a time, in loops, in float64.

A slow rule maps a ``Scene`` to an ``Outcome``. It sees only what a rule may use: vectors that are not finite are gone,
and f counts those that are left. Freshness and the condition on f are the same for all, in ``mix_slowly``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """What one node sees; ``sketch`` is the Count-Sketch that all share."""

    own: Vector
    received: list[Vector]
    weights: list[float]
    freshness: list[float]
    f: int = 0
    round: int = 0
    horizon: int | None = None
    loss: Callable[[Vector], float] = float
    previous: list[Vector] | None = None
    memory: list[list[float]] | None = None
    sketch: Callable[[Vector], Vector] = np.asarray
    moved: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The result were all fresh, what each neighbour weighs in it, and whether it is their weighted sum."""

    vector: Vector
    weights: list[float]
    linear: bool = True


@dataclass(frozen=True)
class SlowResult:
    vector: Vector
    accepted: list[bool]
    weights: list[float]


def length(vector: Vector) -> float:
    return math.sqrt(float(vector @ vector))


def summed(scene: Scene, coefficients: list[float]) -> Outcome:
    out = scene.own.copy()
    for coefficient, x in zip(coefficients, scene.received, strict=True):
        out = out + coefficient * (x - scene.own)
    return Outcome(out, coefficients)


def averaged(scene: Scene, chosen: list[int], share: float) -> Outcome:
    return summed(scene, [share if j in chosen else 0.0 for j in range(len(scene.received))])


def by_distance(scene: Scene, centre: Vector) -> list[int]:
    """The neighbours, nearest to ``centre`` first."""
    return sorted(range(len(scene.received)), key=lambda j: length(scene.received[j] - centre))


def mean(scene: Scene) -> Outcome:
    return summed(scene, scene.weights)


def alone(scene: Scene) -> Outcome:
    return summed(scene, [0.0] * len(scene.received))


def progress(scene: Scene) -> float:
    if scene.horizon is None:
        return 1 - math.exp(-scene.round / 1000)
    return min(scene.round / scene.horizon, 1)


def balance(scene: Scene) -> Outcome:
    limit = 0.3 * math.exp(-progress(scene)) * length(scene.own)
    near = [j for j, x in enumerate(scene.received) if length(x - scene.own) <= limit]
    return averaged(scene, near, 0.5 / max(len(near), 1))


def pace(scene: Scene) -> Outcome:
    middle, pace = float(np.median([length(x - scene.own) for x in scene.received] or [0])), remembered_pace(scene)
    inside, pulls = let_in(scene), []
    for x, is_in in zip(scene.received, inside, strict=True):
        r = length(x - scene.own)
        near = min(1.0, 1.25 * middle / r if r > 0 else 1.0) if is_in else 0.0
        slow = 1.0 if r <= 6 * pace else max(0.0, 12 * pace / r - 1)
        pulls.append(near * slow)
    return summed(scene, [one / (1 + sum(inside)) for one in pulls])


def let_in(scene: Scene) -> list[bool]:
    distances = [length(x - scene.own) for x in scene.received]
    known = [False] * len(distances) if scene.memory is None else [row[1] > 0 for row in scene.memory]
    return [r <= (2.0 if old else 1.25) * np.median(distances) for r, old in zip(distances, known, strict=True)]


def remembered_pace(scene: Scene) -> float:
    past = [] if scene.memory is None else [row[0] for row in scene.memory if not math.isnan(row[0])]
    return max(scene.moved, 0.9 * min(past)) if past else scene.moved


def sketchguard(scene: Scene) -> Outcome:
    own = scene.sketch(scene.own)
    limit = 0.3 * math.exp(-progress(scene)) * length(own)
    near = [j for j, x in enumerate(scene.received) if length(scene.sketch(x) - own) <= limit]
    return averaged(scene, near, 0.5 / max(len(near), 1))


def ubar(scene: Scene) -> Outcome:
    count = len(scene.received)
    short = by_distance(scene, scene.own)[: max(1, math.floor(0.4 * count + 1e-9))]
    good = [j for j in short if scene.loss(scene.received[j]) <= scene.loss(scene.own)]
    if not good and short:
        good = [min(short, key=lambda j: scene.loss(scene.received[j]))]
    return averaged(scene, good, 0.5 / max(len(good), 1))


def heaviest(scene: Scene) -> float:
    return sum(sorted(scene.weights, reverse=True)[: scene.f])


def without_the_farthest(scene: Scene, delta: float) -> list[int]:
    """Drop the farthest neighbour as long as all that were dropped weigh no more than delta."""
    left, dropped = by_distance(scene, scene.own), 0.0
    while left and delta > 0 and dropped + scene.weights[left[-1]] <= delta + 1e-9:
        dropped += scene.weights[left.pop()]
    return left


def clipped(scene: Scene, chosen: list[int], tau: float) -> Outcome:
    coefficients = []
    for j, x in enumerate(scene.received):
        distance = length(x - scene.own)
        scale = 1.0 if distance <= tau else tau / distance
        coefficients.append(scene.weights[j] * scale if j in chosen else 0.0)
    return summed(scene, coefficients)


def root_mean(scene: Scene, chosen: list[int], delta: float) -> float:
    if delta == 0:
        return math.inf
    return math.sqrt(sum(scene.weights[j] * length(scene.received[j] - scene.own) ** 2 for j in chosen) / delta)


def self_clip(scene: Scene) -> Outcome:
    return clipped(scene, list(range(len(scene.received))), 1.0)


def adaptive_clip(scene: Scene) -> Outcome:
    delta = heaviest(scene)
    near = without_the_farthest(scene, delta)
    return clipped(scene, list(range(len(scene.received))), root_mean(scene, near, delta))


def cs_plus(scene: Scene) -> Outcome:
    delta, tau, weight = heaviest(scene), 0.0, 0.0
    for j in by_distance(scene, scene.own):
        weight += scene.weights[j]
        if weight > sum(scene.weights) - 2 * delta + 1e-9:
            break
        tau = length(scene.received[j] - scene.own)
    return clipped(scene, list(range(len(scene.received))), tau if delta > 0 else math.inf)


def rtc(scene: Scene) -> Outcome:
    delta = heaviest(scene)
    kept = without_the_farthest(scene, delta)
    return clipped(scene, kept, root_mean(scene, kept, delta))


def ios(scene: Scene) -> Outcome:
    own_weight = 1 - sum(scene.weights)
    left = list(range(len(scene.received)))
    for _ in range(scene.f):
        total = own_weight + sum(scene.weights[j] for j in left)
        centre = own_weight * scene.own + sum(scene.weights[j] * scene.received[j] for j in left)
        left.remove(max(left, key=lambda j: length(scene.received[j] - centre / total)))
    total = own_weight + sum(scene.weights[j] for j in left)
    return summed(scene, [w / total if j in left else 0.0 for j, w in enumerate(scene.weights)])


def faba(scene: Scene) -> Outcome:
    left = list(range(len(scene.received)))
    for _ in range(scene.f):
        centre = sum(scene.received[j] for j in left) / len(left)
        left.remove(max(left, key=lambda j: length(scene.received[j] - centre)))
    return averaged(scene, left, 1 / (len(left) + 1))


def nna(scene: Scene) -> Outcome:
    near = by_distance(scene, scene.own)[: len(scene.received) - scene.f]
    return averaged(scene, near, 1 / (len(near) + 1))


def krum_order(scene: Scene) -> list[int]:
    """All vectors, 0 the own one, best Krum score first."""
    everybody = [scene.own, *scene.received]
    scores = []
    for i, x in enumerate(everybody):
        squares = sorted(length(x - y) ** 2 for j, y in enumerate(everybody) if j != i)
        scores.append(sum(squares[: len(everybody) - scene.f - 2]))
    return sorted(range(len(everybody)), key=lambda i: scores[i])


def krum(scene: Scene) -> Outcome:
    return averaged(scene, [krum_order(scene)[0] - 1], 1.0)


def multi_krum(scene: Scene) -> Outcome:
    count = len(scene.received) + 1 - scene.f
    return averaged(scene, [i - 1 for i in krum_order(scene)[:count]], 1 / count)


def geometric_median(scene: Scene) -> Outcome:
    everybody = np.stack([scene.own, *scene.received])
    away = np.array([sorted(np.linalg.norm(everybody - x, axis=1))[len(everybody) // 2] for x in everybody])
    for _ in range(101):
        betas = 1 / np.maximum(1e-6, away)
        centre = betas @ everybody / betas.sum()
        away = np.linalg.norm(everybody - centre, axis=1)
    return Outcome(centre, list(betas[1:] / betas.sum()))


def trimmed_mean(scene: Scene) -> Outcome:
    out, shares = np.zeros_like(scene.own), np.zeros(len(scene.received))
    for c, own in enumerate(scene.own):
        order = sorted(range(len(scene.received)), key=lambda j: scene.received[j][c])
        middle = order[scene.f : len(order) - scene.f]
        out[c] = (own + sum(scene.received[j][c] for j in middle)) / (len(middle) + 1)
        if middle:  # those of equal value share the place
            low, high = scene.received[middle[0]][c], scene.received[middle[-1]][c]
            kept = [j for j in order if low <= scene.received[j][c] <= high]
            shares[kept] += 1 / (len(kept) + 1)
    return Outcome(out, list(shares / len(out)), linear=False)


def median(scene: Scene) -> Outcome:
    everybody = np.stack([scene.own, *scene.received])
    shares = np.zeros(len(everybody))
    for c in range(len(scene.own)):
        values = sorted(everybody[:, c])
        for middle in (values[(len(values) - 1) // 2], values[len(values) // 2]):
            holders = everybody[:, c] == middle  # those of equal value share the place
            shares += holders / holders.sum() / 2
    return Outcome(np.median(everybody, axis=0), list(shares[1:] / len(scene.own)), linear=False)


def cosine(a: Vector, b: Vector) -> float:
    return float(a @ b) / (length(a) * length(b))


def wfagg(scene: Scene) -> Outcome:
    count = len(scene.received)
    centre = np.median(np.stack(scene.received), axis=0)
    best = count - scene.f - 1
    near = by_distance(scene, centre)[:best]
    aligned = sorted(range(count), key=lambda j: -cosine(scene.received[j], centre))[:best]
    weights = []
    for j, now in enumerate(moves(scene)):
        past = [math.nan] * 4 if scene.memory is None else scene.memory[j]
        steady = all(abs(value - np.mean(past[i::2])) <= np.std(past[i::2], ddof=1) for i, value in enumerate(now))
        votes = [j in near, j in aligned, steady]
        weights.append(0.4 * votes[0] + 0.4 * votes[1] + 0.2 * votes[2] if sum(votes) >= 2 else 0.0)
    total = sum(weights) or 1.0
    return summed(scene, [0.5 * w / total for w in weights])


def moves(scene: Scene) -> list[list[float]]:
    """How far, and by how much of a turn, each neighbour has gone since the round before."""
    if scene.previous is None:
        return [[math.nan, math.nan]] * len(scene.received)
    pairs = zip(scene.received, scene.previous, strict=True)
    return [[length(x - before), 1 - cosine(x, before)] for x, before in pairs]


def remembered(name: str, scene: Scene) -> list[list[float]]:
    """What a rule has of each neighbour for the next round."""
    if name == "pace":
        return [[remembered_pace(scene), float(inside)] for inside in let_in(scene)]
    past = [[math.nan] * 4] * len(scene.received) if scene.memory is None else scene.memory
    return [[*now, *before[:2]] for now, before in zip(moves(scene), past, strict=True)]


def nnm_step(scene: Scene) -> NDArray[np.float64]:
    everybody = [scene.own, *scene.received]
    shares = np.zeros((len(everybody), len(everybody)))
    for i, x in enumerate(everybody):
        others = sorted((j for j in range(len(everybody)) if j != i), key=lambda j: length(everybody[j] - x))
        shares[i, [i, *others][: len(everybody) - scene.f]] = 1 / (len(everybody) - scene.f)
    return shares


def arc_step(scene: Scene) -> NDArray[np.float64]:
    everybody = [scene.own, *scene.received]
    norms = [length(x - scene.own) for x in everybody]
    clipped_count = math.floor(2 * scene.f / len(everybody) * (len(everybody) - scene.f) + 1e-9)
    limit = sorted(norms)[len(norms) - clipped_count - 1]
    shares = np.zeros((len(everybody), len(everybody)))
    for i, norm in enumerate(norms):
        scale = 1.0 if norm <= limit else limit / norm
        shares[i, 0] = 1 - scale
        shares[i, i] += scale
    return shares


STEPS = {"nnm": nnm_step, "arc": arc_step}
RULES: dict[str, Callable[[Scene], Outcome]] = {
    "mean": mean,
    "alone": alone,
    "balance": balance,
    "pace": pace,
    "sketchguard": sketchguard,
    "ubar": ubar,
    "self-clip": self_clip,
    "adaptive-clip": adaptive_clip,
    "cs-plus": cs_plus,
    "rtc": rtc,
    "ios": ios,
    "faba": faba,
    "nna": nna,
    "krum": krum,
    "multi-krum": multi_krum,
    "geometric-median": geometric_median,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "wfagg": wfagg,
}
CONDITIONS: dict[str, Callable[[int, int], bool]] = {
    "adaptive-clip": lambda k, f: k > 2 * f,
    "cs-plus": lambda k, f: k > 2 * f,
    "rtc": lambda k, f: k > 2 * f,
    "ios": lambda k, f: k + 1 > 3 * f,
    "faba": lambda k, f: k > 3 * f,
    "nna": lambda k, f: k + 1 > 2 * f,
    "krum": lambda k, f: k + 1 >= 2 * f + 3,
    "multi-krum": lambda k, f: k + 1 >= 2 * f + 3,
    "trimmed-mean": lambda k, f: k >= 2 * f + 1,
    "wfagg": lambda k, f: k > 2 * f and k - f - 1 >= 1,
}
"""What k neighbours and f Byzantine ones among them must satisfy, of the rules that need f."""


def holds(name: str, neighbours: int, f: int) -> bool:
    *steps, rule = name.split("+")
    honest_majority = not steps or neighbours + 1 > 2 * f
    return honest_majority and (rule not in CONDITIONS or CONDITIONS[rule](neighbours, f))


def apply(name: str, scene: Scene) -> Outcome:
    """Apply the rule and the steps before it to vectors that are all finite and fresh."""
    step, plus, rest = name.partition("+")
    if not plus:
        return RULES[name](scene)
    shares = STEPS[step](scene)
    mixed = [sum(s * x for s, x in zip(row, [scene.own, *scene.received], strict=True)) for row in shares]
    after = apply(rest, replace(scene, own=mixed[0], received=mixed[1:]))
    weights = np.array([1 - sum(after.weights), *after.weights]) @ shares
    return Outcome(after.vector, list(weights[1:]), linear=False)


def mix_slowly(name: str, scene: Scene) -> SlowResult:
    """What rule ``name`` makes of the scene; ``scene.f`` counts liars that are not finite too."""
    count = len(scene.received)
    finite = [j for j, x in enumerate(scene.received) if length(x - scene.own) ** 2 < np.finfo(np.float32).max]

    def left(values: list) -> list:
        return [values[j] for j in finite]

    seen = replace(
        scene,
        received=left(scene.received),
        weights=left(scene.weights),
        freshness=left(scene.freshness),
        f=max(scene.f - (count - len(finite)), 0),
        previous=None if scene.previous is None else left(scene.previous),
        memory=None if scene.memory is None else left(scene.memory),
    )
    weights = [0.0] * count
    if not finite or not holds(name, len(finite), seen.f):
        return SlowResult(scene.own, [False] * count, weights)
    outcome = apply(name, seen)
    # Steps make vectors equal; what then weighs less than this, weighs nothing but for rounding.
    part = [w > (1e-6 if "+" in name else 0) for w in outcome.weights]
    shares = [w if is_in else 0.0 for w, is_in in zip(outcome.weights, part, strict=True)]
    share = [float(np.average(seen.freshness, weights=shares)) if any(shares) else 0.0] * len(finite)
    if outcome.linear:
        share = seen.freshness
        vector = summed(seen, [w * f for w, f in zip(outcome.weights, share, strict=True)]).vector
    else:
        vector = scene.own + share[0] * (outcome.vector - scene.own)
    for place, j in enumerate(finite):
        weights[j] = outcome.weights[place] * share[place] if part[place] else 0.0
    return SlowResult(vector, [w > 0 for w in weights], weights)
