"""Topic filters, by the examples of the standard (MQTT 3.1.1, section 4.7) and against a slow model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.transports.subscriptions import Subscriptions

LEVELS = st.sampled_from(["a", "b", "", "$s"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.one_of(LEVELS, st.just("+")), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "sport/tennis", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/monitor", False),
        ("+/monitor", "$SYS/monitor", False),
        ("$SYS/#", "$SYS/monitor", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("ACCOUNTS", "Accounts", False),
        ("/finance", "finance", False),
    ],
)
def test_the_standards_examples(pattern: str, topic: str, matches: bool) -> None:
    table: Subscriptions[str] = Subscriptions()
    table.add("ann", pattern, 1)
    assert table.matching(topic) == ({"ann": 1} if matches else {})


def test_a_subscriber_gets_the_highest_qos_of_its_filters_once() -> None:
    table: Subscriptions[str] = Subscriptions()
    for pattern, qos in (("a/b", 0), ("a/+", 1), ("a/#", 0)):
        table.add("ann", pattern, qos)
    table.add("bob", "a/b", 0)
    assert table.matching("a/b") == {"ann": 1, "bob": 0}
    table.remove("ann", "a/+")
    assert table.matching("a/b") == {"ann": 0, "bob": 0}
    table.remove("ann", "never/added")
    table.add("bob", "a/b", 1)
    assert table.count("bob") == 1
    table.forget("ann")
    assert (table.matching("a/b"), table.count("ann")) == ({"bob": 1}, 0)


def slow_match(pattern: list[str], topic: list[str], first: bool = True) -> bool:
    """Section 4.7 as a recursion."""
    if pattern and first and topic[0].startswith("$") and pattern[0] in ("+", "#"):
        return False
    if pattern == ["#"]:
        return True
    if not pattern or not topic:
        return not pattern and not topic
    return pattern[0] in ("+", topic[0]) and slow_match(pattern[1:], topic[1:], first=False)


@given(st.lists(st.tuples(st.sampled_from("xyz"), FILTERS, st.booleans()), max_size=20), TOPICS)
def test_adding_and_removing_any_filters_agrees_with_the_model(steps: list[tuple[str, str, bool]], topic: str) -> None:
    table: Subscriptions[str] = Subscriptions()
    model: set[tuple[str, str]] = set()
    for subscriber, pattern, add in steps:
        if add:
            table.add(subscriber, pattern, 1)
            model.add((subscriber, pattern))
        else:
            table.remove(subscriber, pattern)
            model.discard((subscriber, pattern))
    expected = {who: 1 for who, pattern in model if slow_match(pattern.split("/"), topic.split("/"))}
    assert table.matching(topic) == expected
    for subscriber in "xyz":
        assert table.count(subscriber) == sum(who == subscriber for who, _ in model)
