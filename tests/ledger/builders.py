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
    RunTerms,
    Slice,
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
_charges: dict[
    tuple[Charge, ...], tuple[Charge, ...]
] = {}  # equal ones are the same, as the rulebook's are: stores know them by that


def day_of(at_ms: int) -> Window:
    start_ms = at_ms // DAY_MS * DAY_MS
    return Window(WindowKind.DAY, "UTC", start_ms, start_ms + DAY_MS)


def caller(
    run: str = "r1",
    key: str = "k1",
    tenant: str = TENANT,
    *,
    issued: bool = False,
    parent: str | None = None,
    above: Sequence[str] | None = None,
    **dimensions: str,
) -> Caller:
    """`above`: the ancestry that the caller knows of; by default the parent, if it names one."""
    ancestry = tuple(above if above is not None else () if parent is None else (parent,))
    scope, has = "shared" if issued else run, tuple(sorted(dimensions.items()))
    return Caller(tenant, key, run, scope, issued, has, parent=parent, ancestry=ancestry)


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
    pinned_ppm: int = 0,
    pinned_to: str = "",
    pause: bool = False,
    sliced: bool = False,
) -> Charge:
    ceiling = Ceiling(of or account(), limit, *rule, margin, own, alerts, pinned_ppm=pinned_ppm, pinned_to=pinned_to, pause=pause)
    return Charge(ceiling, share_ppm, sliced)


def share_of(whole: Account, part_ppm: int, of: Account) -> Charge:
    """`limit: 50% of NAME`."""
    return charge(of, None, pinned_ppm=part_ppm, pinned_to=whole.key)


def plan(
    *charges: Charge,
    usd: int = 10,
    tokens: int = 5,
    calls: int = 1,
    credits: int = 0,  # noqa: A002 - the unit's name
    risk_points: int = 0,
    model: str = "big",
    first: Amounts | None = None,
) -> Plan:
    """`first`: what it holds at first where a charge is sliced."""
    shared = _charges.setdefault(charges, charges)
    cost = Amounts(usd, tokens, calls, credits, risk_points)
    return Plan(model, "lab", 256, 100, cost, shared, None if first is None else Slice(64, first))


def decision(
    *ladder: Plan,
    of: Caller | None = None,
    run_limit: int | None = None,
    decision_id: str | None = None,
    at_ms: int = START_MS,
    terms: RunTerms = RunTerms(),
    fingerprint: str = "",
    lapses: bool = False,
) -> Decision:
    """Without plans: one of $10 against the account `all` of limit 100 (microcents, all of them)."""
    who = of or caller()
    directives = Directives(run_limit=None if run_limit is None else Microcents(run_limit))
    asked = ladder[0].model if ladder else "big"
    call = Call(who, "chat", asked, False, 1, None, (), directives=directives, fingerprint=fingerprint)
    return Decision(
        *(decision_id or f"bdg_{next(_numbers):06}", call, ladder or (plan(charge()),), at_ms, "prices-1"),
        terms=terms,
        lapses=lapses,
    )


def settlement(
    usd: int = 4,
    tokens: int = 3,
    calls: int = 1,
    ending: Ending = Ending.COMPLETED,
    *,
    credits: int = 0,  # noqa: A002 - the unit's name
    risk_points: int = 0,
) -> Settlement:
    """The usage has more to tell than plain tokens where these are odd."""
    others = (("audio_input", 2), ("web_searches/low", 1)) if tokens % 2 else ()
    cost = Amounts(usd, tokens, calls, credits, risk_points)
    return Settlement(cost, Usage(UsageSource.PROVIDER, tokens, others=others), ending, "why" * (usd % 3))


def own_run_charge(run: str = "r1", limit: int | None = 100, alerts: Sequence[int] = (), *, pause: bool = False) -> Charge:
    return charge(account("run-ceiling", run=run), limit, own=True, alerts=tuple(alerts), pause=pause)
