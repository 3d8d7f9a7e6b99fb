"""`GET /v1/balances`: the budgets of operators' making, each as its account in the ledger says."""

import asyncio
from dataclasses import dataclass

from gateway.core.grants import LEVELS, Grant, filters
from gateway.cycles import cursors
from gateway.cycles.faults import Fault
from gateway.cycles.ground import Ground
from gateway.cycles.reading import Query
from gateway.cycles.telling import WORDS, Json, Standing
from gateway.identity import Principal
from gateway.registry import BudgetDoc


@dataclass(frozen=True, slots=True)
class Balances:
    ground: Ground

    async def told(self, principal: Principal, query: Query) -> Json:
        """By scope, then unit. A budget matches that has all the values asked for. `include_children=false` leaves out those of scopes below
        the narrowest level that was asked for; else they are there, as the reference server has them."""
        ground = self.ground
        ground.registry.require(principal, "balances:read")
        for level, value in query.filters:
            if level == "tenant" and value != principal.tenant:
                raise Fault("FORBIDDEN", f"tenant: this key is of another tenant than {value}", {"field": "tenant"})
        await ground.look_again()
        allowed = () if principal.registered is None else principal.registered.scope_filter
        grants = [doc.grant for doc in ground.registry.all(BudgetDoc) if doc.tenant == principal.tenant]
        matching = [grant for grant in grants if _matches(grant, query) and filters(allowed, grant.scope)]
        matching.sort(key=_order)
        told = cursors.mark("balances", query.filters, query.children)
        after = cursors.read(query.cursor, told, str, str)
        if after is not None:
            matching = [grant for grant in matching if _order(grant) > tuple(after)]
        page = matching[: query.limit]
        balances = await asyncio.gather(*(self._standing(grant) for grant in page))
        answer: Json = {"balances": [each.json for each in balances]}
        if len(matching) > len(page):
            answer["next_cursor"] = cursors.write(told, _order(page[-1]))
        answer["has_more"] = len(matching) > len(page)
        return answer

    async def _standing(self, grant: Grant) -> Standing:
        view = await self.ground.ledger.account(grant.tenant, grant.account.key)
        if view is None:
            return Standing(grant, 0, 0, 0)
        balance = view.balance
        return Standing(grant, balance.limit or 0, balance.committed, balance.reserved)


def _order(grant: Grant) -> tuple[str, str]:
    return grant.text, WORDS.get(grant.unit, grant.unit.value)


def _matches(grant: Grant, query: Query) -> bool:
    if grant.unit not in WORDS:
        return False
    values = dict(grant.scope)
    if any(values.get(level) != value.lower() for level, value in query.filters):
        return False
    narrowest = max(LEVELS.index(level) for level, _ in query.filters)
    return query.children or all(LEVELS.index(level) <= narrowest for level, _ in grant.scope)
