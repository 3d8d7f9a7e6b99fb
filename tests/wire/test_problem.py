"""A refusal says the same thing to a program, to an SDK and to a person."""

from dataclasses import replace

import orjson
import pytest

from gateway.core.catalog import Model
from gateway.core.scopes import Account, Amounts, Unit
from gateway.core.values import Balance, Basis, Ceiling, Charge, Decision, Mode, Plan, Slice
from gateway.core.windows import LIFETIME
from gateway.wire.problem import KINDS, Alternative, Problem, bad_request, budget_refusal, kind_of, problem
from tests.support import records
from tests.support.records import USD

CHEAP = Model("gpt-5-nano", "openai", (), 400_000, 128_000, capabilities=frozenset({"tools", "json_schema"}))


def refused(
    scope: tuple[tuple[str, str], ...] = (("run", "r42"),),
    budget: str = "the-budget",
    unit: Unit = Unit.USD,
    limit: int = 5 * USD,
    committed: int = 491 * USD // 100,
    amounts: Amounts = Amounts(31 * USD // 100, 1924),
    basis: Basis = Basis.RESERVED_AND_COMMITTED,
    own: bool = True,
    margin: int = 0,
    alternatives: tuple[Alternative, ...] = (),
    retry_after: int | None = None,
    paused: bool = False,
) -> Problem:
    account = Account("default", budget, scope, LIFETIME, unit)
    charge = Charge(Ceiling(account, limit, Mode.HARD_GATE, basis, margin, own))
    plan = Plan("gpt-5", "openai", 4096, 900, amounts, (charge,))
    base = records.decision(who=replace(records.caller("r42"), ancestry=("r0",)))
    decision = Decision(base.id, replace(base.call, client_cap=8192), (plan,), base.at_ms, "2026-11-01+abc")
    return budget_refusal(decision, plan, Balance(account, limit, committed, 0), alternatives, retry_after, paused)


def alternative(usd: int, fits: bool) -> Alternative:
    return Alternative.of(CHEAP, Plan(CHEAP.name, "openai", 4096, 900, Amounts(usd, 1), ()), fits)


def test_a_run_at_its_ceiling_gets_every_number_the_reader_needs() -> None:
    answer = refused(alternatives=(alternative(4 * USD // 100, True),))
    body = orjson.loads(answer.body())
    message = body.pop("detail")
    assert body == {
        "type": "urn:penstock:problem:budget-exceeded",
        "title": "Budget exceeded",
        "status": 402,
        "code": "run_ceiling_reached",
        "retryable": False,
        "budget": {
            "name": "the-budget",
            "scope": "run",
            "run_id": "r42",
            "limit_usd": "5.00",
            "committed_usd": "4.91",
            "reserved_usd": "0.00",
            "remaining_usd": "0.09",
            "estimate_usd": "0.31",
            "effective_max_output_tokens": 4096,
            "client_requested_max_output_tokens": 8192,
            "price_table_version": "2026-11-01+abc",
        },
        "alternatives": [
            {
                "model": "gpt-5-nano",
                "estimate_usd": "0.04",
                "fits_budget": True,
                "supports_tools": True,
                "supports_vision": False,
                "supports_json_schema": True,
                "context": 400_000,
                "max_output_tokens": 128_000,
            }
        ],
        "error": {"message": message, "type": "insufficient_quota", "code": "budget_exceeded", "param": None},
    }
    assert message == (
        "Run r42 has reached its ceiling: limit $5.00 (budget the-budget; spent $4.91, reserved $0.00); this call could use up to "
        "$0.31. To go on: raise the limit (PUT /budget/runs/r42 with the admin token), or lower max_tokens (now 4,096), or use the "
        "model gpt-5-nano (up to $0.04), which fits."
    )


@pytest.mark.parametrize(
    ("scope", "code"),
    [
        ((("run", "r42"),), "run_ceiling_reached"),
        ((("agent", "a1"),), "agent_ceiling_reached"),
        ((("team", "t"), ("agent", "a1")), "team_agent_ceiling_reached"),
        ((("model", "gpt-5"),), "model_ceiling_reached"),
        ((), "tenant_ceiling_reached"),
    ],
)
def test_the_code_names_the_scope_and_the_sdk_always_sees_budget_exceeded(scope: tuple[tuple[str, str], ...], code: str) -> None:
    answer = refused(scope, own=False)
    assert (answer.status, answer.code, answer.error_code) == (402, code, "budget_exceeded")


def test_a_budget_that_is_not_the_runs_own_is_named_with_its_value_and_raised_in_the_policy() -> None:
    message = refused((("team", "t"), ("agent", "a" * 200)), own=False).detail
    assert message.startswith("Run r42 met a ceiling: limit $5.00 (budget the-budget, team t, agent aaa")
    assert "…" in message
    assert "raise the limit of the budget the-budget in the policy" in message
    assert "PUT" not in message
    assert "whole tenant" in refused((), own=False).detail


def test_a_budget_of_the_cycles_admin_plane_is_named_by_its_scope_and_funded_there() -> None:
    message = refused((("tenant", "acme"), ("workflow", "r42")), budget="cycles", own=False).detail
    assert "(budget tenant:acme/workflow:r42; spent" in message
    assert "fund the budget tenant:acme/workflow:r42 (POST /cycles/v1/admin/budgets/fund with the admin token)" in message
    assert "policy" not in message
    assert "in the policy" in refused((("workflow", "r42"),), budget="cycles", own=False).detail


def test_tokens_and_calls_are_plain_numbers_with_their_unit() -> None:
    answer = refused(unit=Unit.CALLS, limit=60, committed=60, own=False)
    budget = orjson.loads(answer.body())["budget"]
    assert (budget["unit"], budget["limit"], budget["committed"], budget["remaining"], budget["estimate"]) == (
        "calls",
        60,
        60,
        0,
        1,
    )
    assert not any(name.endswith("_usd") for name in budget)
    assert "limit 60 calls" in answer.detail
    assert "up to 1 call." in answer.detail
    assert "max_tokens" not in answer.detail  # fewer tokens are still a call
    tokens = refused(unit=Unit.TOKENS, limit=200_000, committed=199_000, own=False)
    assert "limit 200,000 tokens" in tokens.detail
    assert "up to 1,924 tokens." in tokens.detail


def test_a_call_that_alone_is_above_the_whole_limit_says_so() -> None:
    answer = refused(amounts=Amounts(6 * USD, 1), committed=0)
    assert answer.code == "call_exceeds_limit"
    assert "could use up to $6.00, more than the whole limit of $5.00" in answer.detail
    assert refused(amounts=Amounts(6 * USD, 1), margin=USD).code == "run_ceiling_reached"
    assert refused(amounts=Amounts(6 * USD, 1), basis=Basis.COMMITTED).code == "run_ceiling_reached"


def test_only_the_cheapest_alternative_that_fits_is_recommended() -> None:
    assert "which fits" not in refused(alternatives=(alternative(USD, False),)).detail
    assert "up to $0.02" in refused(alternatives=(alternative(USD // 20, True), alternative(USD // 50, True))).detail


def test_no_refusal_invites_a_retry_except_where_waiting_helps() -> None:
    assert refused().headers() == [("content-type", "application/problem+json"), ("x-should-retry", "false")]
    waiting = refused(retry_after=7)
    assert (waiting.status, waiting.code, waiting.retryable) == (429, "rate_of_spend", True)
    assert waiting.headers() == [("content-type", "application/problem+json"), ("retry-after", "7")]
    hopeless = refused(amounts=Amounts(6 * USD, 1), retry_after=7)
    assert (hopeless.code, hopeless.retry_after) == ("call_exceeds_limit", None)
    for code in KINDS.keys() - {"rate_of_spend", "provider_unreachable", "overloaded"}:
        assert ("x-should-retry", "false") in problem(code, "x", retry_after=7).headers()
        assert "retry-after" not in dict(problem(code, "x", retry_after=7).headers())


def test_an_sdk_may_try_again_what_was_shed_and_not_what_was_ended() -> None:
    """Ended by a shutdown, a call may have been billed."""
    assert problem("overloaded", "x").headers()[1:] == [("x-should-retry", "false")]
    assert problem("overloaded", "x", retry_after=2).headers()[1:] == [("retry-after", "2")]


def test_a_paused_run_is_told_what_ends_the_pause_which_no_policy_does() -> None:
    own = refused(paused=True)
    assert (own.status, own.code, own.error_code) == (402, "run_paused", "budget_exceeded")
    assert "PUT /budget/runs/r42 with the admin token" in own.detail
    assert "POST /budget/runs/r42/resume" in own.detail
    shared = refused(scope=(), own=False, paused=True)
    assert "POST /admin/accounts/KEY/limit" in shared.detail
    assert "policy" not in shared.detail


def test_an_ancestors_own_limit_is_raised_on_the_ancestor() -> None:
    answer = refused(scope=(("run", "r0"),))
    assert "PUT /budget/runs/r0 with the admin token" in answer.detail
    assert answer.detail.startswith("Run r42 met a ceiling")
    assert orjson.loads(answer.body())["budget"]["run_id"] == "r0"


@pytest.mark.parametrize(
    ("status", "codes"),
    [
        (
            402,
            "run_ceiling_reached team_agent_ceiling_reached call_exceeds_limit loop_detected run_stopped run_paused scope_frozen",
        ),
        (429, "rate_of_spend too_many_runs"),
        (
            400,
            "ambiguous_request run_id_required run_id_invalid model_not_priced not_estimable output_cap_conflict dimension_required",
        ),
        (401, "invalid_key"),
        (403, "run_owned_by_another"),
        (404, "route_not_metered model_not_served not_found"),
        (409, "idempotency_conflict"),
        (413, "request_too_large"),
        (415, "unsupported_encoding"),
        (503, "overloaded ledger_unavailable ledger_lost"),
    ],
)
def test_each_code_has_its_status(status: int, codes: str) -> None:
    for code in codes.split():
        assert kind_of(code).status == status


def test_outside_of_budgets_the_error_code_is_the_code_and_there_are_no_budget_members() -> None:
    body = orjson.loads(bad_request("ambiguous_request", "n: expected 1", "n").problem.body())
    assert body == {
        "type": "urn:penstock:problem:ambiguous-request",
        "title": "Ambiguous request",
        "status": 400,
        "detail": "n: expected 1",
        "code": "ambiguous_request",
        "retryable": False,
        "error": {"message": "n: expected 1", "type": "invalid_request_error", "code": "ambiguous_request", "param": "n"},
    }
    assert problem("run_stopped", "x").error_code == "budget_exceeded"
    with pytest.raises(KeyError):
        problem("no_such_code", "x")


def test_a_stream_that_asks_for_a_slice_is_told_of_the_slice_and_that_only_a_cap_below_the_first_holds_less() -> None:
    account = Account("default", "the-budget", (("run", "r42"),), LIFETIME, Unit.USD)
    charge = Charge(Ceiling(account, 5 * USD, Mode.HARD_GATE, Basis.RESERVED_AND_COMMITTED, own=True), sliced=True)
    plan = Plan("gpt-5", "openai", 4096, 900, Amounts(9 * USD, 9_000), (charge,), Slice(1024, Amounts(USD // 10, 1924)))
    decision = replace(records.decision(who=records.caller("r42")), ladder=(plan,))
    answer = budget_refusal(decision, plan, Balance(account, 5 * USD, 491 * USD // 100, 0), (alternative(USD // 25, True),))
    assert answer.detail == (
        "Run r42 has reached its ceiling: limit $5.00 (budget the-budget; spent $4.91, reserved $0.00); this stream asks for $0.10. "
        "To go on: raise the limit (PUT /budget/runs/r42 with the admin token), or lower max_tokens below 1,024 (now 4,096), or "
        "use the model gpt-5-nano, which fits."
    )
    assert answer.budget is not None
    assert answer.budget.estimate == USD // 10
