"""What a SQLite ledger need no longer keep: found by a reader, removed by the writer, a few rows at a time.

Finding is seeks in indexes by age; the writer looks at each row once more, so whatever was of use in between stays. See `contract.Keep`.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeAlias

import apsw

from gateway.ledger.contract import CallRecord, Keep
from gateway.ledger.packed import call_record, unpack_closing, unpack_record
from gateway.ledger.sqlite.books import Books
from gateway.ledger.sqlite.cards import AccountRow, CallRow, RollingRow, Where
from gateway.ledger.sqlite.copying import tenants
from gateway.ledger.states import COMMITTED, EXPIRED, LIVE, RELEASED, STATES

_DAY_MS: Final = 86_400_000
_SHARED: Final = (
    "untagged/"  # how the value of `run` begins in accounts that calls without a run id share: untagged/KEY/2026-11-22
)
_SHARED_END: Final = "untagged0"  # "0" comes after "/"
# Of the oldest only a few are looked at: whether they are old enough, or more than enough are newer.
_OLD_ACTS: Final = (
    "SELECT ?1, id, number FROM (SELECT id, number, at_ms FROM acts WHERE tenant = ?1 ORDER BY number LIMIT ?4)"
    " WHERE at_ms <= ?2 OR number <= (SELECT number FROM acts WHERE tenant = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?3)"
)
_Spend: TypeAlias = tuple[str, int, str, str, str, str, str]  # a row's primary key


# -- calls ------------------------------------------------------------------------------------------------------------------------


def aged(cursor: apsw.Cursor, keep: Keep, now_ms: int, at_most: int) -> list[CallRecord]:
    found: list[Any] = []
    for state in (COMMITTED, RELEASED, EXPIRED):
        found += cursor.execute(
            "SELECT due_ms, tenant, tail, state, record, closing FROM calls WHERE state = ? AND due_ms <= ? AND record IS NOT NULL"
            " ORDER BY due_ms LIMIT ?",
            (state, now_ms - keep.records_ms, at_most),
        ).fetchall()
    found.sort(key=lambda row: row[:3])
    return [
        call_record(tenant, tail, STATES[state], unpack_record(tenant, record), unpack_closing(closing))
        for _, tenant, tail, state, record, closing in found[:at_most]
    ]


def retire(books: Books, tenant: str, decision_ids: Sequence[str], keep: Keep) -> int:
    gone: list[Where] = []
    lapsing: list[tuple[str, int, str]] = []
    for decision_id in dict.fromkeys(decision_ids):
        tail = decision_id.removeprefix("bdg_")
        call = books.call(tenant, tail)
        if call is None or call.state == LIVE or call.record is None or call.due_ms > books.now_ms - keep.records_ms:
            continue
        _carry_forward(books, tenant, call)
        gone.append((tenant, tail))
        if call.record.lapses:
            lapsing.append((tenant, call.record.at_ms, tail))
    books.remove(calls=gone)
    books.remove_lapsing(lapsing)
    books.changes += len(gone)
    return len(gone)


def _carry_forward(books: Books, tenant: str, call: CallRow) -> None:
    record, closing = call.record, call.closing
    assert record is not None
    assert closing is not None
    lapsed = record.lapses and call.state == EXPIRED
    for line in () if lapsed else record.lines:  # a lapsed one was charged nothing
        account = line.charge.ceiling.account
        charged = line.held if call.state == EXPIRED else closing.charged.of(account.unit)
        if charged and not line.twin:
            row = books.account(account)
            if row.stored or row.changed:  # else a rolling one that went with its run: its buckets no longer counted
                row.carry(charged, charged if call.state == EXPIRED else 0, call.due_ms)
    run = books.run(tenant, record.run)
    if run is not None and call.state == EXPIRED:
        run.correct(closing.charged.usd, closing.charged.usd, call.due_ms)


# -- all else ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Due:
    """What may go, as far as a reader saw."""

    tombstones: list[Where] = field(default_factory=list)
    refusals: list[tuple[str, str, int]] = field(default_factory=list)
    accounts: list[Where] = field(default_factory=list)
    runs: list[tuple[str, str, int]] = field(default_factory=list)  # with the last use that was seen
    spend: list[_Spend] = field(default_factory=list)
    acts: list[tuple[str, str, int]] = field(default_factory=list)
    memos: list[Where] = field(default_factory=list)

    def __len__(self) -> int:
        kinds = (self.tombstones, self.refusals, self.accounts, self.runs, self.spend, self.acts, self.memos)
        return sum(len(kind) for kind in kinds)


class Search:
    """Finds what is due. Remembers how far it has looked through the shared accounts of calls without a run id: those have no index
    by age, so each search looks at a few and the next one goes on from there."""

    def __init__(self) -> None:
        self._looked_at: Where = ("", "")

    def due(self, cursor: apsw.Cursor, keep: Keep, now_ms: int, at_most: int) -> Due:
        due = Due()
        old_ms = now_ms - keep.records_ms
        due.tombstones = _rows(
            cursor,
            "SELECT tenant, tail FROM calls WHERE state = ? AND due_ms <= ? AND record IS NULL ORDER BY due_ms LIMIT ?",
            (RELEASED, old_ms, at_most),
        )
        due.refusals = _rows(
            cursor,
            "SELECT tenant, ring, number FROM refusals WHERE at_ms <= ? ORDER BY at_ms LIMIT ?",
            (old_ms, at_most - len(due)),
        )
        due.accounts = _rows(
            cursor,
            "SELECT tenant, key FROM accounts JOIN account_sums USING (id)"
            " WHERE end_ms <= ? AND end_ms < 9007199254740992 AND reserved = 0"
            " AND committed = carried + adjusted ORDER BY end_ms LIMIT ?",
            (old_ms, at_most - len(due)),
        )
        due.memos = _rows(
            cursor, "SELECT tenant, name FROM memos WHERE until_ms <= ? ORDER BY until_ms LIMIT ?", (now_ms, at_most - len(due))
        )
        known = tenants(cursor, ("accounts", "runs", "spend", "acts"))
        last_day = (now_ms - keep.spend_ms - keep.records_ms) // _DAY_MS
        for tenant in known:
            if len(due) < at_most:
                due.runs += _forgotten(cursor, tenant, now_ms - max(keep.runs_ms, keep.records_ms), at_most - len(due))
            if len(due) < at_most:
                due.spend += _rows(
                    cursor,
                    "SELECT tenant, day, owner, run, model, provider, dimensions FROM spend WHERE tenant = ? AND day < ?"
                    " ORDER BY day LIMIT ?",
                    (tenant, last_day, at_most - len(due)),
                )
            if len(due) < at_most:
                due.acts += _rows(cursor, _OLD_ACTS, (tenant, now_ms - keep.spend_ms, keep.acts_at_most, at_most - len(due)))
        due.accounts += self._shared(cursor, known, now_ms - max(keep.runs_ms, keep.records_ms), at_most - len(due))
        return due

    def _shared(self, cursor: apsw.Cursor, known: Sequence[str], old_ms: int, at_most: int) -> list[Where]:
        """Each seek finds a key's oldest day, or jumps over the key whose oldest day is not old enough."""
        found: list[Where] = []
        tenant, run = self._looked_at
        for _ in range(at_most):
            row = _next_shared(cursor, known, tenant, run or _SHARED)
            if row is None:
                tenant, run = "", ""  # from the start, next time
                break
            tenant, run = row
            key, _, day = run.rpartition("/")
            if _end_of(day) > old_ms:
                run = f"{key}/~"  # "~" comes after every digit: on to the next key
            else:
                found += _rows(
                    cursor,
                    "SELECT tenant, key FROM accounts JOIN account_sums USING (id)"
                    " WHERE tenant = ? AND run = ? AND run <> '' AND reserved = 0",
                    (tenant, run),
                )
        self._looked_at = (tenant, run)
        return found


def _next_shared(cursor: apsw.Cursor, known: Sequence[str], tenant: str, run: str) -> Where | None:
    statement = "SELECT tenant, run FROM accounts WHERE tenant = ? AND run > ? AND run < ? AND run <> '' ORDER BY run LIMIT 1"
    for each in known[bisect_left(known, tenant) :]:
        row = cursor.execute(statement, (each, run if each == tenant else _SHARED, _SHARED_END)).fetchone()
        if row is not None:
            return row[0], row[1]
    return None


def _end_of(day: str) -> int:
    try:
        midnight = date.fromisoformat(day) + timedelta(days=1)
    except ValueError:  # nothing that this gateway wrote: it stays
        return 2**53
    return int(datetime(midnight.year, midnight.month, midnight.day, tzinfo=UTC).timestamp() * 1000)


def _forgotten(cursor: apsw.Cursor, tenant: str, old_ms: int, at_most: int) -> list[tuple[str, str, int]]:
    found: list[tuple[str, str, int]] = _rows(
        cursor,
        "SELECT tenant, run, last_ms FROM runs JOIN run_sums USING (id)"
        " WHERE tenant = ? AND used_s <= ? AND last_ms <= ? AND reserved = 0 AND unconfirmed = 0 ORDER BY used_s LIMIT ?",
        (tenant, old_ms // 1000, old_ms, at_most),
    )
    if not found:
        return []
    # A hold of nothing (a free model's) leaves no trace in its run. No reader waits for this but the next one.
    busy = {
        run
        for (run,) in _rows(
            cursor,
            "SELECT json_extract(CAST(record AS TEXT), '$[0]') FROM calls WHERE state IN (?, ?) AND tenant = ?",
            (LIVE, EXPIRED, tenant),
        )
    }
    return [each for each in found if each[1] not in busy]


def _rows(cursor: apsw.Cursor, statement: str, values: tuple[Any, ...]) -> list[Any]:
    return cursor.execute(statement, values).fetchall()


def remove(books: Books, due: Due) -> int:
    """What is still due of it. Returns how many things went."""
    books.remove(calls=due.tombstones)
    books.remove_refusals(due.refusals)
    gone = len(due.tombstones) + len(due.refusals)
    accounts = [where for where in due.accounts if _is_settled(books, where)]
    runs: list[Where] = []
    for tenant, run, last_ms in due.runs:
        row = books.run(tenant, run)
        if row is None or row.last_ms != last_ms or row.reserved or row.unconfirmed:
            continue
        own = books.accounts_of_run(tenant, run)
        if all(_is_settled(books, where) for where in own):
            runs.append((tenant, run))
            accounts += own
    books.remove(accounts=accounts, runs=runs)
    books.remove_spend(due.spend)
    books.remove_acts(due.acts)
    books.remove_memos(due.memos)
    gone += len(accounts) + len(runs) + len(due.spend) + len(due.acts) + len(due.memos)
    books.changes += gone
    return gone


def _is_settled(books: Books, where: Where) -> bool:
    """Nothing on record counts there any more."""
    found = books.account_by_key(*where)
    return found is not None and _is_carried(found[1])


def _is_carried(row: AccountRow) -> bool:
    if row.reserved:
        return False
    if isinstance(row, RollingRow):
        return all(committed == carried for committed, _, carried in row.buckets.values())
    return row.committed == row.carried + row.adjusted
