"""Everything that can be wrong with a grid's runs, found before the first of them starts.

Specs are valid by then. What is left are names and options that registries know, graphs that cannot be made, and rules
that do not fit a graph. The cheap parts come first; then whole plans are built, those that bring something new before
the rest, until the time for it is used up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from gossipfl.config import RunSpec
from gossipfl.errors import ConfigError, UsageError
from gossipfl.experiments.cell import check_engine, check_part, check_plan, make_plan
from gossipfl.experiments.grid import Cell, Experiment

CHECK_S = 15.0
"""How long plans are built; what remains unchecked then fails as a single cell, if it is wrong."""

PARTS: tuple[Literal["rule", "attack", "codec"], ...] = ("rule", "attack", "codec")
INERT = frozenset(
    ("seed", "rounds", "evaluate_every", "personalise_steps", "keep_vectors", "gossip", "broker", "libp2p")
)
"""Keys that no plan's check depends on."""


@dataclass(frozen=True, slots=True)
class Checked:
    """How many different plans the grid has, and how many of them were built."""

    plans: int
    built: int


def check_cells(
    experiment: Experiment, *, budget_s: float = CHECK_S, now: Callable[[], float] = time.monotonic
) -> Checked:
    """Check one run of each setting, whatever its seed; raises ConfigError with the first that cannot run, and why."""
    settings: dict[tuple[str, ...], Cell] = {}
    for cell in experiment.grid.cells:
        settings.setdefault(cell.labels, cell)
    light = experiment.document.records == "light"
    distinct: dict[str, tuple[Cell, RunSpec]] = {}
    parts: set[tuple[str, str]] = set()
    for cell in settings.values():
        spec = cell.spec()
        tree = spec.as_dict()
        with _naming(experiment, cell):
            _check_engine(cell, spec, light=light)
            for part in PARTS:
                if _is_new(part, tree[part], parts):
                    check_part(part, spec)
        distinct.setdefault(json.dumps([cell.engine, _live(tree)], sort_keys=True), (cell, spec))
    began_s, built = now(), 0
    for cell, spec in _telling_first(distinct.values()):
        if built and now() - began_s > budget_s:
            break
        with _naming(experiment, cell):
            check_plan(cell.engine, make_plan(spec))
        built += 1
    return Checked(len(distinct), built)


@contextmanager
def _naming(experiment: Experiment, cell: Cell) -> Iterator[None]:
    """Put the cell's name in front of a mistake that is found in it."""
    try:
        yield
    except UsageError as error:
        raise ConfigError(f"{experiment.path}: cell {experiment.grid.title(cell)}: {error}") from None


def _check_engine(cell: Cell, spec: RunSpec, *, light: bool) -> None:
    check_engine(cell.engine, spec)
    if light and spec.keep_vectors:
        raise ConfigError('keep_vectors needs records = "full"; light records have no place for vectors')
    if light and spec.personalise_steps:
        raise ConfigError('personalise_steps needs records = "full"; light records hold the gossiped model only')


def _live(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in INERT}


def _is_new(key: str, value: Any, seen: set[tuple[str, str]]) -> bool:
    """Say whether no value like this was seen at ``key``, and note it."""
    mark = key, json.dumps(value, sort_keys=True)
    new = mark not in seen
    seen.add(mark)
    return new


def _telling_first(plans: Iterable[tuple[Cell, RunSpec]]) -> Iterator[tuple[Cell, RunSpec]]:
    """Yield first the plans that have a value of some key which no plan before them had."""
    seen: set[tuple[str, str]] = set()
    rest = []
    for cell, spec in plans:
        tree = _live(spec.as_dict())
        # Not any(): every value has to be noted.
        if sum(_is_new(key, value, seen) for key, value in tree.items()):
            yield cell, spec
        else:
            rest.append((cell, spec))
    yield from rest
