"""The reaper ends what is due, batch by batch, and outlives a ledger that does not answer."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from gateway.core.scopes import Amounts
from gateway.core.values import Hold
from gateway.ledger.contract import Expired, Ledger, LedgerLost, LedgerUnavailable
from gateway.ledger.sqlite.ledger import SqliteLedger
from gateway.ledger.witness import Witness
from gateway.reaper import Reaper
from tests.ledger.builders import LEASE_MS, START_MS, TENANT, account, charge, decision, plan
from tests.support.clock import Clock


class Scripted:
    """Answers `expire` with what is next."""

    def __init__(self, *answers: Sequence[Expired] | Exception) -> None:
        self._answers = list(answers)

    async def expire(self, at_most: int) -> Sequence[Expired]:
        answer = self._answers.pop(0) if self._answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer[:at_most]


def holds(number: int) -> list[Expired]:
    return [Expired(f"rsv_{each}", "r1", Amounts(1, 1)) for each in range(number)]


def reaper(ledger: Any, expired: list[Expired], failures: list[Exception]) -> Reaper:
    return Reaper(cast(Ledger, ledger), 1, expired.append, failures.append)


async def test_every_due_hold_is_ended_in_one_sweep(tmp_path: Path) -> None:
    clock = Clock(START_MS)
    ledger = SqliteLedger(str(tmp_path / "ledger.db"), Witness(tmp_path / "witness"), clock)
    await ledger.start()
    wide = plan(charge(limit=None), usd=10)
    answers = await asyncio.gather(*(ledger.reserve(decision(wide), LEASE_MS) for _ in range(230)))
    assert all(isinstance(answer, Hold) for answer in answers)
    expired: list[Expired] = []
    assert await reaper(ledger, expired, []).sweep() == 0
    clock.now_ms += LEASE_MS
    assert await reaper(ledger, expired, []).sweep() == len(expired) == 230
    (balance,) = await ledger.balances(TENANT, [account()])
    assert (balance.reserved, balance.unconfirmed) == (0, 2_300)
    await ledger.close()


@pytest.mark.parametrize("failure", [LedgerUnavailable("away"), LedgerLost("behind"), ZeroDivisionError("a bug")])
async def test_a_ledger_that_does_not_answer_or_fails_is_reported_and_asked_again(failure: Exception) -> None:
    expired: list[Expired] = []
    failures: list[Exception] = []
    task = asyncio.ensure_future(reaper(Scripted(failure, holds(100), failure, holds(2)), expired, failures).run())
    for _ in range(500):
        if len(expired) == 102:
            break
        await asyncio.sleep(0.002)
    assert (len(expired), failures) == (102, [failure, failure])
    assert not task.done()
    task.cancel()
