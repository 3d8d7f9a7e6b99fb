"""A file that an older gateway left: it ends with the very tables of a new one, and knows what it knew."""

from pathlib import Path

import apsw
import orjson
import pytest

from gateway.core.windows import LIFETIME, rolling
from gateway.ledger.contract import Barred, Barrier, Ended, HoldState, Keep, LedgerUnavailable, RunState
from gateway.ledger.sqlite.ledger import SqliteLedger, adopt
from gateway.ledger.witness import Witness
from tests.ledger.asking import hold
from tests.ledger.builders import (
    DAY_MS,
    LEASE_MS,
    START_MS,
    TENANT,
    account,
    caller,
    charge,
    day_of,
    decision,
    own_run_charge,
    plan,
    settlement,
)
from tests.support.clock import Clock

VERSION_1 = """
CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, epoch TEXT NOT NULL,
    sequence INTEGER NOT NULL) STRICT;
CREATE TABLE accounts (tenant TEXT NOT NULL, key TEXT NOT NULL, committed INTEGER NOT NULL, reserved INTEGER NOT NULL,
    unconfirmed INTEGER NOT NULL, alerted INTEGER NOT NULL, end_ms INTEGER NOT NULL, PRIMARY KEY (tenant, key)) STRICT, WITHOUT ROWID;
CREATE TABLE runs (tenant TEXT NOT NULL, run TEXT NOT NULL, first_ms INTEGER NOT NULL, owner TEXT NOT NULL, stopped INTEGER NOT NULL,
    own_limit INTEGER, raised INTEGER NOT NULL, asked INTEGER, committed INTEGER NOT NULL, reserved INTEGER NOT NULL,
    unconfirmed INTEGER NOT NULL, calls INTEGER NOT NULL, last_ms INTEGER NOT NULL, latest TEXT, PRIMARY KEY (tenant, run))
    STRICT, WITHOUT ROWID;
CREATE TABLE calls (tenant TEXT NOT NULL, tail TEXT NOT NULL, state INTEGER NOT NULL, lease_ms INTEGER NOT NULL, record BLOB,
    closing BLOB, PRIMARY KEY (tenant, tail)) STRICT;
CREATE INDEX open_calls ON calls (state, lease_ms) WHERE state <= 2;
CREATE TABLE refusals (tenant TEXT NOT NULL, ring TEXT NOT NULL, number INTEGER NOT NULL, tail TEXT NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY (tenant, ring, number)) STRICT, WITHOUT ROWID;
CREATE INDEX refusal_by_tail ON refusals (tenant, tail);
CREATE TABLE spend (tenant TEXT NOT NULL, day INTEGER NOT NULL, owner TEXT NOT NULL, run TEXT NOT NULL, model TEXT NOT NULL,
    provider TEXT NOT NULL, dimensions TEXT NOT NULL, usd INTEGER NOT NULL, tokens INTEGER NOT NULL, calls INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, owner, run, model, provider, dimensions)) STRICT, WITHOUT ROWID;
CREATE TABLE acts (number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, at_ms INTEGER NOT NULL, who TEXT NOT NULL, act TEXT NOT NULL,
    what TEXT NOT NULL, why TEXT NOT NULL) STRICT;
"""
# What version 2 had otherwise than this one. Of a file of this one, it makes a file of that one.
TO_VERSION_2 = """
ALTER TABLE accounts RENAME TO new_accounts;
ALTER TABLE runs RENAME TO new_runs;
DROP INDEX accounts_of_run; DROP INDEX accounts_by_end; DROP INDEX runs_by_use; DROP INDEX runs_by_owner;
CREATE TABLE accounts (id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, key TEXT NOT NULL,
    committed INTEGER NOT NULL CHECK (committed >= 0), reserved INTEGER NOT NULL CHECK (reserved >= 0),
    unconfirmed INTEGER NOT NULL CHECK (unconfirmed BETWEEN 0 AND committed), alerted INTEGER NOT NULL, end_ms INTEGER NOT NULL,
    carried INTEGER NOT NULL, adjusted INTEGER NOT NULL, stored_limit INTEGER, buckets TEXT, run TEXT NOT NULL,
    UNIQUE (tenant, key)) STRICT;
CREATE INDEX accounts_of_run ON accounts (tenant, run) WHERE run <> '';
CREATE INDEX accounts_by_end ON accounts (end_ms) WHERE end_ms < 9007199254740992;
CREATE TABLE runs (id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, run TEXT NOT NULL, first_ms INTEGER NOT NULL, owner TEXT NOT NULL,
    state INTEGER NOT NULL, paused_no INTEGER, paused_by TEXT NOT NULL, own_limit INTEGER, raised INTEGER NOT NULL, asked INTEGER,
    issued INTEGER NOT NULL, placed INTEGER NOT NULL, ancestry TEXT NOT NULL, recent TEXT,
    committed INTEGER NOT NULL CHECK (committed >= 0), reserved INTEGER NOT NULL CHECK (reserved >= 0),
    unconfirmed INTEGER NOT NULL CHECK (unconfirmed BETWEEN 0 AND committed), calls INTEGER NOT NULL CHECK (calls >= 0),
    last_ms INTEGER NOT NULL, latest TEXT, used_s INTEGER NOT NULL, quiet INTEGER NOT NULL, UNIQUE (tenant, run)) STRICT;
CREATE INDEX runs_by_use ON runs (tenant, used_s, run);
CREATE INDEX runs_by_owner ON runs (tenant, owner, quiet, used_s, run);
INSERT INTO accounts SELECT id, tenant, key, committed, reserved, unconfirmed, alerted, end_ms, carried, adjusted, stored_limit, buckets,
    run FROM new_accounts JOIN account_sums USING (id);
INSERT INTO runs SELECT id, tenant, run, first_ms, owner, state, paused_no, paused_by, own_limit, raised, asked, issued, placed,
    ancestry, recent, committed, reserved, unconfirmed, calls, last_ms, latest, used_s, quiet FROM new_runs JOIN run_sums USING (id);
DROP TABLE new_accounts; DROP TABLE account_sums; DROP TABLE new_runs; DROP TABLE run_sums;
UPDATE meta SET version = 2;
"""
KEY = "run-ceiling|run=r1|lifetime|usd"


def packed(tail: str, *, refused: bool = False) -> bytes:
    """A record as version 1 packed it."""
    line = [KEY, LIFETIME.end_ms, 10, False, 100, "hard_gate", "reserved+committed", 0, True, [500_000], 1_000_000]
    inputs = {"price_table_version": "prices-1", "ladder": [["big", "lab", 256, 10, 5]], "tail": tail}
    outcome = "block" if refused else "allow"
    return orjson.dumps(
        ["r1", "k1", START_MS, outcome, "big", "big", "lab", [10, 5, 1], [] if refused else [line], [], 0, inputs]
    )


def closing(usd: int, ending: str, after_ms: int) -> bytes:
    return orjson.dumps([[usd, 3, 1], ["provider", 3, 0, 0, 0], ending, START_MS + after_ms])


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A live, an expired and a committed hold of one run, a tombstone, a refusal, a stopped run without calls."""
    path = tmp_path / "ledger.db"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute(VERSION_1)
    connection.execute("INSERT INTO meta VALUES (1, 1, 'epoch-1', 7)")
    connection.execute("INSERT INTO accounts VALUES (?, ?, 14, 10, 10, 0, ?)", (TENANT, KEY, LIFETIME.end_ms))
    agent_day = account("agent-day", window=day_of(START_MS), agent="a/b")
    connection.execute("INSERT INTO accounts VALUES (?, ?, 5, 0, 0, 0, ?)", (TENANT, agent_day.key, agent_day.window.end_ms))
    run = "INSERT INTO runs VALUES (?, ?, ?, 'k1', ?, ?, 0, NULL, ?, ?, ?, ?, ?, ?)"
    connection.execute(run, (TENANT, "r1", START_MS, 0, 90, 14, 10, 10, 3, START_MS + 2_000, "live"))
    connection.execute(run, (TENANT, "r2", START_MS, 1, None, 0, 0, 0, 0, START_MS, None))
    call = "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)"
    connection.execute(call, (TENANT, "live", 1, START_MS + LEASE_MS, packed("live"), None))
    connection.execute(call, (TENANT, "gone", 2, START_MS, packed("gone"), closing(10, "unknown", 50)))
    connection.execute(call, (TENANT, "done", 3, START_MS + 9, packed("done"), closing(4, "completed", 60)))
    connection.execute(call, (TENANT, "tomb", 4, 0, None, orjson.dumps([[0, 0, 0], None, "not_sent", START_MS + 70])))
    connection.execute("INSERT INTO refusals VALUES (?, 'r1', 3, 'no', ?)", (TENANT, packed("no", refused=True)))
    connection.execute("INSERT INTO spend VALUES (?, 20000, 'k1', 'r1', 'big', 'lab', '{}', 14, 8, 2)", (TENANT,))
    for act in ("limit", "stop"):
        connection.execute("INSERT INTO acts VALUES (NULL, ?, ?, 'ann', ?, 'r2', 'why')", (TENANT, START_MS, act))
    connection.close()
    return path


def tables_of(path: Path) -> list[tuple[object, ...]]:
    connection = apsw.Connection(str(path))
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
    connection.close()
    return found


async def opened(path: Path, clock: Clock) -> SqliteLedger:
    ledger = SqliteLedger(str(path), Witness(path.with_name("witness")), clock)
    await ledger.start()
    return ledger


async def test_an_old_file_ends_with_the_tables_of_a_new_one(old_file: Path, clock: Clock) -> None:
    await (await opened(old_file, clock)).close()
    new_file = old_file.with_name("new") / "ledger.db"
    await (await opened(new_file, clock)).close()
    assert tables_of(old_file) == tables_of(new_file)


async def test_an_old_file_knows_what_it_knew(old_file: Path, clock: Clock) -> None:
    ledger = await opened(old_file, clock)
    assert (ledger.health()["epoch"], ledger.health()["sequence"]) == ("epoch-1", 7)
    one, two = await ledger.runs(TENANT, None, 10)
    assert (one.run, one.state, one.limit, one.committed, one.reserved, one.calls) == ("r1", RunState.ACTIVE, 90, 14, 10, 3)
    assert (two.run, two.state, two.owner) == ("r2", RunState.STOPPED, "k1")
    view = await ledger.account(TENANT, KEY)
    assert view is not None
    assert (view.balance.committed, view.balance.reserved, view.carried, view.adjusted) == (14, 10, 0, 0)
    agent_day = account("agent-day", window=day_of(START_MS), agent="a/b")
    assert [balance.committed for balance in await ledger.balances(TENANT, [agent_day])] == [5]
    assert [record.decision_id for record in await ledger.holds(TENANT, None, 10)] == ["bdg_gone", "bdg_live"]
    refused = await ledger.record(TENANT, "bdg_no")
    assert refused is not None
    assert (refused.state, refused.outcome) == (None, "block")
    assert [(act.act, act.who, act.why) for act in await ledger.acts(TENANT, 10)] == [
        ("stop", "ann", "why"),
        ("limit", "ann", "why"),
    ]
    await ledger.close()


async def test_a_file_of_version_2_ends_with_the_tables_of_a_new_one_and_all_its_rows(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.db"
    ledger = await opened(path, clock)
    for number in range(12):
        charges = own_run_charge(f"r{number}", alerts=(500_000,)), charge(account("rate", window=rolling(DAY_MS)), 1_000)
        held = await hold(ledger, decision(plan(*charges, usd=60), of=caller(f"r{number}", agent="a"), run_limit=90))
        if number % 3:
            await ledger.commit(TENANT, held.id, settlement(50 + number))
    await ledger.sweep(Keep(0, 0), 2)  # gaps in the numbers of the rows
    before = [row async for row in ledger.dump()]
    await ledger.close()
    new_tables = tables_of(path)
    connection = apsw.Connection(str(path))
    connection.execute(TO_VERSION_2)
    connection.close()
    assert tables_of(path) != new_tables
    again = await opened(path, clock)
    assert (tables_of(path), [row async for row in again.dump()]) == (new_tables, before)
    await again.close()


async def test_a_file_of_version_3_gets_what_has_come_to_it_since_and_keeps_its_rows(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "ledger.db"
    ledger = await opened(path, clock)
    held = await hold(ledger, decision())
    await ledger.commit(TENANT, held.id, settlement())
    before = [row async for row in ledger.dump()]
    await ledger.close()
    new_tables = tables_of(path)
    connection = apsw.Connection(str(path))
    connection.execute(
        "ALTER TABLE spend DROP COLUMN risk_points; ALTER TABLE spend DROP COLUMN credits;"
        " DROP TABLE documents; DROP TABLE document_numbers; DROP TABLE memos; DROP TABLE lapsing"
    )
    connection.close()
    again = await opened(path, clock)
    assert (tables_of(path), [row async for row in again.dump()]) == (new_tables, before)
    await again.close()


async def test_the_holds_of_an_old_file_settle_as_any_other(old_file: Path, clock: Clock) -> None:
    ledger = await opened(old_file, clock)
    settled = [await ledger.commit(TENANT, hold_id, settlement(6)) for hold_id in ("rsv_live", "rsv_gone", "rsv_done")]
    assert [each and (each.changed, each.charged.usd) for each in settled] == [(True, 6), (True, 6), (False, 4)]
    view = await ledger.account(TENANT, KEY)
    assert view is not None
    assert (view.balance.committed, view.balance.reserved, view.balance.unconfirmed) == (16, 0, 0)
    assert await ledger.reserve(decision(decision_id="bdg_tomb"), LEASE_MS) == Ended(HoldState.RELEASED)
    barred = await ledger.reserve(decision(of=caller("r2")), LEASE_MS)
    assert isinstance(barred, Barred)
    assert barred.barrier is Barrier.STOPPED
    clock.now_ms += LEASE_MS
    assert await ledger.expire() == []
    await ledger.close()


async def test_old_calls_end_in_the_order_in_which_they_ended(old_file: Path, clock: Clock) -> None:
    await (await opened(old_file, clock)).close()
    rows = apsw.Connection(str(old_file)).execute("SELECT tail, due_ms FROM calls ORDER BY state").fetchall()
    assert rows == [("live", START_MS + LEASE_MS), ("gone", START_MS + 50), ("done", START_MS + 60), ("tomb", START_MS + 70)]


async def test_an_old_file_can_be_adopted(old_file: Path) -> None:
    adopted = adopt(str(old_file), Witness(old_file.with_name("witness")))
    assert (adopted.epoch != "epoch-1", adopted.sequence) == (True, 7)


async def test_a_newer_file_is_left_as_it_is(old_file: Path, clock: Clock) -> None:
    connection = apsw.Connection(str(old_file))
    connection.execute("UPDATE meta SET version = 99")
    connection.close()
    before = tables_of(old_file)
    with pytest.raises(LedgerUnavailable, match="version 99"):
        await opened(old_file, clock)
    assert tables_of(old_file) == before
