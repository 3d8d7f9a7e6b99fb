"""Policies, models and calls for tests that decide: small builders, everything else defaulted. Text counts one token a word."""

from collections.abc import Iterable
from typing import Any
from zoneinfo import ZoneInfo

from gateway.core.catalog import Catalog, Model, Rates
from gateway.core.decide import Reach, Rulebook, Unservable
from gateway.core.policy import Budget, Limit, Policy, Terms
from gateway.core.scopes import Caller, Unit
from gateway.core.tokens import TokenCounter
from gateway.core.values import Call, Decision, Mode, Part, Plan
from gateway.core.windows import WindowKind
from tests.support.clock import NOW_MS
from tests.support.records import USD, caller

UTC = ZoneInfo("UTC")
EVERYTHING = frozenset({"tools", "vision", "json_schema"})


class Words:
    """A tokenizer: each word is a token."""

    def count(self, text: str) -> int:
        return len(text.split())


def model(name: str, output_usd: int = 10, provider: str = "openai", **facts: Any) -> Model:
    """Prices in USD per million tokens: input costs a tenth of output. `output_usd=0` is a free model."""
    rate = output_usd * USD
    tiers = (Rates(rate // 10, rate, rate // 10, rate // 10),) if output_usd else ()
    defaults: dict[str, Any] = {
        "context": 100_000,
        "max_output": 8_192,
        "capabilities": EVERYTHING,
        "encoding": "o200k_base",
        "free": not output_usd,
    }
    return Model(name, provider, tiers, **{**defaults, **facts})


BIG, MEDIUM, SMALL = model("big", 30), model("medium", 10), model("small", 1)


def catalog(models: Iterable[Model] = (BIG, MEDIUM, SMALL)) -> Catalog:
    return Catalog("prices-1", {each.name: each for each in models})


def budget(
    name: str = "run-ceiling",
    *scope: str,
    limit: int = 5 * USD,
    unit: Unit = Unit.USD,
    mode: Mode = Mode.HARD_GATE,
    window: WindowKind = WindowKind.LIFETIME,
    downgrade_below_ppm: int = 0,
    **more: Any,
) -> Budget:
    terms = Terms(Limit(unit, limit), mode, downgrade_below_ppm=downgrade_below_ppm)
    return Budget(name, scope, window, more.pop("timezone", UTC), terms, **more)


RUN_CEILING = budget("run-ceiling", "run")


def policy(*budgets: Budget, **sections: Any) -> Policy:
    return Policy("policy-1", budgets or (RUN_CEILING,), **sections)


def rulebook(of: Policy | None = None, models: Iterable[Model] = (BIG, MEDIUM, SMALL)) -> Rulebook:
    return Rulebook(of or policy(), catalog(models), TokenCounter(lambda _: Words()))


def call(asked: str = "big", who: Caller | None = None, text: str = "one two three", **facts: Any) -> Call:
    defaults: dict[str, Any] = {"stream": False, "choices": 1, "client_cap": None}
    return Call(who or caller(), "chat", asked, parts=(Part("user", (text,)),), **{**defaults, **facts})


def decide(rules: Rulebook, asked: Call | None = None, served: Iterable[str] = ("openai",), at_ms: int = NOW_MS) -> Decision:
    decision = rules.decide(asked or call(), Reach(frozenset(served)), at_ms, "bdg_1")
    assert isinstance(decision, Decision), decision
    return decision


def refuse(rules: Rulebook, asked: Call | None = None, served: Iterable[str] = ("openai",)) -> Unservable:
    refusal = rules.decide(asked or call(), Reach(frozenset(served)), NOW_MS, "bdg_1")
    assert isinstance(refusal, Unservable), refusal
    return refusal


def names(decision: Decision) -> list[str]:
    return [plan.model for plan in decision.ladder]


def keys(plan: Plan) -> list[str]:
    return [charge.ceiling.account.key for charge in plan.charges]
