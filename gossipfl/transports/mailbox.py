"""A bounded, closable queue for one event loop: the inbox and the event list of every transport."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from gossipfl.errors import TransportClosed

T = TypeVar("T")


class Mailbox(Generic[T]):
    """First in, first out; at most ``max_items`` items and ``max_bytes`` bytes, whichever is reached first.

    An empty mailbox takes one item of any size. When it is full, ``offer`` refuses and ``push`` drops the
    oldest. After ``close`` every waiting and every later ``get`` raises TransportClosed, nothing more is
    taken in, and the items not yet taken are gone.
    """

    def __init__(self, max_items: int, max_bytes: int | None = None) -> None:
        if max_items < 1:
            raise ValueError(f"a mailbox holds at least one item, not {max_items}")
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._arrival = asyncio.Event()
        self._room = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def held_bytes(self) -> int:
        """Bytes of all items that wait."""
        return self._bytes

    def offer(self, item: T, size_bytes: int = 0) -> bool:
        """Append ``item`` if there is room, and say whether it was appended."""
        if self._closed or not self._has_room(size_bytes):
            return False
        self._append(item, size_bytes)
        return True

    def push(self, item: T, size_bytes: int = 0) -> int:
        """Append ``item``, dropping the oldest until it fits; return the number dropped."""
        dropped = 0
        while not self._closed and not self._has_room(size_bytes):
            self._take()
            dropped += 1
        self.offer(item, size_bytes)
        return dropped

    async def room(self) -> None:
        """Wait until an item has been taken, ``wake`` was called, or the mailbox is closed."""
        self._room.clear()
        await self._room.wait()

    def wake(self) -> None:
        """Let everyone who waits for room look again."""
        self._room.set()

    async def get(self) -> T:
        """Remove and return the oldest item as soon as there is one."""
        while not self._closed and not self._items:
            self._arrival.clear()
            await self._arrival.wait()
        if self._closed:
            raise TransportClosed("the transport was closed")
        return self._take()

    def close(self) -> None:
        """Drop every item and wake every waiter."""
        self._closed = True
        self._items.clear()
        self._bytes = 0
        self._arrival.set()
        self._room.set()

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        if len(self._items) >= self._max_items:
            return False
        return self._max_bytes is None or self._bytes + size_bytes <= self._max_bytes

    def _append(self, item: T, size_bytes: int) -> None:
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        self._arrival.set()

    def _take(self) -> T:
        item, size_bytes = self._items.popleft()
        self._bytes -= size_bytes
        self._room.set()
        return item
