"""The stores that a ledger's tests run over, each with the clock in the test's hand.

store = SqliteStore(tmp_path)
async with opened(store, clock) as ledger: …        # any number of ledgers, as of so many gateways
store_at(store.address)                             # the same store in another process
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from gateway import store_url
from gateway.ledger.contract import Ledger
from gateway.ledger.redis import RedisLedger
from gateway.ledger.resp import Argument
from gateway.ledger.servers import Standalone
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.support.clock import Clock
from tests.support.valkey import shared_url

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


# Lua: the time that `Clocked` wrote into the tenant's slot.
TEST_CLOCK: Final = "return tonumber(call('GET', string.match(KEYS[1], '^.-}:') .. 'clock'))"


class Clocked(Standalone):
    """Tells the server the test's time before whatever is asked, on the same connection."""

    clock: Clock
    told: dict[str, int]

    def call(self, key: str, *args: Argument, **options: Any) -> "asyncio.Future[Any]":
        prefix, braces, _ = key.partition("}:")
        if braces and self.told.get(prefix) != self.clock():
            self.told[prefix] = self.clock()
            super().call(key, "SET", f"{prefix}}}:clock", self.clock(), idempotent=True)
        return super().call(key, *args, **options)


@dataclass
class ValkeyStore:
    """On the server of this test process, emptied by `new_store`."""

    folder: Path
    url: str

    @property
    def address(self) -> str:
        return f"valkey {self.url} {self.folder}"

    def ledger(self, clock: Clock, timeout_ms: int = PATIENT_MS) -> Ledger:
        servers = Clocked(store_url.parse(self.url), timeout_ms)
        servers.clock, servers.told = clock, {}
        return RedisLedger(servers, Witness(self.folder / "witness"), TEST_CLOCK)


def store_at(address: str) -> Store:
    kind, _, where = address.partition(" ")
    if kind == "valkey":
        url, _, folder = where.partition(" ")
        return ValkeyStore(Path(folder), url)
    return SqliteStore(Path(where))


def new_store(kind: str, folder: Path) -> Store:
    """An empty one. `kind`: one of STORES."""
    return ValkeyStore(folder, shared_url()) if kind == "valkey" else SqliteStore(folder)


STORES: Final = ("sqlite", "valkey")


@asynccontextmanager
async def opened(store: Store, clock: Clock) -> AsyncIterator[Ledger]:
    ledger = store.ledger(clock)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.close()
