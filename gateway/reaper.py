"""Ends holds whose lease ran out. One task a process; several may run over one ledger, and each hold is ended by one of them."""

import asyncio
from collections.abc import Callable
from typing import Final

from gateway.ledger.contract import Expired, Ledger

_BATCH: Final = 100


class Reaper:
    """`on_expired` is told of each hold; `on_failure` of a ledger that does not answer, and of whatever else went wrong, each time."""

    def __init__(
        self, ledger: Ledger, every_ms: int, on_expired: Callable[[Expired], None], on_failure: Callable[[Exception], None]
    ) -> None:
        self._ledger = ledger
        self._every_s = every_ms / 1000
        self._on_expired = on_expired
        self._on_failure = on_failure

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception as failure:  # noqa: BLE001 - a background loop: without it no hold would be ended any more. They wait
                self._on_failure(failure)
            await asyncio.sleep(self._every_s)

    async def sweep(self) -> int:
        """Ends everything that is due, a batch at a time so that calls get in between. Returns how many."""
        ended = 0
        while True:
            expired = await self._ledger.expire(_BATCH)
            for each in expired:
                self._on_expired(each)
            ended += len(expired)
            if len(expired) < _BATCH:
                return ended
