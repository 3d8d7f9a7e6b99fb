"""The ledger on Redis or Valkey, shared by any number of gateways: every step is one Lua script, one round trip.

Scripts are asked for again after a lost connection: each finds what it has done by the id it was done with. What a script needs to name its
keys (which accounts a hold counts in, whose a run is) is remembered here or read first; the script checks it, and where it is no longer so
changes nothing and says so.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import orjson

from gateway.core.scopes import Account, Amounts, Caller
from gateway.core.values import Balance, Decision, Ending, Usage, UsageSource
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
    Funding,
    HoldState,
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
from gateway.ledger.layout import places
from gateway.ledger.packed import NOTHING, run_in
from gateway.ledger.redis import copying, keeping, reading
from gateway.ledger.redis.kept import NUMBERS, read_ancestry
from gateway.ledger.redis.lines import closing_text, read_lines, run_of
from gateway.ledger.redis.resp import Argument
from gateway.ledger.redis.servers import Servers
from gateway.ledger.redis.shapes import (
    AGAIN,
    BARRED,
    DAY_MS,
    DONE,
    HELD,
    REFUSED,
    UNKNOWN,
    Known,
    Shape,
    arguments,
    plainly_held,
    plainly_settled,
    refused,
    reserved,
    settled,
    shared_until,
)
from gateway.ledger.redis.slots import Slots, Tenant, adopt
from gateway.ledger.witness import Witness

__all__ = ["RedisLedger", "adopt"]

T = TypeVar("T")

_TIDY_EVERY_S: Final = 1.0
_HELD_AT_MOST: Final = 65_536
_TRIES: Final = 8  # of a step whose keys had changed
_LOOK: Final = 0  # at a hold, instead of ending it
_HOW: Final = {Debiting.ASK: 1, Debiting.ALWAYS: 2, Debiting.REPLAY: 3}
_AS_HELD: Final = ("", "", "", "", "")
_FREE: Final = (0, 0, 0, 0, 0)


class _Assumed(NamedTuple):
    """What names the keys of a debit."""

    day: int  # on which it counts
    owner: str  # of its run
    others: tuple[str, ...]  # its run's ancestors that the caller does not name


class _Reserving:
    """Waits for a reserve. If the waiter goes, or never comes, what may be held is given back: by its id, whatever has become of it."""

    __slots__ = ("_answer", "_heard", "_hold_id", "_ledger", "_read", "_tenant")

    def __init__(
        self, ledger: "RedisLedger", tenant: str, hold_id: str, answer: Awaitable[Any], read: Callable[[Any], Reserved] | None
    ) -> None:
        self._ledger = ledger
        self._tenant = tenant
        self._hold_id = hold_id
        self._answer = answer
        self._read = read
        self._heard = False

    def __await__(self) -> Generator[Any, None, Reserved]:
        self._heard = True
        try:
            reply = yield from self._answer.__await__()
        except asyncio.CancelledError:
            self._ledger.give_back(self._tenant, self._hold_id)
            raise
        return reply if self._read is None else self._read(reply)

    def __del__(self) -> None:
        if not self._heard:
            self._ledger.give_back(self._tenant, self._hold_id)


class _Ending:
    """Waits for the end of a hold, and reads its reply."""

    __slots__ = ("_future", "_read")

    def __init__(self, future: "asyncio.Future[Any]", read: Callable[[Any], Settled | None]) -> None:
        self._future = future
        self._read = read

    def __await__(self) -> Generator[Any, None, Settled | None]:
        return self._read((yield from self._future))


class RedisLedger:
    """`Ledger` on Redis or Valkey. `now`: Lua that replaces the server's clock, in tests. Belongs to the event loop that starts it."""

    def __init__(self, servers: Servers, witness: Witness, now: str | None = None) -> None:
        self._servers = servers
        self._slots = Slots(servers, witness, now)
        self._held: dict[tuple[str, str], Known] = {}  # by tenant and tail, the oldest first
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tidying: asyncio.Task[None] | None = None
        self._connected = False
        self._trouble: str | None = None
        self._swept = keeping.Progress()

    # -- life -----------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Again after LedgerLost: goes on if the store was adopted meanwhile."""
        if not self._connected:
            await self._servers.start()
            self._connected = True
        await self._slots.verify()
        self._held.clear()
        if self._tidying is None:
            self._tidying = asyncio.get_running_loop().create_task(self._tidy_now_and_then())

    async def close(self) -> None:
        """Idempotent. Steps that are asked for from now on are refused; those under way are answered first."""
        if not self._connected:
            return
        self._connected = False
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
            self._tidying = None
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._servers.close()
        await self._slots.witness()

    async def _tidy_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY_S)
            try:
                await self._slots.witness()
            except (LedgerUnavailable, LedgerLost) as error:  # the witness is behind, not the ledger: /readyz tells
                self._trouble = str(error)
            else:
                self._trouble = None

    def health(self) -> Mapping[str, object]:
        facts: dict[str, object] = dict(self._servers.health())
        known = self._slots.known.values()
        facts["epochs"] = len({each.epoch for each in known})
        facts["sequence"] = sum(each.sequence for each in known)
        if self._slots.lost is not None:
            facts |= {"ok": False, "why": f"ledger_lost: {self._slots.lost}"}
        elif not self._connected:
            facts |= {"ok": False, "why": facts.get("why", "the ledger is not open")}
        if self._trouble is not None:
            facts["trouble"] = self._trouble
        return facts

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def _known_tenant(self, name: str) -> Tenant | None:
        """None: one that is new to this gateway."""
        if not self._connected:
            raise LedgerUnavailable("the ledger is not open")
        if self._slots.lost is not None:
            raise LedgerLost(self._slots.lost)
        return self._slots.known.get(name)

    async def _get(self, name: str) -> Tenant:
        return self._known_tenant(name) or await self._slots.get(name)

    async def _find(self, name: str) -> Tenant | None:
        return self._known_tenant(name) or await self._slots.find(name)

    def _under_way(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """More than one round trip: goes on though whoever waits is gone."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return asyncio.shield(task)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits has heard it; nobody else needs to

    # -- the path of a call ---------------------------------------------------------------------------------------------------

    def reserve(self, decision: Decision, lease_ms: int) -> Awaitable[Reserved]:
        name = decision.call.caller.tenant
        tenant = self._known_tenant(name)
        if tenant is None:
            return _Reserving(self, name, decision.hold_id, self._under_way(self._reserve_first(name, decision, lease_ms)), None)
        return self._reserve(tenant, decision, lease_ms)

    async def _reserve_first(self, name: str, decision: Decision, lease_ms: int) -> Reserved:
        return await self._reserve(await self._slots.get(name), decision, lease_ms)

    def _reserve(self, tenant: Tenant, decision: Decision, lease_ms: int) -> Awaitable[Reserved]:
        slots, keys, tail = self._slots, tenant.keys, decision.id.removeprefix("bdg_")
        shape = tenant.shapes.of(decision)
        plain = shape.plain_of(slots.scripts, keys, tenant.epoch, decision)

        def read(reply: Any) -> Reserved:
            if type(reply) is bytes:
                assert plain is not None
                sequence, known, hold = plainly_held(plain, shape.lines[0], decision, reply)
                tenant.saw(sequence)
                self._remember(tenant.name, tail, known)
                return hold
            slots.checked(tenant, reply)
            if reply[0] == HELD:
                number = shape.texts[id(decision.ladder[reply[4] - 1].charges)] - 1
                if plain is not None and reply[4] == 1:
                    known = plain.known(reply[2])
                else:
                    runs = 1 + len(decision.call.caller.ancestry)
                    known = Known(shape.lines[number], reply[2] // DAY_MS, runs, shape.settled, shape.accounts[number])
                self._remember(tenant.name, tail, known)
            shape.held_long = reply[0] in (REFUSED, BARRED)
            return reserved(shape, decision, reply)

        def in_full() -> tuple[Argument, ...]:
            owner = decision.call.caller.owner
            named = [keys.call(tail), keys.leases, keys.runs, keys.owner(owner), keys.active(owner)]
            named += shape.after
            named.append(keys.lapsing)
            named += shape.runs
            for each in shape.accounts:
                named += each
            args = (tenant.sequence, *arguments(shape, decision, tail, lease_ms))
            return slots.command_of(tenant, slots.scripts.reserve, named, args)

        unusual = decision.ladder[0].cost_max
        if plain is None or shape.held_long or unusual.credits or unusual.risk_points:  # which hold.lua does not know
            future = slots.ask(tenant, in_full())
        else:
            future = slots.ask(tenant, plain.hold(tenant.sequence, decision, tail, lease_ms), in_full)
        return _Reserving(self, tenant.name, decision.hold_id, future, read)

    def _remember(self, tenant: str, tail: str, known: Known) -> None:
        held = self._held
        if len(held) >= _HELD_AT_MOST:
            del held[next(iter(held))]
        held[tenant, tail] = known

    def give_back(self, tenant: str, hold_id: str) -> None:
        """Sent after the reserve, on the same connection; if that is asked for again later, it finds a tombstone."""
        if self._connected:  # else its lease ends it
            self._under_way(self._settle(tenant, hold_id, HoldState.RELEASED, closing_text(None, Ending.NOT_SENT)))

    def commit(self, tenant: str, hold_id: str, settlement: Settlement) -> Awaitable[Settled | None]:
        cost = settlement.cost
        _check(cost)
        closing = closing_text(settlement.usage, settlement.ending, settlement.note)
        return self._end(tenant, hold_id, HoldState.COMMITTED, closing, cost)

    def release(self, tenant: str, hold_id: str, ending: Ending, note: str = "") -> Awaitable[Settled]:
        answer: Awaitable[Any] = self._end(tenant, hold_id, HoldState.RELEASED, closing_text(None, ending, note), NOTHING)
        return answer

    def _end(self, tenant_name: str, hold_id: str, state: HoldState, closing: bytes, cost: Amounts) -> Awaitable[Settled | None]:
        slots, tenant = self._slots, self._known_tenant(tenant_name)
        tail = hold_id.removeprefix("rsv_")
        known = self._held.pop((tenant_name, tail), None)
        charged = (cost.usd, cost.tokens, cost.calls, cost.credits, cost.risk_points)
        if tenant is None or known is None:
            return self._under_way(self._settle(tenant_name, hold_id, state, closing, charged))
        lines = known.lines

        def read(reply: Any) -> Settled | None:
            if type(reply) is bytes:
                sequence, ended = plainly_settled(lines, cost, reply)
                tenant.saw(sequence)
                return ended
            slots.checked(tenant, reply)
            return settled(lines, reply) if reply[0] == DONE else None

        def in_full() -> tuple[Argument, ...]:
            return self._command_to_end(tenant, tail, known, NUMBERS[state], closing, charged)

        plainly = known.plainly
        if state is HoldState.COMMITTED and plainly is not None and not (cost.credits or cost.risk_points):
            return _Ending(slots.ask(tenant, plainly.commit(tenant.sequence, cost, tail, closing), in_full), read)
        return _Ending(slots.ask(tenant, in_full()), read)

    def _command_to_end(
        self,
        tenant: Tenant,
        tail: str,
        known: Known | None,
        state: int,
        closing: bytes,
        charged: tuple[Argument, ...],
        act: tuple[Argument, ...] = ("", ""),
    ) -> tuple[Argument, ...]:
        keys = tenant.keys
        named: tuple[str, ...] = (keys.call(tail), keys.leases, keys.expired, keys.ended, keys.tombstones, keys.days)
        if known is None:
            named = (*named, keys.days, keys.days, keys.acts, keys.acts_order)
        else:
            named = (*named, keys.spend(known.day), *known.around, *known.accounts)
        args = (tail, state, *charged, closing, 0 if known is None else known.runs, *act)
        return self._slots.command_of(tenant, self._slots.scripts.settle, named, (tenant.sequence, *args))

    async def _settle(
        self,
        tenant_name: str,
        hold_id: str,
        state: HoldState,
        closing: bytes,
        charged: tuple[Argument, ...] = _FREE,
        act: tuple[Argument, ...] = ("", ""),
    ) -> Settled | None:
        """As `_end`, of a hold whose keys are not known here."""
        creates = state is HoldState.RELEASED and not act[0]
        tenant = await self._get(tenant_name) if creates else await self._find(tenant_name)
        if tenant is None:
            return None
        return await self._settle_in(tenant, hold_id.removeprefix("rsv_"), NUMBERS[state], closing, charged, act)

    async def _settle_in(
        self,
        tenant: Tenant,
        tail: str,
        state: int,
        closing: bytes = b"",
        charged: tuple[Argument, ...] = _AS_HELD,
        act: tuple[Argument, ...] = ("", ""),
    ) -> Settled | None:
        for _ in range(_TRIES):
            known = await self._look_up(tenant, tail)
            command = self._command_to_end(tenant, tail, known, state, closing, charged, act)
            reply = self._slots.checked(tenant, await self._slots.ask(tenant, command))
            if reply[0] == UNKNOWN:
                return None
            if reply[0] == DONE:
                return settled(None if known is None else known.lines, reply)
        raise LedgerUnavailable(f"rsv_{tail} changed all the time")  # it was reserved while it was looked up: that happens once

    async def _look_up(self, tenant: Tenant, tail: str) -> Known | None:
        """What names the keys of a hold. None: there is none, or a tombstone."""
        known = self._held.get((tenant.name, tail))
        if known is not None:
            return known
        call = await reading.call_of(self._slots, tenant, tail)
        if call is None or not call.lines:
            return None
        keys, lines, name = tenant.keys, read_lines(tenant.name, call.lines, call.names), run_of(call.group)
        runs = [keys.run(each) for each in (name, *call.ancestry)]
        around = (keys.recent(name), keys.acts, keys.acts_order, keys.ends, keys.named, keys.shared, *runs)
        return Known(lines, call.at_ms // DAY_MS, len(runs), around, tuple([keys.account(key) for key in lines.keys]))

    def extend(
        self,
        tenant: str,
        hold_id: str,
        lease_ms: int | None,
        held: Amounts | None = None,
        slices: Amounts | None = None,
        over: Mapping[str, int] = NO_MORE,
    ) -> Awaitable[bool]:
        text = b"" if held is None else orjson.dumps(places(held, slices))
        return self._under_way(self._extend(tenant, hold_id.removeprefix("rsv_"), lease_ms, text, over))

    async def _extend(self, tenant_name: str, tail: str, lease_ms: int | None, held: bytes, over: Mapping[str, int]) -> bool:
        tenant = await self._find(tenant_name)
        if tenant is None:
            return False
        keys = tenant.keys
        named: tuple[str, ...] = (keys.call(tail), keys.leases)
        runs, passing = 0, b""
        if held:
            known = await self._look_up(tenant, tail)
            if known is None:
                return False
            named, runs = (*named, *known.around[3:], *known.accounts), known.runs
            if over:
                passing = orjson.dumps([over.get(key, 0) for key in known.lines.keys])
        lease: Argument = "" if lease_ms is None else lease_ms
        reply = await self._slots.run(tenant, self._slots.scripts.extend, named, tail, lease, held, runs, passing)
        return bool(reply[0] == DONE)

    def debit(self, decision: Decision, settlement: Settlement, how: Debiting) -> Awaitable[Settled | Refusal | Barred | Stale]:
        assert len(decision.ladder) == 1, decision
        assert not decision.lapses, decision
        cost = settlement.cost
        _check(cost)
        return self._under_way(self._debit(decision, settlement, how))

    async def _debit(self, decision: Decision, settlement: Settlement, how: Debiting) -> Settled | Refusal | Barred | Stale:
        caller = decision.call.caller
        tenant = await self._get(caller.tenant)
        shape = tenant.shapes.of(decision)
        # As far as is known; the script says if it is not so.
        assumed = _Assumed(decision.at_ms // DAY_MS, caller.owner, ())
        for _ in range(_TRIES):
            sent = self._send_debit(tenant, shape, decision, settlement, how, assumed)
            reply = self._slots.checked(tenant, await sent)
            if reply[0] == DONE:
                return settled(shape.lines[0], reply)
            if reply[0] != AGAIN:
                return refused(shape, decision, reply)
            others = [each for each in read_ancestry(reply[4].decode()) if each not in (*caller.ancestry, caller.parent)]
            assumed = _Assumed(reply[2] // DAY_MS, reply[3].decode() or caller.owner, tuple(others))
        raise LedgerUnavailable(f"{decision.id} can't be debited: its run changes hands all the time")

    def _send_debit(
        self, tenant: Tenant, shape: Shape, decision: Decision, settlement: Settlement, how: Debiting, assumed: _Assumed
    ) -> "asyncio.Future[Any]":
        keys, tail, cost = tenant.keys, decision.id.removeprefix("bdg_"), settlement.cost
        day, owner, others = assumed
        closing = closing_text(settlement.usage, settlement.ending, settlement.note).decode()
        debit = orjson.dumps((_HOW[how], places(cost, None), closing, day, owner, others))
        named = (
            *(keys.call(tail), keys.leases, keys.runs, keys.owner(owner), keys.active(owner), *shape.after),
            *(keys.spend(day), *shape.runs, *map(keys.run, others), *shape.accounts[0]),
        )
        return self._slots.evaluate(tenant, self._slots.scripts.reserve, named, arguments(shape, decision, tail, 0, debit))

    # -- beside the path ------------------------------------------------------------------------------------------------------

    async def expire(self, at_most: int = 100) -> Sequence[Expired]:
        self._known_tenant("")
        tenants = await self._slots.all()
        found = await asyncio.gather(*[keeping.due(self._slots, each, each.keys.leases, at_most) for each in tenants])
        due = [(lease, each.name, tail, each) for each, (_, pairs) in zip(tenants, found, strict=True) for lease, tail in pairs]
        due.sort(key=lambda each: each[:3])
        ended = await asyncio.gather(*[self._expire(tenant, tail) for _, _, tail, tenant in due[:at_most]])
        return [each for each in ended if each is not None]

    async def _expire(self, tenant: Tenant, tail: str) -> Expired | None:
        """None: it ended or was extended meanwhile."""
        self._held.pop((tenant.name, tail), None)
        call = await reading.call_of(self._slots, tenant, tail)
        closing = closing_text(Usage(UsageSource.HELD), Ending.UNKNOWN)
        ended = await self._settle_in(tenant, tail, NUMBERS[HoldState.EXPIRED], closing)
        if call is None or ended is None or not ended.changed:
            return None
        return Expired(f"rsv_{tail}", run_of(call.group), ended.charged, ended.alerts, call.lapses)

    async def halted(self, tenant: str, callers: Sequence[Caller]) -> Sequence[Barrier | None]:
        found = await self._find(tenant)
        return [None] * len(callers) if found is None else await reading.halted(self._slots, found, callers)

    async def set_limit(self, tenant: str, run: str, owner: str, change: SetLimit) -> RunView | None:
        assert change.limit >= 0, change
        found = await self._get(tenant)
        asked = (change.limit, "1" if change.by_admin else "0", owner)
        done = await self._act_on_run(found, "set_limit", run, f"{run} {change.limit}", change.who, "", asked, owner)
        return await reading.run(self._slots, found, run, self._standing) if done else None

    async def stop(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        return await self._change(tenant, "stop", run, who, why)

    async def pause(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        return await self._change(tenant, "pause", run, who, why)

    async def resume(self, tenant: str, run: str, who: str, why: str) -> RunView | None:
        return await self._change(tenant, "resume", run, who, why)

    async def _change(self, tenant: str, what: str, run: str, who: str, why: str) -> RunView | None:
        found = await self._find(tenant)
        if found is None or not await self._act_on_run(found, what, run, run, who, why):
            return None
        return await reading.run(self._slots, found, run, self._standing)

    async def _act_on_run(
        self,
        tenant: Tenant,
        act: str,
        run: str,
        what: str,
        who: str,
        why: str,
        more: tuple[Argument, ...] = (),
        gets: str | None = None,
    ) -> bool:
        keys = tenant.keys
        done = _act(act, what, who, why)
        for _ in range(_TRIES):
            kept = await reading.run_called(self._slots, tenant, run)
            has = "" if kept is None else kept.owner
            named = (
                *(keys.run(run), keys.runs, keys.owner(has), keys.owner(has if gets is None else gets), keys.active(has)),
                *(keys.acts, keys.acts_order),
            )
            reply = await self._slots.run(tenant, self._slots.scripts.run, named, act, run, has, *done, who, *more)
            if reply[0] != AGAIN:
                return bool(reply[0] == DONE)
        raise LedgerUnavailable(f"run {run} changes hands all the time")

    async def freeze(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        return await self._freeze(await self._get(tenant), "freeze", scope, who, why)

    async def thaw(self, tenant: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        found = await self._find(tenant)
        return found is not None and await self._freeze(found, "thaw", scope, who, why)

    async def _freeze(self, tenant: Tenant, act: str, scope: Sequence[tuple[str, str]], who: str, why: str) -> bool:
        keys, text = tenant.keys, scope_text(scope)
        named = (keys.frozen, keys.freezes, keys.acts, keys.acts_order)
        args = (act, text, *_act(act, text, who, why), orjson.dumps((sorted(scope), who, why)))
        reply = await self._slots.run(tenant, self._slots.scripts.freeze, named, *args)
        return bool(reply[2])

    async def set_account_limit(self, tenant: str, key: str, limit: int | None, who: str, why: str) -> AccountView | None:
        assert limit is None or limit >= 0, limit
        what = f"{key} {'none' if limit is None else limit}"
        acted = await self._act_on_account(tenant, key, "set_account_limit", "" if limit is None else limit, what, who, why)
        return None if acted is None else acted[1]

    async def adjust(
        self, tenant: str, key: str, amount: int, act_id: str, who: str, why: str
    ) -> tuple[Adjusting, AccountView] | None:
        acted = await self._act_on_account(tenant, key, "adjust", amount, f"{key} {amount}", who, why, act_id)
        return None if acted is None else (Adjusting(acted[0]), acted[1])

    async def reset(self, tenant: str, key: str, who: str, why: str) -> AccountView | None:
        acted = await self._act_on_account(tenant, key, "reset", "", key, who, why)
        return None if acted is None else acted[1]

    async def _act_on_account(
        self, tenant: str, key: str, act: str, amount: Argument, what: str, who: str, why: str, act_id: str | None = None
    ) -> tuple[str, AccountView] | None:
        """How it went, and the account after it. None: no such account."""
        found = await self._find(tenant)
        known = None if found is None else await reading.account(self._slots, found, key)
        if found is None or known is None:
            return None
        account = known.balance.account
        keys = found.keys
        named = (keys.account(key), keys.acts, keys.acts_order)
        args = (act, amount, *_act(act, what, who, why, act_id), account.window.bucket_ms or "")
        reply = await self._slots.run(found, self._slots.scripts.account, named, *args)
        if reply[0] == UNKNOWN:
            return None
        _, _, word, *told = reply
        return word.decode(), _view(account, told)

    async def fund(self, account: Account, change: Fund, act_id: str, who: str, why: str) -> Funded:
        assert not account.window.span_ms, account
        found = await self._get(account.tenant)
        keys, key, run = found.keys, account.key, run_in(account.scope)
        named = (keys.account(key), keys.acts, keys.acts_order, keys.ends, keys.named, keys.shared)
        args: tuple[Argument, ...] = (
            *_act("fund", f"{key} {change.text}", who, why, act_id),
            *(change.by, "" if change.to is None else change.to, "" if change.committed is None else change.committed),
            *("1" if change.at_least_free else "", key, account.window.end_ms, shared_until(run)),
        )
        _, _, word, before, after = await self._slots.run(found, self._slots.scripts.fund, named, *args)
        return Funded(Funding(word.decode()), None if before is None else _view(account, before), _view(account, after))

    async def put_document(self, tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        found = await self._get(tenant)
        keys = found.keys
        named = (keys.documents, keys.documents_number, keys.documents_latest)
        args = (name, secrets.token_hex(8), *_there_is(text), *_there_is(expected))
        reply = await self._slots.run(found, self._slots.scripts.document, named, *args)
        return bool(reply[2])

    async def remember(self, tenant: str, name: str, text: str, keep_ms: int) -> str | None:
        return await self._memo(await self._get(tenant), name, secrets.token_hex(8), text, keep_ms)

    async def _memo(self, tenant: Tenant, name: str, memo_id: str = "", text: str = "", keep_ms: int = 0) -> str | None:
        named = (tenant.keys.memo(name), tenant.keys.memos)
        reply = await self._slots.run(tenant, self._slots.scripts.memo, named, name, memo_id, text, keep_ms)
        return None if reply[2] is None else str(reply[2].decode())

    async def settle(self, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
        act = _act("settle", f"{hold_id} {'none' if cost_usd is None else cost_usd}", who, why)
        if cost_usd is None:
            state, closing = HoldState.RELEASED, closing_text(None, Ending.UNKNOWN)
            return await self._settle(tenant, hold_id, state, closing, _FREE, act)
        state, closing = HoldState.COMMITTED, closing_text(Usage(UsageSource.HELD), Ending.UNKNOWN)
        return await self._settle(tenant, hold_id, state, closing, (cost_usd, *_AS_HELD[1:]), act)

    # -- reading --------------------------------------------------------------------------------------------------------------

    async def _standing(self, tenant: Tenant, tail: str) -> tuple[Balance, ...]:
        """The accounts of a call as they stand now, under the limits it was made with."""
        found = await self._settle_in(tenant, tail, _LOOK)
        return () if found is None else found.balances

    async def run(self, tenant: str, run: str) -> RunView | None:
        found = await self._find(tenant)
        return None if found is None else await reading.run(self._slots, found, run, self._standing)

    async def runs(self, tenant: str, owner: str | None, limit: int, before: str | None = None) -> Sequence[RunView]:
        found = await self._find(tenant)
        return [] if found is None else await reading.runs(self._slots, found, owner, limit, before)

    async def record(self, tenant: str, decision_id: str) -> CallRecord | None:
        found = await self._find(tenant)
        return None if found is None else await reading.record(self._slots, found, decision_id)

    async def balances(self, tenant: str, accounts: Sequence[Account]) -> Sequence[Balance]:
        found = await self._find(tenant)
        if found is None:
            return [Balance(each, None, 0, 0) for each in accounts]
        return await reading.balances(self._slots, found, accounts)

    async def account(self, tenant: str, key: str) -> AccountView | None:
        found = await self._find(tenant)
        return None if found is None else await reading.account(self._slots, found, key)

    async def documents(self, tenant: str, known: int = 0) -> Documents | None:
        found = await self._find(tenant)
        if found is None:
            return None if known == 0 else Documents(0, {})
        return await reading.documents(self._slots, found, known)

    async def recall(self, tenant: str, name: str) -> str | None:
        found = await self._find(tenant)
        return None if found is None else await self._memo(found, name)

    async def frozen(self, tenant: str) -> Sequence[Frozen]:
        found = await self._find(tenant)
        return [] if found is None else await reading.frozen(self._slots, found)

    async def acts(self, tenant: str, limit: int, before: str | None = None) -> Sequence[Act]:
        found = await self._find(tenant)
        return [] if found is None else await reading.acts(self._slots, found, limit, before)

    async def leases(self, tenant: str, limit: int, before: str | None = None) -> Sequence[CallRecord]:
        found = await self._find(tenant)
        return [] if found is None else await reading.leases(self._slots, found, limit, before)

    async def holds(self, tenant: str, run: str | None, limit: int) -> Sequence[CallRecord]:
        found = await self._find(tenant)
        return [] if found is None else await reading.holds(self._slots, found, run, limit)

    async def spend(self, tenant: str, by: Sequence[str], from_ms: int, to_ms: int, owner: str | None) -> Sequence[SpendRow]:
        found = await self._find(tenant)
        return [] if found is None else await reading.spend(self._slots, found, by, from_ms, to_ms, owner)

    # -- keeping --------------------------------------------------------------------------------------------------------------

    async def aged(self, keep: Keep, at_most: int) -> Sequence[CallRecord]:
        self._known_tenant("")
        return await keeping.aged(self._slots, keep, at_most)

    async def retire(self, tenant: str, decision_ids: Sequence[str], keep: Keep) -> int:
        found = await self._find(tenant)
        return 0 if found is None else await keeping.retire(self._slots, found, decision_ids, keep)

    async def sweep(self, keep: Keep, at_most: int) -> int:
        self._known_tenant("")
        return await keeping.sweep(self._slots, self._swept, keep, at_most)

    def dump(self) -> AsyncIterator[Mapping[str, object]]:
        self._known_tenant("")
        return copying.dump(self._slots)

    async def load(self, rows: AsyncIterator[Mapping[str, object]]) -> int:
        self._known_tenant("")
        return await copying.load(self._slots, rows)


def _view(account: Account, told: Sequence[Any]) -> AccountView:
    limit, committed, reserved_, unconfirmed, carried, adjusted = told
    return AccountView(Balance(account, limit, committed, reserved_, unconfirmed), carried, adjusted)


def _there_is(text: str | None) -> tuple[str, str]:
    return ("", "") if text is None else ("1", text)


def _check(cost: Amounts) -> None:
    assert min(cost.usd, cost.tokens, cost.calls, cost.credits, cost.risk_points) >= 0, cost


def _act(act: str, what: str, who: str, why: str, act_id: str | None = None) -> tuple[str, bytes]:
    """An act's id and its text, as the scripts keep it."""
    return act_id or f"act_{secrets.token_hex(8)}", orjson.dumps((who, act, what, why))
