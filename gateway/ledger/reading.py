"""What the ledger shows to readers: queries on a connection of their own. Nothing here changes anything."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import apsw
import orjson

from gateway.core.scopes import NO_VALUE, Account
from gateway.core.values import Balance
from gateway.ledger.books import Books, RunRow
from gateway.ledger.contract import CallRecord, RunState, RunView, SpendRow
from gateway.ledger.packed import call_record, unpack_closing, unpack_record
from gateway.ledger.steps import STATES, standing

_DAY_MS = 86_400_000
_COLUMNS = {"day": "day", "key": "owner", "run": "run", "model": "model", "provider": "provider"}


def run_view(cursor: apsw.Cursor, tenant: str, run: str) -> RunView | None:
    books = Books(cursor)
    row = books.run(tenant, run)
    if row is None:
        return None
    accounts: tuple[Balance, ...] = ()
    if row.latest is not None:
        call = books.call(tenant, row.latest)
        if call is not None and call.record is not None:
            accounts = standing(books, call.record, row)
    return _view(tenant, run, row, accounts)


def _view(tenant: str, run: str, row: RunRow, accounts: tuple[Balance, ...] = ()) -> RunView:
    state = RunState.STOPPED if row.stopped else RunState.ACTIVE
    return RunView(
        tenant,
        run,
        row.owner,
        state,
        row.limit,
        bool(row.raised),
        row.committed,
        row.reserved,
        row.unconfirmed,
        row.calls,
        row.first_ms,
        row.last_ms,
        accounts,
    )


def run_views(cursor: apsw.Cursor, tenant: str, owner: str | None, limit: int, before: str | None) -> list[RunView]:
    rows: list[Any] = cursor.execute(
        "SELECT run, first_ms, owner, stopped, own_limit, raised, asked, committed, reserved, unconfirmed, calls, last_ms, latest"
        " FROM runs WHERE tenant = :tenant AND (:owner IS NULL OR owner = :owner) AND (:before IS NULL OR (last_ms, run) <"
        " (SELECT last_ms, run FROM runs WHERE tenant = :tenant AND run = :before)) ORDER BY last_ms DESC, run DESC LIMIT :limit",
        {"tenant": tenant, "owner": owner, "before": before, "limit": limit},
    ).fetchall()
    return [_view(tenant, run, RunRow(*rest)) for run, *rest in rows]


def record(cursor: apsw.Cursor, tenant: str, decision_id: str) -> CallRecord | None:
    """A call that was refused once and held later under the same id shows as held."""
    tail = decision_id.removeprefix("bdg_")
    found = cursor.execute("SELECT state, record, closing FROM calls WHERE tenant = ? AND tail = ?", (tenant, tail)).fetchone()
    if found and found[1] is not None:
        state, packed, closing = found
        return call_record(tenant, tail, STATES[state], unpack_record(tenant, packed), unpack_closing(closing))
    refused = cursor.execute(
        "SELECT record FROM refusals WHERE tenant = ? AND tail = ? ORDER BY number DESC LIMIT 1", (tenant, tail)
    ).fetchone()
    return call_record(tenant, tail, None, unpack_record(tenant, refused[0]), None) if refused else None


def balances(cursor: apsw.Cursor, tenant: str, accounts: Sequence[Account]) -> list[Balance]:
    books = Books(cursor)
    found = []
    for account in accounts:
        assert account.tenant == tenant, account
        row = books.account(account)
        found.append(Balance(account, None, row.committed, row.reserved, row.unconfirmed))
    return found


def open_holds(cursor: apsw.Cursor, tenant: str, run: str | None, limit: int) -> list[CallRecord]:
    rows: list[Any] = cursor.execute(
        "SELECT tail, state, record, closing FROM calls WHERE state <= 2 AND tenant = ?", (tenant,)
    ).fetchall()
    found = [
        call_record(tenant, tail, STATES[state], unpack_record(tenant, packed), unpack_closing(closing))
        for tail, state, packed, closing in rows
    ]
    wanted = [each for each in found if run is None or each.run == run]
    return sorted(wanted, key=lambda each: (each.at_ms, each.decision_id))[:limit]


def stopped(cursor: apsw.Cursor, tenant: str, runs: Sequence[str]) -> frozenset[str]:
    rows: list[Any] = cursor.execute(
        "SELECT run FROM runs WHERE tenant = ? AND stopped AND run IN (SELECT value FROM json_each(?))",
        (tenant, orjson.dumps(list(runs)).decode()),
    ).fetchall()
    return frozenset(run for (run,) in rows)


def spend(cursor: apsw.Cursor, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> list[SpendRow]:
    """Whole UTC days: each day that [from_ms, to_ms) touches."""
    first, last = from_ms // _DAY_MS, (to_ms - 1) // _DAY_MS
    columns = [_COLUMNS.get(word, "dimensions") for word in by]
    grouping = ", ".join(dict.fromkeys(columns)) or "NULL"
    # Only names from _COLUMNS get into the statement.
    statement = (
        f"SELECT {', '.join(columns) or 'NULL'}, sum(usd), sum(tokens), sum(calls) FROM spend WHERE tenant = :tenant"  # noqa: S608
        f" AND day BETWEEN :first AND :last AND (:owner IS NULL OR owner = :owner) GROUP BY {grouping}"
    )
    rows: list[Any] = cursor.execute(statement, {"tenant": tenant, "first": first, "last": last, "owner": owner}).fetchall()
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        group = tuple(_group_value(word, value) for word, value in zip(by, row, strict=False))
        total = sums.setdefault(group, [0, 0, 0])
        for place, amount in enumerate(row[-3:]):
            total[place] += amount
    found = [SpendRow(group, *total) for group, total in sums.items() if any(total)]
    return sorted(found, key=lambda each: (-each.usd, -each.tokens, each.group))


def _group_value(word: str, value: object) -> str:
    if word == "day":
        assert isinstance(value, int)
        return day_name(value)
    if word in _COLUMNS:
        return str(value)
    dimensions = orjson.loads(str(value))
    return str(dimensions.get(word, NO_VALUE))


def day_name(day: int) -> str:
    """Days since the epoch → "2026-11-22"."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
