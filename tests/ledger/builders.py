"""Decisions and settlements as the ledger's tests need them: small amounts, few accounts, everything by name."""

import itertools
from collections.abc import Sequence
from typing import Final

from gateway.core.money import Microcents
from gateway.core.scopes import Account, Amounts, Caller, Unit
from gateway.core.values import (
    Basis,
    Call,
    Ceiling,
    Charge,
    Decision,
    Directives,
    Ending,
    Mode,
    Plan,
    Usage,
    UsageSource,
)
from gateway.core.windows import LIFETIME, Window, WindowKind
from gateway.ledger.contract import Settlement

TENANT: Final = "acme"
DAY_MS: Final = 86_400_000
START_MS: Final = 20_000 * DAY_MS + 1_000  # a second past midnight UTC
LEASE_MS: Final = 60_000
HARD: Final = (Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED)
ACTUALS: Final = (Mode.ACTUALS_ONLY, Basis.COMMITTED)
ADVISORY: Final = (Mode.ADVISORY_ESTIMATE, Basis.NONE)

_numbers = itertools.count(1)


def day_of(at_ms: int) -> Window:
    start_ms = at_ms // DAY_MS * DAY_MS
    return Window(WindowKind.DAY, "UTC", start_ms, start_ms + DAY_MS)


def caller(run: str = "r1", key: str = "k1", tenant: str = TENANT, *, issued: bool = False, **dimensions: str) -> Caller:
    return Caller(tenant, key, run, "shared" if issued else run, issued, tuple(sorted(dimensions.items())))


def account(budget: str = "all", unit: Unit = Unit.USD, window: Window = LIFETIME, tenant: str = TENANT, **scope: str) -> Account:
    return Account(tenant, budget, tuple(scope.items()), window, unit)


def charge(
    of: Account | None = None,
    limit: int | None = 100,
    rule: tuple[Mode, Basis] = HARD,
    *,
    margin: int = 0,
    own: bool = False,
    share_ppm: int = 1_000_000,
    alerts: tuple[int, ...] = (),
) -> Charge:
    return Charge(Ceiling(of or account(), limit, *rule, margin, own, alerts), share_ppm)


def plan(*charges: Charge, usd: int = 10, tokens: int = 5, calls: int = 1, model: str = "big") -> Plan:
    return Plan(model, "lab", 256, 100, Amounts(usd, tokens, calls), charges)


def decision(
    *ladder: Plan,
    of: Caller | None = None,
    run_limit: int | None = None,
    decision_id: str | None = None,
    at_ms: int = START_MS,
) -> Decision:
    """Without plans: one of $10 against the account `all` of limit 100 (microcents, all of them)."""
    who = of or caller()
    directives = Directives(run_limit=None if run_limit is None else Microcents(run_limit))
    asked = ladder[0].model if ladder else "big"
    call = Call(who, "chat", asked, False, 1, None, (), directives=directives)
    return Decision(decision_id or f"bdg_{next(_numbers):06}", call, ladder or (plan(charge()),), at_ms, "prices-1")


def settlement(usd: int = 4, tokens: int = 3, calls: int = 1, ending: Ending = Ending.COMPLETED) -> Settlement:
    return Settlement(Amounts(usd, tokens, calls), Usage(UsageSource.PROVIDER, tokens), ending)


def own_run_charge(run: str = "r1", limit: int | None = 100, alerts: Sequence[int] = ()) -> Charge:
    return charge(account("run-ceiling", run=run), limit, own=True, alerts=tuple(alerts))
