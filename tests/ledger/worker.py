"""A gateway's worth of ledger in a process of its own: `python -m tests.ledger.worker FOLDER KIND NUMBER`.

Says "ready", waits for a line, works, and says what it did: one line for each commit that was answered (hold id, cost), or one with the
number of holds it got.
"""

import asyncio
import sys
from pathlib import Path

from gateway.core.values import Hold
from gateway.ledger.sqlite import SqliteLedger
from gateway.ledger.witness import Witness
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, caller, charge, decision, own_run_charge, plan, settlement
from tests.support.clock import Clock


async def main(folder: Path, kind: str, number: int) -> None:
    ledger = SqliteLedger(str(folder / "ledger.db"), Witness(folder / "witness"), Clock(START_MS), timeout_ms=20_000)
    await ledger.start()
    print("ready", flush=True)
    mark = sys.stdin.readline().strip()
    if kind == "race":
        asked = [
            decision(plan(own_run_charge("new", 100), usd=10), of=caller("new"), decision_id=f"bdg_{mark}-{each}")
            for each in range(number)
        ]
        answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in asked))
        print(sum(isinstance(answer, Hold) for answer in answers), flush=True)
    else:
        await asyncio.gather(*(_calls(ledger, f"{mark}-{lane}", number // 8) for lane in range(8)))
    await ledger.close()


async def _calls(ledger: SqliteLedger, lane: str, number: int) -> None:
    alerts = tuple(range(10_000, 1_000_000, 10_000))
    for each in range(number):
        decided = decision(
            plan(charge(limit=10**6, alerts=alerts), usd=10), of=caller(f"run-{lane}"), decision_id=f"bdg_{lane}-{each}"
        )
        held = await ledger.reserve(decided, LEASE_MS)
        assert isinstance(held, Hold)
        cost = each % 13
        settled = await ledger.commit(TENANT, held.id, settlement(cost))
        assert settled is not None
        fired = ",".join(str(alert.threshold_ppm) for alert in settled.alerts)
        print(held.id, cost, fired, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
