"""What a ledger keeps, in bytes: per run, account, live hold and ended call; and how long retiring some of it holds up the calls.

    python -m tests.bench.footprint [--runs 20000]

Each run has two accounts of its own (dollars and calls) and draws on two that all share. SQLite is measured in used pages of its file,
Valkey in `used_memory`. Docs: docs/store.md says the figures.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import uvloop

from gateway.core.values import Hold
from gateway.ledger.contract import Keep, Ledger
from gateway.ledger.opening import ledger_of
from gateway.settings import RedisSettings, SqliteSettings
from gateway.store_url import parse as parse_url
from tests.bench.ledger import COST, LEASE_MS, TENANT, Decisions
from tests.support.valkey import Server

RECORDS: Final = Keep(records_ms=0, runs_ms=10**12)  # of every call, once it has ended
ALL: Final = Keep(records_ms=0, runs_ms=0)
BATCH: Final = 24  # as the keeper asks
OPEN_AT_ONCE: Final = 256


async def spread(calls: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """So many at once as a busy gateway would."""
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await call()

    await asyncio.gather(*(worker() for _ in range(OPEN_AT_ONCE)))


async def measured(name: str, ledger: Ledger, size: Callable[[], int], runs: int) -> Sequence[str]:
    decisions = Decisions()
    names = [f"run_{number:024x}" for number in range(runs)]
    open_holds: list[Hold] = []

    async def reserve(run: str) -> None:
        hold = await ledger.reserve(decisions.of(run), LEASE_MS)
        assert isinstance(hold, Hold), hold
        open_holds.append(hold)

    empty = size()
    await spread(partial(reserve, run) for run in names)
    first = size()
    await spread(partial(reserve, run) for run in names)
    second = size()
    await spread(partial(ledger.commit, TENANT, hold.id, COST) for hold in open_holds)
    ended = size()
    took = []
    for keep in (RECORDS, ALL):
        took.append(await retired(ledger, keep))
        if keep is RECORDS:
            kept = size()
    swept = size()
    hold, record = (second - first) / runs, (ended - kept) / runs / 2
    rows = {
        "run, with its two accounts and a day's spend": (kept - empty) / runs,
        "live hold": hold,
        "ended call, until it is retired": record,
        "left of a run that was forgotten: a day's spend": (swept - empty) / runs,
    }
    lines = [f"| {what} | {name} | {amount:,.0f} bytes |" for what, amount in rows.items()]
    for what, each_took in zip(("retire", "sweep"), took, strict=True):
        each_took.sort()
        p50, worst = statistics.median(each_took) * 1000, each_took[len(each_took) * 999 // 1000] * 1000
        lines.append(f"| {what} {BATCH}: p50, p99.9 | {name} | {p50:.1f} ms, {worst:.1f} ms |")
    return lines


async def retired(ledger: Ledger, keep: Keep) -> list[float]:
    """How long each batch took that the keeper would have asked for."""
    took = []
    while aged := await ledger.aged(keep, BATCH):
        began = time.perf_counter()
        await ledger.retire(TENANT, [each.decision_id for each in aged], keep)
        took.append(time.perf_counter() - began)
    if keep is ALL:
        while True:
            began = time.perf_counter()
            if not await ledger.sweep(keep, BATCH):
                break
            took.append(time.perf_counter() - began)
    return took


async def sqlite(folder: Path, runs: int) -> Sequence[str]:
    path = folder / "ledger.db"
    ledger = ledger_of(SqliteSettings(path), folder, lambda: time.time_ns() // 1_000_000)
    await ledger.start()

    def size() -> int:
        with apsw.Connection(str(path)) as reading:
            used, page = reading.pragma("page_count") - reading.pragma("freelist_count"), reading.pragma("page_size")
        return int(used * page)

    try:
        return await measured("SQLite", ledger, size, runs)
    finally:
        await ledger.close()


async def valkey(folder: Path, runs: int) -> Sequence[str]:
    with Server(folder) as server:
        ledger = ledger_of(RedisSettings(parse_url(server.url)), folder, lambda: time.time_ns() // 1_000_000)
        await ledger.start()

        def size() -> int:
            lines = server.command("INFO", "memory").decode().splitlines()
            return int(next(line.partition(":")[2] for line in lines if line.startswith("used_memory:")))

        try:
            return await measured("Valkey", ledger, size, runs)
        finally:
            await ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.footprint")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--store", choices=("sqlite", "valkey"), action="append")
    options = parser.parse_args()
    stores = {"sqlite": sqlite, "valkey": valkey}
    print(f"{options.runs:,} runs, two calls each\n\n| what | store | |\n|---|---|---|")
    for name in options.store or stores:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-footprint-")))
            for line in uvloop.run(stores[name](folder, options.runs)):
                print(line)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
