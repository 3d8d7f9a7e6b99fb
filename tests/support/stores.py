"""The stores that a ledger's tests run over, each with the clock in the test's hand.

store = new_store("valkey", tmp_path)
async with opened(store, clock) as ledger: …        # any number of ledgers, as of so many gateways
store_at(store.address)                             # the same store in another process
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from gateway import store_url
from gateway.ledger.contract import Ledger
from gateway.ledger.redis.ledger import RedisLedger
from gateway.ledger.redis.servers import servers
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from tests.support.clock import Clock
from tests.support.valkey import commands, shared_url

STORES: Final = ("sqlite", "valkey")
PATIENT_MS: Final = 60_000  # two cores may be shared by many

_CLOCK: Final = "test-clock"  # the server's clock is in the test's hand: every script reads it here
_NOW: Final = f"return tonumber(call('GET', '{_CLOCK}'))"


class Store(Protocol):
    ordered: bool  # steps that are asked for at once take effect in the order in which they were asked for, whatever they are

    @property
    def address(self) -> str:
        """What another process needs to open it."""

    def ledger(self, clock: Clock, timeout_ms: int = PATIENT_MS) -> Ledger:
        """Not started. Those of one store share a witness."""


@dataclass
class SqliteStore:
    folder: Path
    ordered = True

    @property
    def address(self) -> str:
        return f"sqlite {self.folder}"

    def ledger(self, clock: Clock, timeout_ms: int = PATIENT_MS) -> Ledger:
        return SqliteLedger(str(self.folder / "ledger.db"), Witness(self.folder / "witness"), clock, timeout_ms=timeout_ms)


@dataclass
class ValkeyStore:
    """`through` stands between the ledgers and the server, if a test wants faults: its URL."""

    folder: Path
    url: str
    through: str | None = None
    ordered = False  # a hold that this gateway does not know is looked up first

    @property
    def address(self) -> str:
        return f"valkey {self.folder} {self.url}"

    def ledger(self, clock: Clock, timeout_ms: int = PATIENT_MS) -> Ledger:
        clock.tell(self._set_clock)
        url = store_url.parse(self.through or self.url)
        return RedisLedger(servers(url, timeout_ms), Witness(self.folder / "witness"), _NOW)

    def _set_clock(self, now_ms: int) -> None:
        parts = urlsplit(self.url)
        login = (
            [("AUTH", *([unquote(parts.username)] if parts.username else []), unquote(parts.password))] if parts.password else []
        )
        place = [("SELECT", parts.path.removeprefix("/"))] if parts.path.removeprefix("/") else []
        commands((parts.hostname or "127.0.0.1", parts.port or 6379), *login, *place, ("SET", _CLOCK, now_ms))


def store_at(address: str) -> Store:
    kind, folder, *url = address.split(" ")
    return SqliteStore(Path(folder)) if kind == "sqlite" else ValkeyStore(Path(folder), url[0])


def new_store(kind: str, folder: Path) -> Store:
    """An empty one, of one of STORES. Whatever the one before of that kind held is gone."""
    return SqliteStore(folder) if kind == "sqlite" else ValkeyStore(folder, shared_url())


@asynccontextmanager
async def opened(store: Store, clock: Clock) -> AsyncIterator[Ledger]:
    ledger = store.ledger(clock)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.close()
