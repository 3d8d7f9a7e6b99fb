"""What only the operator does: see open holds, and say what an unconfirmed one really cost."""

import pytest

from gateway.core.values import Hold
from gateway.ledger.sqlite import SqliteLedger
from gateway.server.admin import Admin
from tests.support.clock import Clock
from tests.support.pages import Asking, principal_of
from tests.support.records import USD, caller, decision

LEASE_MS = 600_000


@pytest.fixture
def ask(ledger: SqliteLedger) -> Asking:
    return Asking(Admin(ledger, principal_of, unset_token_env=None).routes())


async def expired(ledger: SqliteLedger, clock: Clock) -> None:
    """rsv_1 of r1 ran out and was charged in full, $0.10; rsv_2 of r2 is live."""
    assert isinstance(await ledger.reserve(decision("bdg_1", at_ms=clock.now_ms), LEASE_MS), Hold)
    clock.now_ms += LEASE_MS + 1
    assert len(await ledger.expire()) == 1
    assert isinstance(await ledger.reserve(decision("bdg_2", caller("r2"), at_ms=clock.now_ms), LEASE_MS), Hold)


async def committed(ledger: SqliteLedger) -> tuple[int, int]:
    view = await ledger.run("default", "r1")
    assert view is not None
    return view.committed, view.unconfirmed


async def test_live_and_unconfirmed_holds_are_listed_oldest_first(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await expired(ledger, clock)
    status, shown = await ask("GET", "/admin/holds", as_="admin")
    assert status == 200
    assert [(hold["reservation_id"], hold["state"]) for hold in shown["holds"]] == [("rsv_1", "expired"), ("rsv_2", "live")]
    assert shown["holds"][0]["held_usd"] == "0.10"
    _, shown = await ask("GET", "/admin/holds?run=r2", as_="admin")
    assert [hold["reservation_id"] for hold in shown["holds"]] == ["rsv_2"]


async def test_an_unconfirmed_hold_is_settled_once_at_what_it_really_cost(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    await expired(ledger, clock)
    assert await committed(ledger) == (USD // 10, USD // 10)
    status, shown = await ask("POST", "/admin/holds/rsv_1/settle", {"cost_usd": "0.04", "reason": "the invoice"}, as_="admin")
    assert status == 200
    assert (shown["state"], shown["changed"], shown["charged_usd"]) == ("committed", True, "0.04")
    assert await committed(ledger) == (USD // 25, 0)
    status, shown = await ask("POST", "/admin/holds/rsv_1/settle", {"cost_usd": "0.01"}, as_="admin")
    assert (status, shown["changed"], shown["charged_usd"]) == (200, False, "0.04")
    assert await committed(ledger) == (USD // 25, 0)


async def test_an_unconfirmed_hold_that_cost_nothing_is_given_back(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    await expired(ledger, clock)
    status, shown = await ask("POST", "/admin/holds/rsv_1/settle", {"release": True}, as_="admin")
    assert (status, shown["state"], shown["charged_usd"]) == (200, "released", "0.00")
    assert await committed(ledger) == (0, 0)


@pytest.mark.parametrize("hold", ["rsv_9", "bdg_1", "1"])
async def test_a_hold_that_never_was_is_not_found(ask: Asking, ledger: SqliteLedger, clock: Clock, hold: str) -> None:
    await expired(ledger, clock)
    status, shown = await ask("POST", f"/admin/holds/{hold}/settle", {"release": True}, as_="admin")
    assert (status, shown["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"cost_usd": "0.1", "release": True},
        {"release": False},
        {"release": "true"},
        {"cost_usd": 0.1},
        {"cost_usd": "-0.1"},
        {"cost_usd": None},
        {"cost_usd": "0.1", "reason": 1},
        {"cost": "0.1"},
        b"{",
    ],
)
async def test_a_settlement_that_cannot_be_read_changes_nothing(
    ask: Asking, ledger: SqliteLedger, clock: Clock, body: object
) -> None:
    await expired(ledger, clock)
    assert (await ask("POST", "/admin/holds/rsv_1/settle", body, as_="admin"))[0] == 400
    assert await committed(ledger) == (USD // 10, USD // 10)


@pytest.mark.parametrize(("method", "path"), [("GET", "/admin/holds"), ("POST", "/admin/holds/rsv_1/settle")])
async def test_nobody_but_the_admin_gets_in(ask: Asking, ledger: SqliteLedger, clock: Clock, method: str, path: str) -> None:
    await expired(ledger, clock)
    status, shown = await ask(method, path, {"release": True} if method == "POST" else None)
    assert (status, shown["code"]) == (403, "admin_required")
    assert (await ask(method, path, as_=None))[0] == 401
    assert await committed(ledger) == (USD // 10, USD // 10)


async def test_without_an_admin_token_the_refusal_says_how_to_set_one(ledger: SqliteLedger) -> None:
    ask = Asking(Admin(ledger, principal_of, unset_token_env="HOUSE_TOKEN").routes())
    status, shown = await ask("GET", "/admin/holds")
    assert (status, shown["code"]) == (403, "admin_required")
    assert "set HOUSE_TOKEN" in shown["error"]["message"]
