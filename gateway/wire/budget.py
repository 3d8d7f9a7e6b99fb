"""The `X-Budget-*` headers: what a caller learns about the decision on every answer (design: section 9)."""

from collections.abc import Sequence

from gateway.core.decide import enforcement_mode
from gateway.core.money import format_usd
from gateway.core.scopes import Unit
from gateway.core.values import Balance, Decision, Hold, Outcome

Pairs = list[tuple[str, str]]


def decision_headers(hold: Hold, balances: Sequence[Balance], clamped: bool) -> Pairs:
    """For a call that was let through. `balances`: after commit where it is known, else with this call's hold counted."""
    decision, plan, outcome = hold.decision, hold.plan, hold.outcome
    headers = _common(decision, outcome, enforcement_mode(plan).value)
    headers.append(("X-Budget-Reservation-Id", hold.id))
    headers += _remaining(balances)
    if hold.warnings:
        headers.append(("X-Budget-Blocking-Scope", hold.warnings[0].account.scope_name))
    if outcome is Outcome.DOWNGRADE:
        headers.append(("X-Budget-Requested-Model", decision.call.model))
        headers.append(("X-Budget-Selected-Model", plan.model))
    if clamped:
        headers.append(("X-Budget-Output-Clamped", "true"))
    return headers


def refusal_headers(decision: Decision, blocking: Balance | None, balances: Sequence[Balance]) -> Pairs:
    """For a call that was refused by an account, or (`blocking` None) because its run takes none."""
    mode = blocking.mode if blocking is not None else enforcement_mode(decision.ladder[0])
    headers = _common(decision, Outcome.BLOCK, mode.value)
    headers += _remaining(balances)
    if blocking is not None:
        headers.append(("X-Budget-Blocking-Scope", blocking.account.scope_name))
    return headers


def _common(decision: Decision, outcome: Outcome, mode: str) -> Pairs:
    return [
        ("X-Budget-Decision", outcome.value),
        ("X-Budget-Decision-Id", decision.id),
        ("X-Budget-Price-Table-Version", decision.price_table_version),
        ("X-Budget-Enforcement-Mode", mode),
        ("X-Run-Id", decision.call.caller.run),
    ]


def _remaining(balances: Sequence[Balance]) -> Pairs:
    """The tightest account in USD; none where nothing limits USD."""
    left = [balance.remaining for balance in balances if balance.account.unit is Unit.USD]
    known = [amount for amount in left if amount is not None]
    return [("X-Budget-Remaining-USD", format_usd(min(known)))] if known else []
