"""What the writer knows of the store: each row is read at most once while nobody else writes to the file, and written at most once per
batch, however many of its steps touch it.

The steps change the rows in place; a row that has changed puts itself on a list, and `write` puts what is listed into the open
transaction. Rows stay known from batch to batch until somebody else has written; after a rollback nothing is known, so a step that
fails half-way leaves nothing.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import apsw
import orjson

from gateway.core.scopes import Account, Amounts
from gateway.core.values import Ceiling
from gateway.ledger.contract import Frozen
from gateway.ledger.layout import Layout, Spot
from gateway.ledger.packed import Record, account_of, pack_closing, pack_record, run_in
from gateway.ledger.sqlite.cards import (
    ACCOUNT_COLUMNS,
    CALL_COLUMNS,
    RUN_COLUMNS,
    WIDE_RUN_COLUMNS,
    AccountRow,
    CallRow,
    RunRow,
    Where,
    account_row,
    call_row,
    run_row,
    wide_columns,
)
from gateway.ledger.sqlite.many import Many
from gateway.ledger.states import ACTIVE, EXPIRED, LIVE

RING: Final = 32  # refusals kept per run
_KNOWN_AT_MOST: Final = 8_192  # rows of each kind
# Of spend: tenant, day, owner, run, model, provider, dimensions.
_Group: TypeAlias = tuple[str, int, str, str, str, str, tuple[tuple[str, str], ...]]
_DAY_MS: Final = 86_400_000

_NEW_ACCOUNTS: Final = Many("INSERT", "accounts", "tenant, key, end_ms, run, alerted, carried, adjusted, stored_limit, buckets")
_WIDE_ACCOUNT: Final = "UPDATE accounts SET alerted = ?, carried = ?, adjusted = ?, stored_limit = ?, buckets = ? WHERE id = ?"
_ACCOUNT_SUMS: Final = Many("REPLACE", "account_sums", "id, committed, reserved, unconfirmed")
_NEW_RUNS: Final = Many("INSERT", "runs", f"tenant, run, first_ms, {WIDE_RUN_COLUMNS}")
_WIDE_RUN: Final = f"UPDATE runs SET {WIDE_RUN_COLUMNS.replace(',', ' = ?,')} = ? WHERE id = ?"  # noqa: S608 - names of columns
_RUN_SUMS: Final = Many("REPLACE", "run_sums", "id, committed, reserved, unconfirmed, calls, last_ms, latest")
_NEW_CALLS: Final = Many("INSERT", "calls", "tenant, tail, state, due_ms, record, closing")
_LAPSING: Final = Many("REPLACE", "lapsing", "tenant, at_ms, tail")
_GROWN_CALL: Final = "UPDATE calls SET state = ?, due_ms = ?, closing = ?, record = ? WHERE id = ?"

# The limits of runs themselves, as a step sees them: the call's run's, whether the admin set it, and the ancestors, whose own are in
# the books.
Own: TypeAlias = tuple[int | None, int, tuple[str, ...]]
# A charge where it meets its account, under the limit that applies now.
Met: TypeAlias = tuple[Spot, AccountRow, int | None]
_NEVER: Final = 1 << 63  # more than any account can have
_ALL: Final = 1_000_000


class Standing:
    """The charges of a layout where they meet their accounts, and that once more as each loop of the path needs it."""

    __slots__ = ("counted", "limited", "met", "own", "shown")

    def __init__(self, own: Own, met: Sequence[Met]) -> None:
        self.own = own
        self.met = met
        once = [(spot, row, limit) for spot, row, limit in met if not spot.twin]
        # What moves: with the limit and what committed is when its first alert fires.
        self.counted = [(row, spot.unit, spot.ceiling, limit, _alerts_from(spot.ceiling, limit)) for spot, row, limit in once]
        self.shown = [(row, spot.account, limit, spot.ceiling.mode) for spot, row, limit in once]
        # What fits the limit as it is fits by any rule, but one that keeps a share back: that limit counts as 0 here.
        self.limited = [
            (row, spot.unit, limit if spot.charge.share_ppm == _ALL else 0) for spot, row, limit in met if limit is not None
        ]


def _alerts_from(ceiling: Ceiling, limit: int | None) -> int:
    return _NEVER if limit is None or not ceiling.alerts else -(-limit * ceiling.alerts[0] // _ALL)


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
        self._accounts: dict[Where, AccountRow] = {}
        self._runs: dict[Where, RunRow | None] = {}
        self._calls: dict[Where, CallRow] = {}  # of earlier batches, those that are open
        self._spend_ids: dict[_Group, int] = {}
        self._rules: dict[str, Rules] = {}  # by tenant
        self._runs_written = 0  # rows
        # What was asked → the active runs that were counted, less `_runs_written` at that time
        self._active: dict[tuple[str, str, int, int], int] = {}
        self.standings: dict[Layout, Standing] = {}  # true as long as the accounts are known and none gets another limit
        # What has changed since it was written.
        self._changed_accounts: list[AccountRow] = []
        self._changed_runs: list[RunRow] = []
        self._changed_calls: list[CallRow] = []
        self._spend: dict[_Group, list[int]] = {}
        self._more_spend: dict[_Group, list[int]] = {}  # credits and risk points of some of these groups
        self._ended: list[Where] = []  # calls of this batch that are open no more

    # -- batches --------------------------------------------------------------------------------------------------------------

    def begin(self, now_ms: int, trusting: bool) -> None:
        """`trusting`: see `call_unless_new`."""
        self.now_ms = now_ms
        self.changes = 0
        self.rules_changed = False
        self._trusting = trusting

    def committed(self) -> None:
        """What the batch made of the rows is in the file: they stay known."""
        for where in self._ended:
            self._calls.pop(where, None)
        self._ended.clear()
        if max(len(self._accounts), len(self.standings)) > _KNOWN_AT_MOST:
            self._accounts.clear()
            self.standings.clear()
        for known in (self._runs, self._calls, self._spend_ids, self._rules, self._active):
            if len(known) > _KNOWN_AT_MOST:
                known.clear()

    def forget(self) -> None:
        """Somebody else has written, or the batch was rolled back."""
        for known in (
            self._accounts,
            self._runs,
            self._calls,
            self._spend_ids,
            self._active,
            self.standings,
            self._spend,
            self._more_spend,
        ):
            known.clear()
        for changed in (self._changed_accounts, self._changed_runs, self._changed_calls, self._ended):
            changed.clear()
        if self.rules_changed:
            self.forget_rules()

    def forget_rules(self) -> None:
        self._rules.clear()

    # -- rows -----------------------------------------------------------------------------------------------------------------

    def account(self, account: Account, where: Where | None = None) -> AccountRow:
        """An account that does not exist yet stands at zero, and is stored once something has moved. `where`: its tenant and key, if
        at hand."""
        if where is None:
            where = (account.tenant, account.key)
        row = self._accounts.get(where)
        if row is None:
            found = self._account_columns(where) or (
                *(0, 0, 0, 0, 0, account.window.end_ms, 0, 0, None, run_in(account.scope), None),
            )
            row = self._accounts[where] = account_row(where, self._changed_accounts, account.window.bucket_ms, found)
        row.roll(self.now_ms)
        return row

    def account_by_key(self, tenant: str, key: str) -> tuple[Account, AccountRow] | None:
        """None: it does not exist."""
        where = (tenant, key)
        known = self._accounts.get(where)
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
        return self._cursor.execute(f"SELECT {ACCOUNT_COLUMNS} WHERE tenant = ? AND key = ?", where).fetchone()

    def limit_account(self, row: AccountRow, limit: int | None) -> None:
        """Stores a limit with it."""
        row.limit = limit
        row.change()
        self.standings.clear()

    def run(self, tenant: str, run: str) -> RunRow | None:
        where = (tenant, run)
        row = self._runs.get(where)
        if row is None and where not in self._runs:
            found = self._cursor.execute(f"SELECT {RUN_COLUMNS} WHERE tenant = ? AND run = ?", where).fetchone()
            row = self._runs[where] = run_row(where, self._changed_runs, found) if found else None
        return row

    def new_run(self, tenant: str, run: str, owner: str) -> RunRow:
        now_ms = self.now_ms
        columns = (0, now_ms, owner, ACTIVE, None, "", None, 0, None, 0, 0, "", None, 0, 0, 0, 0, now_ms, None, now_ms // 1000)
        row = run_row((tenant, run), self._changed_runs, columns)
        row.change()
        self._runs[row.where] = row
        return row

    def has_active_runs(self, tenant: str, owner: str, idle_ms: int, number: int) -> bool:
        """Whether so many runs of the key, or more, were used less than `idle_ms` ago and are not quiet. Counted only where they may be:
        no more can have become active since the last time than rows of runs were changed."""
        asked = (tenant, owner, idle_ms, number)
        most = self._active.get(asked, number) + self._runs_written + len(self._changed_runs)
        if most < number:
            return False
        self._write_runs()
        since_ms = self.now_ms - idle_ms
        since_s = since_ms // 1000
        count = int(
            self._cursor.execute(
                "SELECT count(*) FROM (SELECT 1 FROM runs WHERE tenant = ?1 AND owner = ?2 AND quiet = 0 AND used_s > ?3"
                " UNION ALL SELECT 1 FROM runs INDEXED BY runs_by_owner JOIN run_sums USING (id)"
                " WHERE tenant = ?1 AND owner = ?2 AND quiet = 0 AND used_s = ?3 AND last_ms > ?4"
                " LIMIT ?5)",
                (tenant, owner, since_s, since_ms, number),
            ).get
        )
        self._active[asked] = count - self._runs_written
        return count >= number

    def rules(self, tenant: str) -> Rules:
        rules = self._rules.get(tenant)
        if rules is None:
            raises = self._cursor.execute("SELECT raises FROM tenants WHERE tenant = ?", (tenant,)).get
            rules = self._rules[tenant] = Rules(raises or 0, frozen_scopes(self._cursor, tenant))
        return rules

    def call(self, tenant: str, tail: str) -> CallRow | None:
        where = (tenant, tail)
        row = self._calls.get(where)
        if row is None:
            found = self._cursor.execute(f"SELECT {CALL_COLUMNS} FROM calls WHERE tenant = ? AND tail = ?", where).fetchone()  # noqa: S608
            if found is None:
                return None
            row = self._calls[where] = call_row(where, found)
            if row.state > EXPIRED:
                self._ended.append(where)
        return row

    def call_unless_new(self, tenant: str, tail: str) -> CallRow | None:
        """Takes an id that is not known here for a new one. Only for a step that then makes this call: where the id is not new, the
        INSERT fails, and the batch runs again without trust."""
        return self._calls.get((tenant, tail)) if self._trusting else self.call(tenant, tail)

    def new_call(self, row: CallRow) -> None:
        self._calls[row.where] = row
        self.change_call(row)

    def change_call(self, row: CallRow) -> None:
        """It is to be written."""
        if not row.changed:
            row.changed = True
            self._changed_calls.append(row)

    def due(self, at_most: int) -> Iterator[CallRow]:
        """Live holds whose lease has run out, the oldest lease first."""
        self._write_calls()
        found: list[Any] = self._cursor.execute(
            "SELECT tenant, tail FROM calls WHERE state = ? AND due_ms <= ? ORDER BY due_ms, tenant, tail LIMIT ?",
            (LIVE, self.now_ms, at_most),
        ).fetchall()
        for tenant, tail in found:
            row = self.call(tenant, tail)
            assert row is not None
            yield row

    # -- entries --------------------------------------------------------------------------------------------------------------

    def add_spend(self, tenant: str, record: Record, spent: Amounts) -> None:
        """Differences: a correction may be negative. The day is the reserve's, as the accounts' windows are."""
        usd, tokens, calls, unusual = spent.usd, spent.tokens, spent.calls, spent.credits or spent.risk_points
        if not (usd or tokens or calls or unusual):
            return
        run, owner, at_ms, _, _, model, provider, _, _, dimensions, *_ = record
        group = (tenant, at_ms // _DAY_MS, owner, run, model, provider, dimensions)
        sums = self._spend.get(group)
        if sums is None:
            self._spend[group] = [usd, tokens, calls]
        else:
            sums[0] += usd
            sums[1] += tokens
            sums[2] += calls
        if unusual:
            more = self._more_spend.setdefault(group, [0, 0])
            more[0] += spent.credits
            more[1] += spent.risk_points

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

    def document(self, tenant: str, name: str) -> str | None:
        found = self._cursor.execute("SELECT text FROM documents WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()
        return None if found is None else str(found[0])

    def put_document(self, tenant: str, name: str, text: str | None) -> None:
        """None: it goes."""
        if text is None:
            self._cursor.execute("DELETE FROM documents WHERE tenant = ? AND name = ?", (tenant, name))
        else:
            self._cursor.execute("REPLACE INTO documents VALUES (?, ?, ?)", (tenant, name, text))
        self._cursor.execute(
            "INSERT INTO document_numbers VALUES (?, 1) ON CONFLICT DO UPDATE SET number = number + 1", (tenant,)
        )
        self.changes += 1

    def memo(self, tenant: str, name: str) -> str | None:
        """None: there is none, or its time is over."""
        statement = "SELECT text FROM memos WHERE tenant = ? AND name = ? AND until_ms > ?"
        found = self._cursor.execute(statement, (tenant, name, self.now_ms)).fetchone()
        return None if found is None else str(found[0])

    def put_memo(self, tenant: str, name: str, text: str, until_ms: int) -> None:
        self._cursor.execute("REPLACE INTO memos VALUES (?, ?, ?, ?)", (tenant, name, text, until_ms))
        self.changes += 1

    def _change_rules(self, tenant: str) -> None:
        self.rules_changed = True
        self._rules.pop(tenant, None)

    # -- removing -------------------------------------------------------------------------------------------------------------

    def accounts_of_run(self, tenant: str, run: str) -> list[Where]:
        """Those whose scope names it, as of the batches before this one."""
        found: list[Any] = self._cursor.execute(
            "SELECT tenant, key FROM accounts WHERE tenant = ? AND run = ? AND run <> ''", (tenant, run)
        ).fetchall()
        return found

    def remove(self, calls: Sequence[Where] = (), accounts: Sequence[Where] = (), runs: Sequence[Where] = ()) -> None:
        """Deletes rows, and what is known of them."""
        for where in calls:
            call = self._calls.pop(where, None)
            if call is not None:
                call.changed = False
        for where in accounts:
            account = self._accounts.pop(where, None)
            if account is not None:
                account.changed = False
        if accounts:
            self.standings.clear()
        for where in runs:
            run = self._runs.pop(where, None)
            if run is not None:
                run.changed = False
        self._many("DELETE FROM calls WHERE tenant = ? AND tail = ?", calls)
        self._many("DELETE FROM account_sums WHERE id = (SELECT id FROM accounts WHERE tenant = ? AND key = ?)", accounts)
        self._many("DELETE FROM accounts WHERE tenant = ? AND key = ?", accounts)
        self._many("DELETE FROM run_sums WHERE id = (SELECT id FROM runs WHERE tenant = ? AND run = ?)", runs)
        self._many("DELETE FROM runs WHERE tenant = ? AND run = ?", runs)

    def remove_lapsing(self, leases: Sequence[tuple[str, int, str]]) -> None:
        self._many("DELETE FROM lapsing WHERE tenant = ? AND at_ms = ? AND tail = ?", leases)

    def remove_refusals(self, refusals: Sequence[tuple[str, str, int]]) -> None:
        self._many("DELETE FROM refusals WHERE tenant = ? AND ring = ? AND number = ?", refusals)

    def remove_acts(self, acts: Sequence[tuple[str, str, int]]) -> None:
        self._many("DELETE FROM acts WHERE tenant = ? AND id = ? AND number = ?", acts)

    def remove_memos(self, memos: Sequence[Where]) -> None:
        """Those of them whose time is over."""
        self._many(
            "DELETE FROM memos WHERE tenant = ? AND name = ? AND until_ms <= ?", [(*where, self.now_ms) for where in memos]
        )

    def remove_spend(self, groups: Sequence[tuple[str, int, str, str, str, str, str]]) -> None:
        """The groups with their dimensions as they are stored."""
        if groups:
            self._spend_ids.clear()
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
        """A row that is listed and not changed any more was removed."""
        changed = [row for row in self._changed_accounts if row.changed]
        self._changed_accounts.clear()
        new: list[AccountRow] = []
        inserted: list[int | str | None] = []
        for row in changed:
            row.changed = False
            if not row.id or row.wide:
                row.wide = False
                wide = (row.alerted, row.carried, row.adjusted, row.limit, row.packed_buckets())
                if row.id:
                    self._cursor.execute(_WIDE_ACCOUNT, (*wide, row.id))
                else:
                    new.append(row)
                    inserted += (*row.where, row.end_ms, row.run, *wide)
        for row, row_id in zip(new, _NEW_ACCOUNTS.insert(self._cursor, inserted), strict=True):
            row.id = row_id
        sums: list[int] = []
        for row in changed:
            sums += (row.id, row.committed, row.reserved, row.unconfirmed)
        _ACCOUNT_SUMS.write(self._cursor, sums)

    def _write_runs(self) -> None:
        changed = [row for row in self._changed_runs if row.changed]
        self._changed_runs.clear()
        self._runs_written += len(changed)
        new: list[RunRow] = []
        inserted: list[int | str | None] = []
        for row in changed:
            row.changed = False
            if row.wide:
                row.wide = False
                if row.id:
                    self._cursor.execute(_WIDE_RUN, (*wide_columns(row), row.id))
                else:
                    new.append(row)
                    inserted += (*row.where, row.first_ms, *wide_columns(row))
        for row, row_id in zip(new, _NEW_RUNS.insert(self._cursor, inserted), strict=True):
            row.id = row_id
        sums: list[int | str | None] = []
        for row in changed:
            sums += (row.id, row.committed, row.reserved, row.unconfirmed, row.calls, row.last_ms, row.latest)
        _RUN_SUMS.write(self._cursor, sums)

    def _write_spend(self) -> None:
        """A correction finds its row: the charge it corrects made it."""
        added: list[tuple[Any, ...]] = []
        for group, sums in self._spend.items():
            row_id = self._spend_ids.get(group)
            if row_id is None:
                # max() is for CHECK, which looks at the row that is not inserted.
                statement = (
                    "INSERT INTO spend (tenant, day, owner, run, model, provider, dimensions, usd, tokens, calls)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, max(?8, 0), max(?9, 0), max(?10, 0)) ON CONFLICT DO UPDATE"
                    " SET usd = usd + ?8, tokens = tokens + ?9, calls = calls + ?10 RETURNING id"
                )
                dimensions = orjson.dumps(dict(group[6])).decode()
                self._spend_ids[group] = self._cursor.execute(statement, (*group[:6], dimensions, *sums)).get
            else:
                added.append((*sums, row_id))
        self._many("UPDATE spend SET usd = usd + ?, tokens = tokens + ?, calls = calls + ? WHERE id = ?", added)
        self._spend.clear()
        more = [(*sums, self._spend_ids[group]) for group, sums in self._more_spend.items()]
        self._many("UPDATE spend SET credits = credits + ?, risk_points = risk_points + ? WHERE id = ?", more)
        self._more_spend.clear()

    def _write_calls(self) -> None:
        new: list[CallRow] = []
        inserted: list[int | str | bytes | None] = []
        lapsing: list[int | str] = []
        ended: list[tuple[Any, ...]] = []
        for call in self._changed_calls:
            if not call.changed:
                continue
            call.changed = False
            if call.state > EXPIRED:
                self._ended.append(call.where)
            closing = None if call.closing is None else pack_closing(call.closing)
            if call.packed is not None:
                ended.append((call.state, call.due_ms, closing, call.id))
                continue
            call.packed = None if call.record is None else pack_record(call.record)
            if call.id:
                self._cursor.execute(_GROWN_CALL, (call.state, call.due_ms, closing, call.packed, call.id))
            else:
                new.append(call)
                inserted += (*call.where, call.state, call.due_ms, call.packed, closing)
                if call.record is not None and call.record.lapses:
                    tenant, tail = call.where
                    lapsing += (tenant, call.record.at_ms, tail)
        self._changed_calls.clear()
        for call, call_id in zip(new, _NEW_CALLS.insert(self._cursor, inserted), strict=True):
            call.id = call_id
        self._many("UPDATE calls SET state = ?, due_ms = ?, closing = ? WHERE id = ?", ended)
        _LAPSING.write(self._cursor, lapsing)

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            self._cursor.executemany(statement, rows)


def frozen_scopes(cursor: apsw.Cursor, tenant: str) -> tuple[Frozen, ...]:
    """By text."""
    rows: list[Any] = cursor.execute(
        "SELECT scope, at_ms, who, why FROM frozen WHERE tenant = ? ORDER BY text", (tenant,)
    ).fetchall()
    return tuple([Frozen(tuple((name, value) for name, value in orjson.loads(scope)), *rest) for scope, *rest in rows])


def minus(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(
        one.usd - other.usd,
        one.tokens - other.tokens,
        one.calls - other.calls,
        one.credits - other.credits,
        one.risk_points - other.risk_points,
    )
