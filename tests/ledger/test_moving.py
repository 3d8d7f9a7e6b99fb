"""A ledger goes into a file and comes back whole, or not at all."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from gateway.core.values import Ending, Hold
from gateway.core.windows import rolling
from gateway.ledger.contract import Fund, Keep, Ledger, LedgerUnavailable, RunState, SetLimit
from gateway.ledger.moving import Unbalanced, export_to, import_from
from gateway.ledger.rows import Damaged
from tests.ledger.builders import DAY_MS, LEASE_MS, TENANT, account, caller, charge, decision, plan, settlement
from tests.support.clock import Clock
from tests.support.stores import STORES, Store, ValkeyStore, new_store, opened
from tests.support.valkey import commands

KINDS = ("head", "tenant", "account", "run", "call", "refusal", "spend", "act", "frozen", "document", "memo", "end")
BURN = account("burn", window=rolling(DAY_MS))


@pytest.fixture(params=STORES)
async def target(request: pytest.FixtureRequest, store: Store, tmp_path: Path, clock: Clock) -> AsyncIterator[Ledger]:
    folder = tmp_path / "target"
    folder.mkdir()
    # To empty a server is to empty the ledger on it: a second one has a database of its own.
    both = isinstance(store, ValkeyStore) and request.param == "valkey"
    async with opened(_second(store, folder) if both else new_store(request.param, folder), clock) as running:
        yield running


def _second(store: Store, folder: Path) -> Store:
    assert isinstance(store, ValkeyStore)
    parts = urlsplit(store.url)
    login = [("AUTH", *([parts.username] if parts.username else []), parts.password)] if parts.password else []
    commands((parts.hostname or "", parts.port or 6379), *login, ("SELECT", "15"), ("FLUSHDB",))
    return ValkeyStore(folder, parts._replace(path="/15").geturl())


async def lived(ledger: Ledger, clock: Clock) -> Hold:
    """A history with something of everything in it. Returns a live hold."""
    charges = [charge(account(), 1_000, alerts=(10_000,)), charge(BURN, None)]

    async def hold(run: str, usd: int = 10, parent: str | None = None) -> Hold:
        answer = await ledger.reserve(decision(plan(*charges, usd=usd), of=caller(run, parent=parent, team="ü")), LEASE_MS)
        assert isinstance(answer, Hold)
        return answer

    await ledger.commit(TENANT, (await hold("r1")).id, settlement(4))
    await ledger.release(TENANT, (await hold("r1")).id, Ending.NOT_SENT)
    await hold("r2")
    clock.now_ms += LEASE_MS
    await ledger.expire()
    await ledger.release(TENANT, "rsv_gone", Ending.NOT_SENT)
    await ledger.reserve(decision(plan(charge(limit=1)), of=caller("r1")), LEASE_MS)
    await ledger.adjust(TENANT, account().key, 5, "act_1", "me", "why")
    await ledger.set_account_limit(TENANT, account().key, 2_000, "me", "why")
    await ledger.set_limit(TENANT, "r2", "k1", SetLimit(500, True, "me"))
    await ledger.stop(TENANT, "r1", "me", "why")
    await ledger.pause(TENANT, "r2", "me", "why")
    await ledger.freeze(TENANT, (("team", "x"),), "me", "why")
    await ledger.fund(account("grant", agent="a/b"), Fund(to=700, committed=30), "act_2", "me", "why")
    await ledger.put_document(TENANT, "one", '{"ü": 1}', None)
    await ledger.put_document("zoo", "one", "of another tenant", None)
    await ledger.remember(TENANT, "told", "ü", LEASE_MS)
    clock.now_ms += 1_000
    for each in ("one", "two"):
        await ledger.reserve(
            decision(plan(*charges), of=caller("child", parent="root"), lapses=True, decision_id=f"bdg_{each}"), LEASE_MS
        )
    await ledger.release(TENANT, "rsv_one", Ending.NOT_SENT)
    return await hold("child", parent="root")


async def rows_of(ledger: Ledger) -> list[Any]:
    """As they stand in a file, but for the time; those of a kind in any order."""
    rows = [{name: value for name, value in row.items() if name != "at_ms"} async for row in ledger.dump()]
    rows.sort(key=lambda row: (KINDS.index(str(row["kind"])), orjson.dumps(row)))
    return [orjson.loads(orjson.dumps(row)) for row in rows]


async def exported(ledger: Ledger) -> io.BytesIO:
    file = io.BytesIO()
    verdict = await export_to(ledger, file)
    assert verdict.differences == ()
    file.seek(0)
    return file


async def test_everything_arrives_and_goes_on(ledger: Ledger, target: Ledger, clock: Clock) -> None:
    live = await lived(ledger, clock)
    verdict = await import_from(target, await exported(ledger))
    assert (verdict.different, verdict.live, verdict.runs) == (0, 2, 4)
    assert await rows_of(target) == await rows_of(ledger)
    stopped = await target.run(TENANT, "r1")
    assert stopped is not None
    assert stopped.state is RunState.STOPPED
    child = await target.run(TENANT, "child")
    assert child is not None
    assert child.ancestry == ("root",)
    assert [each.text for each in await target.frozen(TENANT)] == ["team=x"]
    assert [each.decision_id for each in await target.leases(TENANT, 10)] == ["bdg_two", "bdg_one"]
    for each in (ledger, target):
        answer = await each.commit(TENANT, live.id, settlement(3))
        assert answer is not None
        assert answer.changed
    assert await rows_of(target) == await rows_of(ledger)


async def test_what_was_retired_is_carried_along(ledger: Ledger, target: Ledger, clock: Clock) -> None:
    await lived(ledger, clock)
    clock.now_ms += LEASE_MS
    aged = await ledger.aged(Keep(LEASE_MS, LEASE_MS), 100)
    await ledger.retire(TENANT, [each.decision_id for each in aged], Keep(LEASE_MS, LEASE_MS))
    await import_from(target, await exported(ledger))
    view = await target.account(TENANT, account().key)
    assert view is not None
    assert (view.carried > 0, view.adjusted) == (True, 5)


async def test_a_raise_ends_a_pause_that_was_set_before_the_move(ledger: Ledger, target: Ledger, clock: Clock) -> None:
    await lived(ledger, clock)
    await import_from(target, await exported(ledger))
    paused = await target.run(TENANT, "r2")
    assert paused is not None
    assert (paused.state, paused.paused_by) == (RunState.PAUSED, "me")


async def test_a_ledger_that_is_not_empty_takes_nothing(ledger: Ledger, target: Ledger, clock: Clock) -> None:
    await lived(ledger, clock)
    await target.stop(TENANT, "nobody", "me", "why")
    await target.freeze(TENANT, (), "me", "why")
    before = await rows_of(target)
    with pytest.raises(LedgerUnavailable, match="is not empty"):
        await import_from(target, await exported(ledger))
    assert await rows_of(target) == before


async def test_an_export_whose_balances_are_wrong_is_not_loaded(ledger: Ledger, target: Ledger, clock: Clock) -> None:
    await lived(ledger, clock)
    file = await exported(ledger)
    wrong = io.BytesIO(file.read().replace(b'"adjusted":5', b'"adjusted":6'))
    with pytest.raises(Unbalanced, match="1 differences") as unbalanced:
        await import_from(target, wrong)
    assert [each.figure for each in unbalanced.value.verdict.differences] == ["committed = receipts + carried + adjusted"]
    assert [row["kind"] for row in await rows_of(target)] == ["head", "end"]


@pytest.mark.parametrize("cut", [2, 400, 4_000])
async def test_an_export_that_was_cut_off_is_not_loaded(ledger: Ledger, target: Ledger, clock: Clock, cut: int) -> None:
    await lived(ledger, clock)
    whole = (await exported(ledger)).read()
    with pytest.raises(Damaged, match="line "):
        await import_from(target, io.BytesIO(whole[:-cut]))
    assert [row["kind"] for row in await rows_of(target)] == ["head", "end"]


async def test_rows_that_fail_halfway_leave_an_empty_ledger(ledger: Ledger, target: Ledger, clock: Clock) -> None:
    """`load` itself, whatever its caller has checked."""
    await lived(ledger, clock)
    rows = [row async for row in ledger.dump()]

    async def failing() -> AsyncIterator[Any]:
        for row in rows[: len(rows) // 2]:
            yield row
        raise OSError("the disk is gone")

    with pytest.raises((OSError, LedgerUnavailable), match="the disk is gone"):
        await target.load(failing())
    assert [row["kind"] for row in await rows_of(target)] == ["head", "end"]


async def test_a_dump_is_of_one_instant_while_calls_go_on(ledger: Ledger, clock: Clock) -> None:
    await lived(ledger, clock)
    seen = []
    async for row in ledger.dump():
        seen.append(row)
        if len(seen) == 3:
            await ledger.reserve(decision(plan(charge(limit=None)), of=caller("late")), LEASE_MS)
    assert "late" not in [row.get("run") for row in seen]
    assert "late" in [row.get("run") for row in await rows_of(ledger)]


async def test_an_empty_ledger_moves_too(ledger: Ledger, target: Ledger) -> None:
    verdict = await import_from(target, await exported(ledger))
    assert (verdict.tenants, verdict.different) == (0, 0)
