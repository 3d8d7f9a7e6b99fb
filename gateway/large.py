"""What takes more than a millisecond is done in threads of its own, so that it stalls no other call: reading and counting large bodies,
metering large answers.

Huge ones go in a single file, however many come at once; what is merely long, as an agent's conversation is, has threads beside it; and
what is small needs none of them.

A thread alone is not enough: whoever wants the interpreter waits until it changes threads, every 5 ms. While something is worked on
here, it changes every half one. A single step in C (orjson, a hash, a copy) still holds it to its end: docs/operations.md says for how long.
"""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

T = TypeVar("T")

SMALL_BYTES: Final = 65_536  # some 0.5 ms of reading, for usual messages; a hundred messages in most conversations
HUGE_BYTES: Final = 1 << 20
_LONG_AT_ONCE: Final = 2
_WAITING_AT_MOST: Final = 32  # huge requests; one that is all text is tokenized for two seconds
_TURN_S: Final = 0.0005


class LargeWork:
    """Two kinds of threads, started when they are first needed."""

    def __init__(self) -> None:
        self._long = ThreadPoolExecutor(_LONG_AT_ONCE, "long-bodies")
        self._huge = ThreadPoolExecutor(1, "huge-bodies")
        self._waiting = 0
        self._turns = _QuickTurns()

    @property
    def crowded(self) -> bool:
        """So many huge ones are waited for that another would hardly have its turn in time."""
        return self._waiting >= _WAITING_AT_MOST

    async def of(self, body: bytes, work: Callable[[bytes], T]) -> T:
        """`work(body)`; of a small body here and now."""
        return work(body) if len(body) <= SMALL_BYTES else await self.done(len(body), partial(work, body))

    async def done(self, size: int, work: Callable[[], T]) -> T:
        """What `work` returns or raises. `size`: bytes. Whoever waits may be cancelled; what has begun is then done for nobody."""
        loop = asyncio.get_running_loop()
        if size <= HUGE_BYTES:
            return await loop.run_in_executor(self._long, self._turns.kept, work)
        self._waiting += 1
        try:
            return await loop.run_in_executor(self._huge, self._turns.kept, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """What has not begun is done no more."""
        for threads in (self._long, self._huge):
            threads.shutdown(wait=False, cancel_futures=True)


class _QuickTurns:
    """The process's, as long as anything is worked on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working = 0
        self._usual_s = 0.0

    def kept(self, work: Callable[[], T]) -> T:
        with self._lock:
            self._working += 1
            if self._working == 1:
                self._usual_s = sys.getswitchinterval()
                sys.setswitchinterval(_TURN_S)
        try:
            return work()
        finally:
            with self._lock:
                self._working -= 1
                if self._working == 0:
                    sys.setswitchinterval(self._usual_s)
