"""What PACE and BALANCE cost over large neighbours, as a ratio to reading their bytes once in the same run.

    python benchmarks/aggregation.py [--elements 10000000] [--neighbours 10] [--threads 1 2] [--json FILE]

For each number of threads it times ``torch.sum`` over every neighbour (the read), then the rules: all neighbours
accepted; three in ten lying from their first element; three in ten that stay under the threshold until their last
element, BALANCE's dearest case, since all blocks are then mixed twice. Each figure is a median. ``temporary`` is how
far the process's peak memory rose above the inputs and the result.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gossipfl.robust.base import MixContext
from gossipfl.robust.registry import make_rule

SPREAD = 0.01
LIARS = 0.3


@dataclass(frozen=True)
class Row:
    """One timing: ``ratio`` is to the read with as many threads."""

    case: str
    threads: int
    median_s: float
    ratio: float


def median_s(work: Callable[[], object], repeats: int) -> float:
    """Return the median wall time of ``work`` in seconds, after one call to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes() -> int:
    """Return the most memory this process has had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def neighbours(own: Tensor, count: int, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Return the received vectors of each case; the honest ones are shared between cases."""
    honest = [torch.randn(own.shape, generator=generator).mul_(SPREAD).add_(own) for _ in range(count)]
    liars = round(count * LIARS)
    early = [-own for _ in range(liars)]
    late = [vector.clone() for vector in honest[:liars]]
    for vector in late:
        vector[-1] += 10 * own.norm()
    kept = honest[liars:]
    return {"all accepted": honest, "liars": [*early, *kept], "late liars": [*late, *kept]}


def measure(elements: int, count: int, threads: list[int], repeats: int) -> tuple[list[Row], int]:
    """Return the timings, and the temporary bytes of one PACE step over all accepted neighbours."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(elements, generator=generator)
    cases = neighbours(own, count, generator)
    moved = SPREAD * float(own.norm())
    context = MixContext([1.0 / (count + 1)] * count, [1.0] * count, round=0, horizon=100, moved=moved)
    pace, balance, mean = make_rule("pace"), make_rule("balance"), make_rule("mean")
    out = torch.empty_like(own).zero_()
    before = peak_bytes()
    torch.set_num_threads(max(threads))
    pace(own, cases["all accepted"], context, out)
    temporary = peak_bytes() - before
    rows = []
    for number in threads:
        torch.set_num_threads(number)
        read_s = median_s(lambda: [torch.sum(x) for x in cases["all accepted"]], repeats)
        rows.append(Row("read", number, read_s, 1.0))
        for rule in (pace, balance):
            for case, received in cases.items():
                took = median_s(partial(rule, own, received, context, out), repeats)
                rows.append(Row(f"{rule.name}, {case}", number, took, took / read_s))
        took = median_s(partial(mean, own, cases["all accepted"], context, out), repeats)
        rows.append(Row("mean", number, took, took / read_s))
    return rows, temporary


def main() -> None:
    """Print the table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description="Cost of filtering large neighbours.")
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, temporary = measure(options.elements, options.neighbours, options.threads, options.repeats)
    read_bytes = 4 * options.elements * options.neighbours
    print(f"{options.neighbours} neighbours of {options.elements:,} float32, {read_bytes / 1e6:,.0f} MB")
    print(f"{'case':<24}{'threads':>8}{'median ms':>12}{'x read':>9}")
    for row in rows:
        print(f"{row.case:<24}{row.threads:>8}{row.median_s * 1e3:>12.2f}{row.ratio:>9.2f}")
    print(f"temporary: {temporary / 1e6:.1f} MB beyond inputs and result")
    if options.json:
        report = {
            "elements": options.elements,
            "neighbours": options.neighbours,
            "read_bytes": read_bytes,
            "temporary_bytes": temporary,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
