"""Several real processes on one store: nobody passes a ceiling, no update is lost, and a killed one leaves nothing undone."""

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from gateway.core.scopes import Unit
from gateway.ledger.contract import CallRecord, HoldState, Ledger
from gateway.ledger.verify import verify_ledger
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account
from tests.ledger.worker import GRANT, HOT
from tests.support.clock import Clock
from tests.support.forked import Spoken, talking
from tests.support.stores import Store, opened

Worker = subprocess.Popen[str] | Spoken


@contextmanager
def worker(store: Store, kind: str, number: int) -> Iterator[Worker]:
    with talking("tests.ledger.worker", [kind, str(number), *store.address.split(" ")]) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: Worker, mark: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{mark}\n")
    process.stdin.flush()


def hear(process: Worker) -> list[str]:
    assert process.stdout is not None
    return process.stdout.read().splitlines()


def run_together(store: Store, kind: str, processes: int, number: int) -> list[list[str]]:
    """Starts them, lets them go at once, and returns what each said."""
    with ExitStack() as stack:
        running = [stack.enter_context(worker(store, kind, number)) for _ in range(processes)]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for place, process in enumerate(running):
            say(process, f"w{place}")
        said = [hear(process) for process in running]
        assert [process.wait(60) for process in running] == [0] * processes
    return said


@pytest.mark.parametrize("processes", [2, 4])
async def test_of_200_reserves_by_several_processes_on_a_new_run_exactly_those_that_fit_are_held(
    store: Store, clock: Clock, processes: int
) -> None:
    said = run_together(store, "race", processes, 200 // processes)
    assert sum(int(lines[0]) for lines in said) == 10
    async with opened(store, clock) as ledger:
        view = await ledger.run(TENANT, "new")
    assert view is not None
    assert (view.reserved, view.calls) == (100, 10)


async def test_no_update_is_lost_and_each_alert_fires_in_one_process(store: Store, clock: Clock) -> None:
    said = run_together(store, "calls", 3, 400)
    lines = [line.split(" ") for each in said for line in each]
    assert len(lines) == 1_200
    total = sum(int(cost) for _, cost, _ in lines)
    async with opened(store, clock) as ledger:
        (balance,) = await ledger.balances(TENANT, [account()])
        assert (balance.committed, balance.reserved) == (total, 0)
        rows = await ledger.spend(TENANT, ("run",), START_MS, START_MS + 1, None)
        assert (sum(row.usd for row in rows), sum(row.calls for row in rows), len(rows)) == (total, 1_200, 24)
    fired = [threshold for _, _, thresholds in lines for threshold in thresholds.split(",") if threshold]
    assert sorted(int(each) for each in fired) == list(range(10_000, total + 1, 10_000))


async def test_a_process_that_is_killed_loses_no_answered_commit_and_its_holds_expire(store: Store) -> None:
    with worker(store, "calls", 100_000) as doomed, worker(store, "calls", 400) as other:
        for place, process in enumerate((doomed, other)):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            say(process, f"w{place}")
        await asyncio.sleep(0.5)
        doomed.kill()
        answered = hear(doomed)
        finished = hear(other)
        assert other.wait(60) == 0
    assert len(finished) == 400
    assert len(answered) > 10
    whole = [line.split(" ") for line in answered if line.count(" ") == 2]
    async with opened(store, Clock(START_MS + LEASE_MS)) as ledger:
        for hold_id, cost, _ in whole:
            record = await ledger.record(TENANT, "bdg_" + hold_id.removeprefix("rsv_"))
            assert record is not None
            assert (record.state, record.charged and record.charged.usd) == (HoldState.COMMITTED, int(cost))
        expired = await ledger.expire(1_000)
        assert len(expired) <= 8
        (balance,) = await ledger.balances(TENANT, [account()])
        assert (balance.reserved, balance.unconfirmed) == (0, 10 * len(expired))
        rows = await ledger.spend(TENANT, (), START_MS, START_MS + 1, None)
    assert (
        balance.committed
        == rows[0].usd
        >= sum(int(line.split(" ")[1]) for line in finished) + sum(int(cost) for _, cost, _ in whole)
    )


async def test_acts_memos_and_documents_of_several_processes_count_once_each(store: Store, clock: Clock) -> None:
    processes, number = 2, 12
    said = run_together(store, "books", processes, number)
    assert sum(int(lines[0]) for lines in said) == 2 * number  # each act and each memo that all tried had one first
    async with opened(store, clock) as ledger:
        view = await ledger.account(TENANT, GRANT.key)
        assert view is not None
        assert view.balance.limit == processes * number + 1_000 * number
        documents = await ledger.documents(TENANT)
        assert documents is not None
        assert documents.texts == {"count": str(processes * number)}
        assert len(await ledger.acts(TENANT, 1_000)) == processes * number + number


async def test_processes_that_start_on_nothing_make_one_ledger(store: Store, clock: Clock) -> None:
    with ExitStack() as stack:
        running = [stack.enter_context(worker(store, "race", 1)) for _ in range(4)]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
    async with opened(store, clock) as ledger:
        assert ledger.health()["ok"] is True


# -- everything at once -------------------------------------------------------------------------------------------------------

Sums = tuple[int, int, int]  # committed, reserved, unconfirmed


def recomputed(records: list[CallRecord]) -> dict[str, Sums]:
    """Every account's balance, from the records alone."""
    sums: dict[str, Sums] = {}
    for record in records:
        for key, held in record.lines:
            committed, reserved, unconfirmed = sums.get(key, (0, 0, 0))
            charged = 0 if record.charged is None else record.charged.of(Unit(key.rsplit("|", 1)[1]))
            sums[key] = (
                committed + charged,
                reserved + (held if record.state is HoldState.LIVE else 0),
                unconfirmed + (charged if record.state is HoldState.EXPIRED else 0),
            )
    return sums


async def check_every_balance(ledger: Ledger, ids: list[str], adjusted: dict[str, int]) -> None:
    """What the ledger says of each account and run is what its records add up to, exactly."""
    found = [record for each in ids if (record := await ledger.record(TENANT, each)) is not None]
    records = [record for record in found if record.state is not None]
    assert len(records) > len(ids) / 4
    for key, (committed, reserved, unconfirmed) in recomputed(records).items():
        view = await ledger.account(TENANT, key)
        assert view is not None
        balance = view.balance
        added = adjusted.get(key, 0)
        assert (view.adjusted, view.carried) == (added, 0)
        assert (balance.committed, balance.reserved, balance.unconfirmed) == (committed + added, reserved, unconfirmed), key
    spent: Counter[str] = Counter()
    for record in records:
        spent[record.run] += 0 if record.charged is None else record.charged.usd
    for run, usd in spent.items():
        run_view = await ledger.run(TENANT, run)
        assert run_view is not None
        assert run_view.committed == usd, run
    (total,) = await ledger.spend(TENANT, (), START_MS, START_MS + 1, None)
    assert total.usd == sum(spent.values())
    assert (await verify_ledger(ledger.dump())).differences == ()


async def mixed(store: Store, clock: Clock, each: int) -> None:
    said = run_together(store, "mixed", 8, each)
    ids = [line for lines in said for line in lines[:-1]]
    adjusted = {HOT.key: sum(int(lines[-1]) for lines in said)}
    async with opened(store, clock) as ledger:
        await check_every_balance(ledger, ids, adjusted)
        clock.now_ms += LEASE_MS
        while await ledger.expire(100):
            pass
        await check_every_balance(ledger, ids, adjusted)
        held = await ledger.holds(TENANT, None, 100_000)
        assert all(record.state is HoldState.EXPIRED for record in held)
        for record in held:
            await ledger.settle(TENANT, record.decision_id.replace("bdg_", "rsv_"), 1, "op", "the bill")
        await check_every_balance(ledger, ids, adjusted)
        (hot,) = await ledger.balances(TENANT, [HOT])
    assert (hot.reserved, hot.unconfirmed) == (0, 0)


async def test_8_processes_that_do_everything_at_once_leave_every_balance_exact(store: Store, clock: Clock) -> None:
    await mixed(store, clock, 80)


@pytest.mark.deep
@pytest.mark.timeout(1800)
async def test_8_processes_that_do_2000_things_each_leave_every_balance_exact(store: Store, clock: Clock) -> None:
    await mixed(store, clock, 2_000)
