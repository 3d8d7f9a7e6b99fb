"""Several real processes on one ledger file: nobody passes a ceiling, no update is lost, and a killed one leaves nothing undone."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.ledger.contract import HoldState
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account
from tests.support.clock import Clock

ROOT = Path(__file__).parents[2]
Worker = subprocess.Popen[str]


@contextmanager
def worker(folder: Path, kind: str, number: int) -> Iterator[Worker]:
    command = [sys.executable, "-m", "tests.ledger.worker", str(folder), kind, str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
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


def run_together(folder: Path, kind: str, processes: int, number: int) -> list[list[str]]:
    """Starts them, lets them go at once, and returns what each said."""
    with ExitStack() as stack:
        running = [stack.enter_context(worker(folder, kind, number)) for _ in range(processes)]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for place, process in enumerate(running):
            say(process, f"w{place}")
        said = [hear(process) for process in running]
        assert [process.wait(60) for process in running] == [0] * processes
    return said


async def opened(folder: Path, at_ms: int = START_MS) -> SqliteLedger:
    ledger = SqliteLedger(str(folder / "ledger.db"), Witness(folder / "witness"), Clock(at_ms))
    await ledger.start()
    return ledger


@pytest.mark.parametrize("processes", [2, 4])
async def test_of_200_reserves_by_several_processes_on_a_new_run_exactly_those_that_fit_are_held(
    tmp_path: Path, processes: int
) -> None:
    said = run_together(tmp_path, "race", processes, 200 // processes)
    assert sum(int(lines[0]) for lines in said) == 10
    ledger = await opened(tmp_path)
    view = await ledger.run(TENANT, "new")
    assert view is not None
    assert (view.reserved, view.calls) == (100, 10)
    await ledger.close()


async def test_no_update_is_lost_and_each_alert_fires_in_one_process(tmp_path: Path) -> None:
    said = run_together(tmp_path, "calls", 3, 400)
    lines = [line.split(" ") for each in said for line in each]
    assert len(lines) == 1_200
    total = sum(int(cost) for _, cost, _ in lines)
    ledger = await opened(tmp_path)
    (balance,) = await ledger.balances(TENANT, [account()])
    assert (balance.committed, balance.reserved) == (total, 0)
    rows = await ledger.spend(TENANT, ("run",), START_MS, START_MS + 1, None)
    assert (sum(row.usd for row in rows), sum(row.calls for row in rows), len(rows)) == (total, 1_200, 24)
    fired = [threshold for _, _, thresholds in lines for threshold in thresholds.split(",") if threshold]
    assert sorted(int(each) for each in fired) == list(range(10_000, total + 1, 10_000))
    assert ledger.health()["sequence"] == 2_400
    await ledger.close()


async def test_a_process_that_is_killed_loses_no_answered_commit_and_its_holds_expire(tmp_path: Path) -> None:
    with worker(tmp_path, "calls", 100_000) as doomed, worker(tmp_path, "calls", 400) as other:
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
    ledger = await opened(tmp_path, START_MS + LEASE_MS)
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
    await ledger.close()


async def test_two_processes_that_start_on_nothing_make_one_ledger(tmp_path: Path) -> None:
    with ExitStack() as stack:
        running = [stack.enter_context(worker(tmp_path, "race", 1)) for _ in range(4)]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
    ledger = await opened(tmp_path)
    assert ledger.health()["ok"] is True
    await ledger.close()
