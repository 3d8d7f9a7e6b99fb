"""A store that fails as told: before a step, after it, never answering, lost, gone. What is behind it is the real ledger.

faults = Faults()
faults.of["commit"] = AFTER            # done, and then said to have failed
ledger = Faulty(SqliteLedger(…), faults)
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.ledger.contract import Ledger, LedgerLost, LedgerUnavailable, OutcomeUnknown

BEFORE: Final = "before"  # it did not happen
AFTER: Final = "after"  # it happened, and nobody was told
HELD_UP: Final = "held up"  # it happens and is answered when `go` is set
LOST: Final = "lost"
BUG: Final = "bug"

STEPS: Final = ("reserve", "commit", "release", "extend", "debit", "fund", "put_document", "remember", "documents")


@dataclass
class Faults:
    """By step. `asked` counts what came through, `start` what is raised by the next starts."""

    of: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    start: Exception | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    closed: int = 0
    away: str | None = None  # the tenant of whom no end and no probe gets through
    taken: list[str] = field(default_factory=list)  # holds, as their commits and releases got through

    def everywhere(self, kind: str) -> None:
        self.of = dict.fromkeys(STEPS, kind)


class Faulty:
    """Stands before a ledger. Steps are under way when they return, as the contract says."""

    def __init__(self, real: Ledger, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        step = getattr(self._real, name)
        if name not in STEPS:
            return step

        def asked(*given: Any, **named: Any) -> Awaitable[Any]:
            self._faults.asked.append(name)
            if given[0] == self._faults.away:
                return asyncio.ensure_future(_away())
            if name in ("commit", "release"):
                self._faults.taken.append(given[1])
            return asyncio.ensure_future(self._do(name, lambda: step(*given, **named)))

        return asked

    async def start(self) -> None:
        if self._faults.start is not None:
            raise self._faults.start
        await self._real.start()

    async def close(self) -> None:
        self._faults.closed += 1
        await self._real.close()

    async def _do(self, name: str, step: Callable[[], Awaitable[Any]]) -> Any:
        fault = self._faults.of.get(name)
        if fault == BEFORE:
            raise LedgerUnavailable("the store is away")
        if fault == LOST:
            raise LedgerLost("the store is behind")
        if fault == BUG:
            raise ZeroDivisionError
        if fault == HELD_UP:
            await self._faults.go.wait()
        answer = await step()
        if fault == AFTER:
            raise OutcomeUnknown("the connection broke")
        return answer


async def _away() -> None:
    raise LedgerUnavailable("the slot is away")
