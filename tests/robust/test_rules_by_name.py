from __future__ import annotations

import re

import pytest
from robust.rule_cases import BOUNDED, NAMES, rule_for

from gossipfl.errors import ConfigError
from gossipfl.robust.registry import RULES, make_rule


def refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_rule(name, options)


@pytest.mark.parametrize("name", NAMES)
def test_rules_carry_their_names(name: str) -> None:
    assert rule_for(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_equal_options_make_equal_rules(name: str) -> None:
    """Rules are values: frozen, compared by their options."""
    assert rule_for(name) == rule_for(name)
    assert hash(rule_for(name)) == hash(rule_for(name))


@pytest.mark.parametrize("name", BOUNDED)
def test_a_rule_that_needs_f_asks_for_it(name: str) -> None:
    refused(
        name,
        {},
        f'rule "{name}" needs f: how many Byzantine neighbours it should withstand (a number, or "known")',
    )
    assert "f" in make_rule(name, {"f": 2}).needs
    assert "f" in make_rule(name, {"f": "known"}).needs


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("f", [-1, 1.5])
def test_f_is_a_count(name: str, f: float) -> None:
    refused(name, {"f": f}, f'rule "{name}": f = {f} must be a whole number from 0 on, or "known"')


def test_f_is_a_number_or_known() -> None:
    refused("krum", {"f": "many"}, 'rule "krum": f = \'many\' must be a number or "known"')
    refused("krum", {"f": True}, 'rule "krum": f = True must be a number or "known"')
    refused("balance", {"gamma": "known"}, "rule \"balance\": gamma = 'known' must be a number")


def test_unknown_names_offer_the_nearest_and_list_the_known() -> None:
    refused("balanse", {}, 'rule "balanse" is unknown; did you mean "balance"? choose one of: mean, alone, balance')
    refused("zzz", {}, f'rule "zzz" is unknown; choose one of: {", ".join(RULES)}')
    refused("nnm+kurm", {"f": 1}, 'rule "kurm" is unknown; did you mean "krum"?')
    refused("nmn+krum", {"f": 1}, 'pre-step "nmn" is unknown; did you mean "nnm"? choose one of: nnm, arc')
    refused("krum+nnm", {"f": 1}, 'rule "nnm" is unknown')


def test_options_of_a_rule_after_steps_are_those_of_the_rule_and_f() -> None:
    refused("nnm+mean", {"f": 1, "gamma": 2}, 'rule "nnm+mean" has no option "gamma"; its options are: f')
    rule = make_rule("arc+self-clip", {"f": 1, "tau": 3})
    assert rule.rule.tau == 3  # type: ignore[attr-defined]


def test_a_rule_that_follows_its_neighbours_takes_no_step() -> None:
    refused("nnm+wfagg", {"f": 1}, 'rule "wfagg" follows what each neighbour publishes; it takes no pre-step')
