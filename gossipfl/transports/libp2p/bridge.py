"""A trio loop in a thread of its own, for an asyncio program, and bounded queues between the two.

py-libp2p runs on trio only, the agent on asyncio. What crosses is a whole frame or a whole call, never a byte at a
time. A queue wakes the other side only when that side waits, since waking another thread costs more than handing over
a frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

from gossipfl.errors import TransportClosed

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class TrioThread:
    """Runs async functions of trio for an asyncio loop.

    ``start`` before anything else, ``close`` in any case. An exception raised over there is raised here, with its
    traceback; a cancellation here cancels over there and waits until that has ended. Where the trio loop itself ends
    by an error, so does every call under way, and every later one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._calls: set[asyncio.Future[Any]] = set()
        self._error: BaseException | None = None

    async def start(self) -> None:
        """Start the thread; returns when its loop runs."""
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        await asyncio.shield(self._started)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._main)
        except BaseException as problem:  # noqa: BLE001 - told to whoever calls, on the other side
            error = problem
        self._call_asyncio(self._end, error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            self._call_asyncio(self._note_start)
            await trio.sleep_forever()

    def _note_start(self) -> None:
        if not self._started.done():
            self._started.set_result(None)

    def _end(self, error: BaseException | None) -> None:
        self._error = error or TransportClosed("the transport was closed")
        self._ended.set()
        for call in [*self._calls, self._started]:
            if not call.done():
                call.set_exception(self._error)
                call.exception()  # whoever waits still gets it; nobody may

    def _call_asyncio(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function on the asyncio loop, unless that has been closed without a good-bye."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def tell_asyncio(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """From trio: call ``function`` on the asyncio loop, soon."""
        self._call_asyncio(function, *args)

    def tell_trio(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """From asyncio: call a plain ``function`` on the trio loop, soon; nothing happens once that has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function, *args)

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Run an async function of trio and return what it returns, or raise what it raises."""
        if self._error is not None:
            raise self._error
        answer: asyncio.Future[T] = self._loop.create_future()
        scope = trio.CancelScope()

        async def call() -> None:
            ended: Callable[[], object] = answer.cancel
            try:
                with scope:
                    ended = partial(_settle, answer, await function(*args), None)
            except Exception as error:  # noqa: BLE001 - it is raised on the other side
                ended = partial(_settle, answer, None, error)
            self._call_asyncio(ended)

        self._calls.add(answer)
        try:
            self._token.run_sync_soon(self._nursery.start_soon, call)
            return await asyncio.shield(answer)
        except trio.RunFinishedError:
            raise TransportClosed("the transport was closed") from None
        except asyncio.CancelledError:
            self.tell_trio(scope.cancel)
            await asyncio.wait([answer])
            raise
        finally:
            self._calls.discard(answer)

    async def start_task(self, function: Callable[..., Awaitable[object]]) -> Any:
        """Start an async function that goes on by itself; return what it passes to ``task_status.started``.

        What it raises before that is raised here; what it raises later ends the loop.
        """
        return await self.run(self._nursery.start, function)

    async def ended(self) -> BaseException:
        """Wait until the trio loop has ended, and return why."""
        await self._ended.wait()
        assert self._error is not None
        return self._error

    async def close(self) -> None:
        """Cancel everything that runs over there, and join the thread; may be called again."""
        if self._thread is None:
            return
        if not self._ended.is_set():
            await asyncio.wait([self._started])
            self.tell_trio(self._nursery.cancel_scope.cancel)
        await self._ended.wait()
        self._thread.join()


def _settle(answer: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)


class Crossing(Generic[T]):
    """A bounded queue from one thread to another: at most ``max_items`` items and ``max_bytes`` bytes.

    An empty one takes an item of any size. ``wake_taker`` is called, in the giver's thread, when an item comes and
    the taker had found nothing; ``wake_giver``, in the taker's thread, when there is room and a giver had found none.
    """

    def __init__(
        self, max_items: int, max_bytes: int, wake_taker: Callable[[], None], wake_giver: Callable[[], None]
    ) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._wake_taker = wake_taker
        self._wake_giver = wake_giver
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._taker_waits = False
        self._giver_waits = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def held_bytes(self) -> int:
        """Bytes of all items that wait."""
        return self._bytes

    def offer(self, item: T, size_bytes: int) -> bool:
        """Append ``item`` if there is room; if not, ``wake_giver`` will tell when to try again."""
        with self._lock:
            full = len(self._items) >= self._max_items or self._bytes + size_bytes > self._max_bytes
            if self._items and full:
                self._giver_waits = True
                return False
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            wake, self._taker_waits = self._taker_waits, False
        if wake:
            self._wake_taker()
        return True

    def take(self) -> T | None:
        """Remove and return the oldest item; None where there is none, and ``wake_taker`` will tell of the next."""
        with self._lock:
            if not self._items:
                self._taker_waits = True
                return None
            item, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            wake, self._giver_waits = self._giver_waits, False
        if wake:
            self._wake_giver()
        return item

    def clear(self) -> list[T]:
        """Remove and return everything."""
        with self._lock:
            items = [item for item, _ in self._items]
            self._items.clear()
            self._bytes = 0
            wake, self._giver_waits = self._giver_waits, False
        if wake:
            self._wake_giver()
        return items
