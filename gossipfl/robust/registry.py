"""Rules and attacks by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from gossipfl.errors import ConfigError
from gossipfl.robust.attacks import Gaussian, LabelFlip, SignFlip
from gossipfl.robust.balance import Balance
from gossipfl.robust.base import Attack, Rule
from gossipfl.robust.mean import Mean

RULES: Mapping[str, Callable[..., Rule]] = {"mean": Mean, "balance": Balance}
ATTACKS: Mapping[str, Callable[..., Attack]] = {
    "sign-flip": SignFlip,
    "gaussian": Gaussian,
    "label-flip": LabelFlip,
}

_Made = TypeVar("_Made")


def make_rule(name: str, options: Mapping[str, object] | None = None) -> Rule:
    """Return the rule ``name`` with its ``options`` set; raises ConfigError for what it does not know."""
    return _make("rule", RULES, name, options or {})


def make_attack(name: str, options: Mapping[str, object] | None = None) -> Attack:
    """Return the attack ``name`` with its ``options`` set; raises ConfigError for what it does not know."""
    return _make("attack", ATTACKS, name, options or {})


def _make(kind: str, registry: Mapping[str, Callable[..., _Made]], name: str, options: Mapping[str, object]) -> _Made:
    if name not in registry:
        raise ConfigError(f'{kind} "{name}" is unknown; choose one of: {", ".join(registry)}')
    factory: Any = registry[name]
    known = [field.name for field in fields(factory)]
    for option, value in options.items():
        if option not in known:
            choice = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise ConfigError(f'{kind} "{name}" has no option "{option}"; {choice}')
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f'{kind} "{name}": {option} = {value!r} must be a number')
    made: _Made = factory(**options)
    return made
