"""How long to wait before another attempt, for every transport that connects."""

from __future__ import annotations

from random import Random

_MOST_DOUBLINGS = 32


def back_off_s(failures: int, limits_s: tuple[float, float], random: Random) -> float:
    """Return how long to wait after so many failures in a row: doubled each time, bounded, jittered.

    pause = u min(longest, first 2^(failures - 1)), with u drawn uniformly from [1/2, 1) and ``limits_s`` = (first,
    longest), in seconds.
    """
    first_s, longest_s = limits_s
    return random.uniform(0.5, 1.0) * min(longest_s, first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
