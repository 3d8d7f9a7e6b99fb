"""`/admin/*`: what only the operator does. Needs the admin token, which opens no model route. Every act is kept with who, when and why.

A page shows and changes one tenant: the one that `?tenant=` names, by default `default`.
"""

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from gateway.asks import Asks
from gateway.core.money import MAX_AMOUNT, parse_usd
from gateway.core.scopes import Unit
from gateway.identity import Principal
from gateway.ledger.contract import AccountView, Adjusting, Ledger
from gateway.policy_file import MAX_COUNT, parse_amount
from gateway.server.pages import (
    PrincipalOf,
    asked,
    bad_member,
    body_of,
    count_of,
    found,
    json_reply,
    ledger_page,
    reason_of,
    text_of,
    usd_of,
    whole_of,
)
from gateway.server.routes import Route
from gateway.server.views import account_view_json, act_json, ask_json, frozen_json, record_json, settled_json
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.headers import MAX_IDENTITY_CHARS, run_id
from gateway.wire.problem import Refused, bad_request, problem
from gateway.yaml_source import Unexpected

Scope: TypeAlias = Sequence[tuple[str, str]]

_OWN: Final = ("run", "key", "tenant")  # dimensions that every caller has
_PLANS: Final = ("model", "provider")
_MAX_SCOPE: Final = 6
_ACT_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Admin:
    """`unset_token_env`: the environment variable that would hold the admin token, where it is not set; None where it is.
    `dimensions`: those that callers have by the policy and their keys. `on_frozen`: ends the live calls of (tenant, scope) in this
    process."""

    ledger: Ledger
    principal_of: PrincipalOf
    unset_token_env: str | None
    dimensions: Callable[[], Collection[str]]
    on_frozen: Callable[[str, Scope], None]
    asks: Asks
    now_ms: Callable[[], int]

    def routes(self) -> Sequence[Route]:
        return (
            ledger_page("GET", "/admin/holds", self.holds),
            ledger_page("POST", "/admin/holds/{id}/settle", self.settle),
            ledger_page("GET", "/admin/frozen", self.frozen),
            ledger_page("POST", "/admin/freeze", self.freeze),
            ledger_page("POST", "/admin/thaw", self.thaw),
            ledger_page("GET", "/admin/accounts/{key}", self.account),
            ledger_page("POST", "/admin/accounts/{key}/limit", self.limit),
            ledger_page("POST", "/admin/accounts/{key}/adjust", self.adjust),
            ledger_page("POST", "/admin/accounts/{key}/reset", self.reset),
            ledger_page("GET", "/admin/acts", self.acts),
            ledger_page("GET", "/admin/asks", self.wanted),
        )

    # -- holds ----------------------------------------------------------------------------------------------------------------

    async def holds(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Live holds and those whose lease ran out (charged in full, unconfirmed), oldest first. `?run=` narrows it to one run."""
        del params
        principal, query = self._admin(inbound, ("run", "limit"))
        limit = count_of(query, "limit", 100, 1_000)
        run = run_id(query["run"]) if "run" in query else None
        holds = await self.ledger.holds(principal.tenant, run, limit)
        return json_reply({"holds": [record_json(record) for record in holds]})

    async def settle(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"cost_usd": "0.12"}` says what the call really cost, `{"release": true}` that it cost nothing; `reason` is kept with it."""
        principal, _ = self._admin(inbound)
        hold_id = params["id"]
        body = body_of(inbound, ("cost_usd", "release", "reason"))
        cost, reason = _cost_in(body), reason_of(body)
        settled = (
            await self.ledger.settle(principal.tenant, hold_id, cost, principal.key, reason)
            if hold_id.startswith("rsv_")
            else None
        )
        return json_reply(settled_json(hold_id, found(settled, "hold")))

    # -- scopes ---------------------------------------------------------------------------------------------------------------

    async def frozen(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        del params
        principal, _ = self._admin(inbound)
        return json_reply({"frozen": [frozen_json(each) for each in await self.ledger.frozen(principal.tenant)]})

    async def freeze(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"scope": {"team": "research"}}`: callers with all these values take no more calls; `{}` is the whole tenant that is acted
        on, another one is no scope in it."""
        del params
        principal, _ = self._admin(inbound)
        body = body_of(inbound, ("scope", "reason"))
        scope, reason = _scope_in(body), reason_of(body)
        known = {*_OWN, *self.dimensions()}
        for name, _ in scope:
            if name not in known:
                raise bad_member("scope", f"dimensions that callers have here: {', '.join(sorted(known))}; found {name!a}")
        if any(name == "tenant" and value != principal.tenant for name, value in scope):
            # It would freeze nobody, and seem to.
            here = f"{principal.tenant}, the tenant acted on; for all of another one use ?tenant=NAME and the scope {{}}"
            raise bad_member("scope.tenant", here)
        changed = await self.ledger.freeze(principal.tenant, scope, principal.key, reason)
        self.on_frozen(principal.tenant, scope)
        return json_reply({"scope": dict(scope), "frozen": True, "changed": changed})

    async def thaw(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """The same scope that was frozen: thawing the tenant leaves a frozen team as it is."""
        del params
        principal, _ = self._admin(inbound)
        body = body_of(inbound, ("scope", "reason"))
        scope, reason = _scope_in(body), reason_of(body)
        changed = await self.ledger.thaw(principal.tenant, scope, principal.key, reason)
        return json_reply({"scope": dict(scope), "frozen": False, "changed": changed})

    # -- accounts -------------------------------------------------------------------------------------------------------------

    async def account(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        principal, _ = self._admin(inbound)
        return _account_reply(await self.ledger.account(principal.tenant, params["key"]))

    async def limit(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"limit": "$10"}`, `"200k tokens"` or `"60 calls"`, by the account's unit; null: the policy's counts again."""
        (principal, _), key = self._admin(inbound), params["key"]
        body = body_of(inbound, ("limit", "reason"))
        reason = reason_of(body)
        account = found(await self.ledger.account(principal.tenant, key), "account")
        limit = _limit_in(body, account.balance.account.unit)
        view = await self.ledger.set_account_limit(principal.tenant, key, limit, principal.key, reason)
        await self.asks.given_room(principal.tenant, key, limit)
        return _account_reply(view)

    async def adjust(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"amount": "-1.50", "reason": "…"}` adds to what was committed, or takes away; once for each `id`."""
        (principal, _), key = self._admin(inbound), params["key"]
        body = body_of(inbound, ("amount", "reason", "id"))
        reason = reason_of(body)
        if not reason:
            raise bad_member("reason", "why, as a text: it is kept with the adjustment")
        act_id = text_of(body, "id", _ACT_ID, "1 to 128 of the characters A-Z a-z 0-9 . _ : -") or f"act_{secrets.token_hex(12)}"
        account = found(await self.ledger.account(principal.tenant, key), "account").balance.account
        amount = _change_in(body, account.unit)
        answer = await self.ledger.adjust(principal.tenant, key, amount, act_id, principal.key, reason)
        done, view = found(answer, "account")
        if done is Adjusting.BELOW_ZERO:
            raise bad_member("amount", "no more taken away than is committed and confirmed there")
        if done is Adjusting.ROLLING:
            raise bad_member("amount", "an account that adds up: a rolling window forgets by itself, and can be reset")
        if amount < 0:
            await self.asks.given_room(principal.tenant, key)
        return json_reply({**account_view_json(view), "id": act_id, "replayed": done is Adjusting.REPLAYED})

    async def reset(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Forgets what was committed there, but for what is unconfirmed. What is held stays held."""
        principal, _ = self._admin(inbound)
        reason = reason_of(body_of(inbound, ("reason",)))
        view = await self.ledger.reset(principal.tenant, params["key"], principal.key, reason)
        await self.asks.given_room(principal.tenant, params["key"])
        return _account_reply(view)

    # -- acts -----------------------------------------------------------------------------------------------------------------

    async def acts(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """What somebody did by hand, newest first. `next` is the `before` of the next page, null on the last one."""
        del params
        principal, query = self._admin(inbound, ("limit", "before"))
        limit = count_of(query, "limit", 50, 1_000)
        acts = await self.ledger.acts(principal.tenant, limit + 1, query.get("before"))
        following = acts[limit - 1].id if len(acts) > limit else None
        return json_reply({"acts": [act_json(act) for act in acts[:limit]], "next": following})

    async def wanted(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """The raises that runs ask for, and that no operator has answered, the oldest first."""
        del params
        principal, _ = self._admin(inbound)
        asks = await self.asks.open(principal.tenant, self.now_ms())
        return json_reply({"asks": [ask_json(ask) for ask in asks.values()]})

    def _admin(self, inbound: Inbound, known: Collection[str] = ()) -> tuple[Principal, dict[str, str]]:
        """The admin in the tenant acted on, and the query."""
        if not self.principal_of(inbound.headers).admin:
            unset = self.unset_token_env
            way = "send it as the bearer token" if unset is None else f"none is configured: set {unset} and restart"
            raise Refused(problem("admin_required", f"This page needs the admin token; {way}."))
        return asked(self.principal_of, inbound, known)


def _account_reply(view: AccountView | None) -> Reply:
    return json_reply(account_view_json(found(view, "account")))


def _cost_in(body: Mapping[str, object]) -> int | None:
    """None: release."""
    if ("cost_usd" in body) == ("release" in body):
        raise bad_request("bad_request", 'Expected either {"cost_usd": "0.12"} or {"release": true}.')
    if "release" in body and body["release"] is not True:
        raise bad_member("release", "true")
    return usd_of(body, "cost_usd")


def _scope_in(body: Mapping[str, object]) -> Scope:
    """Sorted by dimension."""
    scope = body.get("scope")
    if not isinstance(scope, dict) or len(scope) > _MAX_SCOPE:
        raise bad_member("scope", 'an object such as {"team": "research"}; {} is the whole tenant')
    for name, value in scope.items():
        if name in _PLANS:
            raise bad_member("scope", f"what callers are, not a {name}: models are refused by `models.allow` in the policy")
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_IDENTITY_CHARS:
            raise bad_member(f"scope.{name[:80]}", f"a text of 1 to {MAX_IDENTITY_CHARS} printable characters")
    return tuple(sorted(scope.items()))


def _limit_in(body: Mapping[str, object], unit: Unit) -> int | None:
    given = body.get("limit")
    if given is None and "limit" in body:
        return None
    if isinstance(given, str) and unit is Unit.USD:
        return usd_of(body, "limit")
    if isinstance(given, int) and unit is not Unit.USD:
        return whole_of(body, "limit", MAX_COUNT)
    try:
        limit = parse_amount(given) if isinstance(given, str) else None
    except Unexpected:
        limit = None
    if limit is None or limit.unit is not unit:
        example = "$10.00" if unit is Unit.USD else f"{'200k' if unit is Unit.TOKENS else 60} {unit.words}"
        raise bad_member("limit", f'"{example}", as this account counts {unit.words}, or null for the policy\'s limit')
    return limit.amount


def _change_in(body: Mapping[str, object], unit: Unit) -> int:
    """What is to be added, in the account's unit; below zero: taken away."""
    given = body.get("amount")
    if unit is not Unit.USD:
        if not isinstance(given, int) or isinstance(given, bool) or not 0 < abs(given) <= MAX_COUNT:
            raise bad_member("amount", f"a whole number of {unit.words}, such as 500 or -500")
        return given
    expected = 'an amount in USD as a text, such as "1.50" or "-1.50"'
    if not isinstance(given, str):
        raise bad_member("amount", expected)
    try:
        amount = parse_usd(given.strip().removeprefix("-"))
    except ValueError:
        raise bad_member("amount", expected) from None
    if not 0 < amount <= MAX_AMOUNT:
        raise bad_member("amount", expected)
    return -amount if given.strip().startswith("-") else amount
