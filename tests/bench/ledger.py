"""The ledger alone: reserve + commit pairs over four accounts, one at a time and 64 at a time, in each store.

    python -m tests.bench.ledger [--seconds 3] [--rounds 3] [--runs 1000000]

The client is one process with one event loop, as a gateway is. CPU is the client's (for SQLite all of it, as the store is in the
process; for Valkey without the server's). `--runs` also fills each store with that many settled runs, and measures again.
"""

import argparse
import asyncio
import gc
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from gateway import store_url
from gateway.core.scopes import Account, Amounts, Caller, Unit
from gateway.core.values import Basis, Call, Ceiling, Charge, Decision, Ending, Hold, Mode, Plan, Usage, UsageSource
from gateway.core.windows import LIFETIME, Window, WindowKind
from gateway.ledger.contract import Ledger, Settlement
from gateway.ledger.redis.ledger import RedisLedger
from gateway.ledger.redis.servers import servers
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from tests.support.valkey import Server

TENANT: Final = "default"
LEASE_MS: Final = 600_000
DAY_MS: Final = 86_400_000
TIMEOUT_MS: Final = 60_000
AT_ONCE: Final = (1, 64)
COST: Final = Settlement(Amounts(70_000, 1_200), Usage(UsageSource.PROVIDER, 1_000, 0, 0, 200), Ending.COMPLETED)


@dataclass(slots=True)
class Figures:
    """What the rounds of one store gave, with one number of calls at once."""

    pairs_per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def cells(self) -> Sequence[str]:
        middle = statistics.median
        return (
            f"{middle(self.pairs_per_s):,.0f}",
            f"{middle(self.p50_ms):.2f}",
            f"{middle(self.p99_ms):.2f}",
            f"{middle(self.cpu_us):.0f}",
        )


class Decisions:
    """A call of a run as the rulebook makes it: the charges are made once per run, the rest anew for every call."""

    def __init__(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        day_ms = now_ms // DAY_MS * DAY_MS
        self._day = Window(WindowKind.DAY, "UTC", day_ms, day_ms + DAY_MS)
        self._now_ms = now_ms
        self._tails = (f"{now_ms:x}{number:012x}" for number in itertools.count())
        self._charges: dict[str, tuple[Charge, ...]] = {}

    def of(self, run: str) -> Decision:
        caller = Caller(TENANT, "key_1", run, run, dimensions=(("agent", "a1"), ("team", "t1")))
        call = Call(caller, "chat", "bench-model", False, 1, 1024, ())
        plan = Plan("bench-model", "openai", 1024, 1000, Amounts(1_274_000, 2_024), self._charges_of(run))
        return Decision("bdg_" + next(self._tails), call, (plan,), self._now_ms, "prices-1")

    def forget(self, run: str) -> None:
        del self._charges[run]

    def _charges_of(self, run: str) -> tuple[Charge, ...]:
        charges = self._charges.get(run)
        if charges is None:
            scopes = (
                ("run-ceiling", (("run", run),), LIFETIME, Unit.USD),
                ("agent-day", (("agent", "a1"),), self._day, Unit.USD),
                ("tenant", (), LIFETIME, Unit.USD),
                ("steps", (("run", run),), LIFETIME, Unit.CALLS),
            )
            charges = self._charges[run] = tuple(
                Charge(
                    Ceiling(
                        Account(TENANT, name, scope, window, unit),
                        5 * 10**15,
                        Mode.HARD_GATE,
                        Basis.RESERVED_AND_COMMITTED,
                        own=name == "run-ceiling",
                        alerts=(500_000, 800_000, 1_000_000),
                    )
                )
                for name, scope, window, unit in scopes
            )
        return charges


async def pair(ledger: Ledger, decision: Decision) -> None:
    hold = await ledger.reserve(decision, LEASE_MS)
    assert isinstance(hold, Hold), hold
    settled = await ledger.commit(TENANT, hold.id, COST)
    assert settled is not None
    assert settled.changed


async def measure(ledger: Ledger, decisions: Decisions, at_once: int, seconds: float, figures: Figures) -> None:
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def worker(run: str) -> None:
        while (began := time.perf_counter()) < until:
            await pair(ledger, decisions.of(run))
            took.append(time.perf_counter() - began)

    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(worker(f"hot-{number}") for number in range(at_once)))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    took.sort()
    figures.pairs_per_s.append(len(took) / seconds)
    figures.p50_ms.append(took[len(took) // 2] * 1000)
    figures.p99_ms.append(took[len(took) * 99 // 100] * 1000)
    figures.cpu_us.append(cpu_s / len(took) * 1e6)


async def fill(ledger: Ledger, decisions: Decisions, runs: int) -> None:
    """Settled runs of one call each."""
    numbers = iter(range(runs))

    async def worker() -> None:
        for number in numbers:
            await pair(ledger, decisions.of(f"old-{number}"))
            decisions.forget(f"old-{number}")

    await asyncio.gather(*(worker() for _ in range(256)))


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Ledger]:
    yield SqliteLedger(str(folder / "ledger.db"), Witness(folder / "witness"), lambda: time.time_ns() // 1_000_000)


@asynccontextmanager
async def valkey(folder: Path) -> AsyncIterator[Ledger]:
    """Without persistence: its fsyncs are the disk's to measure."""
    server = Server(folder)
    server.start()
    try:
        yield RedisLedger(servers(store_url.parse(server.url), TIMEOUT_MS), Witness(folder / "witness"))
    finally:
        server.kill()


STORES: Final[Mapping[str, Callable[[Path], AbstractAsyncContextManager[Ledger]]]] = {"SQLite": sqlite, "Valkey": valkey}


async def rows(seconds: float, rounds: int, runs: int) -> list[str]:
    """Of the table: the stores one after the other, the numbers at once interleaved."""
    lines: list[str] = []
    for name, store in STORES.items():
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
            async with store(Path(folder)) as ledger:
                await ledger.start()
                decisions = Decisions()
                await measure(ledger, decisions, 64, 1.0, Figures())  # warm
                lines += await measured(ledger, decisions, name, seconds, rounds)
                if runs:
                    await fill(ledger, decisions, runs)
                    lines += await measured(ledger, decisions, f"{name}, {runs:,} older runs", seconds, rounds)
                await ledger.close()
    return lines


async def measured(ledger: Ledger, decisions: Decisions, name: str, seconds: float, rounds: int) -> list[str]:
    told = {at_once: Figures() for at_once in AT_ONCE}
    for _ in range(rounds):
        for at_once, figures in told.items():
            await measure(ledger, decisions, at_once, seconds, figures)
    lines = [f"| {name} | {at_once} | {' | '.join(figures.cells())} |" for at_once, figures in told.items()]
    print("\n".join(lines), file=sys.stderr)
    return lines


def table(seconds: float = 3, rounds: int = 3, runs: int = 0) -> str:
    gc.collect()  # as a gateway does before it serves
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    head = "**The ledger alone: reserve + commit over four accounts**"
    columns = "| | pairs at once | pairs/s | p50 of a pair, ms | p99, ms | client CPU µs/pair |"
    return "\n".join([head, "", columns, "|---|---|---|---|---|---|", *uvloop.run(rows(seconds, rounds, runs))])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ledger")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=0, help="fill each store with so many runs, and measure again")
    options = parser.parse_args()
    print(table(options.seconds, options.rounds, options.runs))


if __name__ == "__main__":
    main()
