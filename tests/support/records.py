"""Records of a call as tests need them: `decision()`, `hold()` and `receipt()` with one run budget, everything else defaulted."""

from gateway.core.money import MICROCENTS_PER_USD, Microcents
from gateway.core.scopes import Account, Amounts, Caller, Unit
from gateway.core.values import (
    Balance,
    Basis,
    Call,
    Ceiling,
    Charge,
    Decision,
    Directives,
    Ending,
    Hold,
    Mode,
    Part,
    Plan,
    Receipt,
    Usage,
    UsageSource,
)
from gateway.core.windows import LIFETIME
from tests.support.clock import NOW_MS

USD = MICROCENTS_PER_USD


def run_account(run: str = "r1", budget: str = "run-ceiling", unit: Unit = Unit.USD, tenant: str = "default") -> Account:
    return Account(tenant, budget, (("run", run),), LIFETIME, unit)


def caller(run: str = "r1", key: str = "key_a", **dimensions: str) -> Caller:
    return Caller("default", key, run, run, dimensions=tuple(sorted(dimensions.items())))


def plan(charges: tuple[Charge, ...], usd: int = USD // 10, model: str = "gpt-5-mini", provider: str = "openai") -> Plan:
    return Plan(model, provider, 1024, 900, Amounts(usd, 1924), charges)


def decision(
    id: str = "bdg_1",  # noqa: A002 - the field's name
    who: Caller | None = None,
    usd: int = USD // 10,
    limit: int | None = 5 * USD,
    run_limit: int | None = None,
    model: str = "gpt-5-mini",
    at_ms: int = NOW_MS,
    prompt: str = "hello",
) -> Decision:
    who = who or caller()
    charge = Charge(
        Ceiling(run_account(who.run_scope, tenant=who.tenant), limit, Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED, own=True)
    )
    directives = Directives(run_limit=None if run_limit is None else Microcents(run_limit))
    call = Call(who, "chat", model, False, 1, None, (Part("user", (prompt,)),), directives=directives)
    return Decision(id, call, (plan((charge,), usd, model),), at_ms, "2026-11-01+abc")


def hold(decided: Decision | None = None) -> Hold:
    decided = decided or decision()
    first = decided.ladder[0]
    balances = tuple(
        Balance(charge.ceiling.account, charge.ceiling.limit, 0, first.cost_max.of(charge.ceiling.account.unit))
        for charge in first.charges
    )
    return Hold(decided, first, balances, decided.at_ms + 600_000)


def receipt(
    held: Hold | None = None,
    usage: Usage = Usage(UsageSource.PROVIDER, input_tokens=600, cached_tokens=200, output_tokens=40),
    usd: int = USD // 20,
    ending: Ending = Ending.COMPLETED,
) -> Receipt:
    return Receipt(held or hold(), usage, Amounts(usd, usage.total_tokens), ending)
