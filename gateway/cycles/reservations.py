"""Reservations: held, committed, released, kept for longer. Each is one hold of the ledger that lapses, and ends with the ledger's own steps.

A live reserve asks the ledger once, and so does a commit of what this process reserved: the ledger knows an id, and says whether it was there
before. Whatever it can't say from memory is read from the record, where the note says by which key it was made and ended.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.core.grants import LEVELS
from gateway.core.scopes import Caller
from gateway.core.values import Decision, Ending, Hold, Mode, Usage
from gateway.cycles import barring, telling
from gateway.cycles.asking import NAME, RESERVATION, Order
from gateway.cycles.faults import Fault, away
from gateway.cycles.ground import ATTEMPTS, Ground, caller_of, given_back, mismatch
from gateway.cycles.kept import Closed, Extended, Held, closed_of, digest, extended_of, held_of
from gateway.cycles.reading import (
    IF_AVAILABLE,
    OVERDRAFT,
    REJECT,
    UNITS,
    Amount,
    Commit,
    Create,
    Extend,
    Release,
    amounts,
)
from gateway.cycles.telling import Json, Row, scopes_of
from gateway.identity import Principal
from gateway.ledger.contract import Barred, CallRecord, Ended, HoldState, Refusal, Settled, Settlement
from gateway.observer import Outside
from gateway.wire.budget import remaining

ROUNDS: Final = 3  # how often a commit looks for what is left to grow into
EXTENSIONS: Final = "cyx_"  # what the names of their notes begin with
KEEP_MS: Final = 30 * 86_400_000  # notes of extensions, beyond the lease: as long as a record is likely to be kept

_KNOWN_AT_MOST: Final = 10_000
_GATES: Final = (Mode.HARD_GATE.value, Mode.SOFT_GATE.value)


@dataclass(slots=True)
class _Live:
    """A reservation that this process made: what a commit need not read. Only a hint; an extension moves its lease outward."""

    held: Held
    caller: Caller
    decision_id: str
    outcome: str
    lease_until_ms: int


@dataclass(frozen=True, slots=True)
class Reservations:
    ground: Ground
    _live: dict[str, _Live] = field(default_factory=dict)

    # -- held -----------------------------------------------------------------------------------------------------------------

    async def create(self, principal: Principal, request: Create, request_id: str, headers: list[tuple[str, str]]) -> Json:
        """`headers`: of the answer; what is left is told there."""
        ground = self.ground
        asked = request.asked
        order = ground.asking.order(principal, asked, RESERVATION, ground.rulebook(), ground.now_ms())
        caller = order.call.caller
        try:
            bar = ground.tenant_bar(principal.tenant)
            if bar is not None:
                raise Fault(bar.code, bar.message)
            ground.registry.require(principal, "reservations:create", ground.scope_of(caller))
            if not asked.amount.amount:
                await self._check_not_over(order, asked.amount)
            return await self._hold(order, request, headers)
        except Fault as fault:
            # What was promised to this key before stands, whatever the budgets say by now.
            found = await ground.found_again(principal.tenant, order.decision_id)
            if found is None:
                ground.refused(order, fault, request_id)
                raise
            return await self._again(found, order)

    async def _hold(self, order: Order, request: Create, headers: list[tuple[str, str]]) -> Json:
        ground, asked = self.ground, request.asked
        rulebook, _ = await ground.with_budgets(order, asked.amount)
        caller, unit = order.call.caller, asked.amount.unit
        governed = ground.registry.governed(caller)
        ttl_ms = min(request.ttl_ms or governed.ttl_ms, governed.max_ttl_ms)
        held = Held(
            asked.key,
            order.digest,
            asked.subject.json,
            asked.action.json,
            unit,
            asked.amount.amount,
            ttl_ms,
            request.grace_ms,
            request.overage or governed.overage or IF_AVAILABLE,
            governed.caps,
            asked.metadata,
        )
        note, lease_ms = held.text, ttl_ms + request.grace_ms

        def leased(decision: Decision) -> Decision:
            return replace(decision, lapses=True, note=note)

        for attempt in range(ATTEMPTS):
            this = order.again(attempt)
            answer: Hold | Ended | Refusal | Barred = await ground.asked(
                rulebook, this, asked.amount.held, lambda decision: ground.ledger.reserve(decision, lease_ms), leased
            )
            if isinstance(answer, Hold) and not answer.again:
                headers += remaining(answer.balances)
                return self._told(this, held, answer)
            if isinstance(answer, Refusal):
                raise barring.refusal_fault(answer, rulebook.grants.of((caller,)), UNITS[unit], asked.amount.amount)
            if isinstance(answer, Barred):
                raise barring.barred_fault(answer)
            found = await ground.ledger.record(caller.tenant, this.decision_id)
            if found is not None and not given_back(found):
                return await self._again(found, order)
        raise away("the ledger gave back what was reserved, time and again")

    def _told(self, order: Order, held: Held, hold: Hold) -> Json:
        live = self._live
        if len(live) >= _KNOWN_AT_MOST:
            del live[next(iter(live))]
        live[hold.id] = _Live(held, order.call.caller, order.decision_id, hold.outcome, hold.lease_until_ms)
        self.ground.asking.placed(order, hold.decision.call.caller)
        expires_at_ms = hold.lease_until_ms - held.grace_ms
        remaining_ms = min(held.ttl_ms, max(0, expires_at_ms - self.ground.now_ms()))
        return telling.created(hold.id, held, order.scopes, expires_at_ms, remaining_ms)

    async def _again(self, found: CallRecord, order: Order) -> Json:
        """The answer that was given then, but for the time that is left. A dry run answers to its key as well."""
        held = held_of(found.note)
        if held.digest != order.digest or held.answer is not None:
            raise mismatch()
        expires_at_ms = found.at_ms + held.ttl_ms
        left_ms = max(0, expires_at_ms - self.ground.now_ms()) if found.state is HoldState.LIVE else 0
        return telling.created(found.hold_id, held, order.scopes, expires_at_ms, left_ms)

    async def _check_not_over(self, order: Order, amount: Amount) -> None:
        """What costs nothing always fits for the ledger; a scope over its limit takes nothing at all."""
        ground = self.ground
        grants = ground.grants_of(order.call.caller)
        views = await asyncio.gather(*(ground.ledger.account(grant.tenant, grant.account.key) for grant in grants))
        balances = {view.balance.account.key: view.balance for view in views if view is not None}
        bar = barring.of_balances(grants, balances, UNITS[amount.unit], 0)
        if bar is not None and bar.code != "BUDGET_EXCEEDED":
            raise bar.fault(amount.unit, 0)

    # -- committed ------------------------------------------------------------------------------------------------------------

    async def commit(
        self, principal: Principal, hold_id: str, request: Commit, request_id: str, headers: list[tuple[str, str]]
    ) -> Json:
        ground = self.ground
        began_s = ground.observer.clock_s()
        ground.registry.require(principal, "reservations:commit")
        told = digest(request.body)
        live = self._live.get(hold_id)
        actual = request.actual
        if (
            live is not None
            and ground.is_own(principal, hold_id)
            and live.held.unit == actual.unit
            and actual.amount <= live.held.amount
            and ground.now_ms() < live.lease_until_ms
            and ground.tenant_bar(principal.tenant) is None
        ):
            ground.check_scope(principal, live.caller)
            closed = Closed(True, request.key, told, actual.amount, live.held.amount - actual.amount, request.metadata)
            settled = await self._commit(principal.tenant, hold_id, request, closed)
            if settled is not None and settled.changed:
                self._live.pop(hold_id, None)
                headers += remaining(settled.balances)
                self._receipt(live, live.held.amount, request_id, began_s, settled, Ending.COMPLETED, request.usage)
                return telling.committed(actual.unit, closed)
        record, held = await ground.own(principal, hold_id)
        before = closed_of(record.end_note)
        if before is not None and before.commit and before.key == request.key:
            if before.digest != told:
                raise mismatch()
            return telling.committed(held.unit, before)
        ground.check_tenant_open(record.tenant)
        self._check_live(record, hold_id)
        if actual.unit != held.unit:
            raise Fault(
                "UNIT_MISMATCH",
                f"the reservation is in {held.unit}, what is to be committed in {actual.unit}",
                {"scope": _path(held), "requested_unit": actual.unit, "expected_units": [held.unit]},
            )
        charged = await self._covered(record, held, hold_id, actual.amount)
        closed = Closed(True, request.key, told, charged, max(0, held.amount - charged), request.metadata)
        settled = await self._commit(record.tenant, hold_id, request, closed)
        if settled is None or not settled.changed:  # somebody else ended it in the meantime
            return await self._ended_meanwhile(principal, hold_id, request.key, told, commit=True)
        self._live.pop(hold_id, None)
        headers += remaining(settled.balances)
        there = _live_of(record, held, principal.key)
        self._receipt(there, max(charged, held.amount), request_id, began_s, settled, Ending.COMPLETED, request.usage)
        return telling.committed(held.unit, closed)

    def _receipt(
        self, live: _Live, held: int, request_id: str, began_s: float, settled: Settled, ending: Ending, usage: Usage | None
    ) -> None:
        ground = self.ground
        ground.told(settled)
        ground.observer.outside(
            Outside(
                request_id=request_id,
                caller=live.caller,
                decision_id=live.decision_id,
                outcome=live.outcome,
                name=str(live.held.action["name"]) or NAME,
                status=200,
                ending=ending,
                held=amounts(live.held.unit, held),
                charged=None if usage is None else settled.charged,
                usage=usage,
                began_s=began_s,
            )
        )

    async def _commit(self, tenant: str, hold_id: str, request: Commit, closed: Closed) -> Settled | None:
        settlement = Settlement(request.actual.held, request.usage, Ending.COMPLETED, closed.text)
        return await self.ground.ledger.commit(tenant, hold_id, settlement)

    async def _covered(self, record: CallRecord, held: Held, hold_id: str, actual: int) -> int:
        """How much of the cost is told to be charged, once the hold is as large as it may become. What lies beyond that is committed all
        the same: the ledger keeps what work really cost, as an overrun. Fault: the policy does not let it pass."""
        ground, unit = self.ground, UNITS[held.unit]
        there = record.held.of(unit)
        if actual <= there:
            return actual
        tenant = record.tenant
        if held.overage == REJECT:
            more = (
                f"the reservation holds {there:,} {held.unit}, {actual:,} are to be committed, and its overage_policy is REJECT"
            )
            raise Fault("BUDGET_EXCEEDED", more, {"scope": _path(held)})
        grants = [grant for grant in ground.grants_of(caller_of(record)) if grant.unit is unit]
        over = {grant.account.key: grant.overdraft for grant in grants if grant.overdraft} if held.overage == OVERDRAFT else {}
        if await ground.ledger.extend(tenant, hold_id, None, amounts(held.unit, actual), over=over):
            return actual
        for _ in range(ROUNDS):
            room = await self._room(record, held.unit)
            debtor = (
                min((left + over[key], key) for key, left in room.items() if key in over) if over.keys() & room.keys() else None
            )
            if debtor is not None and debtor[0] < actual - there:
                scope = next(grant.text for grant in grants if grant.account.key == debtor[1])
                deep = f"what is missing would put the scope {scope} further into debt than its overdraft limit allows"
                raise Fault("OVERDRAFT_LIMIT_EXCEEDED", deep, {"scope": scope})
            left = max(0, min((left + over.get(key, 0) for key, left in room.items()), default=0))
            charged = min(actual, there + left)
            if charged <= there or await ground.ledger.extend(tenant, hold_id, None, amounts(held.unit, charged), over=over):
                return max(charged, there)
        return there

    async def _room(self, record: CallRecord, unit: str) -> dict[str, int]:
        """What is left in each account that holds back the reservation, by key; below 0 where more was spent than there was."""
        ledger = self.ground.ledger
        lines = record.inputs.get("accounts")
        assert isinstance(lines, list)
        gates = [line for line in lines if line["mode"] in _GATES and line["account"].endswith(f"|{UNITS[unit].value}")]
        views = await asyncio.gather(*(ledger.account(record.tenant, line["account"]) for line in gates))
        room: dict[str, int] = {}
        for line, view in zip(gates, views, strict=True):
            if view is None:
                continue
            balance = view.balance
            limit = line["limit"] if balance.limit is None else balance.limit
            if limit is not None:
                room[line["account"]] = limit - balance.committed - balance.reserved
        return room

    # -- released -------------------------------------------------------------------------------------------------------------

    async def release(
        self, principal: Principal, hold_id: str, request: Release, request_id: str, headers: list[tuple[str, str]]
    ) -> Json:
        ground = self.ground
        began_s = ground.observer.clock_s()
        if not principal.admin:
            ground.registry.require(principal, "reservations:release")
        told = digest(request.body)
        record, held = await ground.own(principal, hold_id)
        before = closed_of(record.end_note)
        if principal.admin and record.state is HoldState.RELEASED:
            before = closed_of(await ground.ledger.recall(record.tenant, _by_admin(record)) or "")
        if before is not None and not before.commit and before.key == request.key:
            if before.digest != told:
                raise mismatch()
            return telling.released(held.unit, before.released)
        ground.check_tenant_open(record.tenant)
        self._check_live(record, hold_id)
        closed = Closed(False, request.key, told, 0, record.held.of(UNITS[held.unit]))
        if principal.admin:
            return await self._released_by_admin(principal, record, held, request, closed)
        settled = await ground.ledger.release(record.tenant, hold_id, Ending.COMPLETED, closed.text)
        if not settled.changed:
            return await self._ended_meanwhile(principal, hold_id, request.key, told, commit=False)
        self._live.pop(hold_id, None)
        headers += remaining(settled.balances)
        self._receipt(_live_of(record, held, principal.key), held.amount, request_id, began_s, settled, Ending.COMPLETED, None)
        return telling.released(held.unit, closed.released)

    async def _released_by_admin(
        self, principal: Principal, record: CallRecord, held: Held, request: Release, closed: Closed
    ) -> Json:
        """An operator's act, which is kept with who and why; beside it stands by which key."""
        ledger, hold_id = self.ground.ledger, record.hold_id
        await ledger.remember(record.tenant, _by_admin(record), closed.text, KEEP_MS)
        settled = await ledger.settle(record.tenant, hold_id, None, principal.key, request.reason)
        if settled is None or not settled.changed:
            record, _ = await self.ground.own(principal, hold_id)
            raise _finalized(record, hold_id)
        self._live.pop(hold_id, None)
        self.ground.told(settled)
        return telling.released(held.unit, closed.released)

    async def _ended_meanwhile(self, principal: Principal, hold_id: str, key: str, told: str, *, commit: bool) -> Json:
        record, held = await self.ground.own(principal, hold_id)
        closed = closed_of(record.end_note)
        if closed is None or closed.commit is not commit or closed.key != key:
            raise _finalized(record, hold_id)
        if closed.digest != told:
            raise mismatch()
        return telling.committed(held.unit, closed) if commit else telling.released(held.unit, closed.released)

    def _check_live(self, record: CallRecord, hold_id: str) -> None:
        """Fault RESERVATION_FINALIZED, RESERVATION_EXPIRED: by the clock, whether or not the reaper was there already."""
        if record.state in (HoldState.COMMITTED, HoldState.RELEASED):
            raise _finalized(record, hold_id)
        if record.state is HoldState.EXPIRED or record.lease_until_ms <= self.ground.now_ms():
            raise _expired(hold_id)

    # -- kept for longer ------------------------------------------------------------------------------------------------------

    async def extend(self, principal: Principal, hold_id: str, request: Extend) -> Json:
        """Each extension has a number, and the note of that number is written once: it says until when. So two at a time add up, and one
        that is asked for again is found. The lease follows the latest."""
        ground = self.ground
        ground.registry.require(principal, "reservations:extend")
        told, ledger = digest(request.body), ground.ledger
        record, held = await ground.own(principal, hold_id)
        extensions = await self._extensions(record)
        for each in extensions:
            if each.key == request.key:
                return await self._extended_again(record, held, each, told)
        ground.check_tenant_open(record.tenant)
        self._check_live(record, hold_id)
        most = ground.registry.governed(caller_of(record)).max_extensions
        while True:
            expires_at_ms = extensions[-1].expires_at_ms if extensions else record.at_ms + held.ttl_ms
            now_ms = ground.now_ms()
            if expires_at_ms < now_ms:
                raise _expired(hold_id)
            if len(extensions) >= most:
                raise Fault(
                    "MAX_EXTENSIONS_EXCEEDED", f"the reservation was extended {most} times, which is as often as it may be"
                )
            this = Extended(request.key, told, expires_at_ms + request.by_ms)
            keep_ms = this.expires_at_ms - now_ms + held.grace_ms + KEEP_MS
            taken = await ledger.remember(record.tenant, _extension(record, len(extensions) + 1), this.text, keep_ms)
            if taken is None:
                break
            extensions.append(extended_of(taken))
            if extensions[-1].key == request.key:
                return await self._extended_again(record, held, extensions[-1], told)
        if not await self._lease_to_latest(record, held, [*extensions, this]):
            record, _ = await ground.own(principal, hold_id)
            self._check_live(record, hold_id)
            raise _expired(hold_id)
        return telling.extended(this.expires_at_ms, max(0, this.expires_at_ms - ground.now_ms()))

    async def _extended_again(self, record: CallRecord, held: Held, extended: Extended, told: str) -> Json:
        if extended.digest != told:
            raise mismatch()
        if record.state is not HoldState.LIVE:
            return telling.extended(extended.expires_at_ms, 0)
        # Who asked first may have been gone before the lease followed.
        await self._lease_to_latest(record, held, await self._extensions(record))
        return telling.extended(extended.expires_at_ms, max(0, extended.expires_at_ms - self.ground.now_ms()))

    async def _lease_to_latest(self, record: CallRecord, held: Held, extensions: list[Extended]) -> bool:
        """Others may come behind: whoever is last sets the lease to the latest of all. False: the hold is live no more."""
        ledger = self.ground.ledger
        hold_id = record.hold_id
        while True:
            until_ms = extensions[-1].expires_at_ms + held.grace_ms
            if not await ledger.extend(record.tenant, hold_id, max(1, until_ms - self.ground.now_ms())):
                return False
            live = self._live.get(hold_id)
            if live is not None:
                live.lease_until_ms = max(live.lease_until_ms, until_ms)
            behind = await ledger.recall(record.tenant, _extension(record, len(extensions) + 1))
            if behind is None:
                return True
            extensions.append(extended_of(behind))

    async def _extensions(self, record: CallRecord) -> list[Extended]:
        found: list[Extended] = []
        while True:
            text = await self.ground.ledger.recall(record.tenant, _extension(record, len(found) + 1))
            if text is None:
                return found
            found.append(extended_of(text))

    # -- as it stands ---------------------------------------------------------------------------------------------------------

    async def row(self, record: CallRecord) -> Row:
        held = held_of(record.note)
        unextended_ms = record.at_ms + held.ttl_ms
        expires_at_ms = unextended_ms
        if record.lease_until_ms != unextended_ms + held.grace_ms:  # extended, or ended, after which the lease is not known
            extensions = await self._extensions(record)
            if extensions:
                expires_at_ms = extensions[-1].expires_at_ms
        assert record.state is not None
        status = telling.STATUS[record.state]
        if record.state is HoldState.LIVE and record.lease_until_ms <= self.ground.now_ms():
            status = "EXPIRED"
        return Row(record, held, closed_of(record.end_note), status, expires_at_ms, _scopes(held))

    async def get(self, principal: Principal, hold_id: str) -> Row:
        """Fault RESERVATION_EXPIRED: it is still listed."""
        record, _ = await self.ground.own(principal, hold_id)
        row = await self.row(record)
        if row.status == "EXPIRED":
            raise _expired(hold_id)
        return row


def _scopes(held: Held) -> tuple[str, ...]:
    return scopes_of([(level, str(held.subject[level])) for level in LEVELS if level in held.subject])


def _path(held: Held) -> str:
    return _scopes(held)[-1]


def _live_of(record: CallRecord, held: Held, key: str) -> _Live:
    """`key`: whose request ends it."""
    caller = replace(caller_of(record), key=key)
    return _Live(held, caller, record.decision_id, record.outcome, record.lease_until_ms)


def _extension(record: CallRecord, number: int) -> str:
    return f"{EXTENSIONS}{record.decision_id.removeprefix('bdg_')}_{number}"


def _by_admin(record: CallRecord) -> str:
    """The name of the note that says by which key the admin released it."""
    return f"cyr_{record.decision_id.removeprefix('bdg_')}"


def _finalized(record: CallRecord, hold_id: str) -> Fault:
    state = telling.STATUS[record.state or HoldState.RELEASED]
    return Fault("RESERVATION_FINALIZED", f"the reservation {hold_id} was ended before: it is {state}")


def _expired(hold_id: str) -> Fault:
    late = "what was spent can be recorded by POST /v1/events, with the same idempotency key"
    return Fault("RESERVATION_EXPIRED", f"the reservation {hold_id} has expired: {late}")
