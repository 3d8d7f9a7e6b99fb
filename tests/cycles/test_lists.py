"""Lists: reservations by filter, order and page; balances by scope."""

import asyncio
import base64
from typing import Any

import orjson
import pytest

from gateway.cycles import cursors
from tests.cycles.world import ADMIN_TOKEN, TENANT, World, fresh_key

ADMIN = {"X-Admin-API-Key": ADMIN_TOKEN}


async def rows(world: World, query: str = "", headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """All pages of it."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        status, body = await world.ask("GET", f"/v1/reservations?{query}&cursor={cursor}", headers=headers)
        assert status == 200, body
        found += body["reservations"]
        if not body["has_more"]:
            assert "next_cursor" not in body
            return found
        cursor = body["next_cursor"]


async def some(world: World, number: int) -> list[str]:
    """Their ids, a second apart; the amount is their place."""
    made = []
    for place in range(number):
        made.append(await world.reserved(place + 1, subject={"agent": f"a{place % 2}"}))
        world.clock.now_ms += 1_000
    return made


async def test_reservations_come_newest_first_in_pages(world: World) -> None:
    made = await some(world, 7)
    assert [row["reservation_id"] for row in await rows(world, "limit=3")] == made[::-1]


async def test_reservations_are_filtered_by_what_they_are(world: World) -> None:
    made = await some(world, 4)
    await world.commit(made[0], 1)
    await world.release(made[1])
    assert [row["reservation_id"] for row in await rows(world, "agent=a0")] == [made[2], made[0]]
    assert [row["reservation_id"] for row in await rows(world, "status=ACTIVE")] == [made[3], made[2]]
    assert [row["reservation_id"] for row in await rows(world, "status=COMMITTED&agent=a0&tenant=acme")] == [made[0]]
    assert await rows(world, "workspace=x") == []


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("by", ["reservation_id", "tenant", "scope_path", "status", "reserved", "created_at_ms", "expires_at_ms"])
async def test_each_order_shows_each_once_over_all_pages(world: World, by: str, order: str) -> None:
    made = await some(world, 5)
    await world.release(made[2])
    listed = await rows(world, f"sort_by={by}&sort_dir={order}&limit=2")
    keys = [row["reserved"]["amount"] if by == "reserved" else row["subject"].get(by, row.get(by, TENANT)) for row in listed]
    assert sorted(row["reservation_id"] for row in listed) == sorted(made)
    if by != "tenant":
        keys = [row["reserved"]["amount"] if by == "reserved" else row[by] for row in listed]
    assert keys == sorted(keys, reverse=order == "desc")


async def test_windows_are_inclusive_and_of_ended_ones_only_where_they_end(world: World) -> None:
    made = await some(world, 3)
    await world.commit(made[0], 1)
    at = "2026-11-30T12:00:0"
    assert [row["reservation_id"] for row in await rows(world, f"from={at}1Z&to={at}2Z")] == [made[2], made[1]]
    assert [row["reservation_id"] for row in await rows(world, "expires_to=2026-11-30T12:01:00Z")] == [made[0]]
    assert [row["reservation_id"] for row in await rows(world, f"finalized_from={at}0Z")] == [made[0]]
    assert await rows(world, f"finalized_to={at}0Z") == []


async def test_a_lost_id_is_found_by_its_key(world: World) -> None:
    key = fresh_key()
    of = await world.reserved(1, key=key, metadata={"a": 1})
    assert [row["reservation_id"] for row in await rows(world, f"idempotency_key={key}")] == [of]
    assert [row.get("metadata") for row in await rows(world, "include=metadata")] == [{"a": 1}]
    assert [row.get("metadata") for row in await rows(world)] == [None]


async def test_a_cursor_belongs_to_its_question(world: World) -> None:
    await some(world, 3)
    _, first = await world.ask("GET", "/v1/reservations?limit=1&agent=a0")
    cursor = first["next_cursor"]
    for query in ("agent=a1", "", "agent=a0&sort_by=status", "agent=a0&from=2026-11-30T12:00:00Z"):
        status, body = await world.ask("GET", f"/v1/reservations?{query}&cursor={cursor}")
        assert (status, body["error"]) == (400, "INVALID_REQUEST")
    assert (await world.ask("GET", "/v1/reservations?cursor=x"))[0] == 400
    assert (await world.ask("GET", f"/v1/reservations?agent=a0&limit=5&include=metadata&cursor={cursor}"))[0] == 200


@pytest.mark.parametrize("last", [[], [1], [None], ["a", "b", "c"], [["a"], {}], [{"a": 1}, "x"], [True, "x"], "ab"])
@pytest.mark.parametrize(
    "path", ["/v1/reservations?limit=1", "/v1/reservations?limit=1&sort_by=reserved", "/v1/balances?limit=1&tenant=acme"]
)
async def test_a_cursor_that_nobody_gave_out_is_refused(world: World, path: str, last: Any) -> None:
    await world.budget("tenant:acme/agent:a0", 50)
    await some(world, 3)
    _, first = await world.ask("GET", path)
    cursor = first["next_cursor"]
    question, _ = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    forged = cursors.write(question, last)
    status, body = await world.ask("GET", f"{path}&cursor={forged}")
    assert (status, body["error"]) == (400, "INVALID_REQUEST")


async def test_newer_members_are_shown_where_the_config_says_so(world: World) -> None:
    of = await world.reserved(5)
    await world.commit(of, 2, metadata={"b": 2})
    assert not {"committed", "finalized_at_ms", "committed_metadata"} & set((await rows(world))[0])
    newer = World(world.ledger, world.clock, newer_members=True)
    await newer.registry.look()
    newer.secret = world.secret
    [row] = await rows(newer, "include=committed_metadata")
    assert row["committed"] == {"unit": "USD_MICROCENTS", "amount": 2}
    assert row["finalized_at_ms"] == world.clock()
    assert row["committed_metadata"] == {"b": 2}


async def test_the_admin_sees_and_releases_any_tenants(world: World) -> None:
    of = await world.reserved(5)
    assert (await world.ask("GET", "/v1/reservations", headers=ADMIN))[0] == 400
    assert [row["reservation_id"] for row in await rows(world, f"tenant={TENANT}", ADMIN)] == [of]
    assert (await world.ask("GET", f"/v1/reservations/{of}", headers=ADMIN))[0] == 200
    body = {"idempotency_key": "k", "reason": "[INCIDENT_FORCE_RELEASE]"}
    released = await world.ask("POST", f"/v1/reservations/{of}/release", body, headers=ADMIN)
    assert released[0] == 200
    assert await world.ask("POST", f"/v1/reservations/{of}/release", body, headers=ADMIN) == released
    acts = await world.ledger.acts(TENANT, 10)
    assert [(act.act, act.what, act.why) for act in acts if act.act == "settle"] == [
        ("settle", f"{of} none", "[INCIDENT_FORCE_RELEASE]")
    ]


async def test_balances_are_those_of_the_scopes_asked_for(world: World) -> None:
    await world.budget("tenant:acme/agent:a", 10)
    await world.budget("tenant:acme/workspace:dev", 20)
    await world.budget("tenant:acme/workspace:dev/agent:a", 30, "TOKENS")
    await world.budget("tenant:other", 40)

    async def scopes(query: str) -> list[str]:
        _, body = await world.ask("GET", f"/v1/balances?{query}")
        return [balance["scope_path"] for balance in body["balances"]]

    every = ["tenant:acme", "tenant:acme/agent:a", "tenant:acme/workspace:dev", "tenant:acme/workspace:dev/agent:a"]
    assert await scopes("tenant=acme") == every
    assert await scopes("tenant=acme&include_children=false") == ["tenant:acme"]
    assert await scopes("agent=A") == ["tenant:acme/agent:a", "tenant:acme/workspace:dev/agent:a"]
    assert await scopes("workspace=dev&include_children=false") == ["tenant:acme/workspace:dev"]
    found, cursor = [], ""
    for _ in every:
        _, body = await world.ask("GET", f"/v1/balances?tenant=acme&limit=1&cursor={cursor}")
        found += [balance["scope_path"] for balance in body["balances"]]
        cursor = body.get("next_cursor", "")
    assert (found, cursor) == (every, "")


async def test_a_hundred_reservations_are_listed_once_each(world: World) -> None:
    made = await asyncio.gather(*(world.reserved(1) for _ in range(100)))
    assert sorted(row["reservation_id"] for row in await rows(world, "limit=33")) == sorted(made)
