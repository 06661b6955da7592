"""Which values an attack's options may have; every refusal is one line."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from gossipfl.errors import ConfigError


def positive(attack: str, option: str, value: float) -> None:
    """Refuse what is not a finite number above 0."""
    _require(attack, option, value, isfinite(value) and value > 0, "greater than 0")


def finite(attack: str, option: str, value: float) -> None:
    """Refuse NaN and infinity."""
    _require(attack, option, value, isfinite(value), "a finite number")


def between(attack: str, option: str, value: float, least: float, most: float) -> None:
    """Refuse what lies outside [least, most]."""
    _require(attack, option, value, least <= value <= most, f"between {least:g} and {most:g}")


def whole(attack: str, option: str, value: float, least: int) -> None:
    """Refuse what is no whole number, or less than ``least``."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    _require(attack, option, value, fits, f"a whole number from {least} on")


def flag(attack: str, option: str, value: object) -> None:
    """Refuse what is neither true nor false."""
    _require(attack, option, value, isinstance(value, bool), "true or false")


def choice(attack: str, option: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is none of ``choices``."""
    _require(attack, option, value, value in choices, f"one of: {', '.join(choices)}")


def _require(attack: str, option: str, value: object, fits: bool, needs: str) -> None:
    if not fits:
        raise ConfigError(f'attack "{attack}": {option} = {value} must be {needs}')
