"""A grid unrolled: one cell for each combination and seed, each a complete and valid run.

A cell whose attack is ``none`` has no Byzantine nodes: its ``byzantine`` is 0, whatever the grid says about it. Cells
that become the same run by that are one cell, and each axis in which they differed reads ``any`` there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from gossipfl import __version__
from gossipfl.config import SECTIONS, RunSpec, load_spec
from gossipfl.digest import digest
from gossipfl.errors import ConfigError, UsageError
from gossipfl.experiments.axes import ENGINE, Assignment, Axis, assignments, check_key, label_of, read_axes
from gossipfl.experiments.document import ENGINES, Document, Engine, read_document
from gossipfl.experiments.patterns import Combination, Pattern, read_extras, read_patterns
from gossipfl.settings import Settings

RESULT_SCHEMA = 1
"""Grows when a result changes its meaning: cells of another schema are run again."""

MAX_CELLS = 1_000_000
ANY = "any"
"""The label of an axis in a cell that stands for all its values."""

UNKNOWN = "–"
ATTACK_FREE: tuple[Assignment, ...] = (("byzantine", 0), ("placement", "random"))
"""What a cell without an attack is set to: nobody is Byzantine, so nobody has to be placed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of an experiment.

    ``hash`` names it: a digest of its complete spec with the seed, engine, schema of results and version of gossipfl.
    ``labels`` are aligned with the grid's axes, ``settings`` is what the file sets for it.
    """

    hash: str
    labels: tuple[str, ...]
    seed: int
    engine: Engine
    settings: tuple[Assignment, ...]

    def spec(self) -> RunSpec:
        """Return the run; it was validated when the grid was unrolled."""
        return _settings((*self.settings, ("seed", self.seed))).validate(RunSpec)


@dataclass(frozen=True, slots=True)
class Grid:
    """All cells, seed by seed, so that a part of them already shows the whole grid.

    ``axes`` maps each axis to its labels in order; ``excluded`` and ``merged`` count combinations, without seeds.
    """

    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    excluded: int
    merged: int

    def title(self, cell: Cell, *, seed: bool = False) -> str:
        """Return what a cell is called in messages."""
        return _title(tuple(self.axes), cell.labels) + (f", seed={cell.seed}" if seed else "")


@dataclass(frozen=True, slots=True)
class Experiment:
    """A file's text, what it says, and the grid that it means."""

    path: Path
    text: str
    document: Document
    grid: Grid


def load_experiment(path: Path) -> Experiment:
    """Read and unroll the experiment at ``path``; raises ConfigError in one line that names the cell and the mend."""
    document = read_document(path)
    text = path.read_text(encoding="utf-8")
    return Experiment(path, text, document, unroll(document, str(path)))


def unroll(document: Document, place: str) -> Grid:
    """Return the grid of ``document``; ``place`` begins each error line.

    Raises ConfigError for a grid that is empty or has more than ``MAX_CELLS`` cells, and for the first combination that
    is no valid run.
    """
    axes = read_axes(document.grid, place)
    patterns = read_patterns(document.exclude, axes, document.seeds, place)
    extra, includes = read_extras(document.include, axes, place)
    count = (prod(len(axis.choices) for axis in axes) + len(includes)) * len(document.seeds)
    if count > MAX_CELLS:
        raise ConfigError(f"{place}: the grid has {count:,} cells, more than {MAX_CELLS:,}; take values off its axes")
    for name in (document.report.rows, document.report.columns):
        if name is not None and name not in {axis.name for axis in (*axes, *extra)}:
            raise ConfigError(f'{place}: report: "{name}" is no axis; axes are: {", ".join(a.name for a in axes)}')
    unrolling = _Unrolling(document, (*axes, *extra), place)
    unrolling.check_alone()
    kept, excluded = _combinations(axes, [pattern for pattern in patterns if pattern.seeds is None])
    for combination in kept:
        unrolling.add((*combination, *(None,) * len(extra)))
    for combination in includes:
        unrolling.add(combination, extra=True)
    cells = unrolling.cells([pattern for pattern in patterns if pattern.seeds is not None])
    if not cells:
        raise ConfigError(f"{place}: exclude leaves out every cell")
    return Grid(unrolling.labels(), document.seeds, cells, excluded, unrolling.merged)


def differences(spec: RunSpec) -> dict[str, Any]:
    """Return what a run sets differently from the default run, as JSON values; named sections stay whole."""
    return _differences(spec.as_dict(), _default_run())


@dataclass
class _Setting:
    """A combination: everything about its cells but the seed."""

    labels: tuple[str, ...]
    indices: tuple[int, ...]
    engine: Engine
    sets: tuple[Assignment, ...]
    free: bool
    extra: bool


@dataclass
class _Unrolling:
    """Turns combinations into settings, and settings into cells."""

    document: Document
    axes: Sequence[Axis]
    place: str
    merged: int = 0
    _settings: dict[bytes, _Setting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._base = tuple(assignments(self.document.base))

    def check_alone(self) -> None:
        """Find what is wrong with the base, or with one value of an axis, whatever it is combined with."""
        for key, value in self._base:
            check_key(key, f"{self.place}: base.{key}")
            if key == ENGINE and value not in ENGINES:
                raise ConfigError(f"{self.place}: base.engine must be one of: {', '.join(ENGINES)}")
        self._check_part((), f"{self.place}: base")
        for axis in self.axes:
            for choice in axis.choices:
                self._check_part(choice.sets, f'{self.place}: grid.{axis.name} "{choice.label}"')

    def add(self, combination: Combination, *, extra: bool = False) -> None:
        """Add the runs of one combination, or merge them into those that are the same."""
        chosen = [choice for choice in combination if choice is not None]
        sets = (*self._base, *(one for choice in chosen for one in choice.sets))
        shown = tuple(UNKNOWN if choice is None else choice.label for choice in combination)
        with _naming(f"{self.place}: cell {self._title(shown)}"):
            settings = _settings(sets)
            varied = {key.partition(".")[0] for choice in chosen for key, _ in choice.sets}
            free = "attack" in varied and _is_free(settings)
            if free:
                sets = (*sets, *ATTACK_FREE)
                settings = _settings(sets)
            _check_attack(settings)
            tree = settings.validate(RunSpec).as_dict()
        engine = _engine_of(sets, self.document.engine)
        pairs = zip(self.axes, combination, strict=True)
        labels = tuple(self._label(axis, choice, tree, engine, free) for axis, choice in pairs)
        setting = _Setting(labels, self._indices(combination), engine, sets, free, extra)
        self._keep(_identity(tree, engine), setting)

    def cells(self, patterns: Sequence[Pattern]) -> tuple[Cell, ...]:
        """Return a cell for each setting and seed, without those that a pattern with seeds leaves out."""
        self._check_labels()
        return tuple(
            Cell(digest(identity, str(seed).encode()).hex()[:32], one.labels, seed, one.engine, one.sets)
            for seed in self.document.seeds
            for identity, one in self._settings.items()
            if not any(seed in (pattern.seeds or ()) and pattern.fits(one.indices) for pattern in patterns)
        )

    def labels(self) -> dict[str, tuple[str, ...]]:
        """Return the labels of each axis: what its cells read beside its choices, then these in order."""
        found: dict[str, tuple[str, ...]] = {}
        for number, axis in enumerate(self.axes):
            used = dict.fromkeys(setting.labels[number] for setting in self._settings.values())
            listed = [choice.label for choice in axis.choices]
            found[axis.name] = (*(one for one in used if one not in listed), *(one for one in listed if one in used))
        return found

    def _check_part(self, sets: tuple[Assignment, ...], place: str) -> None:
        with _naming(place):
            mistakes = _settings((*self._base, *sets)).mistakes(RunSpec)
        for mistake in mistakes:
            if mistake.key:  # what spans several keys may be mended by another axis
                raise ConfigError(f"{place}: {_plain(mistake.line)}")

    def _label(self, axis: Axis, choice: Any, tree: Mapping[str, Any], engine: Engine, free: bool) -> str:
        if free and axis.name == "byzantine":
            return ANY
        if choice is not None:
            return str(choice.label)
        if axis.bundle:
            return UNKNOWN
        return engine if axis.name == ENGINE else label_of(_at(tree, axis.name))

    def _indices(self, combination: Combination) -> tuple[int, ...]:
        return tuple(
            -1 if choice is None or choice not in axis.choices else axis.choices.index(choice)
            for axis, choice in zip(self.axes, combination, strict=True)
        )

    def _title(self, labels: Sequence[str]) -> str:
        return _title([axis.name for axis in self.axes], labels)

    def _keep(self, identity: bytes, setting: _Setting) -> None:
        known = self._settings.setdefault(identity, setting)
        if known is setting:
            return
        if not (setting.extra or (setting.free and known.free)):
            one, other = self._title(known.labels), self._title(setting.labels)
            raise ConfigError(f"{self.place}: cell {one} and cell {other} are the same run; leave one out")
        self.merged += 1
        if not setting.extra:
            known.labels = tuple(a if a == b else ANY for a, b in zip(known.labels, setting.labels, strict=True))

    def _check_labels(self) -> None:
        """Refuse two runs with all labels in common: they would be averaged as if one repeated the other."""
        seen = set()
        for setting in self._settings.values():
            if setting.labels in seen:
                title = self._title(setting.labels)
                raise ConfigError(f"{self.place}: two different runs are both {title}; give a value a label of its own")
            seen.add(setting.labels)


def _engine_of(sets: Sequence[Assignment], default: Engine) -> Engine:
    """Return the engine that the last of ``sets`` to name one names."""
    found: Engine = default
    for key, value in sets:
        found = value if key == ENGINE else found
    return found


def _combinations(axes: Sequence[Axis], patterns: Sequence[Pattern]) -> tuple[list[Combination], int]:
    """Return the combinations that no pattern leaves out, and the number of those left out."""
    every = product(*(range(len(axis.choices)) for axis in axes))
    kept = [indices for indices in every if not any(pattern.fits(indices) for pattern in patterns)]
    chosen: list[Combination] = [
        tuple(axis.choices[at] for axis, at in zip(axes, indices, strict=True)) for indices in kept
    ]
    return chosen, prod(len(axis.choices) for axis in axes) - len(kept)


def _settings(sets: Sequence[Assignment]) -> Settings:
    settings = Settings(SECTIONS)
    # A section's name comes before its options, whatever their order: a new name drops the old one's options.
    for key, value in sorted(sets, key=lambda one: one[0].removesuffix(".name") not in SECTIONS):
        if key != ENGINE:
            settings.add_option(key, dict(value) if isinstance(value, Mapping) else value, "")
    topology = settings.get("topology")
    if topology is not None and settings.get("nodes") is None:
        settings.add_option("nodes", _nodes_of(json.dumps(topology, default=str)), "")
    return settings


@lru_cache(maxsize=256)
def _nodes_of(topology: str) -> int:
    """Return the nodes of a run that names nothing but this topology: a graph from a file knows its own."""
    return load_spec(None, {"topology": json.loads(topology)}).nodes


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Put the ``place`` in front of a mistake that is found there."""
    try:
        yield
    except UsageError as error:
        raise ConfigError(f"{place}: {_plain(str(error))}") from None


def _plain(line: str) -> str:
    """Return a line of ``Settings`` without the origin of its key, which is empty here."""
    return line.removeprefix(": ")


def _check_attack(settings: Settings) -> None:
    attack, count = settings.get("attack"), settings.get("byzantine")
    if not _is_free(settings) and not count:
        mend = 'add byzantine, or leave 0 out of it and add "none" to attack'
        raise ConfigError(f'attack "{label_of(attack)}" has no Byzantine node; {mend}')
    if _is_free(settings) and count:
        raise ConfigError(f"byzantine = {count} without an attack; add attack to [base] or [grid]")


def _is_free(settings: Settings) -> bool:
    attack = settings.get("attack")
    name = attack.get("name") if isinstance(attack, Mapping) else attack
    return name in {None, "none", ""}


def _identity(tree: Mapping[str, Any], engine: Engine) -> bytes:
    known = {key: value for key, value in tree.items() if key != "seed"}
    whole = {"engine": engine, "schema": RESULT_SCHEMA, "version": __version__, "spec": known}
    return digest(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode())


def _title(names: Sequence[str], labels: Sequence[str]) -> str:
    return ", ".join(f"{name}={label}" for name, label in zip(names, labels, strict=True) if label != UNKNOWN)


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@lru_cache(maxsize=1)
def _default_run() -> Mapping[str, Any]:
    return RunSpec().as_dict()


def _differences(tree: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if value == default.get(key):
            continue
        nested = isinstance(value, Mapping) and isinstance(default.get(key), Mapping) and key not in SECTIONS
        found[key] = _differences(value, default[key]) if nested else value
    return found
