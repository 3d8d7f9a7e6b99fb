"""Retires what the ledger need no longer keep, a little at a time. One task a process; several may run over one ledger."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from gateway.ledger.archive import Archive
from gateway.ledger.contract import CallRecord, Keep, Ledger, LedgerLost, LedgerUnavailable

_EVERY_S: Final = 5.0
_PAUSE_S: Final = 0.02  # between batches: the calls of that time go first
# Small enough that the ledger is done with one before a call would notice (measured: docs/store.md).
_BATCH: Final = 24


class Keeper:
    """`keep` is asked each time: a new policy may say otherwise. `archive` None: the ledger itself keeps records long enough.
    `on_failure` is told of a store that does not answer, each time it is asked in vain."""

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
            except (LedgerUnavailable, LedgerLost) as failure:  # what is due stays due
                self._on_failure(failure)
            await asyncio.sleep(_EVERY_S)

    async def tidy(self) -> int:
        """Everything that is due, a batch at a time so that calls get in between. Returns how many things went."""
        gone = 0
        for step in (self._retire, self._ledger_sweep, self._rotate):
            while done := await step():
                gone += done
                await asyncio.sleep(_PAUSE_S)
        return gone

    async def _retire(self) -> int:
        keep = self._keep()
        aged = await self._ledger.aged(keep, _BATCH)
        if aged and self._archive is not None:
            await self._archive.keep(aged)
        retired = 0
        for tenant, ids in _by_tenant(aged).items():
            retired += await self._ledger.retire(tenant, ids, keep)
        return retired  # 0 although there were some: another gateway was quicker, and goes on

    async def _ledger_sweep(self) -> int:
        return await self._ledger.sweep(self._keep(), _BATCH)

    async def _rotate(self) -> int:
        return 0 if self._archive is None else await self._archive.rotate(self._clock_ms(), _BATCH)


def _by_tenant(records: Sequence[CallRecord]) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for each in records:
        ids.setdefault(each.tenant, []).append(each.decision_id)
    return ids
