"""A gateway's worth of ledger in a process of its own: KIND NUMBER ADDRESS… (`Store.address`, split).

Says "ready", waits for a line, works, and says what it did:

    race    the number of holds it got
    calls   a line for each commit that was answered: the hold's id, its cost, the alerts
    books   how many of the acts and memos that everybody tried it did first
    mixed   the ids of its calls, a line each; then what it adjusted the hot account by
"""

import asyncio
import random
import sys
from typing import Final

from gateway.core.scopes import Amounts, Unit
from gateway.core.values import Decision, Ending, Hold
from gateway.core.windows import rolling
from gateway.ledger.contract import Adjusting, Debiting, Ended, Fund, Funding, Ledger, SetLimit, Settled
from tests.ledger.builders import (
    ADVISORY,
    LEASE_MS,
    START_MS,
    TENANT,
    account,
    caller,
    charge,
    decision,
    own_run_charge,
    plan,
    settlement,
    share_of,
)
from tests.support.clock import Clock
from tests.support.stores import opened, store_at

HOT: Final = account("hot", team="t1")  # every call of every process
GRANT: Final = account("cycles", agent="bot")
LANES: Final = 8


def main() -> None:
    asyncio.run(_work(sys.argv[1], int(sys.argv[2]), " ".join(sys.argv[3:])))


async def _work(kind: str, number: int, address: str) -> None:
    async with opened(store_at(address), Clock(START_MS)) as ledger:
        print("ready", flush=True)
        mark = sys.stdin.readline().strip()
        if kind == "race":
            asked = [
                decision(plan(own_run_charge("new", 100), usd=10), of=caller("new"), decision_id=f"bdg_{mark}-{each}")
                for each in range(number)
            ]
            answers = await asyncio.gather(*(ledger.reserve(each, LEASE_MS) for each in asked))
            print(sum(isinstance(answer, Hold) for answer in answers), flush=True)
        elif kind == "calls":
            await asyncio.gather(*(_calls(ledger, f"{mark}-{lane}", number // LANES) for lane in range(LANES)))
        elif kind == "books":
            print(sum(await asyncio.gather(*(_books(ledger, mark, each) for each in range(number)))), flush=True)
        else:
            mixing = [_Mixing(ledger, f"{mark}-{lane}") for lane in range(LANES)]
            await asyncio.gather(*(each.do(number // LANES) for each in mixing))
            print("\n".join(decision_id for each in mixing for decision_id in each.ids))
            print(sum(each.adjusted for each in mixing), flush=True)


async def _calls(ledger: Ledger, lane: str, number: int) -> None:
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


async def _books(ledger: Ledger, mark: str, number: int) -> int:
    """Funds an account by 1, tells it twice; tries what all the others try too; and counts one up in a document that all count in."""
    first = 0
    for _ in range(2):
        await ledger.fund(GRANT, Fund(by=1), f"{mark}-{number}", "op", "")
    first += (await ledger.fund(GRANT, Fund(by=1_000), f"shared-{number}", "op", "")).outcome is Funding.DONE
    first += await ledger.remember(TENANT, f"memo-{number}", mark, LEASE_MS) is None
    while True:
        documents = await ledger.documents(TENANT, -1)
        assert documents is not None
        counted = documents.texts.get("count")
        if await ledger.put_document(TENANT, "count", str(int(counted or 0) + 1), counted):
            return first


class _Mixing:
    """Everything a gateway does, at random, one thing after the other."""

    def __init__(self, ledger: Ledger, lane: str) -> None:
        self._ledger = ledger
        self._lane = lane
        self._chance = random.Random(lane)
        self._held: list[Hold] = []
        self.ids: list[str] = []
        self.adjusted = 0

    async def do(self, number: int) -> None:
        steps = [self._call, self._call, self._end, self._end, self._debit, self._extend, self._expire, self._operate]
        for _ in range(number):
            await self._chance.choice(steps)()

    def _decision(self) -> Decision:
        chance, number = self._chance, len(self.ids)
        cold = f"cold-{self._lane}-{number // 3}"
        run, parent = chance.choice((("hot", None), ("hot", None), (cold, None), (f"{cold}-child", "hot")))
        above = [own_run_charge(parent, 10**6)] if parent else []
        charges = (
            *(own_run_charge(run, 10**6), *above, charge(HOT, 30_000, alerts=(500_000, 1_000_000))),
            *(charge(account("tokens", Unit.TOKENS), 10**6), charge(account("rate", window=rolling(60_000)), 10**6)),
            *(charge(account("said", agent=chance.choice("abc")), 10, ADVISORY), charge(account("all"), 10**9)),
            share_of(account("all"), 500_000, account("part", run=run)),
        )
        usd = chance.randint(0, 20)
        cheaper = plan(*charges, usd=usd // 2, model="small")
        self.ids.append(f"bdg_{self._lane}-{number}")
        of = caller(run, parent=parent, agent=chance.choice("abc"))
        return decision(plan(*charges, usd=usd, tokens=chance.randint(0, 9)), cheaper, of=of, decision_id=self.ids[-1])

    async def _call(self) -> None:
        decided = self._decision()
        answer = await self._ledger.reserve(decided, self._chance.choice((LEASE_MS, LEASE_MS, 0)))
        if isinstance(answer, Hold):
            self._held.append(answer)
            (hot,) = [balance for balance in answer.balances if balance.account == HOT]
            assert hot.limit is not None
            assert hot.committed + hot.reserved <= hot.limit or answer.plan.cost_max.usd == 0, hot
        if self._chance.random() < 0.1:  # as if the answer had been lost
            again = await self._ledger.reserve(decided, LEASE_MS)
            assert isinstance(again, Hold | Ended) is isinstance(answer, Hold), again

    async def _end(self) -> None:
        if not self._held:
            return
        held = self._held.pop(self._chance.randrange(len(self._held)))
        cost = settlement(self._chance.randint(0, held.plan.cost_max.usd), self._chance.randint(0, 9))
        for _ in range(self._chance.choice((1, 1, 2))):
            if self._chance.random() < 0.7:
                assert isinstance(await self._ledger.commit(TENANT, held.id, cost), Settled)
            else:
                assert isinstance(await self._ledger.release(TENANT, held.id, Ending.PROVIDER_REFUSED), Settled)

    async def _debit(self) -> None:
        decided = self._decision()
        asked = decision(decided.ladder[1], of=decided.call.caller, decision_id=decided.id)
        for _ in range(self._chance.choice((1, 1, 2))):
            await self._ledger.debit(asked, settlement(decided.ladder[1].cost_max.usd, 1), Debiting.ASK)

    async def _extend(self) -> None:
        if self._held:
            held = self._chance.choice(self._held)
            await self._ledger.extend(TENANT, held.id, LEASE_MS, Amounts(self._chance.randint(0, 25), 10, 0))

    async def _expire(self) -> None:
        await self._ledger.expire(2)

    async def _operate(self) -> None:
        number = len(self.ids)
        what = self._chance.randrange(5)
        if what == 0:
            act_id = f"act-{self._lane}-{number}"
            for _ in range(2):
                amount = self._chance.choice((-2, -1))
                done = await self._ledger.adjust(TENANT, HOT.key, amount, act_id, "op", "")
                if done is not None and done[0] is Adjusting.DONE:
                    self.adjusted += amount
        elif what == 1:
            await self._ledger.set_limit(TENANT, "hot", "", SetLimit(10**6 + number, by_admin=True, who="admin"))
        elif what == 2:
            await self._ledger.pause(TENANT, f"cold-{self._lane}-{number // 3}", "op", "")
            await self._ledger.resume(TENANT, f"cold-{self._lane}-{number // 3}", "op", "")
        elif what == 3 and self._held:
            held = self._held.pop()
            await self._ledger.settle(TENANT, held.id, self._chance.choice((None, 0, held.plan.cost_max.usd)), "op", "")
        else:
            await self._ledger.run(TENANT, "hot")


if __name__ == "__main__":
    main()
