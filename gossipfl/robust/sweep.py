"""Distances, thresholds and weighted means of long vectors, block by block through the cache.

Aggregation is bound by memory. Where the threshold is known beforehand, every vector is read once: while a block of it
is in the cache, its part of the distance is measured and its part of the mean is summed, in the hope that it will be
accepted. A vector whose partial distance passes the threshold is dropped on the spot; blocks that were mixed with it
are mixed again at the end from the accepted vectors alone. Nothing is ever subtracted from a sum, so the result has the
same bits as if the rejected vectors had not been there. Where weights follow from all distances, all are read twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.floating[Any]]

BLOCK = 98_304
"""Elements handled at a time: large enough to hide the cost of a call, small enough to stay near the core."""

GRAM_ELEMENTS = 1 << 17
"""Elements of the block of differences that a Gram matrix is made of: it stays near the core."""

PARALLEL_ELEMENTS = 1 << 23
"""With fewer elements than this to read, a second thread costs more than it brings."""


FLOAT_MAX = float(np.finfo(np.float64).max)

_Result = TypeVar("_Result")
_Share = TypeVar("_Share")


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found: ``threshold``, ``distances`` (of the rejected: lower bounds), ``accepted`` positions."""

    threshold: float
    distances: list[float]
    accepted: list[int]


def filtered_mean(
    own: Tensor, received: Sequence[Tensor], factors: Sequence[float], *, radius: float, pull: float, out: Tensor
) -> Sweep:
    """Write the mean of the vectors near ``own`` to ``out`` and tell which they are.

        S = {j : ‖x_j - own‖ <= radius ‖own‖},   out = own + pull/|S| Σ_{j in S} f_j (x_j - own)

    All vectors are (d,) on the CPU; ``factors`` are the f_j; ``out`` must not overlap an input; an empty S gives
    ``own``. A vector with a NaN is never near. Norms are summed over blocks in float64. Large sweeps use as many
    threads as torch is set to use; the same vectors accepted, ``out`` has the same bits for any number of them.
    Temporaries: two blocks a thread.
    """
    arrays = [vector.detach().numpy() for vector in received]
    inputs = _Inputs(own.detach().numpy(), arrays, factors, pull, out.detach().numpy())
    spans = [_Span(inputs, low, high) for low, high in _bounds(own.numel(), len(arrays))]
    with ThreadPoolExecutor(len(spans)) if len(spans) > 1 else nullcontext() as pool:
        # Each span's sums are over its own elements: what a span drops does not depend on how fast the others are.
        # Bounded by the largest float, so that an infinite distance is never near; a NaN is near to nothing anyway.
        limit = min(radius * radius * sum(_each(pool, spans, _Span.own_square)), FLOAT_MAX)
        _each(pool, spans, lambda span: span.measure(limit))
        squares = [sum(span.squares[j] for span in spans) for j in range(len(arrays))]
        accepted = [j for j, square in enumerate(squares) if square <= limit]
        _each(pool, spans, lambda span: span.settle(accepted))
    return Sweep(sqrt(limit), [sqrt(square) for square in squares], accepted)


def squared_distances(own: Tensor, received: Sequence[Tensor]) -> list[float]:
    """Return ‖x_j - own‖² of each vector (d,), summed over blocks in float64; not finite where a vector is not."""
    mine, arrays = own.detach().numpy(), [vector.detach().numpy() for vector in received]

    def part(span: tuple[int, int]) -> list[float]:
        squares, difference = [0.0] * len(arrays), np.empty(min(BLOCK, span[1] - span[0]), dtype=mine.dtype)
        for low, high in _blocks(*span):
            spare = difference[: high - low]
            for j, array in enumerate(arrays):
                np.subtract(array[low:high], mine[low:high], out=spare)
                squares[j] += _square(spare)
        return squares

    return [sum(column) for column in zip(*_over(own.numel(), len(arrays), part), strict=True)]


def gram_of_differences(own: Tensor, received: Sequence[Tensor]) -> NDArray[np.float64]:
    """Return D Dᵀ (k, k) of D_j = x_j - own, from vectors (d,); products in float32 within a block, sums in float64.

    Not finite in the rows and columns of vectors that are not; the diagonal has the squared distances.
    """
    mine, arrays = own.detach().numpy(), [vector.detach().numpy() for vector in received]

    def part(span: tuple[int, int]) -> NDArray[np.float64]:
        width = max(1, min(GRAM_ELEMENTS // max(1, len(arrays)), span[1] - span[0], BLOCK))
        differences = np.empty((len(arrays), width), dtype=mine.dtype)
        gram = np.zeros((len(arrays), len(arrays)))
        for low in range(span[0], span[1], width):
            high = min(low + width, span[1])
            block = differences[:, : high - low]
            for row, array in zip(block, arrays, strict=True):
                np.subtract(array[low:high], mine[low:high], out=row)
            gram += block @ block.T
        return gram

    total = np.zeros((len(arrays), len(arrays)))
    for each in _over(own.numel(), len(arrays), part):
        total += each
    return total


def add_differences(own: Tensor, received: Sequence[Tensor], factors: Sequence[float], *, out: Tensor) -> None:
    """Write own + Σ_j f_j (x_j - own) to ``out`` (d,); vectors with the factor 0 are not read."""
    mine, result = own.detach().numpy(), out.detach().numpy()
    pulls = [(vector.detach().numpy(), factor) for vector, factor in zip(received, factors, strict=True) if factor]

    def part(span: tuple[int, int]) -> None:
        width = min(BLOCK, span[1] - span[0])
        total, difference = np.empty(width, dtype=mine.dtype), np.empty(width, dtype=mine.dtype)
        for low, high in _blocks(*span):
            base, steps, spare = mine[low:high], total[: high - low], difference[: high - low]
            steps.fill(0.0)
            for array, factor in pulls:
                np.subtract(array[low:high], base, out=spare)
                np.multiply(spare, factor, out=spare)
                np.add(steps, spare, out=steps)
            np.add(base, steps, out=result[low:high])

    _over(own.numel(), len(pulls), part)


def _over(size: int, count: int, work: Callable[[tuple[int, int]], _Result]) -> list[_Result]:
    """Return what ``work`` makes of each thread's share of the elements."""
    shares = _bounds(size, count)
    with ThreadPoolExecutor(len(shares)) if len(shares) > 1 else nullcontext() as pool:
        return _each(pool, shares, work)


@dataclass(frozen=True, slots=True)
class _Inputs:
    own: Array
    received: list[Array]
    factors: Sequence[float]
    pull: float
    out: Array


class _Span:
    """One thread's share of a sweep: the elements ``low`` to ``high``."""

    def __init__(self, inputs: _Inputs, low: int, high: int) -> None:
        self._in = inputs
        self._low, self._high = low, high
        width = min(BLOCK, high - low)
        self._sum = np.empty(width, dtype=inputs.own.dtype)
        self._difference = np.empty(width, dtype=inputs.own.dtype)
        self._mixed = list(range(len(inputs.received)))
        self._mixed_from = low
        self.squares = [0.0] * len(inputs.received)

    def own_square(self) -> float:
        """Return this span's part of ‖own‖²."""
        return sum(_square(self._in.own[low:high]) for low, high in self._blocks(self._high))

    def measure(self, limit: float) -> None:
        """Measure all vectors, dropping those that pass the limit here; mix each block with those left."""
        candidates, squares = self._mixed, self.squares
        for low, high in self._blocks(self._high):
            total = self._gather(low, high, candidates, squares)
            near = [j for j in candidates if squares[j] <= limit]
            if len(near) < len(candidates):
                candidates, self._mixed_from = near, high
            elif near:
                self._write(low, high, total, len(near))
            if not near:
                break
        self._mixed = candidates

    def settle(self, accepted: list[int]) -> None:
        """Mix again the blocks that were mixed with others than the ``accepted``, or not at all."""
        if not accepted:
            self._in.out[self._low : self._high] = self._in.own[self._low : self._high]
            return
        stop = self._mixed_from if accepted == self._mixed else self._high
        for low, high in self._blocks(stop):
            self._write(low, high, self._gather(low, high, accepted, None), len(accepted))

    def _blocks(self, stop: int) -> Iterator[tuple[int, int]]:
        return _blocks(self._low, stop)

    def _gather(self, low: int, high: int, candidates: list[int], squares: list[float] | None) -> Array:
        """Return Σ f_j (x_j - own) of one block, adding each ‖x_j - own‖² to ``squares`` where given."""
        own, received, factors = self._in.own[low:high], self._in.received, self._in.factors
        total, spare = self._sum[: high - low], self._difference[: high - low]
        target = total
        for j in candidates:
            np.subtract(received[j][low:high], own, out=target)
            if squares is not None:
                squares[j] += _square(target)
            if factors[j] != 1:
                np.multiply(target, factors[j], out=target)
            if target is spare:
                np.add(total, spare, out=total)
            target = spare
        return total

    def _write(self, low: int, high: int, total: Array, count: int) -> None:
        np.multiply(total, self._in.pull / count, out=total)
        np.add(self._in.own[low:high], total, out=self._in.out[low:high])


def _blocks(low: int, high: int) -> Iterator[tuple[int, int]]:
    for start in range(low, high, BLOCK):
        yield start, min(start + BLOCK, high)


def _square(block: Array) -> float:
    return float(np.dot(block, block))


def _bounds(size: int, count: int) -> list[tuple[int, int]]:
    threads = torch.get_num_threads() if size * count >= PARALLEL_ELEMENTS else 1
    step = -(-size // (threads * BLOCK)) * BLOCK
    return [(low, min(low + step, size)) for low in range(0, size, step)]


def _each(pool: ThreadPoolExecutor | None, spans: Sequence[_Share], work: Callable[[_Share], _Result]) -> list[_Result]:
    def quietly(span: _Share) -> _Result:
        with np.errstate(all="ignore"):  # a lie may overflow: its distance is then infinite, and it is dropped
            return work(span)

    return list(pool.map(quietly, spans) if pool else map(quietly, spans))
