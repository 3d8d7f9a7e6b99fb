"""Watches the live calls of a process: their leases go on, and what was stopped or frozen elsewhere ends here too, within half a second."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.core.scopes import Caller
from gateway.core.values import Ending
from gateway.events import Events
from gateway.ledger.contract import Barrier, Ledger, LedgerLost, LedgerUnavailable

_WATCH_S: Final = 0.5  # how often a process asks which of its live calls were stopped or frozen
_TELL_AGAIN_S: Final = 60.0


class Live(Protocol):
    """A call that has a hold."""

    @property
    def caller(self) -> Caller: ...

    def keep_lease(self) -> None:
        """Extends it where that is due."""

    def interrupt(self, ending: Ending) -> None:
        """Ends it from outside."""


class Watch:
    """`live`: whoever is in it is watched."""

    def __init__(self, ledger: Ledger, events: Events) -> None:
        self._ledger = ledger
        self._events = events
        self.live: set[Live] = set()

    def interrupt(self, tenant: str, concerns: Callable[[Caller], bool], ending: Ending) -> None:
        for each in list(self.live):
            if each.caller.tenant == tenant and concerns(each.caller):
                each.interrupt(ending)

    def interrupt_all(self, ending: Ending) -> None:
        for each in list(self.live):
            each.interrupt(ending)

    async def run(self) -> None:
        """Until it is cancelled."""
        told_s = -_TELL_AGAIN_S
        # By tenant. Each has a slot of its own: one that is away, or only slow, keeps no other's stops from being noticed.
        asking: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(_WATCH_S)
                try:
                    for each in list(self.live):
                        each.keep_lease()
                    self._notice_halted(asking)
                except (LedgerUnavailable, LedgerLost) as failure:
                    # A ledger that is away is told of by the calls it refuses; this loop only must not end.
                    if time.monotonic() - told_s >= _TELL_AGAIN_S:
                        told_s = time.monotonic()
                        self._events.log.warning("watch_failed", why=str(failure))
                except Exception as failure:  # noqa: BLE001 - a background loop: without it no stop would be noticed any more
                    self._events.problem("watching live calls", failure)
        finally:
            for task in asking.values():
                task.cancel()

    def _notice_halted(self, asking: dict[str, asyncio.Task[None]]) -> None:
        """Asks about every tenant that has answered the time before, and raises what that one ended in."""
        answered = [asking.pop(tenant) for tenant, task in list(asking.items()) if task.done()]
        by_tenant: dict[str, list[Live]] = {}
        for each in self.live:
            by_tenant.setdefault(each.caller.tenant, []).append(each)
        for tenant, live in by_tenant.items():
            if tenant not in asking:
                asking[tenant] = asyncio.create_task(self._notice_of(tenant, live))
        for failure in [task.exception() for task in answered]:
            if failure is not None:
                raise failure

    async def _notice_of(self, tenant: str, live: Sequence[Live]) -> None:
        # Of one run mostly, and of one agent: who is asked about is asked about once.
        callers = tuple({each.caller for each in live})
        halted = dict(zip(callers, await self._ledger.halted(tenant, callers), strict=True))
        for each in live:
            barrier = halted[each.caller]
            if barrier is not None:
                each.interrupt(Ending.SCOPE_FROZEN if barrier is Barrier.FROZEN else Ending.RUN_STOPPED)
