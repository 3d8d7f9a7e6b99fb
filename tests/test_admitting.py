"""Decide, ask, decide again on the ledger's facts; and each refusal says what keeps the call out, and the way on."""

from dataclasses import replace

import pytest

from gateway.admitting import admit, barred, over_budget
from gateway.core.decide import Unservable
from gateway.core.scopes import Account, Unit
from gateway.core.values import Balance, Call, Decision
from gateway.core.windows import rolling
from gateway.ledger.contract import Barred, Barrier, Refusal, Stale
from gateway.wire.problem import Refused
from tests.support.clock import NOW_MS
from tests.support.records import USD, decision, run_account
from tests.support.rulebooks import call

CALL = call()
MINUTE = 60_000


class Asked:
    """A ledger that answers as told, and what it was asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.decisions: list[tuple[tuple[str, ...], int]] = []  # (ancestry, instant)
        self.owners: list[str] = []

    def decide(self, asked: Call, at_ms: int) -> Decision:
        self.decisions.append((asked.caller.ancestry, at_ms))
        self.owners.append(asked.caller.owner)
        return decision(who=asked.caller, at_ms=at_ms)

    async def ask(self, decided: Decision) -> object:
        return self.answers.pop(0)


async def test_what_the_ledger_knows_better_is_decided_again() -> None:
    ledger = Asked(Stale(NOW_MS + 5, "key_a", ("p",)), "held")
    assert await admit(CALL, NOW_MS, ledger.decide, ledger.ask) == "held"
    assert ledger.decisions == [((), NOW_MS), (("p",), NOW_MS + 5)]


async def test_it_is_decided_four_times_at_most() -> None:
    ledger = Asked(*[Stale(NOW_MS + each, "key_a") for each in range(5)])
    with pytest.raises(Refused) as refused:
        await admit(CALL, NOW_MS, ledger.decide, ledger.ask)
    assert refused.value.problem.code == "ledger_unavailable"
    assert len(ledger.decisions) == 4


async def test_a_run_that_belongs_to_another_is_not_asked_for_again() -> None:
    ledger = Asked(Stale(NOW_MS, "key_b"), "held")
    with pytest.raises(Refused) as refused:
        await admit(CALL, NOW_MS, ledger.decide, ledger.ask)
    assert (refused.value.problem.status, refused.value.problem.code) == (403, "run_owned_by_another")


SHARING = replace(CALL, caller=replace(CALL.caller, shares=True))


async def test_a_run_that_a_tenants_keys_share_is_asked_for_in_its_owners_name() -> None:
    ledger = Asked(Stale(NOW_MS, "key_b"), Stale(NOW_MS, "key_b", ("p",)), "held")
    assert await admit(SHARING, NOW_MS, ledger.decide, ledger.ask) == "held"
    assert ledger.owners == ["key_a", "key_b", "key_b"]
    assert [ancestry for ancestry, _ in ledger.decisions] == [(), (), ("p",)]


async def test_whoever_came_in_anothers_name_to_its_own_run_comes_in_its_own() -> None:
    mistaken = replace(CALL, caller=replace(CALL.caller, owned_by="key_b"))
    ledger = Asked(Stale(NOW_MS, "key_a"), "held")
    assert await admit(mistaken, NOW_MS, ledger.decide, ledger.ask) == "held"
    assert ledger.owners == ["key_b", "key_a"]


async def test_a_child_is_opened_in_the_name_of_its_parents_owner_once() -> None:
    foreign = Barred(decision(), Barrier.FOREIGN_PARENT, "p", "key_b")
    ledger = Asked(foreign, "held")
    assert await admit(SHARING, NOW_MS, ledger.decide, ledger.ask) == "held"
    assert ledger.owners == ["key_a", "key_b"]
    # Somebody limited the run for its own key: it has an owner, who is not its parent's.
    ledger = Asked(foreign, Stale(NOW_MS, "key_a"), foreign)
    assert await admit(SHARING, NOW_MS, ledger.decide, ledger.ask) is foreign
    assert await admit(CALL, NOW_MS, ledger.decide, Asked(foreign).ask) is foreign


async def test_what_nothing_can_serve_is_never_asked_for() -> None:
    ledger = Asked()
    with pytest.raises(Refused) as refused:
        await admit(CALL, NOW_MS, lambda *_: Unservable("model_not_priced", "no price", "model"), ledger.ask)
    assert (refused.value.problem.code, refused.value.problem.param) == ("model_not_priced", "model")


@pytest.mark.parametrize(
    ("barrier", "what", "status", "code", "words"),
    [
        (Barrier.STOPPED, "r1", 402, "run_stopped", "Run r1 was stopped"),
        (Barrier.STOPPED, "p", 402, "run_stopped", "Run p, from which run r1 comes, was stopped"),
        (Barrier.PAUSED, "r1", 402, "run_paused", "/budget/runs/r1/resume"),
        (Barrier.FROZEN, "team=research", 402, "scope_frozen", "team=research"),
        (Barrier.TOO_MANY_RUNS, "200", 429, "too_many_runs", "200 active runs"),
        (Barrier.LOOP, "5", 402, "loop_detected", "5 times"),
        (Barrier.CYCLE, "p", 400, "run_id_invalid", "come from itself"),
        (Barrier.TOO_DEEP, "p", 400, "run_id_invalid", "at most 8 ancestors"),
        (Barrier.PARENT_CHANGED, "p", 400, "run_id_invalid", "another parent than p"),
        (Barrier.FOREIGN_PARENT, "p", 403, "run_owned_by_another", "belongs to another key"),
    ],
)
def test_every_barrier_has_its_code_and_says_what_it_is(barrier: Barrier, what: str, status: int, code: str, words: str) -> None:
    refused = barred(Barred(decision(), barrier, what))
    assert (refused.problem.status, refused.problem.code) == (status, code)
    assert words in refused.problem.detail
    assert ("X-Budget-Decision", "block") in refused.headers
    assert ("x-should-retry", "false") in refused.problem.headers()


def test_no_barrier_is_left_without_words() -> None:
    for barrier in Barrier:
        assert barred(Barred(decision(), barrier, "x")).problem.detail


def burning(committed: int, aging: tuple[tuple[int, int], ...], span_ms: int = MINUTE) -> Refusal:
    """$0.10 asked of $0.50 a minute."""
    account = Account("default", "burn-rate", (("run", "r1"),), rolling(span_ms), Unit.USD)
    asked = decision(limit=USD // 2)
    (plan,) = asked.ladder
    charges = tuple(replace(charge, ceiling=replace(charge.ceiling, account=account, own=False)) for charge in plan.charges)
    asked = replace(asked, ladder=(replace(plan, charges=charges),))
    balance = Balance(account, USD // 2, committed, 0, aging=aging)
    return Refusal(asked, (balance,), (balance,), NOW_MS)


def test_where_a_moment_is_all_it_takes_the_refusal_says_how_long() -> None:
    refused = over_budget(burning(USD // 2, ((NOW_MS + 3_500, USD // 20), (NOW_MS + 7_200, USD // 10))))
    assert (refused.problem.status, refused.problem.code, refused.problem.retry_after) == (429, "rate_of_spend", 8)
    assert ("retry-after", "8") in refused.problem.headers()


def test_a_wait_beyond_a_minute_is_none() -> None:
    refused = over_budget(burning(USD // 2, ((NOW_MS + 62_000, USD // 2),), span_ms=10 * MINUTE))
    assert (refused.problem.status, refused.problem.code) == (402, "run_ceiling_reached")
    assert refused.problem.retry_after is None


def test_a_refusal_that_paused_its_run_says_so() -> None:
    balance = Balance(run_account(), 5 * USD, 5 * USD, 0)
    refused = over_budget(Refusal(decision(), (balance,), (balance,), NOW_MS, paused=True))
    assert (refused.problem.status, refused.problem.code) == (402, "run_paused")
    assert ("X-Budget-Blocking-Scope", "run") in refused.headers


def test_of_several_plans_the_one_that_fits_soonest_is_spoken_of() -> None:
    slow = burning(USD // 2, ((NOW_MS + 40_000, USD // 2),))
    (plan,) = slow.decision.ladder
    soon = replace(slow.balances[0].account, budget="burn-small")
    charges = tuple(replace(charge, ceiling=replace(charge.ceiling, account=soon)) for charge in plan.charges)
    cheaper = replace(plan, model="small", charges=charges)
    balance = Balance(soon, USD // 2, USD // 2, 0, aging=((NOW_MS + 3_000, USD // 2),))
    asked = replace(slow.decision, ladder=(plan, cheaper))
    refused = over_budget(Refusal(asked, (*slow.blocking, balance), (*slow.balances, balance), NOW_MS))
    assert (refused.problem.code, refused.problem.retry_after) == ("rate_of_spend", 3)
    assert refused.problem.budget is not None
    assert refused.problem.budget.name == "burn-small"


def test_a_plan_that_another_account_keeps_out_is_not_waited_for() -> None:
    burnt = burning(USD // 2, ((NOW_MS + 3_000, USD // 2),))
    (plan,) = burnt.decision.ladder
    full = replace(plan.charges[0], ceiling=replace(plan.charges[0].ceiling, account=run_account()))
    asked = replace(burnt.decision, ladder=(replace(plan, charges=(*plan.charges, full)),))
    balances = (*burnt.balances, Balance(run_account(), 5 * USD, 5 * USD, 0))
    refused = over_budget(Refusal(asked, burnt.blocking, balances, NOW_MS))
    assert (refused.problem.status, refused.problem.retry_after) == (402, None)
