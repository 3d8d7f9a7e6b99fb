"""A SQLite ledger's tables as neutral rows (`ledger.rows`), and back. Each on a connection, in a transaction and in a thread of its own:
a million runs take a while, and calls go on beside a dump.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import apsw
import orjson

from gateway.ledger import rows
from gateway.ledger.contract import Frozen, LedgerUnavailable
from gateway.ledger.packed import account_of, lapses_in, run_in, unpack_closing, unpack_record
from gateway.ledger.sqlite.schema import connect, mapped_errors, read_meta
from gateway.ledger.states import LIVE, RUN_STATES, STATES, STOPPED

_NUMBERS: Final = {word.value: number for number, word in STATES.items()}
_RUN_NUMBERS: Final = {word.value: number for number, word in RUN_STATES.items()}
_BATCH: Final = 1_000
_TIMEOUT_MS: Final = 30_000
_TABLES: Final = ("tenants", "accounts", "runs", "calls", "refusals", "spend", "acts", "frozen", "documents", "memos")


async def dump(path: str, clock_ms: Callable[[], int]) -> AsyncIterator[Mapping[str, object]]:
    """Everything as of one instant. While it lasts, SQLite keeps what is written meanwhile in its log beside the file."""
    with _connected(path) as (cursor, in_thread):
        await in_thread(cursor.execute, "BEGIN")
        # The first read is the instant; the clock is asked after it, so that no step it shows is of a later time.
        await in_thread(read_meta, cursor, path)
        told = _rows(cursor, clock_ms())
        number = 0
        while batch := await in_thread(lambda: list(islice(told, _BATCH))):
            for row in batch:
                yield rows.to_mapping(row)
            number += len(batch)
        yield rows.to_mapping(rows.End(number))


async def load(path: str, given: AsyncIterator[Mapping[str, object]]) -> int:
    """In one transaction: all of it or nothing. Returns how many rows."""
    with _connected(path) as (cursor, in_thread):
        await in_thread(cursor.execute, "BEGIN IMMEDIATE")
        await in_thread(_check_empty, cursor, path)
        number = 0
        batch: list[rows.Row] = []
        async for row in rows.read_all(given):
            batch.append(row)
            if len(batch) == _BATCH or isinstance(row, rows.End):
                await in_thread(_load_rows, cursor, batch)
                number += len(batch)
                batch = []
        await in_thread(cursor.execute, "UPDATE meta SET sequence = sequence + 1, rules = rules + 1; COMMIT")
        return number


@contextmanager
def _connected(path: str) -> Iterator[tuple[apsw.Cursor, Callable[..., Awaitable[Any]]]]:
    """A cursor, and how to call what uses it. What is not committed at the end never happened."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "ledger-copy")

    async def in_thread(work: Callable[..., Any], *arguments: object) -> Any:
        return await loop.run_in_executor(thread, work, *arguments)

    with mapped_errors(path):
        connection = connect(path, "FULL", _TIMEOUT_MS)
        try:
            yield connection.cursor(), in_thread
        finally:
            thread.shutdown()
            connection.close()


def _rows(cursor: apsw.Cursor, at_ms: int) -> Iterator[rows.Row]:
    yield rows.Head(rows.FORMAT, at_ms)
    for tenant in tenants(cursor):
        raises = cursor.execute("SELECT raises FROM tenants WHERE tenant = ?", (tenant,)).fetchone()
        yield rows.Tenant(tenant, at_ms, raises[0] if raises else 0)
        yield from _accounts(cursor, tenant, at_ms)
        yield from _runs(cursor, tenant)
        yield from _calls(cursor, tenant)
        for each in _all(
            cursor, "SELECT ring, number, tail, record FROM refusals WHERE tenant = ? ORDER BY ring, number", tenant
        ):
            ring, number, tail, packed = each
            yield rows.Refused(tenant, ring, number, tail, orjson.loads(packed))
        spend = "SELECT day, owner, run, model, provider, dimensions, usd, tokens, calls, credits, risk_points FROM spend WHERE tenant = ?"
        for day, owner, run, model, provider, dimensions, *sums in _all(cursor, spend, tenant):
            yield rows.Spend(tenant, day, owner, run, model, provider, orjson.loads(dimensions), *sums)
        for each in _all(cursor, "SELECT id, at_ms, who, act, what, why FROM acts WHERE tenant = ? ORDER BY number", tenant):
            yield rows.ActRow(tenant, *each)
        for scope, *rest in _all(cursor, "SELECT scope, at_ms, who, why FROM frozen WHERE tenant = ? ORDER BY text", tenant):
            yield rows.FrozenRow(tenant, tuple([(name, value) for name, value in orjson.loads(scope)]), *rest)
        for each in _all(cursor, "SELECT name, text FROM documents WHERE tenant = ? ORDER BY name", tenant):
            yield rows.DocumentRow(tenant, *each)
        for each in _all(cursor, "SELECT name, text, until_ms FROM memos WHERE tenant = ? ORDER BY name", tenant):
            yield rows.MemoRow(tenant, *each)


def tenants(cursor: apsw.Cursor, tables: Sequence[str] = _TABLES) -> list[str]:
    """Every tenant of whom anything is known, found by as many seeks as there are tenants: each table has them first in its key."""
    found = set()
    for table in tables:
        last = ""
        statement = f"SELECT tenant FROM {table} WHERE tenant > ? ORDER BY tenant LIMIT 1"  # noqa: S608 - names of tables here
        while (row := cursor.execute(statement, (last,)).fetchone()) is not None:
            last = row[0]
            found.add(last)
    return sorted(found)


def _all(cursor: apsw.Cursor, statement: str, tenant: str) -> Iterator[tuple[Any, ...]]:
    """On a cursor of its own: one statement may be read while another is."""
    yield from cursor.connection.cursor().execute(statement, (tenant,))


def _accounts(cursor: apsw.Cursor, tenant: str, at_ms: int) -> Iterator[rows.AccountRow]:
    statement = (
        "SELECT key, end_ms, committed, reserved, unconfirmed, carried, adjusted, alerted, stored_limit, buckets"
        " FROM accounts JOIN account_sums USING (id) WHERE tenant = ? ORDER BY key"
    )
    for key, end_ms, committed, reserved, unconfirmed, carried, adjusted, alerted, limit, packed in _all(
        cursor, statement, tenant
    ):
        buckets: tuple[Any, ...] = ()
        sums = (committed, unconfirmed)
        if packed is not None:
            oldest = account_of(tenant, key, end_ms).window.oldest_bucket(at_ms)
            buckets = tuple([tuple(each) for each in orjson.loads(packed) if each[0] >= oldest])
            sums = (sum(each[1] for each in buckets), sum(each[2] for each in buckets))
        yield rows.AccountRow(tenant, key, end_ms, sums[0], reserved, sums[1], carried, adjusted, alerted, limit, buckets)


def _runs(cursor: apsw.Cursor, tenant: str) -> Iterator[rows.Run]:
    statement = (
        "SELECT state, ancestry, recent, raised, issued, placed, run, owner, first_ms, last_ms, paused_no, paused_by, own_limit, asked,"
        " committed, reserved, unconfirmed, calls, latest FROM runs JOIN run_sums USING (id) WHERE tenant = ? ORDER BY run"
    )
    for state, ancestry, recent, raised, issued, placed, *rest in _all(cursor, statement, tenant):
        run, owner, first_ms, last_ms, paused_no, paused_by, limit, asked, committed, reserved, unconfirmed, calls, latest = rest
        yield rows.Run(
            tenant=tenant,
            run=run,
            owner=owner,
            first_ms=first_ms,
            last_ms=last_ms,
            state=RUN_STATES[state],
            paused_no=paused_no,
            paused_by=paused_by,
            limit=limit,
            raised=bool(raised),
            asked=asked,
            committed=committed,
            reserved=reserved,
            unconfirmed=unconfirmed,
            calls=calls,
            latest=latest,
            issued=bool(issued),
            placed=bool(placed),
            ancestry=tuple(ancestry.split("/")) if ancestry else (),
            recent=tuple([(tail, fingerprint) for tail, fingerprint in orjson.loads(recent)]) if recent else (),
        )


def _calls(cursor: apsw.Cursor, tenant: str) -> Iterator[rows.CallRow]:
    statement = "SELECT tail, state, due_ms, record, closing FROM calls WHERE tenant = ? ORDER BY tail"
    for tail, state, due_ms, record, closing in _all(cursor, statement, tenant):
        yield rows.CallRow(
            tenant,
            tail,
            STATES[state],
            due_ms if state == LIVE else 0,
            None if record is None else orjson.loads(record),
            None if closing is None else orjson.loads(closing),
        )


# -- back -------------------------------------------------------------------------------------------------------------------------


def _check_empty(cursor: apsw.Cursor, path: str) -> None:
    found = tenants(cursor)
    if found:
        raise LedgerUnavailable(f"{path} is not empty (tenant {found[0]!r}): rows are loaded into an empty ledger only")


def _load_rows(cursor: apsw.Cursor, batch: Sequence[rows.Row]) -> None:
    """Puts rows into the tables of the open transaction."""
    for row in batch:
        statement = _INSERT.get(type(row))
        if statement is not None:
            cursor.execute(statement, _values(row))
            if isinstance(row, rows.AccountRow):
                sums = (row.committed, row.reserved, row.unconfirmed)
                cursor.execute("INSERT INTO account_sums VALUES (last_insert_rowid(), ?, ?, ?)", sums)
            elif isinstance(row, rows.Run):
                run_sums = (row.committed, row.reserved, row.unconfirmed, row.calls, row.last_ms, row.latest)
                cursor.execute("INSERT INTO run_sums VALUES (last_insert_rowid(), ?, ?, ?, ?, ?, ?)", run_sums)
            elif isinstance(row, rows.CallRow) and row.record is not None and lapses_in(row.record):
                cursor.execute("INSERT INTO lapsing VALUES (?, ?, ?)", (row.tenant, row.record[2], row.tail))
            elif isinstance(row, rows.DocumentRow):
                number = "INSERT INTO document_numbers VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1"
                cursor.execute(number, (row.tenant,))


_COLUMNS: Final[Mapping[type, tuple[str, str]]] = {
    rows.Tenant: ("tenants", "tenant, raises"),
    rows.AccountRow: (
        "accounts",
        "tenant, key, end_ms, carried, adjusted, alerted, stored_limit, buckets, run",
    ),
    rows.Run: (
        "runs",
        """tenant, run, owner, first_ms, state, paused_no, paused_by, own_limit, raised, asked, issued, placed, ancestry, recent,
        used_s, quiet""",
    ),
    rows.CallRow: ("calls", "tenant, tail, state, due_ms, record, closing"),
    rows.Refused: ("refusals", "tenant, ring, number, tail, at_ms, record"),
    rows.Spend: ("spend", "tenant, day, owner, run, model, provider, dimensions, usd, tokens, calls, credits, risk_points"),
    rows.ActRow: ("acts", "tenant, id, at_ms, who, act, what, why"),
    rows.FrozenRow: ("frozen", "tenant, scope, at_ms, who, why, text"),
    rows.DocumentRow: ("documents", "tenant, name, text"),
    rows.MemoRow: ("memos", "tenant, name, text, until_ms"),
}
_INSERT: Final[Mapping[type, str]] = {
    kind: f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(columns.split(',')))})"  # noqa: S608 - names from above
    for kind, (table, columns) in _COLUMNS.items()
}


def _values(row: rows.Row) -> tuple[Any, ...]:
    if isinstance(row, rows.Tenant):
        return row.tenant, row.raises
    if isinstance(row, rows.AccountRow):
        return _account_values(row)
    if isinstance(row, rows.Run):
        return _run_values(row)
    if isinstance(row, rows.CallRow):
        return _call_values(row)
    if isinstance(row, rows.Refused):
        packed = orjson.dumps(row.record)
        return row.tenant, row.ring, row.number, row.tail, unpack_record(row.tenant, packed).at_ms, packed
    if isinstance(row, rows.Spend):
        dimensions = orjson.dumps(row.dimensions).decode()
        group = (row.tenant, row.day, row.owner, row.run, row.model, row.provider, dimensions)
        return (*group, row.usd, row.tokens, row.calls, row.credits, row.risk_points)
    if isinstance(row, rows.ActRow):
        return row.tenant, row.id, row.at_ms, row.who, row.act, row.what, row.why
    if isinstance(row, rows.FrozenRow):
        text = Frozen(row.scope, row.at_ms, row.who, row.why).text
        return row.tenant, orjson.dumps(row.scope).decode(), row.at_ms, row.who, row.why, text
    if isinstance(row, rows.DocumentRow):
        return row.tenant, row.name, row.text
    if isinstance(row, rows.MemoRow):
        return row.tenant, row.name, row.text, row.until_ms
    return ()


def _account_values(row: rows.AccountRow) -> tuple[Any, ...]:
    account = account_of(row.tenant, row.key, row.end_ms)
    buckets = orjson.dumps(row.buckets).decode() if account.window.bucket_ms else None
    return (row.tenant, row.key, row.end_ms, row.carried, row.adjusted, row.alerted, row.limit, buckets, run_in(account.scope))


def _run_values(row: rows.Run) -> tuple[Any, ...]:
    state = _RUN_NUMBERS[row.state]
    return (
        *(row.tenant, row.run, row.owner, row.first_ms, state, row.paused_no, row.paused_by),
        *(row.limit, int(row.raised), row.asked, int(row.issued), int(row.placed)),
        "/".join(row.ancestry),
        orjson.dumps(row.recent).decode() if row.recent else None,
        row.last_ms // 1000,
        int(row.issued or not row.placed or state == STOPPED),
    )


def _call_values(row: rows.CallRow) -> tuple[Any, ...]:
    packed = None if row.record is None else orjson.dumps(row.record)
    ended = None if row.closing is None else orjson.dumps(row.closing)
    closing = unpack_closing(ended)
    due_ms = row.lease_ms if closing is None else closing.at_ms
    return row.tenant, row.tail, _NUMBERS[row.state], due_ms, packed, ended
