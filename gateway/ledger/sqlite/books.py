"""A batch's view of the store: each row is read at most once and written at most once, however many of its steps touch it.

The steps change the rows; `write` puts what has changed into the open transaction. Rows stay known from batch to batch while nobody
else has written to the file; after a rollback nothing is, so a step that fails half-way leaves nothing.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import apsw
import orjson

from gateway.core.scopes import Account, Amounts
from gateway.ledger.contract import Frozen
from gateway.ledger.packed import Record, account_of, pack_closing, pack_record, run_in
from gateway.ledger.sqlite.cards import (
    ACCOUNT_COLUMNS,
    RUN_COLUMNS,
    AccountRow,
    CallRow,
    RunRow,
    account_row,
    call_row,
    run_row,
    wide_columns,
)
from gateway.ledger.states import ACTIVE, EXPIRED, LIVE

RING: Final = 32  # refusals kept per run
_KNOWN_AT_MOST: Final = 8_192  # rows of each kind
Where: TypeAlias = tuple[str, str]  # a row's tenant, and its key, run or tail
_Group: TypeAlias = tuple[str, int, str, str, str, str, str]  # of spend: tenant, day, owner, run, model, provider, dimensions
_DAY_MS: Final = 86_400_000


@dataclass(slots=True)
class Rules:
    """What holds for a tenant as a whole."""

    raises: int
    frozen: tuple[Frozen, ...]  # by text


class Books:
    """See the module. `now_ms` is the one instant of the batch."""

    def __init__(self, cursor: apsw.Cursor, now_ms: int = 0) -> None:
        self.now_ms = now_ms
        self.changes = 0  # steps of the batch that changed anything
        self.rules_changed = False
        self._cursor = cursor
        self._trusting = False
        # What the batch touched (`accounts`: to be read by the steps, which find most of theirs here) …
        self.accounts: dict[Where, AccountRow] = {}
        self._runs: dict[Where, RunRow | None] = {}
        self._calls: dict[Where, CallRow | None] = {}
        self._spend: dict[_Group, list[int]] = {}
        # … and what is known from the batches before it, as committed. Of the calls, those that are open.
        self._known_accounts: dict[Where, AccountRow] = {}
        self._known_runs: dict[Where, RunRow | None] = {}
        self._known_calls: dict[Where, CallRow] = {}
        self._known_spend: dict[_Group, int] = {}  # the id of its row
        self._known_rules: dict[str, Rules] = {}  # by tenant

    # -- batches --------------------------------------------------------------------------------------------------------------

    def begin(self, now_ms: int, trusting: bool) -> None:
        """`trusting`: see `call_unless_new`."""
        self.now_ms = now_ms
        self.changes = 0
        self.rules_changed = False
        self._trusting = trusting

    def committed(self) -> None:
        """What the batch touched is in the file: it stays known."""
        self._known_accounts.update(self.accounts)
        self._known_runs.update(self._runs)
        for where, call in self._calls.items():
            if call is not None and call.state <= EXPIRED:
                self._known_calls[where] = call
            else:
                self._known_calls.pop(where, None)
        for touched in (self.accounts, self._runs, self._calls):
            touched.clear()
        for known in (self._known_accounts, self._known_runs, self._known_calls, self._known_spend, self._known_rules):
            if len(known) > _KNOWN_AT_MOST:
                known.clear()

    def forget(self) -> None:
        """Somebody else has written, or the batch was rolled back."""
        for known in (self._known_accounts, self._known_runs, self._known_calls, self._known_spend):
            known.clear()
        for touched in (self.accounts, self._runs, self._calls, self._spend):
            touched.clear()
        if self.rules_changed:
            self.forget_rules()

    def forget_rules(self) -> None:
        self._known_rules.clear()

    # -- rows -----------------------------------------------------------------------------------------------------------------

    def account(self, account: Account, where: Where | None = None) -> AccountRow:
        """An account that does not exist yet stands at zero, and is stored once something has moved. `where`: its tenant and key, if
        at hand."""
        if where is None:
            where = (account.tenant, account.key)
        row = self.accounts.get(where)
        if row is not None:
            return row
        row = self._known_accounts.get(where)
        if row is None:
            found = self._account_columns(where)
            row = account_row(account, found or (0, 0, 0, 0, 0, account.window.end_ms, 0, 0, None, run_in(account.scope), None))
        row.roll(self.now_ms)
        self.accounts[where] = row
        return row

    def account_by_key(self, tenant: str, key: str) -> tuple[Account, AccountRow] | None:
        """None: it does not exist."""
        where = (tenant, key)
        known = self.accounts.get(where) or self._known_accounts.get(where)
        if known is not None:
            end_ms = known.end_ms
        else:
            found = self._account_columns(where)
            if found is None:
                return None
            end_ms = found[5]
        account = account_of(tenant, key, end_ms)
        row = self.account(account)
        return (account, row) if row.stored or row.changed else None

    def _account_columns(self, where: Where) -> tuple[Any, ...] | None:
        return self._cursor.execute(f"SELECT {ACCOUNT_COLUMNS} FROM accounts WHERE tenant = ? AND key = ?", where).fetchone()  # noqa: S608

    def run(self, tenant: str, run: str) -> RunRow | None:
        where = (tenant, run)
        if where in self._runs:
            return self._runs[where]
        if where in self._known_runs:
            row = self._known_runs[where]
        else:
            found = self._cursor.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE tenant = ? AND run = ?", where).fetchone()  # noqa: S608
            row = run_row(found) if found else None
        self._runs[where] = row
        return row

    def new_run(self, tenant: str, run: str, owner: str) -> RunRow:
        now_ms = self.now_ms
        row = RunRow(
            now_ms, owner, ACTIVE, None, "", None, 0, None, 0, 0, (), None, 0, 0, 0, 0, now_ms, None, now_ms // 1000, changed=True
        )
        self._runs[tenant, run] = row
        return row

    def active_runs(self, tenant: str, owner: str, since_ms: int, at_most: int) -> int:
        """How many runs of the key were used after `since_ms` and are not quiet; none is counted beyond `at_most`."""
        self._write_runs()
        since_s = since_ms // 1000
        return int(
            self._cursor.execute(
                "SELECT count(*) FROM (SELECT 1 FROM runs WHERE tenant = ?1 AND owner = ?2 AND quiet = 0 AND used_s > ?3"
                " UNION ALL SELECT 1 FROM runs INDEXED BY runs_by_owner"
                " WHERE tenant = ?1 AND owner = ?2 AND quiet = 0 AND used_s = ?3 AND last_ms > ?4"
                " LIMIT ?5)",
                (tenant, owner, since_s, since_ms, at_most),
            ).get
        )

    def rules(self, tenant: str) -> Rules:
        rules = self._known_rules.get(tenant)
        if rules is None:
            raises = self._cursor.execute("SELECT raises FROM tenants WHERE tenant = ?", (tenant,)).get
            rules = self._known_rules[tenant] = Rules(raises or 0, frozen_scopes(self._cursor, tenant))
        return rules

    def call(self, tenant: str, tail: str) -> CallRow | None:
        where = (tenant, tail)
        if where in self._calls:
            return self._calls[where]
        row = self._known_calls.get(where)
        if row is None:
            found = self._cursor.execute(
                "SELECT id, tail, state, due_ms, record, closing FROM calls WHERE tenant = ? AND tail = ?", where
            ).fetchone()
            if found:
                row = call_row(tenant, found)
        self._calls[where] = row
        return row

    def call_unless_new(self, tenant: str, tail: str) -> CallRow | None:
        """Takes an id that is not known here for a new one. Only for a step that then makes this call: where the id is not new, the
        INSERT fails, and the batch runs again without trust."""
        if not self._trusting:
            return self.call(tenant, tail)
        where = (tenant, tail)
        return self._calls.get(where) or self._known_calls.get(where)

    def new_call(self, tenant: str, row: CallRow) -> None:
        row.changed = True
        self._calls[tenant, row.tail] = row

    def due(self, at_most: int) -> Iterator[tuple[str, CallRow]]:
        """Live holds whose lease has run out, the oldest lease first, with their tenant."""
        self._write_calls()
        found: list[Any] = self._cursor.execute(
            "SELECT tenant, tail FROM calls WHERE state = ? AND due_ms <= ? ORDER BY due_ms, tenant, tail LIMIT ?",
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
        dimensions = _as_object(record.dimensions)
        day = record.at_ms // _DAY_MS
        group = (tenant, day, record.owner, record.run, record.selected_model, record.provider, dimensions)
        sums = self._spend.setdefault(group, [0, 0, 0])
        sums[0] += usd
        sums[1] += tokens
        sums[2] += calls

    def add_refusal(self, tenant: str, ring: str, tail: str, record: Record) -> None:
        self._cursor.execute(
            "INSERT INTO refusals SELECT ?1, ?2, coalesce(max(number), 0) + 1, ?3, ?4, ?5 FROM refusals"
            " WHERE tenant = ?1 AND ring = ?2",
            (tenant, ring, tail, record.at_ms, pack_record(record)),
        )
        self._cursor.execute(
            "DELETE FROM refusals WHERE tenant = ?1 AND ring = ?2"
            " AND number <= (SELECT max(number) FROM refusals WHERE tenant = ?1 AND ring = ?2) - ?3",
            (tenant, ring, RING),
        )
        self.changes += 1

    def add_act(self, tenant: str, who: str, act: str, what: str, why: str, act_id: str | None = None) -> None:
        self._cursor.execute(
            "INSERT INTO acts (tenant, id, at_ms, who, act, what, why) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (tenant, act_id or f"act_{secrets.token_hex(8)}", self.now_ms, who, act, what, why),
        )
        self.changes += 1

    def has_act(self, tenant: str, act_id: str) -> bool:
        return bool(self._cursor.execute("SELECT count(*) FROM acts WHERE tenant = ? AND id = ?", (tenant, act_id)).get)

    def add_raise(self, tenant: str) -> None:
        """What waits for a raise waits no longer."""
        self._cursor.execute("INSERT INTO tenants VALUES (?, 1) ON CONFLICT DO UPDATE SET raises = raises + 1", (tenant,))
        self._change_rules(tenant)

    def freeze(self, tenant: str, frozen: Frozen) -> None:
        scope = orjson.dumps(frozen.scope).decode()
        self._cursor.execute(
            "INSERT INTO frozen VALUES (?, ?, ?, ?, ?, ?)", (tenant, frozen.text, scope, frozen.at_ms, frozen.who, frozen.why)
        )
        self._change_rules(tenant)

    def thaw(self, tenant: str, text: str) -> None:
        self._cursor.execute("DELETE FROM frozen WHERE tenant = ? AND text = ?", (tenant, text))
        self._change_rules(tenant)

    def _change_rules(self, tenant: str) -> None:
        self.rules_changed = True
        self._known_rules.pop(tenant, None)

    # -- removing -------------------------------------------------------------------------------------------------------------

    def accounts_of_run(self, tenant: str, run: str) -> list[Where]:
        """Those whose scope names it, as of the batches before this one."""
        found: list[Any] = self._cursor.execute(
            "SELECT tenant, key FROM accounts WHERE tenant = ? AND run = ? AND run <> ''", (tenant, run)
        ).fetchall()
        return found

    def remove(self, calls: Sequence[Where] = (), accounts: Sequence[Where] = (), runs: Sequence[Where] = ()) -> None:
        """Deletes rows, and what the batch knows of them."""
        for where in calls:
            self._calls[where] = None
        for where in accounts:
            self.accounts.pop(where, None)
            self._known_accounts.pop(where, None)
        for where in runs:
            self._runs[where] = None
        self._many("DELETE FROM calls WHERE tenant = ? AND tail = ?", calls)
        self._many("DELETE FROM accounts WHERE tenant = ? AND key = ?", accounts)
        self._many("DELETE FROM runs WHERE tenant = ? AND run = ?", runs)

    def remove_refusals(self, refusals: Sequence[tuple[str, str, int]]) -> None:
        self._many("DELETE FROM refusals WHERE tenant = ? AND ring = ? AND number = ?", refusals)

    def remove_acts(self, acts: Sequence[tuple[str, str, int]]) -> None:
        self._many("DELETE FROM acts WHERE tenant = ? AND id = ? AND number = ?", acts)

    def remove_spend(self, groups: Sequence[_Group]) -> None:
        for group in groups:
            self._known_spend.pop(group, None)
        self._many(
            "DELETE FROM spend WHERE tenant = ? AND day = ? AND owner = ? AND run = ? AND model = ? AND provider = ? AND dimensions = ?",
            groups,
        )

    # -- writing --------------------------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Everything that has changed, into the open transaction."""
        self._write_calls()
        self._write_accounts()
        self._write_runs()
        self._write_spend()

    def _write_accounts(self) -> None:
        new: list[AccountRow] = []
        inserted: list[tuple[Any, ...]] = []
        rewritten: list[tuple[Any, ...]] = []
        moved: list[tuple[Any, ...]] = []
        for where, row in self.accounts.items():
            if not row.changed:
                continue
            amounts = (row.committed, row.reserved, row.unconfirmed)
            rest = (row.alerted, row.carried, row.adjusted, row.limit, row.packed_buckets()) if row.wide or not row.id else ()
            if not row.id:
                new.append(row)
                inserted.append((*where, row.end_ms, row.run, *amounts, *rest))
            elif row.wide:
                rewritten.append((*amounts, *rest, row.id))
            else:
                moved.append((*amounts, row.id))
            row.changed = row.wide = False
        self._insert(
            "INSERT INTO accounts (tenant, key, end_ms, run, committed, reserved, unconfirmed, alerted, carried, adjusted, stored_limit,"
            " buckets) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            inserted,
            new,
        )
        self._many(
            "UPDATE accounts SET committed = ?, reserved = ?, unconfirmed = ?, alerted = ?, carried = ?, adjusted = ?, stored_limit = ?,"
            " buckets = ? WHERE id = ?",
            rewritten,
        )
        self._many("UPDATE accounts SET committed = ?, reserved = ?, unconfirmed = ? WHERE id = ?", moved)

    def _write_runs(self) -> None:
        new: list[RunRow] = []
        inserted: list[tuple[Any, ...]] = []
        rewritten: list[tuple[Any, ...]] = []
        moved: list[tuple[Any, ...]] = []
        for where, run in self._runs.items():
            if run is None or not run.changed:
                continue
            amounts = (run.committed, run.reserved, run.unconfirmed, run.calls, run.last_ms, run.latest)
            if not run.id:
                new.append(run)
                inserted.append((*where, run.first_ms, *amounts, *wide_columns(run)))
            elif run.wide:
                rewritten.append((*amounts, *wide_columns(run), run.id))
            else:
                moved.append((*amounts, run.id))
            run.changed = run.wide = False
        self._insert(
            "INSERT INTO runs (tenant, run, first_ms, committed, reserved, unconfirmed, calls, last_ms, latest, owner, state, paused_no,"
            " paused_by, own_limit, raised, asked, issued, placed, ancestry, recent, used_s, quiet)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            inserted,
            new,
        )
        self._many(
            "UPDATE runs SET committed = ?, reserved = ?, unconfirmed = ?, calls = ?, last_ms = ?, latest = ?, owner = ?, state = ?,"
            " paused_no = ?, paused_by = ?, own_limit = ?, raised = ?, asked = ?, issued = ?, placed = ?, ancestry = ?, recent = ?,"
            " used_s = ?, quiet = ? WHERE id = ?",
            rewritten,
        )
        self._many(
            "UPDATE runs SET committed = ?, reserved = ?, unconfirmed = ?, calls = ?, last_ms = ?, latest = ? WHERE id = ?", moved
        )

    def _write_spend(self) -> None:
        """A correction finds its row: the charge it corrects made it."""
        added: list[tuple[Any, ...]] = []
        for group, sums in self._spend.items():
            row_id = self._known_spend.get(group)
            if row_id is None:
                # max() is for CHECK, which looks at the row that is not inserted.
                statement = (
                    "INSERT INTO spend (tenant, day, owner, run, model, provider, dimensions, usd, tokens, calls)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, max(?8, 0), max(?9, 0), max(?10, 0)) ON CONFLICT DO UPDATE"
                    " SET usd = usd + ?8, tokens = tokens + ?9, calls = calls + ?10 RETURNING id"
                )
                self._known_spend[group] = self._cursor.execute(statement, (*group, *sums)).get
            else:
                added.append((*sums, row_id))
        self._many("UPDATE spend SET usd = usd + ?, tokens = tokens + ?, calls = calls + ? WHERE id = ?", added)
        self._spend.clear()

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            self._cursor.executemany(statement, rows)

    def _insert(self, statement: str, rows: Sequence[tuple[Any, ...]], into: Sequence["AccountRow | RunRow | CallRow"]) -> None:
        """The ids of new rows follow one another: nobody else writes to the file meanwhile."""
        if rows:
            self._cursor.executemany(statement, rows)
            last = self._cursor.connection.last_insert_rowid()
            for row_id, row in enumerate(into, last - len(rows) + 1):
                row.id = row_id

    def _write_calls(self) -> None:
        new: list[CallRow] = []
        inserted: list[tuple[Any, ...]] = []
        rewritten: list[tuple[Any, ...]] = []
        ended: list[tuple[Any, ...]] = []
        for (tenant, tail), call in self._calls.items():
            if call is None or not call.changed:
                continue
            closing = None if call.closing is None else pack_closing(call.closing)
            if call.packed is not None:
                ended.append((call.state, call.due_ms, closing, call.id))
            else:
                call.packed = None if call.record is None else pack_record(call.record)
                if call.id:
                    rewritten.append((call.state, call.due_ms, closing, call.packed, call.id))
                else:
                    new.append(call)
                    inserted.append((tenant, tail, call.state, call.due_ms, call.packed, closing))
            call.changed = False
        self._insert("INSERT INTO calls (tenant, tail, state, due_ms, record, closing) VALUES (?, ?, ?, ?, ?, ?)", inserted, new)
        self._many("UPDATE calls SET state = ?, due_ms = ?, closing = ?, record = ? WHERE id = ?", rewritten)
        self._many("UPDATE calls SET state = ?, due_ms = ?, closing = ? WHERE id = ?", ended)


@lru_cache(maxsize=1_024)
def _as_object(pairs: tuple[tuple[str, str], ...]) -> str:
    return orjson.dumps(dict(pairs)).decode()


def frozen_scopes(cursor: apsw.Cursor, tenant: str) -> tuple[Frozen, ...]:
    """By text."""
    rows: list[Any] = cursor.execute(
        "SELECT scope, at_ms, who, why FROM frozen WHERE tenant = ? ORDER BY text", (tenant,)
    ).fetchall()
    return tuple([Frozen(tuple((name, value) for name, value in orjson.loads(scope)), *rest) for scope, *rest in rows])


def minus(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(one.usd - other.usd, one.tokens - other.tokens, one.calls - other.calls)
