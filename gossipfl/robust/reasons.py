"""Why a rule rejected or clipped a vector: one vocabulary for all rules, so that reports can compare them."""

from __future__ import annotations

REASONS = (
    "",
    "not finite",
    "too few neighbours for f",
    "farther than the threshold",
    "farther than others",
    "farther than others in every coordinate",
    "clipped",
    "worse on the own data",
    "passed too few filters",
    "trusts nobody",
)
"""What verdicts say; the names below count into it."""

NONE, NOT_FINITE, TOO_FEW, BEYOND, OUTLYING, TRIMMED, CLIPPED, WORSE, FILTERED, ALONE = range(len(REASONS))
