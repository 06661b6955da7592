"""Which subscriber wants which MQTT topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

S = TypeVar("S")


class Subscriptions(Generic[S]):
    """Topic filters (MQTT 3.1.1, section 4.7) of many subscribers, with the QoS granted to each.

    A filter without wildcards costs one dictionary look-up per message, however many there are; those with
    wildcards are tried one after the other.
    """

    def __init__(self) -> None:
        self._exact: dict[str, dict[S, int]] = {}
        self._wild: dict[str, dict[S, int]] = {}
        self._filters: dict[S, set[str]] = {}

    def add(self, subscriber: S, pattern: str, qos: int) -> None:
        """Remember a filter; one that the subscriber has already gets the new QoS."""
        self._table(pattern).setdefault(pattern, {})[subscriber] = qos
        self._filters.setdefault(subscriber, set()).add(pattern)

    def remove(self, subscriber: S, pattern: str) -> None:
        """Forget a filter, if it is there."""
        table = self._table(pattern)
        holders = table.get(pattern, {})
        holders.pop(subscriber, None)
        if not holders:
            table.pop(pattern, None)
        self._filters.get(subscriber, set()).discard(pattern)

    def forget(self, subscriber: S) -> None:
        """Forget every filter of ``subscriber``."""
        for pattern in list(self._filters.get(subscriber, ())):
            self.remove(subscriber, pattern)
        self._filters.pop(subscriber, None)

    def count(self, subscriber: S) -> int:
        """Return the number of filters of ``subscriber``."""
        return len(self._filters.get(subscriber, ()))

    def matching(self, topic: str) -> dict[S, int]:
        """Return the subscribers of ``topic``, each once, with the highest QoS of its matching filters.

        Not to be changed by the caller.
        """
        found = self._exact.get(topic, {})
        if not self._wild:
            return found
        merged = dict(found)
        for holders in self._wild_matches(topic):
            for subscriber, qos in holders.items():
                merged[subscriber] = max(qos, merged.get(subscriber, 0))
        return merged

    def _wild_matches(self, topic: str) -> Iterator[dict[S, int]]:
        levels = topic.split("/")
        for pattern, holders in self._wild.items():
            if _matches(pattern.split("/"), levels):
                yield holders

    def _table(self, pattern: str) -> dict[str, dict[S, int]]:
        return self._wild if "+" in pattern or "#" in pattern else self._exact


def _matches(pattern: list[str], topic: list[str]) -> bool:
    if topic[0].startswith("$") and pattern[0] in {"+", "#"}:
        return False
    for depth, level in enumerate(pattern):
        if level == "#":
            return True
        if depth >= len(topic) or level not in {"+", topic[depth]}:
            return False
    return len(pattern) == len(topic)
