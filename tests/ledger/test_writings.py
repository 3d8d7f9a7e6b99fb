"""What operators and other protocols write down in a ledger: documents, which change by compare-and-set, and memos, whose time runs out."""

import asyncio

from gateway.core.scopes import BOOKKEEPING
from gateway.ledger.contract import Documents, Keep, Ledger
from tests.ledger.builders import LEASE_MS, TENANT
from tests.support.clock import Clock
from tests.support.stores import Store, opened

KEEP = Keep(LEASE_MS, LEASE_MS)


async def read(ledger: Ledger, tenant: str = TENANT) -> Documents:
    found = await ledger.documents(tenant, -1)
    assert found is not None
    return found


async def test_a_document_is_written_changed_and_removed_by_who_knows_what_stands_there(ledger: Ledger) -> None:
    assert await ledger.put_document(TENANT, "a", "one", None)
    assert not await ledger.put_document(TENANT, "a", "two", None)
    assert not await ledger.put_document(TENANT, "a", "two", "three")
    assert await ledger.put_document(TENANT, "a", "two", "one")
    assert await ledger.put_document(TENANT, "b/ü", "", None)
    assert (await read(ledger)).texts == {"a": "two", "b/ü": ""}
    assert not await ledger.put_document(TENANT, "b/ü", None, None)
    assert await ledger.put_document(TENANT, "a", None, "two")
    assert (await read(ledger)).texts == {"b/ü": ""}


async def test_whoever_knows_their_number_is_told_of_changes_alone(ledger: Ledger) -> None:
    assert await ledger.documents(TENANT) is None
    await ledger.put_document(TENANT, "a", "one", None)
    first = await ledger.documents(TENANT)
    assert first is not None
    assert await ledger.documents(TENANT, first.number) is None
    await ledger.put_document(TENANT, "a", "one", "one")
    await ledger.put_document(TENANT, "a", "two", "never")
    assert await ledger.documents(TENANT, first.number) is None
    await ledger.put_document(TENANT, "a", None, "one")
    second = await ledger.documents(TENANT, first.number)
    assert second is not None
    assert (second.texts, second.number != first.number) == ({}, True)
    assert await ledger.documents(TENANT, second.number) is None


async def test_each_tenant_has_documents_and_memos_of_its_own(ledger: Ledger) -> None:
    await ledger.put_document(BOOKKEEPING, "a", "one", None)
    await ledger.remember(BOOKKEEPING, "a", "one", LEASE_MS)
    assert await ledger.documents(TENANT) is None
    assert await ledger.recall(TENANT, "a") is None
    assert await ledger.put_document(TENANT, "a", "two", None)
    assert (await read(ledger, BOOKKEEPING)).texts == {"a": "one"}


async def test_of_many_who_change_a_document_at_once_one_does(ledger: Ledger) -> None:
    done = await asyncio.gather(*(ledger.put_document(TENANT, "a", f"{each}", None) for each in range(20)))
    assert sum(done) == 1
    assert (await read(ledger)).texts == {"a": str(done.index(True))}


async def test_of_many_who_remember_the_first_is_remembered_and_told_to_the_others(ledger: Ledger) -> None:
    told = await asyncio.gather(*(ledger.remember(TENANT, "n", f"{each}", LEASE_MS) for each in range(20)))
    kept = await ledger.recall(TENANT, "n")
    assert told.count(None) == 1
    assert kept == str(told.index(None))
    assert {each for each in told if each is not None} == {kept}


async def test_a_memo_is_over_when_its_time_is_and_can_be_written_anew(ledger: Ledger, clock: Clock) -> None:
    assert await ledger.remember(TENANT, "n", "one", LEASE_MS) is None
    clock.now_ms += LEASE_MS - 1
    assert await ledger.recall(TENANT, "n") == "one"
    assert await ledger.remember(TENANT, "n", "two", 10 * LEASE_MS) == "one"
    clock.now_ms += 1
    assert await ledger.recall(TENANT, "n") is None
    assert await ledger.remember(TENANT, "n", "two", LEASE_MS) is None
    assert await ledger.recall(TENANT, "n") == "two"


async def test_old_memos_are_swept_and_documents_stay(ledger: Ledger, clock: Clock) -> None:
    await ledger.put_document(TENANT, "a", "one", None)
    for number in range(3):
        await ledger.remember(TENANT, f"n{number}", "short", LEASE_MS)
    await ledger.remember(TENANT, "long", "long", 9 * LEASE_MS)
    clock.now_ms += LEASE_MS
    assert [await ledger.sweep(KEEP, 2), await ledger.sweep(KEEP, 2), await ledger.sweep(KEEP, 2)] == [2, 1, 0]
    rows = [row async for row in ledger.dump() if row["kind"] in ("document", "memo")]
    assert [row["name"] for row in rows] == ["a", "long"]


async def test_what_one_gateway_writes_another_reads(store: Store, ledger: Ledger, clock: Clock) -> None:
    async with opened(store, clock) as other:
        known = (await read(other)).number
        await ledger.put_document(TENANT, "a", "one", None)
        told = await other.documents(TENANT, known)
        assert told is not None
        assert told.texts == {"a": "one"}
        assert await other.put_document(TENANT, "a", "two", "one")
        assert not await ledger.put_document(TENANT, "a", "three", "one")
