"""What a grid leaves out and what it gets beside: ``exclude`` and ``include``.

    exclude = [{ rule = "krum", byzantine = [4, 6] }]       every cell that fits in all keys
    include = [{ rule = "mean", attack = "none", nodes = 50 }]

In both, an axis is named by its own name, with a label or a value of it, or a list of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from gossipfl.errors import ConfigError
from gossipfl.experiments.axes import Axis, Choice, assignments, check_key, find, read_choices, same
from gossipfl.settings import choose, clip

Combination = tuple[Choice | None, ...]
"""One choice for each axis, in their order; None where an extra cell says nothing about the axis."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A partial match: for some axes, by number, the choices that fit; and the seeds, None for all."""

    choices: Mapping[int, frozenset[int]]
    seeds: frozenset[int] | None = None

    def fits(self, indices: Sequence[int]) -> bool:
        """Say whether a combination, given as the number of the choice on each axis, fits in every key."""
        return all(indices[axis] in wanted for axis, wanted in self.choices.items())


def read_patterns(
    tables: Sequence[Mapping[str, Any]], axes: Sequence[Axis], seeds: Sequence[int], place: str
) -> tuple[Pattern, ...]:
    """Return the patterns of ``exclude``; raises ConfigError for a key or value that the grid does not have."""
    return tuple(
        _read_pattern(table, axes, seeds, f"{place}: exclude {number}") for number, table in enumerate(tables, start=1)
    )


def read_extras(
    tables: Sequence[Mapping[str, Any]], axes: Sequence[Axis], place: str
) -> tuple[tuple[Axis, ...], tuple[Combination, ...]]:
    """Return the axes that only ``include`` adds, and its combinations over the old axes and these.

    A key that no axis has becomes an axis of the tables, since cells that differ in it are no repetitions.
    """
    names = [axis.name for axis in axes]
    read = [_read_include(table, axes, f"{place}: include {number}") for number, table in enumerate(tables, start=1)]
    added: dict[str, dict[str, Choice]] = {}
    for table in read:
        for name, choices in table.items():
            if name not in names:
                added.setdefault(name, {}).update({choice.label: choice for choice in choices})
    extra = tuple(Axis(name, tuple(choices.values())) for name, choices in added.items())
    names += added
    combinations = (one for table in read for one in product(*(table.get(name, (None,)) for name in names)))
    return extra, tuple(combinations)


def _read_pattern(table: Mapping[str, Any], axes: Sequence[Axis], seeds: Sequence[int], place: str) -> Pattern:
    if not table:
        raise ConfigError(f"{place} is empty and would leave out everything; name an axis")
    wanted: dict[int, frozenset[int]] = {}
    kept: frozenset[int] | None = None
    for key, value in _named(table, axes):
        if key == "seed":
            kept = frozenset(seed for seed in seeds if seed in _listed(value))
            if not kept:
                raise ConfigError(f"{place}: seed = {clip(value)} is none of the seeds")
            continue
        number = _axis_number(key, axes, place)
        axis = axes[number]
        found = _fitting(axis, key, value)
        if not found:
            labels = [choice.label for choice in axis.choices]
            raise ConfigError(f"{place}: {key} = {clip(value)} fits no cell{choose(str(value), labels)}")
        wanted[number] = wanted[number] & found if number in wanted else found
    return Pattern(wanted, kept)


def _named(table: Mapping[str, Any], axes: Sequence[Axis]) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a table: names of axes as they stand, everything else with its full dotted key."""
    names = {axis.name for axis in axes}
    for key, value in table.items():
        yield from [(key, value)] if key in names else assignments({key: value})


def _axis_number(key: str, axes: Sequence[Axis], place: str) -> int:
    for number, axis in enumerate(axes):
        if axis.name == key or (axis.bundle and key in axis.keys):
            return number
    raise ConfigError(f'{place}: "{key}" is no axis of the grid{choose(key, [axis.name for axis in axes])}')


def _fitting(axis: Axis, key: str, value: Any) -> frozenset[int]:
    """Return the places of the choices that are the ``value`` of ``key``, or one of the values that are listed."""
    found: set[int] = set()
    for one in [value, *value] if isinstance(value, list) else [value]:
        if axis.name != key:
            found.update(
                at
                for at, choice in enumerate(axis.choices)
                if any(name == key and same(has, one) for name, has in choice.sets)
            )
        elif axis.bundle:
            found.update(at for at, choice in enumerate(axis.choices) if choice.label == one)
        else:
            found.update(find(axis.choices, one))
    return frozenset(found)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _read_include(table: Mapping[str, Any], axes: Sequence[Axis], place: str) -> dict[str, tuple[Choice, ...]]:
    by_name = {axis.name: axis for axis in axes}
    read: dict[str, tuple[Choice, ...]] = {}
    for key, value in _named(table, axes):
        axis = by_name.get(key)
        if axis is None:
            check_key(key, f"{place}: {key}")
        values = _listed(value)
        if not values:
            raise ConfigError(f"{place}: {key} has no value")
        read[key] = tuple(_choice(axis, key, one, f"{place}: {key}") for one in values)
    return read


def _choice(axis: Axis | None, key: str, value: Any, place: str) -> Choice:
    """Return the axis's own choice where it has it, or else a new one."""
    if axis is not None:
        found = _fitting(axis, key, value)
        if found:
            return axis.choices[min(found)]
        if axis.bundle:
            raise ConfigError(f"{place} = {clip(value)}{choose(str(value), [one.label for one in axis.choices])}")
    return read_choices(key, [value], place)[0]
