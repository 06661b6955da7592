"""The axes of a grid: what may vary, under which labels, and which combinations are left out.

An axis is a key of a run with a list of values, or a named list of tables that set several keys together:

    [grid]
    rule = ["mean", { name = "balance", gamma = 0.5, label = "wide" }]
    "train.lr" = [0.1, 0.05]

    [[grid.setting]]
    label = "ring"
    topology = "ring"
    nodes = 10
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossipfl.config import SECTIONS, RunSpec
from gossipfl.errors import ConfigError
from gossipfl.experiments.document import ENGINES
from gossipfl.settings import choose, clip, suggest

Assignment = tuple[str, Any]
"""A dotted key of a run, and its value."""

ENGINE = "engine"
"""The one key that may vary and is no key of a run."""

LABEL_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Choice:
    """One place on an axis: its ``label`` in tables, and what it ``sets``."""

    label: str
    sets: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A named list of choices; ``bundle``: each sets keys of its own, and the name is no key."""

    name: str
    choices: tuple[Choice, ...]
    bundle: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """All keys that its choices set."""
        return frozenset(key for choice in self.choices for key in touched(choice.sets))


def read_axes(grid: Mapping[str, Any], place: str) -> tuple[Axis, ...]:
    """Return the axes of a ``[grid]`` table; ``place`` begins each error line. Raises ConfigError."""
    axes = tuple(_read_axis(key, values, f"{place}: grid.{key}") for key, values in _leaves(grid))
    if not axes:
        raise ConfigError(f"{place}: grid is empty; give it a key with a list of values, e.g. rule = [...]")
    owners: dict[str, str] = {}
    for axis in axes:
        for key in sorted(axis.keys):
            if key in owners:
                raise ConfigError(f"{place}: grid.{axis.name} and grid.{owners[key]} both set {key}; one must leave it")
            owners[key] = axis.name
    return axes


def read_choices(key: str, values: Sequence[Any], place: str) -> tuple[Choice, ...]:
    """Return the choices that a list of ``values`` of the key ``key`` means."""
    drafts = [_draft(key, value, place) for value in values]
    shorts = Counter(given or short for given, short, _, _ in drafts)
    choices = tuple(
        Choice(given or (short if shorts[short] == 1 else long), sets) for given, short, long, sets in drafts
    )
    _check_labels([choice.label for choice in choices], place)
    return choices


def assignments(table: Mapping[str, Any], prefix: str = "") -> Iterator[Assignment]:
    """Yield what a table of keys sets. A section with a ``name`` is one value; other tables are set key by key."""
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, Mapping) and value and not (name in SECTIONS and "name" in value):
            yield from assignments(value, name + ".")
        else:
            yield name, value


def touched(sets: Sequence[Assignment]) -> Iterator[str]:
    """Yield every key that is set, the options of named sections among them."""
    for key, value in sets:
        name = key.removesuffix(".name")
        yield name if name in SECTIONS else key
        if isinstance(value, Mapping):
            yield from (f"{key}.{option}" for option in value if option != "name")


def check_key(key: str, place: str) -> None:
    """Raise ConfigError where a run has no such key; deeper keys are checked with the whole run."""
    root = key.partition(".")[0]
    if key == "seed":
        raise ConfigError(f"{place}: seed has a key of its own; write seeds = [...] at the top of the file")
    if root not in RunSpec.model_fields and key != ENGINE:
        raise ConfigError(f"{place} is no key of a run{suggest(root, RunSpec.model_fields) or '; see docs/testbed.md'}")


def label_of(value: Any) -> str:
    """Return a value as a short label: a section by its name alone."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case Mapping():
            return str(value["name"] or "none") if "name" in value else _options(value)
        case list() | tuple():
            return ",".join(map(label_of, value))
    return clip(str(value))


def find(choices: Sequence[Choice], value: Any) -> tuple[int, ...]:
    """Return the places of the choices that ``value`` means: the one so labelled, or else those that set it."""
    labelled = tuple(at for at, choice in enumerate(choices) if choice.label == value)
    return labelled or tuple(at for at, choice in enumerate(choices) if any(same(has, value) for _, has in choice.sets))


def same(value: Any, pattern: Any) -> bool:
    """Say whether a value is what a pattern names; a name alone stands for a section with any options."""
    if isinstance(value, Mapping) and not isinstance(pattern, Mapping):
        value = value.get("name")
    return isinstance(value, bool) == isinstance(pattern, bool) and bool(value == pattern)


def _leaves(grid: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in grid.items():
        if isinstance(value, Mapping) and (prefix or key in RunSpec.model_fields):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _read_axis(name: str, values: Any, place: str) -> Axis:
    if not isinstance(values, list):
        raise ConfigError(f"{place} must be a list of values, not {clip(values)}; a single one belongs under [base]")
    if not values:
        raise ConfigError(f"{place} has no value; give it at least one, or leave the axis out")
    tables = all(isinstance(value, Mapping) for value in values)
    if tables and "." not in name and name not in RunSpec.model_fields and name != ENGINE:
        return Axis(name, _read_bundle(values, place), bundle=True)
    check_key(name, place)
    return Axis(name, read_choices(name, values, place))


def _read_bundle(tables: Sequence[Mapping[str, Any]], place: str) -> tuple[Choice, ...]:
    choices = []
    for number, table in enumerate(tables, start=1):
        label = _given_label(table, place)
        if not label:
            raise ConfigError(f"{place}: table {number} has no label; add label = '...' (or is grid.<key> misspelt?)")
        sets = tuple(assignments({key: value for key, value in table.items() if key != "label"}))
        for key, value in sets:
            check_key(key, f'{place} "{label}": {key}')
            if key == ENGINE:
                _check_engine(value, place)
        choices.append(Choice(label, sets))
    _check_labels([choice.label for choice in choices], place)
    return tuple(choices)


def _draft(key: str, value: Any, place: str) -> tuple[str, str, str, tuple[Assignment, ...]]:
    """Return a value's given label (or nothing), its short and long ones, and what it sets."""
    given = ""
    if isinstance(value, Mapping):
        given = _given_label(value, place)
        value = {inner: one for inner, one in value.items() if inner != "label"}
        value = value["value"] if set(value) == {"value"} else value
    if key == ENGINE:
        _check_engine(value, place)
    name = label_of(value)
    options = _options({k: v for k, v in value.items() if k != "name"}) if isinstance(value, Mapping) else ""
    long = f"{name} {options}" if options and "name" in value else name
    return given, name, long, tuple(assignments({key: value}))


def _options(table: Mapping[str, Any]) -> str:
    return clip(" ".join(f"{key}={label_of(value)}" for key, value in table.items()))


def _given_label(table: Mapping[str, Any], place: str) -> str:
    label = table.get("label", "")
    if not isinstance(label, str) or len(label) > LABEL_CHARACTERS or not label.isprintable():
        raise ConfigError(f"{place}: label {clip(label)} must be text of at most {LABEL_CHARACTERS} characters")
    return label


def _check_labels(labels: Sequence[str], place: str) -> None:
    for label, count in Counter(labels).items():
        if count > 1:
            raise ConfigError(f'{place}: {count} values have the label "{label}"; give each a label of its own')


def _check_engine(value: Any, place: str) -> None:
    if value not in ENGINES:
        raise ConfigError(f"{place}: engine cannot be {clip(value)}{choose(str(value), ENGINES)}")
