"""The bounded queue below every transport."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipfl.clock import run_virtual
from gossipfl.errors import TransportClosed
from gossipfl.transports.mailbox import Mailbox


@given(st.lists(st.one_of(st.integers(0, 60), st.none()), max_size=60))
def test_it_holds_the_oldest_items_within_both_bounds(steps: list[int | None]) -> None:
    """A number offers an item of that size, None takes one; a plain list is the model."""
    model: list[tuple[int, int]] = []

    async def main() -> None:
        mailbox: Mailbox[int] = Mailbox(max_items=5, max_bytes=100)
        for number, step in enumerate(steps):
            if step is None:
                if model:
                    assert await mailbox.get() == model.pop(0)[0]
            else:
                fits = not model or (len(model) < 5 and sum(size for _, size in model) + step <= 100)
                assert mailbox.offer(number, step) == fits
                if fits:
                    model.append((number, step))
            assert len(mailbox) == len(model)
            assert mailbox.held_bytes == sum(size for _, size in model)

    run_virtual(main())


def test_push_drops_the_oldest() -> None:
    async def main() -> None:
        mailbox: Mailbox[str] = Mailbox(max_items=2)
        assert [mailbox.push(item) for item in "abc"] == [0, 0, 1]
        assert [await mailbox.get(), await mailbox.get()] == ["b", "c"]

    run_virtual(main())


def test_get_waits_for_an_item_and_ends_at_close() -> None:
    async def main() -> None:
        mailbox: Mailbox[str] = Mailbox(max_items=2)
        getters = [asyncio.create_task(mailbox.get()) for _ in range(2)]
        await asyncio.sleep(1)
        mailbox.offer("one")
        await asyncio.sleep(1)
        assert [getter.done() for getter in getters] == [True, False]
        mailbox.close()
        with pytest.raises(TransportClosed):
            await getters[1]
        assert not mailbox.offer("late")

    run_virtual(main())


def test_a_cancelled_getter_loses_no_item() -> None:
    async def main() -> None:
        mailbox: Mailbox[str] = Mailbox(max_items=2)
        first, second = (asyncio.create_task(mailbox.get()) for _ in range(2))
        await asyncio.sleep(0)
        mailbox.offer("one")
        first.cancel()
        assert await second == "one"

    run_virtual(main())


def test_it_must_hold_something() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mailbox(max_items=0)
