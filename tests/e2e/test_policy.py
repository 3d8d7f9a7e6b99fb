"""What a policy says happens, through the real app: the ladder near the ceiling, every mode, unit, scope and window.

One gateway; each test writes the policy it needs and has it reloaded, as an operator does.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

from gateway.demo.replies import Script
from tests.support.config import Setup, policy, run_ceiling
from tests.support.gateway import CALLER_KEY, GatewayProcess
from tests.support.load import chat, microcents
from tests.support.loopback import LOOPBACK
from tests.support.provider import Behaviour, FaultProvider

LADDER: Final = {"downgrade": {"big-model": ["small-model"]}}
# big-model: 1,000 tokens of output are $0.01; small-model: $0.0006. The input is some 20 tokens.
CAP: Final = 1_000


@pytest.fixture(scope="module")
def gateway(folder: Path, shared_provider: FaultProvider) -> Iterator[GatewayProcess]:
    with GatewayProcess(Setup(folder, shared_provider.base_url)) as running:
        yield running
        assert running.troubles == []


@pytest.fixture
def provider(shared_provider: FaultProvider) -> FaultProvider:
    shared_provider.forget()
    shared_provider.default = Behaviour(script=Script(tokens=CAP))
    return shared_provider


@pytest.fixture
def under(gateway: GatewayProcess) -> Callable[..., GatewayProcess]:
    """`under(run_ceiling(…), models=…)`: the gateway, once that policy is in force."""

    def reload(*budgets: dict[str, Any], **sections: Any) -> GatewayProcess:
        before = gateway.get("/readyz")["policy_version"]
        (gateway.setup.folder / "policy.yaml").write_text(yaml.safe_dump(policy(*budgets, **sections)))
        gateway.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while gateway.get("/readyz")["policy_version"] == before:
            assert time.monotonic() < deadline, gateway.get("/readyz")
            time.sleep(0.02)
        return gateway

    return reload


def ask(gateway: GatewayProcess, run: str | None, model: str = "big-model", cap: int | None = CAP, **more: Any) -> httpx.Response:
    """`more`: body fields, and headers where the name is capitalised."""
    headers = {"Authorization": f"Bearer {CALLER_KEY}"} | ({"X-Run-Id": run} if run else {})
    headers |= {name.replace("_", "-"): more.pop(name) for name in [*more] if name[0].isupper()}
    body = chat(model=model, **({} if cap is None else {"max_tokens": cap}), **more)
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, **LOOPBACK, timeout=30)


def decision(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers["X-Budget-Decision"]


def code(answer: httpx.Response) -> str:
    told: str = answer.json()["code"]
    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "budget_exceeded"
    return told


# -- the ladder -------------------------------------------------------------------------------------------------------------------


def test_near_the_ceiling_a_call_is_served_by_the_cheaper_model_and_at_the_ceiling_by_none(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$0.0125"), models=LADDER)
    first = ask(gateway, run)
    assert decision(first) == (200, "allow")
    assert "X-Budget-Selected-Model" not in first.headers

    second = ask(gateway, run)
    assert decision(second) == (200, "downgrade")
    assert second.headers["X-Budget-Requested-Model"] == "big-model"
    assert second.headers["X-Budget-Selected-Model"] == second.json()["model"] == "small-model"
    assert second.headers["X-Budget-Blocking-Scope"] == "run"
    assert provider.calls[1].json["model"] == "small-model"
    told = gateway.get(f"/budget/decisions/{second.headers['X-Budget-Decision-Id']}")
    assert (told["outcome"], told["requested_model"], told["selected_model"]) == ("downgrade", "big-model", "small-model")

    while (answer := ask(gateway, run)).status_code == 200:
        assert decision(answer) == (200, "downgrade")
        assert len(provider.calls) < 10
    assert code(answer) == "run_ceiling_reached"
    assert microcents(gateway.run(run)["committed_usd"]) == provider.bill.microcents <= 1_250_000


def test_below_the_configured_share_the_dearer_model_is_not_used_though_it_would_fit(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$0.04", downgrade_below="50%"), models=LADDER)
    assert [decision(ask(gateway, run))[1] for _ in range(3)] == ["allow", "downgrade", "downgrade"]
    # The whole ceiling is there for a call that has no cheaper plan.
    assert decision(ask(gateway, run, X_Budget_Downgrade="never")) == (200, "allow")
    assert [call.json["model"] for call in provider.calls] == ["big-model", "small-model", "small-model", "big-model"]


def test_a_caller_may_rather_be_refused_than_downgraded(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$0.0126"), models=LADDER)
    ask(gateway, run)
    refused = ask(gateway, run, X_Budget_Downgrade="never")
    assert code(refused) == "run_ceiling_reached"
    [fitting] = [each for each in refused.json()["alternatives"] if each["fits_budget"]]
    assert fitting["model"] == "small-model"
    assert decision(ask(gateway, run)) == (200, "downgrade")


def test_clamped_to_the_budget_an_answer_is_shorter_and_says_so(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$0.006"), output={"clamp_to_budget": True})
    answer = ask(gateway, run)
    assert answer.status_code == 200
    assert answer.headers["X-Budget-Output-Clamped"] == "true"
    assert provider.calls[0].json["max_tokens"] == CAP // 2
    assert answer.json()["usage"]["completion_tokens"] == CAP // 2
    assert ask(gateway, run).status_code == 402


def test_the_policys_cap_is_written_into_the_request(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$5"), output={"max_tokens": 200, "default_max_tokens": {"*": 100, "small-*": 50}})
    assert ask(gateway, run).headers["X-Budget-Output-Clamped"] == "true"
    assert "X-Budget-Output-Clamped" not in ask(gateway, run, cap=None).headers
    ask(gateway, run, model="small-model", cap=None)
    ask(gateway, run, cap=None, max_completion_tokens=150)
    sent = [{name: call.json.get(name) for name in ("max_tokens", "max_completion_tokens")} for call in provider.calls]
    assert [each["max_tokens"] for each in sent] == [200, 100, 50, None]
    assert [each["max_completion_tokens"] for each in sent] == [None, None, None, 150]


# -- modes ------------------------------------------------------------------------------------------------------------------------


def test_an_advisory_budget_warns_and_lets_pass(under: Callable[..., GatewayProcess], provider: FaultProvider, run: str) -> None:
    gateway = under({"name": "look", "scope": "run", "limit": "$0.015", "mode": "advisory_estimate"})
    assert [decision(ask(gateway, run)) for _ in range(3)] == [(200, "allow"), (200, "advisory_warn"), (200, "advisory_warn")]
    last = ask(gateway, run)
    assert last.headers["X-Budget-Enforcement-Mode"] == "advisory_estimate"
    assert last.headers["X-Budget-Blocking-Scope"] == "run"


def test_a_soft_gate_lets_its_margin_pass_and_no_more(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under({"name": "soft", "scope": "run", "limit": "$0.0101", "mode": "soft_gate", "margin": "$0.0101"})
    assert [ask(gateway, run).status_code for _ in range(3)] == [200, 200, 402]
    assert len(provider.calls) == 2


def test_actuals_only_counts_what_was_spent_and_not_what_might_be(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under({"name": "spent", "scope": "run", "limit": "$0.002", "mode": "actuals_only"})
    provider.default = Behaviour(script=Script(tokens=150))  # $0.0015 of the $0.01 that it could be
    assert [ask(gateway, run).status_code for _ in range(3)] == [200, 200, 402]


# -- units ------------------------------------------------------------------------------------------------------------------------


def test_a_budget_of_tokens_blocks_by_tokens(under: Callable[..., GatewayProcess], provider: FaultProvider, run: str) -> None:
    gateway = under({"name": "words", "scope": "run", "limit": "2200 tokens"})
    assert [ask(gateway, run).status_code for _ in range(2)] == [200, 200]
    refused = ask(gateway, run)
    assert code(refused) == "run_ceiling_reached"
    budget = refused.json()["budget"]
    assert (budget["unit"], budget["limit"]) == ("tokens", 2_200)
    spent = sum(call.prompt_tokens + call.completion_tokens for call in provider.bill.calls)
    assert budget["committed"] == spent
    assert "2,200 tokens" in refused.json()["error"]["message"]


def test_a_budget_of_calls_blocks_by_calls_and_a_failed_one_does_not_count(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under({"name": "steps", "scope": "run", "limit": "3 calls"})
    provider.next(Behaviour(status=400))
    assert [ask(gateway, run, cap=5).status_code for _ in range(5)] == [400, 200, 200, 200, 402]
    assert ask(gateway, run, cap=5).json()["budget"]["name"] == "steps"


# -- scopes and windows -----------------------------------------------------------------------------------------------------------

SCOPES: Final[dict[str, tuple[dict[str, Any], dict[str, str], dict[str, str], str]]] = {
    # what: (the budget, a caller whom it counts, another whom it does not, the refusal's code)
    "agent": ({"scope": "agent", "window": "day"}, {"X_Agent_Id": "a"}, {"X_Agent_Id": "b"}, "agent_ceiling_reached"),
    "user": ({"scope": "user", "window": "hour"}, {"X_User_Id": "a"}, {"X_User_Id": "b"}, "user_ceiling_reached"),
    "user in the body": ({"scope": "user"}, {"user": "c"}, {"user": "d"}, "user_ceiling_reached"),
    "team": ({"scope": "team", "window": "week"}, {"X_Team_Id": "a"}, {"X_Team_Id": "b"}, "team_ceiling_reached"),
    "feature": ({"scope": "feature"}, {"X_Feature": "a"}, {"X_Feature": "b"}, "feature_ceiling_reached"),
    "team and agent": (
        {"scope": ["team", "agent"], "window": "month", "timezone": "Europe/Berlin"},
        {"X_Team_Id": "a", "X_Agent_Id": "a"},
        {"X_Team_Id": "a", "X_Agent_Id": "b"},
        "team_agent_ceiling_reached",
    ),
    "model": ({"scope": "model", "window": "month"}, {"model": "big-model"}, {"model": "small-model"}, "model_ceiling_reached"),
    "agents that do not say who they are": ({"scope": "agent"}, {}, {"X_Agent_Id": "named"}, "agent_ceiling_reached"),
}


@pytest.mark.parametrize("what", SCOPES)
def test_each_scope_counts_across_runs_and_blocks_at_its_limit(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str, what: str
) -> None:
    budget, counted, another, expected = SCOPES[what]
    gateway = under({"name": f"of-{what.replace(' ', '-')}", "limit": "$0.021", **budget})
    [gate] = gateway.get("/readyz")["gates"]
    scope = budget["scope"]
    assert (gate["name"], gate["limit"]) == (f"of-{what.replace(' ', '-')}", "$0.021")
    assert gate["scope"] == (scope if isinstance(scope, str) else "+".join(scope))
    assert [ask(gateway, f"{run}.{number}", **counted).status_code for number in range(2)] == [200, 200]
    refused = ask(gateway, f"{run}.2", **counted)
    assert code(refused) == expected
    assert refused.headers["X-Budget-Blocking-Scope"] == gate["scope"]
    assert ask(gateway, f"{run}.2", **another).status_code == 200


def test_where_a_minute_helps_the_caller_is_told_to_wait(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under({"name": "of-the-minute", "scope": "team", "window": "minute", "limit": "$0.021"})
    if time.time() % 60 > 50:
        time.sleep(61 - time.time() % 60)  # the whole test in one minute
    assert [ask(gateway, f"{run}.{number}", X_Team_Id="hasty").status_code for number in range(2)] == [200, 200]
    refused = ask(gateway, f"{run}.2", X_Team_Id="hasty")
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_of_spend")
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "x-should-retry" not in refused.headers
    assert ask(gateway, f"{run}.2", X_Team_Id="another").status_code == 200


def test_the_tenants_budget_counts_everything(under: Callable[..., GatewayProcess], provider: FaultProvider, run: str) -> None:
    gateway = under({"name": "everything", "scope": [], "window": "month", "limit": "$0.021"})
    assert [ask(gateway, f"{run}.{number}", X_Agent_Id=str(number)).status_code for number in range(2)] == [200, 200]
    refused = ask(gateway, f"{run}.2")
    assert code(refused) == "tenant_ceiling_reached"
    assert gateway.get("/readyz")["gates"][0]["scope"] == "tenant"


def test_untagged_calls_share_one_ceiling(under: Callable[..., GatewayProcess], provider: FaultProvider) -> None:
    gateway = under({"name": "of-untagged", "scope": "run", "limit": "$0.021"})
    seen = [ask(gateway, None) for _ in range(3)]
    assert [answer.status_code for answer in seen] == [200, 200, 402]
    assert len({answer.headers["X-Run-Id"] for answer in seen}) == 3


def test_an_override_gives_some_callers_another_limit(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$0.0101", overrides=[{"match": {"team": "research", "agent": "nightly-*"}, "limit": "$0.0210"}]))
    nightly = {"X_Team_Id": "research", "X_Agent_Id": "nightly-7"}
    assert [ask(gateway, f"{run}.a").status_code for _ in range(2)] == [200, 402]
    assert [ask(gateway, f"{run}.b", **nightly).status_code for _ in range(3)] == [200, 200, 402]


def test_a_call_must_fit_every_budget_and_the_readiness_page_names_them_all(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    budgets = [
        run_ceiling("$5"),
        {"name": "steps", "scope": "run", "limit": "1 call"},
        {"name": "agent-day", "scope": "agent", "window": "day", "timezone": "Europe/Berlin", "limit": "$40"},
        {"name": "look", "scope": "team", "limit": "$1", "mode": "advisory_estimate"},
    ]
    gateway = under(*budgets)
    ready = gateway.get("/readyz")
    assert ready["ready"] is True
    assert [(gate["name"], gate["mode"]) for gate in ready["gates"]] == [
        ("run-ceiling", "hard_gate"),
        ("steps", "hard_gate"),
        ("agent-day", "hard_gate"),
        ("look", "advisory_estimate"),
    ]
    assert ready["gates"][2]["timezone"] == "Europe/Berlin"
    assert ask(gateway, run).headers["X-Budget-Enforcement-Mode"] == "hard_gate"
    assert ask(gateway, run).json()["budget"]["name"] == "steps"
    accounts = {account["name"]: account["committed"] for account in gateway.run(run)["accounts"]}
    assert accounts["run-ceiling"] == accounts["look"] == gateway.run(run)["committed_usd"]
    assert accounts["steps"] == 1


def test_spend_is_told_by_any_dimension(under: Callable[..., GatewayProcess], provider: FaultProvider, run: str) -> None:
    gateway = under(run_ceiling("$7"))
    ask(gateway, run, X_Team_Id=f"{run}-t", X_Feature="f1")
    ask(gateway, run, model="small-model", X_Team_Id=f"{run}-t", X_Feature="f2")
    rows = gateway.get("/budget/spend?by=team,feature,model")["rows"]
    mine = [row for row in rows if row["team"] == f"{run}-t"]
    assert [(row["feature"], row["model"], row["calls"]) for row in mine] == [("f1", "big-model", 1), ("f2", "small-model", 1)]
    assert [microcents(row["usd"]) for row in mine] == [call.microcents for call in provider.bill.calls]


# -- reloading --------------------------------------------------------------------------------------------------------------------


def test_a_bad_policy_changes_nothing_but_what_is_told_and_a_good_one_takes_effect_without_a_signal(
    under: Callable[..., GatewayProcess], provider: FaultProvider, run: str
) -> None:
    gateway = under(run_ceiling("$0.0102"))
    path = gateway.setup.folder / "policy.yaml"
    good = gateway.get("/readyz")
    assert good["policy_error"] is None

    path.write_text("version: 1\nbudgets:\n  - {name: run-ceiling, scope: run, limit: a lot, widnow: day}\n")
    until(lambda: gateway.get("/readyz")["policy_error"])
    bad = gateway.get("/readyz")
    assert bad["ready"] is True
    assert (bad["policy_version"], bad["gates"]) == (good["policy_version"], good["gates"])
    assert "widnow" in bad["policy_error"]
    assert "policy.yaml" in bad["policy_error"]
    assert [ask(gateway, run).status_code for _ in range(2)] == [200, 402]

    path.unlink()  # as some editors do before they write
    replaced = path.with_suffix(".new")
    replaced.write_text(yaml.safe_dump(policy(run_ceiling("$0.0205"))))
    replaced.rename(path)
    until(lambda: gateway.get("/readyz")["policy_version"] != good["policy_version"])
    assert gateway.get("/readyz")["policy_error"] is None
    assert [ask(gateway, run).status_code for _ in range(2)] == [200, 402]


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.05)
