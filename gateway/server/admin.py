"""`/admin/*`: what only the operator does. Needs the admin token, which opens no model route."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multidict import CIMultiDictProxy

from gateway.core.money import Microcents, parse_usd
from gateway.identity import Principal
from gateway.ledger.contract import Ledger
from gateway.server.pages import (
    PrincipalOf,
    bad_member,
    body_of,
    count_of,
    json_reply,
    ledger_page,
    not_found,
    query_of,
    reason_of,
)
from gateway.server.routes import Route
from gateway.server.views import record_json, settled_json
from gateway.wire.exchange import Inbound, Reply
from gateway.wire.headers import run_id
from gateway.wire.problem import Refused, bad_request, problem


@dataclass(frozen=True, slots=True)
class Admin:
    """`unset_token_env`: the environment variable that would hold the admin token, where it is not set; None where it is."""

    ledger: Ledger
    principal_of: PrincipalOf
    unset_token_env: str | None

    def routes(self) -> Sequence[Route]:
        return (
            ledger_page("GET", "/admin/holds", self.holds),
            ledger_page("POST", "/admin/holds/{id}/settle", self.settle),
        )

    async def holds(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """Live holds and those whose lease ran out (charged in full, unconfirmed), oldest first. `?run=` narrows it to one run."""
        del params
        principal = self._admin(inbound.headers)
        query = query_of(inbound, ("run", "limit"))
        limit = count_of(query, "limit", 100, 1_000)
        run = run_id(query["run"]) if "run" in query else None
        holds = await self.ledger.holds(principal.tenant, run, limit)
        return json_reply({"holds": [record_json(record) for record in holds]})

    async def settle(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"cost_usd": "0.12"}` says what the call really cost, `{"release": true}` that it cost nothing; `reason` is kept with it."""
        principal = self._admin(inbound.headers)
        hold_id = params["id"]
        body = body_of(inbound, ("cost_usd", "release", "reason"))
        cost, reason = _cost_in(body), reason_of(body)
        settled = (
            await self.ledger.settle(principal.tenant, hold_id, cost, principal.key, reason)
            if hold_id.startswith("rsv_")
            else None
        )
        if settled is None:
            raise not_found("hold")
        return json_reply(settled_json(hold_id, settled))

    def _admin(self, headers: CIMultiDictProxy[str]) -> Principal:
        principal = self.principal_of(headers)
        if not principal.admin:
            unset = self.unset_token_env
            way = "send it as the bearer token" if unset is None else f"none is configured: set {unset} and restart"
            raise Refused(problem("admin_required", f"This page needs the admin token; {way}."))
        return principal


def _cost_in(body: Mapping[str, object]) -> Microcents | None:
    """None: release."""
    if ("cost_usd" in body) == ("release" in body):
        raise bad_request("bad_request", 'Expected either {"cost_usd": "0.12"} or {"release": true}.')
    if "release" in body:
        if body["release"] is not True:
            raise bad_member("release", "true")
        return None
    cost = body["cost_usd"]
    if not isinstance(cost, str):
        raise bad_member("cost_usd", 'an amount in USD as a text, such as "0.12"')
    try:
        return parse_usd(cost)
    except ValueError as error:
        raise bad_request("bad_request", f"cost_usd: {error}.", "cost_usd") from None
