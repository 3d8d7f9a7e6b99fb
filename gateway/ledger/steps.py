"""The steps of the contract, each a function of the books. Pure but for the books: no clock, no I/O of its own.

Always true after every step:

    account.reserved     = the sum of what live holds hold there
    account.committed    = the sum of what receipts charged there, provisional charges included
    account.unconfirmed  = the provisional part of it
    a run's amounts      = the same over its own calls, in USD
    spend                = the sum of what receipts charged, per group
    nothing is below zero; in hard_gate, reserved + committed <= ceiling at every reserve
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Ending, Hold, Plan, Usage, UsageSource
from gateway.ledger.books import AccountRow, Books, CallRow, RunRow, minus
from gateway.ledger.contract import (
    Alert,
    Ended,
    Expired,
    HoldState,
    Refusal,
    Reserved,
    RunRefusal,
    RunState,
    SetLimit,
    Settled,
    Settlement,
    Stale,
)
from gateway.ledger.packed import (
    NOTHING,
    Closing,
    Line,
    Record,
    inputs_of,
    lines_of,
    refusal_record,
)
from gateway.ledger.schema import COMMITTED, EXPIRED, LIVE, RELEASED

STATES: Final = {
    LIVE: HoldState.LIVE,
    EXPIRED: HoldState.EXPIRED,
    COMMITTED: HoldState.COMMITTED,
    RELEASED: HoldState.RELEASED,
}
_ALL: Final = 1_000_000

# A line where it meets its account, under the limit that applies now.
_Met: TypeAlias = tuple[Line, AccountRow, int | None]


def tail_of(decision_id: str) -> str:
    """What a decision's id and its hold's id share."""
    return decision_id.removeprefix("bdg_")


def reserve(books: Books, decision: Decision, lease_ms: int) -> Reserved:
    caller = decision.call.caller
    tail = tail_of(decision.id)
    call = books.call(caller.tenant, tail)
    if call is not None:
        return _same_again(books, decision, call)
    run = books.run(caller.tenant, caller.run)
    if run is not None and run.owner not in ("", caller.key):
        return Stale(books.now_ms, run.owner)
    if run is not None and run.stopped:
        record = refusal_record(decision, books.now_ms, (), (), "run_stopped")
        books.add_refusal(caller.tenant, caller.run_scope, tail, record)
        books.changes += 1
        return RunRefusal(decision, RunState.STOPPED)
    if not _inside_windows(decision, books.now_ms):
        return Stale(books.now_ms, caller.key)
    limit = _tightened(run, decision.call.directives.run_limit)
    raised = run is not None and run.raised
    blocking = []
    for place, plan in enumerate(decision.ladder):
        met = _meet(books, lines_of(plan), limit, raised)
        blocked_by = _first_blocking(met)
        if blocked_by is None:
            return _hold(books, decision, place, met, _claim(books, caller, run, decision, limit), lease_ms)
        blocking.append(blocked_by)
    if not caller.run_issued:  # nobody comes back to an issued run, and it has nothing to show
        _claim(books, caller, run, decision, limit)
    return _refuse(books, decision, tuple(blocking), limit, raised)


def _inside_windows(decision: Decision, now_ms: int) -> bool:
    for plan in decision.ladder:
        for charge in plan.charges:
            window = charge.ceiling.account.window
            if not window.start_ms <= now_ms < window.end_ms:
                return False
    return True


def _tightened(run: RunRow | None, asked: int | None) -> int | None:
    """The run's own limit after X-Run-Limit. A header that says what it said before is no new word: it does not undo what
    an admin has raised since."""
    limit = None if run is None else run.limit
    if asked is None or (run is not None and run.asked == asked):
        return limit
    return asked if limit is None else min(limit, asked)


def _of_the_run(policy_limit: int | None, own_limit: int | None, raised: bool) -> int | None:
    """The limit of the run's own ceiling."""
    if own_limit is None:
        return policy_limit
    if raised or policy_limit is None:
        return own_limit
    return min(own_limit, policy_limit)


def _meet(books: Books, lines: Sequence[Line], own_limit: int | None, raised: bool) -> list[_Met]:
    met = []
    for line in lines:
        ceiling = line.charge.ceiling
        limit = _of_the_run(ceiling.limit, own_limit, raised) if ceiling.own else ceiling.limit
        met.append((line, books.account(ceiling.account), limit))
    return met


def _above(charge: Charge, row: AccountRow, limit: int | None) -> bool:
    """Whether what stands there is above what the rule allows."""
    if limit is None:
        return False
    return row.reserved + row.committed > limit * charge.share_ppm // _ALL + charge.ceiling.margin


def _fits(met: _Met, amount: int) -> bool:
    """The rule of core.values.Ceiling."""
    (charge, _, _), row, limit = met
    basis = charge.ceiling.basis
    if limit is None or amount == 0 or basis is Basis.NONE:
        return True
    ceiling = limit * charge.share_ppm // _ALL + charge.ceiling.margin
    if basis is Basis.COMMITTED:
        return row.committed < ceiling
    return row.reserved + row.committed + amount <= ceiling


def _first_blocking(met: Sequence[_Met]) -> Balance | None:
    for each in met:
        line, row, limit = each
        if not _fits(each, line.held):
            return _balance(line.charge.ceiling, row, limit)
    return None


def _balance(ceiling: Ceiling, row: AccountRow, limit: int | None) -> Balance:
    return Balance(ceiling.account, limit, row.committed, row.reserved, row.unconfirmed, ceiling.mode)


def _balances(met: Sequence[_Met]) -> tuple[Balance, ...]:
    return tuple([_balance(charge.ceiling, row, limit) for (charge, _, twin), row, limit in met if not twin])


def standing(books: Books, record: Record, run: RunRow) -> tuple[Balance, ...]:
    """The accounts of a hold as they stand now, under the limits it was made with."""
    return _balances(_meet(books, record.lines, run.limit, run.raised))


def _claim(books: Books, caller: Caller, run: RunRow | None, decision: Decision, limit: int | None) -> RunRow:
    """The run exists from here on, is the caller's, and has the limit that the call asked for."""
    row = books.new_run(caller.tenant, caller.run, caller.key) if run is None else run
    row.owner = caller.key
    row.limit = limit
    if decision.call.directives.run_limit is not None:
        row.asked = decision.call.directives.run_limit
    row.last_ms = books.now_ms
    row.changed = True
    return row


def _hold(books: Books, decision: Decision, place: int, met: Sequence[_Met], run: RunRow, lease_ms: int) -> Hold:
    call = decision.call
    caller = call.caller
    plan = decision.ladder[place]
    tail = tail_of(decision.id)
    for line, row, _ in met:
        if not line.twin:
            row.move(reserved=line.held)
    run.move(reserved=plan.cost_max.usd)
    run.calls += 1
    run.latest = tail
    hold = _as_held(decision, plan, met, books.now_ms + lease_ms)
    record = Record(
        caller.run,
        caller.key,
        books.now_ms,
        hold.outcome,
        call.model,
        plan.model,
        plan.provider,
        plan.cost_max,
        tuple([line for line, _, _ in met]),
        caller.dimensions,
        place,
        inputs_of(decision, plan),
    )
    books.new_call(caller.tenant, CallRow(tail, LIVE, hold.lease_until_ms, record, None, None, False))
    books.changes += 1
    return hold


def _as_held(decision: Decision, plan: Plan, met: Sequence[_Met], lease_until_ms: int) -> Hold:
    """The hold is counted already: an advisory account that would have blocked it stands above its limit now."""
    warnings = [
        _balance(line.charge.ceiling, row, limit)
        for line, row, limit in met
        if line.charge.ceiling.basis is Basis.NONE and line.held and _above(line.charge, row, limit)
    ]
    return Hold(decision, plan, _balances(met), lease_until_ms, tuple(warnings))


def _same_again(books: Books, decision: Decision, call: CallRow) -> Hold | Ended:
    if call.state != LIVE:
        return Ended(STATES[call.state])
    record = call.record
    assert record is not None
    caller = decision.call.caller
    assert (record.owner, record.run) == (caller.key, caller.run), "two callers use one decision id"
    plan = decision.ladder[record.plan]
    assert (record.selected_model, record.provider) == (plan.model, plan.provider), "two ladders use one decision id"
    run = books.run(caller.tenant, caller.run)
    assert run is not None
    return _as_held(decision, plan, _meet(books, record.lines, run.limit, run.raised), call.lease_ms)


def _refuse(books: Books, decision: Decision, blocking: tuple[Balance, ...], own_limit: int | None, raised: bool) -> Refusal:
    caller = decision.call.caller
    balances: dict[str, Balance] = {}
    for plan in decision.ladder:
        for balance in _balances(_meet(books, lines_of(plan), own_limit, raised)):
            balances.setdefault(balance.account.key, balance)
    refusal = Refusal(decision, blocking, tuple(balances.values()))
    record = refusal_record(decision, books.now_ms, blocking, refusal.balances, "ceiling_reached")
    books.add_refusal(caller.tenant, caller.run_scope, tail_of(decision.id), record)
    books.changes += 1
    return refusal


def commit(books: Books, tenant: str, hold_id: str, settlement: Settlement) -> Settled | None:
    cost = settlement.cost
    assert min(cost.usd, cost.tokens, cost.calls) >= 0, cost
    call = books.call(tenant, hold_id.removeprefix("rsv_"))
    if call is None:
        return None
    if call.state > EXPIRED:
        return _as_it_stands(books, tenant, call)
    return _end(books, tenant, call, COMMITTED, Closing(cost, settlement.usage, settlement.ending, books.now_ms))


def release(books: Books, tenant: str, hold_id: str, ending: Ending) -> Settled:
    tail = hold_id.removeprefix("rsv_")
    call = books.call(tenant, tail)
    closing = Closing(NOTHING, None, ending, books.now_ms)
    if call is None:
        books.new_call(tenant, CallRow(tail, RELEASED, 0, None, closing, None, False))
        books.changes += 1
        return Settled(HoldState.RELEASED, True, NOTHING)
    if call.state > EXPIRED:
        return _as_it_stands(books, tenant, call)
    return _end(books, tenant, call, RELEASED, closing)


def settle(books: Books, tenant: str, hold_id: str, cost_usd: int | None, who: str, why: str) -> Settled | None:
    call = books.call(tenant, hold_id.removeprefix("rsv_"))
    if call is None:
        return None
    if call.state > EXPIRED:
        return _as_it_stands(books, tenant, call)
    record = call.record
    assert record is not None
    if cost_usd is None:
        settled: Settled | None = release(books, tenant, hold_id, Ending.UNKNOWN)
        books.add_act(tenant, who, "release", hold_id, why)
    else:
        cost = Amounts(cost_usd, record.held.tokens, record.held.calls)
        settled = commit(books, tenant, hold_id, Settlement(cost, Usage(UsageSource.HELD), Ending.UNKNOWN))
        books.add_act(tenant, who, "settle", f"{hold_id} {cost_usd}", why)
    return settled


def expire(books: Books, at_most: int) -> list[Expired]:
    expired = []
    for tenant, call in books.due(at_most):
        record = call.record
        assert record is not None
        closing = Closing(record.held, Usage(UsageSource.HELD), Ending.UNKNOWN, books.now_ms)
        settled = _end(books, tenant, call, EXPIRED, closing)
        expired.append(Expired(f"rsv_{call.tail}", record.run, record.held, settled.alerts))
    return expired


def _as_it_stands(books: Books, tenant: str, call: CallRow) -> Settled:
    assert call.closing is not None
    if call.record is None:
        return Settled(STATES[call.state], False, call.closing.charged)
    run = books.run(tenant, call.record.run)
    assert run is not None
    return Settled(STATES[call.state], False, call.closing.charged, standing(books, call.record, run))


def _end(books: Books, tenant: str, call: CallRow, state: int, closing: Closing) -> Settled:
    """Takes what is held (or was charged provisionally) out of every account, and puts what was charged in its place."""
    record = call.record
    assert record is not None
    run = books.run(tenant, record.run)
    assert run is not None
    live = call.state == LIVE
    provisional = state == EXPIRED
    met = _meet(books, record.lines, run.limit, run.raised)
    alerts: list[Alert] = []
    for each in met:
        line, row, limit = each
        if line.twin:
            continue
        ceiling = line.charge.ceiling
        charged = closing.charged.of(ceiling.account.unit)
        if live:
            row.move(-line.held, charged, charged if provisional else 0)
        else:
            row.move(0, charged - line.held, -line.held)
        if limit is not None and ceiling.alerts and row.committed * _ALL >= limit * ceiling.alerts[0]:
            alerts += _fired(ceiling, row, limit)
    usd = closing.charged.usd
    if live:
        run.move(reserved=-record.held.usd, committed=usd, unconfirmed=usd if provisional else 0)
        charged_anew = closing.charged
    else:
        run.move(committed=usd - record.held.usd, unconfirmed=-record.held.usd)
        charged_anew = minus(closing.charged, record.held)
    if state == RELEASED:
        run.calls -= 1
    books.add_spend(tenant, record, charged_anew.usd, charged_anew.tokens, charged_anew.calls)
    call.state = state
    call.closing = closing
    call.changed = True
    books.changes += 1
    return Settled(STATES[state], True, closing.charged, _balances(met), tuple(alerts))


def _fired(ceiling: Ceiling, row: AccountRow, limit: int) -> list[Alert]:
    """The thresholds that committed has reached and that had not fired before. They have now."""
    if row.committed == 0:
        return []
    reached = row.committed * _ALL
    fired = [each for each in ceiling.alerts if each > row.alerted and reached >= limit * each]
    if fired:
        row.alerted = fired[-1]
    return [Alert(ceiling.account, threshold, limit, row.committed) for threshold in fired]


def extend(books: Books, tenant: str, hold_id: str, lease_ms: int, more: Amounts | None) -> bool:
    call = books.call(tenant, hold_id.removeprefix("rsv_"))
    if call is None or call.state != LIVE:
        return False
    record = call.record
    assert record is not None
    if more is not None:
        assert min(more.usd, more.tokens, more.calls) >= 0, more
        if not _hold_more(books, tenant, call, record, more):
            return False
    call.lease_ms = books.now_ms + lease_ms
    call.changed = True
    books.changes += 1
    return True


def _hold_more(books: Books, tenant: str, call: CallRow, record: Record, more: Amounts) -> bool:
    run = books.run(tenant, record.run)
    assert run is not None
    met = _meet(books, record.lines, run.limit, run.raised)
    amounts = [more.of(line.charge.ceiling.account.unit) for line, _, _ in met]
    if not all(_fits(each, amount) for each, amount in zip(met, amounts, strict=True)):
        return False
    for (line, row, _), amount in zip(met, amounts, strict=True):
        if not line.twin:
            row.move(reserved=amount)
    run.move(reserved=more.usd)
    held = record.held
    call.record = record._replace(
        held=Amounts(held.usd + more.usd, held.tokens + more.tokens, held.calls + more.calls),
        lines=tuple([line._replace(held=line.held + amount) for line, amount in zip(record.lines, amounts, strict=True)]),
    )
    call.packed = None
    return True


def set_limit(books: Books, tenant: str, run_id: str, owner: str, change: SetLimit) -> bool:
    """False: another owns the run."""
    assert change.limit >= 0, change
    run = books.run(tenant, run_id)
    if run is not None and run.owner not in ("", owner) and not change.by_admin:
        return False
    if run is None:
        run = books.new_run(tenant, run_id, owner)
        books.changes += 1
    if change.by_admin:
        limit, raised = change.limit, True
    else:
        if run.owner != owner:
            run.owner, run.changed = owner, True
            books.changes += 1
        limit, raised = change.limit if run.limit is None else min(run.limit, change.limit), run.raised
    if (limit, raised) != (run.limit, run.raised):
        run.limit, run.raised, run.changed = limit, raised, True
        books.add_act(tenant, change.who, "limit", f"{run_id} {limit}", "")
        books.changes += 1
    return True


def stop(books: Books, tenant: str, run_id: str, who: str, why: str) -> bool:
    """False: no such run."""
    run = books.run(tenant, run_id)
    if run is None:
        return False
    if not run.stopped:
        run.stopped = run.changed = True
        books.add_act(tenant, who, "stop", run_id, why)
        books.changes += 1
    return True
