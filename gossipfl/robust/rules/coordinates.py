"""Order statistics of each coordinate by itself: the trimmed mean and the median of the neighbourhood.

They are no weighted sum of whole vectors. A neighbour's weight is its share of the result, the mean over the
coordinates of its share of each; it is accepted where it has any. Freshness scales the step from the own model by
the mean freshness of the neighbours, each counted by its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from gossipfl.robust.hood import Bounded, Mixed, TensorRule, finite_part
from gossipfl.robust.reasons import NONE, NOT_FINITE, TOO_FEW, TRIMMED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from gossipfl.robust.hood import Hood


BLOCK_ELEMENTS = 1 << 18
"""Elements that are sorted at a time: a sorting network passes over them dozens of times."""

LEAST_COLUMNS = 256


@dataclass(frozen=True)
class TrimmedMean(Bounded):
    """BRIDGE-T (Fang, Yang, Bajwa, IEEE TSIPN 8, 2022): the mean without the f largest and f smallest neighbours.

        out_c = (own_c + Σ_{j in S_c} x_jc) / (|S_c| + 1)    for each coordinate c

    S_c are the k - 2f neighbours in the middle; the own value always stays. Its condition is k >= 2f + 1.
    """

    name: ClassVar[str] = "trimmed-mean"

    def most(self, neighbours: int) -> int:
        """Return the largest f with 2f + 1 <= k."""
        return (neighbours - 1) // 2

    def mix(self, hood: Hood) -> Mixed:
        """Mix many nodes at once."""
        differences, counts = finite_part(hood)
        f, feasible = self.bound(hood, counts)
        count = counts.sum(-1)
        places = torch.arange(counts.shape[-1], device=counts.device)
        middle = (places >= f.unsqueeze(-1)) & (places < (count - f).unsqueeze(-1))

        def trimmed(columns: Tensor) -> tuple[Tensor, Tensor]:
            values = ascending(torch.where(counts.unsqueeze(-1), columns, torch.inf))
            total = torch.where(middle.unsqueeze(-1), values, 0.0).sum(-2)
            low, high = _at(values, f), _at(values, (count - f - 1).clamp_min(0))
            kept = (columns >= low.unsqueeze(-2)) & (columns <= high.unsqueeze(-2)) & counts.unsqueeze(-1)
            # Of equal values it does not matter which are trimmed: they share the place.
            return total / (count - 2 * f + 1).unsqueeze(-1), divided(kept, besides=1)

        step, shares = by_columns(trimmed, differences)
        return _mixed(hood, differences, counts, step, shares, feasible)


@dataclass(frozen=True)
class Median(TensorRule):
    """BRIDGE-M (Fang, Yang, Bajwa, IEEE TSIPN 8, 2022; Yin et al., ICML 2018): the median of each coordinate.

        out_c = median(own_c, x_1c, ..., x_kc)

    of the neighbours and the node; of an even number, the mean of the middle two. It withstands any minority,
    f < n/2 of n = k + 1.
    """

    name: ClassVar[str] = "median"

    def most(self, neighbours: int) -> int:
        """Return the largest f < n/2 of n = k + 1."""
        return neighbours // 2

    def mix(self, hood: Hood) -> Mixed:
        """Mix many nodes at once."""
        differences, counts = finite_part(hood)
        there = torch.nn.functional.pad(counts, (1, 0), value=True)
        odd = bool((there.sum(-1) % 2 == 1).all())

        def middle(columns: Tensor) -> tuple[Tensor, Tensor]:
            everybody = torch.nn.functional.pad(columns, (0, 0, 1, 0))
            low, high = middle_values(everybody, there)
            holders = [
                (everybody == value.unsqueeze(-2)) & there.unsqueeze(-1) for value in ([low] if odd else [low, high])
            ]
            shares = torch.stack([divided(holds)[..., 1:] for holds in holders]).mean(0)
            return low + (high - low) / 2, shares

        step, shares = by_columns(middle, differences)
        return _mixed(hood, differences, counts, step, shares, torch.ones_like(counts[..., 0]))


def by_columns(work: Callable[[Tensor], tuple[Tensor, Tensor]], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``work`` makes of ``vectors`` (..., k, d): a step (..., d) and a share for each (..., k).

    It is given some columns at a time, few enough to stay near the core; shares are means over the columns.
    """
    size = vectors.shape[-1]
    width = max(LEAST_COLUMNS, BLOCK_ELEMENTS // max(1, vectors[..., 0].numel()))
    if size <= width:
        return work(vectors)
    step = vectors.new_empty(*vectors.shape[:-2], size)
    shares = torch.zeros(vectors.shape[:-1], dtype=torch.float64, device=vectors.device)
    for columns, part in zip(torch.split(vectors, width, -1), torch.split(step, width, -1), strict=True):
        values, share = work(columns)
        part.copy_(values)
        shares += share * (columns.shape[-1] / size)
    return step, shares


def middle_values(vectors: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper median of each coordinate, (..., d), of the ``vectors`` (..., m, d) that count."""
    values = ascending(torch.where(counts.unsqueeze(-1), vectors, torch.inf))
    count = counts.sum(-1)
    return _at(values, (count - 1).clamp_min(0) // 2), _at(values, count // 2)


def ascending(vectors: Tensor) -> Tensor:
    """Return the ``vectors`` (..., m, d) with each coordinate sorted over m, ascending.

    Batcher's odd-even merge sort, whole rows at a time: sorting columns of a few numbers one by one costs several
    times as much.
    """
    rows = list(vectors.unbind(-2))
    for low, high in _comparisons(len(rows)):
        rows[low], rows[high] = torch.minimum(rows[low], rows[high]), torch.maximum(rows[low], rows[high])
    return torch.stack(rows, dim=-2)


def _comparisons(count: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs that Batcher's network for ``count`` numbers compares (Knuth, TAOCP 3, algorithm 5.2.2M)."""
    width = 1
    while width < count:
        gap = width
        while gap >= 1:
            for start in range(gap % width, count - gap, 2 * gap):
                for low in range(start, min(start + gap, count - gap)):
                    if low // (2 * width) == (low + gap) // (2 * width):
                        yield low, low + gap
            gap //= 2
        width *= 2


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Return each node's row ``place`` (...) of ``values`` (..., m, d), (..., d)."""
    place = place.clamp_max(values.shape[-2] - 1)
    return values.gather(-2, place[..., None, None].expand(*values.shape[:-2], 1, values.shape[-1])).squeeze(-2)


def divided(parts: Tensor, *, besides: int = 0) -> Tensor:
    """Return the share of each of m, (..., m): the mean over the coordinates of 1 by how many have ``parts`` in one.

    ``parts`` (..., m, d) is bool; ``besides`` as many others have a part in every coordinate.
    """
    parts = parts.to(torch.float32)
    among = parts.sum(-2) + besides
    shares = parts @ torch.where(among > 0, 1.0 / among, 0.0).unsqueeze(-1)
    return shares.squeeze(-1).double() / parts.shape[-1]


def mean_freshness(hood: Hood, shares: Tensor) -> Tensor:
    """Return the mean freshness of each node's neighbours, (..., 1), counted by ``shares`` (..., k); 0 of none."""
    total = shares.sum(-1, keepdim=True)
    return (shares * hood.freshness).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)


def _mixed(hood: Hood, differences: Tensor, counts: Tensor, step: Tensor, shares: Tensor, feasible: Tensor) -> Mixed:
    """Return own + ``step`` (..., d), as far as it is fresh, where the rule is ``feasible`` (...)."""
    here = feasible.unsqueeze(-1)
    shares = torch.where(counts & here, shares, 0.0)
    accepted = shares > 0
    fresh = mean_freshness(hood, shares)
    reason = torch.where(accepted, NONE, torch.where(here, TRIMMED, TOO_FEW))
    return Mixed(
        vector=hood.own + torch.where(here, step, 0.0) * fresh.to(step.dtype),
        accepted=accepted,
        weight=shares * fresh,
        distance=torch.where(counts, torch.linalg.vector_norm(differences, dim=-1).double(), torch.inf),
        reason=torch.where(hood.present & ~counts, NOT_FINITE, reason),
    )
