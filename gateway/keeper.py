"""Retires what the ledger need no longer keep, a little at a time. One task a process; several may run over one ledger."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from gateway.ledger.archive import Archive
from gateway.ledger.contract import CallRecord, Keep, Ledger

_EVERY_S: Final = 5.0
_PAUSE_S: Final = 0.02  # between batches: the calls of that time go first
# Small enough that the ledger is done with one before a call would notice (measured: docs/store.md).
_BATCH: Final = 24


class Keeper:
    """`keep` is asked each time: a new policy may say otherwise. `archive` None: the ledger itself keeps records long enough.
    `on_failure` is told of a store that does not answer, and of whatever else went wrong, each time."""

    def __init__(
        self,
        ledger: Ledger,
        keep: Callable[[], Keep],
        archive: Archive | None,
        clock_ms: Callable[[], int],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._ledger = ledger
        self._keep = keep
        self._archive = archive
        self._clock_ms = clock_ms
        self._on_failure = on_failure

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.tidy()
            except Exception as failure:  # noqa: BLE001 - a background loop: without it ledgers would grow. What is due stays due
                self._on_failure(failure)
            await asyncio.sleep(_EVERY_S)

    async def tidy(self) -> int:
        """What is due, a batch of each kind at a time so that calls get in between, for as long as batches are full: a few that are due
        by now wait for the next time. Returns how many things went."""
        gone = 0
        while True:
            rounds = [await self._retire(), await self._sweep(), await self._rotate()]
            gone += sum(done for done, _ in rounds)
            if not any(more for _, more in rounds):
                return gone
            await asyncio.sleep(_PAUSE_S)

    async def _retire(self) -> tuple[int, bool]:
        """How many, and whether there are more to expect."""
        keep = self._keep()
        aged = await self._ledger.aged(keep, _BATCH)
        if aged and self._archive is not None:
            await self._archive.keep(aged)
        retired = 0
        for tenant, ids in _by_tenant(aged).items():
            retired += await self._ledger.retire(tenant, ids, keep)
        return retired, len(aged) == _BATCH and retired > 0  # none: another gateway was quicker, and goes on

    async def _sweep(self) -> tuple[int, bool]:
        swept = await self._ledger.sweep(self._keep(), _BATCH)
        return swept, swept >= _BATCH

    async def _rotate(self) -> tuple[int, bool]:
        forgotten = 0 if self._archive is None else await self._archive.rotate(self._clock_ms(), _BATCH)
        return forgotten, forgotten == _BATCH


def _by_tenant(records: Sequence[CallRecord]) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for each in records:
        ids.setdefault(each.tenant, []).append(each.decision_id)
    return ids
