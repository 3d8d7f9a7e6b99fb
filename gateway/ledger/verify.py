"""Whether a ledger's balances are what its records say. Pure over rows; what it remembers grows with accounts and runs, not with calls.

    account   reserved    = what live holds hold there
              committed   = what receipts charged there + carried + adjusted; of a rolling one, bucket by bucket. The receipt of an
                            expired hold charged what was held there, or nothing where it lapses
              unconfirmed = what expired holds were charged there
    run       reserved, unconfirmed: the same in USD. committed and calls: not less than its receipts say (those that were retired
              counted too)
    spend     not less than the receipts of that day, owner, model and provider

Nothing is below zero, and unconfirmed is a part of committed.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final

import orjson

from gateway.core.record import record
from gateway.core.scopes import Account, Unit
from gateway.ledger.contract import HoldState
from gateway.ledger.packed import Closing, Record, unpack_closing, unpack_record
from gateway.ledger.rows import AccountRow, CallRow, Damaged, Reader, Row, Run, Spend, Tenant, read_all

_TOLD: Final = 1_000  # differences that are told one by one: a store that lost a table has millions
_DAY_MS: Final = 86_400_000


@record
class Difference:
    """`what`: an account's key, `run r1`, `hold rsv_…`, `spend of …`. `figure`: its name, and what its records make of it."""

    tenant: str
    what: str
    figure: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.tenant}: {self.what}: {self.figure}: expected {self.expected}, found {self.found}"


@record
class Verdict:
    tenants: int
    accounts: int
    runs: int
    calls: int
    live: int
    # Over all accounts but rolling ones, which forget while they are moved: (committed, reserved). They mean nothing, but must stay equal.
    sums: tuple[int, int]
    different: int  # all differences; `differences` are the first of them
    differences: tuple[Difference, ...] = ()

    @property
    def counts(self) -> str:
        return f"{self.tenants} tenants, {self.accounts} accounts, {self.runs} runs, {self.calls} calls, {self.live} live holds"


class _Account:
    """What an account's row says, and what the calls make of it."""

    __slots__ = ("buckets", "charged", "held", "row", "unconfirmed")

    def __init__(self, row: AccountRow) -> None:
        self.row = row
        self.held = self.charged = self.unconfirmed = 0
        self.buckets: dict[int, list[int]] = {}  # of a rolling one: charged and unconfirmed in each that counts


class _Run:
    """The same of a run, whose row would be too much to keep."""

    __slots__ = ("calls", "charged", "committed", "first_ms", "held", "made", "provisional", "reserved", "unconfirmed")

    def __init__(self, row: Run) -> None:
        self.committed, self.reserved, self.unconfirmed, self.calls = row.committed, row.reserved, row.unconfirmed, row.calls
        self.first_ms = row.first_ms
        self.held = self.charged = self.provisional = self.made = 0


class Audit:
    """Rows in, differences out. `add` raises Damaged where a record can't be read."""

    def __init__(self) -> None:
        self._differences: list[Difference] = []
        self._different = 0
        self._committed = self._reserved = 0
        self._counts = dict.fromkeys(("tenants", "accounts", "runs", "calls", "live"), 0)
        self._tenant = Tenant("", 0, 0)
        self._clear()

    def _clear(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._runs: dict[str, _Run] = {}
        self._spend: dict[tuple[int, str, str, str], list[int]] = {}

    def add(self, row: Row) -> None:
        if isinstance(row, CallRow):
            self._add_call(row)
        elif isinstance(row, AccountRow):
            self._add_account(row)
        elif isinstance(row, Run):
            self._counts["runs"] += 1
            if row.run in self._runs:
                self._differ(f"run {row.run}", "rows", 1, 2)
            self._runs[row.run] = _Run(row)
        elif isinstance(row, Spend):
            sums = self._spend.get((row.day, row.owner, row.model, row.provider))
            if sums is not None:
                for place, amount in enumerate((row.usd, row.tokens, row.calls, row.credits, row.risk_points)):
                    sums[place] -= amount
        elif isinstance(row, Tenant):
            self._close_tenant()
            self._tenant = row
            self._counts["tenants"] += 1

    def finish(self) -> Verdict:
        self._close_tenant()
        return Verdict(
            **self._counts,
            sums=(self._committed, self._reserved),
            different=self._different,
            differences=tuple(self._differences),
        )

    # -- rows -----------------------------------------------------------------------------------------------------------------

    def _add_account(self, row: AccountRow) -> None:
        self._counts["accounts"] += 1
        if row.key in self._accounts:
            self._differ(row.key, "rows", 1, 2)
        self._accounts[row.key] = _Account(row)
        if not _is_rolling(row.key):
            self._committed += row.committed
            self._reserved += row.reserved

    def _add_call(self, row: CallRow) -> None:
        self._counts["calls"] += 1
        hold = f"hold rsv_{row.tail}"
        if row.record is None:
            if row.state != HoldState.RELEASED:
                self._differ(hold, "its record", "one", "none")
            return
        live = row.state == HoldState.LIVE
        if live is not (row.closing is None):
            self._differ(hold, f"the closing of a call that is {row.state}", "none" if live else "one", "one" if live else "none")
            return
        kept, closing = _unpacked(row)
        self._add_to_run(row, kept, closing, hold)
        lapsed = kept.lapses and row.state == HoldState.EXPIRED
        for line in kept.lines:
            if not line.twin:
                held = 0 if lapsed else line.held
                self._add_to_account(row.state, line.charge.ceiling.account, held, closing, hold)
        if closing is not None:
            charged = closing.charged
            group = (kept.at_ms // _DAY_MS, kept.owner, kept.selected_model, kept.provider)
            sums = self._spend.setdefault(group, [0] * len(Unit))
            for place, unit in enumerate(Unit):
                sums[place] += charged.of(unit)

    def _add_to_run(self, row: CallRow, kept: Record, closing: Closing | None, hold: str) -> None:
        run = self._runs.get(kept.run)
        if run is None:
            if row.state in (HoldState.LIVE, HoldState.EXPIRED):
                self._differ(hold, "its run", kept.run, "no such run")
            return
        if kept.at_ms < run.first_ms:
            return  # of the run that had this id before, and was forgotten
        if closing is None:
            self._counts["live"] += 1
            run.held += kept.held.usd
        else:
            run.charged += closing.charged.usd
            if row.state == HoldState.EXPIRED:
                run.provisional += closing.charged.usd
        if row.state != HoldState.RELEASED:
            run.made += 1

    def _add_to_account(self, state: str, of: Account, held: int, closing: Closing | None, hold: str) -> None:
        amount = held if closing is None or state == HoldState.EXPIRED else closing.charged.of(of.unit)
        bucket_ms = of.window.bucket_ms
        bucket = closing.at_ms // bucket_ms if closing is not None and bucket_ms else None
        if not amount or (bucket is not None and bucket < of.window.oldest_bucket(self._tenant.at_ms)):
            return  # nothing, or nothing that counts any more
        account = self._accounts.get(of.key)
        if account is None:
            self._differ(hold, "its account", of.key, "no such account")
        elif closing is None:
            account.held += amount
        else:
            provisional = amount if state == HoldState.EXPIRED else 0
            account.charged += amount
            account.unconfirmed += provisional
            if bucket is not None:
                sums = account.buckets.setdefault(bucket, [0, 0])
                sums[0] += amount
                sums[1] += provisional

    # -- comparing ------------------------------------------------------------------------------------------------------------

    def _close_tenant(self) -> None:
        for key, account in self._accounts.items():
            self._compare_account(key, account)
        for name, run in self._runs.items():
            self._compare_run(f"run {name}", run)
        for (day, owner, model, provider), sums in self._spend.items():
            for name, above in zip(Unit, sums, strict=True):
                if above > 0:
                    what = f"spend of {model} at {provider} by {owner}, day {day}"
                    self._differ(what, name, "what its receipts say, at least", f"{above} less")
        self._clear()

    def _compare_account(self, key: str, account: _Account) -> None:
        row = account.row
        self._compare(key, "reserved = live holds", account.held, row.reserved)
        if _is_rolling(key):
            self._compare_buckets(key, account)
        else:
            self._compare(
                key, "committed = receipts + carried + adjusted", account.charged + row.carried + row.adjusted, row.committed
            )
            self._compare(key, "unconfirmed = expired holds", account.unconfirmed, row.unconfirmed)
        self._compare_sanity(key, row.committed, row.reserved, row.unconfirmed)

    def _compare_buckets(self, key: str, account: _Account) -> None:
        row = account.row
        found = {index: rest for index, *rest in row.buckets}
        self._compare(key, "committed = its buckets", sum(committed for committed, _, _ in found.values()), row.committed)
        self._compare(key, "unconfirmed = its buckets", sum(unconfirmed for _, unconfirmed, _ in found.values()), row.unconfirmed)
        for index in sorted({*found, *account.buckets}):
            committed, unconfirmed, carried = found.get(index, (0, 0, 0))
            charged, provisional = account.buckets.get(index, (0, 0))
            self._compare(key, f"bucket {index}: committed = receipts + carried", charged + carried, committed)
            self._compare(key, f"bucket {index}: unconfirmed = expired holds", provisional, unconfirmed)

    def _compare_run(self, what: str, run: _Run) -> None:
        self._compare(what, "reserved = live holds", run.held, run.reserved)
        self._compare(what, "unconfirmed = expired holds", run.provisional, run.unconfirmed)
        if run.committed < run.charged:
            self._differ(what, "committed >= receipts", run.charged, run.committed)
        if run.calls < run.made:
            self._differ(what, "calls >= its calls", run.made, run.calls)
        self._compare_sanity(what, run.committed, run.reserved, run.unconfirmed)

    def _compare_sanity(self, what: str, committed: int, reserved: int, unconfirmed: int) -> None:
        for name, amount in (("committed", committed), ("reserved", reserved), ("unconfirmed", unconfirmed)):
            if amount < 0:
                self._differ(what, name, "nothing below 0", amount)
        if unconfirmed > committed:
            self._differ(what, "unconfirmed <= committed", f"at most {committed}", unconfirmed)

    def _compare(self, what: str, figure: str, expected: int, found: int) -> None:
        if expected != found:
            self._differ(what, figure, expected, found)

    def _differ(self, what: str, figure: str, expected: object, found: object) -> None:
        self._different += 1
        if len(self._differences) < _TOLD:
            self._differences.append(Difference(self._tenant.tenant, what, figure, str(expected), str(found)))


def _is_rolling(key: str) -> bool:
    return key.rsplit("|", 2)[-2].startswith("rolling@")


def _unpacked(row: CallRow) -> tuple[Record, Closing | None]:
    try:
        closing = None if row.closing is None else unpack_closing(orjson.dumps(row.closing))
        return unpack_record(row.tenant, orjson.dumps(row.record)), closing
    except (ValueError, TypeError, AssertionError) as error:
        raise Damaged(f"hold rsv_{row.tail} of {row.tenant}: its record can't be read ({error})") from error


def verify(rows: Iterable[Mapping[str, object]]) -> Verdict:
    """Damaged where a row can't be read at all."""
    reader, audit = Reader(), Audit()
    for row in rows:
        audit.add(reader.read(row))
    reader.finish()
    return audit.finish()


async def verify_ledger(rows: AsyncIterator[Mapping[str, object]]) -> Verdict:
    """The same over a ledger's `dump`."""
    audit = Audit()
    async for row in read_all(rows):
        audit.add(row)
    return audit.finish()
