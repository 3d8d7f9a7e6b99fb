"""Threads for what is large: which, how many at once, and what they do to the rest of the process."""

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from gateway.large import HUGE_BYTES, LargeWork

LONG, HUGE = HUGE_BYTES, HUGE_BYTES + 1


@pytest.fixture
def large() -> Iterator[LargeWork]:
    work = LargeWork()
    yield work
    work.close()


async def test_work_is_done_on_another_thread_and_what_it_raises_comes_out(large: LargeWork) -> None:
    for size in (LONG, HUGE):
        assert await large.done(size, threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await large.done(size, lambda: 1 // 0)


async def test_huge_ones_take_one_thread_however_many_there_are_and_long_ones_pass_them(large: LargeWork) -> None:
    held, running = threading.Event(), list[str]()

    def work(name: str) -> str:
        running.append(name)
        held.wait(60)
        return name

    waiting = [asyncio.create_task(large.done(HUGE, lambda name=name: work(name))) for name in ("first", "second", "third")]
    try:
        for _ in range(3):
            assert await large.done(LONG, lambda: "passed") == "passed"
        assert running == ["first"]
    finally:
        held.set()
    assert await asyncio.gather(*waiting) == ["first", "second", "third"]


async def test_it_is_crowded_when_so_many_huge_ones_wait_that_another_would_hardly_have_its_turn(large: LargeWork) -> None:
    held = threading.Event()
    waiting = [asyncio.create_task(large.done(HUGE, lambda: held.wait(60))) for _ in range(32)]
    try:
        assert not large.crowded
        await asyncio.sleep(0)
        assert large.crowded
    finally:
        held.set()
    await asyncio.gather(*waiting)
    assert not large.crowded


async def test_who_is_cancelled_while_it_waits_is_done_nothing_for_and_leaves_its_place(large: LargeWork) -> None:
    held, done = threading.Event(), list[int]()
    first = asyncio.create_task(large.done(HUGE, lambda: held.wait(60)))
    second = asyncio.create_task(large.done(HUGE, lambda: done.append(2)))
    third = asyncio.create_task(large.done(HUGE, lambda: done.append(3)))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    await asyncio.sleep(0)  # its thread's side hears of it in the loop's next turn
    held.set()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert done == [3]


async def test_threads_take_shorter_turns_while_something_large_is_worked_on_and_no_longer(large: LargeWork) -> None:
    usual, held = sys.getswitchinterval(), threading.Event()

    def work() -> float:
        held.wait(60)
        return sys.getswitchinterval()

    both = [asyncio.create_task(large.done(size, work)) for size in (LONG, HUGE)]
    await asyncio.sleep(0)
    held.set()
    assert await asyncio.gather(*both) == [pytest.approx(0.0005)] * 2
    assert sys.getswitchinterval() == usual
