"""The records of calls that the ledger has retired, for as long as a decision can be asked for: one SQLite file a host.

Not part of any balance: without it, budgets hold all the same. A record is written here before it leaves the ledger, so a crash between
the two leaves it in both. Several gateway processes share the file. A gateway of another host has one of its own.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import apsw
import orjson

from gateway.core.scopes import Amounts
from gateway.core.values import Usage, UsageSource
from gateway.ledger.contract import CallRecord, HoldState, LedgerUnavailable
from gateway.ledger.packed import pieces_of
from gateway.ledger.sqlite.schema import TROUBLE, connect

T = TypeVar("T")
KEEP_MS: Final = 30 * 86_400_000  # since the call
_TIMEOUT_MS: Final = 2_000
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS records (
    tenant TEXT NOT NULL,
    decision_id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    record BLOB NOT NULL,  -- zlib, JSON
    PRIMARY KEY (tenant, decision_id)
) STRICT;
CREATE INDEX IF NOT EXISTS records_by_time ON records (at_ms);
"""


class Archive:
    """Opened by its first use. Every method raises LedgerUnavailable where the file can't be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, "archive")
        self._connection: apsw.Connection | None = None

    async def keep(self, records: Sequence[CallRecord]) -> None:
        await self._do(partial(_write, records=records))

    async def find(self, tenant: str, decision_id: str) -> CallRecord | None:
        def read(connection: apsw.Connection) -> CallRecord | None:
            statement = "SELECT record FROM records WHERE tenant = ? AND decision_id = ?"
            found = connection.execute(statement, (tenant, decision_id)).fetchone()
            return None if found is None else _unpacked(found[0])

        # A host that has never retired anything has no file, and a question makes none.
        return await self._do(read) if self._connection is not None or self.path.exists() else None

    async def rotate(self, now_ms: int, at_most: int) -> int:
        """Forgets what is older than `KEEP_MS`. Returns how many records."""

        def remove(connection: apsw.Connection) -> int:
            connection.execute(
                "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE at_ms < ? ORDER BY at_ms LIMIT ?)",
                (now_ms - KEEP_MS, at_most),
            )
            return connection.changes()

        return await self._do(remove)

    async def close(self) -> None:
        """Idempotent."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)

    async def _do(self, work: Callable[[apsw.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)

    def _run(self, work: Callable[[apsw.Connection], T]) -> T:
        with _mapped_errors(self.path):
            if self._connection is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = connect(str(self.path), "NORMAL", _TIMEOUT_MS)
                connection.execute(_TABLES)
                self._connection = connection
            return work(self._connection)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def _mapped_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, apsw.SQLError) as error:
        raise LedgerUnavailable(f"{path} is damaged ({error}): move it away, and a new one is made") from error
    except TROUBLE as error:
        raise LedgerUnavailable(f"{path}: {error}") from error


def _write(connection: apsw.Connection, records: Sequence[CallRecord]) -> None:
    rows = [(each.tenant, each.decision_id, each.at_ms, _packed(each)) for each in records]
    with connection:
        connection.executemany("REPLACE INTO records VALUES (?, ?, ?, ?)", rows)


def _packed(record: CallRecord) -> bytes:
    return zlib.compress(orjson.dumps(record), 1)


def _unpacked(packed: bytes) -> CallRecord:
    told = orjson.loads(zlib.decompress(packed))
    charged, usage, state = told["charged"], told["usage"], told["state"]
    others = pieces_of(usage.get("others", ())) if usage else ()  # older records have none
    return CallRecord(
        **{
            **told,
            "state": None if state is None else HoldState(state),
            "held": Amounts(**told["held"]),
            "charged": None if charged is None else Amounts(**charged),
            "usage": None if usage is None else Usage(**{**usage, "source": UsageSource(usage["source"]), "others": others}),
            "dimensions": tuple([(name, value) for name, value in told["dimensions"]]),
            "lines": tuple([(key, held) for key, held in told["lines"]]),
        }
    )
