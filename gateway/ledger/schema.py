"""The tables of the SQLite ledger, and how its file is opened. Foreign exceptions are mapped here, once."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from gateway.ledger.contract import LedgerLost, LedgerUnavailable
from gateway.ledger.witness import ADOPT_HINT, Seen

VERSION: Final = 1

# States of a call, as numbers so that one partial index holds those that are open.
LIVE: Final = 1
EXPIRED: Final = 2
COMMITTED: Final = 3
RELEASED: Final = 4

_TABLES: Final = f"""
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    epoch TEXT NOT NULL,       -- random: another store has another one
    sequence INTEGER NOT NULL  -- the number of steps that changed anything
) STRICT;

CREATE TABLE accounts (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    committed INTEGER NOT NULL CHECK (committed >= 0),
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    unconfirmed INTEGER NOT NULL CHECK (unconfirmed BETWEEN 0 AND committed),
    alerted INTEGER NOT NULL,  -- the highest alert threshold that has fired, in ppm
    end_ms INTEGER NOT NULL,   -- of its window
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

-- Amounts are USD. An owner of '' is nobody yet: the first caller becomes it.
CREATE TABLE runs (
    tenant TEXT NOT NULL,
    run TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    owner TEXT NOT NULL,
    stopped INTEGER NOT NULL,
    own_limit INTEGER,
    raised INTEGER NOT NULL,   -- the admin set own_limit
    asked INTEGER,             -- the last X-Run-Limit that was applied
    committed INTEGER NOT NULL CHECK (committed >= 0),
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    unconfirmed INTEGER NOT NULL CHECK (unconfirmed BETWEEN 0 AND committed),
    calls INTEGER NOT NULL CHECK (calls >= 0),
    last_ms INTEGER NOT NULL,
    latest TEXT,               -- the tail of its latest hold
    PRIMARY KEY (tenant, run)
) STRICT, WITHOUT ROWID;

-- One row per call, found by the tail that its decision id and its hold id share. A tombstone has no record. With a rowid: the
-- records are too long for an index's pages and would each take a page of their own.
CREATE TABLE calls (
    tenant TEXT NOT NULL,
    tail TEXT NOT NULL,
    state INTEGER NOT NULL,
    lease_ms INTEGER NOT NULL,
    record BLOB,
    closing BLOB,
    PRIMARY KEY (tenant, tail)
) STRICT;
CREATE INDEX open_calls ON calls (state, lease_ms) WHERE state <= {EXPIRED};

-- A bounded ring per run.
CREATE TABLE refusals (
    tenant TEXT NOT NULL,
    ring TEXT NOT NULL,
    number INTEGER NOT NULL,
    tail TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (tenant, ring, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX refusal_by_tail ON refusals (tenant, tail);

-- What was committed, per UTC day of the reserve, so that no report ever reads receipts.
CREATE TABLE spend (
    tenant TEXT NOT NULL,
    day INTEGER NOT NULL,      -- days since the epoch
    owner TEXT NOT NULL,
    run TEXT NOT NULL,
    model TEXT NOT NULL,
    provider TEXT NOT NULL,
    dimensions TEXT NOT NULL,  -- a JSON object
    usd INTEGER NOT NULL CHECK (usd >= 0),
    tokens INTEGER NOT NULL CHECK (tokens >= 0),
    calls INTEGER NOT NULL CHECK (calls >= 0),
    PRIMARY KEY (tenant, day, owner, run, model, provider, dimensions)
) STRICT, WITHOUT ROWID;

-- What operators and owners did by hand.
CREATE TABLE acts (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    who TEXT NOT NULL,
    act TEXT NOT NULL,
    what TEXT NOT NULL,
    why TEXT NOT NULL
) STRICT;
"""


# Trouble with the file, not with what was asked of it.
TROUBLE: Final = (
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.FullError,
    apsw.IOError,
    apsw.CantOpenError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.NoMemError,
    OSError,
)


@contextmanager
def mapped_errors(path: str) -> Iterator[None]:
    """SQLite's errors about the store → ours. Errors about a statement (a broken constraint) are our bugs and pass."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise LedgerLost(f"{path} is damaged or not a ledger ({error}): restore it, or move it away; {ADOPT_HINT}") from error
    except TROUBLE as error:
        raise LedgerUnavailable(f"{path}: {error}") from error


def connect(path: str, synchronous: str, timeout_ms: int) -> apsw.Connection:
    """Opens (and creates) the file in WAL mode. apsw errors pass: the caller maps them."""
    connection = apsw.Connection(path)
    connection.set_busy_handler(_patient(timeout_ms))
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.wal_autocheckpoint(8192)  # pages: where the checkpoints beside the writer do not keep up
    connection.pragma("cache_size", -65536)
    connection.pragma("temp_store", "memory")
    return connection


def _patient(timeout_ms: int) -> Callable[[int], bool]:
    """Tries again every half millisecond: SQLite's own back-off sleeps up to 100 ms while other gateways' batches take one or two."""
    deadline = 0.0

    def wait(tries: int) -> bool:
        nonlocal deadline
        now = time.monotonic()
        if tries == 0:
            deadline = now + timeout_ms / 1000
        time.sleep(0.0005)
        return bool(now < deadline)

    return wait


def create_tables(connection: apsw.Connection) -> bool:
    """In an empty file; False where tables exist."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        empty = bool(connection.execute("SELECT count(*) = 0 FROM sqlite_schema").get)
        if empty:
            connection.execute(_TABLES)
            connection.execute("INSERT INTO meta VALUES (1, ?, ?, 0)", (VERSION, new_epoch()))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return empty


def new_epoch() -> str:
    return secrets.token_hex(8)


def read_meta(connection: apsw.Connection | apsw.Cursor, path: str) -> Seen:
    """LedgerLost where this is another kind of database, or a newer one's."""
    try:
        row = connection.execute("SELECT version, epoch, sequence FROM meta").fetchone()
    except apsw.SQLError as error:
        raise LedgerLost(f"{path} is not a ledger: {ADOPT_HINT}") from error
    if row is None:
        raise LedgerLost(f"{path} has lost its epoch: {ADOPT_HINT}")
    version, epoch, sequence = row
    if version != VERSION:
        raise LedgerUnavailable(f"{path} has schema version {version}; this gateway reads version {VERSION}")
    return Seen(epoch, sequence)


def file_identity(path: str) -> tuple[int, int] | None:
    """Which file stands at the path; None: none, or an empty one."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None
