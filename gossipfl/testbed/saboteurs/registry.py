"""Saboteurs by the names that configurations use, next to those of ``gossipfl.robust.registry.ATTACKS``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from gossipfl.errors import ConfigError
from gossipfl.robust.registry import ATTACKS, make_attack
from gossipfl.settings import choose
from gossipfl.testbed.saboteurs.base import Sabotage
from gossipfl.testbed.saboteurs.equivocation import Equivocation
from gossipfl.testbed.saboteurs.flood import StaleFlood
from gossipfl.testbed.saboteurs.layouts import LayoutLie
from gossipfl.testbed.saboteurs.numbers import BadNumbers
from gossipfl.testbed.saboteurs.replay import Replay
from gossipfl.testbed.saboteurs.silence import Silence

if TYPE_CHECKING:
    from gossipfl.robust.base import Attack, Conspiracy

SABOTEURS: Mapping[str, Callable[..., Sabotage]] = {
    "equivocation": Equivocation,
    "replay": Replay,
    "stale-flood": StaleFlood,
    "silence": Silence,
    "layout-lie": LayoutLie,
    "nan": BadNumbers,
}


def make_sabotage(name: str, options: Mapping[str, object] | None = None) -> Sabotage:
    """Return the sabotage ``name`` with its ``options`` set; raises ConfigError for what it does not know."""
    if name not in SABOTEURS:
        raise ConfigError(f'attack "{name}" is unknown; choose one of: {", ".join(SABOTEURS)}')
    factory: Any = SABOTEURS[name]
    kinds = {field.name: bool if field.type == "bool" else float for field in fields(factory)}
    for option, value in (options or {}).items():
        if option not in kinds:
            choice = f"its options are: {', '.join(kinds)}" if kinds else "it has no options"
            raise ConfigError(f'attack "{name}" has no option "{option}"; {choice}')
        if kinds[option] is bool and not isinstance(value, bool):
            raise ConfigError(f'attack "{name}": {option} = {value!r} must be true or false')
        if kinds[option] is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ConfigError(f'attack "{name}": {option} = {value!r} must be a number')
    made: Sabotage = factory(**(options or {}))
    return made


def make_any_attack(name: str, options: Mapping[str, object] | None = None) -> Attack | Conspiracy | Sabotage:
    """Return the attack ``name``, on models or on the protocol; raises ConfigError for what neither knows."""
    if name in SABOTEURS:
        return make_sabotage(name, options)
    if name not in ATTACKS:
        raise ConfigError(f'attack "{name}" is unknown{choose(name, [*ATTACKS, *SABOTEURS])}')
    return make_attack(name, options)
