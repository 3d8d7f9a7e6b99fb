"""Answers that are kept whole: how much of all of them together, and that what was taken is always given back."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.buffers import Queue
from gateway.upstream import TooLarge, Unknown
from gateway.whole import Whole
from tests.support.flow import Client, chat, world
from tests.support.provider import Behaviour, Cut, FaultProvider

LIMIT = 1_000_000


class Pieces:
    """An answer that comes in pieces, and may break off; it counts what was asked of the provider."""

    status = 200

    def __init__(self, *pieces: bytes, length: bool = False, breaks: bool = False) -> None:
        self._left = list(pieces)
        self._breaks = breaks
        self.closed = False
        size = {"Content-Length": str(sum(map(len, pieces)))} if length else {}
        self.headers = CIMultiDictProxy(CIMultiDict(size))

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        while self._left:
            await asyncio.sleep(0)
            if not take(self._left.pop(0)):
                return False
        if self._breaks:
            raise Unknown("cut")
        return True

    async def read(self, limit: int) -> bytes:
        del limit
        body, self._left = b"".join(self._left), []
        return body

    def close(self) -> None:
        self.closed = True

    @property
    def left(self) -> int:
        return sum(map(len, self._left))


def whole(answer: Pieces, queue: Queue) -> Whole:
    return Whole(answer, LIMIT, queue)  # type: ignore[arg-type]


async def test_a_small_answer_takes_no_room() -> None:
    queue = Queue(LIMIT)
    for answer in (Pieces(b"x" * 65_536), Pieces(b"x" * 65_536, length=True)):
        assert await whole(answer, queue).read() == b"x" * 65_536
        assert queue.held == 0


async def test_a_large_answer_takes_what_it_is_until_it_is_given_back() -> None:
    queue = Queue(LIMIT)
    for length in (True, False):
        kept = whole(Pieces(b"a" * 50_000, b"b" * 50_000, length=length), queue)
        assert await kept.read() == b"a" * 50_000 + b"b" * 50_000
        assert queue.held == 100_000
        kept.give_back()
        kept.give_back()
        assert queue.held == 0


async def test_where_there_is_no_room_the_provider_waits() -> None:
    queue = Queue(LIMIT)
    await queue.taken(1)
    answer = Pieces(*[b"x" * 40_000] * 20)
    kept = whole(answer, queue)
    reading = asyncio.create_task(kept.read())
    for _ in range(50):
        await asyncio.sleep(0)
    assert answer.left == 18 * 40_000, "no more was taken than what is not counted, and the piece that passed it"
    queue.give(1)
    assert len(await reading) == 800_000
    assert queue.held == 800_000
    kept.give_back()


@pytest.mark.parametrize("length", [True, False])
async def test_an_answer_above_its_limit_is_not_read_on(length: bool) -> None:
    queue, answer = Queue(LIMIT), Pieces(*[b"x" * 100_000] * 50, length=length)
    kept = whole(answer, queue)
    with pytest.raises(TooLarge):
        await kept.read()
    assert answer.closed
    assert answer.left >= 3_900_000
    kept.give_back()
    assert queue.held == 0


async def test_however_hundreds_of_calls_end_nothing_is_kept_in_the_end(tmp_path: Path, provider: FaultProvider) -> None:
    """Answered, cut, too large, left by their clients, cancelled; most of them waiting for room."""
    draw = random.Random(7)
    async with world(tmp_path, provider.base_url, max_response=400_000, max_bodies=400_000) as here:

        async def call(number: int) -> None:
            client = Client()
            task = asyncio.create_task(here.ask(chat(f"{number}"), run=f"r{number % 7}", client=client))
            how = draw.random()
            await asyncio.sleep(draw.random() * 0.05)
            if how < 0.3:
                client.leave()
            elif how < 0.5:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        for _ in range(6):
            behaviours = [
                Behaviour(
                    padding=draw.choice((10, 70_000, 200_000, 390_000, 500_000)),
                    cut_at_byte=draw.choice((None, None, 66_000, 150_000)),
                    cut=draw.choice(tuple(Cut)),
                    gzip=draw.random() < 0.2,
                    status=draw.choice((None, None, None, 400)),
                )
                for _ in range(60)
            ]
            provider.next(*behaviours)
            await asyncio.gather(*[call(number) for number in range(60)])
            assert here.shared.answers.held == 0
    assert await asyncio.wait_for(here.shared.answers.taken(400_000), 1) is None, "and nobody stands in the line"
