"""The admin plane as one thing that the gateway serves."""

from collections.abc import Callable, Sequence

from gateway.asks import Asks
from gateway.cycles.governance.budgets import Budgets
from gateway.cycles.governance.door import Door
from gateway.cycles.governance.insight import Insight
from gateway.cycles.governance.keys import Keys
from gateway.cycles.governance.pages import Paged
from gateway.cycles.governance.policies import Policies
from gateway.cycles.governance.tenants import Tenants
from gateway.identity import Identity
from gateway.ledger.contract import Ledger
from gateway.registry import Registry


def pages(ledger: Ledger, identity: Identity, registry: Registry, asks: Asks, now_ms: Callable[[], int]) -> Sequence[Paged]:
    door = Door(identity, registry)
    budgets = Budgets(door, ledger, asks, now_ms)
    parts = (
        *(Tenants(door, ledger, now_ms), Keys(door, now_ms), budgets),
        *(Policies(door, now_ms), Insight(door, ledger, budgets, now_ms)),
    )
    return [page for part in parts for page in part.pages()]
