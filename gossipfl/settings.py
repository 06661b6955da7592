"""Settings from files, options and ``key=value`` pairs, checked against a pydantic model.

Every mistake becomes one ``ConfigError`` line that names the place, the key and the mend.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from gossipfl.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)

SHOWN_CHARACTERS = 60
"""Longest piece of a person's own text that an error line repeats."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in settings: where in the tree, and one line that says what is wrong and how to mend it.

    ``surplus``: the key is unknown; without it the settings mean what they say.
    """

    key: tuple[str | int, ...]
    line: str
    surplus: bool = False


SECRETS = frozenset({"password"})
"""Keys whose values no error line repeats."""


class Settings:
    """A tree of settings that remembers where each key came from; later sources win.

    ``sections`` maps each section that may be written as a bare name (``rule = "mean"``) to its default name.
    Naming another member of such a section drops the options that belonged to the former one.
    """

    def __init__(self, sections: Mapping[str, str | None] | None = None) -> None:
        self._sections = dict(sections or {})
        self._tree: dict[str, Any] = {}
        self._origins: dict[tuple[str, ...], str] = {}

    def add_file(self, path: Path) -> None:
        """Merge the TOML file at ``path``."""
        for key, value in read_toml(path).items():
            self._put((key,), value, f"{path}: ")

    def add_option(self, key: str, value: Any, flag: str) -> None:
        """Merge the value of a command-line option that sets ``key``; ``flag`` is its spelling."""
        self._put(tuple(key.split(".")), value, flag + ": ")

    def add_pair(self, pair: str) -> None:
        """Merge one ``dotted.key=value``; ``value`` is read as TOML, and as plain text where it is none."""
        key, equals, text = pair.partition("=")
        parts = tuple(part.strip() for part in key.split("."))
        if not equals or not all(parts):
            raise ConfigError(f"--set {clip(pair)}: write it as key=value, e.g. --set train.lr=0.05")
        shown = key if parts[-1] in SECRETS else clip(pair)
        self._put(parts, parse_value(text.strip()), f"--set {shown}: ")

    def get(self, key: str) -> Any:
        """Return the value of a top-level key as it was given, or None."""
        return self._tree.get(key)

    def validate(self, model: type[Model]) -> Model:
        """Return the settings as ``model``; raises ConfigError with the first mistake."""
        mistakes = self.mistakes(model)
        if mistakes:
            raise ConfigError(mistakes[0].line)
        return model.model_validate(self._tree)

    def mistakes(self, model: type[BaseModel]) -> list[Mistake]:
        """Return every mistake that ``model`` finds in the settings; those that span several keys come last."""
        try:
            model.model_validate(self._tree)
        except ValidationError as found:
            # A wrong value often causes a cross-key complaint too; the value itself is the better clue.
            errors = sorted(found.errors(include_url=False), key=lambda error: not error["loc"])
            return [
                Mistake(tuple(error["loc"]), self._line(model, error), error["type"] == "extra_forbidden")
                for error in errors
            ]
        return []

    def drop(self, key: tuple[str | int, ...]) -> bool:
        """Forget the value of one key, so that its default holds; False where there is none."""
        inside: Any = self._tree
        for part in key[:-1]:
            inside = inside.get(part) if isinstance(inside, dict) else None
        if not key or not isinstance(inside, dict) or key[-1] not in inside:
            return False
        del inside[key[-1]]
        return True

    def _put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        if len(path) == 2 and path[0] in self._sections and path[1] == "name":
            path = path[:1]
        if len(path) == 1 and path[0] in self._sections and isinstance(value, str):
            value = {"name": value, **self._kept_options(path[0], value)}
        self._origins = {old: where for old, where in self._origins.items() if old[: len(path)] != path}
        self._origins[path] = origin
        table = self._tree
        for depth, part in enumerate(path[:-1], start=1):
            inside = table.setdefault(part, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"{origin}{'.'.join(path[:depth])} holds one value, it has no keys")
            table = inside
        table[path[-1]] = value

    def _kept_options(self, section: str, name: str) -> dict[str, Any]:
        before = self._tree.get(section)
        if not isinstance(before, dict) or before.get("name", self._sections[section]) != name:
            return {}
        return {key: value for key, value in before.items() if key != "name"}

    def _line(self, model: type[BaseModel], error: Mapping[str, Any]) -> str:
        context = error.get("ctx") or {}
        location = tuple(str(part) for part in error["loc"] if part != "options")
        location += tuple(str(context["key"]).split(".")) if "key" in context else ()
        key = ".".join(location)
        origin = self._origin(location)
        # An option names its key by itself: "--nodes: must be ..." needs no "nodes" after it.
        subject = "" if origin.startswith("--") and not origin.startswith("--set") else key
        return f"{origin}{subject} {describe(model, location, error)}".strip().replace(":  ", ": ")

    def _origin(self, location: tuple[str, ...]) -> str:
        for depth in range(len(location), 0, -1):
            if location[:depth] in self._origins:
                return self._origins[location[:depth]]
        return ""


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file; raises ConfigError naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except FileNotFoundError:
        stems = [other.stem for other in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file{suggest(path.stem, stems)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {_syntax(str(error), text)}; TOML is written key = value") from None


def _syntax(message: str, text: str) -> str:
    """Return tomllib's message with the place in front; what is wrong at the very end is on the last line."""
    found = re.fullmatch(r"(.*) \(at (line \d+, column \d+|end of document)\)", message.splitlines()[0])
    if found is None:
        return message.splitlines()[0]
    where = found[2] if found[2] != "end of document" else f"line {len(text.rstrip().splitlines())}"
    return f"{where}: {found[1][:1].lower()}{found[1][1:]}"


def parse_value(text: str) -> Any:
    """Return ``text`` as a TOML value (``0.5``, ``true``, ``[1, 2]``), or itself where it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if list(parsed) != ["value"] or isinstance(parsed["value"], date | time):
        return text
    return parsed["value"]


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean "..."?`` for the known word nearest to ``word``, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def choose(word: str, known: Iterable[str]) -> str:
    """Return the mend for a name outside a fixed set: the nearest one, and all of them."""
    names = list(known)
    near = suggest(word, names)
    return f"{near or ';'} {'Choose' if near else 'choose'} one of: {', '.join(names)}"


def clip(value: Any) -> str:
    """Return a value as short one-line text."""
    text = (value if isinstance(value, str) else repr(value)).replace("\n", " ")
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def describe(model: type[BaseModel], location: tuple[str, ...], error: Mapping[str, Any]) -> str:
    """Return what is wrong with one key, and the mend, from a pydantic error."""
    kind, context, value = error["type"], error.get("ctx") or {}, error.get("input")
    not_this = "" if location[-1] in SECRETS else f", not {_quoted(value)}"
    match kind:
        case "extra_forbidden":
            return "is an unknown key" + _mend_key(model, location)
        case "missing":
            return "is missing"
        case "literal_error" | "enum":
            expected = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            return f"cannot be {_quoted(value)}{choose(str(value), expected)}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
            bound = next(f"{words[short]} {limit}" for short, limit in context.items() if short in words)
            return f"must be {bound}{not_this}"
    for prefix, wanted in _WANTED:
        if kind.startswith(prefix):
            return f"must be {wanted}{not_this}"
    message = str(error["msg"]).splitlines()[0].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


_WANTED = (
    ("int", "a whole number"),
    ("float", "a number"),
    ("finite", "a finite number"),
    ("bool", "true or false"),
    ("string_type", "text"),
    ("string_too_short", "a name"),
    ("path", "a path"),
    ("model", "a table of keys"),
    ("dict", "a table of keys"),
    ("list", "a list"),
    ("tuple", "a list"),
)


def _quoted(value: Any) -> str:
    return f'"{clip(value)}"' if isinstance(value, str) else clip(value)


def _mend_key(model: type[BaseModel], location: tuple[str, ...]) -> str:
    siblings = _keys_at(model, location[:-1])
    near = suggest(location[-1], siblings)
    if near:
        return near
    deeper = [path for path in _leaves(model) if path.rpartition(".")[2] == location[-1]]
    if deeper:
        return f'; did you mean "{deeper[0]}"?'
    return f"; known keys: {', '.join(siblings)}" if siblings else ""


def _submodel(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _keys_at(model: type[BaseModel], location: tuple[str, ...]) -> list[str]:
    inner: type[BaseModel] | None = model
    for part in location:
        if part.isdigit():
            continue
        field = inner.model_fields.get(part) if inner else None
        inner = _submodel(field.annotation) if field else None
    return list(inner.model_fields) if inner else []


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    paths: list[str] = []
    for name, field in model.model_fields.items():
        inner = _submodel(field.annotation)
        paths += _leaves(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return paths
