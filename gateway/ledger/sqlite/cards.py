"""The rows of the path's tables, as the steps move them: accounts, runs and calls. What they are in the file stands here too."""

from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from gateway.core.windows import BUCKETS
from gateway.ledger.packed import Closing, Record, unpack_closing, unpack_record
from gateway.ledger.states import STOPPED

ACCOUNT_COLUMNS: Final = (
    "id, committed, reserved, unconfirmed, alerted, end_ms, carried, adjusted, stored_limit, run, buckets"
    " FROM accounts JOIN account_sums USING (id)"
)
RUN_COLUMNS: Final = (
    "id, first_ms, owner, state, paused_no, paused_by, own_limit, raised, asked, issued, placed, ancestry, recent,"
    " committed, reserved, unconfirmed, calls, last_ms, latest, used_s FROM runs JOIN run_sums USING (id)"
)
WIDE_RUN_COLUMNS: Final = (
    "owner, state, paused_no, paused_by, own_limit, raised, asked, issued, placed, ancestry, recent, used_s, quiet"
)
CALL_COLUMNS: Final = "id, state, due_ms, record, closing"


Where: TypeAlias = tuple[str, str]  # a row's tenant, and its key, run or tail


# The methods of both kinds of balance. Nothing is ever below zero: a step that would make it so is a bug.


def _change(row: "AccountRow | RunRow", wide: bool = True) -> None:
    """It is to be written: all of it, or only the columns that most calls move."""
    if wide:
        row.wide = True
    if not row.changed:
        row.changed = True
        row.changes.append(row)


def _hold(row: "AccountRow | RunRow", amount: int) -> None:
    row.reserved += amount
    if not row.changed:
        row.change(wide=False)


def _settle(row: "AccountRow | RunRow", held: int, charged: int, provisionally: bool) -> None:
    """What was held becomes what is charged."""
    row.reserved -= held
    row.committed += charged
    if provisionally:
        row.unconfirmed += charged
    assert row.reserved >= 0 <= row.unconfirmed <= row.committed, row
    if not row.changed:
        row.change(wide=False)


def _correct(row: "AccountRow | RunRow", provisional: int, charged: int, charged_ms: int) -> None:  # noqa: ARG001 - RollingRow's
    """What was charged provisionally, at that time, becomes what is charged."""
    row.committed += charged - provisional
    row.unconfirmed -= provisional
    assert 0 <= row.unconfirmed <= row.committed, row
    row.change(wide=False)


@dataclass(slots=True, eq=False)
class AccountRow:
    """Amounts in the account's unit. A change beyond `committed`, `reserved` and `unconfirmed` is a `wide` one."""

    where: Where
    changes: list[Any] = field(repr=False)  # where a row that has changed puts itself, once, until it is written
    committed: int
    reserved: int
    unconfirmed: int
    alerted: int
    end_ms: int
    carried: int
    adjusted: int
    limit: int | None
    run: str
    id: int = 0  # of its row in the file; 0: it has none
    changed: bool = False
    wide: bool = False

    @property
    def stored(self) -> bool:
        return self.id != 0

    change, hold, settle, correct = _change, _hold, _settle, _correct

    def carry(self, charged: int, provisional: int, ended_ms: int) -> None:  # noqa: ARG002 - of importance to a rolling window
        """A call that ended then and was charged here is retired. What was provisional of it is confirmed."""
        self.carried += charged
        self.unconfirmed -= provisional
        assert self.unconfirmed >= 0, self
        self.change()

    def roll(self, now_ms: int) -> None:
        """Time has passed."""

    def aging(self) -> tuple[tuple[int, int], ...]:
        return ()

    def reset(self) -> bool:
        """Committed becomes what is unconfirmed. False: nothing changed."""
        if self.committed == self.unconfirmed and not self.alerted:
            return False
        self.adjusted += self.unconfirmed - self.committed
        self.committed = self.unconfirmed
        self.alerted = 0
        self.change()
        return True

    def packed_buckets(self) -> str | None:
        return None


@dataclass(slots=True, eq=False)
class RollingRow(AccountRow):
    """An account of a rolling window: `committed` and `unconfirmed` are the sums of its buckets, [committed, unconfirmed, carried] by
    index. Every change of those is a wide one."""

    bucket_ms: int = 0
    now_ms: int = 0
    buckets: dict[int, list[int]] = field(default_factory=dict)

    def settle(self, held: int, charged: int, provisionally: bool) -> None:
        _settle(self, held, charged, provisionally)
        if charged:
            self._land(self.now_ms, charged, charged if provisionally else 0)

    def correct(self, provisional: int, charged: int, charged_ms: int) -> None:
        counts = charged_ms // self.bucket_ms in self.buckets
        _correct(self, provisional if counts else 0, charged, charged_ms)
        if counts:
            self._land(charged_ms, -provisional, -provisional)
        if charged:
            self._land(self.now_ms, charged, 0)

    def _land(self, at_ms: int, committed: int, unconfirmed: int) -> None:
        bucket = self.buckets.setdefault(at_ms // self.bucket_ms, [0, 0, 0])
        bucket[0] += committed
        bucket[1] += unconfirmed
        assert 0 <= bucket[1] <= bucket[0], self
        self.wide = True

    def carry(self, charged: int, provisional: int, ended_ms: int) -> None:
        bucket = self.buckets.get(ended_ms // self.bucket_ms)
        if bucket is not None:
            bucket[1] -= provisional
            bucket[2] += charged
            self.unconfirmed -= provisional
            assert bucket[1] >= 0 <= self.unconfirmed, self
            self.change()

    def roll(self, now_ms: int) -> None:
        """Forgets the buckets that do not count any more."""
        self.now_ms = now_ms
        oldest = now_ms // self.bucket_ms - BUCKETS + 1
        for index in [index for index in self.buckets if index < oldest]:
            committed, unconfirmed, _ = self.buckets.pop(index)
            self.committed -= committed
            self.unconfirmed -= unconfirmed
            self.wide = True

    def aging(self) -> tuple[tuple[int, int], ...]:
        """See `Balance.aging`."""
        return tuple(
            [((index + BUCKETS) * self.bucket_ms, bucket[0]) for index, bucket in sorted(self.buckets.items()) if bucket[0]]
        )

    def reset(self) -> bool:
        if self.committed == self.unconfirmed and not self.alerted:
            return False
        for bucket in self.buckets.values():
            bucket[2] += bucket[1] - bucket[0]
            bucket[0] = bucket[1]
        self.committed = self.unconfirmed
        self.alerted = 0
        self.change()
        return True

    def packed_buckets(self) -> str:
        return orjson.dumps([(index, *bucket) for index, bucket in sorted(self.buckets.items())]).decode()


@dataclass(slots=True, eq=False)
class RunRow:
    """Amounts in microcents. A change beyond the amounts, `calls`, `last_ms` and `latest` is a `wide` one."""

    where: Where
    changes: list[Any] = field(repr=False)  # as an AccountRow's
    first_ms: int
    owner: str
    state: int
    paused_no: int | None
    paused_by: str
    limit: int | None
    raised: int
    asked: int | None
    issued: int
    placed: int
    ancestry: tuple[str, ...]
    recent: list[tuple[str, str]] | None
    committed: int
    reserved: int
    unconfirmed: int
    calls: int
    last_ms: int
    latest: str | None
    used_s: int
    id: int = 0  # of its row in the file; 0: it has none
    changed: bool = False
    wide: bool = False

    change, hold, settle, correct = _change, _hold, _settle, _correct

    def use(self, now_ms: int) -> None:
        self.last_ms = now_ms
        used_s = now_ms // 1000
        if used_s != self.used_s:
            self.used_s = used_s
            self.change()
        elif not self.changed:
            self.change(wide=False)

    @property
    def quiet(self) -> bool:
        """Not among its key's active runs, however lately it was used."""
        return bool(self.issued) or not self.placed or self.state == STOPPED


@dataclass(slots=True, eq=False)
class CallRow:
    """A hold in any of its states. `record` None: a tombstone."""

    where: Where
    state: int
    due_ms: int  # when its lease ends; of one that has ended, when it did
    record: Record | None
    closing: Closing | None
    packed: bytes | None  # the record as stored; None: pack it again
    id: int = 0  # of its row in the file; 0: it has none
    changed: bool = False

    @property
    def tail(self) -> str:
        return self.where[1]


def wide_columns(run: RunRow) -> tuple[Any, ...]:
    """WIDE_RUN_COLUMNS: what a wide change writes, besides the sums."""
    return (
        run.owner,
        run.state,
        run.paused_no,
        run.paused_by,
        run.limit,
        run.raised,
        run.asked,
        run.issued,
        run.placed,
        "/".join(run.ancestry),
        None if run.recent is None else orjson.dumps(run.recent).decode(),
        run.used_s,
        int(run.quiet),
    )


def account_row(where: Where, changes: list[AccountRow], bucket_ms: int, columns: tuple[Any, ...]) -> AccountRow:
    """From ACCOUNT_COLUMNS. `bucket_ms`: of a rolling window; 0: another."""
    row_id, *plain, buckets = columns
    if not bucket_ms:
        plain_row = AccountRow(where, changes, *plain)
        plain_row.id = row_id
        return plain_row
    row = RollingRow(where, changes, *plain)
    row.id = row_id
    row.bucket_ms = bucket_ms
    row.buckets = {index: bucket for index, *bucket in orjson.loads(buckets or "[]")}
    return row


def run_row(where: Where, changes: list[RunRow], columns: tuple[Any, ...]) -> RunRow:
    """From RUN_COLUMNS."""
    row_id, *plain = columns
    row = RunRow(where, changes, *plain)
    row.id = row_id
    row.ancestry = ancestry_of(columns[11])
    row.recent = None if columns[12] is None else [(tail, fingerprint) for tail, fingerprint in orjson.loads(columns[12])]
    return row


def ancestry_of(column: str) -> tuple[str, ...]:
    return tuple(column.split("/")) if column else ()


def call_row(where: Where, columns: tuple[Any, ...]) -> CallRow:
    """From CALL_COLUMNS."""
    row_id, state, due_ms, packed, closing = columns
    record = None if packed is None else unpack_record(where[0], packed)
    return CallRow(where, state, due_ms, record, unpack_closing(closing), packed, row_id)
