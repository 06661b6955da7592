"""A user's own task, named ``package.module:factory``: the only dynamic import of the package."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from gossipfl.errors import ConfigError

if TYPE_CHECKING:
    from gossipfl.tasks.base import Task

REQUIRED = ("shards", "learner", "flip_labels")


def load(name: str, options: Mapping[str, object]) -> Task:
    """Import ``module``, call ``factory(**options)`` and return the task it makes.

    Raises ConfigError where the name does not lead to a callable, the options do not fit it, or the result
    is no task. Any other error inside the user's code passes through unchanged, with its traceback.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ConfigError(f'task "{name}" is no package.module:factory; write it like mypackage.tasks:make')
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the user's module exists but misses something of its own
        raise ConfigError(
            f'task "{name}": no module named {error.name}; install it or put its folder on PYTHONPATH'
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f'task "{name}": {module_name} has no callable "{attribute}"; name a factory of a task')
    return _made(name, found, options)


def _made(name: str, factory: Callable[..., object], options: Mapping[str, object]) -> Task:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(f'task "{name}" does not take these options: {error}') from error
    except ValueError:
        pass  # no signature to look at (a C function): the call itself decides
    task = factory(**options)
    missing = [method for method in REQUIRED if not callable(getattr(task, method, None))]
    if missing or not isinstance(getattr(task, "name", None), str):
        raise ConfigError(
            f'task "{name}" returned a {type(task).__name__} without {", ".join(missing or ["name"])}; '
            "return an object with name, shards, learner and flip_labels"
        )
    return cast("Task", task)
