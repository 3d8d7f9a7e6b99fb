"""What is kept at once, over all calls."""

import asyncio

import pytest

from gateway.buffers import Buffers, Queue


def test_what_was_given_back_can_be_taken_again_and_no_more_than_that() -> None:
    buffers = Buffers(100)
    assert buffers.take(60)
    assert not buffers.take(41)
    assert buffers.held == 60, "what was refused was not taken"
    assert buffers.take(40)
    buffers.give(60)
    assert buffers.take(60)
    assert not buffers.take(1)


def test_to_give_back_what_was_not_taken_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        Buffers(100).give(1)


async def test_who_finds_no_room_waits_for_it_in_the_order_of_asking() -> None:
    queue, order = Queue(100), list[int]()

    async def take(number: int, size: int) -> None:
        await queue.taken(size)
        order.append(number)

    await take(0, 90)
    waiting = [asyncio.create_task(take(number, size)) for number, size in ((1, 60), (2, 5), (3, 50))]
    await asyncio.sleep(0)
    assert order == [0], "the second would fit, and would leave the first without room for ever"
    queue.give(90)
    await asyncio.gather(*waiting[:2])
    assert (order, queue.held) == ([0, 1, 2], 65)
    queue.give(60)
    await waiting[2]
    assert (order, queue.held) == ([0, 1, 2, 3], 55)


async def test_a_wait_that_is_cancelled_has_taken_nothing_and_lets_the_next_one_pass() -> None:
    queue = Queue(100)
    await queue.taken(50)
    large, small = (asyncio.create_task(queue.taken(size)) for size in (80, 20))
    await asyncio.sleep(0)
    large.cancel()
    await small
    assert (large.cancelled(), queue.held) == (True, 70)


async def test_room_that_comes_in_the_turn_in_which_the_wait_is_cancelled_is_given_back() -> None:
    queue = Queue(100)
    await queue.taken(100)
    first, second = (asyncio.create_task(queue.taken(100)) for _ in range(2))
    await asyncio.sleep(0)
    queue.give(100)
    first.cancel()
    await second
    assert (first.cancelled(), queue.held) == (True, 100)
    third = asyncio.create_task(queue.taken(10))
    await asyncio.sleep(0)
    third.cancel()
    queue.give(100)  # in the turn in which it is cancelled, the other way round
    await asyncio.wait([third])
    assert queue.held == 0
