"""Options of graphs by name: what they may be, and one clear line where a value is none of it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gossipfl.errors import TopologyError

Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Option:
    """One option: type, default (None: chosen from the number of nodes, or none) and meaning.

    ``choices`` are the words that a text may be; without them it may be any.
    """

    kind: type[int] | type[float] | type[str]
    default: int | float | str | None
    meaning: str
    choices: tuple[str, ...] = ()


def chosen(name: str, known: Mapping[str, Option], given: Mapping[str, object]) -> dict[str, Any]:
    """Return the value of every ``known`` option of the graph ``name``: the ``given`` one, else its default.

    An option given as None counts as left out. Raises ``TopologyError``.
    """
    refuse_unknown(name, given, tuple(known))
    return {key: _value(f'topology "{name}": {key}', option, given.get(key)) for key, option in known.items()}


def refuse_unknown(name: str, given: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise ``TopologyError`` where ``given`` has an option that the graph ``name`` does not know."""
    unknown = [option for option in given if option not in known]
    if unknown:
        choice = f"choose one of: {', '.join(known)}" if known else "it takes none"
        raise TopologyError(f'topology "{name}" has no option "{unknown[0]}"; {choice}')


def told(options: Options) -> str:
    """Return the ``options`` that have a value as a message tells them."""
    return ", ".join(f"{key} = {value}" for key, value in options.items() if value is not None)


def near(word: str, known: Iterable[str]) -> str:
    """Return a question that offers the one of ``known`` that ``word`` may have meant, or nothing."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f'did you mean "{close[0]}"? ' if close else ""


def _value(where: str, option: Option, given: object) -> int | float | str | None:
    if given is None:
        return option.default
    # bool is an int to Python, but "degree = true" is a mistake; an int where a fraction is meant is none.
    if not isinstance(given, bool):
        if option.kind is int and isinstance(given, int):
            return given
        if option.kind is float and isinstance(given, (int, float)) and math.isfinite(given):
            return float(given)
        if option.kind is str and isinstance(given, str):
            return _word(where, option, given)
    wanted = {int: "a whole number", float: "a number", str: "a text"}[option.kind]
    raise TopologyError(f"{where} is {given!r}; give {wanted} ({option.meaning})")


def _word(where: str, option: Option, given: str) -> str:
    if option.choices and given not in option.choices:
        raise TopologyError(
            f'{where} is "{given}"; {near(given, option.choices)}choose one of: {", ".join(option.choices)}'
        )
    return given
