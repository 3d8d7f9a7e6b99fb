"""The steps of a call's path, each a function of the books. Pure but for the books: no clock, no I/O of its own.

Always true after every step:

    account.reserved     = the sum of what live holds hold there: their worst case, or their slice
    account.committed    = the sum of what receipts and debits charged there, provisional charges included, + carried + adjusted
    account.unconfirmed  = the provisional part of it
    a run's amounts      = the same over its own calls, in USD
    spend                = the sum of what receipts charged, per group
    nothing is below zero; in hard_gate, reserved + committed <= ceiling at every reserve
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import sub
from typing import Final, NamedTuple

from gateway.core.scopes import Amounts, Caller
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Ending, Hold, Plan, Usage, UsageSource
from gateway.ledger.contract import (
    Alert,
    Barred,
    Barrier,
    Debiting,
    Ended,
    Expired,
    HoldState,
    Refusal,
    Reserved,
    Settled,
    Settlement,
    Stale,
)
from gateway.ledger.layout import Layout, held_in, layout_of, places, sliced_in
from gateway.ledger.packed import (
    NOTHING,
    Closing,
    Record,
    ancestry_in,
    inputs_of,
    refusal_record,
)
from gateway.ledger.sqlite.books import Books, Met, Own, Standing, minus
from gateway.ledger.sqlite.cards import AccountRow, CallRow, RunRow
from gateway.ledger.sqlite.tree import barrier_above, is_paused, place_of, take_place, use_ancestors
from gateway.ledger.states import ACTIVE, COMMITTED, EXPIRED, LIVE, PAUSED, RELEASED, STATES

_ALL: Final = 1_000_000
# Why a refusal is in the ring: the codes that callers see. The other barriers leave nothing there.
_WHY: Final = {
    Barrier.STOPPED: "run_stopped",
    Barrier.PAUSED: "run_paused",
    Barrier.FROZEN: "scope_frozen",
    Barrier.LOOP: "loop_detected",
}


class _Judged(NamedTuple):
    """What a decision meets. `fits`: the place in the ladder of the first plan that fits; None: none does."""

    run: RunRow | None
    ancestry: tuple[str, ...] | None  # where its place is to be fixed
    own: Own
    fits: int | None
    there: Standing | None  # of the plan that fits
    pins: Sequence[tuple[AccountRow, int]]  # limits that its hold stores
    blocking: Sequence[tuple[Charge, Balance]]  # of each plan that does not fit


def tail_of(decision_id: str) -> str:
    """What a decision's id and its hold's id share."""
    return decision_id.removeprefix("bdg_")


def reserve(books: Books, decision: Decision, lease_ms: int) -> Reserved:
    tenant, tail = decision.call.caller.tenant, tail_of(decision.id)
    call = books.call_unless_new(tenant, tail)
    if call is not None:
        return _same_again(books, decision, call)
    judged = _judge(books, decision, Debiting.ASK)
    if isinstance(judged, _Judged) and judged.fits is not None:
        return _hold(books, decision, judged, lease_ms)[0]
    call = books.call(tenant, tail)
    if call is not None:
        return _same_again(books, decision, call)
    return _refuse(books, decision, judged) if isinstance(judged, _Judged) else _kept(books, decision, judged)


def debit(books: Books, decision: Decision, settlement: Settlement, how: Debiting) -> Settled | Refusal | Barred | Stale:
    assert len(decision.ladder) == 1, decision
    assert not decision.lapses, decision
    tenant, tail = decision.call.caller.tenant, tail_of(decision.id)
    call = books.call_unless_new(tenant, tail)
    if call is not None:
        return _as_it_stands(books, call)
    judged = _judge(books, decision, how)
    if isinstance(judged, _Judged) and judged.fits is not None:
        _, call = _hold(books, decision, judged, 0)
        return _end(books, call, COMMITTED, _closing(books, settlement))
    call = books.call(tenant, tail)
    if call is not None:
        return _as_it_stands(books, call)
    return _refuse(books, decision, judged) if isinstance(judged, _Judged) else _kept(books, decision, judged)


# -- what a decision meets ----------------------------------------------------------------------------------------------------


def _judge(books: Books, decision: Decision, how: Debiting) -> _Judged | Barred | Stale:
    """In the contract's order. Changes nothing. Whoever answers with anything but a hold makes sure that the id is new."""
    caller = decision.call.caller
    run = books.run(caller.tenant, caller.run)
    asked = decision.call.directives.run_limit
    mine = run is None or run.owner == caller.owner or not run.owner
    asks = how is Debiting.ASK
    place: tuple[str, ...] | None
    layouts = [layout_of(plan.charges) for plan in decision.ladder]
    if how is Debiting.REPLAY:
        found = place_of(books, caller, run) if mine else Barrier.FOREIGN_PARENT
        place = None if isinstance(found, Barrier) else found
        if not mine:
            asked = None
    else:
        if not mine:
            assert run is not None
            return Stale(books.now_ms, run.owner)
        found = place_of(books, caller, run)
        if isinstance(found, Barrier):
            return Barred(decision, found, caller.parent or "", _owner_of_foreign(books, caller, found))
        if found != caller.ancestry:
            return Stale(books.now_ms, caller.owner, found)
        for layout in layouts:
            if not layout.from_ms <= books.now_ms < layout.until_ms:
                return Stale(books.now_ms, caller.owner, found)
        if asks:
            barred = _barrier(books, decision, run, found)
            if barred is not None:
                return barred
        place = found
    own = (_tightened(run, asked), 0 if run is None else run.raised, caller.ancestry)
    blocking = []
    for number, plan in enumerate(decision.ladder):
        layout = layouts[number]
        there, pins = _meet_anew(books, layout, own) if layout.pinned else (_meet(books, layout, own), ())
        blocked_by = _first_blocking(there, places(plan.held, _slices(plan))) if asks else None
        if blocked_by is None:
            return _Judged(run, place, own, number, there, pins, ())
        blocking.append(blocked_by)
    return _Judged(run, place, own, None, None, (), blocking)


def _barrier(books: Books, decision: Decision, run: RunRow | None, ancestry: tuple[str, ...]) -> Barred | None:
    caller = decision.call.caller
    above = barrier_above(books, caller, run, ancestry)
    if above is not None:
        return Barred(decision, *above)
    for frozen in books.rules(caller.tenant).frozen:
        if frozen.takes(caller):
            return Barred(decision, Barrier.FROZEN, frozen.text)
    terms = decision.terms
    most = None if caller.run_issued or _is_active(run, books.now_ms - terms.idle_ms) else terms.max_active
    if most is not None and books.has_active_runs(caller.tenant, caller.owner, terms.idle_ms, most):
        return Barred(decision, Barrier.TOO_MANY_RUNS, str(most))
    fingerprint = decision.call.fingerprint
    if terms.same_request and fingerprint and run is not None and run.recent and terms.within_calls > 1:
        same = sum(each == fingerprint for _, each in run.recent[1 - terms.within_calls :])
        if same >= terms.same_request:
            return Barred(decision, Barrier.LOOP, str(same))
    return None


def _owner_of_foreign(books: Books, caller: Caller, barrier: Barrier) -> str:
    parent = books.run(caller.tenant, caller.parent) if barrier is Barrier.FOREIGN_PARENT and caller.parent else None
    return "" if parent is None else parent.owner


def _is_active(run: RunRow | None, since_ms: int) -> bool:
    return run is not None and run.last_ms > since_ms and not run.quiet


def _tightened(run: RunRow | None, asked: int | None) -> int | None:
    """The run's own limit after X-Run-Limit. A header that says what it said before is no new word: it does not undo what
    an admin has raised since."""
    limit = None if run is None else run.limit
    if asked is None or (run is not None and run.asked == asked):
        return limit
    return asked if limit is None else min(limit, asked)


def _limit(books: Books, ceiling: Ceiling, limit: int | None, own: Own) -> int | None:
    """The effective one, where `limit` is the account's."""
    if not ceiling.own:
        return limit
    run_limit, raised, ancestry = own
    if ancestry:
        whose = ceiling.own_run
        if whose in ancestry:
            run = books.run(ceiling.account.tenant, whose)
            if run is None:
                return limit
            run_limit, raised = run.limit, run.raised
    if run_limit is None:
        return limit
    if raised or limit is None:
        return run_limit
    return min(run_limit, limit)


def _meet(books: Books, layout: Layout, own: Own) -> Standing:
    known = books.standings.get(layout)
    if known is None or (layout.own and (known.own != own or own[2])):
        met = []
        for spot in layout.spots:
            row, ceiling = books.account(spot.account, spot.where), spot.ceiling
            met.append((spot, row, _limit(books, ceiling, ceiling.limit if row.limit is None else row.limit, own)))
        known = books.standings[layout] = Standing(own, met)
    elif layout.rolling:
        for _, row, _ in known.met:
            row.roll(books.now_ms)
    return known


def _meet_anew(books: Books, layout: Layout, own: Own) -> tuple[Standing, Sequence[tuple[AccountRow, int]]]:
    """As `_meet`; shares that are not pinned yet stand at what their pin would be."""
    there = _meet(books, layout, own)
    if not layout.pinned:
        return there, ()
    met = list(there.met)
    pins = []
    for number, (spot, row, _) in enumerate(met):
        if spot.ceiling.pinned_ppm and row.limit is None:
            pin = _pin(books, met, spot.ceiling, own)
            if pin is not None:
                pins.append((row, pin))
                met[number] = (spot, row, _limit(books, spot.ceiling, pin, own))
    return Standing(own, met), pins


def _slices(plan: Plan) -> Amounts | None:
    return None if plan.slice is None else plan.slice.cost


def _pin(books: Books, met: Sequence[Met], ceiling: Ceiling, own: Own) -> int | None:
    """The part of what is left in the other account. That may be a share itself, which the policy keeps from being one of this."""
    for spot, row, limit in met:
        other = spot.ceiling
        if other.account.key == ceiling.pinned_to:
            is_open = other.pinned_ppm and row.limit is None
            whole = _limit(books, other, _pin(books, met, other, own), own) if is_open else limit
            return None if whole is None else max(0, whole - row.committed - row.reserved) * ceiling.pinned_ppm // _ALL
    return None


def _above(charge: Charge, row: AccountRow, limit: int | None) -> bool:
    """Whether what stands there is above what the rule allows."""
    if limit is None:
        return False
    return row.reserved + row.committed > limit * charge.share_ppm // _ALL + charge.ceiling.margin


def _fits(met: Met, amount: int, over: int = 0) -> bool:
    """The rule of core.values.Ceiling. `over`: by how much it may be passed."""
    spot, row, limit = met
    ceiling = spot.ceiling
    basis = ceiling.basis
    if limit is None or amount == 0 or basis is Basis.NONE:
        return True
    share = spot.charge.share_ppm
    allowed = (limit if share == _ALL else limit * share // _ALL) + ceiling.margin + over
    if basis is Basis.COMMITTED:
        return row.committed < allowed
    return row.reserved + row.committed + amount <= allowed


def _first_blocking(there: Standing, amounts: tuple[int, ...]) -> tuple[Charge, Balance] | None:
    """`amounts`: as `Spot.unit` counts."""
    for row, unit, limit in there.limited:
        if row.reserved + row.committed + amounts[unit] > limit:
            break
    else:
        return None  # most calls
    for each in there.met:
        spot, row, own_limit = each
        if not _fits(each, amounts[spot.unit]):
            return spot.charge, _balance_aging(spot.ceiling, row, own_limit)
    return None


def _balance(ceiling: Ceiling, row: AccountRow, limit: int | None) -> Balance:
    return Balance(ceiling.account, limit, row.committed, row.reserved, row.unconfirmed, ceiling.mode)


def _balance_aging(ceiling: Ceiling, row: AccountRow, limit: int | None) -> Balance:
    """As a refusal tells it."""
    return Balance(ceiling.account, limit, row.committed, row.reserved, row.unconfirmed, ceiling.mode, row.aging())


def _balances(there: Standing) -> tuple[Balance, ...]:
    return tuple(
        [Balance(account, limit, row.committed, row.reserved, row.unconfirmed, mode) for row, account, limit, mode in there.shown]
    )


def standing(books: Books, record: Record, run: RunRow | None) -> tuple[Balance, ...]:
    """The accounts of a hold as they stand now, under the limits it was made with."""
    return _balances(_meet(books, layout_of(record.charges), _own_of(record, run)))


def _own_of(record: Record, run: RunRow | None) -> Own:
    limit, raised = (None, 0) if run is None else (run.limit, run.raised)
    return limit, raised, ancestry_in(record)


# -- what becomes of it -------------------------------------------------------------------------------------------------------


def _claim(books: Books, decision: Decision, judged: _Judged) -> RunRow:
    """The run exists from here on, is the caller's, has its place, and has the limit that the call asked for."""
    caller = decision.call.caller
    row = judged.run
    if row is None:
        row = books.new_run(caller.tenant, caller.run, caller.owner)
    if row.owner != caller.owner and not row.owner:
        row.owner = caller.owner
        row.change()
    if judged.ancestry is not None and not row.placed:
        take_place(books, caller, row, judged.ancestry)
    asked = decision.call.directives.run_limit
    if asked is not None and row.owner == caller.owner and asked != row.asked:
        row.limit, row.asked = judged.own[0], asked
        row.change()
    if row.issued != caller.run_issued:
        row.issued = int(caller.run_issued)
        row.change()
    if row.state == PAUSED and not is_paused(books, caller.tenant, row):
        row.state, row.paused_no = ACTIVE, None
        row.change()
    row.use(books.now_ms)
    if row.ancestry:
        use_ancestors(books, caller.tenant, row.ancestry)
    return row


def _hold(books: Books, decision: Decision, judged: _Judged, lease_ms: int) -> tuple[Hold, CallRow]:
    run = _claim(books, decision, judged)
    _, _, _, fits, there, pins, _ = judged
    assert fits is not None
    assert there is not None
    call = decision.call
    caller = call.caller
    plan = decision.ladder[fits]
    where = (caller.tenant, tail_of(decision.id))
    most, slices = plan.held, _slices(plan)
    amounts = places(most, slices)
    for row, unit, _, _, _ in there.counted:
        row.hold(amounts[unit])
    for row, pin in pins:
        if row.limit is None:  # two charges may pin it: the first does
            books.limit_account(row, pin)
    run.hold(most.usd)
    run.calls += 1
    run.latest = where[1]
    terms = decision.terms
    if terms.same_request:
        run.recent = [*(run.recent or ()), (where[1], call.fingerprint)][-terms.within_calls :]
        run.change()
    hold = _as_held(decision, plan, there, amounts, books.now_ms + lease_ms)
    record = Record(
        caller.run,
        caller.key,
        books.now_ms,
        hold.outcome,
        call.model,
        plan.model,
        plan.provider,
        most,
        plan.charges,
        caller.dimensions,
        fits,
        inputs_of(decision, plan),
        slices,
        decision.lapses,
    )
    held = CallRow(where, LIVE, hold.lease_until_ms, record, None, None)
    books.new_call(held)
    books.changes += 1
    return hold, held


def _as_held(decision: Decision, plan: Plan, there: Standing, amounts: tuple[int, ...], lease_until_ms: int) -> Hold:
    """The hold is counted already: an advisory account that would have blocked it stands above its limit now."""
    if not layout_of(plan.charges).advisory:
        return Hold(decision, plan, _balances(there), lease_until_ms)
    warnings = [
        _balance(spot.ceiling, row, limit)
        for spot, row, limit in there.met
        if spot.ceiling.basis is Basis.NONE and amounts[spot.unit] and _above(spot.charge, row, limit)
    ]
    return Hold(decision, plan, _balances(there), lease_until_ms, tuple(warnings))


def _same_again(books: Books, decision: Decision, call: CallRow) -> Hold | Ended:
    if call.state != LIVE:
        return Ended(STATES[call.state])
    record = call.record
    assert record is not None
    caller = decision.call.caller
    if record.inputs.get("fingerprint", "") != decision.call.fingerprint:
        return Ended(HoldState.LIVE)
    assert (record.owner, record.run) == (caller.key, caller.run), "two callers use one decision id"
    plan = decision.ladder[record.plan]
    assert (record.selected_model, record.provider) == (plan.model, plan.provider), "two ladders use one decision id"
    run = books.run(caller.tenant, caller.run)
    there = _meet(books, layout_of(record.charges), _own_of(record, run))
    return replace(_as_held(decision, plan, there, places(record.held, record.slices), call.due_ms), again=True)


def _refuse(books: Books, decision: Decision, judged: _Judged) -> Refusal:
    caller = decision.call.caller
    balances: dict[str, Balance] = {}
    for plan in decision.ladder:
        for spot, row, limit in _meet_anew(books, layout_of(plan.charges), judged.own)[0].met:
            if spot.account.key not in balances:
                balances[spot.account.key] = _balance_aging(spot.ceiling, row, limit)
    paused = False
    if not caller.run_issued:  # nobody comes back to an issued run, and it has nothing to show
        run = _claim(books, decision, judged)
        paused = any(charge.ceiling.pause for charge, _ in judged.blocking)
        if paused:
            run.state, run.paused_no, run.paused_by = PAUSED, books.rules(caller.tenant).raises, ""
            run.change()
    blocking = tuple([balance for _, balance in judged.blocking])
    refusal = Refusal(decision, blocking, tuple(balances.values()), books.now_ms, paused)
    record = refusal_record(decision, books.now_ms, blocking, refusal.balances, "ceiling_reached")
    books.add_refusal(caller.tenant, caller.run_scope, tail_of(decision.id), record)
    return refusal


def _kept(books: Books, decision: Decision, answer: Barred | Stale) -> Barred | Stale:
    """Leaves its trace where the contract says so."""
    caller = decision.call.caller
    if isinstance(answer, Barred) and answer.barrier in _WHY and books.run(caller.tenant, caller.run) is not None:
        record = refusal_record(decision, books.now_ms, (), (), _WHY[answer.barrier])
        books.add_refusal(caller.tenant, caller.run_scope, tail_of(decision.id), record)
    return answer


# -- how it ends --------------------------------------------------------------------------------------------------------------


def commit(books: Books, tenant: str, hold_id: str, settlement: Settlement) -> Settled | None:
    closing = _closing(books, settlement)
    call = books.call(tenant, hold_id.removeprefix("rsv_"))
    if call is None:
        return None
    if call.state > EXPIRED:
        return _as_it_stands(books, call)
    return _end(books, call, COMMITTED, closing)


def _closing(books: Books, settlement: Settlement) -> Closing:
    cost = settlement.cost
    assert cost.usd >= 0 <= cost.tokens and cost.calls >= 0 <= cost.credits and cost.risk_points >= 0, cost  # noqa: PT018
    return Closing(cost, settlement.usage, settlement.ending, books.now_ms, settlement.note)


def release(books: Books, tenant: str, hold_id: str, ending: Ending, note: str) -> Settled:
    tail = hold_id.removeprefix("rsv_")
    call = books.call(tenant, tail)
    closing = Closing(NOTHING, None, ending, books.now_ms, note)
    if call is None:
        books.new_call(CallRow((tenant, tail), RELEASED, books.now_ms, None, closing, None))
        books.changes += 1
        return Settled(HoldState.RELEASED, True, NOTHING)
    if call.state > EXPIRED:
        return _as_it_stands(books, call)
    return _end(books, call, RELEASED, closing)


def expire(books: Books, at_most: int) -> list[Expired]:
    expired = []
    for call in books.due(at_most):
        record = call.record
        assert record is not None
        charged = NOTHING if record.lapses else record.held
        closing = Closing(charged, Usage(UsageSource.HELD), Ending.UNKNOWN, books.now_ms)
        settled = _end(books, call, EXPIRED, closing)
        expired.append(Expired(f"rsv_{call.tail}", record.run, charged, settled.alerts, record.lapses))
    return expired


def _as_it_stands(books: Books, call: CallRow) -> Settled:
    charged = NOTHING if call.closing is None else call.closing.charged
    if call.record is None:
        return Settled(STATES[call.state], False, charged)
    run = books.run(call.where[0], call.record.run)  # None: forgotten, before the record of this call
    return Settled(STATES[call.state], False, charged, standing(books, call.record, run))


def _end(books: Books, call: CallRow, state: int, closing: Closing) -> Settled:
    """Takes what is held (or was charged provisionally) out of every account, and puts what was charged in its place."""
    record = call.record
    assert record is not None
    tenant = call.where[0]
    run = books.run(tenant, record.run)
    assert run is not None
    live = call.state == LIVE
    provisional = state == EXPIRED
    there = _meet(books, layout_of(record.charges), _own_of(record, run))
    before = places(record.held, record.slices) if live else record.provisional
    charges = record.provisional if provisional else places(closing.charged, None)
    charged_ms = 0 if call.closing is None else call.closing.at_ms
    alerts: list[Alert] = []
    for row, unit, ceiling, limit, alerts_from in there.counted:
        if live:
            row.settle(before[unit], charges[unit], provisional)
        else:
            row.correct(before[unit], charges[unit], charged_ms)
        if row.committed >= alerts_from and limit is not None:
            alerts += _fired(ceiling, row, limit)
    usd = closing.charged.usd
    if live:
        run.settle(record.held.usd, usd, provisional)
        charged_anew = closing.charged
    else:
        assert call.closing is not None
        run.correct(call.closing.charged.usd, usd, charged_ms)
        charged_anew = minus(closing.charged, call.closing.charged)
    if state == RELEASED:
        run.calls -= 1
        if run.recent:
            run.recent = [each for each in run.recent if each[0] != call.tail]
            run.change()
    books.add_spend(tenant, record, charged_anew)
    call.state = state
    call.due_ms = closing.at_ms
    call.closing = closing
    books.change_call(call)
    books.changes += 1
    return Settled(STATES[state], True, closing.charged, _balances(there), tuple(alerts))


def _fired(ceiling: Ceiling, row: AccountRow, limit: int) -> list[Alert]:
    """The thresholds that committed has reached and that had not fired before. They have now."""
    if row.committed == 0:
        return []
    reached = row.committed * _ALL
    fired = [each for each in ceiling.alerts if each > row.alerted and reached >= limit * each]
    if fired:
        row.alerted = fired[-1]
        row.change()
    return [Alert(ceiling.account, threshold, limit, row.committed) for threshold in fired]


def extend(
    books: Books,
    tenant: str,
    hold_id: str,
    lease_ms: int | None,
    held: Amounts | None,
    slices: Amounts | None,
    over: Mapping[str, int],
) -> bool:
    call = books.call(tenant, hold_id.removeprefix("rsv_"))
    if call is None or call.state != LIVE:
        return False
    record = call.record
    assert record is not None
    if held is not None and not _hold_up_to(books, tenant, call, record, held, slices, over):
        return False
    if lease_ms is not None:
        call.due_ms = books.now_ms + lease_ms
    books.change_call(call)
    books.changes += 1
    return True


def _hold_up_to(
    books: Books,
    tenant: str,
    call: CallRow,
    record: Record,
    held: Amounts,
    slices: Amounts | None,
    over: Mapping[str, int],
) -> bool:
    run = books.run(tenant, record.run)
    assert run is not None
    there = _meet(books, layout_of(record.charges), _own_of(record, run))
    now = places(record.held, record.slices)
    grown = tuple(map(max, now, places(held, None if record.slices is None else slices)))
    more = tuple(map(sub, grown, now))
    if not all(_fits(each, more[each[0].unit], over.get(each[0].account.key, 0)) for each in there.met):
        return False
    for row, unit, _, _, _ in there.counted:
        row.hold(more[unit])
    run.hold(more[0])
    call.record = record._replace(held=held_in(grown), slices=None if record.slices is None else sliced_in(grown))
    call.packed = None
    return True
