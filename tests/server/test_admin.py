"""What only the operator does: settle holds, freeze scopes, correct accounts; and what is kept of it."""

from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from gateway.asks import Asks
from gateway.core.values import Hold
from gateway.ledger.contract import Barred, Barrier, Refusal
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.server.admin import Admin
from tests.support.clock import Clock
from tests.support.pages import Asking, principal_of
from tests.support.records import USD, caller, decision

LEASE_MS = 600_000


ACCOUNT = "/admin/accounts/" + quote("run-ceiling|run=r1|lifetime|usd", safe="")


@pytest.fixture
def ended() -> list[tuple[str, Any]]:
    """The flow's part: whose live calls it was told to end."""
    return []


@pytest.fixture
def ask(ledger: SqliteLedger, clock: Clock, ended: list[tuple[str, Any]]) -> Asking:
    def on_frozen(tenant: str, scope: Any) -> None:
        ended.append((tenant, scope))

    return Asking(
        Admin(ledger, principal_of, None, lambda: {"team", "agent"}, on_frozen, Asks(ledger, lambda *_: None), clock).routes()
    )


def nothing(tenant: str, scope: object) -> None:
    """Where nothing is frozen."""


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


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/holds"),
        ("POST", "/admin/holds/rsv_1/settle"),
        ("GET", "/admin/frozen"),
        ("POST", "/admin/freeze"),
        ("POST", "/admin/thaw"),
        ("GET", ACCOUNT),
        ("POST", f"{ACCOUNT}/limit"),
        ("POST", f"{ACCOUNT}/adjust"),
        ("POST", f"{ACCOUNT}/reset"),
        ("GET", "/admin/acts"),
    ],
)
async def test_nobody_but_the_admin_gets_in(ask: Asking, ledger: SqliteLedger, clock: Clock, method: str, path: str) -> None:
    await expired(ledger, clock)
    status, shown = await ask(method, path, {"release": True} if method == "POST" else None)
    assert (status, shown["code"]) == (403, "admin_required")
    assert (await ask(method, path, as_=None))[0] == 401
    assert await committed(ledger) == (USD // 10, USD // 10)


async def test_without_an_admin_token_the_refusal_says_how_to_set_one(ledger: SqliteLedger, clock: Clock) -> None:
    ask = Asking(Admin(ledger, principal_of, "HOUSE_TOKEN", frozenset, nothing, Asks(ledger, lambda *_: None), clock).routes())
    status, shown = await ask("GET", "/admin/holds")
    assert (status, shown["code"]) == (403, "admin_required")
    assert "set HOUSE_TOKEN" in shown["error"]["message"]


# -- freezing -------------------------------------------------------------------------------------------------------------------


async def reserved(ledger: SqliteLedger, clock: Clock, number: int, run: str = "r1", **dimensions: str) -> object:
    """$0.10, under $5."""
    return await ledger.reserve(decision(f"bdg_{number}", caller(run, **dimensions), at_ms=clock.now_ms), LEASE_MS)


async def test_a_frozen_scope_takes_no_calls_until_it_is_thawed_and_its_live_ones_end(
    ask: Asking, ledger: SqliteLedger, clock: Clock, ended: list[tuple[str, Any]]
) -> None:
    status, shown = await ask(
        "POST", "/admin/freeze", {"scope": {"team": "research", "agent": "a1"}, "reason": "loops"}, as_="admin"
    )
    assert (status, shown) == (200, {"scope": {"agent": "a1", "team": "research"}, "frozen": True, "changed": True})
    assert ended == [("default", (("agent", "a1"), ("team", "research")))]
    refused = await reserved(ledger, clock, 1, team="research", agent="a1")
    assert isinstance(refused, Barred)
    assert (refused.barrier, refused.what) == (Barrier.FROZEN, "agent=a1,team=research")
    assert isinstance(await reserved(ledger, clock, 2, team="research", agent="a2"), Hold)
    _, shown = await ask("GET", "/admin/frozen", as_="admin")
    (frozen,) = shown["frozen"]
    assert (frozen["scope"], frozen["who"], frozen["reason"]) == ({"agent": "a1", "team": "research"}, "admin", "loops")
    again = await ask("POST", "/admin/freeze", {"scope": {"agent": "a1", "team": "research"}}, as_="admin")
    assert again[1]["changed"] is False
    status, shown = await ask("POST", "/admin/thaw", {"scope": {"team": "research", "agent": "a1"}}, as_="admin")
    assert (status, shown["frozen"], shown["changed"]) == (200, False, True)
    assert isinstance(await reserved(ledger, clock, 3, team="research", agent="a1"), Hold)
    assert (await ask("GET", "/admin/frozen", as_="admin"))[1] == {"frozen": []}


async def test_the_whole_tenant_can_be_frozen(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    assert (await ask("POST", "/admin/freeze", {"scope": {}}, as_="admin"))[0] == 200
    assert isinstance(await reserved(ledger, clock, 1), Barred)
    assert (await ask("POST", "/admin/thaw", {"scope": {}}, as_="admin"))[1]["changed"] is True
    assert isinstance(await reserved(ledger, clock, 2), Hold)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "{} is the whole tenant"),
        ({"scope": None}, "{} is the whole tenant"),
        ({"scope": "team"}, "{} is the whole tenant"),
        ({"scope": {"model": "gpt-5"}}, "models.allow"),
        ({"scope": {"provider": "openai"}}, "not a provider"),
        ({"scope": {"taem": "research"}}, "agent, key, run, team, tenant"),  # it would freeze nobody, and seem to
        ({"scope": {"team": 5}}, "scope.team"),
        ({"scope": {"team": ""}}, "scope.team"),
        ({"scope": {"team": "a\nb"}}, "scope.team"),
        ({"scope": {"team": "x"}, "why": "y"}, "why"),
        ({"scope": {"tenant": "acme"}}, "use ?tenant=NAME and the scope {}"),  # of default, it would freeze nobody
    ],
)
async def test_a_scope_that_cannot_be_is_refused_and_nobody_is_frozen(
    ask: Asking, ended: list[tuple[str, Any]], body: object, words: str
) -> None:
    status, shown = await ask("POST", "/admin/freeze", body, as_="admin")
    assert (status, shown["code"]) == (400, "bad_request")
    assert words in shown["detail"]
    assert ended == []
    assert (await ask("GET", "/admin/frozen", as_="admin"))[1] == {"frozen": []}


# -- tenants --------------------------------------------------------------------------------------------------------------------


async def test_the_admin_acts_on_the_tenant_that_is_named_and_on_no_other(
    ask: Asking, ledger: SqliteLedger, clock: Clock, ended: list[tuple[str, Any]]
) -> None:
    theirs = decision("bdg_1", replace(caller("r1"), tenant="acme"), at_ms=clock.now_ms)
    assert isinstance(await ledger.reserve(theirs, LEASE_MS), Hold)
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    assert (await ask("POST", f"{ACCOUNT}/limit?tenant=acme", {"limit": "$0.15"}, as_="admin"))[1]["limit"] == "0.15"
    assert (await ask("GET", ACCOUNT, as_="admin"))[1]["limit"] is None
    assert (await ask("POST", "/admin/holds/rsv_1/settle?tenant=acme", {"release": True}, as_="admin"))[1]["changed"] is True
    assert (await ask("GET", "/admin/holds?tenant=acme", as_="admin"))[1]["holds"] == []
    assert len((await ask("GET", "/admin/holds", as_="admin"))[1]["holds"]) == 1
    assert (await ask("POST", "/admin/freeze?tenant=acme", {"scope": {"tenant": "acme"}}, as_="admin"))[0] == 200
    assert ended == [("acme", (("tenant", "acme"),))]
    assert isinstance(await ledger.reserve(replace(theirs, id="bdg_2"), LEASE_MS), Barred)
    assert (await ask("GET", "/admin/frozen", as_="admin"))[1] == {"frozen": []}
    _, told = await ask("GET", "/admin/acts?tenant=acme", as_="admin")
    assert [act["act"] for act in told["acts"]] == ["freeze", "settle", "set_account_limit"]
    assert (await ask("GET", "/admin/acts", as_="admin"))[1]["acts"] == []


@pytest.mark.parametrize(
    "query", ["tenant=", "tenant=a%20b", "tenant=a/b", f"tenant={'x' * 65}", "tenant=a&tenant=b", "tennant=a"]
)
async def test_a_tenant_that_cannot_be_is_refused_before_anything_is_done(
    ask: Asking, ended: list[tuple[str, Any]], query: str
) -> None:
    status, shown = await ask("POST", f"/admin/freeze?{query}", {"scope": {}}, as_="admin")
    assert (status, shown["code"]) == (400, "bad_request")
    assert ended == []
    assert (await ask("GET", f"/admin/acts?{query}", as_="admin"))[0] == 400


# -- accounts -------------------------------------------------------------------------------------------------------------------


async def test_an_account_is_shown_by_its_key(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    assert await ask("GET", ACCOUNT, as_="admin") == (
        200,
        {
            "account": "run-ceiling|run=r1|lifetime|usd",
            "name": "run-ceiling",
            "scope": "run",
            "scope_values": {"run": "r1"},
            "window": "lifetime",
            "timezone": None,
            "window_starts": None,
            "window_ends": None,
            "unit": "usd",
            "limit": None,
            "committed": "0.00",
            "reserved": "0.10",
            "remaining": None,
            "unconfirmed": "0.00",
            "carried": "0.00",
            "adjusted": "0.00",
        },
    )
    assert (await ask("GET", "/admin/accounts/nonsense", as_="admin"))[1]["code"] == "not_found"


async def test_a_limit_that_is_stored_with_an_account_counts_until_it_is_taken_away(
    ask: Asking, ledger: SqliteLedger, clock: Clock
) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    status, shown = await ask("POST", f"{ACCOUNT}/limit", {"limit": "$0.15", "reason": "less"}, as_="admin")
    assert (status, shown["limit"], shown["remaining"]) == (200, "0.15", "0.05")
    assert isinstance(await reserved(ledger, clock, 2), Refusal)
    status, shown = await ask("POST", f"{ACCOUNT}/limit", {"limit": None}, as_="admin")
    assert (status, shown["limit"]) == (200, None)
    assert isinstance(await reserved(ledger, clock, 3), Hold)


@pytest.mark.parametrize(
    "body", [{}, {"limit": "60 calls"}, {"limit": 5}, {"limit": "-1"}, {"limit": "$5", "x": 1}, {"limit": ""}]
)
async def test_a_limit_in_another_unit_is_refused(ask: Asking, ledger: SqliteLedger, clock: Clock, body: object) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    status, shown = await ask("POST", f"{ACCOUNT}/limit", body, as_="admin")
    assert (status, shown["code"]) == (400, "bad_request")
    assert (await ask("GET", ACCOUNT, as_="admin"))[1]["limit"] is None


async def test_an_adjustment_counts_once_for_its_id(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    added = {"amount": "1.50", "reason": "a bill from elsewhere", "id": "bill-7"}
    status, shown = await ask("POST", f"{ACCOUNT}/adjust", added, as_="admin")
    assert (status, shown["committed"], shown["adjusted"], shown["id"]) == (200, "1.50", "1.50", "bill-7")
    assert shown["replayed"] is False
    again = await ask("POST", f"{ACCOUNT}/adjust", added, as_="admin")
    assert (again[1]["committed"], again[1]["replayed"]) == ("1.50", True)
    taken = await ask("POST", f"{ACCOUNT}/adjust", {"amount": "-0.50", "reason": "half of it"}, as_="admin")
    assert (taken[1]["committed"], taken[1]["adjusted"]) == ("1.00", "1.00")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"amount": "1"}, "reason"),
        ({"reason": "x"}, "amount"),
        ({"amount": 1, "reason": "x"}, "amount"),
        ({"amount": "0", "reason": "x"}, "amount"),
        ({"amount": "--1", "reason": "x"}, "amount"),
        ({"amount": "much", "reason": "x"}, "amount"),
        ({"amount": "-0.01", "reason": "x"}, "no more taken away"),  # nothing is committed
        ({"amount": "1", "reason": "x", "id": "a b"}, "id"),
    ],
)
async def test_an_adjustment_that_cannot_be_made_changes_nothing(
    ask: Asking, ledger: SqliteLedger, clock: Clock, body: object, words: str
) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    status, shown = await ask("POST", f"{ACCOUNT}/adjust", body, as_="admin")
    assert (status, shown["code"]) == (400, "bad_request")
    assert words in shown["detail"]
    assert (await ask("GET", ACCOUNT, as_="admin"))[1]["committed"] == "0.00"


async def test_a_reset_forgets_what_was_committed_and_keeps_what_is_held(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    await ask("POST", f"{ACCOUNT}/adjust", {"amount": "2", "reason": "x"}, as_="admin")
    status, shown = await ask("POST", f"{ACCOUNT}/reset", {"reason": "a new month"}, as_="admin")
    assert (status, shown["committed"], shown["reserved"]) == (200, "0.00", "0.10")
    assert (await ask("POST", "/admin/accounts/nonsense/reset", as_="admin"))[0] == 404


# -- acts -----------------------------------------------------------------------------------------------------------------------


async def test_every_act_says_who_when_and_why_newest_first_page_by_page(ask: Asking, ledger: SqliteLedger, clock: Clock) -> None:
    assert isinstance(await reserved(ledger, clock, 1), Hold)
    await ask("POST", "/admin/freeze", {"scope": {"team": "a b"}, "reason": "one"}, as_="admin")
    clock.now_ms += 1_000
    await ask("POST", f"{ACCOUNT}/limit", {"limit": "$7", "reason": "two"}, as_="admin")
    await ask("POST", f"{ACCOUNT}/adjust", {"amount": "1.25", "reason": "three"}, as_="admin")
    await ask("POST", f"{ACCOUNT}/limit", {"limit": None, "reason": "four"}, as_="admin")
    status, first = await ask("GET", "/admin/acts?limit=3", as_="admin")
    assert status == 200
    key = "run-ceiling|run=r1|lifetime|usd"
    assert [(act["act"], act["what"], act["amount"], act["reason"]) for act in first["acts"]] == [
        ("set_account_limit", key, None, "four"),
        ("adjust", key, "1.25", "three"),
        ("set_account_limit", key, "7.00", "two"),
    ]
    _, second = await ask("GET", f"/admin/acts?limit=3&before={first['next']}", as_="admin")
    (frozen,) = second["acts"]
    assert (frozen["act"], frozen["what"], frozen["who"]) == ("freeze", "team=a%20b", "admin")
    assert (frozen["at"], frozen["reason"], second["next"]) == ("2026-11-30T12:00:00.000Z", "one", None)
