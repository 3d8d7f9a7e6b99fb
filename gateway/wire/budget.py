"""The `X-Budget-*` headers: what a caller learns about the decision on every answer (design: section 9)."""

from collections.abc import Sequence
from typing import Final

from gateway.core.ceilings import fits, strictest
from gateway.core.money import format_usd
from gateway.core.scopes import Unit
from gateway.core.values import Balance, Decision, Hold, Mode, Outcome

Pairs = list[tuple[str, str]]

_DECISION: Final = {outcome: ("X-Budget-Decision", outcome.value) for outcome in Outcome}
_MODE: Final = {mode: ("X-Budget-Enforcement-Mode", mode.value) for mode in Mode}


def decision_headers(hold: Hold, balances: Sequence[Balance], clamped: bool) -> Pairs:
    """For a call that was let through. `balances`: after commit where it is known, else with this call's hold counted. `clamped`:
    the forwarded cap is lower than the client's; one that `clamp_to_budget` lowered is seen here."""
    decision, plan, outcome = hold.decision, hold.plan, hold.outcome
    mode = strictest([balance.mode for balance in hold.balances if balance.limit is not None])
    headers = _common(decision, outcome, mode)
    headers.append(("X-Budget-Reservation-Id", hold.id))
    headers += remaining(balances)
    scope = _constraining_scope(hold)
    if scope is not None:
        headers.append(("X-Budget-Blocking-Scope", scope))
    if outcome is Outcome.DOWNGRADE:
        headers.append(("X-Budget-Requested-Model", decision.call.model))
        headers.append(("X-Budget-Selected-Model", plan.model))
    if clamped or _clamped_to_budget(hold):
        headers.append(("X-Budget-Output-Clamped", "true"))
    return headers


def refusal_headers(decision: Decision, blocking: Balance | None, balances: Sequence[Balance]) -> Pairs:
    """For a call that was refused by an account, or (`blocking` None) because its run takes none."""
    if blocking is not None:
        mode = blocking.mode
    else:
        ceilings = [charge.ceiling for charge in decision.ladder[0].charges]
        mode = strictest([ceiling.mode for ceiling in ceilings if ceiling.limit is not None])
    headers = _common(decision, Outcome.BLOCK, mode)
    headers += remaining(balances)
    if blocking is not None:
        headers.append(("X-Budget-Blocking-Scope", blocking.account.scope_name))
    return headers


def undecided_headers(run: str) -> Pairs:
    """For a call that was refused before any account was asked. `run`: "" where it is not known yet."""
    headers = [_DECISION[Outcome.BLOCK]]
    if run:
        headers.append(("X-Run-Id", run))
    return headers


def stream_summary(run: str, cost: int, balances: Sequence[Balance]) -> bytes:
    """A comment of an event stream, which no client reads as an event: what the call cost, and what is left. As an event of its own, so
    that it may stand between any two."""
    left = "".join(f" remaining_usd={usd}" for _, usd in remaining(balances))
    return f": penstock cost_usd={format_usd(cost)}{left} run={run}\n\n".encode()


def _common(decision: Decision, outcome: Outcome, mode: Mode) -> Pairs:
    return [
        _DECISION[outcome],
        ("X-Budget-Decision-Id", decision.id),
        ("X-Budget-Price-Table-Version", decision.price_table_version),
        _MODE[mode],
        ("X-Run-Id", decision.call.caller.run),
    ]


def remaining(balances: Sequence[Balance]) -> Pairs:
    """The tightest account in USD; none where nothing limits USD."""
    left = [
        balance.limit - balance.committed - balance.reserved
        for balance in balances
        if balance.limit is not None and balance.account.unit is Unit.USD
    ]
    return [("X-Budget-Remaining-USD", format_usd(max(0, min(left))))] if left else []


def _constraining_scope(hold: Hold) -> str | None:
    """What stood in the way of the first plan, or of an advisory budget's peace; None where nothing did."""
    first, plan = hold.decision.ladder[0], hold.plan
    if (first.model, first.output_cap) == (plan.model, plan.output_cap):
        return hold.warnings[0].account.scope_name if hold.warnings else None
    balances = {balance.account.key: balance for balance in hold.balances}
    of_its_own = None
    for charge in first.charges:
        account = charge.ceiling.account
        balance = balances.get(account.key)
        if balance is None:  # an account of the first plan's own model: what it holds, the ledger did not tell
            of_its_own = of_its_own or account.scope_name
            continue
        held = next((plan.held_at(each) for each in plan.charges if each.ceiling.account == account), 0)
        if not fits(charge, first.held_at(charge), balance.limit, balance.committed, balance.reserved - held):  # as it was before
            return account.scope_name
    return of_its_own


def _clamped_to_budget(hold: Hold) -> bool:
    plan, ladder = hold.plan, hold.decision.ladder
    return len(ladder) > 1 and any(other.model == plan.model and other.output_cap > plan.output_cap for other in ladder)
