"""The ledger on one SQLite file, shared by several gateway processes.

One writer thread takes everything that waits, runs it in one transaction and answers after COMMIT: the more calls wait, the less
each costs. Reads go through a connection and a thread of their own. The event loop never touches the file.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

import apsw

from gateway.core.scopes import Account, Amounts, Caller
from gateway.core.values import Balance, Decision, Ending, Hold
from gateway.ledger.contract import (
    NO_MORE,
    AccountView,
    Act,
    Adjusting,
    Barred,
    Barrier,
    CallRecord,
    Debiting,
    Documents,
    Expired,
    Frozen,
    Fund,
    Funded,
    Keep,
    LedgerLost,
    LedgerUnavailable,
    Refusal,
    Reserved,
    RunView,
    SetLimit,
    Settled,
    Settlement,
    SpendRow,
    Stale,
    scope_text,
)
from gateway.ledger.sqlite import acts, copying, keeping, reading, steps
from gateway.ledger.sqlite.books import Books
from gateway.ledger.sqlite.schema import connect, mapped_errors
from gateway.ledger.sqlite.store import Store, adopt
from gateway.ledger.witness import Seen, Witness

__all__ = ["SqliteLedger", "adopt"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BATCH: Final = 512
_TIDY_EVERY_S: Final = 1.0


class _Step(Generic[T]):
    """One step under way: what to do, and who waits for the answer."""

    __slots__ = ("arguments", "future", "work")

    def __init__(self, future: "asyncio.Future[T]", work: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        self.future = future
        self.work = work
        self.arguments = arguments

    def __call__(self, books: Books) -> T | None:
        """In the writer thread."""
        return self.work(books, *self.arguments)


class _Reserve(_Step[Reserved]):
    """One whose waiter has gone already holds nothing."""

    __slots__ = ()

    def __call__(self, books: Books) -> Reserved | None:
        return None if self.future.done() else self.work(books, *self.arguments)


class _Reserving:
    """Waits for a reserve. A hold whose waiter is gone is given back, also when it is cancelled in the very tick of the answer."""

    __slots__ = ("_future", "_give_back")

    def __init__(self, future: "asyncio.Future[Reserved]", give_back: Callable[[Hold], None]) -> None:
        self._future = future
        self._give_back = give_back

    def __await__(self) -> Generator[Any, None, Reserved]:
        try:
            return (yield from self._future)
        except asyncio.CancelledError:
            if self._future.done() and not self._future.cancelled() and self._future.exception() is None:
                answer = self._future.result()
                if isinstance(answer, Hold):
                    self._give_back(answer)
            raise


class SqliteLedger:
    """`Ledger` on SQLite. `synchronous`: NORMAL survives kill -9, FULL also power loss. Belongs to the event loop that starts it."""

    def __init__(
        self, path: str, witness: Witness, clock_ms: Callable[[], int], synchronous: str = "NORMAL", timeout_ms: int = 5_000
    ) -> None:
        self._path = path
        self._witness = witness
        self._clock_ms = clock_ms
        self._timeout_s = timeout_ms / 1000
        self._store = Store(path, witness, synchronous, timeout_ms)
        self._queue: SimpleQueue[list[_Step[Any]] | None] = SimpleQueue()
        self._fresh: list[_Step[Any]] = []  # asked for in this turn of the loop
        self._writer = threading.Thread(target=self._write, name="ledger-writer", daemon=True)
        self._readers = ThreadPoolExecutor(1, "ledger-reader")
        self._reader: apsw.Connection | None = None
        self._search = keeping.Search()  # the readers'
        # What was handed over and is not answered yet, by turns of the loop, each with its deadline. The answers come in this order.
        self._waiting: deque[tuple[float, Sequence[_Step[Any]]]] = deque()
        self._quiet = asyncio.Event()  # closing, and nothing is under way any more
        self._timer: asyncio.TimerHandle | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._witnessed = Seen("", 0)
        self._open = False
        self._lost: str | None = None  # why nothing is done any more
        self._trouble: str | None = None

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._readers, self._start)
        self._open = True
        self._writer.start()
        self._tidying = self._loop.create_task(self._tidy_now_and_then())

    def _start(self) -> None:
        self._store.open()
        self._witnessed = self._store.seen
        with mapped_errors(self._path):
            self._reader = connect(self._path, "NORMAL", int(self._timeout_s * 1000))
            self._reader.pragma("query_only", True)

    async def close(self) -> None:
        """Idempotent. Steps that are asked for from now on are refused; those under way are answered first."""
        if not self._open:
            return
        self._open = False
        if self._fresh or self._waiting:
            await self._quiet.wait()
        self._queue.put(None)
        assert self._tidying is not None
        self._tidying.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await self._loop.run_in_executor(self._readers, self._finish)
        self._readers.shutdown(wait=False)

    def _finish(self) -> None:
        self._writer.join()
        if self._reader is not None:
            self._reader.close()
        try:
            # Of a lost one, too: whoever opens it again must not be content with less than was seen here.
            with mapped_errors(str(self._witness.path)):
                self._witness.merge(self._store.seen)
        finally:
            self._store.close()

    async def _tidy_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            seen = self._store.seen
            if seen != self._witnessed and self._lost is None:
                try:
                    await self._loop.run_in_executor(self._readers, self._tidy, seen)
                except (LedgerUnavailable, LedgerLost) as error:  # the witness is behind, not the ledger: /readyz tells
                    self._trouble = str(error)
                else:
                    self._witnessed = seen
                    self._trouble = None

    def _tidy(self, seen: Seen) -> None:
        """What would hold up the writer, done beside it."""
        with mapped_errors(str(self._witness.path)):
            self._witness.merge(seen)
        assert self._reader is not None
        with mapped_errors(self._path):
            self._reader.execute("PRAGMA wal_checkpoint(PASSIVE)")

    # -- the writer -----------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """The writer thread. It ends when it finds None."""
        while True:
            batch = self._queue.get()
            if batch is None:
                return
            turns, last = 1, False
            try:
                while len(batch) < _BATCH:
                    more = self._queue.get_nowait()
                    if more is None:
                        last = True
                        break
                    batch = [*batch, *more]
                    turns += 1
            except Empty:
                pass
            answers = self._run(batch)
            try:
                self._loop.call_soon_threadsafe(self._answer, turns, batch, answers)
            except RuntimeError:  # the loop was closed without us: nobody is left to answer
                return
            if last:
                return

    def _run(self, batch: Sequence[_Step[Any]]) -> Sequence[object]:
        if self._lost is not None:
            return [LedgerLost(self._lost)] * len(batch)
        try:
            return self._store.transact(batch, self._clock_ms())
        except LedgerLost as error:
            self._lost = str(error)
            return [error] * len(batch)
        except Exception as error:  # noqa: BLE001 - the thread must live: whatever it is, the waiters get it
            return [error] * len(batch)

    def _answer(self, turns: int, batch: Sequence[_Step[Any]], answers: Sequence[object]) -> None:
        for _ in range(turns):
            self._waiting.popleft()
        for step, answer in zip(batch, answers, strict=True):
            future = step.future
            if future.done():  # cancelled, or out of time
                if isinstance(answer, Hold):
                    self._give_back(answer)
            elif isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        if not (self._open or self._waiting or self._fresh):
            self._quiet.set()

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def _ask(self, work: Callable[[Books, *Ts], T], *arguments: *Ts) -> "asyncio.Future[T]":
        """Under way when it returns."""
        if not self._open:
            raise LedgerUnavailable("the ledger is not open")
        return self._enqueue(_Step(self._loop.create_future(), work, arguments))

    def _enqueue(self, step: _Step[T]) -> "asyncio.Future[T]":
        if not self._fresh:
            self._loop.call_soon(self._hand_over)
        self._fresh.append(step)
        return step.future

    def _hand_over(self) -> None:
        """What one turn of the loop asked for wakes the writer once: it would contend with the loop for every single step."""
        fresh, self._fresh = self._fresh, []
        deadline = self._loop.time() + self._timeout_s
        for start in range(0, len(fresh), _BATCH):
            turn = fresh[start : start + _BATCH]
            self._waiting.append((deadline, turn))
            self._queue.put(turn)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._out_of_time)

    def _out_of_time(self) -> None:
        """Ends the wait for steps whose time is up, and looks again when the next one's is."""
        self._timer = None
        now = self._loop.time()
        for deadline, turn in self._waiting:
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._out_of_time)
                break
            for step in turn:
                if not step.future.done():
                    step.future.set_exception(LedgerUnavailable(f"{self._path} did not answer within {self._timeout_s:g} s"))

    def _give_back(self, hold: Hold) -> None:
        tenant = hold.decision.call.caller.tenant
        future = self._enqueue(_Step(self._loop.create_future(), steps.release, (tenant, hold.id, Ending.NOT_SENT, "")))
        future.add_done_callback(_look_at)

    async def _read(self, query: Callable[[apsw.Cursor], T]) -> T:
        if not self._open:
            raise LedgerUnavailable("the ledger is not open")
        if self._lost is not None:
            raise LedgerLost(self._lost)
        return await self._loop.run_in_executor(self._readers, self._query, query)

    def _query(self, query: Callable[[apsw.Cursor], T]) -> T:
        """One snapshot for everything that a query reads."""
        assert self._reader is not None
        with mapped_errors(self._path):
            cursor = self._reader.cursor()
            cursor.execute("BEGIN")
            try:
                return query(cursor)
            finally:
                cursor.execute("ROLLBACK")

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Awaitable[Reserved]:
        if not self._open:
            raise LedgerUnavailable("the ledger is not open")
        step = _Reserve(self._loop.create_future(), steps.reserve, (decision, lease_ms))
        return _Reserving(self._enqueue(step), self._give_back)

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Awaitable[Settled | None]:
        return self._ask(steps.commit, tenant, hold_id, settlement)

    def release(self, tenant: str, hold_id: str, ending: Ending, note: str = "") -> Awaitable[Settled]:
        return self._ask(steps.release, tenant, hold_id, ending, note)

    def extend(
        self,
        tenant: str,
        hold_id: str,
        lease_ms: int | None,
        held: Amounts | None = None,
        slices: Amounts | None = None,
        over: Mapping[str, int] = NO_MORE,
    ) -> Awaitable[bool]:
        return self._ask(steps.extend, tenant, hold_id, lease_ms, held, slices, over)

    def debit(self, decision: Decision, settlement: Settlement, how: Debiting) -> Awaitable[Settled | Refusal | Barred | Stale]:
        return self._ask(steps.debit, decision, settlement, how)

    # -- beside the path ------------------------------------------------------------------------------------------------------

    async def expire(self, at_most: int = 100) -> Sequence[Expired]:
        return await self._ask(steps.expire, at_most)

    async def halted(self, tenant: str, callers: Sequence[Caller]) -> Sequence[Barrier | None]:
        return await self._read(partial(reading.halted, tenant=tenant, callers=callers))

    async def set_limit(self, tenant: str, run: str, owner: str, change: SetLimit) -> RunView | None:
        done = await self._ask(acts.set_limit, tenant, run, owner, change)
        return await self.run(tenant, run) if done else None

    async def stop(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        done = await self._ask(acts.stop, tenant, run, who, why)
        return await self.run(tenant, run) if done else None

    async def pause(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        done = await self._ask(acts.pause, tenant, run, who, why)
        return await self.run(tenant, run) if done else None

    async def resume(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        done = await self._ask(acts.resume, tenant, run, who, why)
        return await self.run(tenant, run) if done else None

    async def freeze(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        return await self._ask(acts.freeze, tenant, scope, who, why)

    async def thaw(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        return await self._ask(acts.thaw, tenant, scope_text(scope), who, why)

    async def set_account_limit(self, tenant: str, key: str, limit: int | None, who: str, why: str) -> AccountView | None:
        return await self._ask(acts.set_account_limit, tenant, key, limit, who, why)

    async def adjust(
        self, tenant: str, key: str, amount: int, act_id: str, who: str, why: str
    ) -> tuple[Adjusting, AccountView] | None:
        return await self._ask(acts.adjust, tenant, key, amount, act_id, who, why)

    async def reset(self, tenant: str, key: str, who: str, why: str) -> AccountView | None:
        return await self._ask(acts.reset, tenant, key, who, why)

    async def fund(self, account: Account, change: Fund, act_id: str, who: str, why: str) -> Funded:
        return await self._ask(acts.fund, account, change, act_id, who, why)

    async def put_document(self, tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        return await self._ask(acts.put_document, tenant, name, text, expected)

    async def remember(self, tenant: str, name: str, text: str, keep_ms: int) -> str | None:
        return await self._ask(acts.remember, tenant, name, text, keep_ms)

    async def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        return await self._ask(acts.settle, tenant, hold_id, cost_usd, who, why)

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def run(self, tenant: str, run: str) -> RunView | None:
        return await self._read(partial(reading.run_view, tenant=tenant, run=run, now_ms=self._clock_ms()))

    async def runs(self, tenant: str, owner: str | None, limit: int, before: str | None = None) -> Sequence[RunView]:
        return await self._read(partial(reading.run_views, tenant=tenant, owner=owner, limit=limit, before=before))

    async def record(self, tenant: str, decision_id: str) -> CallRecord | None:
        return await self._read(partial(reading.record, tenant=tenant, decision_id=decision_id))

    async def balances(self, tenant: str, accounts: Sequence[Account]) -> Sequence[Balance]:
        return await self._read(partial(reading.balances, tenant=tenant, accounts=accounts, now_ms=self._clock_ms()))

    async def account(self, tenant: str, key: str) -> AccountView | None:
        return await self._read(partial(reading.account, tenant=tenant, key=key, now_ms=self._clock_ms()))

    async def documents(self, tenant: str, known: int = 0) -> Documents | None:
        return await self._read(partial(reading.documents, tenant=tenant, known=known))

    async def recall(self, tenant: str, name: str) -> str | None:
        return await self._read(partial(reading.memo, tenant=tenant, name=name, now_ms=self._clock_ms()))

    async def frozen(self, tenant: str) -> Sequence[Frozen]:
        return await self._read(partial(reading.frozen, tenant=tenant))

    async def acts(self, tenant: str, limit: int, before: str | None = None) -> Sequence[Act]:
        return await self._read(partial(reading.acts, tenant=tenant, limit=limit, before=before))

    async def leases(self, tenant: str, limit: int, before: str | None = None) -> Sequence[CallRecord]:
        return await self._read(partial(reading.leases, tenant=tenant, limit=limit, before=before))

    async def holds(self, tenant: str, run: str | None, limit: int) -> Sequence[CallRecord]:
        return await self._read(partial(reading.open_holds, tenant=tenant, run=run, limit=limit))

    async def spend(self, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> Sequence[SpendRow]:
        return await self._read(partial(reading.spend, tenant=tenant, by=by, from_ms=from_ms, to_ms=to_ms, owner=owner))

    # -- keeping --------------------------------------------------------------------------------------------------------------

    async def aged(self, keep: Keep, at_most: int) -> Sequence[CallRecord]:
        return await self._read(partial(keeping.aged, keep=keep, now_ms=self._clock_ms(), at_most=at_most))

    async def retire(self, tenant: str, decision_ids: Sequence[str], keep: Keep) -> int:
        return await self._ask(keeping.retire, tenant, decision_ids, keep)

    async def sweep(self, keep: Keep, at_most: int) -> int:
        due = await self._read(partial(self._search.due, keep=keep, now_ms=self._clock_ms(), at_most=at_most))
        return await self._ask(keeping.remove, due) if due else 0

    def dump(self) -> AsyncIterator[Mapping[str, object]]:
        return copying.dump(self._path, self._clock_ms)

    async def load(self, rows: AsyncIterator[Mapping[str, object]]) -> int:
        return await copying.load(self._path, rows)

    def health(self) -> Mapping[str, object]:
        seen = self._store.seen
        facts: dict[str, object] = {
            "ok": self._open and self._lost is None,
            "engine": "sqlite",
            "version": apsw.sqlite_lib_version(),
            "epoch": seen.epoch,
            "sequence": seen.sequence,
        }
        if self._lost is not None:
            facts["why"] = f"ledger_lost: {self._lost}"
        elif not self._open:
            facts["why"] = "the ledger is not open"
        if self._trouble is not None:
            facts["trouble"] = self._trouble
        return facts


def _look_at(future: "asyncio.Future[Any]") -> None:
    """Nobody waits for this one: its lease ends what a failed release leaves. Keeps asyncio from logging the exception as forgotten."""
    if not future.cancelled():
        future.exception()
