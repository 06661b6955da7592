"""Random vectors of attackers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return N(0, I) noise with the shape of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def each(present: Tensor, size: int, generator: torch.Generator, like: Tensor, *, gaussian: bool) -> Tensor:
    """Return noise (..., k, size) for each place (..., k) that is ``present``, N(0, 1) or U(0, 1), and 0 elsewhere.

    Places that are padding draw nothing, so that their number does not show in the others' noise.
    """
    draw = torch.randn if gaussian else torch.rand
    drawn = draw(int(present.sum()), size, generator=generator, dtype=like.dtype).to(like.device)
    noise = like.new_zeros(*present.shape, size)
    noise[present] = drawn
    return noise


def direction(seed: int, like: Tensor) -> Tensor:
    """Return the unit vector (d,) that belongs to ``seed``: the same for all who share it, in every round."""
    drawn = normal(like, torch.Generator().manual_seed(seed))
    return drawn.div_(torch.linalg.vector_norm(drawn))


def constant(generator: torch.Generator, below: int) -> int:
    """Return a number in [0, below) that depends on the seed of ``generator`` alone, the same in every round."""
    fixed = torch.Generator().manual_seed(generator.initial_seed())
    return int(torch.randint(below, (1,), generator=fixed))
