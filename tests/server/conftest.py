"""A real ledger on a file of its own, with a clock that stands still until a test moves it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.asks import Asks
from gateway.core.catalog import Catalog
from gateway.core.policy import Budget, RunOwner
from gateway.events import Events
from gateway.identity import Identity
from gateway.ledger.contract import Alert
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from gateway.metrics import Metrics
from gateway.observer import Observer, Outside
from gateway.server.budget_api import BudgetApi
from gateway.server.events_api import EventsApi
from gateway.server.external import External
from gateway.server.reservations_api import ReservationsApi
from gateway.settings import Settings, SqliteSettings
from tests.support.clock import Clock
from tests.support.pages import Asking
from tests.support.records import USD
from tests.support.rulebooks import budget, policy, rulebook


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteLedger]:
    opened = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness.json"), clock)
    await opened.start()
    yield opened
    await opened.close()


ADMIN_TOKEN = "admin-token-0123456789"


class Told(Observer):
    """An observer that keeps what it is told."""

    def __init__(self, alerts: list[Alert], receipts: list[Outside], refusals: list[tuple[object, ...]]) -> None:
        super().__init__(Events(lambda _: None), Metrics({}), lambda: 0.0)
        self.alert = alerts.append  # type: ignore[method-assign]
        self.outside = receipts.append  # type: ignore[method-assign]
        self.refused_outside = lambda *told: refusals.append(told)  # type: ignore[method-assign]


class Spending:
    """The pages for what is spent beside the proxy, and the policy they go by, which a test replaces."""

    def __init__(self, ledger: SqliteLedger, identity: Identity, clock: Clock) -> None:
        self.ledger = ledger
        self.rulebook = rulebook(policy(budget("run-ceiling", "run", limit=USD)))
        self.alerts: list[Alert] = []
        self.receipts: list[Outside] = []
        self.refusals: list[tuple[object, ...]] = []
        external = External(ledger, identity, lambda: self.rulebook, Told(self.alerts, self.receipts, self.refusals), clock)
        asks = Asks(ledger, lambda *_: None)
        budget_api = BudgetApi(ledger, identity.principal, self.shared, lambda *_: None, lambda *_: None, clock, asks)
        pages = (EventsApi(external), ReservationsApi(external, 600_000), budget_api)
        self.ask = Asking([route for page in pages for route in page.routes()])

    def shared(self) -> bool:
        return self.rulebook.policy.runs.owner is RunOwner.TENANT

    def under(self, *budgets: Budget, **sections: Any) -> None:
        self.rulebook = rulebook(policy(*budgets, **sections))

    async def balance(self, run: str = "r1") -> tuple[int, int]:
        """(committed, reserved)."""
        view = await self.ledger.run("default", run)
        return (0, 0) if view is None else (view.committed, view.reserved)


@pytest.fixture
def spending(ledger: SqliteLedger, clock: Clock, tmp_path: Path) -> Spending:
    here = SqliteSettings(tmp_path / "ledger.db")
    settings = Settings(
        "127.0.0.1", 0, tmp_path / "policy.yaml", here, tmp_path, {}, Catalog("prices-1", {}), admin_token=ADMIN_TOKEN
    )
    return Spending(ledger, Identity(settings, b"secret", iter(f"run_{n}" for n in range(1_000)).__next__), clock)
