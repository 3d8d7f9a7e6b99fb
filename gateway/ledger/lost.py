"""The ledger of a gateway that must not serve: the store is not the one it saw before. Every step says so, until somebody adopts it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gateway.ledger.contract import Expired, LedgerLost


@dataclass(frozen=True, slots=True)
class LostLedger:
    """A `Ledger` that takes no step. A gateway that ended instead would leave callers with a refused connection, and nobody would tell
    them why; one that started from zero would let every run spend its ceiling again."""

    why: str

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def expire(self, at_most: int = 100) -> Sequence[Expired]:  # noqa: ARG002 - the contract's signature
        """Not a refusal: the reaper asks every second, and would tell the log each time."""
        return ()

    def health(self) -> Mapping[str, object]:
        return {"ok": False, "why": f"ledger_lost: {self.why}"}

    async def _refuse(self, *_asked: object, **_also: object) -> NoReturn:
        raise LedgerLost(self.why)

    reserve = commit = release = extend = _refuse
    stopped = set_limit = stop = settle = _refuse
    run = runs = record = balances = holds = spend = _refuse
