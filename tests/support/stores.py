"""The stores that a ledger's tests run over, each with the clock in the test's hand.

store = SqliteStore(tmp_path)
async with opened(store, clock) as ledger: …        # any number of ledgers, as of so many gateways
store_at(store.address)                             # the same store in another process
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from gateway.ledger.contract import Ledger
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.support.clock import Clock

PATIENT_MS: Final = 60_000  # two cores may be shared by many


class Store(Protocol):
    @property
    def address(self) -> str:
        """What another process needs to open it."""

    def ledger(self, clock: Clock, timeout_ms: int = PATIENT_MS) -> Ledger:
        """Not started. Those of one store share a witness."""


@dataclass
class SqliteStore:
    folder: Path

    @property
    def address(self) -> str:
        return f"sqlite {self.folder}"

    def ledger(self, clock: Clock, timeout_ms: int = PATIENT_MS) -> Ledger:
        return SqliteLedger(str(self.folder / "ledger.db"), Witness(self.folder / "witness"), clock, timeout_ms=timeout_ms)


def store_at(address: str) -> Store:
    kind, _, where = address.partition(" ")
    return {"sqlite": SqliteStore}[kind](Path(where))


def new_store(kind: str, folder: Path) -> Store:
    """An empty one. `kind`: one of STORES."""
    assert kind == "sqlite"
    return SqliteStore(folder)


STORES: Final = ("sqlite",)


@asynccontextmanager
async def opened(store: Store, clock: Clock) -> AsyncIterator[Ledger]:
    ledger = store.ledger(clock)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.close()
