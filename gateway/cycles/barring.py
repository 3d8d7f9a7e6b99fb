"""Why a subject gets nothing more, in the protocol's words: the codes are the same in an error and as the reason of a denial. Pure."""

from collections.abc import Mapping, Sequence

from gateway.admitting import barred, over_budget
from gateway.core.grants import Grant, GrantStatus
from gateway.core.record import record
from gateway.core.scopes import Unit
from gateway.core.values import Balance
from gateway.cycles.faults import Fault, of_problem
from gateway.cycles.telling import WORDS, Standing
from gateway.ledger.contract import Barred, Refusal
from gateway.registry import TenantDoc, TenantStatus


@record
class Bar:
    """`scope`: where it is, "" where it is no budget's."""

    code: str
    message: str
    scope: str = ""
    remaining: int | None = None

    def fault(self, unit: str, requested: int) -> Fault:
        details: dict[str, object] = {"requested": {"unit": unit, "amount": requested}}
        if self.scope:
            details["scope"] = self.scope
        if self.remaining is not None:
            details["remaining"] = {"unit": unit, "amount": self.remaining}
        return Fault(self.code, self.message, details)


def of_tenant(tenant: TenantDoc | None) -> Bar | None:
    """A tenant without a record is not guarded: there is no status to observe."""
    if tenant is None or tenant.status == TenantStatus.ACTIVE.value:
        return None
    if tenant.status == TenantStatus.CLOSED.value:
        return Bar("TENANT_CLOSED", f"the tenant {tenant.id} is closed")
    return Bar(
        "FORBIDDEN", f"the tenant {tenant.id} is suspended: nothing new may start; what is reserved may be committed or released"
    )


def of_status(grants: Sequence[Grant]) -> Bar | None:
    """The widest scope that is frozen or closed, whatever its unit."""
    for grant in widest_first(grants):
        if grant.status is GrantStatus.FROZEN:
            return Bar("BUDGET_FROZEN", f"the budget of the scope {grant.text} is frozen", grant.text)
        if grant.status is GrantStatus.CLOSED:
            return Bar("BUDGET_CLOSED", f"the budget of the scope {grant.text} is closed", grant.text)
    return None


def of_balances(
    grants: Sequence[Grant], balances: Mapping[str, Balance], unit: Unit, amount: int, *, spent: bool = False
) -> Bar | None:
    """By the balances as they were read, under the limits that count: over the limit, in debt, too little left; the widest scope first.
    `spent`: it has been spent already, so only what is left counts."""
    for grant in widest_first(grants):
        balance = balances.get(grant.account.key)
        if grant.unit is not unit or balance is None:
            continue
        there = Standing(grant, balance.limit or 0, balance.committed, balance.reserved)
        if there.over_limit and not spent:
            over = f"the scope {grant.text} is over its limit: it takes nothing until an operator funds it"
            return Bar("OVERDRAFT_LIMIT_EXCEEDED", over, grant.text, there.remaining)
        if there.debt and not spent:
            return Bar("DEBT_OUTSTANDING", f"the scope {grant.text} has a debt, to be repaid first", grant.text, there.remaining)
        if there.remaining < amount:
            left = f"{there.remaining:,} of {there.limit:,} {WORDS[unit]} are left, {amount:,} were asked for"
            return Bar("BUDGET_EXCEEDED", f"too little is left in the scope {grant.text}: {left}", grant.text, there.remaining)
    return None


def widest_first(grants: Sequence[Grant]) -> list[Grant]:
    return sorted(grants, key=lambda grant: len(grant.scope))


def refusal_fault(refusal: Refusal, grants: Sequence[Grant], unit: Unit, amount: int, *, spent: bool = False) -> Fault:
    """A grant's, or a budget's of the policy."""
    balances = {balance.account.key: balance for balance in refusal.balances}
    bar = of_balances(grants, balances, unit, amount, spent=spent)
    if bar is not None:
        return bar.fault(WORDS[unit], amount)
    blocking = refusal.blocking[0]
    told = of_problem(over_budget(refusal).problem)
    bar = Bar("BUDGET_EXCEEDED", told.message, f"{blocking.account.name}/{blocking.account.scope_name}", blocking.remaining)
    return bar.fault(WORDS.get(blocking.account.unit, WORDS[unit]), amount)


def barred_fault(answer: Barred) -> Fault:
    return of_problem(barred(answer).problem)


def no_budget(scope_path: str, unit: str, units: frozenset[str]) -> Fault:
    """No budget applies in the unit: there are some in others, or none."""
    if units:
        return Fault(
            "UNIT_MISMATCH",
            f"no budget of the scope {scope_path} is in {unit}: there are some in {', '.join(sorted(units))}",
            {"scope": scope_path, "requested_unit": unit, "expected_units": sorted(units)},
        )
    return Fault("NOT_FOUND", f"Budget not found for provided scope: {scope_path}", {"scope": scope_path})
