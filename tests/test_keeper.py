"""The keeper archives what it retires, a batch at a time, and outlives a store that does not answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.core.values import Hold
from gateway.keeper import Keeper
from gateway.ledger.archive import KEEP_MS, Archive
from gateway.ledger.contract import CallRecord, Keep, Ledger, LedgerLost, LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.verify import verify_ledger
from gateway.ledger.witness import Witness
from tests.ledger.builders import DAY_MS, LEASE_MS, START_MS, TENANT, account, caller, charge, decision, plan, settlement
from tests.support.clock import Clock

KEEP = Keep(DAY_MS, 30 * DAY_MS)


@pytest.fixture
def clock() -> Clock:
    return Clock(START_MS)


@pytest.fixture
async def ledger(tmp_path: Path, clock: Clock) -> AsyncIterator[SqliteLedger]:
    running = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await running.start()
    yield running
    await running.close()


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[Archive]:
    opened = Archive(tmp_path / "records.db")
    yield opened
    await opened.close()


def keeper(ledger: Ledger, archive: Archive | None, clock: Clock, failures: list[Exception] | None = None) -> Keeper:
    return Keeper(ledger, lambda: KEEP, archive, clock, (failures if failures is not None else []).append)


async def calls(ledger: Ledger, number: int) -> list[str]:
    """Committed ones of two tenants, 4 microcents each."""
    ids = []
    for each in range(number):
        tenant = (TENANT, "other")[each % 2]
        plans = plan(charge(account(tenant=tenant), None))
        answer = await ledger.reserve(decision(plans, of=caller(f"r{each}", tenant=tenant)), LEASE_MS)
        assert isinstance(answer, Hold)
        await ledger.commit(tenant, answer.id, settlement(4))
        ids.append(answer.decision.id)
    return ids


async def test_everything_that_is_due_is_archived_and_retired(ledger: SqliteLedger, archive: Archive, clock: Clock) -> None:
    ids = await calls(ledger, 60)
    clock.now_ms += DAY_MS
    live = await ledger.reserve(decision(plan(charge(account(), None))), LEASE_MS)
    assert isinstance(live, Hold)
    assert await keeper(ledger, archive, clock).tidy() == 60
    for place, each in enumerate(ids):
        tenant = (TENANT, "other")[place % 2]
        assert await ledger.record(tenant, each) is None
        assert await archive.find(tenant, each) is not None
    verdict = await verify_ledger(ledger.dump())
    assert (verdict.different, verdict.calls) == (0, 1)
    view = await ledger.account(TENANT, account().key)
    assert view is not None
    assert (view.balance.committed, view.carried) == (120, 120)


async def test_several_keepers_carry_each_call_forward_once(
    ledger: SqliteLedger, archive: Archive, clock: Clock, tmp_path: Path
) -> None:
    await calls(ledger, 100)
    clock.now_ms += DAY_MS
    second = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await second.start()
    gone = await asyncio.gather(*(keeper(each, archive, clock).tidy() for each in (ledger, second, ledger)))
    await second.close()
    assert sum(gone) == 100
    verdict = await verify_ledger(ledger.dump())
    assert (verdict.different, verdict.calls) == (0, 0)


async def test_runs_are_forgotten_and_archived_records_too(ledger: SqliteLedger, archive: Archive, clock: Clock) -> None:
    first, *_ = await calls(ledger, 2)
    clock.now_ms += DAY_MS
    await keeper(ledger, archive, clock).tidy()
    clock.now_ms += KEEP_MS
    assert await keeper(ledger, archive, clock).tidy() == 4  # two runs, two records
    assert await archive.find(TENANT, first) is None
    assert await ledger.run(TENANT, "r0") is None


async def test_without_an_archive_records_just_go(ledger: SqliteLedger, clock: Clock, tmp_path: Path) -> None:
    await calls(ledger, 2)
    clock.now_ms += DAY_MS
    assert await keeper(ledger, None, clock).tidy() == 2
    assert not (tmp_path / "records.db").exists()


class Refusing:
    """An archive that can't be written."""

    async def keep(self, records: Sequence[CallRecord]) -> None:
        raise LedgerUnavailable(f"no room for {len(records)}")


async def test_what_cannot_be_archived_stays_in_the_ledger(ledger: SqliteLedger, clock: Clock) -> None:
    (only,) = await calls(ledger, 1)
    clock.now_ms += DAY_MS
    with pytest.raises(LedgerUnavailable, match="no room for 1"):
        await keeper(ledger, cast(Archive, Refusing()), clock).tidy()
    assert await ledger.record(TENANT, only) is not None


class Scripted:
    """Answers `aged` with what is next."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)

    async def aged(self, keep: Keep, at_most: int) -> Sequence[CallRecord]:
        del keep, at_most
        if self.answers:
            raise self.answers.pop(0)
        return ()

    async def sweep(self, keep: Keep, at_most: int) -> int:
        del keep, at_most
        return 0


@pytest.mark.parametrize("failure", [LedgerUnavailable("away"), LedgerLost("behind"), ZeroDivisionError("a bug")])
async def test_a_ledger_that_does_not_answer_or_fails_is_reported_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, failure: Exception
) -> None:
    monkeypatch.setattr("gateway.keeper._EVERY_S", 0.0)
    failures: list[Exception] = []
    ledger: Any = Scripted(failure, failure)
    task = asyncio.ensure_future(keeper(ledger, None, clock, failures).run())
    for _ in range(500):
        if not ledger.answers and len(failures) == 2:
            break
        await asyncio.sleep(0.002)
    assert failures == [failure, failure]
    assert not task.done()
    task.cancel()
