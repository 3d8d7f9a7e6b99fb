"""A run asks for a raise: operators see it until they raise something, every gateway knows it, and nothing is granted by it."""

from typing import Any

import pytest

from gateway import asks as asks_module
from gateway.asks import KEPT_MS, Ask, Asks
from gateway.core.scopes import Unit
from gateway.core.values import Hold
from gateway.identity import Principal
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.server.admin import Admin
from gateway.server.budget_api import BudgetApi
from tests.support.clock import Clock
from tests.support.pages import Asking, principal_of
from tests.support.records import USD, caller, decision

WANTED = {"amount": "$2.00", "reason": "two chapters are left"}


class Pages:
    """Those of one gateway. Another one on the same ledger remembers nothing of this one's."""

    def __init__(self, ledger: SqliteLedger, clock: Clock) -> None:
        self.told: list[tuple[str, Ask]] = []

        def ceiling(principal: Principal, run: str) -> int | None:
            return 5 * USD

        asks = Asks(ledger, lambda *asked: self.told.append(asked))
        api = BudgetApi(ledger, principal_of, lambda: False, ceiling, lambda *_: None, clock, asks)
        admin = Admin(ledger, principal_of, None, lambda: {"team"}, lambda *_: None, asks, clock)
        self.ask = Asking([*api.routes(), *admin.routes()])

    async def wants(self, body: Any = WANTED, run: str = "r1", as_: str = "a") -> tuple[int, dict[str, Any]]:
        return await self.ask("POST", f"/budget/runs/{run}/ask", body, as_)

    async def open(self) -> list[Any]:
        status, shown = await self.ask("GET", "/admin/asks", as_="admin")
        assert status == 200
        asks: list[Any] = shown["asks"]
        return asks

    async def shown(self, run: str = "r1") -> Any:
        return (await self.ask("GET", f"/budget/runs/{run}"))[1]["ask"]


@pytest.fixture
async def pages(ledger: SqliteLedger, clock: Clock) -> Pages:
    for number, run in enumerate(("r1", "r2")):
        held = await ledger.reserve(decision(f"bdg_{number}", caller(run), limit=5 * USD, at_ms=clock.now_ms), 600_000)
        assert isinstance(held, Hold)
    return Pages(ledger, clock)


async def test_an_ask_is_shown_with_the_run_and_to_operators_and_grants_nothing(
    pages: Pages, ledger: SqliteLedger, clock: Clock
) -> None:
    status, shown = await pages.wants()
    assert status == 200
    assert (shown["run_id"], shown["limit_usd"]) == ("r1", "5.00")
    ask = shown["ask"]
    assert ask == {
        "run_id": "r1",
        "key": "key_a",
        "unit": "usd",
        "amount": "2.00",
        "reason": "two chapters are left",
        "at": "2026-11-30T12:00:00.000Z",
        "account": "run-ceiling|run=r1|lifetime|usd",
        "limit": "5.00",
    }
    assert await pages.shown() == ask
    assert [each["ask"] for each in (await pages.ask("GET", "/budget/runs"))[1]["runs"] if each["run_id"] == "r1"] == [ask]
    assert await pages.open() == await Pages(ledger, clock).open() == [ask]
    assert [(tenant, told.run, told.amount) for tenant, told in pages.told] == [("default", "r1", 2 * USD)]
    assert await pages.shown("r2") is None


async def test_a_newer_ask_takes_the_place_of_the_older_and_the_same_again_is_told_once(pages: Pages, clock: Clock) -> None:
    await pages.wants()
    await pages.wants()
    clock.now_ms += 1
    await pages.wants({"amount": "30 calls", "reason": "the index is long"})
    assert [(each["unit"], each["amount"], each["account"]) for each in await pages.open()] == [("calls", 30, None)]
    assert [told.unit for _, told in pages.told] == [Unit.USD, Unit.CALLS]


async def test_the_admins_raise_of_the_run_answers_it(pages: Pages) -> None:
    await pages.wants()
    await pages.wants(run="r2")
    await pages.ask("PUT", "/budget/runs/r1", {"limit": "$4.00"})  # the owner's, and no raise
    await pages.ask("PUT", "/budget/runs/r1", {"limit": "$4.50"}, as_="admin")
    assert len(await pages.open()) == 2
    _, shown = await pages.ask("PUT", "/budget/runs/r1", {"limit": "$7.00"}, as_="admin")
    assert (shown["limit_usd"], shown["ask"]) == ("7.00", None)
    assert [each["run_id"] for each in await pages.open()] == ["r2"]


@pytest.mark.parametrize(
    ("page", "body", "answered"),
    [
        ("limit", {"limit": "$9.00"}, True),
        ("limit", {"limit": "$3.00"}, False),
        ("limit", {"limit": None}, True),
        ("adjust", {"amount": "-0.01", "reason": "a credit"}, True),
        ("adjust", {"amount": "0.01", "reason": "a bill"}, False),
        ("reset", {}, True),
    ],
)
async def test_more_room_in_the_account_that_it_is_about_answers_it(
    pages: Pages, page: str, body: dict[str, object], answered: bool
) -> None:
    await pages.ask(
        "POST", "/admin/accounts/run-ceiling%7Crun%3Dr1%7Clifetime%7Cusd/adjust", {"amount": "1", "reason": "-"}, "admin"
    )
    await pages.wants()
    await pages.wants(run="r2")
    account = "/admin/accounts/run-ceiling%7Crun%3Dr1%7Clifetime%7Cusd"
    assert (await pages.ask("POST", f"{account}/{page}", body, as_="admin"))[0] == 200
    assert [each["run_id"] for each in await pages.open()] == (["r2"] if answered else ["r1", "r2"])


async def test_one_that_comes_while_another_is_answered_stays(
    pages: Pages, ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pages.wants()
    put = ledger.put_document

    async def later(tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        monkeypatch.setattr(ledger, "put_document", put)
        await pages.wants({"amount": "$3.00", "reason": "three are left"})
        return await put(tenant, name, text, expected)

    monkeypatch.setattr(ledger, "put_document", later)
    await pages.ask("PUT", "/budget/runs/r1", {"limit": "$7.00"}, as_="admin")
    assert [each["amount"] for each in await pages.open()] == ["3.00"]


async def test_two_gateways_that_ask_at_once_leave_one_ask(
    pages: Pages, ledger: SqliteLedger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, put = Pages(ledger, clock), ledger.put_document

    async def later(tenant: str, name: str, text: str | None, expected: str | None) -> bool:
        monkeypatch.setattr(ledger, "put_document", put)
        await other.wants({"amount": "$3.00", "reason": "three are left"})
        return await put(tenant, name, text, expected)

    monkeypatch.setattr(ledger, "put_document", later)
    assert (await pages.wants())[0] == 200
    assert [each["amount"] for each in await pages.open()] == ["2.00"]


async def test_one_that_nobody_answers_in_a_month_is_gone(pages: Pages, ledger: SqliteLedger, clock: Clock) -> None:
    await pages.wants()
    clock.now_ms += KEPT_MS
    assert await pages.open() == []
    await pages.wants(run="r2")
    told = await ledger.documents("default")
    assert told is not None
    assert list(told.texts) == ["ask/r2"]


async def test_there_are_so_many_of_a_tenant_at_most_and_the_oldest_gives_way(
    pages: Pages, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks_module, "AT_MOST", 1)
    await pages.wants()
    clock.now_ms += 1
    await pages.wants(run="r2")
    assert [each["run_id"] for each in await pages.open()] == ["r2"]


async def test_only_the_runs_owner_and_the_admin_may_ask_and_only_the_admin_sees_all(pages: Pages) -> None:
    assert (await pages.wants(as_="b"))[0] == 404
    assert (await pages.wants(run="never-was"))[0] == 404
    assert (await pages.wants(as_="admin"))[0] == 200
    status, shown = await pages.ask("GET", "/admin/asks")
    assert (status, shown["code"]) == (403, "admin_required")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reason": "more"}, "amount"),
        ({"amount": "much", "reason": "more"}, "amount"),
        ({"amount": "$0", "reason": "more"}, "amount"),
        ({"amount": 2, "reason": "more"}, "amount"),
        ({"amount": "$2"}, "reason"),
        ({"amount": "$2", "reason": "x" * 501}, "reason"),
        ({"amount": "$2", "reason": "more", "grant": True}, "grant"),
    ],
)
async def test_what_cannot_be_read_is_refused(pages: Pages, body: dict[str, object], param: str) -> None:
    status, shown = await pages.wants(body)
    assert (status, shown["error"]["param"]) == (400, param)
    assert await pages.open() == []
