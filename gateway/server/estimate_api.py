"""`POST /budget/estimate`: what a call could cost at most, and whether it fits, before anybody makes it. Holds nothing.

It takes the way of a call up to its decision (`Flow.pose`), so what it says of a plan is what a call would hold. Whether that fits is said
by balances that were read beside; only the call itself finds out.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.admitting import owned_by_another
from gateway.core.catalog import Catalog
from gateway.core.ceilings import WHOLE
from gateway.core.decide import Unservable
from gateway.core.grants import granted
from gateway.core.money import format_usd
from gateway.core.scopes import Amounts
from gateway.core.values import Balance, Basis, Call, Charge, Decision, Outcome, Plan
from gateway.flow import Flow, Posed
from gateway.large import LargeWork
from gateway.outlook import Known, Outlook, known, placed
from gateway.policy_file import MAX_COUNT
from gateway.server.external import COUNTS, External, amounts_of, named_run
from gateway.server.pages import bad_member, count_of, flag_of, json_reply, ledger_page, query_of, whole_of
from gateway.server.routes import Route
from gateway.server.views import Json, account_json, amount, tightest_usd
from gateway.wire import chat, messages, responses
from gateway.wire.body import parse_object
from gateway.wire.dialect import Dialect
from gateway.wire.dialects import DIALECTS
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.headers import directives
from gateway.wire.problem import Refused, amount_text, bad_request, problem
from gateway.wire.reading import model_name
from gateway.wire.request import Request

_ID: Final = "bdg_estimate"
_COUNTED: Final = ("model", "input_tokens", "max_output_tokens", "needs", "stream")
_COST: Final = frozenset({"cost_usd", *COUNTS})
_ABILITIES: Final = ("audio_input", "audio_output", "files", "json_schema", "tools", "vision")
_NOTHING: Final = Amounts(0, 0, 0)
_ANY: Final = "-"  # in the place of a model, where the request names none
_TALKING: Final = (chat.DIALECT, messages.DIALECT, responses.DIALECT)
_MOST: Final = 1_000
_DEFAULT_MOST: Final = 20
_A_TURN: Final = 16  # models that are looked at before others have their turn
_COUNT_INLINE_CHARS: Final = 16_384  # some 2 ms of tokenizing


@dataclass(frozen=True, slots=True)
class EstimateApi:
    flow: Flow
    external: External
    large: LargeWork

    def routes(self) -> Sequence[Route]:
        return (ledger_page("POST", "/budget/estimate", self.estimate),)

    async def estimate(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """The body is one of three: that of a call, for `?route=` (left out: chat, messages or responses, by its look); a call's size,
        `{"model": "m", "input_tokens": 900, "max_output_tokens": 500}`; or a cost, `{"cost_usd": "0.12"}`, also none: `{}`. `?models=all` adds
        what other models would hold, `?run_id=` names the run."""
        del params
        query = query_of(inbound, ("route", "models", "limit", "run_id"))
        if query.get("models", "all") != "all":
            raise bad_member("models", "all, or left out for those of the call's ladder")
        most = count_of(query, "limit", _DEFAULT_MOST, _MOST)
        every = "models" in query
        run = named_run(inbound, query, self.flow.rulebook.policy)
        dialect = None if "route" not in query else _dialect(query["route"])
        body: Mapping[str, Any] = {}
        if inbound.body and (dialect is None or dialect in _TALKING):
            body = await self.large.of(inbound.body, parse_object)
        if dialect is None and body.keys() <= _COST:
            return await self._of_cost(inbound, body, run)
        sized = "input_tokens" in body
        request = _sized(body, needs_model=not every) if sized else None
        likely = dialect or (chat.DIALECT if sized else _likely(inbound, body, self.flow.rulebook.catalog))
        posed = await self.flow.pose(likely, inbound, request, run)
        call = replace(posed.call, caller=await placed(self.external.ledger, posed.call.caller))
        # Of a call's size nobody can tell how a model would be asked: as it can be.
        calls = [replace(call, dialect=each.name) for each in ((dialect,) if dialect else _TALKING)] if sized else [call]
        plans = await self._plans(posed, calls) if every else ()
        if call.model == _ANY:
            decision = _decided(posed.rulebook.for_cost(call, _NOTHING, posed.at_ms, _ID))
            return await self._told(decision, (), plans, most)
        found = [posed.rulebook.decide(each, posed.reach, posed.at_ms, _ID, posed.counts) for each in calls]
        decision = _decided(next((each for each in found if isinstance(each, Decision)), found[0]))
        return await self._told(decision, decision.ladder, plans, most)

    async def _of_cost(self, inbound: Inbound, body: Mapping[str, object], run: str | None) -> Reply:
        cost = amounts_of(body, "cost_usd", _NOTHING) if body else _NOTHING
        external, rulebook = self.external, self.flow.rulebook
        at_ms = external.now_ms()
        principal = await external.identity.admitted(inbound.headers)
        caller = external.identity.caller(principal, inbound, None, rulebook.policy, at_ms, run)
        call = Call(
            caller=await placed(external.ledger, caller),
            dialect="evt",
            model="external",
            stream=False,
            choices=1,
            client_cap=None,
            parts=(),
            directives=directives(inbound.headers),
        )
        found = rulebook.for_cost(call, cost, at_ms, _ID)
        if body:
            decision = _decided(found)
            return await self._told(decision, decision.ladder, (), 0)
        # What is left can be told, though nothing may be taken of it.
        shut = found.message if isinstance(found, Unservable) else None
        decision = _decided(found if shut is None else rulebook.for_cost(call, cost, at_ms, _ID, spent=True))
        return await self._told(decision, (), (), 0, shut)

    async def _plans(self, posed: Posed, calls: Sequence[Call]) -> Sequence[Plan]:
        """What each model that could serve the call would hold. Large text is counted in a thread: once for each tokenizer."""
        rulebook, counts = posed.rulebook, posed.counts
        by_encoding = {model.encoding: model for model in rulebook.catalog.models.values() if model.priced}.values()
        if posed.call.counted is None and sum(map(counts.uncounted_chars, by_encoding)) > _COUNT_INLINE_CHARS:
            await self.large.done(counts.size, lambda: [counts.input_of(model) for model in by_encoding])
        found: dict[str, Plan] = {}
        for call in calls:
            for number, plan in enumerate(rulebook.choices(call, posed.reach, posed.at_ms, counts)):
                if plan is not None:
                    found.setdefault(plan.model, plan)
                if number % _A_TURN == 0:
                    await asyncio.sleep(0)
        return tuple(found.values())

    async def _told(
        self, decision: Decision, ladder: Sequence[Plan], plans: Sequence[Plan], most: int, shut: str | None = None
    ) -> Reply:
        """`ladder`: the decision's, or none, where nothing was asked for that could be refused. `shut`: why nothing would be let in."""
        caller = decision.call.caller
        named = {plan.model for plan in ladder}
        beside = [plan for plan in plans if plan.model not in named]
        facts = await known(self.external.ledger, decision, beside)
        view = facts.runs.get(caller.run)
        if view is not None and view.owner not in ("", caller.owner) and not caller.shares:
            raise owned_by_another(caller.run)
        outlook = Outlook(decision, facts)
        # Those that fit first, the dearest first of them: as a ladder has them.
        beside.sort(key=lambda plan: (outlook.blocking(plan) is not None, -plan.cost_max.usd, plan.model))
        told = _json(outlook, ladder, beside, most, facts)
        return json_reply(told if shut is None else told | {"reason": shut})


# -- what was asked ---------------------------------------------------------------------------------------------------------------


def _dialect(route: str) -> Dialect:
    for dialect in DIALECTS:
        if dialect.path == route:
            return dialect
    raise bad_member("route", f"one of {', '.join(dialect.path for dialect in DIALECTS)}")


def _likely(inbound: Inbound, body: Mapping[str, Any], catalog: Catalog) -> Dialect:
    if "messages" in body:
        # Where the headers don't tell, the model does: some are asked in one way only.
        routes = catalog.routes_of(model_name(body))
        only = routes and not any(catalog.speaks(route.provider, chat.NAME) for route in routes)
        return messages.DIALECT if only or "anthropic-version" in inbound.headers else chat.DIALECT
    if "input" in body:
        return responses.DIALECT
    raise bad_request(
        "bad_request",
        "Expected a request with messages or input, or model and input_tokens, or a cost (cost_usd, tokens, calls …); else say by ?route= which "
        "route it is for.",
    )


def _sized(body: Mapping[str, Any], *, needs_model: bool) -> Request:
    """A call of which no more is known than its size."""
    for name in body:
        if name not in _COUNTED:
            takes = ", ".join(_COUNTED)
            raise bad_request("bad_request", f"Unknown member {name[:80]!a} beside input_tokens; known are {takes}.", name[:80])
    needs = body.get("needs", [])
    if not isinstance(needs, list) or not all(each in _ABILITIES for each in needs):
        raise bad_member("needs", f"a list of any of {', '.join(_ABILITIES)}")
    cap = whole_of(body, "max_output_tokens", MAX_COUNT)
    if cap == 0:
        raise bad_member("max_output_tokens", "a whole number of at least 1")
    return Request(
        dialect=chat.DIALECT.name,
        model=model_name(body) if needs_model or "model" in body else _ANY,
        stream=flag_of(body, "stream"),
        client_cap=cap,
        parts=(),
        needs=frozenset(needs),
        counted=whole_of(body, "input_tokens", MAX_COUNT),
        body=body,
        known=frozenset(_COUNTED),
        not_meant=frozenset(),
    )


def _decided(decision: Decision | Unservable) -> Decision:
    if isinstance(decision, Unservable):
        raise Refused(problem(decision.code, decision.message, decision.param))
    return decision


# -- what is answered -------------------------------------------------------------------------------------------------------------


def _json(outlook: Outlook, ladder: Sequence[Plan], beside: Sequence[Plan], most: int, facts: Known) -> Json:
    decision = outlook.decision
    caller, chosen = decision.call.caller, outlook.chosen if ladder else None
    budgets = _budgets(outlook)
    view = facts.runs.get(caller.run)
    return {
        "run_id": caller.run,
        "state": None if view is None else view.state.value,
        "decision": outlook.outcome.value if ladder else None,
        "reason": _reason(outlook, ladder),
        "requested_model": decision.call.model if ladder else None,
        "selected_model": None if chosen is None else chosen.model,
        "remaining_usd": tightest_usd(budgets),
        "price_table_version": decision.price_table_version,
        "ladder": [_plan_json(outlook, plan) for plan in ladder],
        "passed_over": [{"model": each.model, "reason": each.reason} for each in decision.passed_over],
        "others": [_plan_json(outlook, plan) for plan in beside[:most]],
        "others_left_out": max(0, len(beside) - most),
        "budgets": [account_json(balance) for balance in budgets],
    }


def _plan_json(outlook: Outlook, plan: Plan) -> Json:
    blocking = [charge for charge in plan.charges if not outlook.fits(charge, plan)]
    return {
        "model": plan.model,
        "provider": plan.provider,
        "input_tokens": plan.input_tokens,
        "input_basis": plan.input_basis.value,
        "max_output_tokens": plan.output_cap,
        "cost_max_usd": format_usd(plan.cost_max.usd),
        "cost_max_tokens": plan.cost_max.tokens,
        "held_usd": format_usd(plan.held.usd),
        "fits": not blocking,
        "blocked_by": [_blocking_json(outlook, charge, plan) for charge in blocking],
    }


def _blocking_json(outlook: Outlook, charge: Charge, plan: Plan) -> Json:
    """`room`: what this plan may still take there, which may be less than what remains: `downgrade_below` keeps some for cheaper plans."""
    account = charge.ceiling.account
    return {
        "name": account.name,
        "scope": account.scope_name,
        "account": account.key,
        "unit": account.unit.value,
        "needs": amount(plan.held_at(charge), account.unit),
        "room": amount(_room(outlook, charge, plan), account.unit),
    }


def _room(outlook: Outlook, charge: Charge, plan: Plan) -> int:
    limit, balance, ceiling = outlook.limit(charge, plan), outlook.balance(charge), charge.ceiling
    assert limit is not None, "an account without a limit blocks nothing"
    reserved = 0 if ceiling.basis is Basis.COMMITTED else balance.reserved
    return max(0, limit * charge.share_ppm // WHOLE + ceiling.margin - balance.committed - reserved)


def _budgets(outlook: Outlook) -> Sequence[Balance]:
    """Each account of the ladder once, under the limit of the first charge that names it."""
    found: dict[str, Balance] = {}
    for plan in outlook.decision.ladder:
        for charge in plan.charges:
            if charge.ceiling.account.key not in found:
                found[charge.ceiling.account.key] = outlook.effective(charge, plan)
    return tuple(found.values())


def _reason(outlook: Outlook, ladder: Sequence[Plan]) -> str | None:
    """Why the requested model would not be called as it is."""
    barred = outlook.barred()
    if barred is not None:
        return barred
    charge = outlook.blocking(ladder[0]) if ladder else None
    if charge is None:
        warned = outlook.warned(ladder[0]) if ladder and outlook.outcome is Outcome.ADVISORY_WARN else None
        return None if warned is None else f"it would pass what {warned.ceiling.account.name} advises"
    account = charge.ceiling.account
    needs, room = ladder[0].held_at(charge), _room(outlook, charge, ladder[0])
    left = f"{amount_text(room, account.unit)} is left" + (
        "" if charge.share_ppm == WHOLE else " beside what is kept for other calls"
    )
    return f"{granted(account) or account.name} has no room for it: it needs {amount_text(needs, account.unit)}, and {left}"
