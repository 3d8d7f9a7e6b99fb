"""How many bytes are kept at once for whoever has yet to take them, over all calls of the process."""

import asyncio
from collections import deque


class Buffers:
    """`most`: bytes. Whoever keeps something takes its size first, and gives that back once."""

    __slots__ = ("_most", "held")

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, size: int) -> bool:
        """False: that would be more than may be kept at once, and nothing was taken."""
        if not self.has_room(size):
            return False
        self.held += size
        return True

    def has_room(self, size: int) -> bool:
        """At this moment."""
        return self.held + size <= self._most

    def give(self, size: int) -> None:
        self.held -= size
        assert self.held >= 0, "given back twice"


class Queue(Buffers):
    """The same, where whoever finds no room waits for it, in the order of asking."""

    __slots__ = ("_waiting",)

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def taken(self, size: int) -> None:
        """At most all that there is. A wait that is cancelled has taken nothing."""
        assert size <= self._most, "there would never be room"
        if not self._waiting and self.take(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._go_on()  # who waited behind it may have room
            else:  # both came in one turn of the loop
                self.give(size)
            raise

    def give(self, size: int) -> None:
        super().give(size)
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.cancelled():
                if not self.take(size):
                    return
                turn.set_result(None)
            self._waiting.popleft()
