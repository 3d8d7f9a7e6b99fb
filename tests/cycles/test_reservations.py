"""Reservations through the plane, over both stores: every answer is held against the specification."""

import asyncio
from unittest.mock import ANY

import pytest

from gateway.core.values import Ending
from gateway.ledger.contract import Ledger
from tests.cycles.world import TENANT, World, fresh_key, without_ttl
from tests.support.clock import Clock


async def test_a_restricted_key_neither_sees_nor_ends_what_is_of_another_scope(world: World) -> None:
    theirs = await world.reserved(10, subject={"tenant": TENANT, "workspace": "ops"})
    nobodys = await world.reserved(10, subject={"tenant": TENANT})
    own = await world.reserved(10, subject={"tenant": TENANT, "workspace": "Eng"})
    everyones = world.secret
    world.secret = await world.key(scope_filter=("workspace:eng",))
    for of in (theirs, nobodys):
        for answer in (world.get(of), world.commit(of, 1), world.release(of), world.extend(of)):
            status, body = await answer
            assert (status, body["error"]) == (403, "FORBIDDEN")
    assert [await world.get(own), await world.extend(own), await world.commit(own, 1)] == [(200, ANY), (200, ANY), (200, ANY)]
    world.secret = await world.key(scope_filter=("workflow:*",))  # which a run that was issued is not
    assert (await world.release(nobodys))[0] == 403
    world.secret = everyones
    assert (await world.release(nobodys))[0] == 200


async def test_a_lifecycle_holds_then_charges_what_it_cost(world: World) -> None:
    status, body = await world.reserve(400)
    assert status == 200
    assert body == {
        "decision": "ALLOW",
        "reservation_id": body["reservation_id"],
        "reserved": {"unit": "USD_MICROCENTS", "amount": 400},
        "expires_at_ms": world.clock() + 60_000,
        "remaining_ttl_ms": 60_000,
        "scope_path": "tenant:acme/workflow:r1",
        "affected_scopes": ["tenant:acme", "tenant:acme/workflow:r1"],
    }
    assert (await world.balance())["reserved"] == 400
    status, ended = await world.commit(body["reservation_id"], 150)
    assert (status, ended) == (
        200,
        {
            "status": "COMMITTED",
            "charged": {"unit": "USD_MICROCENTS", "amount": 150},
            "released": {"unit": "USD_MICROCENTS", "amount": 250},
        },
    )
    assert await world.balance() == {"remaining": 850, "reserved": 0, "spent": 150, "allocated": 1_000}


async def test_what_does_not_fit_is_refused_and_nothing_is_held(world: World) -> None:
    status, body = await world.reserve(1_001)
    assert (status, body["error"]) == (409, "BUDGET_EXCEEDED")
    assert body["details"]["scope"] == "tenant:acme"
    assert (await world.balance())["remaining"] == 1_000


async def test_a_hundred_at_once_on_a_budget_for_ten_are_ten(world: World) -> None:
    answers = await asyncio.gather(*(world.reserve(100) for _ in range(100)))
    assert sorted(status for status, _ in answers) == [200] * 10 + [409] * 90
    assert (await world.balance())["remaining"] == 0


async def test_the_same_request_again_is_the_same_reservation(world: World) -> None:
    key = fresh_key()
    first = await world.reserve(400, key=key)
    world.clock.now_ms += 10_000
    again = await world.reserve(400, key=key)
    assert without_ttl(again[1]) == without_ttl(first[1])
    assert again[1]["remaining_ttl_ms"] == 50_000
    assert (await world.balance())["reserved"] == 400


async def test_a_replay_tells_of_the_first_answer_also_when_it_has_ended(world: World) -> None:
    key = fresh_key()
    _, first = await world.reserve(400, key=key)
    await world.extend(first["reservation_id"])
    await world.commit(first["reservation_id"], 100)
    status, again = await world.reserve(400, key=key)
    assert (status, without_ttl(again)) == (200, without_ttl(first))
    assert again["remaining_ttl_ms"] == 0


async def test_a_replay_stands_whatever_the_budgets_say_by_then(world: World) -> None:
    key = fresh_key()
    _, first = await world.reserve(1_000, key=key)
    await world.budget(f"tenant:{TENANT}", 0, status="frozen")
    await world.tenant(status="CLOSED")
    status, again = await world.reserve(1_000, key=key)
    assert (status, again) == (200, first)


@pytest.mark.parametrize("change", [{"ttl_ms": 5_000}, {"metadata": {}}, {"dry_run": True}], ids=str)
async def test_the_same_key_for_another_request_is_a_mismatch(world: World, change: dict[str, object]) -> None:
    key = fresh_key()
    await world.reserve(400, key=key)
    status, body = await world.reserve(400, key=key, **change)
    assert (status, body["error"]) == (409, "IDEMPOTENCY_MISMATCH")
    assert (await world.balance())["reserved"] == 400


async def test_another_key_of_the_tenant_may_repeat_a_request(world: World) -> None:
    key = fresh_key()
    _, first = await world.reserve(400, key=key)
    world.secret = await world.key()
    assert await world.reserve(400, key=key) == (200, first)
    assert (await world.commit(first["reservation_id"], 400))[0] == 200


async def test_keys_of_one_tenant_share_its_runs(world: World) -> None:
    await world.reserved(100)
    world.secret = await world.key()
    await world.reserved(100)
    assert (await world.balance())["reserved"] == 200


async def test_a_dry_run_holds_nothing_and_is_told_again(world: World) -> None:
    key = fresh_key()
    first = await world.reserve(1_000, key=key, dry_run=True)
    assert first == (
        200,
        {"decision": "ALLOW", "affected_scopes": ["tenant:acme", "tenant:acme/workflow:r1"]},
    )
    await world.reserved(1_000)
    assert await world.reserve(1_000, key=key, dry_run=True) == first
    denied = await world.reserve(1, dry_run=True)
    assert (denied[0], denied[1]["decision"], denied[1]["reason_code"]) == (200, "DENY", "BUDGET_EXCEEDED")


async def test_a_live_reservation_with_a_dry_runs_key_is_a_mismatch(world: World) -> None:
    key = fresh_key()
    await world.reserve(100, key=key, dry_run=True)
    status, body = await world.reserve(100, key=key)
    assert (status, body["error"]) == (409, "IDEMPOTENCY_MISMATCH")
    assert (await world.balance())["remaining"] == 1_000


async def test_a_dry_run_is_no_reservation(world: World) -> None:
    key = fresh_key()
    await world.reserve(100, key=key, dry_run=True)
    assert await world.ask("GET", f"/v1/reservations?idempotency_key={key}") == (200, {"reservations": [], "has_more": False})
    assert await world.ask("GET", "/v1/reservations") == (200, {"reservations": [], "has_more": False})


# -- how it ends ------------------------------------------------------------------------------------------------------------------


async def test_a_commit_counts_once_however_often_it_is_sent(world: World) -> None:
    of, key = await world.reserved(400), fresh_key()
    first = await world.commit(of, 150, key=key, metadata={"a": 1})
    assert await world.commit(of, 150, key=key, metadata={"a": 1}) == first
    assert (await world.balance())["spent"] == 150
    status, body = await world.commit(of, 151, key=key)
    assert (status, body["error"]) == (409, "IDEMPOTENCY_MISMATCH")
    status, body = await world.commit(of, 150)
    assert (status, body["error"]) == (409, "RESERVATION_FINALIZED")
    status, body = await world.release(of, key=key)
    assert (status, body["error"]) == (409, "RESERVATION_FINALIZED")


async def test_a_release_gives_all_of_it_back_once(world: World) -> None:
    of, key = await world.reserved(400), fresh_key()
    first = await world.release(of, key=key, reason="not needed")
    assert first == (200, {"status": "RELEASED", "released": {"unit": "USD_MICROCENTS", "amount": 400}})
    assert await world.release(of, key=key, reason="not needed") == first
    assert (await world.release(of, key=key))[1]["error"] == "IDEMPOTENCY_MISMATCH"
    assert (await world.commit(of, 1))[1]["error"] == "RESERVATION_FINALIZED"
    assert (await world.balance())["remaining"] == 1_000


async def test_a_commit_in_another_process_reads_what_it_needs(world: World, clock: Clock) -> None:
    of = await world.reserved(400)
    other = World(world.ledger, clock)
    await other.registry.look()
    other.secret = world.secret
    status, body = await other.commit(of, 150)
    assert (status, body["charged"]["amount"]) == (200, 150)


async def test_a_commit_in_another_unit_is_refused(world: World) -> None:
    of = await world.reserved(400)
    status, body = await world.commit(of, 1, unit="TOKENS")
    assert (status, body["error"]) == (400, "UNIT_MISMATCH")
    assert body["details"]["expected_units"] == ["USD_MICROCENTS"]


@pytest.mark.parametrize("reaped", [False, True], ids=["before the reaper", "after the reaper"])
async def test_after_its_time_and_grace_it_has_expired(world: World, reaped: bool) -> None:
    of = await world.reserved(400, ttl_ms=10_000, grace_period_ms=2_000)
    world.clock.now_ms += 12_000
    if reaped:
        await world.ledger.expire()
    for status, body in (await world.commit(of, 1), await world.release(of), await world.extend(of), await world.get(of)):
        assert (status, body["error"]) == (410, "RESERVATION_EXPIRED")
    if reaped:
        assert (await world.balance())["remaining"] == 1_000
    listed = await world.ask("GET", "/v1/reservations?status=EXPIRED")
    assert [row["reservation_id"] for row in listed[1]["reservations"]] == [of]


async def test_within_its_grace_it_can_be_committed_but_not_extended(world: World) -> None:
    of = await world.reserved(400, ttl_ms=10_000, grace_period_ms=2_000)
    world.clock.now_ms += 11_000
    status, body = await world.extend(of)
    assert (status, body["error"]) == (410, "RESERVATION_EXPIRED")
    assert (await world.commit(of, 100))[0] == 200


async def test_what_expired_is_recorded_by_an_event_with_the_same_key(world: World) -> None:
    of, key = await world.reserved(400, ttl_ms=1_000, grace_period_ms=0), fresh_key()
    world.clock.now_ms += 1_000
    await world.ledger.expire()
    assert (await world.commit(of, 150, key=key))[0] == 410
    first = await world.event(150, key=key, metadata={"recovered_reservation_id": of})
    assert first[0] == 201
    assert await world.event(150, key=key, metadata={"recovered_reservation_id": of}) == first
    assert await world.balance() == {"remaining": 850, "reserved": 0, "spent": 150, "allocated": 1_000}


# -- longer -----------------------------------------------------------------------------------------------------------------------


async def test_extensions_add_up_and_each_counts_once(world: World) -> None:
    of, key, start_ms = await world.reserved(400), fresh_key(), world.clock()
    first = await world.extend(of, 30_000, key=key)
    assert first == (200, {"status": "ACTIVE", "expires_at_ms": start_ms + 90_000, "remaining_ttl_ms": 90_000})
    second = await world.extend(of, 60_000)
    assert second[1]["expires_at_ms"] == start_ms + 150_000
    world.clock.now_ms += 10_000
    again = await world.extend(of, 30_000, key=key)
    assert again == (200, {"status": "ACTIVE", "expires_at_ms": start_ms + 90_000, "remaining_ttl_ms": 80_000})
    assert (await world.extend(of, 30_001, key=key))[1]["error"] == "IDEMPOTENCY_MISMATCH"
    world.clock.now_ms = start_ms + 150_000 + 4_999
    assert await world.ledger.expire() == []
    assert (await world.commit(of, 100))[0] == 200


async def test_extensions_side_by_side_add_up(world: World) -> None:
    of, start_ms = await world.reserved(400), world.clock()
    answers = await asyncio.gather(*(world.extend(of, 1_000) for _ in range(5)))
    assert sorted(body["expires_at_ms"] for _, body in answers) == [start_ms + 60_000 + 1_000 * n for n in range(1, 6)]
    assert (await world.get(of))[1]["expires_at_ms"] == start_ms + 65_000


async def test_only_so_many_extensions_are_given(world: World) -> None:
    await world.tenant(max_extensions=2)
    of = await world.reserved(400)
    assert [(await world.extend(of))[0] for _ in range(2)] == [200, 200]
    status, body = await world.extend(of)
    assert (status, body["error"]) == (409, "MAX_EXTENSIONS_EXCEEDED")


async def test_an_extension_that_is_told_again_after_the_end_has_no_time_left(world: World) -> None:
    of, key = await world.reserved(400), fresh_key()
    _, first = await world.extend(of, key=key)
    await world.commit(of, 1)
    status, again = await world.extend(of, key=key)
    assert (status, again) == (200, {**first, "remaining_ttl_ms": 0})
    assert (await world.extend(of))[1]["error"] == "RESERVATION_FINALIZED"


async def test_the_tenants_longest_lease_bounds_the_first(world: World) -> None:
    await world.tenant(max_ttl_ms=20_000, ttl_ms=10_000)
    assert (await world.reserve(1))[1]["remaining_ttl_ms"] == 10_000
    assert (await world.reserve(1, ttl_ms=60_000))[1]["remaining_ttl_ms"] == 20_000


# -- overage ----------------------------------------------------------------------------------------------------------------------


async def test_reject_keeps_a_commit_above_the_estimate_out(world: World) -> None:
    of = await world.reserved(100, overage_policy="REJECT")
    status, body = await world.commit(of, 101)
    assert (status, body["error"]) == (409, "BUDGET_EXCEEDED")
    assert (await world.commit(of, 100))[0] == 200


async def test_allow_if_available_charges_all_of_it_where_there_is_room(world: World) -> None:
    of = await world.reserved(100)
    status, body = await world.commit(of, 900)
    assert (status, body["charged"]["amount"], body["released"]["amount"]) == (200, 900, 0)
    assert (await world.balance())["remaining"] == 100


async def test_allow_if_available_tells_what_was_covered_and_the_ledger_keeps_the_truth(world: World) -> None:
    of, key = await world.reserved(100), fresh_key()
    await world.reserved(700)
    first = await world.commit(of, 500, key=key)
    assert (first[0], first[1]["charged"]["amount"]) == (200, 300)
    assert await world.commit(of, 500, key=key) == first
    assert await world.balance() == {"remaining": -200, "reserved": 700, "spent": 500, "allocated": 1_000}
    status, body = await world.reserve(1)
    assert (status, body["error"]) == (409, "OVERDRAFT_LIMIT_EXCEEDED")
    status, body = await world.reserve(0)
    assert (status, body["error"]) == (409, "OVERDRAFT_LIMIT_EXCEEDED")
    await world.fund(f"tenant:{TENANT}", 201)
    assert (await world.reserve(1))[0] == 200


async def test_an_overdraft_is_a_debt_that_blocks_and_is_repaid_first(ledger: Ledger, clock: Clock) -> None:
    world = await World(ledger, clock).open()
    await world.budget(f"tenant:{TENANT}", 1_000, overdraft=200)
    of, other = (
        await world.reserved(900, overage_policy="ALLOW_WITH_OVERDRAFT"),
        await world.reserved(100, overage_policy="ALLOW_WITH_OVERDRAFT"),
    )
    status, body = await world.commit(of, 1_050)
    assert (status, body["charged"]["amount"]) == (200, 1_050)
    status, body = await world.commit(other, 151)
    assert (status, body["error"]) == (409, "OVERDRAFT_LIMIT_EXCEEDED")
    assert (await world.commit(other, 150))[0] == 200
    assert await world.balance() == {
        "remaining": -200,
        "reserved": 0,
        "spent": 1_000,
        "allocated": 1_000,
        "debt": 200,
        "overdraft_limit": 200,
    }
    status, body = await world.reserve(1)
    assert (status, body["error"]) == (409, "DEBT_OUTSTANDING")
    await world.fund(f"tenant:{TENANT}", 250)
    assert await world.balance() == {
        "remaining": 50,
        "reserved": 0,
        "spent": 1_200,
        "allocated": 1_250,
        "debt": 0,
        "overdraft_limit": 200,
    }
    assert (await world.reserve(50))[0] == 200


async def test_without_an_overdraft_limit_the_policy_is_as_the_default(world: World) -> None:
    of = await world.reserved(1_000, overage_policy="ALLOW_WITH_OVERDRAFT")
    status, body = await world.commit(of, 1_200)
    assert (status, body["charged"]["amount"]) == (200, 1_000)
    assert (await world.balance())["spent"] == 1_200


# -- whose ------------------------------------------------------------------------------------------------------------------------


async def test_another_tenants_reservation_is_forbidden_and_one_that_never_was_is_not_found(world: World) -> None:
    of = await world.reserved(100)
    await world.tenant("other")
    await world.tenant()
    world.secret = await world.key("other")
    for ask in (world.get, world.release, world.extend):
        assert (await ask(of))[1]["error"] == "FORBIDDEN"
        assert (await ask(of[:-1] + ("0" if of[-1] != "0" else "1")))[1]["error"] == "NOT_FOUND"
        assert (await ask("rsv_nobody"))[1]["error"] == "NOT_FOUND"
    assert (await world.commit(of, 1))[1]["error"] == "FORBIDDEN"


async def test_the_details_of_a_reservation_are_those_that_were_sent(world: World) -> None:
    subject = {"tenant": TENANT, "workflow": "R1", "dimensions": {"cost_center": "a b", "Odd Name": "\n"}}
    action = {"kind": "llm.completion", "name": "openai:gpt-5", "tags": ["prod"]}
    key = fresh_key()
    of = await world.reserved(100, key=key, subject=subject, action=action, metadata={"deep": {"er": [1, 2.5]}})
    assert await world.get(of) == (
        200,
        {
            "reservation_id": of,
            "status": "ACTIVE",
            "idempotency_key": key,
            "subject": subject,
            "action": action,
            "reserved": {"unit": "USD_MICROCENTS", "amount": 100},
            "created_at_ms": world.clock(),
            "expires_at_ms": world.clock() + 60_000,
            "scope_path": "tenant:acme/workflow:r1",
            "affected_scopes": ["tenant:acme", "tenant:acme/workflow:r1"],
            "metadata": {"deep": {"er": [1, 2.5]}},
        },
    )


async def test_caps_of_a_policy_come_with_the_answer_and_with_its_replay(world: World) -> None:
    await world.caps("tenant:acme/*", max_tokens=512, tool_denylist=["rm"])
    key = fresh_key()
    _, first = await world.reserve(100, key=key)
    assert (first["decision"], first["caps"]) == ("ALLOW_WITH_CAPS", {"max_tokens": 512, "tool_denylist": ["rm"]})
    await world.caps("tenant:acme/*", max_tokens=1, cooldown_ms=5)
    assert (await world.reserve(100, key=key))[1] == first


async def test_a_reservation_needs_one_answer_of_the_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for step in ("reserve", "record", "commit", "account", "run", "recall", "documents"):
        real = getattr(world.ledger, step)
        monkeypatch.setattr(
            world.ledger, step, lambda *a, _step=step, _real=real, **k: asked.append(_step) or _real(*a, **k), raising=True
        )
    of = await world.reserved(100)
    await world.commit(of, 50)
    assert asked == ["reserve", "commit"]


async def test_what_was_given_back_unheard_is_held_anew_for_the_same_key(world: World) -> None:
    key = fresh_key()
    of = await world.reserved(400, key=key)
    await world.ledger.release(TENANT, of, Ending.NOT_SENT)  # as where the gateway was cancelled before the answer came
    status, first = await world.reserve(400, key=key)
    assert (status, first["reservation_id"]) == (200, f"{of}_1")
    assert await world.reserve(400, key=key) == (status, first)
    assert (await world.get(of))[0] == 404
    _, listed = await world.ask("GET", f"/v1/reservations?idempotency_key={key}")
    assert [row["reservation_id"] for row in listed["reservations"]] == [f"{of}_1"]
    assert (await world.commit(f"{of}_1", 100))[0] == 200
