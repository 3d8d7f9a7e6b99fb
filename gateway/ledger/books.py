"""A batch's view of the store: each row is read at most once and written at most once, however many steps of the batch touch it.

The steps change the rows; `write` puts what has changed into the open transaction. Rows stay known from batch to batch while nobody
else has written to the file; after a rollback nothing is, so a step that fails half-way leaves nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import apsw
import orjson

from gateway.core.scopes import Account, Amounts
from gateway.ledger.packed import Closing, Record, pack_closing, pack_record, unpack_closing, unpack_record
from gateway.ledger.schema import EXPIRED, LIVE

RING: Final = 32  # refusals kept per run
_KNOWN_AT_MOST: Final = 8_192  # rows of each kind
Where: TypeAlias = tuple[str, str]  # a row's tenant, and its key, run or tail
_DAY_MS: Final = 86_400_000


def _move(row: "AccountRow | RunRow", reserved: int = 0, committed: int = 0, unconfirmed: int = 0) -> None:
    """The method of both kinds of balance. Nothing is ever below zero: a step that would make it so is a bug."""
    row.reserved += reserved
    row.committed += committed
    row.unconfirmed += unconfirmed
    assert row.reserved >= 0, row
    assert 0 <= row.unconfirmed <= row.committed, row
    row.changed = True


@dataclass(slots=True)
class AccountRow:
    """Amounts in the account's unit."""

    committed: int
    reserved: int
    unconfirmed: int
    alerted: int
    end_ms: int
    stored: bool = False  # the file has a row for it
    changed: bool = False

    move = _move


@dataclass(slots=True)
class RunRow:
    """Amounts in microcents."""

    first_ms: int
    owner: str
    stopped: bool
    limit: int | None
    raised: bool
    asked: int | None
    committed: int
    reserved: int
    unconfirmed: int
    calls: int
    last_ms: int
    latest: str | None
    stored: bool = False  # the file has a row for it
    changed: bool = False

    move = _move


@dataclass(slots=True)
class CallRow:
    """A hold in any of its states. `record` None: a tombstone."""

    tail: str
    state: int
    lease_ms: int
    record: Record | None
    closing: Closing | None
    packed: bytes | None  # the record as stored; None: pack it again
    stored: bool  # the file has a row for it
    changed: bool = False


class Books:
    """See the module. `now_ms` is the one instant of the batch."""

    def __init__(self, cursor: apsw.Cursor) -> None:
        self.now_ms = 0
        self.changes = 0  # steps of the batch that changed anything
        self._cursor = cursor
        # What the batch touched …
        self._accounts: dict[Where, AccountRow] = {}
        self._runs: dict[Where, RunRow | None] = {}
        self._calls: dict[Where, CallRow | None] = {}
        self._spend: dict[tuple[str, int, str, str, str, str, str], list[int]] = {}
        # … and what is known from the batches before it, as committed. Of the calls, those that are open.
        self._known_accounts: dict[Where, AccountRow] = {}
        self._known_runs: dict[Where, RunRow] = {}
        self._known_calls: dict[Where, CallRow] = {}

    # -- batches --------------------------------------------------------------------------------------------------------------

    def begin(self, now_ms: int, calls: Sequence[Where]) -> None:
        """`calls`: those that the batch's steps will look at, as far as that is known. They are read in one go."""
        self.now_ms = now_ms
        self.changes = 0
        unknown: dict[str, list[str]] = {}
        for where in calls:
            if where not in self._known_calls:
                self._calls[where] = None
                unknown.setdefault(where[0], []).append(where[1])
        for tenant, tails in unknown.items():
            found: list[Any] = self._cursor.execute(
                "SELECT tail, state, lease_ms, record, closing FROM calls"
                " WHERE tenant = ? AND tail IN (SELECT value FROM json_each(?))",
                (tenant, orjson.dumps(tails).decode()),
            ).fetchall()
            for row in found:
                self._calls[tenant, row[0]] = _call_row(tenant, row)

    def committed(self) -> None:
        """What the batch touched is in the file: it stays known."""
        self._known_accounts.update(self._accounts)
        for where, run in self._runs.items():
            if run is not None:
                self._known_runs[where] = run
        for where, call in self._calls.items():
            if call is not None and call.state <= EXPIRED:
                self._known_calls[where] = call
            else:
                self._known_calls.pop(where, None)
        for touched in (self._accounts, self._runs, self._calls):
            touched.clear()
        for known in (self._known_accounts, self._known_runs, self._known_calls):
            if len(known) > _KNOWN_AT_MOST:
                known.clear()

    def forget(self) -> None:
        """Somebody else has written, or the batch was rolled back."""
        for known in (self._known_accounts, self._known_runs, self._known_calls):
            known.clear()
        for touched in (self._accounts, self._runs, self._calls, self._spend):
            touched.clear()

    # -- rows -----------------------------------------------------------------------------------------------------------------

    def account(self, account: Account) -> AccountRow:
        """An account that does not exist yet stands at zero, and is stored once something has moved."""
        where = (account.tenant, account.key)
        row = self._accounts.get(where)
        if row is not None:
            return row
        row = self._known_accounts.get(where)
        if row is None:
            found = self._cursor.execute(
                "SELECT committed, reserved, unconfirmed, alerted, end_ms FROM accounts WHERE tenant = ? AND key = ?",
                where,
            ).fetchone()
            row = AccountRow(*found) if found else AccountRow(0, 0, 0, 0, account.window.end_ms)
            row.stored = found is not None
        self._accounts[where] = row
        return row

    def run(self, tenant: str, run: str) -> RunRow | None:
        where = (tenant, run)
        if where in self._runs:
            return self._runs[where]
        row = self._known_runs.get(where)
        if row is None:
            found = self._cursor.execute(
                "SELECT first_ms, owner, stopped, own_limit, raised, asked, committed, reserved, unconfirmed, calls, last_ms, latest"
                " FROM runs WHERE tenant = ? AND run = ?",
                where,
            ).fetchone()
            if found:
                row = RunRow(*found)
                row.stored = True
        self._runs[where] = row
        return row

    def new_run(self, tenant: str, run: str, owner: str) -> RunRow:
        row = RunRow(self.now_ms, owner, False, None, False, None, 0, 0, 0, 0, self.now_ms, None, changed=True)
        self._runs[tenant, run] = row
        return row

    def call(self, tenant: str, tail: str) -> CallRow | None:
        where = (tenant, tail)
        if where in self._calls:
            return self._calls[where]
        row = self._known_calls.get(where)
        if row is None:
            found = self._cursor.execute(
                "SELECT tail, state, lease_ms, record, closing FROM calls WHERE tenant = ? AND tail = ?", where
            ).fetchone()
            if found:
                row = _call_row(tenant, found)
        self._calls[where] = row
        return row

    def new_call(self, tenant: str, row: CallRow) -> None:
        row.changed = True
        self._calls[tenant, row.tail] = row

    def due(self, at_most: int) -> Iterator[tuple[str, CallRow]]:
        """Live holds whose lease has run out, the oldest lease first, with their tenant."""
        self._write_calls()
        found: list[Any] = self._cursor.execute(
            "SELECT tenant, tail FROM calls WHERE state = ? AND lease_ms <= ? ORDER BY lease_ms, tenant, tail LIMIT ?",
            (LIVE, self.now_ms, at_most),
        ).fetchall()
        for tenant, tail in found:
            row = self.call(tenant, tail)
            assert row is not None
            yield tenant, row

    # -- entries --------------------------------------------------------------------------------------------------------------

    def add_spend(self, tenant: str, record: Record, usd: int, tokens: int, calls: int) -> None:
        """Differences: a correction may be negative. The day is the reserve's, as the accounts' windows are."""
        if not (usd or tokens or calls):
            return
        dimensions = orjson.dumps(dict(record.dimensions)).decode()
        day = record.at_ms // _DAY_MS
        group = (tenant, day, record.owner, record.run, record.selected_model, record.provider, dimensions)
        sums = self._spend.setdefault(group, [0, 0, 0])
        sums[0] += usd
        sums[1] += tokens
        sums[2] += calls

    def add_refusal(self, tenant: str, ring: str, tail: str, record: Record) -> None:
        self._cursor.execute(
            "INSERT INTO refusals SELECT ?1, ?2, coalesce(max(number), 0) + 1, ?3, ?4 FROM refusals WHERE tenant = ?1 AND ring = ?2",
            (tenant, ring, tail, pack_record(record)),
        )
        self._cursor.execute(
            "DELETE FROM refusals WHERE tenant = ?1 AND ring = ?2"
            " AND number <= (SELECT max(number) FROM refusals WHERE tenant = ?1 AND ring = ?2) - ?3",
            (tenant, ring, RING),
        )

    def add_act(self, tenant: str, who: str, act: str, what: str, why: str) -> None:
        self._cursor.execute(
            "INSERT INTO acts (tenant, at_ms, who, act, what, why) VALUES (?, ?, ?, ?, ?, ?)",
            (tenant, self.now_ms, who, act, what, why),
        )

    # -- writing --------------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Everything that has changed, into the open transaction."""
        self._write_calls()
        self._write_accounts()
        self._write_runs()
        # A correction finds its row: the charge it corrects made it. max() is for CHECK, which looks at the row that is not inserted.
        self._many(
            "INSERT INTO spend VALUES (?, ?, ?, ?, ?, ?, ?, max(?8, 0), max(?9, 0), max(?10, 0)) ON CONFLICT DO UPDATE"
            " SET usd = usd + ?8, tokens = tokens + ?9, calls = calls + ?10",
            [(*group, *sums) for group, sums in self._spend.items()],
        )
        self._spend.clear()

    def _write_accounts(self) -> None:
        new: list[tuple[Any, ...]] = []
        moved: list[tuple[Any, ...]] = []
        for where, row in self._accounts.items():
            if row.changed:
                amounts = (row.committed, row.reserved, row.unconfirmed, row.alerted)
                if row.stored:
                    moved.append((*amounts, *where))
                else:
                    new.append((*where, *amounts, row.end_ms))
                row.stored = True
                row.changed = False
        self._many("INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?)", new)
        self._many(
            "UPDATE accounts SET committed = ?, reserved = ?, unconfirmed = ?, alerted = ? WHERE tenant = ? AND key = ?", moved
        )

    def _write_runs(self) -> None:
        new: list[tuple[Any, ...]] = []
        moved: list[tuple[Any, ...]] = []
        for where, run in self._runs.items():
            if run is None or not run.changed:
                continue
            rest = (
                run.owner,
                int(run.stopped),
                run.limit,
                int(run.raised),
                run.asked,
                run.committed,
                run.reserved,
                run.unconfirmed,
                run.calls,
                run.last_ms,
                run.latest,
            )
            if run.stored:
                moved.append((*rest, *where))
            else:
                new.append((*where, run.first_ms, *rest))
            run.stored = True
            run.changed = False
        self._many("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", new)
        self._many(
            "UPDATE runs SET owner = ?, stopped = ?, own_limit = ?, raised = ?, asked = ?, committed = ?, reserved = ?,"
            " unconfirmed = ?, calls = ?, last_ms = ?, latest = ? WHERE tenant = ? AND run = ?",
            moved,
        )

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            self._cursor.executemany(statement, rows)

    def _write_calls(self) -> None:
        new: list[tuple[Any, ...]] = []
        rewritten: list[tuple[Any, ...]] = []
        ended = []
        for (tenant, tail), call in self._calls.items():
            if call is None or not call.changed:
                continue
            closing = None if call.closing is None else pack_closing(call.closing)
            if call.packed is not None:
                ended.append((call.state, call.lease_ms, closing, tenant, tail))
            else:
                call.packed = None if call.record is None else pack_record(call.record)
                (rewritten if call.stored else new).append((tenant, tail, call.state, call.lease_ms, call.packed, closing))
            call.changed = False
            call.stored = True
        self._many("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)", new)
        self._many("REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?)", rewritten)
        self._many("UPDATE calls SET state = ?, lease_ms = ?, closing = ? WHERE tenant = ? AND tail = ?", ended)


def _call_row(tenant: str, row: tuple[Any, ...]) -> CallRow:
    tail, state, lease_ms, packed, closing = row
    record = None if packed is None else unpack_record(tenant, packed)
    return CallRow(tail, state, lease_ms, record, unpack_closing(closing), packed, True)


def minus(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(one.usd - other.usd, one.tokens - other.tokens, one.calls - other.calls)
