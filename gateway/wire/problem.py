"""Every answer that is a refusal: RFC 9457, and an `error` object that the SDKs read. The codes are one table.

A client shows its user `error.message` and nothing else, so it says what was refused and the way out. It must not try again: a
refused call is one POST. Hence `x-should-retry: false` and never a `Retry-After`, except where waiting a moment helps.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Final

import orjson

from gateway.core import slices
from gateway.core.catalog import Model
from gateway.core.grants import granted
from gateway.core.money import format_usd
from gateway.core.record import record
from gateway.core.scopes import Account, Unit
from gateway.core.values import Balance, Basis, Charge, Decision, Output, Plan

CONTENT_TYPE: Final = "application/problem+json"
SHOWN_CHARS: Final = 80  # of a value that a caller chose, in a message


class Shape(Enum):
    """How a dialect's clients read a refusal."""

    OPENAI = auto()
    ANTHROPIC = auto()


_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


@record
class Kind:
    """What all problems of one code share."""

    status: int
    title: str
    error_type: str  # the OpenAI error type
    budget: bool = False  # a budget refusal: its `error.code` is `budget_exceeded`, whatever its code
    retryable: bool = False  # the same request may succeed later, with nothing changed
    sdk_may_retry: bool = False  # and an SDK may try it by itself
    sdk_may_wait: bool = False  # or only where a `Retry-After` says when


_CEILING: Final = Kind(402, "Budget exceeded", "insufficient_quota", budget=True)

KINDS: Final[dict[str, Kind]] = {
    # `run_ceiling_reached`, `agent_ceiling_reached`, `team_agent_ceiling_reached` … are all `_CEILING`: see `kind_of`.
    "call_exceeds_limit": _CEILING,
    "loop_detected": Kind(402, "Loop detected", "insufficient_quota", budget=True),
    "run_stopped": Kind(402, "Run stopped", "insufficient_quota", budget=True),
    "run_paused": Kind(402, "Run paused", "insufficient_quota", budget=True),
    "scope_frozen": Kind(402, "Scope frozen", "insufficient_quota", budget=True),
    "rate_of_spend": Kind(429, "Spending too fast", "rate_limit_error", budget=True, retryable=True, sdk_may_retry=True),
    "too_many_runs": Kind(429, "Too many runs", "rate_limit_error"),
    "ambiguous_request": Kind(400, "Ambiguous request", "invalid_request_error"),
    "run_id_required": Kind(400, "Run id required", "invalid_request_error"),
    "run_id_invalid": Kind(400, "Run id invalid", "invalid_request_error"),
    "dimension_required": Kind(400, "Dimension required", "invalid_request_error"),
    "model_not_priced": Kind(400, "Model not priced", "invalid_request_error"),
    "not_estimable": Kind(400, "Not estimable", "invalid_request_error"),
    "output_cap_conflict": Kind(400, "Output cap conflict", "invalid_request_error"),
    "bad_request": Kind(400, "Bad request", "invalid_request_error"),
    "invalid_key": Kind(401, "Invalid key", "authentication_error"),
    "not_permitted": Kind(403, "Not permitted", "permission_error"),
    "run_owned_by_another": Kind(403, "Run owned by another", "permission_error"),
    "host_not_allowed": Kind(403, "Host not allowed", "permission_error"),
    "origin_not_allowed": Kind(403, "Origin not allowed", "permission_error"),
    "admin_required": Kind(403, "Admin required", "permission_error"),
    "route_not_metered": Kind(404, "Route not metered", "invalid_request_error"),
    "model_not_served": Kind(404, "Model not served", "invalid_request_error"),
    "not_found": Kind(404, "Not found", "invalid_request_error"),
    "method_not_allowed": Kind(405, "Method not allowed", "invalid_request_error"),
    "idempotency_conflict": Kind(409, "Idempotency conflict", "invalid_request_error"),
    "request_too_large": Kind(413, "Request too large", "invalid_request_error"),
    "unsupported_encoding": Kind(415, "Unsupported encoding", "invalid_request_error"),
    "upgrade_refused": Kind(426, "Upgrade refused", "invalid_request_error"),
    "headers_too_large": Kind(431, "Headers too large", "invalid_request_error"),
    "internal_error": Kind(500, "Internal error", "server_error"),
    "provider_unreachable": Kind(502, "Provider unreachable", "server_error", retryable=True, sdk_may_retry=True),
    "provider_cut": Kind(502, "Provider cut the answer short", "server_error"),
    "provider_timeout": Kind(504, "Provider timeout", "server_error"),
    "overloaded": Kind(503, "Overloaded", "server_error", retryable=True, sdk_may_wait=True),
    "ledger_unavailable": Kind(503, "Ledger unavailable", "server_error", retryable=True),
    "ledger_lost": Kind(503, "Ledger lost", "server_error"),
}


def kind_of(code: str) -> Kind:
    """A code that is not ours is a bug: KeyError."""
    return _CEILING if code.endswith("_ceiling_reached") else KINDS[code]


@record
class BudgetFacts:
    """The blocking account, as the refused call met it. Amounts in its unit."""

    name: str
    scope: str
    run_id: str  # the caller's
    unit: Unit
    limit: int
    committed: int
    reserved: int
    remaining: int
    estimate: int
    effective_max_output_tokens: int
    client_requested_max_output_tokens: int | None
    price_table_version: str
    capped: bool = True  # the request has a field that lowers it
    cap_field: str = "max_tokens"  # where the request says its cap
    ancestor: str | None = None  # whose ceiling it is, where that is not the caller's own run

    def members(self) -> dict[str, Any]:
        """USD as decimal strings in `…_usd`; all else as numbers, with their `unit`."""
        amounts = ("limit", "committed", "reserved", "remaining", "estimate")
        members: dict[str, Any] = {"name": self.name, "scope": self.scope, "run_id": self.ancestor or self.run_id}
        if self.unit is Unit.USD:
            members |= {f"{amount}_usd": format_usd(getattr(self, amount)) for amount in amounts}
        else:
            members |= {"unit": self.unit.value} | {amount: getattr(self, amount) for amount in amounts}
        return members | {
            "effective_max_output_tokens": self.effective_max_output_tokens,
            "client_requested_max_output_tokens": self.client_requested_max_output_tokens,
            "price_table_version": self.price_table_version,
        }


@record
class Alternative:
    """A model that could serve the refused call for less. `fits_budget` is advice from the balances just read, not a hold."""

    model: str
    estimate: int  # microcents
    fits_budget: bool
    capabilities: frozenset[str]
    context: int
    max_output: int

    @classmethod
    def of(cls, model: Model, plan: Plan, fits_budget: bool) -> "Alternative":
        return cls(plan.model, plan.held.usd, fits_budget, model.capabilities, model.context, model.max_output)

    def members(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "estimate_usd": format_usd(self.estimate),
            "fits_budget": self.fits_budget,
            "supports_tools": "tools" in self.capabilities,
            "supports_vision": "vision" in self.capabilities,
            "supports_json_schema": "json_schema" in self.capabilities,
            "context": self.context,
            "max_output_tokens": self.max_output,
        }


@record
class Problem:
    """One refusal, ready to be sent. `detail` is also `error.message`."""

    status: int
    code: str
    title: str
    detail: str
    error_type: str
    error_code: str
    param: str | None = None
    retryable: bool = False
    budget: BudgetFacts | None = None
    alternatives: tuple[Alternative, ...] = ()
    retry_after: int | None = None  # seconds; only where waiting helps

    def error(self, shape: Shape = Shape.OPENAI) -> dict[str, Any]:
        """The object that SDKs read, in a body or in a stream."""
        if shape is Shape.ANTHROPIC:
            otherwise = "api_error" if self.status >= 500 else "invalid_request_error"
            return {"type": _ANTHROPIC_TYPES.get(self.status, otherwise), "message": self.detail}
        return {"message": self.detail, "type": self.error_type, "code": self.error_code, "param": self.param}

    def body(self, shape: Shape = Shape.OPENAI) -> bytes:
        members: dict[str, Any] = {
            "type": "urn:penstock:problem:" + self.title.lower().replace(" ", "-"),
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "retryable": self.retryable,
        }
        if self.budget is not None:
            members["budget"] = self.budget.members()
            members["alternatives"] = [alternative.members() for alternative in self.alternatives]
        members["error"] = self.error(shape)
        if shape is Shape.ANTHROPIC:
            members["type"] = "error"
        return orjson.dumps(members)

    def headers(self) -> list[tuple[str, str]]:
        headers = [("content-type", CONTENT_TYPE)]
        kind = kind_of(self.code)
        if self.retry_after is not None and (kind.sdk_may_retry or kind.sdk_may_wait):
            headers.append(("retry-after", str(self.retry_after)))
        elif not kind.sdk_may_retry:
            headers.append(("x-should-retry", "false"))
        return headers


class Refused(Exception):
    """The request can't be taken: answer with the problem and these headers beside its own. Nothing was reserved or forwarded."""

    def __init__(self, problem: Problem, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(problem.code, problem.detail)
        self.problem = problem
        self.headers = headers


def problem(code: str, detail: str, param: str | None = None, retry_after: int | None = None) -> Problem:
    """A problem without budget facts. `retry_after` (seconds) only where an SDK may try again by itself: `rate_of_spend`,
    and `overloaded` where nothing was held or sent."""
    kind = kind_of(code)
    error_code = "budget_exceeded" if kind.budget else code
    return Problem(
        kind.status, code, kind.title, detail, kind.error_type, error_code, param, kind.retryable, retry_after=retry_after
    )


def bad_request(code: str, message: str, param: str | None = None) -> Refused:
    """To be raised: the request itself is at fault."""
    return Refused(problem(code, message, param))


def budget_refusal(
    decision: Decision,
    plan: Plan,
    blocking: Balance,
    alternatives: Sequence[Alternative] = (),
    retry_after: int | None = None,
    paused: bool = False,
) -> Problem:
    """The answer to a call whose `plan` did not fit `blocking`. `retry_after`: waiting that many seconds would make it fit. `paused`:
    its run waits from now on."""
    account, run = blocking.account, decision.call.caller.run
    charge = next(charge for charge in plan.charges if charge.ceiling.account == account)
    limit, remaining = blocking.limit, blocking.remaining
    assert limit is not None, "an account without a limit blocks nothing"
    assert remaining is not None
    estimate = plan.held_at(charge)
    hopeless = charge.ceiling.basis is Basis.RESERVED_AND_COMMITTED and estimate > limit + charge.ceiling.margin
    if paused:
        code = "run_paused"
    elif hopeless:
        code = "call_exceeds_limit"
    elif retry_after is not None:
        code = "rate_of_spend"
    else:
        code = "_".join(name for name, _ in account.scope or (("tenant", ""),)) + "_ceiling_reached"
    facts = BudgetFacts(
        name=account.name,
        scope=account.scope_name,
        run_id=run,
        ancestor=next((value for name, value in account.scope if name == "run" and value in decision.call.caller.ancestry), None),
        unit=account.unit,
        limit=limit,
        committed=blocking.committed,
        reserved=blocking.reserved,
        remaining=remaining,
        estimate=estimate,
        effective_max_output_tokens=plan.output_cap,
        capped=decision.call.output is Output.CAPPED,
        cap_field=decision.call.cap_field,
        client_requested_max_output_tokens=decision.call.client_cap,
        price_table_version=decision.price_table_version,
    )
    kind = kind_of(code)
    return Problem(
        status=kind.status,
        code=code,
        title=kind.title,
        detail=_message(facts, blocking, charge, alternatives, code, retry_after),
        error_type=kind.error_type,
        error_code="budget_exceeded",
        retryable=kind.retryable,
        budget=facts,
        alternatives=tuple(alternatives),
        retry_after=retry_after if code == "rate_of_spend" else None,
    )


def amount_text(amount: int, unit: Unit) -> str:
    """`$4.91`, `1,200 tokens`, `1 call`, `40 risk points`."""
    if unit is Unit.USD:
        return "$" + format_usd(amount)
    return f"{amount:,} {unit.words.removesuffix('s') if amount == 1 else unit.words}"


def _message(
    facts: BudgetFacts,
    blocking: Balance,
    charge: Charge,
    alternatives: Sequence[Alternative],
    code: str,
    retry_after: int | None,
) -> str:
    """All that most users will ever see of a refusal: run, limit, spent, and what to do."""
    scope, unit = blocking.account.scope, facts.unit
    limit, estimate = amount_text(facts.limit, unit), amount_text(facts.estimate, unit)
    names_run = scope == (("run", facts.run_id),)
    run = f"Run {facts.run_id}"
    where = "" if names_run else f", {', '.join(f'{name} {_shown(value)}' for name, value in scope) or 'whole tenant'}"
    budget = granted(blocking.account) or f"{facts.name}{where}"
    spent = f"spent {amount_text(facts.committed, unit)}, reserved {amount_text(facts.reserved, unit)}"
    asks = "this stream asks for" if charge.sliced else "this call could use up to"
    if code == "call_exceeds_limit":
        what = f"{run}: {asks} {estimate}, more than the whole limit of {limit}"
    elif code == "rate_of_spend":
        what = f"{run} spends too fast: limit {limit}"
    else:
        paused = "is paused: it " if code == "run_paused" else ""
        what = (
            f"{run} {paused}has reached its ceiling: limit {limit}"
            if names_run
            else f"{run} {paused}met a ceiling: limit {limit}"
        )
    detail = f"{what} (budget {budget}; {spent}"
    detail += ")." if code == "call_exceeds_limit" else f"); {asks} {estimate}."
    if code == "run_paused":
        return f"{detail} {_way_out_of_a_pause(facts, charge)}"
    wait = f"wait {retry_after} s, or " if code == "rate_of_spend" else ""
    return f"{detail} To go on: {wait}{_way_out(facts, blocking.account, charge, alternatives)}"


def _way_out_of_a_pause(facts: BudgetFacts, charge: Charge) -> str:
    """A pause ends with a raise that the ledger is told of; it knows nothing of the policy."""
    page = f"PUT /budget/runs/{charge.ceiling.own_run}" if charge.ceiling.own else "POST /admin/accounts/KEY/limit"
    return f"It goes on when the limit is raised ({page} with the admin token), or by POST /budget/runs/{facts.run_id}/resume."


def _way_out(facts: BudgetFacts, account: Account, charge: Charge, alternatives: Sequence[Alternative]) -> str:
    scope = granted(account)
    if charge.ceiling.own:
        ways = [f"raise the limit (PUT /budget/runs/{charge.ceiling.own_run} with the admin token)"]
    elif scope is not None:
        ways = [f"fund the budget {scope} (POST /cycles/v1/admin/budgets/fund with the admin token)"]
    else:
        ways = [f"raise the limit of the budget {facts.name} in the policy"]
    has_cap = facts.capped and facts.effective_max_output_tokens > 0  # what is spent beside the proxy has none
    by_cap = facts.unit in (Unit.USD, Unit.TOKENS) and charge.ceiling.basis is Basis.RESERVED_AND_COMMITTED
    if has_cap and by_cap:
        # Of a stream that is held by slices, only a cap below the first of them holds less.
        to = f" below {slices.FIRST:,}" if charge.sliced and facts.effective_max_output_tokens > slices.FIRST else ""
        ways.append(f"lower {facts.cap_field}{to} (now {facts.effective_max_output_tokens:,})")
    fitting = min((each for each in alternatives if each.fits_budget), key=lambda each: each.estimate, default=None)
    if fitting is not None:
        cost = "" if charge.sliced else f" (up to ${format_usd(fitting.estimate)})"
        ways.append(f"use the model {fitting.model}{cost}, which fits")
    return ", or ".join(ways) + "."


def _shown(value: str) -> str:
    return value if len(value) <= SHOWN_CHARS else value[: SHOWN_CHARS - 1] + "…"
