"""Asks a ledger, and insists on the kind of answer."""

from gateway.core.scopes import Account
from gateway.core.values import Balance, Decision, Hold
from gateway.ledger.contract import AccountView, Barred, Barrier, Debiting, Ledger, Refusal, RunView, Settled, Settlement
from tests.ledger.builders import LEASE_MS, TENANT, caller, decision, own_run_charge, plan, settlement


def of_run(usd: int = 10, limit: int | None = 100, run: str = "r1", key: str = "k1", run_limit: int | None = None) -> Decision:
    return decision(plan(own_run_charge(run, limit), usd=usd), of=caller(run, key), run_limit=run_limit)


async def hold(ledger: Ledger, decided: Decision) -> Hold:
    answer = await ledger.reserve(decided, LEASE_MS)
    assert isinstance(answer, Hold), answer
    return answer


async def refuse(ledger: Ledger, decided: Decision) -> Refusal:
    answer = await ledger.reserve(decided, LEASE_MS)
    assert isinstance(answer, Refusal), answer
    return answer


async def bar(ledger: Ledger, decided: Decision) -> tuple[Barrier, str]:
    answer = await ledger.reserve(decided, LEASE_MS)
    assert isinstance(answer, Barred), answer
    assert answer.decision is decided
    return answer.barrier, answer.what


async def settle(ledger: Ledger, held: Hold, usd: int, tokens: int = 3) -> Settled:
    settled = await ledger.commit(held.decision.call.caller.tenant, held.id, settlement(usd, tokens))
    assert settled is not None
    return settled


async def spend(ledger: Ledger, decided: Decision, usd: int) -> Settled:
    return await settle(ledger, await hold(ledger, decided), usd)


async def debit(ledger: Ledger, decided: Decision, what: Settlement, how: Debiting = Debiting.ASK) -> Settled:
    answer = await ledger.debit(decided, what, how)
    assert isinstance(answer, Settled), answer
    return answer


async def view(ledger: Ledger, run: str = "r1") -> RunView:
    found = await ledger.run(TENANT, run)
    assert found is not None
    return found


async def look(ledger: Ledger, at: Account) -> AccountView:
    found = await ledger.account(TENANT, at.key)
    assert found is not None
    return found


async def balance(ledger: Ledger, of: Account) -> Balance:
    (found,) = await ledger.balances(TENANT, [of])
    return found
