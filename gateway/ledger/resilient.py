"""A ledger that may be away for a while: what calls cost is remembered meanwhile, and no call waits for a store that does not answer.

    reserve    after a failure, refused at once (of that tenant: each has its own slot) until a probe finds the store serving
    commit     what the ledger has not acknowledged within `commit_wait`, or failed to take, goes into the journal, and is replayed
    release    until the ledger has it, once: its steps know a call by its id. The answer is then the one the ledger will give
    debit      the same, where it must be recorded whatever (REPLAY); else like reserve
    lost       refused, until the store that is there is accepted (`penstock ledger adopt`): tried again, without a restart

A reserve of unknown outcome is released by the journal, so that nothing stays held for a call that was refused; unless its caller will
ask again, by the same id. Everything else is the ledger's own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from gateway.core.scopes import Account, Amounts, Caller
from gateway.core.values import Balance, Decision, Ending
from gateway.ledger.contract import (
    NO_MORE,
    AccountView,
    Act,
    Adjusting,
    Alert,
    Barred,
    Barrier,
    CallRecord,
    Debiting,
    Documents,
    Expired,
    Frozen,
    Fund,
    Funded,
    HoldState,
    Keep,
    Ledger,
    LedgerLost,
    LedgerUnavailable,
    OutcomeUnknown,
    Refusal,
    Reserved,
    RunView,
    SetLimit,
    Settled,
    Settlement,
    SpendRow,
    Stale,
    Unfit,
)
from gateway.ledger.entries import Commit, Debit, Entry, Release
from gateway.ledger.journal import Damage, Journal, JournalFull, Ticket

_TEND_S: Final = 0.5
_TAKE_OVER_EVERY: Final = 10  # rounds: a neighbour's journal waits for five seconds at most
_AT_ONCE: Final = 64
_NOTHING: Final = Amounts(0, 0, 0)
_PROBE: Final = "rsv_probe"  # no call has this id: to extend it takes the way of every step, and changes nothing

Debited: TypeAlias = Settled | Refusal | Barred | Stale


class Listener(Protocol):
    """Who is told of what nobody waits for."""

    def alert(self, alert: Alert) -> None:
        """Of a step that was answered before the ledger took it."""

    def ledger_serves(self, why_not: str | None) -> None:
        """Each time that changes, or the reason does."""

    def journalled(self, step: str) -> None:
        """A commit, release or debit waits in the journal."""

    def kept_aside(self, what: str, why: str) -> None:
        """An entry of the journal that no ledger will take: somebody has to look at it."""

    def problem(self, where: str, error: BaseException) -> None:
        """Nobody planned for it."""


class _Ending:
    """One step that must reach the ledger: asked for, journalled, or both at once."""

    __slots__ = ("asked", "deadline", "entry", "future", "putting", "taken", "ticket")

    def __init__(self, entry: Entry, future: "asyncio.Future[Settled | None]", deadline: float) -> None:
        self.entry = entry
        self.future = future
        self.deadline = deadline
        self.asked = False  # the ledger has not answered yet
        self.putting = False  # on its way into the journal, or in there
        self.taken = False  # the ledger has it
        self.ticket: Ticket | None = None


class _Reserving:
    """Waits for a step that may be refused, and notices how it went. `failed` says what is raised."""

    __slots__ = ("_answered", "_failed", "_step")

    def __init__(self, step: Awaitable[Any], answered: Callable[[], None], failed: Callable[[Exception], Exception]) -> None:
        self._step = step
        self._answered = answered
        self._failed = failed

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            answer = yield from self._step.__await__()
        except (LedgerUnavailable, LedgerLost) as failure:
            raise self._failed(failure) from failure
        self._answered()
        return answer


class ResilientLedger:
    """`Ledger` over one that `make` makes: at the start, and again when it was lost. Belongs to the event loop that starts it."""

    def __init__(self, make: Callable[[], Ledger], journal: Journal, commit_wait_ms: int, listener: Listener) -> None:
        self._make = make
        self._journal = journal
        self._wait_s = commit_wait_ms / 1000
        self._listener = listener
        self._inner: Ledger | None = None
        self._down: LedgerUnavailable | LedgerLost | None = LedgerUnavailable("the ledger is not open")
        self._away: dict[str, str] = {}  # tenant → why its breaker is open
        self._refuses = False  # no tenant has been served since the last failure
        self._unacknowledged: deque[_Ending] = deque()  # in the order of their deadlines
        self._timer: asyncio.TimerHandle | None = None
        self._replays: dict[str, deque[Ticket]] = {}  # by tenant; none is empty
        self._to_replay = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Serves what can be served: a store that is away or lost is tried again later. LedgerUnavailable without a journal; Unfit where
        the store must not be used until somebody has mended it."""
        self._loop = asyncio.get_running_loop()
        await self._journal.open()
        await self._open()
        if isinstance(self._down, Unfit):
            raise self._down
        self._tasks = [self._loop.create_task(self._tend()), self._loop.create_task(self._replay())]

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._inner is not None:
            await self._inner.close()
            await asyncio.sleep(0)  # what it could not take is on its way into the journal then
        if tasks:
            await self._journal.close()
        if self._timer is not None:
            self._timer.cancel()

    async def _open(self) -> None:
        old, self._inner = self._inner, None
        if old is not None:
            with suppress(LedgerUnavailable, LedgerLost):  # it is lost: there may be nothing left to close
                await old.close()
        fresh = self._make()
        try:
            await fresh.start()
        except (LedgerUnavailable, LedgerLost) as failure:
            with suppress(LedgerUnavailable, LedgerLost):
                await fresh.close()  # it may have connected before it found out
            self._set_down(failure)
        else:
            told = self._down is not None and self._tasks
            self._inner, self._down = fresh, None
            self._away.clear()
            if told:
                self._listener.ledger_serves(None)

    def _there(self) -> Ledger:
        """LedgerUnavailable and LedgerLost, where there is none."""
        if self._down is not None:
            raise type(self._down)(*self._down.args)
        assert self._inner is not None
        return self._inner

    # -- whether it serves ----------------------------------------------------------------------------------------------------

    def _noticed(self, tenant: str, failure: Exception) -> None:
        if isinstance(failure, LedgerLost):
            self._set_down(failure)
        elif self._down is None and tenant not in self._away:
            self._away[tenant] = str(failure)
            self._refuses = True
            if len(self._away) == 1:
                self._listener.ledger_serves(str(failure))

    def _set_down(self, failure: LedgerUnavailable | LedgerLost) -> None:
        before = self._down
        if isinstance(before, LedgerLost) and not isinstance(failure, LedgerLost):
            return  # what was lost stays lost, though it can't be reached either
        self._down = failure
        if before is None or before.args != failure.args:
            self._listener.ledger_serves(str(failure))

    def _serves(self, tenant: str) -> None:
        self._refuses = False
        if self._away.pop(tenant, None) is not None and not self._away:
            self._listener.ledger_serves(None)

    def _served(self) -> None:
        self._refuses = False

    async def _tend(self) -> None:
        """Until it is cancelled: opens what was lost, probes what was away, takes over what a dead neighbour left."""
        rounds = 0
        while True:
            try:
                if self._down is not None:
                    await self._open()
                elif self._away:
                    await asyncio.gather(*(self._probe(tenant) for tenant in list(self._away)[:_AT_ONCE]))
                await self._journal.try_again()
                if rounds % _TAKE_OVER_EVERY == 0:
                    self._replay_later(*await self._journal.take_over(self._damaged))
                rounds += 1
            except Exception as failure:  # noqa: BLE001 - a background loop: without it a ledger that was away would stay so
                self._listener.problem("tending the ledger", failure)
            await asyncio.sleep(_TEND_S)

    async def _probe(self, tenant: str) -> None:
        try:
            await self._there().extend(tenant, _PROBE, 1)
        except LedgerUnavailable:
            if tenant in self._away:
                self._away[tenant] = self._away.pop(tenant)  # to the end: of many, others are asked about first, next time
        except LedgerLost as failure:
            self._set_down(failure)
        else:
            self._serves(tenant)

    # -- steps that must reach it ---------------------------------------------------------------------------------------------

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Awaitable[Settled | None]:
        return self._surely(Commit(tenant, hold_id, settlement))

    def release(self, tenant: str, hold_id: str, ending: Ending, note: str = "") -> Awaitable[Settled]:
        return self._surely(Release(tenant, hold_id, ending, note))  # type: ignore[return-value]  # of a release it is never None

    def _surely(self, entry: Entry) -> "asyncio.Future[Settled | None]":
        ending = _Ending(entry, self._loop.create_future(), self._loop.time() + self._wait_s)
        if self._down is not None or entry.tenant in self._away:
            self._put(ending)
            return ending.future
        try:
            asked = _ask(self._there(), entry)
            step = asked if isinstance(asked, asyncio.Future) else asyncio.ensure_future(asked)
        except (LedgerUnavailable, LedgerLost) as failure:
            self._noticed(entry.tenant, failure)
            self._put(ending)
            return ending.future
        ending.asked = True
        step.add_done_callback(partial(self._answered, ending))
        self._unacknowledged.append(ending)
        if self._timer is None:
            self._timer = self._loop.call_at(ending.deadline, self._waited_enough)
        return ending.future

    def _answered(self, ending: _Ending, step: "asyncio.Future[Debited | None]") -> None:
        """The ledger's answer, whether or not anybody still waits for it."""
        ending.asked = False
        failure = LedgerUnavailable("it was cancelled") if step.cancelled() else step.exception()
        if failure is None:
            self._taken(ending, step.result())
        elif isinstance(failure, LedgerUnavailable | LedgerLost):
            self._noticed(ending.entry.tenant, failure)
            if ending.ticket is not None:
                self._replay_later(ending.ticket)
            elif not ending.putting:
                self._put(ending)
        else:  # a bug
            if not ending.future.done():
                ending.future.set_exception(failure)
            if ending.ticket is not None:
                self._keep_aside(ending.ticket, f"the ledger failed at it: {type(failure).__name__}")

    def _taken(self, ending: _Ending, answer: Debited | None) -> None:
        ending.taken = True
        settled = answer if isinstance(answer, Settled) else None
        if not ending.future.done():
            ending.future.set_result(settled)
        elif settled is not None:
            self._tell(settled)
        if ending.ticket is not None:
            self._journal.done(ending.ticket)

    def _waited_enough(self) -> None:
        """What is not acknowledged by now is journalled beside; and looks again when the next one's time is up."""
        self._timer = None
        waiting, now = self._unacknowledged, self._loop.time()
        while waiting and (not waiting[0].asked or waiting[0].deadline <= now):
            ending = waiting.popleft()
            if ending.asked and not ending.putting:
                self._put(ending)
        if waiting:
            self._timer = self._loop.call_at(waiting[0].deadline, self._waited_enough)

    def _put(self, ending: _Ending) -> None:
        ending.putting = True
        self._journal.put(ending.entry).add_done_callback(partial(self._is_put, ending))

    def _is_put(self, ending: _Ending, put: "asyncio.Future[Ticket]") -> None:
        future = ending.future
        failure = put.exception()
        if failure is not None:
            ending.putting = False
            if not ending.asked and not future.done():
                future.set_exception(failure)
            return
        ticket = put.result()
        self._listener.journalled(type(ending.entry).__name__.lower())
        if ending.taken:
            self._journal.done(ticket)
        elif ending.asked:
            ending.ticket = ticket
        else:
            self._replay_later(ticket)
        if not future.done():
            future.set_result(_as_it_will_be(ending.entry))

    # -- replaying ------------------------------------------------------------------------------------------------------------

    def _replay_later(self, *tickets: Ticket) -> None:
        for ticket in tickets:
            self._replays.setdefault(ticket.entry.tenant, deque()).append(ticket)
            self._to_replay.set()

    async def _replay(self) -> None:
        """Until it is cancelled. A tenant's entries go in their order; no two are of one hold, so some may go side by side."""
        while True:
            await self._to_replay.wait()
            batch = self._next_replays()
            taken = await asyncio.gather(*(self._replayed(ticket) for ticket in batch))
            left = [ticket for ticket, done in zip(batch, taken, strict=True) if not done]
            for ticket in reversed(left):
                self._replays.setdefault(ticket.entry.tenant, deque()).appendleft(ticket)
            if not self._replays:
                self._to_replay.clear()
            if not any(taken):  # no tenant is served that has entries here
                await asyncio.sleep(_TEND_S)

    def _next_replays(self) -> list[Ticket]:
        """A share for each tenant that is served: those of a tenant that is away wait for its breaker to close, and delay no other's."""
        served = [tenant for tenant in self._replays if tenant not in self._away][:_AT_ONCE]
        batch: list[Ticket] = []
        for tenant in served:
            waiting = self._replays[tenant]
            batch += [waiting.popleft() for _ in range(min(_AT_ONCE // len(served), len(waiting)))]
            if not waiting:
                del self._replays[tenant]
        return batch

    async def _replayed(self, ticket: Ticket) -> bool:
        """Whether it is done with."""
        entry = ticket.entry
        try:
            answer = await _ask(self._there(), entry)
        except (LedgerUnavailable, LedgerLost) as failure:
            self._noticed(entry.tenant, failure)
            return False
        except Exception as failure:  # noqa: BLE001 - one faulty entry must not hold up the others
            self._keep_aside(ticket, f"the ledger failed at it: {type(failure).__name__}")
            return True
        self._serves(entry.tenant)
        if isinstance(answer, Settled):
            self._tell(answer)
            self._journal.done(ticket)
        else:
            self._keep_aside(ticket, "the ledger knows no such hold")
        return True

    def _tell(self, settled: Settled) -> None:
        for alert in settled.alerts:
            self._listener.alert(alert)

    def _keep_aside(self, ticket: Ticket, why: str) -> None:
        self._journal.set_aside(ticket, why)
        self._listener.kept_aside(ticket.entry.hold_id, why)

    def _damaged(self, damage: Damage) -> None:
        self._listener.kept_aside(damage.file, damage.why)

    # -- steps that may be refused --------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Awaitable[Reserved]:
        failed = partial(self._reserve_failed, decision)
        try:
            return _Reserving(self._serving(decision).reserve(decision, lease_ms), self._served, failed)
        except (LedgerUnavailable, LedgerLost) as failure:
            raise failed(failure) from failure

    def debit(self, decision: Decision, settlement: Settlement, how: Debiting) -> Awaitable[Debited]:
        if how is Debiting.REPLAY:
            return self._surely(Debit(decision, settlement))  # type: ignore[return-value]  # a debit is never unknown
        # One of unknown outcome is asked for again, with the same id.
        failed = partial(self._failed, decision.call.caller.tenant)
        try:
            return _Reserving(self._serving(decision).debit(decision, settlement, how), self._served, failed)
        except (LedgerUnavailable, LedgerLost) as failure:
            raise failed(failure) from failure

    def _serving(self, decision: Decision) -> Ledger:
        """LedgerUnavailable, at once, while the breaker is open."""
        inner = self._there()
        why = self._away.get(decision.call.caller.tenant)
        if why is not None:
            raise LedgerUnavailable(why)
        return inner

    def _reserve_failed(self, decision: Decision, failure: Exception) -> Exception:
        tenant = decision.call.caller.tenant
        if isinstance(failure, OutcomeUnknown) and not decision.repeatable:
            ending = _Ending(Release(tenant, decision.hold_id, Ending.NOT_SENT), self._loop.create_future(), 0.0)
            ending.future.add_done_callback(_look_at)
            self._put(ending)
        return self._failed(tenant, failure)

    def _failed(self, tenant: str, failure: Exception) -> Exception:
        """What its caller is told."""
        self._noticed(tenant, failure)
        if isinstance(failure, LedgerUnavailable) and not self._journal.takes_more:
            return JournalFull(f"{failure}, and the journal beside it takes no more")
        return failure

    def extend(
        self,
        tenant: str,
        hold_id: str,
        lease_ms: int | None,
        held: Amounts | None = None,
        slices: Amounts | None = None,
        over: Mapping[str, int] = NO_MORE,
    ) -> Awaitable[bool]:
        return self._there().extend(tenant, hold_id, lease_ms, held, slices, over)

    # -- beside the path ------------------------------------------------------------------------------------------------------

    async def expire(self, at_most: int = 100) -> Sequence[Expired]:
        """Of a lost ledger nothing: whoever asks every second need not be told each time."""
        if isinstance(self._down, LedgerLost):
            return ()
        return await self._there().expire(at_most)

    async def halted(self, tenant: str, callers: Sequence[Caller]) -> Sequence[Barrier | None]:
        return await self._there().halted(tenant, callers)

    async def set_limit(self, tenant: str, run: str, owner: str, change: SetLimit) -> RunView | None:
        return await self._there().set_limit(tenant, run, owner, change)

    async def stop(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        return await self._there().stop(tenant, run, who, why)

    async def pause(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        return await self._there().pause(tenant, run, who, why)

    async def resume(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        return await self._there().resume(tenant, run, who, why)

    async def freeze(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        return await self._there().freeze(tenant, scope, who, why)

    async def thaw(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        return await self._there().thaw(tenant, scope, who, why)

    async def set_account_limit(self, tenant: str, key: str, limit: int | None, who: str, why: str) -> AccountView | None:
        return await self._there().set_account_limit(tenant, key, limit, who, why)

    async def adjust(
        self, tenant: str, key: str, amount: int, act_id: str, who: str, why: str
    ) -> tuple[Adjusting, AccountView] | None:
        return await self._there().adjust(tenant, key, amount, act_id, who, why)

    async def reset(self, tenant: str, key: str, who: str, why: str) -> AccountView | None:
        return await self._there().reset(tenant, key, who, why)

    async def fund(self, account: Account, change: Fund, act_id: str, who: str, why: str) -> Funded:
        return await self._there().fund(account, change, act_id, who, why)

    async def put_document(self, tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        return await self._there().put_document(tenant, name, text, expected)

    async def remember(self, tenant: str, name: str, text: str, keep_ms: int) -> str | None:
        return await self._there().remember(tenant, name, text, keep_ms)

    async def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        return await self._there().settle(tenant, hold_id, cost_usd, who, why)

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def run(self, tenant: str, run: str) -> RunView | None:
        return await self._there().run(tenant, run)

    async def runs(self, tenant: str, owner: str | None, limit: int, before: str | None = None) -> Sequence[RunView]:
        return await self._there().runs(tenant, owner, limit, before)

    async def record(self, tenant: str, decision_id: str) -> CallRecord | None:
        return await self._there().record(tenant, decision_id)

    async def balances(self, tenant: str, accounts: Sequence[Account]) -> Sequence[Balance]:
        return await self._there().balances(tenant, accounts)

    async def account(self, tenant: str, key: str) -> AccountView | None:
        return await self._there().account(tenant, key)

    async def documents(self, tenant: str, known: int = 0) -> Documents | None:
        return await self._there().documents(tenant, known)

    async def recall(self, tenant: str, name: str) -> str | None:
        return await self._there().recall(tenant, name)

    async def frozen(self, tenant: str) -> Sequence[Frozen]:
        return await self._there().frozen(tenant)

    async def acts(self, tenant: str, limit: int, before: str | None = None) -> Sequence[Act]:
        return await self._there().acts(tenant, limit, before)

    async def leases(self, tenant: str, limit: int, before: str | None = None) -> Sequence[CallRecord]:
        return await self._there().leases(tenant, limit, before)

    async def holds(self, tenant: str, run: str | None, limit: int) -> Sequence[CallRecord]:
        return await self._there().holds(tenant, run, limit)

    async def spend(self, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> Sequence[SpendRow]:
        return await self._there().spend(tenant, by, from_ms, to_ms, owner)

    # -- keeping --------------------------------------------------------------------------------------------------------------

    async def aged(self, keep: Keep, at_most: int) -> Sequence[CallRecord]:
        return await self._there().aged(keep, at_most)

    async def retire(self, tenant: str, decision_ids: Sequence[str], keep: Keep) -> int:
        return await self._there().retire(tenant, decision_ids, keep)

    async def sweep(self, keep: Keep, at_most: int) -> int:
        return await self._there().sweep(keep, at_most)

    def dump(self) -> AsyncIterator[Mapping[str, object]]:
        return self._there().dump()

    async def load(self, rows: AsyncIterator[Mapping[str, object]]) -> int:
        return await self._there().load(rows)

    def health(self) -> Mapping[str, object]:
        facts: dict[str, object] = {"ok": False} if self._inner is None else dict(self._inner.health())
        down = self._down
        if down is not None:
            facts["ok"] = False
            facts["why"] = f"ledger_lost: {down}" if isinstance(down, LedgerLost) else str(down)
        elif self._away:
            facts["ok"] = facts["ok"] and not self._refuses  # of many tenants, some may be served
            facts["why"] = next(iter(self._away.values()))
        facts["journal"] = {"waiting": self._journal.waiting, "kept_aside": self._journal.aside}
        return facts


def _ask(ledger: Ledger, entry: Entry) -> Awaitable[Debited | None]:
    if isinstance(entry, Commit):
        return ledger.commit(entry.tenant, entry.hold_id, entry.settlement)
    if isinstance(entry, Release):
        return ledger.release(entry.tenant, entry.hold_id, entry.ending, entry.note)
    return ledger.debit(entry.decision, entry.settlement, Debiting.REPLAY)


def _as_it_will_be(entry: Entry) -> Settled:
    """What the ledger will answer, but for balances and alerts, which nobody knows yet."""
    if isinstance(entry, Release):
        return Settled(HoldState.RELEASED, True, _NOTHING)
    return Settled(HoldState.COMMITTED, True, entry.settlement.cost)


def _look_at(future: "asyncio.Future[Any]") -> None:
    """Nobody waits for this one. Keeps asyncio from logging the exception as forgotten."""
    if not future.cancelled():
        future.exception()
