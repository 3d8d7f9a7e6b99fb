"""`POST /budget/events`: a cost that is known already (a paid tool, a fixed fee), charged to the same budgets as calls, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.core.scopes import Amounts
from gateway.core.values import Ending, Usage, UsageSource
from gateway.ledger.contract import Debiting, Settled, Settlement
from gateway.server.external import COMMON, COUNTS, External, amounts_of, spent
from gateway.server.pages import body_of, flag_of, found, ledger_page
from gateway.server.routes import Route
from gateway.server.views import tightest_usd
from gateway.wire.exchange import Inbound, Reply

_NOTHING: Final = Amounts(0, 0, 0)


@dataclass(frozen=True, slots=True)
class EventsApi:
    external: External

    def routes(self) -> Sequence[Route]:
        return (ledger_page("POST", "/budget/events", self.record),)

    async def record(self, inbound: Inbound, params: Mapping[str, str]) -> Reply:
        """`{"run_id": "r1", "cost_usd": "0.12", "name": "web_search"}`, with an idempotency key. `record_always`: it has been spent, and is
        recorded though it does not fit, or the run takes no calls."""
        del params
        body = body_of(inbound, (*COMMON, "cost_usd", *COUNTS, "record_always"))
        cost = amounts_of(body, "cost_usd", _NOTHING)
        how = Debiting.ALWAYS if flag_of(body, "record_always") else Debiting.ASK
        external = self.external
        began_s = external.observer.clock_s()
        order = external.order(inbound, body, "evt")
        before = await external.recorded(order)
        if before is not None:
            return spent(before, await external.left(before), {}, replayed=True)
        settlement = Settlement(cost, Usage(UsageSource.COUNTED), Ending.DEBITED)
        settled: Settled = await external.admitted(
            order, cost, lambda decision: external.ledger.debit(decision, settlement, how), spent=how is Debiting.ALWAYS
        )
        now = found(await external.recorded(order), "event")
        external.settled(inbound.request_id, now, settled, order.call.caller.key, began_s)
        return spent(now, tightest_usd(settled.balances), {}, replayed=not settled.changed)
