"""A user's own task, named ``package.module:factory``: the only dynamic import of the package."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from gossipfl.errors import ConfigError, GossipflError

if TYPE_CHECKING:
    from gossipfl.tasks.base import Task

REQUIRED = ("shards", "learner", "flip_labels")


def load(name: str, options: Mapping[str, object]) -> Task:
    """Import ``module``, call ``factory(**options)`` and return the task it makes.

    Raises ConfigError where the name does not lead to a callable, the options do not fit it, the result is no
    task, or the user's code fails, which names the line of that code; its traceback is the error's cause.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ConfigError(f'task "{name}" is no package.module:factory; write it like mypackage.tasks:make')
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'task "{name}": no module named {error.name}; install it or put its folder on PYTHONPATH'
        ) from error
    except Exception as error:
        raise _failed(name, error) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f'task "{name}": {module_name} has no callable "{attribute}"; name a factory of a task')
    return _made(name, found, options)


def _failed(name: str, error: Exception) -> ConfigError:
    """Return the error for a user's code that failed: what it raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else name.partition(":")[0]
    if isinstance(error, SyntaxError) and error.filename is not None:
        where = f"{error.filename}, line {error.lineno}"
    told = " ".join(str(error).split())
    return ConfigError(f'task "{name}" failed: {type(error).__name__}: {told} ({where}); mend it there')


def _made(name: str, factory: Callable[..., object], options: Mapping[str, object]) -> Task:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ConfigError(f'task "{name}" does not take these options: {error}') from error
    except ValueError:
        pass  # no signature to look at (a C function): the call itself decides
    try:
        task = factory(**options)
    except GossipflError:
        raise
    except Exception as error:
        raise _failed(name, error) from error
    missing = [method for method in REQUIRED if not callable(getattr(task, method, None))]
    if missing or not isinstance(getattr(task, "name", None), str):
        raise ConfigError(
            f'task "{name}" returned a {type(task).__name__} without {", ".join(missing or ["name"])}; '
            "return an object with name, shards, learner and flip_labels"
        )
    return cast("Task", task)
