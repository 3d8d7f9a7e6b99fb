"""What a ledger keeps, in bytes: per run, account, live hold and ended call; and what calls notice of the keeper.

    python -m tests.bench.footprint [--runs 20000]

Each run has two accounts of its own (dollars and calls) and draws on two that all share. SQLite is measured in used pages of its file,
Valkey in `used_memory`. Docs: docs/store.md says the figures.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import uvloop

from gateway.core.values import Decision, Hold
from gateway.keeper import Keeper
from gateway.ledger.contract import Keep, Ledger
from gateway.ledger.opening import ledger_of
from gateway.settings import RedisSettings, SqliteSettings
from gateway.store_url import parse as parse_url
from tests.bench.ledger import COST, LEASE_MS, TENANT, Decisions, Figures, measure
from tests.support.valkey import Server

RECORDS: Final = Keep(records_ms=0, runs_ms=10**12)  # of every call, once it has ended
ALL: Final = Keep(records_ms=0, runs_ms=0)
PAIRS_S: Final = 3.0
OPEN_AT_ONCE: Final = 256


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


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
    holds: list[Hold] = []

    async def reserve(decision: Decision) -> None:
        hold = await ledger.reserve(decision, LEASE_MS)
        assert isinstance(hold, Hold), hold
        holds.append(hold)

    async def end_all() -> None:
        await spread(partial(ledger.commit, TENANT, hold.id, COST) for hold in holds)
        holds.clear()

    sizes = [size()]
    await spread(partial(reserve, of_its_own_account(decisions, run)) for run in names)
    await end_all()
    await tidy(ledger, RECORDS)
    sizes.append(size())
    for _ in range(2):
        await spread(partial(reserve, decisions.of(run)) for run in names)
        sizes.append(size())
    await end_all()
    sizes.append(size())
    calm = await pairs(ledger, decisions)
    keeping = asyncio.ensure_future(tidy(ledger, RECORDS))
    busy = await pairs(ledger, decisions)
    assert not keeping.done(), "there was too little to retire: name more runs"
    await keeping
    sizes.append(size())
    await tidy(ledger, ALL)
    sizes.append(size())
    empty, accounts, one, two, ended, kept, swept = sizes
    figures = {
        "account": (accounts - empty) / runs,
        "run, with two accounts of its own and a day's spend": (kept - accounts) / runs,
        "live hold": (two - one) / runs,
        "ended call, until it is retired": (ended - kept) / runs / 2,
        "left of a forgotten run: a day's spend": (swept - accounts) / runs,
    }
    lines = [f"| {what} | {name} | {amount:,.0f} bytes |" for what, amount in figures.items()]
    lines += [
        f"| a pair, {when}: p50, p99 | {name} | {took} |" for when, took in (("by itself", calm), ("beside the keeper", busy))
    ]
    return lines


def of_its_own_account(decisions: Decisions, name: str) -> Decision:
    """A call of one and the same run, in one account that no other call counts in."""
    made = decisions.of("hot")
    (plan,) = made.ladder
    charge = plan.charges[1]
    account = replace(charge.ceiling.account, scope=(("agent", name),))
    charges = (replace(charge, ceiling=replace(charge.ceiling, account=account)),)
    return replace(made, ladder=(replace(plan, charges=charges),))


async def pairs(ledger: Ledger, decisions: Decisions) -> str:
    figures = Figures()
    await measure(ledger, decisions, 1, PAIRS_S, figures)
    return f"{figures.p50_ms[0]:.2f} ms, {figures.p99_ms[0]:.2f} ms"


async def tidy(ledger: Ledger, keep: Keep) -> None:
    await Keeper(ledger, lambda: keep, None, clock_ms, lambda _failure: None).tidy()


async def sqlite(folder: Path, runs: int) -> Sequence[str]:
    path = folder / "ledger.db"
    ledger = ledger_of(SqliteSettings(path), folder, clock_ms)
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
        ledger = ledger_of(RedisSettings(parse_url(server.url)), folder, clock_ms)
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
