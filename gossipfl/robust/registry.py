"""Rules and attacks by the names that configurations use."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from gossipfl.errors import ConfigError
from gossipfl.robust import attacks
from gossipfl.robust.balance import Balance
from gossipfl.robust.base import KNOWN, Attack, Conspiracy, Rule
from gossipfl.robust.mean import Mean
from gossipfl.robust.rules.alone import Alone
from gossipfl.robust.rules.clipping import AdaptiveClip, CsPlus, Rtc, SelfClip
from gossipfl.robust.rules.coordinates import Median, TrimmedMean
from gossipfl.robust.rules.geometric import GeometricMedian
from gossipfl.robust.rules.krum import Krum, MultiKrum
from gossipfl.robust.rules.pace import Pace
from gossipfl.robust.rules.presteps import Arc, Nnm, Preceded, PreStep
from gossipfl.robust.rules.selection import Faba, Ios, Nna
from gossipfl.robust.rules.sketch import Sketchguard
from gossipfl.robust.rules.validation import Ubar
from gossipfl.robust.rules.wfagg import Wfagg

RULES: Mapping[str, Callable[..., Rule]] = {
    "mean": Mean,
    "alone": Alone,
    "balance": Balance,
    "pace": Pace,
    "sketchguard": Sketchguard,
    "ubar": Ubar,
    "self-clip": SelfClip,
    "adaptive-clip": AdaptiveClip,
    "cs-plus": CsPlus,
    "rtc": Rtc,
    "ios": Ios,
    "faba": Faba,
    "nna": Nna,
    "krum": Krum,
    "multi-krum": MultiKrum,
    "geometric-median": GeometricMedian,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "wfagg": Wfagg,
}
PRE_STEPS: Mapping[str, Callable[[], PreStep]] = {"nnm": Nnm, "arc": Arc}
ATTACKS: Mapping[str, Callable[..., Attack | Conspiracy]] = {
    "sign-flip": attacks.SignFlip,
    "gaussian": attacks.Gaussian,
    "label-flip": attacks.LabelFlip,
    "feature-noise": attacks.FeatureNoise,
    "backdoor": attacks.Backdoor,
    "slow-drift": attacks.SlowDrift,
    "on-off": attacks.OnOff,
    "sybil": attacks.Sybil,
    "duplicate": attacks.Duplicate,
    "alie": attacks.Alie,
    "ipm": attacks.InnerProduct,
    "sign-flip-mean": attacks.SignFlipMean,
    "gaussian-mean": attacks.GaussianMean,
    "min-max": attacks.MinMax,
    "min-sum": attacks.MinSum,
    "trim": attacks.Trim,
    "krum-attack": attacks.KrumAttack,
    "dissensus": attacks.Dissensus,
    "isolation": attacks.Isolation,
    "sample-duplicating": attacks.SampleDuplicating,
    "spectral": attacks.Spectral,
    "threshold-hugging": attacks.ThresholdHugging,
}
"""Lone attacks, which real agents can play, and behind ``duplicate`` conspiracies, which only the simulator can."""

_Made = TypeVar("_Made")


def make_rule(name: str, options: Mapping[str, object] | None = None) -> Rule:
    """Return the rule ``name`` with its ``options`` set; raises ConfigError for what it does not know.

    Pre-steps stand before the rule, the first to be done first: ``"nnm+arc+median"``. They take their f from the
    option ``f``, as the rule does that needs one.
    """
    *steps, last = name.split("+")
    if not steps:
        return _make("rule", RULES, name, options or {})
    return _preceded(name, steps, last, dict(options or {}))


def make_attack(name: str, options: Mapping[str, object] | None = None) -> Attack | Conspiracy:
    """Return the attack ``name`` with its ``options`` set; raises ConfigError for what it does not know."""
    factory: Any = _find("attack", ATTACKS, name)
    known = {field.name: field.default for field in fields(factory)}
    # Options that are words or yes and no are checked by the attack itself, which knows the words.
    numbers = {
        option: value for option, value in (options or {}).items() if not isinstance(known.get(option), str | bool)
    }
    _check(f'attack "{name}"', list(known), [], numbers)
    made: Attack | Conspiracy = factory(**(options or {}))
    return made


def _preceded(name: str, steps: list[str], last: str, options: dict[str, Any]) -> Rule:
    """Return the rule ``last`` after ``steps``; its own f is what they leave of theirs."""
    factory: Any = _find("rule", RULES, last)
    made = [_find("pre-step", PRE_STEPS, step)() for step in steps]
    known = {"f", *(field.name for field in fields(factory))}
    _check(f'rule "{name}"', sorted(known), ["f"], options)
    f = options.pop("f")
    rule: Rule = factory(**options, **({"f": KNOWN} if _required(factory) else {}))
    if "previous" in rule.needs:
        raise ConfigError(f'rule "{last}" follows what each neighbour publishes; it takes no pre-step')
    for step in reversed(made[1:]):
        rule = Preceded(step, rule, f=KNOWN)
    return Preceded(made[0], rule, f=f)


def _make(kind: str, registry: Mapping[str, Callable[..., _Made]], name: str, options: Mapping[str, object]) -> _Made:
    factory: Any = _find(kind, registry, name)
    _check(f'{kind} "{name}"', [field.name for field in fields(factory)], _required(factory), options)
    made: _Made = factory(**options)
    return made


def _find(kind: str, registry: Mapping[str, _Made], name: str) -> _Made:
    if name not in registry:
        near = difflib.get_close_matches(name.lower(), list(registry), n=1)
        question = f'did you mean "{near[0]}"? ' if near else ""
        raise ConfigError(f'{kind} "{name}" is unknown; {question}choose one of: {", ".join(registry)}')
    return registry[name]


def _required(factory: Any) -> list[str]:
    return [field.name for field in fields(factory) if field.default is MISSING and field.default_factory is MISSING]


def _check(where: str, known: list[str], required: Iterable[str], options: Mapping[str, object]) -> None:
    for option, value in options.items():
        if option not in known:
            choice = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise ConfigError(f'{where} has no option "{option}"; {choice}')
        if option == "f" and value == KNOWN:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            wanted = f'a number or "{KNOWN}"' if option == "f" else "a number"
            raise ConfigError(f"{where}: {option} = {value!r} must be {wanted}")
    if "f" in required and "f" not in options:
        raise ConfigError(
            f'{where} needs f: how many Byzantine neighbours it should withstand (a number, or "{KNOWN}")'
        )
