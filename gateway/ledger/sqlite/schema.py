"""The tables of the SQLite ledger, and how its file is opened. Foreign exceptions are mapped here, once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from gateway.ledger.contract import LedgerLost, LedgerUnavailable
from gateway.ledger.packed import account_of, run_in
from gateway.ledger.witness import ADOPT_HINT, Seen, new_epoch

VERSION: Final = 3

_MOVING: Final = """
-- The tables of the path are written by `id`: to find a row by its names costs more than to change it. What every call moves of an
-- account and of a run stands in a table of its own, whose rows are so short that those of many calls share a page.
CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    alerted INTEGER NOT NULL,       -- the highest alert threshold that has fired, in ppm
    end_ms INTEGER NOT NULL,        -- of its window
    carried INTEGER NOT NULL,       -- of committed: what retired calls had charged
    adjusted INTEGER NOT NULL,      -- of committed: what operators added, or (below zero) took away
    stored_limit INTEGER,           -- pinned by the first hold, or set by an operator
    -- Of a rolling window, JSON: [[index, committed, unconfirmed, carried] …], oldest first. `account_sums` has their sums as of the
    -- last write, `carried` and `adjusted` are 0. What a reset takes is taken from the buckets' carried.
    buckets TEXT,
    run TEXT NOT NULL,              -- of its scope; '' where that names none
    UNIQUE (tenant, key)
) STRICT;
CREATE INDEX accounts_of_run ON accounts (tenant, run) WHERE run <> '';
CREATE INDEX accounts_by_end ON accounts (end_ms) WHERE end_ms < 9007199254740992;
CREATE TABLE account_sums (
    id INTEGER PRIMARY KEY,
    committed INTEGER NOT NULL CHECK (committed >= 0),
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    unconfirmed INTEGER NOT NULL CHECK (unconfirmed BETWEEN 0 AND committed)
) STRICT;

-- Amounts are USD. An owner of '' is nobody yet: the first caller becomes it. `used_s` and `quiet` follow from other columns, and are
-- written only when they change: most calls of a run then change no index.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    run TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    owner TEXT NOT NULL,
    state INTEGER NOT NULL,
    paused_no INTEGER,         -- of a pause that a refusal set: the tenant's raises at that time. More of them since, and it is over
    paused_by TEXT NOT NULL,   -- who set the operator's pause that stands; ''
    own_limit INTEGER,
    raised INTEGER NOT NULL,   -- the admin set own_limit
    asked INTEGER,             -- the last X-Run-Limit that was applied
    issued INTEGER NOT NULL,   -- the gateway made its id up
    placed INTEGER NOT NULL,   -- its place in the tree is fixed
    ancestry TEXT NOT NULL,    -- 'parent/its parent'
    recent TEXT,               -- JSON: [[tail, fingerprint] …] of its last holds, oldest first, where the policy looks for loops
    used_s INTEGER NOT NULL,   -- last_ms in seconds
    quiet INTEGER NOT NULL,    -- issued, stopped or not placed: not among its key's active runs
    UNIQUE (tenant, run)
) STRICT;
CREATE INDEX runs_by_use ON runs (tenant, used_s, run);
CREATE INDEX runs_by_owner ON runs (tenant, owner, quiet, used_s, run);
CREATE TABLE run_sums (
    id INTEGER PRIMARY KEY,
    committed INTEGER NOT NULL CHECK (committed >= 0),
    reserved INTEGER NOT NULL CHECK (reserved >= 0),
    unconfirmed INTEGER NOT NULL CHECK (unconfirmed BETWEEN 0 AND committed),
    calls INTEGER NOT NULL CHECK (calls >= 0),
    last_ms INTEGER NOT NULL,
    latest TEXT                -- the tail of its latest hold
) STRICT;

"""

_TABLES: Final = f"""
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    epoch TEXT NOT NULL,        -- random: another store has another one
    sequence INTEGER NOT NULL,  -- grows with every step that changes anything
    rules INTEGER NOT NULL      -- how often `tenants` or `frozen` changed: what is known of them stays known until it moves
) STRICT;

-- A tenant whose row is missing has had no raise.
CREATE TABLE tenants (
    tenant TEXT PRIMARY KEY,
    raises INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE frozen (
    tenant TEXT NOT NULL,
    text TEXT NOT NULL,
    scope TEXT NOT NULL,  -- JSON: [[dimension, value] …], sorted
    at_ms INTEGER NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (tenant, text)
) STRICT, WITHOUT ROWID;

{_MOVING}
-- One row per call, found by the tail that its decision id and its hold id share. A tombstone has no record.
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    tail TEXT NOT NULL,
    state INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,  -- of a live hold: when its lease ends. Of an ended one: when it ended
    record BLOB,
    closing BLOB,
    UNIQUE (tenant, tail)
) STRICT;
CREATE INDEX calls_by_state ON calls (state, due_ms);

-- A bounded ring per run.
CREATE TABLE refusals (
    tenant TEXT NOT NULL,
    ring TEXT NOT NULL,
    number INTEGER NOT NULL,
    tail TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (tenant, ring, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX refusal_by_tail ON refusals (tenant, tail);
CREATE INDEX refusals_by_time ON refusals (at_ms);

-- What was committed, per UTC day of the reserve, so that no report ever reads receipts.
CREATE TABLE spend (
    id INTEGER PRIMARY KEY,
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
    UNIQUE (tenant, day, owner, run, model, provider, dimensions)
) STRICT;

-- What operators and owners did by hand, in the order of `number`.
CREATE TABLE acts (
    number INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    who TEXT NOT NULL,
    act TEXT NOT NULL,
    what TEXT NOT NULL,
    why TEXT NOT NULL,
    UNIQUE (tenant, id)
) STRICT;
CREATE INDEX acts_of_tenant ON acts (tenant);
"""

# What has come to version 3 since: an older gateway leaves it alone. A tenant without a number has never had a document.
_ADDED: Final = """
-- Of `calls`, those that lapse.
CREATE TABLE IF NOT EXISTS lapsing (
    tenant TEXT NOT NULL,
    at_ms INTEGER NOT NULL,  -- of its reserve
    tail TEXT NOT NULL,
    PRIMARY KEY (tenant, at_ms, tail)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS documents (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS document_numbers (
    tenant TEXT PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS memos (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS memos_by_time ON memos (until_ms);
"""

# A file of an older version is carried over table by table, so that it ends with the very tables of a new one.
_TABLES_OF: Final = {
    1: ("meta", "accounts", "runs", "calls", "refusals", "spend", "acts"),
    2: ("accounts", "runs"),
}
_INDEXES_OF: Final = {
    1: ("open_calls", "refusal_by_tail"),
    2: ("accounts_of_run", "accounts_by_end", "runs_by_use", "runs_by_owner"),
}
_FROM: Final = {
    1: """
INSERT INTO meta SELECT one, 3, epoch, sequence, 0 FROM old_meta;
INSERT INTO accounts SELECT NULL, tenant, key, alerted, end_ms, 0, 0, NULL, NULL, run_of_account(key) FROM old_accounts;
INSERT INTO account_sums SELECT id, committed, reserved, unconfirmed FROM accounts JOIN old_accounts USING (tenant, key);
INSERT INTO runs SELECT NULL, tenant, run, first_ms, owner, stopped, NULL, '', own_limit, raised, asked, 0, calls > 0, '', NULL,
    last_ms / 1000, stopped OR calls = 0 FROM old_runs;
INSERT INTO run_sums SELECT id, committed, reserved, unconfirmed, calls, last_ms, latest FROM runs JOIN old_runs USING (tenant, run);
INSERT INTO calls SELECT NULL, tenant, tail, state, iif(state = 1, lease_ms, json_extract(CAST(closing AS TEXT), '$[3]')), record, closing
    FROM old_calls ORDER BY rowid;
INSERT INTO refusals SELECT tenant, ring, number, tail, json_extract(CAST(record AS TEXT), '$[2]'), record FROM old_refusals;
INSERT INTO spend SELECT NULL, * FROM old_spend;
INSERT INTO acts SELECT number, tenant, 'act_' || number, at_ms, who, act, what, why FROM old_acts;
""",
    2: """
INSERT INTO accounts SELECT id, tenant, key, alerted, end_ms, carried, adjusted, stored_limit, buckets, run FROM old_accounts;
INSERT INTO account_sums SELECT id, committed, reserved, unconfirmed FROM old_accounts;
INSERT INTO runs SELECT id, tenant, run, first_ms, owner, state, paused_no, paused_by, own_limit, raised, asked, issued, placed, ancestry,
    recent, used_s, quiet FROM old_runs;
INSERT INTO run_sums SELECT id, committed, reserved, unconfirmed, calls, last_ms, latest FROM old_runs;
UPDATE meta SET version = 3;
""",
}


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
            _add(connection)
            connection.execute("INSERT INTO meta VALUES (1, ?, ?, 0, 0)", (VERSION, new_epoch()))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return empty


def carry_over(connection: apsw.Connection) -> None:
    """A file of an older version becomes one of this, in one transaction. Any other is left as it is."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)
        if version in _FROM:
            connection.create_scalar_function("run_of_account", _run_of_account, 1, deterministic=True)
            for index in _INDEXES_OF[version]:
                connection.execute(f"DROP INDEX {index}")
            for table in _TABLES_OF[version]:
                connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
            connection.execute(_TABLES if version == 1 else _MOVING)
            connection.execute(_FROM[version])
            for table in _TABLES_OF[version]:
                connection.execute(f"DROP TABLE old_{table}")
        if version == VERSION or version in _FROM:
            _add(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _add(connection: apsw.Connection) -> None:
    """Whatever of `_ADDED` is not there yet; and two columns of spend, which few calls move."""
    connection.execute(_ADDED)
    if "credits" not in {column[1] for column in connection.execute("PRAGMA table_info(spend)")}:
        for column in ("credits", "risk_points"):
            connection.execute(f"ALTER TABLE spend ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0 CHECK ({column} >= 0)")


def _version(connection: apsw.Connection) -> int:
    try:
        return int(connection.execute("SELECT version FROM meta").get or 0)
    except apsw.SQLError:  # no ledger at all: `read_meta` says so
        return 0


def _run_of_account(*arguments: object) -> str:
    (key,) = arguments
    assert isinstance(key, str)
    return run_in(account_of("", key, 0).scope)


def read_meta(connection: apsw.Connection | apsw.Cursor, path: str) -> Seen:
    """LedgerLost where this is another kind of database, or a newer one's."""
    return read_rules(connection, path)[0]


def read_rules(connection: apsw.Connection | apsw.Cursor, path: str) -> tuple[Seen, int]:
    """As `read_meta`, with the number of the tenants' rules."""
    try:
        row = connection.execute("SELECT * FROM meta").fetchone()
    except apsw.SQLError as error:
        raise LedgerLost(f"{path} is not a ledger: {ADOPT_HINT}") from error
    if row is None:
        raise LedgerLost(f"{path} has lost its epoch: {ADOPT_HINT}")
    _, version, epoch, sequence, *rest = row
    if version != VERSION:
        raise LedgerUnavailable(f"{path} has schema version {version}; this gateway reads version {VERSION}")
    return Seen(epoch, sequence), rest[0]


def file_identity(path: str) -> tuple[int, int] | None:
    """Which file stands at the path; None: none, or an empty one."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if found.st_size else None
