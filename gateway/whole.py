"""An answer that is kept whole until its client has it: bounded by itself, and over all calls.

A small one is read as it is. Of a large one the room is taken before it is read on, for as much as it may become; until there is room the
provider waits, and nothing grows.
"""

from gateway.buffers import Queue
from gateway.large import SMALL_BYTES
from gateway.upstream import Answer, TooLarge


class Whole:
    """One answer. `give_back` is due when it is kept no more, whatever became of it."""

    __slots__ = ("_allowed", "_answer", "_limit", "_pieces", "_queue", "_size", "_taken")

    def __init__(self, answer: Answer, limit: int, queue: Queue) -> None:
        self._answer = answer
        self._limit = limit
        self._queue = queue
        self._pieces: list[bytes] = []
        self._size = 0
        self._allowed = SMALL_BYTES
        self._taken = 0

    async def read(self) -> bytes:
        """TooLarge past the limit (decoded); Unknown when it breaks off."""
        answer = self._answer
        length = answer.headers.get("Content-Length", "")
        declared = int(length) if length.isascii() and length.isdigit() else self._limit
        if declared <= SMALL_BYTES:
            return await answer.read(self._limit)
        if declared > self._limit:
            raise self._too_large()
        while not await answer.pour(self._keep):
            if not self._taken:
                await self._queue.taken(declared)
                self._allowed = self._taken = declared
        self._give(self._taken - self._size)
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    def give_back(self) -> None:
        self._give(self._taken)
        self._pieces.clear()

    def _give(self, size: int) -> None:
        if self._taken:
            self._taken -= size
            self._queue.give(size)

    def _keep(self, piece: bytes) -> bool:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._limit:
            raise self._too_large()
        return self._size <= self._allowed

    def _too_large(self) -> TooLarge:
        self._answer.close()
        return TooLarge(f"the provider's answer is longer than {self._limit} bytes")
