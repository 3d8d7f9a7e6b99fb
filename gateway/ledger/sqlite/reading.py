"""What the ledger shows to readers: queries on a connection of their own. Nothing here changes anything."""

from collections.abc import Sequence
from typing import Any

import apsw
import orjson

from gateway.core.scopes import NO_VALUE, Account, Caller
from gateway.core.values import Balance
from gateway.ledger.contract import AccountView, Act, Barrier, CallRecord, Documents, Frozen, RunState, RunView, SpendRow
from gateway.ledger.packed import call_record, unpack_closing, unpack_record
from gateway.ledger.sqlite.acts import view as account_view
from gateway.ledger.sqlite.books import Books, frozen_scopes
from gateway.ledger.sqlite.cards import RUN_COLUMNS, RunRow, run_row
from gateway.ledger.sqlite.steps import standing
from gateway.ledger.sqlite.tree import is_paused
from gateway.ledger.states import STATES, STOPPED
from gateway.ledger.telling import day_name, dearest_first, halting

_DAY_MS = 86_400_000
_COLUMNS = {"day": "day", "key": "owner", "run": "run", "model": "model", "provider": "provider"}


def run_view(cursor: apsw.Cursor, tenant: str, run: str, now_ms: int) -> RunView | None:
    books = Books(cursor, now_ms)
    row = books.run(tenant, run)
    if row is None:
        return None
    accounts: tuple[Balance, ...] = ()
    if row.latest is not None:
        call = books.call(tenant, row.latest)
        if call is not None and call.record is not None:
            accounts = standing(books, call.record, row)
    return _view(books, tenant, run, row, accounts)


def _view(books: Books, tenant: str, run: str, row: RunRow, accounts: tuple[Balance, ...] = ()) -> RunView:
    state = RunState.STOPPED if row.state == STOPPED else RunState.ACTIVE
    paused = is_paused(books, tenant, row)
    return RunView(
        tenant,
        run,
        row.owner,
        RunState.PAUSED if paused else state,
        row.limit,
        bool(row.raised),
        row.committed,
        row.reserved,
        row.unconfirmed,
        row.calls,
        row.first_ms,
        row.last_ms,
        accounts,
        row.ancestry,
        row.paused_by if paused else "",
    )


def run_views(cursor: apsw.Cursor, tenant: str, owner: str | None, limit: int, before: str | None) -> list[RunView]:
    books = Books(cursor)
    last = (
        None if before is None else cursor.execute("SELECT used_s FROM runs WHERE tenant = ? AND run = ?", (tenant, before)).get
    )
    if before is not None and last is None:
        return []
    # One range of an index each: those by owner are two, and the newest of both are sorted here.
    page = "" if before is None else " AND (used_s, run) < (:last, :before)"
    order = f"{page} ORDER BY used_s DESC, run DESC LIMIT :limit"
    ranges = [""] if owner is None else [" AND owner = :owner AND quiet = 0", " AND owner = :owner AND quiet = 1"]
    bindings = {"tenant": tenant, "owner": owner, "before": before, "last": last, "limit": limit}
    found: list[Any] = []
    for each in ranges:
        found += cursor.execute(f"SELECT run, {RUN_COLUMNS} WHERE tenant = :tenant{each}{order}", bindings)
    rows = sorted(
        [(run, run_row((tenant, run), [], tuple(columns))) for run, *columns in found], key=lambda each: (each[1].used_s, each[0])
    )
    return [_view(books, tenant, run, row) for run, row in reversed(rows)][:limit]


def record(cursor: apsw.Cursor, tenant: str, decision_id: str) -> CallRecord | None:
    """A call that was refused once and held later under the same id shows as held."""
    tail = decision_id.removeprefix("bdg_")
    found = cursor.execute(
        "SELECT state, due_ms, record, closing FROM calls WHERE tenant = ? AND tail = ?", (tenant, tail)
    ).fetchone()
    if found and found[2] is not None:
        state, due_ms, packed, closing = found
        return call_record(tenant, tail, STATES[state], unpack_record(tenant, packed), unpack_closing(closing), due_ms)
    refused = cursor.execute(
        "SELECT record FROM refusals WHERE tenant = ? AND tail = ? ORDER BY number DESC LIMIT 1", (tenant, tail)
    ).fetchone()
    return call_record(tenant, tail, None, unpack_record(tenant, refused[0]), None) if refused else None


def balances(cursor: apsw.Cursor, tenant: str, accounts: Sequence[Account], now_ms: int) -> list[Balance]:
    books = Books(cursor, now_ms)
    found = []
    for each in accounts:
        assert each.tenant == tenant, each
        row = books.account(each)
        found.append(Balance(each, None, row.committed, row.reserved, row.unconfirmed))
    return found


def account(cursor: apsw.Cursor, tenant: str, key: str, now_ms: int) -> AccountView | None:
    found = Books(cursor, now_ms).account_by_key(tenant, key)
    return None if found is None else account_view(*found)


def frozen(cursor: apsw.Cursor, tenant: str) -> list[Frozen]:
    return list(frozen_scopes(cursor, tenant))


def documents(cursor: apsw.Cursor, tenant: str, known: int) -> Documents | None:
    number = cursor.execute("SELECT number FROM document_numbers WHERE tenant = ?", (tenant,)).get or 0
    if number == known:
        return None
    rows: list[Any] = cursor.execute("SELECT name, text FROM documents WHERE tenant = ?", (tenant,)).fetchall()
    return Documents(number, dict(rows))


def memo(cursor: apsw.Cursor, tenant: str, name: str, now_ms: int) -> str | None:
    return Books(cursor, now_ms).memo(tenant, name)


def acts(cursor: apsw.Cursor, tenant: str, limit: int, before: str | None) -> list[Act]:
    statement = "SELECT id, at_ms, who, act, what, why FROM acts WHERE tenant = ?1{} ORDER BY number DESC LIMIT ?2"
    page = "" if before is None else " AND number < (SELECT number FROM acts WHERE tenant = ?1 AND id = ?3)"
    rows: list[Any] = cursor.execute(statement.format(page), (tenant, limit, *([] if before is None else [before]))).fetchall()
    return [Act(*row) for row in rows]


def open_holds(cursor: apsw.Cursor, tenant: str, run: str | None, limit: int) -> list[CallRecord]:
    rows: list[Any] = cursor.execute(
        "SELECT tail, state, due_ms, record, closing FROM calls WHERE state IN (1, 2) AND tenant = ?", (tenant,)
    ).fetchall()
    found = [
        call_record(tenant, tail, STATES[state], unpack_record(tenant, packed), unpack_closing(closing), due_ms)
        for tail, state, due_ms, packed, closing in rows
    ]
    wanted = [each for each in found if run is None or each.run == run]
    return sorted(wanted, key=lambda each: (each.at_ms, each.decision_id))[:limit]


def leases(cursor: apsw.Cursor, tenant: str, limit: int, before: str | None) -> list[CallRecord]:
    tail, at_ms = "", 1 << 62
    if before is not None:
        tail = before.removeprefix("bdg_")
        statement = (
            "SELECT at_ms FROM calls CROSS JOIN lapsing USING (tenant, tail)"
            " WHERE tenant = ? AND tail = ? AND at_ms = json_extract(CAST(record AS TEXT), '$[2]')"
        )
        found = cursor.execute(statement, (tenant, tail)).fetchone()
        if found is None:
            return []
        at_ms = found[0]
    rows: list[Any] = cursor.execute(
        "SELECT tail, state, due_ms, record, closing FROM lapsing CROSS JOIN calls USING (tenant, tail)"
        " WHERE tenant = ? AND (at_ms, tail) < (?, ?) ORDER BY at_ms DESC, tail DESC LIMIT ?",
        (tenant, at_ms, tail, limit),
    ).fetchall()
    return [
        call_record(tenant, tail, STATES[state], unpack_record(tenant, packed), unpack_closing(closing), due_ms)
        for tail, state, due_ms, packed, closing in rows
    ]


def halted(cursor: apsw.Cursor, tenant: str, callers: Sequence[Caller]) -> list[Barrier | None]:
    runs = {run for caller in callers for run in (caller.run, *caller.ancestry)}
    rows: list[Any] = cursor.execute(
        "SELECT run FROM runs WHERE tenant = ? AND state = ? AND run IN (SELECT value FROM json_each(?))",
        (tenant, STOPPED, orjson.dumps(list(runs)).decode()),
    ).fetchall()
    stopped = {run for (run,) in rows}
    scopes = frozen_scopes(cursor, tenant)

    return [halting(caller, stopped, scopes) for caller in callers]


def spend(cursor: apsw.Cursor, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> list[SpendRow]:
    """Whole UTC days: each day that [from_ms, to_ms) touches."""
    first, last = from_ms // _DAY_MS, (to_ms - 1) // _DAY_MS
    columns = [_COLUMNS.get(word, "dimensions") for word in by]
    grouping = ", ".join(dict.fromkeys(columns)) or "NULL"
    # Only names from _COLUMNS get into the statement.
    statement = (
        f"SELECT {', '.join(columns) or 'NULL'}, sum(usd), sum(tokens), sum(calls), sum(credits), sum(risk_points) FROM spend WHERE tenant = :tenant"  # noqa: S608
        f" AND day BETWEEN :first AND :last AND (:owner IS NULL OR owner = :owner) GROUP BY {grouping}"
    )
    rows: list[Any] = cursor.execute(statement, {"tenant": tenant, "first": first, "last": last, "owner": owner}).fetchall()
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        group = tuple(_group_value(word, value) for word, value in zip(by, row, strict=False))
        total = sums.setdefault(group, [0] * 5)
        for place, amount in enumerate(row[-5:]):
            total[place] += amount
    return dearest_first(sums)


def _group_value(word: str, value: object) -> str:
    if word == "day":
        assert isinstance(value, int)
        return day_name(value)
    if word in _COLUMNS:
        return str(value)
    dimensions = orjson.loads(str(value))
    return str(dimensions.get(word, NO_VALUE))
